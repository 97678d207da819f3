//! One sync at a time: equal requests share one run, different ones wait for their turn.
//!
//! A run is a task of its own, so that it is not interrupted when its caller disconnects. It leaves the list
//! of runs when it ends, so that no request gets the result of a run that ended before the request.

use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use tokio::sync::Mutex as Turn;
use tokio_util::task::TaskTracker;

use super::{Operator, SyncReport, SyncRequest};
use crate::error::{Error, Kind, Result};

/// The result of a run, for everyone who waits for it.
pub(super) type SharedSyncResult = Arc<Result<SyncReport>>;

type SharedSync = Shared<BoxFuture<'static, SharedSyncResult>>;
type RunningSyncs = Arc<Mutex<Vec<(SyncRequest, SharedSync)>>>;

/// The runs that have not ended.
#[derive(Default)]
pub(super) struct SingleFlight {
    runs: RunningSyncs,
    turn: Arc<Turn<()>>,
    tasks: TaskTracker,
}

impl SingleFlight {
    /// Joins the run of an equal request, or starts one if there is none. Returns its result.
    pub(super) async fn sync<O: Operator>(
        &self,
        operator: &Arc<O>,
        request: SyncRequest,
    ) -> SharedSyncResult {
        let run = self.join_or_start(operator, request);
        run.await
    }

    /// Joins or starts a run as [`SingleFlight::sync`] does, without waiting for it; `ended` gets its result.
    /// Returns whether an equal run was there.
    pub(super) fn start<O: Operator>(
        &self,
        operator: &Arc<O>,
        request: SyncRequest,
        ended: impl FnOnce(SharedSyncResult) + Send + 'static,
    ) -> bool {
        let was_running = self
            .runs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .any(|(other, _)| *other == request);
        let run = self.join_or_start(operator, request);
        self.tasks.spawn(async move { ended(run.await) });
        was_running
    }

    fn join_or_start<O: Operator>(&self, operator: &Arc<O>, request: SyncRequest) -> SharedSync {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, run)) = runs.iter().find(|(other, _)| *other == request) {
            return run.clone();
        }
        let (operator, turn) = (Arc::clone(operator), Arc::clone(&self.turn));
        let entry = RunningSyncGuard {
            request: request.clone(),
            runs: Arc::clone(&self.runs),
        };
        let task = self.tasks.spawn(async move {
            let _turn = turn.lock().await;
            operator.sync_now(entry.request.clone()).await
        });
        let run: SharedSync = async move {
            Arc::new(task.await.unwrap_or_else(|_| {
                Err(Error::new(
                    Kind::Local,
                    "sync",
                    "it was interrupted by a fault of the program",
                )
                .remedy("see the log, and report what it says"))
            }))
        }
        .boxed()
        .shared();
        runs.push((request, run.clone()));
        run
    }

    /// Waits for the runs that have not ended.
    pub(super) async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Removes a run from the list when it is dropped: when the run ends, in whatever way.
struct RunningSyncGuard {
    request: SyncRequest,
    runs: RunningSyncs,
}

impl Drop for RunningSyncGuard {
    fn drop(&mut self) {
        self.runs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|(other, _)| *other != self.request);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::{Semaphore, mpsc};

    use super::*;
    use crate::catalogue::Catalogue;
    use crate::change::Position;
    use crate::control::status::ReplicatorState;
    use crate::control::{Health, Overview, PauseScope, PauseStatus, RowInquiry, StatusReport};
    use crate::quarantine::QuarantineEntry;

    struct Slow {
        began: mpsc::UnboundedSender<bool>,
        may_end: Semaphore,
    }

    impl Operator for Slow {
        async fn status(&self) -> Result<StatusReport> {
            Ok(StatusReport::unknown(ReplicatorState::Replicating))
        }

        async fn sync_now(&self, request: SyncRequest) -> Result<SyncReport> {
            self.began.send(request.force).unwrap();
            self.may_end.acquire().await.unwrap().forget();
            assert!(!request.entities.contains(&"panic".to_owned()));
            Ok(SyncReport::new(&Catalogue::builtin()))
        }

        fn health(&self) -> Health {
            Health::Well
        }

        fn metrics(&self) -> String {
            String::new()
        }

        async fn overview(&self, _ask_source: bool) -> Overview {
            Overview::default()
        }

        fn lag_now(&self) -> Option<Duration> {
            None
        }

        fn activity(&self) -> u64 {
            0
        }

        async fn why(&self, entity: &str, _key: &str) -> Result<RowInquiry> {
            Err(Error::config(format!("look at {entity}"), "no row is here"))
        }

        async fn quarantined(&self, _position: Position) -> Result<Vec<QuarantineEntry>> {
            Ok(Vec::new())
        }

        async fn retry(&self, _position: Position) -> Result<u64> {
            Ok(0)
        }

        async fn discard(&self, _position: Position) -> Result<u64> {
            Ok(0)
        }

        async fn pause(&self, scope: &PauseScope, _by: &str) -> Result<PauseStatus> {
            Err(Error::config(format!("pause {scope}"), "nothing runs here"))
        }

        async fn resume(&self, scope: &PauseScope, _by: &str) -> Result<PauseStatus> {
            Err(Error::config(format!("resume {scope}"), "nothing runs here"))
        }
    }

    fn request(force: bool, entity: &str) -> SyncRequest {
        SyncRequest {
            force,
            entities: vec![entity.to_owned()],
        }
    }

    #[tokio::test]
    async fn equal_requests_share_a_run_and_others_wait_for_their_turn() {
        let (began, mut watch) = mpsc::unbounded_channel();
        let may_end = Semaphore::new(0);
        let slow = Arc::new(Slow { began, may_end });
        let syncs = SingleFlight::default();
        let first = syncs.join_or_start(&slow, request(true, "a"));
        let same = syncs.join_or_start(&slow, request(true, "a"));
        assert_eq!(watch.recv().await, Some(true));
        let other = syncs.join_or_start(&slow, request(false, "a"));
        slow.may_end.add_permits(1);
        assert!(Arc::ptr_eq(&first.await, &same.await));
        assert_eq!(watch.recv().await, Some(false));
        slow.may_end.add_permits(1);
        assert!(other.await.is_ok());
        assert!(watch.try_recv().is_err(), "three requests were two runs");

        let later = syncs.join_or_start(&slow, request(true, "a"));
        assert_eq!(watch.recv().await, Some(true), "an ended run is not shared");
        slow.may_end.add_permits(1);
        assert!(later.await.is_ok());
        syncs.ended().await;
    }

    #[tokio::test]
    async fn a_run_that_panics_is_an_error_and_lets_others_run() {
        let (began, _watch) = mpsc::unbounded_channel();
        let may_end = Semaphore::new(9);
        let slow = Arc::new(Slow { began, may_end });
        let syncs = SingleFlight::default();
        assert!(syncs.sync(&slow, request(false, "panic")).await.is_err());
        assert!(syncs.sync(&slow, request(false, "a")).await.is_ok());
        assert!(syncs.runs.lock().unwrap().is_empty());
    }
}
