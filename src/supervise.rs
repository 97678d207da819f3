//! Runs a task in rounds, through the failures of the site's database and of the cloud.
//!
//! A round connects, works until something fails or nothing is left, and returns what comes next. After a
//! failure the next round begins after a pause that grows; a failure that repeats is logged once a minute.
//! Each loop of the program that tries again as a whole is one of these; what tries one request again is in
//! [`crate::deliver`].

use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::error::{Class, Error, Result};
use crate::retry::{Backoff, FailureLog};

/// What comes after a round that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NextRound {
    /// None.
    Never,
    /// Another one, after a pause.
    After(Duration),
}

/// The rounds of one task.
pub(crate) struct Supervisor {
    state: Mutex<SupervisorState>,
    ends_on_fatal: bool,
}

struct SupervisorState {
    backoff: Backoff,
    log: FailureLog,
}

impl Supervisor {
    /// For one task; `lane` names it in log lines. A fatal failure ends it: configuration and identity, which
    /// a person must correct.
    pub(crate) fn new(lane: &'static str, backoff: Backoff) -> Self {
        Self {
            state: Mutex::new(SupervisorState {
                backoff,
                log: FailureLog::new(lane),
            }),
            ends_on_fatal: true,
        }
    }

    /// For a task that goes on after every failure.
    pub(crate) fn tireless(lane: &'static str, every: Duration) -> Self {
        Self {
            ends_on_fatal: false,
            ..Self::new(lane, Backoff::within(every, every))
        }
    }

    fn state(&self) -> MutexGuard<'_, SupervisorState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes, within a round, that it got as far as the ones before it did not: what failed before is over.
    pub(crate) fn recovered(&self) {
        let mut state = self.state();
        state.backoff.reset();
        state.log.recovered();
    }

    /// Runs rounds until one returns [`NextRound::Never`], or until `stop`. `failed` hears each failure
    /// before the pause.
    ///
    /// # Errors
    /// The first fatal failure, unless the task is tireless.
    pub(crate) async fn run<F>(
        &self,
        stop: &CancellationToken,
        mut failed: impl FnMut(&Error),
        mut round: impl FnMut() -> F,
    ) -> Result<()>
    where
        F: Future<Output = Result<NextRound>>,
    {
        while !stop.is_cancelled() {
            // Boxed: the future of a round is large, and callers hold this one in theirs.
            let pause = match Box::pin(round()).await {
                Ok(NextRound::Never) => break,
                Ok(NextRound::After(pause)) => pause,
                Err(error) => {
                    failed(&error);
                    if self.ends_on_fatal && error.class() == Class::Fatal {
                        return Err(error);
                    }
                    let mut state = self.state();
                    state.log.failed(&error);
                    state.backoff.next(None)
                }
            };
            pause_or_stop(pause, stop).await;
        }
        Ok(())
    }
}

/// Waits for a while, or until `stop`. Returns whether it was `stop`.
pub(crate) async fn pause_or_stop(pause: Duration, stop: &CancellationToken) -> bool {
    tokio::select! {
        biased;
        () = stop.cancelled() => true,
        () = tokio::time::sleep(pause) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;
    use crate::error::Kind;

    fn error(kind: Kind) -> Error {
        Error::new(kind, "work", "it failed")
    }

    #[tokio::test(start_paused = true)]
    async fn rounds_go_on_after_failures_and_end_with_a_fatal_one() {
        let supervisor = Supervisor::new(
            "test",
            Backoff::within(Duration::from_secs(1), Duration::from_secs(60)),
        );
        let rounds = Cell::new(0);
        let heard = RefCell::new(Vec::new());
        let ended = supervisor
            .run(
                &CancellationToken::new(),
                |error| heard.borrow_mut().push(error.kind()),
                || async {
                    rounds.set(rounds.get() + 1);
                    match rounds.get() {
                        1 | 2 => Err(error(Kind::SourceUnreachable)),
                        3 => Ok(NextRound::After(Duration::from_secs(5))),
                        _ => Err(error(Kind::Identity)),
                    }
                },
            )
            .await;
        assert_eq!(ended.unwrap_err().kind(), Kind::Identity);
        assert_eq!(rounds.get(), 4);
        assert_eq!(
            *heard.borrow(),
            [Kind::SourceUnreachable, Kind::SourceUnreachable, Kind::Identity]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_tireless_task_goes_on_until_it_is_stopped() {
        let stop = CancellationToken::new();
        let rounds = Cell::new(0);
        let supervisor = Supervisor::tireless("test", Duration::from_secs(1));
        let ended = supervisor.run(
            &stop,
            |_| {},
            || async {
                rounds.set(rounds.get() + 1);
                if rounds.get() == 3 {
                    stop.cancel();
                }
                Err(error(Kind::Identity))
            },
        );
        ended.await.unwrap();
        assert_eq!(rounds.get(), 3);
    }
}
