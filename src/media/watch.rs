//! Watches the media root: says which files came or changed, and which are being written.
//!
//! A finished file shows as a close after writing, or as a rename into the folder. Between its first sign and
//! that a file counts as being written. Where the watch breaks or overflows, everything is looked at again.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

/// After so long without a sign, a file that was never closed counts as left alone.
const FORGOTTEN: Duration = Duration::from_secs(30);

/// Paths that are remembered at most between two takes; beyond it, everything is looked at again.
const REMEMBERED: usize = 10_000;

/// What was seen since the last take.
#[derive(Debug, Default)]
pub(super) struct SeenPaths {
    /// Paths below the root that came, changed, or were finished.
    pub(super) paths: Vec<String>,
    /// Whether signs were lost: look at everything.
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
    signs: Arc<Mutex<WatchSignals>>,
    news: Arc<Notify>,
    /// None where the root cannot be watched: then only scanning sees changes.
    _watcher: Option<RecommendedWatcher>,
}

impl MediaWatch {
    /// Watches the root and everything below it.
    pub(super) fn start(root: &Path) -> (Self, Option<notify::Error>) {
        let signs: Arc<Mutex<WatchSignals>> = Arc::default();
        let news = Arc::new(Notify::new());
        let root = root.canonicalize().unwrap_or_else(|_| root.to_owned());
        let handler = {
            let (signs, news, root) = (signs.clone(), news.clone(), root.clone());
            move |event: notify::Result<Event>| {
                let mut signs = signs.lock().unwrap_or_else(PoisonError::into_inner);
                if note(&mut signs, &root, event) {
                    news.notify_one();
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
                signs,
                news,
                _watcher: watcher,
            },
            error,
        )
    }

    /// Waits until something was seen.
    pub(super) async fn news(&self) {
        self.news.notified().await;
    }

    /// Takes what was seen.
    pub(super) fn take(&self) -> SeenPaths {
        let mut signs = self.signs.lock().unwrap_or_else(PoisonError::into_inner);
        signs.writing.retain(|_, last| last.elapsed() < FORGOTTEN);
        SeenPaths {
            paths: signs.touched.drain().collect(),
            lost: std::mem::take(&mut signs.lost),
        }
    }

    /// Whether someone is writing the file now, as far as was seen.
    pub(super) fn is_written(&self, path: &str) -> bool {
        let signs = self.signs.lock().unwrap_or_else(PoisonError::into_inner);
        signs
            .writing
            .get(path)
            .is_some_and(|last| last.elapsed() < FORGOTTEN)
    }
}

/// Notes an event; true where someone may want to look.
fn note(signs: &mut WatchSignals, root: &Path, event: notify::Result<Event>) -> bool {
    let Ok(event) = event else {
        signs.lost = true;
        return true;
    };
    if event.need_rescan() {
        signs.lost = true;
        return true;
    }
    let relative = |path: &PathBuf| {
        path.strip_prefix(root)
            .ok()
            .map(|path| path.to_string_lossy().into_owned())
            .filter(|path| !path.is_empty())
    };
    let mut news = false;
    for path in event.paths.iter().filter_map(relative) {
        match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write))
            | EventKind::Modify(ModifyKind::Name(_)) => {
                signs.writing.remove(&path);
                signs.touched.insert(path);
                news = true;
            }
            EventKind::Create(_) | EventKind::Modify(ModifyKind::Data(_)) => {
                signs.writing.insert(path, Instant::now());
            }
            EventKind::Remove(_) => {
                signs.writing.remove(&path);
            }
            _ => {}
        }
    }
    if signs.touched.len() > REMEMBERED || signs.writing.len() > REMEMBERED {
        signs.touched.clear();
        signs.writing.clear();
        signs.lost = true;
    }
    news
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_is_news_when_it_is_closed_and_not_before() {
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
        tokio::time::timeout(Duration::from_secs(10), watch.news())
            .await
            .unwrap();
        assert_eq!(watch.take().paths, ["a.mp4"]);
        assert!(!watch.is_written("a.mp4"));
    }
}
