//! Whether a file is finished: no program has it open for writing, and it has not changed for a while.
//!
//! The clock that wrote a file's times may be another machine's, and a copy may put old times on a file that
//! it has just written. So a file counts as unchanged for a while if both its times say so, or if it was seen
//! to look the same for as long. A file that never rests is sent as it is after [`LONGEST`]; whether it
//! changed amid its upload is seen afterwards.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::open_writers::OpenWriters;
use super::root::FoundFile;
use crate::source::file_records::FileStamp;

/// How long a file may keep changing before it is sent as it is; or ten times the time that it should rest, if
/// that is longer.
const LONGEST: Duration = Duration::from_secs(30);

/// Files that are remembered at most.
const REMEMBERED: usize = 10_000;

/// A file that changed a moment ago.
struct RestingFile {
    stamp: FileStamp,
    /// Since when it looks like that.
    since: Instant,
    /// Since when it has been changing.
    first: Instant,
}

/// Why a file is not finished.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Unfinished {
    /// A program has it open for writing.
    Open,
    /// It changed a moment ago: look again after this time.
    Changing(Duration),
}

/// See the module.
pub(super) struct Readiness {
    /// How long a file must have been left alone.
    settle: Duration,
    /// How long it may keep changing.
    longest: Duration,
    resting: Mutex<HashMap<String, RestingFile>>,
    writers: OpenWriters,
}

impl Readiness {
    pub(super) fn new(settle: Duration) -> Self {
        Self {
            settle,
            longest: LONGEST.max(settle * 10),
            resting: Mutex::default(),
            writers: OpenWriters::default(),
        }
    }

    /// Why the file is not finished; `None` if it is. `is_being_written` is what its events say.
    pub(super) fn unfinished(
        &self,
        path: &str,
        found: &FoundFile,
        is_being_written: bool,
    ) -> Option<Unfinished> {
        if self.is_open(found) {
            return Some(Unfinished::Open);
        }
        let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        if is_being_written || !self.has_old_times(&found.stamp) {
            let wait = self.rest(&mut resting, path, &found.stamp, is_being_written);
            if let Some(wait) = wait {
                return Some(Unfinished::Changing(wait));
            }
        }
        resting.remove(path);
        None
    }

    /// Whether a program has the file open for writing.
    pub(super) fn is_open(&self, found: &FoundFile) -> bool {
        self.writers.has(found.device, found.stamp.inode.cast_unsigned())
    }

    /// Whether both its times say that it was left alone for long enough. A time in the future says nothing.
    fn has_old_times(&self, stamp: &FileStamp) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let latest = stamp.modified_us.max(stamp.changed_us);
        i64::try_from(now.saturating_sub(self.settle).as_micros()).is_ok_and(|limit| latest <= limit)
    }

    /// How long the file must still be left alone; `None` if it has rested, or never does.
    fn rest(
        &self,
        resting: &mut HashMap<String, RestingFile>,
        path: &str,
        stamp: &FileStamp,
        is_being_written: bool,
    ) -> Option<Duration> {
        if resting.len() >= REMEMBERED {
            resting.clear();
        }
        let now = Instant::now();
        let file = resting.entry(path.to_owned()).or_insert(RestingFile {
            stamp: *stamp,
            since: now,
            first: now,
        });
        if file.stamp != *stamp {
            (file.stamp, file.since) = (*stamp, now);
        }
        if file.first.elapsed() >= self.longest {
            return None;
        }
        let left = self.settle.saturating_sub(file.since.elapsed());
        match (left.is_zero(), is_being_written) {
            (true, false) => None,
            (true, true) => Some(Duration::from_secs(1)),
            (false, _) => Some(left + Duration::from_millis(10)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::media::root::MediaRoot;

    #[test]
    fn a_file_is_finished_when_it_is_closed_and_has_rested() {
        let folder = tempfile::tempdir().unwrap();
        let root = MediaRoot::new(folder.path());
        let readiness = Readiness::new(Duration::from_millis(300));
        let look = |is_being_written| {
            let found = root.open().unwrap().open("a").unwrap();
            readiness.unfinished("a", &found, is_being_written)
        };
        // Written by this program, which also has it open
        let mut file = std::fs::File::create(folder.path().join("a")).unwrap();
        file.write_all(b"half").unwrap();
        assert_eq!(look(false), Some(Unfinished::Open));
        drop(file);
        std::thread::sleep(Duration::from_millis(1_100));
        // by its times it has rested, by its events it has not
        assert_eq!(look(false), None);
        assert!(matches!(look(true), Some(Unfinished::Changing(_))));
        // times in the future say nothing: it is seen to rest
        let file = std::fs::File::options()
            .append(true)
            .open(folder.path().join("a"))
            .unwrap();
        file.set_modified(SystemTime::now() + Duration::from_secs(86_400))
            .unwrap();
        drop(file);
        assert!(matches!(look(false), Some(Unfinished::Changing(_))));
        std::thread::sleep(Duration::from_millis(350));
        assert_eq!(look(false), None);
    }

    #[test]
    fn a_file_that_never_rests_is_finished_in_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let root = MediaRoot::new(folder.path());
        let readiness = Readiness {
            longest: Duration::from_millis(1_500),
            ..Readiness::new(Duration::from_millis(300))
        };
        let began = Instant::now();
        loop {
            std::fs::write(folder.path().join("a"), format!("{:?}", began.elapsed())).unwrap();
            // A moment later, when what was seen of open files counts no more.
            std::thread::sleep(Duration::from_millis(100));
            let found = root.open().unwrap().open("a").unwrap();
            match readiness.unfinished("a", &found, false) {
                Some(Unfinished::Changing(_)) => assert!(began.elapsed() < Duration::from_secs(20)),
                Some(Unfinished::Open) => {}
                None => break,
            }
        }
        assert!(began.elapsed() >= Duration::from_millis(1_500));
    }
}
