//! Watches the media root: which files appeared or changed, and which are being written.
//!
//! A file is finished when it is closed after writing, or renamed into the folder. From its first event until
//! then it counts as being written. If the watch fails or overflows, all files are looked at again.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
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
    lost: bool,
    writing: HashMap<String, Instant>,
}

/// A watch on the media root.
pub(super) struct MediaWatch {
    signals: Arc<Mutex<WatchSignals>>,
    changes: Arc<Notify>,
    /// `None` if the root cannot be watched: then only scans see changes.
    _watcher: Option<RecommendedWatcher>,
}

impl MediaWatch {
    /// Watches the root and everything below it.
    pub(super) fn start(root: &Path) -> (Self, Option<notify::Error>) {
        let signals: Arc<Mutex<WatchSignals>> = Arc::default();
        let changes = Arc::new(Notify::new());
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
        let watcher = notify::recommended_watcher(handler).and_then(|mut watcher| {
            watcher.watch(&root, RecursiveMode::Recursive)?;
            Ok(watcher)
        });
        let (watcher, error) = match watcher {
            Ok(watcher) => (Some(watcher), None),
            Err(error) => (None, Some(error)),
        };
        (
            Self {
                signals,
                changes,
                _watcher: watcher,
            },
            error,
        )
    }

    /// Waits until a file appeared or changed.
    pub(super) async fn changed(&self) {
        self.changes.notified().await;
    }

    /// Takes what was seen.
    pub(super) fn take(&self) -> SeenPaths {
        let mut signals = self.signals.lock().unwrap_or_else(PoisonError::into_inner);
        signals.writing.retain(|_, last| last.elapsed() < FORGOTTEN);
        SeenPaths {
            paths: signals.touched.drain().collect(),
            lost: std::mem::take(&mut signals.lost),
        }
    }

    /// Whether the file is being written now, as far as events tell.
    pub(super) fn is_written(&self, path: &str) -> bool {
        let signals = self.signals.lock().unwrap_or_else(PoisonError::into_inner);
        signals
            .writing
            .get(path)
            .is_some_and(|last| last.elapsed() < FORGOTTEN)
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
    let relative = |path: &PathBuf| {
        path.strip_prefix(root)
            .ok()
            .map(|path| path.to_string_lossy().into_owned())
            .filter(|path| !path.is_empty())
    };
    let mut is_change = false;
    for path in event.paths.iter().filter_map(relative) {
        match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write))
            | EventKind::Modify(ModifyKind::Name(_)) => {
                signals.writing.remove(&path);
                signals.touched.insert(path);
                is_change = true;
            }
            EventKind::Create(_) | EventKind::Modify(ModifyKind::Data(_)) => {
                signals.writing.insert(path, Instant::now());
            }
            EventKind::Remove(_) => {
                signals.writing.remove(&path);
            }
            _ => {}
        }
    }
    if signals.touched.len() > REMEMBERED || signals.writing.len() > REMEMBERED {
        signals.touched.clear();
        signals.writing.clear();
        signals.lost = true;
    }
    is_change
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_has_changed_when_it_is_closed_and_not_before() {
        use std::io::Write;
        let folder = tempfile::tempdir().unwrap();
        let (watch, error) = MediaWatch::start(folder.path());
        assert!(error.is_none());
        let mut file = std::fs::File::create(folder.path().join("a.mp4")).unwrap();
        file.write_all(b"half").unwrap();
        while !watch.is_written("a.mp4") {
            tokio::task::yield_now().await;
        }
        drop(file);
        tokio::time::timeout(Duration::from_secs(10), watch.changed())
            .await
            .unwrap();
        assert_eq!(watch.take().paths, ["a.mp4"]);
        assert!(!watch.is_written("a.mp4"));
    }
}
