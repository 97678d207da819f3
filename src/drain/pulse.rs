//! How the drain is doing, for whoever wants to see: status, health, metrics, a waiting sync.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Instant;

use tokio::sync::{Notify, watch};

use crate::change::{Epoch, Position};
use crate::checkpoint::Checkpoint;
use crate::deliver::Capabilities;
use crate::metrics::Metrics;

/// One end of the drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The site's database.
    Source,
    /// The cloud.
    Cloud,
}

/// What the drain is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// It connects, or has not begun.
    Starting,
    /// It replicates: all is well.
    Replicating,
    /// The source or the cloud is away; it tries again.
    BackingOff {
        /// Who is away.
        away: Side,
        /// The error.
        reason: String,
    },
    /// The cloud refused the key: nothing is pushed until it is mended.
    KeyRefused {
        /// The error.
        reason: String,
    },
    /// It has stopped for good.
    Stopped {
        /// The error.
        reason: String,
    },
}

/// That the cloud has less than it had accepted, and whether that was seen to.
#[derive(Debug, Default)]
struct Loss {
    /// In words, until a sync has repaired it.
    reason: Option<String>,
    /// How far the cloud had come when it was noticed.
    at: HighWater,
    /// The same, of the last loss that was repaired.
    repaired: Option<HighWater>,
}

/// How far a cloud has come with our source; none where it has nothing of it.
type HighWater = Option<(Epoch, Position)>;

/// The drain's state as others see it.
#[derive(Debug)]
pub struct Pulse {
    /// Counters and gauges.
    pub metrics: Arc<Metrics>,
    condition: watch::Sender<Condition>,
    accepted: watch::Sender<Option<Checkpoint>>,
    sent: Mutex<Option<Checkpoint>>,
    cloud: Mutex<Option<Capabilities>>,
    progressed: Mutex<Instant>,
    kick: Notify,
    loss: watch::Sender<Loss>,
    /// Told when a row names a file that is not uploaded.
    pub files_wanted: Arc<Notify>,
}

impl Pulse {
    /// Nothing has happened yet.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            condition: watch::Sender::new(Condition::Starting),
            accepted: watch::Sender::new(None),
            sent: Mutex::new(None),
            cloud: Mutex::new(None),
            progressed: Mutex::new(Instant::now()),
            kick: Notify::new(),
            loss: watch::Sender::default(),
            files_wanted: Arc::new(Notify::new()),
        }
    }

    /// What the drain is doing now.
    pub fn condition(&self) -> Condition {
        self.condition.borrow().clone()
    }

    /// The last committed checkpoint.
    pub fn checkpoint(&self) -> Option<Checkpoint> {
        self.accepted.borrow().clone()
    }

    /// What the cloud said that it can do; none while it was not reached.
    pub fn capabilities(&self) -> Option<Capabilities> {
        *self
            .cloud
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// When a batch was last accepted, or the drain last found nothing to do.
    pub fn progressed_at(&self) -> Instant {
        *self
            .progressed
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Why the cloud has less than it had accepted, until a sync has repaired that.
    pub fn loss(&self) -> Option<String> {
        self.loss.borrow().reason.clone()
    }

    /// Waits until the cloud is found to have less than it had accepted.
    pub async fn lost(&self) {
        let mut loss = self.loss.subscribe();
        // The sender lives as long as this does.
        let _ = loss.wait_for(|loss| loss.reason.is_some()).await;
    }

    /// Notes that the cloud has come no further than `at`, and had; unless that very loss is repaired. Answers whether it is
    /// news.
    pub(super) fn lose(&self, at: HighWater, reason: String) -> bool {
        self.loss.send_if_modified(|loss| {
            let news = loss.reason.is_none() && loss.repaired != Some(at);
            if news {
                (loss.reason, loss.at) = (Some(reason), at);
            }
            news
        })
    }

    /// A sync that began when the loss was `reason` has compared everything, and repaired it.
    pub fn repaired(&self, reason: &str) {
        self.loss.send_if_modified(|loss| {
            let same = loss.reason.as_deref() == Some(reason);
            if same {
                (loss.reason, loss.repaired) = (None, Some(loss.at));
            }
            same
        });
    }

    /// Ends a back-off early: someone asked for a sync.
    pub fn kick(&self) {
        self.kick.notify_waiters();
    }

    /// Waits for the next [`Pulse::kick`].
    pub async fn kicked(&self) {
        self.kick.notified().await;
    }

    /// Waits until everything that `transaction` wrote to the outbox is settled, or until the drain has not been well for
    /// `patience`; answers the reason then.
    pub async fn settled(&self, transaction: u64, patience: std::time::Duration) -> Result<(), String> {
        let mut accepted = self.accepted.subscribe();
        let mut condition = self.condition.subscribe();
        let sees = |checkpoint: &Option<Checkpoint>| {
            checkpoint
                .as_ref()
                .is_some_and(|checkpoint| checkpoint.lo.sees(transaction))
        };
        let mut unwell: Option<tokio::time::Instant> = None;
        loop {
            if sees(&accepted.borrow_and_update()) {
                return Ok(());
            }
            let reason = match &*condition.borrow_and_update() {
                Condition::Starting | Condition::Replicating => None,
                Condition::BackingOff { reason, .. }
                | Condition::KeyRefused { reason }
                | Condition::Stopped { reason } => Some(reason.clone()),
            };
            unwell = match (&reason, unwell) {
                (None, _) => None,
                (Some(_), Some(since)) => Some(since),
                (Some(_), None) => Some(tokio::time::Instant::now()),
            };
            let limit = unwell.map(|since| since + patience);
            tokio::select! {
                changed = accepted.changed() => if changed.is_err() { return Err("the drain has ended".into()) },
                changed = condition.changed() => if changed.is_err() { return Err("the drain has ended".into()) },
                () = tokio::time::sleep_until(limit.unwrap_or_else(tokio::time::Instant::now)), if limit.is_some() => {
                    return Err(reason.unwrap_or_default());
                }
            }
        }
    }

    pub(super) fn set(&self, condition: Condition) {
        self.condition.send_if_modified(|now| {
            let changed = *now != condition;
            *now = condition;
            changed
        });
    }

    pub(super) fn accepted(&self, checkpoint: Checkpoint) {
        if let Some(window) = &checkpoint.window {
            self.metrics.checkpoint_position.set(window.position.0);
        } else {
            self.metrics.checkpoint_position.set(checkpoint.floor.0);
        }
        self.progress();
        self.accepted.send_replace(Some(checkpoint));
    }

    /// Notes the checkpoint that a batch will be once it is accepted. From now on the cloud may have it.
    pub(super) fn sends(&self, checkpoint: &Checkpoint) {
        *self
            .sent
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(checkpoint.clone());
    }

    /// The checkpoint of the batch that this process sent last, accepted or not.
    pub(super) fn sent(&self) -> Option<Checkpoint> {
        self.sent
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }

    /// Waits until the checkpoint of this serial, or a later one, is committed.
    pub(super) async fn committed(&self, serial: u64) {
        let mut accepted = self.accepted.subscribe();
        // The sender lives as long as this does.
        let _ = accepted
            .wait_for(|checkpoint| checkpoint.as_ref().is_some_and(|kept| kept.serial >= serial))
            .await;
    }

    /// Follows another process's drain by the checkpoint's mirror.
    pub fn follow(&self, checkpoint: Checkpoint) {
        self.set(Condition::Replicating);
        self.accepted(checkpoint);
    }

    /// The source is away, before the drain could say so itself.
    pub fn unwell(&self, reason: String) {
        self.set(Condition::BackingOff {
            away: Side::Source,
            reason,
        });
    }

    pub(super) fn progress(&self) {
        *self
            .progressed
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = Instant::now();
    }

    pub(super) fn greeted(&self, capabilities: Option<Capabilities>) {
        *self
            .cloud
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = capabilities;
    }
}
