//! How the drain is doing, for whoever wants to see: status, health, metrics, a waiting sync.

use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use jiff::Timestamp;
use tokio::sync::{Notify, watch};

use super::incidents::{Incident, Incidents};
use crate::batch::{Batch, Fate};
use crate::catalogue::EntityIndex;
use crate::change::Op;
use crate::checkpoint::Checkpoint;
use crate::deliver::Capabilities;
use crate::liveness::Liveness;
use crate::media::FileLaneSignals;
use crate::metrics::Metrics;
use crate::source::pauses::Pauses;

/// One end of the drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
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
        away: Peer,
        /// The error.
        reason: String,
    },
    /// The cloud refused the key: nothing is pushed until it has a valid one.
    KeyRefused {
        /// The error.
        reason: String,
    },
    /// It has stopped for good.
    Stopped {
        /// The error.
        reason: String,
    },
    /// An operator has paused it.
    Paused {
        /// Since when, and by whom.
        reason: String,
    },
}

impl Condition {
    /// Why it does not replicate; `None` if it does, or begins.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Starting | Self::Replicating => None,
            Self::BackingOff { reason, .. }
            | Self::KeyRefused { reason }
            | Self::Stopped { reason }
            | Self::Paused { reason } => Some(reason),
        }
    }
}

/// Keys of accepted rows, each with its entity's place in the catalogue.
type AcceptedKeys = Vec<(EntityIndex, String)>;

/// Collects the keys of the rows that the cloud accepts, from when it is made until it is dropped.
#[derive(Debug)]
pub struct AcceptedKeyRecorder {
    delivered: Arc<Mutex<AcceptedKeys>>,
}

impl AcceptedKeyRecorder {
    /// What was collected since the last call.
    pub fn take(&self) -> AcceptedKeys {
        std::mem::take(
            &mut *self
                .delivered
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
        )
    }
}

/// The drain's state as others see it.
#[derive(Debug)]
pub struct ReplicationState {
    /// Counters and gauges.
    pub metrics: Arc<Metrics>,
    condition: watch::Sender<Condition>,
    accepted: watch::Sender<Option<Checkpoint>>,
    recordings: Mutex<Vec<Weak<Mutex<AcceptedKeys>>>>,
    cloud: Mutex<Option<Capabilities>>,
    progressed: Mutex<Instant>,
    delivered_at: Mutex<Option<Timestamp>>,
    incidents: Mutex<Incidents>,
    pauses: watch::Sender<Arc<Pauses>>,
    kick: Notify,
    /// Told when a row names a file that is not uploaded.
    pub files: Arc<FileLaneSignals>,
    /// The tasks that can be asked whether they still run.
    pub(crate) liveness: Liveness,
}

impl ReplicationState {
    /// Nothing has happened yet.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            condition: watch::Sender::new(Condition::Starting),
            accepted: watch::Sender::new(None),
            recordings: Mutex::default(),
            cloud: Mutex::new(None),
            progressed: Mutex::new(Instant::now()),
            delivered_at: Mutex::default(),
            incidents: Mutex::new(Incidents::new(Timestamp::now())),
            pauses: watch::Sender::default(),
            kick: Notify::new(),
            files: Arc::default(),
            liveness: Liveness::default(),
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

    /// When a batch was last accepted.
    pub fn progressed_at(&self) -> Instant {
        *self
            .progressed
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// When the cloud last accepted a change; `None` before the first one.
    pub fn delivered_at(&self) -> Option<Timestamp> {
        *self
            .delivered_at
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Since when the condition is of its present kind.
    pub fn since(&self) -> Timestamp {
        self.incidents().since()
    }

    /// The last times when it did not replicate, the newest first.
    pub fn last_incidents(&self) -> Vec<Incident> {
        self.incidents().list()
    }

    fn incidents(&self) -> std::sync::MutexGuard<'_, Incidents> {
        self.incidents
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// What is paused.
    pub fn pauses(&self) -> Arc<Pauses> {
        self.pauses.borrow().clone()
    }

    /// What is paused, as it changes.
    pub fn follow_pauses(&self) -> watch::Receiver<Arc<Pauses>> {
        self.pauses.subscribe()
    }

    /// Tells the drain and the file lane what is paused: they obey at once.
    pub fn set_pauses(&self, pauses: Pauses) {
        self.files.bandwidth.set_paused(pauses.of_files().is_some());
        self.pauses.send_if_modified(|now| {
            let changed = **now != pauses;
            *now = Arc::new(pauses);
            changed
        });
    }

    /// Collects the keys of the rows that the cloud accepts from now on.
    pub fn record(&self) -> AcceptedKeyRecorder {
        let delivered = Arc::new(Mutex::default());
        self.recordings
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .push(Arc::downgrade(&delivered));
        AcceptedKeyRecorder { delivered }
    }

    /// Tells who collects it what of the batch was accepted.
    pub(super) fn delivered(&self, batch: &Batch) {
        if batch
            .indexed()
            .any(|(index, _)| *batch.fate(index) == Fate::Accepted)
        {
            *self
                .delivered_at
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(Timestamp::now());
        }
        let mut recordings = self
            .recordings
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        recordings.retain(|recording| {
            let Some(delivered) = recording.upgrade() else {
                return false;
            };
            let accepted = batch
                .indexed()
                .filter(|(index, _)| *batch.fate(*index) == Fate::Accepted);
            let keys = accepted
                .map(|(_, change)| change)
                .filter(|change| change.op != Op::Truncate)
                .map(|change| (change.entity, change.key.to_string()));
            delivered
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .extend(keys);
            true
        });
    }

    /// Tells when the drain does something else.
    pub(crate) fn conditions(&self) -> watch::Receiver<Condition> {
        self.condition.subscribe()
    }

    /// Tells when the checkpoint comes on.
    pub fn checkpoints(&self) -> watch::Receiver<Option<Checkpoint>> {
        self.accepted.subscribe()
    }

    /// Ends a back-off early: someone asked for a sync.
    pub fn wake_now(&self) {
        self.kick.notify_waiters();
    }

    /// Waits for the next [`ReplicationState::wake_now`].
    pub async fn woken(&self) {
        self.kick.notified().await;
    }

    /// Waits until everything that `transaction` wrote to the outbox is settled, or until the drain has not
    /// been well for `patience`; answers the reason then.
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
                | Condition::Stopped { reason }
                | Condition::Paused { reason } => Some(reason.clone()),
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
        self.incidents().note(&condition, Timestamp::now());
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
            self.metrics.checkpoint_position.set(checkpoint.low_water.0);
        }
        self.progress();
        self.accepted.send_replace(Some(checkpoint));
    }

    /// Follows another process's drain by the checkpoint's mirror.
    pub fn follow(&self, checkpoint: Checkpoint) {
        self.set(Condition::Replicating);
        self.accepted(checkpoint);
    }

    /// The source is away, before the drain could say so itself.
    pub fn source_away(&self, reason: String) {
        self.set(Condition::BackingOff {
            away: Peer::Source,
            reason,
        });
    }

    pub(super) fn progress(&self) {
        *self
            .progressed
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = Instant::now();
    }

    pub(super) fn cloud_answered(&self, capabilities: Option<Capabilities>) {
        *self
            .cloud
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = capabilities;
    }
}
