//! Files on their way: many small ones at once, one large one beside them.
//!
//! Large files go one after another: side by side on a slow uplink that drops, none would come to its end.
//! Small ones do not wait for them. What a file's turn ended with is kept until it is taken and written down;
//! until then the file is busy, and has no other turn. After the first sign that the cloud is away nothing
//! new starts, and what is under way ends.

use std::collections::{HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;

use super::paths::{self, OpenRefusal};
use super::records::{FileStamp, NO_VIDEOS, PendingFile, SETTLING};
use super::upload::FileLane;
use super::watch::MediaWatch;
use crate::deliver::{Capabilities, ChangeOrigin, Failure, UploadFile, UploadReceipt};
use crate::error::{Error, Kind, Result};

/// Small files under way at once.
const SMALL_AT_ONCE: usize = 12;

/// A file of so many bytes is large.
const LARGE: i64 = 8 * 1024 * 1024;

/// Files that are busy at once, at most.
const BUSY: usize = 1024;

/// How often a missing file is looked for although nothing was seen.
const MISSING_EVERY: f64 = 60.0;

/// How many seconds a file waits at first that the cloud fails to take (5xx), and one that it refuses (4xx);
/// and any at most.
const FAILING_FIRST: f64 = 10.0;
const REFUSED_FIRST: f64 = 600.0;
const FAILING_LAST: f64 = 3600.0;

/// File name endings of videos.
const VIDEOS: [&str; 10] = [
    "mp4", "m4v", "mov", "avi", "mkv", "webm", "mpg", "mpeg", "ts", "flv",
];

/// What a file's turn ended with.
pub(super) struct FileOutcome {
    pub(super) path: String,
    pub(super) end: FileFate,
}

/// See [`FileOutcome`].
pub(super) enum FileFate {
    /// The cloud has it, and it still looks as it did.
    Uploaded(FileStamp, UploadReceipt),
    /// It is tried again later, or was refused.
    Later(Deferral),
}

/// Why a file is not uploaded now, and when to look again.
pub(super) struct Deferral {
    pub(super) state: &'static str,
    pub(super) why: String,
    pub(super) seconds: f64,
    /// Whether it counts as an attempt.
    pub(super) counts: bool,
}

impl Deferral {
    /// It is not ready.
    fn waiting(why: &str, seconds: f64) -> Self {
        Self {
            state: "waiting",
            why: why.to_owned(),
            seconds,
            counts: false,
        }
    }

    /// It was tried, and is tried again.
    fn again(why: &str, seconds: f64) -> Self {
        Self {
            counts: true,
            ..Self::waiting(why, seconds)
        }
    }

    /// The cloud does not take it, while it is there: it is tried again after `first` seconds, then after
    /// twice that.
    fn failing(why: String, first: f64, attempts: i32) -> Self {
        let doubled = first * 2_f64.powi(attempts.clamp(0, 20));
        Self {
            state: "failing",
            why,
            seconds: doubled.min(FAILING_LAST),
            counts: true,
        }
    }

    fn missing(why: String) -> Self {
        Self {
            state: "missing",
            why,
            seconds: MISSING_EVERY,
            counts: true,
        }
    }

    fn refused(why: String) -> Self {
        Self {
            state: "refused",
            why,
            seconds: 0.0,
            counts: true,
        }
    }
}

/// What an upload needs to know.
#[derive(Clone)]
pub(super) struct UploadContext<'a> {
    pub(super) uploads: &'a FileLane,
    pub(super) watch: &'a MediaWatch,
    pub(super) capabilities: Capabilities,
    pub(super) origin: Arc<ChangeOrigin>,
}

/// A file that is ready, with its look.
struct ReadyFile {
    wanted: PendingFile,
    file: PathBuf,
    before: FileStamp,
}

/// One file's end, whether it was a large one, or why the cloud cannot take any now.
type UploadOutcome = (bool, Result<FileOutcome>);

/// The files on their way.
pub(super) struct UploadPool<'a> {
    ground: UploadContext<'a>,
    small: VecDeque<ReadyFile>,
    large: VecDeque<ReadyFile>,
    under_way: FuturesUnordered<BoxFuture<'a, UploadOutcome>>,
    /// A large one is under way.
    large_under_way: bool,
    ended: Vec<FileOutcome>,
    busy: HashSet<String>,
    stopped: Option<Error>,
}

impl<'a> UploadPool<'a> {
    pub(super) fn new(ground: UploadContext<'a>) -> Self {
        Self {
            ground,
            small: VecDeque::new(),
            large: VecDeque::new(),
            under_way: FuturesUnordered::new(),
            large_under_way: false,
            ended: Vec::new(),
            busy: HashSet::new(),
            stopped: None,
        }
    }

    /// How many more files it wants now.
    pub(super) fn room(&self) -> usize {
        if self.stopped.is_some() || self.small.len() > SMALL_AT_ONCE {
            return 0;
        }
        BUSY.saturating_sub(self.busy.len()).min(BUSY / 4)
    }

    /// The files that have no other turn now.
    pub(super) fn busy(&self) -> Vec<&str> {
        self.busy.iter().map(String::as_str).collect()
    }

    pub(super) fn is_busy(&self, path: &str) -> bool {
        self.busy.contains(path)
    }

    /// Gives files their turn: they go up, or are put off with the reason.
    pub(super) fn give(&mut self, files: Vec<PendingFile>) {
        for wanted in files {
            self.busy.insert(wanted.path.clone());
            match self.ground.look(&wanted) {
                Ok((file, before)) => {
                    let queue = if before.size >= LARGE {
                        &mut self.large
                    } else {
                        &mut self.small
                    };
                    queue.push_back(ReadyFile { wanted, file, before });
                }
                Err(later) => self.ended.push(FileOutcome {
                    path: wanted.path,
                    end: FileFate::Later(later),
                }),
            }
        }
        self.start();
    }

    /// Takes what has ended. The files stay busy until [`UploadPool::written`].
    pub(super) fn take(&mut self) -> Vec<FileOutcome> {
        std::mem::take(&mut self.ended)
    }

    /// What was taken is written down.
    pub(super) fn written(&mut self, ended: &[FileOutcome]) {
        for one in ended {
            self.busy.remove(&one.path);
        }
    }

    /// Why nothing starts any more, once nothing is under way.
    pub(super) fn stopped(&mut self) -> Option<Error> {
        if self.under_way.is_empty() && self.ended.is_empty() {
            self.stopped.take()
        } else {
            None
        }
    }

    /// Waits until one has ended; for ever where none is under way.
    pub(super) async fn next(&mut self) {
        let Some((large, landed)) = self.under_way.next().await else {
            return std::future::pending().await;
        };
        if large {
            self.large_under_way = false;
        }
        match landed {
            Ok(ended) => self.ended.push(ended),
            Err(error) => {
                self.stopped.get_or_insert(error);
            }
        }
        self.start();
    }

    /// Does other work while they go on.
    pub(super) async fn beside<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = self.next() => {}
            }
        }
    }

    fn start(&mut self) {
        if self.stopped.is_some() {
            return;
        }
        if !self.large_under_way
            && let Some(ready) = self.large.pop_front()
        {
            self.large_under_way = true;
            self.launch(ready, true);
        }
        while self.under_way.len() - usize::from(self.large_under_way) < SMALL_AT_ONCE
            && let Some(ready) = self.small.pop_front()
        {
            self.launch(ready, false);
        }
    }

    fn launch(&self, ready: ReadyFile, large: bool) {
        let ground = self.ground.clone();
        self.under_way
            .push(Box::pin(async move { (large, ground.upload(ready).await) }));
    }
}

impl UploadContext<'_> {
    /// Uploads one file. An error says that the cloud takes none now: the file keeps its turn.
    async fn upload(self, ready: ReadyFile) -> Result<FileOutcome> {
        let ReadyFile { wanted, file, before } = ready;
        let mut sent = UploadFile::new(&file);
        if let Some(name) = &wanted.sent_as {
            sent.name.clone_from(name);
        }
        let sent = self.uploads.cloud.upload(&wanted.directory, sent).await;
        let end = match sent {
            Ok(uploaded) if look(&file).ok() != Some(before) || uploaded.bytes != before.size as u64 => {
                FileFate::Later(Deferral::again("it changed while it was uploaded", 1.0))
            }
            // The reference server answers the hash of what it has; a server that cannot is believed.
            Ok(uploaded) if self.capabilities.changes && !uploaded.confirmed => {
                FileFate::Later(Deferral::again("the cloud did not confirm its content", 30.0))
            }
            Ok(uploaded) => FileFate::Uploaded(before, uploaded),
            Err(failure) => match failure.error().kind() {
                Kind::Media => FileFate::Later(Deferral::again(failure.error().cause(), 2.0)),
                Kind::CloudRefused => {
                    self.uploads.metrics.files.failed.inc();
                    tracing::warn!(path = wanted.path, "{}", failure.error());
                    let why = failure.error().cause().to_owned();
                    FileFate::Later(Deferral::failing(why, REFUSED_FIRST, wanted.attempts))
                }
                _ => match self.is_this_files(&failure).await {
                    true => {
                        self.uploads.metrics.files.failed.inc();
                        let cause = failure.error().cause();
                        let why = match failure.words() {
                            Some(words) => format!("{cause}: {words}"),
                            None => cause.to_owned(),
                        };
                        tracing::warn!(path = wanted.path, "{}", failure.error());
                        FileFate::Later(Deferral::failing(why, FAILING_FIRST, wanted.attempts))
                    }
                    // The cloud is away: the lane waits.
                    false => return Err(failure.into()),
                },
            },
        };
        Ok(FileOutcome {
            path: wanted.path,
            end,
        })
    }

    /// Whether a failure is about the file: the cloud is there, and takes the key.
    async fn is_this_files(&self, failure: &Failure) -> bool {
        failure.may_be_a_rows_fault() && self.uploads.cloud.hello(&self.origin).await.is_ok()
    }

    /// Where the file lies and how it looks, if it can be uploaded now.
    fn look(&self, wanted: &PendingFile) -> std::result::Result<(PathBuf, FileStamp), Deferral> {
        let ready = self.ready(&wanted.path).and_then(|file| match look(&file) {
            Ok(look) => Ok((file, look)),
            Err(error) => Err(Deferral::missing(error.to_string())),
        });
        if let Err(later) = &ready
            && later.state == "missing"
            && wanted.attempts == 0
        {
            tracing::warn!(
                path = wanted.path,
                "a row names a file that is not in the media root"
            );
            self.uploads.metrics.files.missing.inc();
        }
        ready
    }

    fn ready(&self, path: &str) -> std::result::Result<PathBuf, Deferral> {
        let path = paths::below(&self.uploads.root, path).map_err(|why| Deferral::refused(why.into()))?;
        let ending = Path::new(&path)
            .extension()
            .map(|ending| ending.to_string_lossy().to_lowercase());
        if !self.uploads.videos && ending.is_some_and(|ending| VIDEOS.contains(&ending.as_str())) {
            return Err(Deferral::waiting(NO_VIDEOS, 3600.0));
        }
        let file = paths::locate(&self.uploads.root, &path).map_err(|why| match why {
            OpenRefusal::Missing => Deferral::missing("the file is not there".into()),
            OpenRefusal::Outside => Deferral::refused("a link leads outside the media root".into()),
            OpenRefusal::Unreadable(error) => Deferral::missing(error.to_string()),
        })?;
        let about = file
            .metadata()
            .map_err(|error| Deferral::waiting(&error.to_string(), 5.0))?;
        if !about.is_file() {
            return Err(Deferral::refused("it is not a regular file".into()));
        }
        if about.len() == 0 {
            return Err(Deferral::waiting("the file is empty", 30.0));
        }
        let age = about
            .modified()
            .ok()
            .and_then(|modified| SystemTime::now().duration_since(modified).ok());
        // A time in the future says nothing; then only the watch can tell.
        if let Some(age) = age
            && age < self.uploads.settle
        {
            let left = (self.uploads.settle - age).as_secs_f64() + 0.01;
            return Err(Deferral::waiting(SETTLING, left));
        }
        if self.watch.is_written(&path) {
            return Err(Deferral::waiting("the file is being written", 1.0));
        }
        Ok(file)
    }
}

/// How the file looks now.
pub(super) fn look(file: &Path) -> std::io::Result<FileStamp> {
    let about = file.metadata()?;
    let modified = about.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(FileStamp {
        size: about.len() as i64,
        modified_us: modified.as_micros() as i64,
    })
}
