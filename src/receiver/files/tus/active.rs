//! The uploads that this process writes at the moment, and the hash states of those that it wrote last.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// Hash states that are kept, at most: 2 KiB each.
const HASHERS: usize = 1024;

/// How long a request that is to end may take to note what it has.
const PATIENCE: Duration = Duration::from_secs(5);

/// See the module. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct ActiveUploads(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    is_stopping: bool,
    requests: HashMap<String, ActiveRequest>,
    hashers: HashMap<String, HashState>,
}

#[derive(Clone)]
struct ActiveRequest {
    stop: CancellationToken,
    ended: CancellationToken,
}

/// The hash of an upload's beginning.
pub(super) struct HashState {
    /// The request that wrote the last of these bytes.
    pub(super) writer: String,
    pub(super) offset: u64,
    pub(super) hasher: blake3::Hasher,
}

/// A request that writes an upload, until it is dropped.
pub(super) struct ActiveGuard {
    uploads: ActiveUploads,
    id: String,
    /// Cancelled when it shall read no more of its body.
    pub(super) stop: CancellationToken,
}

impl ActiveUploads {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to write an upload; `None` if another request writes it.
    pub(super) fn begin(&self, id: &str) -> Option<ActiveGuard> {
        let mut state = self.lock();
        if state.requests.contains_key(id) {
            return None;
        }
        let request = ActiveRequest {
            stop: CancellationToken::new(),
            ended: CancellationToken::new(),
        };
        if state.is_stopping {
            request.stop.cancel();
        }
        state.requests.insert(id.to_owned(), request.clone());
        Some(ActiveGuard {
            uploads: self.clone(),
            id: id.to_owned(),
            stop: request.stop,
        })
    }

    /// Has the request that writes this upload read no more of its body, and waits a moment for its end.
    pub(super) async fn interrupt(&self, id: &str) {
        let request = self.lock().requests.get(id).cloned();
        if let Some(request) = request {
            request.stop.cancel();
            // Whoever ignores it has the whole body, and is hashing a large file.
            let _ = tokio::time::timeout(PATIENCE, request.ended.cancelled()).await;
        }
    }

    /// Has all requests note what they have, now and from now on, and waits a moment for their end.
    pub(crate) async fn stop_all(&self) {
        let requests: Vec<ActiveRequest> = {
            let mut state = self.lock();
            state.is_stopping = true;
            state.requests.values().cloned().collect()
        };
        for request in &requests {
            request.stop.cancel();
        }
        let all = futures::future::join_all(requests.iter().map(|request| request.ended.cancelled()));
        let _ = tokio::time::timeout(PATIENCE, all).await;
    }

    /// Takes the hash state of an upload, if it is of the bytes that this request wrote up to this offset.
    pub(super) fn take_hasher(&self, id: &str, writer: Option<&str>, offset: u64) -> Option<blake3::Hasher> {
        let state = self.lock().hashers.remove(id)?;
        (Some(state.writer.as_str()) == writer && state.offset == offset).then_some(state.hasher)
    }

    pub(super) fn keep_hasher(&self, id: &str, hash_state: HashState) {
        let mut state = self.lock();
        if state.hashers.len() >= HASHERS
            && let Some(any) = state.hashers.keys().next().cloned()
        {
            // The file is read once more at its end.
            state.hashers.remove(&any);
        }
        state.hashers.insert(id.to_owned(), hash_state);
    }
}

impl Drop for ActiveGuard {
    fn drop(&mut self) {
        let request = self.uploads.lock().requests.remove(&self.id);
        if let Some(request) = request {
            request.ended.cancel();
        }
    }
}
