//! Watches the media root: which files appeared or changed, and which are being written.
//!
//! A file is finished when it is closed after writing, or renamed into its folder. From its first event until
//! then it counts as being written. What the watch says is a hint that makes a change known soon: the rescan
//! finds what it did not tell.
//!
//! Each folder has its own watch, so that one that cannot be watched does not end the watch of the others.
//! Links are not followed: a folder outside the root is never watched, and one inside has its own watch.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind};
use notify::{ErrorKind, Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

/// After so long without an event, a file that was never closed no longer counts as being written.
const FORGOTTEN: Duration = Duration::from_secs(30);

/// Paths that are kept at most between two takes; if there are more, all files are looked at again.
const REMEMBERED: usize = 10_000;

/// What was seen since the last take.
#[derive(Debug, Default)]
pub(super) struct SeenPaths {
    /// Paths below the root that appeared, changed, or were finished.
    pub(super) paths: Vec<String>,
    /// Whether events were lost: look at all files.
    pub(super) lost: bool,
}

#[derive(Default)]
struct WatchSignals {
    touched: HashSet<String>,
    /// What appeared under a name, and may be a folder.
    folders: Vec<PathBuf>,
    lost: bool,
    writing: HashMap<String, Instant>,
}

impl WatchSignals {
    fn forget_all(&mut self) {
        self.touched.clear();
        self.folders.clear();
        self.writing.clear();
        self.lost = true;
    }
}

/// A watch on the media root.
pub(super) struct MediaWatch {
    /// The root without links.
    root: PathBuf,
    /// Device and inode of the watched root; `None` if there was none.
    root_id: Option<(u64, u64)>,
    signals: Arc<Mutex<WatchSignals>>,
    changes: Arc<Notify>,
    folders: Mutex<WatchedFolders>,
    /// Whether events were lost since the whole tree was watched: folders that were new then are not.
    lost_folders: AtomicBool,
}

struct WatchedFolders {
    /// `None` if nothing can be watched: then only rescans see changes.
    watcher: Option<RecommendedWatcher>,
    /// How many are watched.
    watched: usize,
    /// How many are not, and why the first one is not.
    unwatched: usize,
    problem: Option<String>,
}

impl MediaWatch {
    /// Watches the root and every folder below it, as far as that can be done.
    pub(super) fn start(root: &Path) -> Self {
        let signals: Arc<Mutex<WatchSignals>> = Arc::default();
        let changes = Arc::new(Notify::new());
        let root_id = id_of(root);
        let root = root.canonicalize().unwrap_or_else(|_| root.to_owned());
        let handler = {
            let (signals, changes, root) = (signals.clone(), changes.clone(), root.clone());
            move |event: notify::Result<Event>| {
                let mut signals = signals.lock().unwrap_or_else(PoisonError::into_inner);
                if note(&mut signals, &root, event) {
                    changes.notify_one();
                }
            }
        };
        let mut folders = WatchedFolders {
            watcher: None,
            watched: 0,
            unwatched: 0,
            problem: None,
        };
        match notify::recommended_watcher(handler) {
            Ok(watcher) => folders.watcher = Some(watcher),
            Err(error) => folders.note_unwatched(&root, &error),
        }
        folders.watch_below(&root, &mut |_| {});
        Self {
            root,
            root_id,
            signals,
            changes,
            folders: Mutex::new(folders),
            lost_folders: AtomicBool::new(false),
        }
    }

    /// Whether it still watches the folder that is the root now.
    pub(super) fn is_current(&self, root: &Path) -> bool {
        self.root_id.is_some() && self.root_id == id_of(root)
    }

    /// Why the watch does not tell of every change; `None` if it does.
    pub(super) fn problem(&self) -> Option<String> {
        let folders = self.folders.lock().unwrap_or_else(PoisonError::into_inner);
        let problem = folders.problem.as_ref()?;
        Some(format!(
            "{} of {} folders below the media root cannot be watched: {problem}",
            folders.unwatched,
            folders.unwatched + folders.watched
        ))
    }

    /// Waits until a file appeared or changed.
    pub(super) async fn changed(&self) {
        self.changes.notified().await;
    }

    /// Takes what was seen, and watches folders that are new.
    pub(super) fn take(&self) -> SeenPaths {
        let (mut touched, new_folders, mut lost) = {
            let mut signals = self.signals();
            signals.writing.retain(|_, last| last.elapsed() < FORGOTTEN);
            (
                std::mem::take(&mut signals.touched),
                std::mem::take(&mut signals.folders),
                std::mem::take(&mut signals.lost),
            )
        };
        if !new_folders.is_empty() {
            let mut folders = self.folders.lock().unwrap_or_else(PoisonError::into_inner);
            for folder in new_folders {
                if !std::fs::symlink_metadata(&folder).is_ok_and(|about| about.is_dir()) {
                    continue;
                }
                // What was put into it before it was watched told nothing.
                folders.watch_below(&folder, &mut |file| {
                    if touched.len() < REMEMBERED {
                        touched.extend(below(&self.root, file));
                    } else {
                        lost = true;
                    }
                });
            }
        }
        if lost {
            self.lost_folders.store(true, Ordering::Relaxed);
        }
        SeenPaths {
            paths: touched.into_iter().collect(),
            lost,
        }
    }

    /// Whether events were lost since the whole tree was watched.
    pub(super) fn lost_folders(&self) -> bool {
        self.lost_folders.load(Ordering::Relaxed)
    }

    /// Watches the root and every folder below it once more: those that are watched stay so.
    pub(super) fn watch_again(&self) {
        self.lost_folders.store(false, Ordering::Relaxed);
        let mut folders = self.folders.lock().unwrap_or_else(PoisonError::into_inner);
        if folders.watcher.is_some() {
            (folders.watched, folders.unwatched, folders.problem) = (0, 0, None);
            folders.watch_below(&self.root, &mut |_| {});
        }
    }

    /// Whether the file is being written now, as far as events tell.
    pub(super) fn is_written(&self, path: &str) -> bool {
        let signals = self.signals();
        let last = signals.writing.get(path);
        last.is_some_and(|last| last.elapsed() < FORGOTTEN)
    }

    fn signals(&self) -> MutexGuard<'_, WatchSignals> {
        self.signals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WatchedFolders {
    /// Watches a folder and those below it, and gives every file in them to `file`.
    fn watch_below(&mut self, folder: &Path, file: &mut dyn FnMut(&Path)) {
        let mut pending = vec![folder.to_owned()];
        while let Some(folder) = pending.pop() {
            if let Some(watcher) = &mut self.watcher {
                match watcher.watch(&folder, RecursiveMode::NonRecursive) {
                    Ok(()) => self.watched += 1,
                    Err(error) => self.note_unwatched(&folder, &error),
                }
            }
            // If it is gone again, or cannot be read, then the watch has said so.
            let Ok(entries) = std::fs::read_dir(&folder) else {
                continue;
            };
            for entry in entries.flatten() {
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => pending.push(entry.path()),
                    Ok(_) => file(&entry.path()),
                    Err(_) => {}
                }
            }
        }
    }

    fn note_unwatched(&mut self, folder: &Path, error: &notify::Error) {
        if self.watched > 0
            && std::fs::symlink_metadata(folder).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        {
            // It has gone in the meantime.
            return;
        }
        self.unwatched += 1;
        self.problem.get_or_insert_with(|| match error.kind {
            ErrorKind::MaxFilesWatch => {
                "the system's watches are used up; raise fs.inotify.max_user_watches".to_owned()
            }
            _ => format!("{}: {error}", folder.display()),
        });
    }
}

/// Device and inode of a folder, if there is one.
fn id_of(folder: &Path) -> Option<(u64, u64)> {
    let about = std::fs::metadata(folder).ok()?;
    Some((about.dev(), about.ino()))
}

/// A path below the root as text. A name that is no UTF-8 cannot be in a row.
fn below(root: &Path, path: &Path) -> Option<String> {
    let path = path.strip_prefix(root).ok()?.to_str()?;
    (!path.is_empty()).then(|| path.to_owned())
}

/// The kind of a file system that tells only of what this machine changes; `None` for others.
///
/// Source: statfs(2), the magic numbers of `f_type`.
pub fn silent_file_system(folder: &Path) -> Option<&'static str> {
    #[cfg(target_os = "linux")]
    {
        let about = rustix::fs::statfs(folder).ok()?;
        match about.f_type as u32 {
            0x6969 => Some("nfs"),
            0x517B | 0xFF53_4D42 | 0xFE53_4D42 => Some("smb"),
            0x6573_5546 => Some("fuse"),
            0x0102_1997 => Some("9p"),
            0x00C3_6400 => Some("ceph"),
            0x5346_414F => Some("afs"),
            _ => None,
        }
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = folder;
        None
    }
}

/// Notes an event. Returns whether a file appeared or changed.
fn note(signals: &mut WatchSignals, root: &Path, event: notify::Result<Event>) -> bool {
    let Ok(event) = event else {
        signals.lost = true;
        return true;
    };
    if event.need_rescan() {
        signals.lost = true;
        return true;
    }
    let mut is_change = false;
    for full in &event.paths {
        let Some(path) = below(root, full) else { continue };
        match event.kind {
            EventKind::Create(CreateKind::Folder) => {
                signals.folders.push(full.clone());
                is_change = true;
            }
            EventKind::Modify(ModifyKind::Name(_)) => {
                signals.folders.push(full.clone());
                signals.writing.remove(&path);
                signals.touched.insert(path);
                is_change = true;
            }
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => {
                signals.writing.remove(&path);
                signals.touched.insert(path);
                is_change = true;
            }
            // It may be readable now.
            EventKind::Modify(ModifyKind::Metadata(_)) => {
                signals.touched.insert(path);
                is_change = true;
            }
            EventKind::Create(_) | EventKind::Modify(ModifyKind::Data(_)) => {
                // A link, or a further name of a file, has no other event.
                if matches!(event.kind, EventKind::Create(_)) {
                    signals.touched.insert(path.clone());
                    is_change = true;
                }
                signals.writing.insert(path, Instant::now());
            }
            EventKind::Remove(_) => {
                signals.writing.remove(&path);
            }
            _ => {}
        }
    }
    if signals.touched.len() > REMEMBERED
        || signals.writing.len() > REMEMBERED
        || signals.folders.len() > REMEMBERED
    {
        signals.forget_all();
    }
    is_change
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn seen(watch: &MediaWatch, wanted: &[&str]) {
        let mut wanted: HashSet<&str> = wanted.iter().copied().collect();
        let all = async {
            while !wanted.is_empty() {
                watch.changed().await;
                for path in watch.take().paths {
                    wanted.remove(path.as_str());
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), all).await.unwrap();
    }

    #[tokio::test]
    async fn a_file_has_changed_when_it_is_closed_and_not_before() {
        use std::io::Write;
        let folder = tempfile::tempdir().unwrap();
        let watch = MediaWatch::start(folder.path());
        assert_eq!(watch.problem(), None);
        let mut file = std::fs::File::create(folder.path().join("a.mp4")).unwrap();
        file.write_all(b"half").unwrap();
        while !watch.is_written("a.mp4") {
            tokio::task::yield_now().await;
        }
        watch.take();
        drop(file);
        seen(&watch, &["a.mp4"]).await;
        assert!(!watch.is_written("a.mp4"));
    }

    #[tokio::test]
    async fn folders_that_came_while_events_were_lost_are_watched_again() {
        let folder = tempfile::tempdir().unwrap();
        let watch = MediaWatch::start(folder.path());
        // Given more events than the system keeps, as nobody takes them
        let queue = std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
        let files: usize = queue.trim().parse::<usize>().unwrap() + 1_000;
        let held = watch.signals();
        for number in 0..files {
            std::fs::write(folder.path().join(number.to_string()), "").unwrap();
        }
        std::fs::create_dir_all(folder.path().join("late/deeper")).unwrap();
        drop(held);
        while !watch.take().lost {
            watch.changed().await;
        }
        assert!(watch.lost_folders());
        // When the tree is watched again
        watch.watch_again();
        assert!(!watch.lost_folders());
        assert_eq!(watch.folders.lock().unwrap().watched, 3);
        // Then what comes into a folder that was new then is seen.
        std::fs::write(folder.path().join("late/deeper/a.jpg"), "a").unwrap();
        seen(&watch, &["late/deeper/a.jpg"]).await;
    }

    #[tokio::test]
    async fn folders_that_are_new_or_swapped_are_watched_and_links_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (root, outside) = (folder.path().join("media"), folder.path().join("outside"));
        std::fs::create_dir_all(root.join("day")).unwrap();
        std::fs::create_dir_all(outside.join("deep/deeper")).unwrap();
        std::os::unix::fs::symlink(&outside, root.join("link")).unwrap();
        let watch = MediaWatch::start(&root);
        assert_eq!(watch.folders.lock().unwrap().watched, 2);
        // new, with what is put into it at once
        std::fs::create_dir_all(root.join("2026/11")).unwrap();
        std::fs::write(root.join("2026/11/a.jpg"), "a").unwrap();
        seen(&watch, &["2026/11/a.jpg"]).await;
        std::fs::write(root.join("2026/11/b.jpg"), "b").unwrap();
        seen(&watch, &["2026/11/b.jpg"]).await;
        // another folder takes its place
        std::fs::create_dir_all(folder.path().join("other")).unwrap();
        std::fs::write(folder.path().join("other/x.jpg"), "x").unwrap();
        std::fs::rename(root.join("day"), folder.path().join("day.old")).unwrap();
        std::fs::rename(folder.path().join("other"), root.join("day")).unwrap();
        seen(&watch, &["day/x.jpg"]).await;
        std::fs::write(root.join("day/y.jpg"), "y").unwrap();
        seen(&watch, &["day/y.jpg"]).await;
        assert!(watch.is_current(&root));
        std::fs::rename(&root, folder.path().join("media.old")).unwrap();
        assert!(!watch.is_current(&root));
        std::fs::create_dir(&root).unwrap();
        assert!(!watch.is_current(&root));
    }
}
