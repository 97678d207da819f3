//! What the file lane and the rest of the program tell each other.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

use super::bandwidth::Bandwidth;

/// See the module. Nothing's correctness hangs on it.
#[derive(Debug, Default)]
pub struct FileLaneSignals {
    /// Signalled when a row names a new file, and when somebody asks for a rescan.
    pub wanted: Notify,
    /// How fast files may go.
    pub bandwidth: Bandwidth,
    requested: AtomicU64,
    answered: AtomicU64,
    progress: AtomicU64,
    watch_problem: Mutex<Option<String>>,
}

impl FileLaneSignals {
    /// Asks for a rescan: every file that a row names is compared with its record.
    pub fn request_rescan(&self) {
        self.requested.fetch_add(1, Ordering::Relaxed);
        self.wanted.notify_one();
    }

    /// The number of the last request.
    pub(super) fn requested(&self) -> u64 {
        self.requested.load(Ordering::Relaxed)
    }

    /// Notes that a rescan has ended that began after this request.
    pub(super) fn note_answered(&self, request: u64) {
        self.answered.fetch_max(request, Ordering::Relaxed);
    }

    /// Whether a rescan is asked for that has not ended.
    pub fn rescan_is_pending(&self) -> bool {
        self.answered.load(Ordering::Relaxed) < self.requested()
    }

    /// Notes that bytes of a file were sent, or that something became of a file.
    pub(super) fn note_progress(&self, steps: u64) {
        self.progress.fetch_add(steps, Ordering::Relaxed);
    }

    /// A number that rises as long as files advance.
    pub fn progress(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }

    /// Why the watch of the media root does not tell of every change; `None` if it does.
    pub fn watch_problem(&self) -> Option<String> {
        self.problem().clone()
    }

    pub(super) fn set_watch_problem(&self, problem: Option<String>) {
        *self.problem() = problem;
    }

    fn problem(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.watch_problem.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
