//! Asks the cloud who it is and what it can do, and publishes the answer.
//!
//! The cloud is asked at the start, after each failure and once in a while, whether or not there is anything
//! to send: so it shows at once that the cloud is away, refuses the key, can do more or less than before, is
//! another one, or has less than it had accepted. What follows from an answer is for the others: the sender
//! begins a term, the retries touch rows again.
//!
//! Invariant: an answer is published from when the cloud gives it until a request fails. While none is
//! published, nothing is sent.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Condition, Peer, ReplicationState};
use crate::checkpoint::Version;
use crate::deliver::{ChangeOrigin, Cloud, CloudInfo, Failure};
use crate::error::{Class, Kind, Result};
use crate::retry::{Backoff, FailureLog, waits};

/// What the cloud answered.
#[derive(Debug, Clone)]
pub(super) struct CloudAnswer {
    pub(super) info: CloudInfo,
    /// The furthest batch that it was known to have when it was asked.
    pub(super) expected: Option<Version>,
    /// When it was asked.
    pub(super) asked_at: Instant,
}

/// The drain's side of the handshake: the sender, the retries and the foreign keys share it.
pub(super) struct Handshake {
    cloud: Cloud,
    origin: ChangeOrigin,
    state: Arc<ReplicationState>,
    every: Duration,
    answer: watch::Sender<Option<CloudAnswer>>,
    schedule: Mutex<HandshakeSchedule>,
    /// Held while the cloud is asked: one question at a time.
    asking: tokio::sync::Mutex<()>,
}

struct HandshakeSchedule {
    /// When the cloud is asked next.
    next_at: Instant,
    /// Whether the last delivery failed.
    failing: bool,
    backoff: Backoff,
    log: FailureLog,
    /// The furthest batch that the cloud is known to have accepted.
    accepted: Option<Version>,
}

impl Handshake {
    /// `accepted` is the furthest batch that the cloud is known to have.
    pub(super) fn new(
        cloud: Cloud,
        origin: ChangeOrigin,
        state: Arc<ReplicationState>,
        every: Duration,
        accepted: Option<Version>,
    ) -> Self {
        Self {
            cloud,
            origin,
            state,
            every,
            answer: watch::Sender::new(None),
            schedule: Mutex::new(HandshakeSchedule {
                next_at: Instant::now(),
                failing: false,
                backoff: Backoff::of(waits::CLOUD),
                log: FailureLog::new("delivery"),
                accepted,
            }),
            asking: tokio::sync::Mutex::new(()),
        }
    }

    fn schedule(&self) -> MutexGuard<'_, HandshakeSchedule> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last answer; `None` before the first one and after a failure.
    pub(super) fn answer(&self) -> Option<CloudAnswer> {
        self.answer.borrow().clone()
    }

    /// The answers, as they change.
    pub(super) fn answers(&self) -> watch::Receiver<Option<CloudAnswer>> {
        self.answer.subscribe()
    }

    /// Asks the cloud now, and publishes the answer. A failure is the caller's to report.
    pub(super) async fn ask(&self) -> std::result::Result<CloudAnswer, Failure> {
        let _one = self.asking.lock().await;
        let (expected, asked_at) = (self.schedule().accepted, Instant::now());
        let info = self.cloud.handshake(&self.origin).await?;
        let answer = CloudAnswer {
            info,
            expected,
            asked_at,
        };
        self.schedule().next_at = Instant::now() + self.every;
        self.state.cloud_answered(Some(answer.info.capabilities));
        self.answer.send_replace(Some(answer.clone()));
        Ok(answer)
    }

    /// Notes the furthest batch that the cloud is known to have.
    pub(super) fn note_accepted(&self, accepted: Option<Version>) {
        self.schedule().accepted = accepted;
    }

    /// Notes that a delivery went through.
    pub(super) fn delivered(&self) {
        let mut schedule = self.schedule();
        schedule.failing = false;
        schedule.backoff.reset();
        schedule.log.recovered();
        self.state.set(Condition::Replicating);
    }

    /// Notes that a part of a batch got through: a line that drops often still carries something.
    pub(super) fn delivered_in_part(&self) {
        self.schedule().backoff.reset();
    }

    /// How long to wait before the same is tried once more.
    pub(super) fn next_wait(&self) -> Duration {
        self.schedule().backoff.next(None)
    }

    /// Notes that what was published no longer counts: the next attempt asks again.
    pub(super) fn forget(&self) {
        self.answer.send_replace(None);
        self.schedule().next_at = Instant::now();
    }

    /// Notes that a delivery failed, shows why, and sets the time of the next question.
    ///
    /// # Errors
    /// What ends the round: the source's failures, whose sessions are opened again, and fatal ones.
    pub(super) fn failed(&self, failure: Failure) -> Result<()> {
        self.schedule().failing = true;
        self.note(failure)
    }

    fn note(&self, failure: Failure) -> Result<()> {
        let error = failure.error();
        if error.class() == Class::Fatal || matches!(error.kind(), Kind::Source | Kind::SourceUnreachable) {
            return Err(failure.into());
        }
        let mut schedule = self.schedule();
        schedule.next_at = Instant::now() + schedule.backoff.next(failure.retry_after());
        schedule.log.failed(error);
        self.answer.send_replace(None);
        self.state.cloud_answered(None);
        self.state.metrics.cloud_error(error.kind());
        let reason = error.to_string();
        self.state.set(if error.kind() == Kind::CloudAuth {
            Condition::KeyRefused { reason }
        } else {
            Condition::BackingOff {
                away: Peer::Cloud,
                reason,
            }
        });
        Ok(())
    }

    /// Waits until an answer is published. Returns `None` if `shutdown` comes first.
    pub(super) async fn available(&self, shutdown: &CancellationToken) -> Option<CloudAnswer> {
        let mut answers = self.answers();
        let available = answers.wait_for(Option::is_some);
        tokio::select! {
            biased;
            // The sender lives as long as this does.
            answer = available => answer.ok()?.clone(),
            () = shutdown.cancelled() => None,
        }
    }

    /// Asks the cloud at the start, after failures, once in a while, and when someone asks for a sync, until
    /// `stop`.
    ///
    /// # Errors
    /// What ends the round; see [`Handshake::failed`].
    pub(super) async fn run(&self, stop: &CancellationToken) -> Result<()> {
        let mut answers = self.answers();
        loop {
            answers.mark_unchanged();
            let next_at = self.schedule().next_at;
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep_until(next_at) => {}
                () = self.state.woken() => {}
                // The time of the next question has changed, or the sender has asked.
                _ = answers.changed() => continue,
            }
            let asked = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                asked = self.ask() => asked,
            };
            match asked {
                // While deliveries fail, an answer alone is no recovery.
                Ok(_) if self.schedule().failing => {}
                Ok(_) => self.delivered(),
                Err(failure) => self.note(failure)?,
            }
        }
    }
}
