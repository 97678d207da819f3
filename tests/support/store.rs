//! A checkpoint store in memory.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use cloud_sync::checkpoint::{Checkpoint, Store};
use cloud_sync::error::{Error, Kind, Result};

/// A store in memory, whose next commit may fail.
#[derive(Default)]
pub(crate) struct MemoryStore {
    checkpoint: Mutex<Option<Checkpoint>>,
    fails: AtomicBool,
}

impl MemoryStore {
    /// Lets the next commit fail.
    pub(crate) fn fail_next_commit(&self) {
        self.fails.store(true, Ordering::Relaxed);
    }

    /// Lets the next commit succeed; returns whether it would have failed.
    pub(crate) fn cancel_failure(&self) -> bool {
        self.fails.swap(false, Ordering::Relaxed)
    }

    /// Forgets the checkpoint.
    pub(crate) fn clear(&self) {
        *self.checkpoint.lock().unwrap() = None;
    }
}

impl Store for MemoryStore {
    fn load(&self) -> Result<Option<Checkpoint>> {
        Ok(self.checkpoint.lock().unwrap().clone())
    }

    fn commit(&self, checkpoint: &Checkpoint) -> Result<()> {
        if self.fails.swap(false, Ordering::Relaxed) {
            return Err(Error::new(
                Kind::Store,
                "commit the checkpoint",
                "the test's disk",
            ));
        }
        *self.checkpoint.lock().unwrap() = Some(checkpoint.clone());
        Ok(())
    }
}
