//! The status of a replicator, as the API and `status --json` return it. The JSON is stable: fields are
//! added, never renamed. An unknown value is null; times are ISO 8601 in UTC.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::report::PerEntity;
use crate::latency::{PerStep, Percentiles};
use crate::media::BudgetStatus;
use crate::source::pauses::Pauses;

/// What the replicator is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReplicatorState {
    /// It connects to the source and the cloud, and checks both.
    Starting,
    /// It delivers changes as they are captured.
    Replicating,
    /// It waits before the next attempt, because the source or the cloud is unreachable.
    #[serde(rename = "backing off")]
    BackingOff,
    /// The cloud refused the key: changes are captured and not pushed.
    #[serde(rename = "key refused")]
    KeyRefused,
    /// Another replicator serves this source. This one takes over when the other ends.
    Standby,
    /// An operator has paused it: changes are captured and not pushed.
    Paused,
    /// It does not run.
    Stopped,
}

impl ReplicatorState {
    /// The state in words.
    pub fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Replicating => "replicating",
            Self::BackingOff => "backing off",
            Self::KeyRefused => "key refused",
            Self::Standby => "standby",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// Everything that an operator wants to see at once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusReport {
    /// When the process started; null if it does not run.
    pub running_since: Option<Timestamp>,
    /// What it is doing.
    pub state: ReplicatorState,
    /// Since when it is in this state; null if it does not run.
    #[serde(default)]
    pub state_since: Option<Timestamp>,
    /// What an operator has paused, since when, and by whom.
    #[serde(default)]
    pub paused: Pauses,
    /// Why it does not replicate; or what is wrong with the capture while it replicates.
    pub reason: Option<String>,
    /// The source database.
    pub source: SourceStatus,
    /// The cloud.
    pub cloud: CloudStatus,
    /// What the cloud has not accepted yet; null if the source is unreachable.
    pub lag: Option<LagStatus>,
    /// When the cloud last accepted a change; null before the first one since the process started.
    #[serde(default)]
    pub last_accepted_at: Option<Timestamp>,
    /// How far the cloud has accepted; null before the first batch.
    pub checkpoint: Option<CheckpointStatus>,
    /// The sync that runs now; null if none does.
    #[serde(default)]
    pub running_sync: Option<RunningSync>,
    /// The last sync; null before the first.
    pub last_sync: Option<LastSync>,
    /// When the next sync is due; null if none is scheduled.
    pub next_sync: Option<Timestamp>,
    /// Counts since the process started.
    pub counts: ChangeCounts,
    /// Accepted changes since the process started, by entity.
    pub entities: PerEntity<u64>,
    /// Refused changes that wait for a decision; null if the source is unreachable.
    pub quarantine: Option<u64>,
    /// Media files.
    pub files: FileCounts,
    /// The outbox's size in the source database; null if that is unreachable.
    pub outbox_bytes: Option<u64>,
    /// How the outbox grows, and when its disk is full; null if the source is unreachable.
    #[serde(default)]
    pub outbox_growth: Option<GrowthStatus>,
    /// Entities whose changes capture may miss now, or that wait for an operator, or whose missed changes are
    /// not compared yet.
    #[serde(default)]
    pub capture: Vec<CaptureProblem>,
    /// From capture to acceptance; null before the first change.
    pub latency: Option<LatencyStatus>,
}

/// The source database.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SourceStatus {
    /// The name by which the cloud knows it.
    pub id: Option<String>,
    /// Its outbox's epoch.
    pub epoch: Option<i64>,
    /// Whether it is reachable; null before the first attempt.
    pub reachable: Option<bool>,
    /// The error of the last attempt, if it failed.
    pub last_error: Option<String>,
}

/// The cloud.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CloudStatus {
    /// Its base URL, which never holds credentials.
    pub url: Option<String>,
    /// Whether it is reachable; null before the first attempt.
    pub reachable: Option<bool>,
    /// The capabilities that are used.
    pub capabilities: Vec<String>,
    /// The last error: the cloud was unreachable, or refused.
    pub last_error: Option<String>,
}

/// What the cloud has not accepted yet.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct LagStatus {
    /// How many changes.
    pub changes: u64,
    /// The age of the oldest one; 0 if there is none.
    pub age_seconds: f64,
}

/// How far the cloud has accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointStatus {
    /// The highest accepted position.
    pub position: i64,
    /// The snapshot that the window began at.
    pub lo: String,
    /// The snapshot that it ended at; null between two windows.
    pub hi: Option<String>,
}

/// A sync that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningSync {
    /// When it began.
    pub began_at: Timestamp,
    /// The entity that it compares; null before the first and after the last one.
    pub entity: Option<String>,
    /// How many rows of the entity it has to compare.
    pub rows: u64,
    /// How many of them it has compared.
    pub compared: u64,
    /// How many rows of all entities it has pushed.
    pub pushed: u64,
}

/// A finished sync.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastSync {
    /// When it ended.
    pub finished_at: Timestamp,
    /// Whether it had no error.
    pub success: bool,
    /// How many rows it pushed, by entity.
    pub summary: PerEntity<usize>,
    /// What went wrong.
    pub errors: Vec<String>,
}

/// Counts since the process started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ChangeCounts {
    /// Changes that the cloud accepted.
    pub accepted: u64,
    /// Changes that it refused for good.
    pub refused: u64,
    /// Changes that a later change of the same row superseded.
    pub collapsed: u64,
    /// Delivered batches.
    pub batches: u64,
    /// Bytes of request bodies with changes.
    pub bytes: u64,
}

/// Media files.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct FileCounts {
    /// Files that a row names and that are not uploaded yet.
    pub waiting: u64,
    /// Files that the cloud has confirmed.
    pub uploaded: u64,
    /// Files that a row names and that are not in the media folder.
    pub missing: u64,
    /// How long ago a row named the file that is missing the longest; null if none is missing.
    #[serde(default)]
    pub missing_seconds: Option<f64>,
    /// Files whose upload failed and is retried.
    pub failed: u64,
    /// Bytes of uploaded files.
    pub bytes: u64,
    /// The path of one that failed or is missing.
    #[serde(default)]
    pub example: Option<String>,
    /// How fast files may go now, in bytes a second; 0 means that none goes, null that there is no limit.
    #[serde(default)]
    pub bandwidth_limit: Option<u64>,
    /// How many bytes may leave today and this month, and how many have left; null if there is no budget.
    #[serde(default)]
    pub budget: Option<BudgetStatus>,
    /// Bytes of files that are still to be sent; null if the source is unreachable.
    #[serde(default)]
    pub bytes_to_send: Option<u64>,
    /// Bytes of files that went in a second, in the last minutes; null if none went of late.
    #[serde(default)]
    pub bytes_per_second: Option<u64>,
    /// When all that waits is sent at this rate, by the plan and the budget; null if that cannot be told.
    #[serde(default)]
    pub caught_up_at: Option<Timestamp>,
    /// Why the watch of the media root does not tell of every change; null if it does. What it does not tell is
    /// found by the rescan.
    #[serde(default)]
    pub watch_problem: Option<String>,
}

/// How the outbox grows. An unknown value is null.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct GrowthStatus {
    /// Over the last minutes; null before the second measurement.
    pub bytes_per_second: Option<f64>,
    /// How many bytes it may still grow by: the smaller of the free space on the database's disk, if that is
    /// visible from here, and of what `source.outbox_limit` leaves.
    pub room_bytes: Option<u64>,
    /// In how many seconds that is used up at this rate; null if the outbox does not grow.
    pub full_in_seconds: Option<f64>,
}

/// An entity whose capture needs an operator, or a sync.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureProblem {
    /// The entity.
    pub entity: String,
    /// Whether changes may be missed now, or wait although the cloud accepts others.
    pub broken: bool,
    /// The problem and the remedy.
    pub reason: String,
}

/// From capture to acceptance, over the recent changes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LatencyStatus {
    /// Half of them took at most this many milliseconds.
    pub p50_ms: f64,
    /// 99 of 100 took at most this many milliseconds.
    pub p99_ms: f64,
    /// The steps of the way, over the recent batches. A step is null before the first batch that had it.
    #[serde(default)]
    pub steps: PerStep<Option<Percentiles>>,
}

impl StatusReport {
    /// Makes a report in which only the state is known.
    pub fn unknown(state: ReplicatorState) -> Self {
        Self {
            running_since: None,
            state,
            state_since: None,
            paused: Pauses::default(),
            reason: None,
            source: SourceStatus::default(),
            cloud: CloudStatus::default(),
            lag: None,
            last_accepted_at: None,
            checkpoint: None,
            running_sync: None,
            last_sync: None,
            next_sync: None,
            counts: ChangeCounts::default(),
            entities: PerEntity::default(),
            quarantine: None,
            files: FileCounts::default(),
            outbox_bytes: None,
            outbox_growth: None,
            capture: Vec::new(),
            latency: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_is_stable_and_comes_back() {
        let mut status = StatusReport::unknown(ReplicatorState::BackingOff);
        status.lag = Some(LagStatus {
            changes: 3,
            age_seconds: 1.5,
        });
        status.entities = [("rooms".to_owned(), 7)].into_iter().collect();
        let (p50_ms, p99_ms) = (1.5, 2.5);
        status.latency = Some(LatencyStatus {
            p50_ms,
            p99_ms,
            steps: PerStep {
                read: Some(Percentiles { p50_ms, p99_ms }),
                ..PerStep::default()
            },
        });
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["state"], "backing off");
        assert_eq!(json["lag"]["age_seconds"], 1.5);
        assert_eq!(json["entities"]["rooms"], 7);
        assert!(json["checkpoint"].is_null());
        assert_eq!(json["latency"]["p99_ms"], 2.5);
        assert_eq!(json["latency"]["steps"]["read"]["p50_ms"], 1.5);
        for step in ["wake", "push", "apply", "commit", "total"] {
            assert_eq!(
                json["latency"]["steps"].get(step),
                Some(&serde_json::Value::Null),
                "{step}"
            );
        }
        assert_eq!(serde_json::from_value::<StatusReport>(json).unwrap(), status);
        for state in [
            ReplicatorState::Starting,
            ReplicatorState::Replicating,
            ReplicatorState::KeyRefused,
            ReplicatorState::Standby,
            ReplicatorState::Paused,
            ReplicatorState::Stopped,
        ] {
            assert_eq!(serde_json::to_value(state).unwrap(), state.word());
        }
    }
}
