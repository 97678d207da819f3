//! What the replicator asks its source about itself: for status, metrics and health.

use std::time::Instant;

use secrecy::SecretString;
use tokio::sync::Mutex;

use crate::catalogue::Catalogue;
use crate::change::{Position, Snapshot};
use crate::checkpoint::Checkpoint;
use crate::config::Settings;
use crate::control::SourceOverview;
use crate::control::status::{
    CheckpointStatus, FileCounts, GrowthStatus, LagStatus, LatencyStatus, ReplicatorState, StatusReport,
};
use crate::error::Result;
use crate::metrics::Metrics;
use crate::quarantine::{self, QuarantineEntry};
use crate::source::connect::Session;
use crate::source::file_state::FileState;
use crate::source::identity::{self, Identity};
use crate::source::pauses::{self, PauseScope, Pauses};
use crate::source::{file_records, leader_lock, outbox, overview};

use super::outbox_forecast::{self, OutboxForecast};

/// Rows in quarantine that the page shows.
const QUARANTINE_SHOWN: u32 = 50;

/// Files of each state that the page shows.
const FILES_SHOWN: u32 = 5;

/// What the source says.
#[derive(Debug, Clone, Default)]
pub(super) struct SourceGauges {
    pub(super) identity: Option<Identity>,
    pub(super) lag: outbox::OutboxLag,
    pub(super) outbox_bytes: u64,
    pub(super) quarantine: u64,
    pub(super) files: file_records::FileStateCounts,
    /// See [`FileCounts::missing_seconds`].
    pub(super) missing_seconds: Option<f64>,
    pub(super) growth: GrowthStatus,
    pub(super) pauses: Pauses,
    /// When it was asked.
    pub(super) at: Option<Instant>,
}

/// A session for questions, opened when it is needed.
pub(super) struct SourceStatusSession {
    url: SecretString,
    source_id: Option<String>,
    session: Mutex<Option<Session>>,
    growth: std::sync::Mutex<OutboxForecast>,
    limit: Option<u64>,
}

impl SourceStatusSession {
    pub(super) fn new(settings: &Settings) -> Result<Self> {
        Ok(Self {
            url: settings.require_database_url()?.clone(),
            source_id: settings.source.source_id.clone(),
            session: Mutex::default(),
            growth: std::sync::Mutex::default(),
            limit: settings.source.outbox_limit,
        })
    }

    /// Asks everything. `checkpoint` is how far the cloud has accepted; without one, the mirror counts.
    pub(super) async fn gauges(&self, checkpoint: Option<Checkpoint>) -> Result<SourceGauges> {
        let mut kept = self.session.lock().await;
        let session = self.take_session(&mut kept).await?;
        let mut asked = gauges(&session, self.source_id.as_deref(), checkpoint).await?;
        let room = outbox_forecast::room(session.client(), self.limit, asked.outbox_bytes).await?;
        asked.growth = self
            .growth
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .note(Instant::now(), asked.outbox_bytes, room);
        asked.at = Some(Instant::now());
        *kept = Some(session);
        Ok(asked)
    }

    /// What the page shows besides. `checkpoint` is as for [`SourceStatusSession::gauges`].
    pub(super) async fn overview(&self, checkpoint: Option<Checkpoint>) -> Result<SourceOverview> {
        let mut kept = self.session.lock().await;
        let session = self.take_session(&mut kept).await?;
        let client = session.client();
        let identity = identity::stored_identity_of(client, self.source_id.as_deref()).await?;
        let checkpoint = reached(&session, &identity, checkpoint).await?;
        let told = SourceOverview {
            waiting: overview::waiting_by_entity(client, &checkpoint).await?,
            quarantined: quarantine::counts(client).await?.into_iter().collect(),
            quarantine: quarantine::oldest(client, None, QUARANTINE_SHOWN).await?,
            files: overview::last_files(client, &FileState::ALL, FILES_SHOWN).await?,
        };
        *kept = Some(session);
        Ok(told)
    }

    /// The entries in quarantine with this position.
    pub(super) async fn quarantined(&self, position: Position) -> Result<Vec<QuarantineEntry>> {
        let mut kept = self.session.lock().await;
        let session = self.take_session(&mut kept).await?;
        let entries = quarantine::at_positions(session.client(), &[position]).await?;
        *kept = Some(session);
        Ok(entries)
    }

    /// Sends the rows with this position again. Returns how many.
    pub(super) async fn retry(&self, catalogue: &Catalogue, position: Position) -> Result<u64> {
        let mut kept = self.session.lock().await;
        let session = self.take_session(&mut kept).await?;
        let count = quarantine::retry_at(session.client(), catalogue, &[position]).await?;
        *kept = Some(session);
        Ok(count as u64)
    }

    /// Discards the entries with this position. Returns how many.
    pub(super) async fn discard(&self, position: Position) -> Result<u64> {
        let mut kept = self.session.lock().await;
        let session = self.take_session(&mut kept).await?;
        let count = quarantine::discard_at(session.client(), &[position]).await?;
        *kept = Some(session);
        Ok(count)
    }

    /// What is paused.
    pub(super) async fn pauses(&self) -> Result<Pauses> {
        let mut kept = self.session.lock().await;
        let session = self.take_session(&mut kept).await?;
        let paused = pauses::read(session.client()).await?;
        *kept = Some(session);
        Ok(paused)
    }

    /// Pauses something. Returns whether it was not paused before.
    pub(super) async fn pause(&self, scope: &PauseScope, by: &str) -> Result<bool> {
        let mut kept = self.session.lock().await;
        let session = self.take_session(&mut kept).await?;
        let is_new = pauses::pause(session.client(), scope, by).await?;
        *kept = Some(session);
        Ok(is_new)
    }

    /// Ends a pause. Returns whether there was one.
    pub(super) async fn resume(&self, scope: &PauseScope) -> Result<bool> {
        let mut kept = self.session.lock().await;
        let session = self.take_session(&mut kept).await?;
        let was_paused = pauses::resume(session.client(), scope).await?;
        *kept = Some(session);
        Ok(was_paused)
    }

    /// The kept session, or a new one. The caller gives it back when all went well: one on which something
    /// failed is not used again.
    async fn take_session(&self, kept: &mut Option<Session>) -> Result<Session> {
        match kept.take() {
            Some(session) => Ok(session),
            None => Session::open(&self.url, "status").await,
        }
    }
}

/// The checkpoint, or the mirror where there is none, or the beginning.
pub(super) async fn reached(
    session: &Session,
    identity: &Identity,
    checkpoint: Option<Checkpoint>,
) -> Result<Checkpoint> {
    Ok(match checkpoint {
        Some(checkpoint) => checkpoint,
        None => outbox::mirrored(session, identity)
            .await?
            .unwrap_or_else(|| Checkpoint::beginning(identity.clone())),
    })
}

async fn gauges(
    session: &Session,
    source_id: Option<&str>,
    checkpoint: Option<Checkpoint>,
) -> Result<SourceGauges> {
    let client = session.client();
    let identity = identity::stored_identity_of(client, source_id).await?;
    let checkpoint = reached(session, &identity, checkpoint).await?;
    // Before the lag: an upload that is recorded touches its rows in the same transaction, so whoever sees it
    // recorded sees those touches wait.
    let files = file_records::counts(client).await?;
    Ok(SourceGauges {
        identity: Some(identity),
        lag: outbox::lag(session, &checkpoint).await?,
        outbox_bytes: outbox::bytes(session).await?,
        quarantine: quarantine::count(client, None).await?,
        missing_seconds: match files.missing {
            0 => None,
            _ => overview::longest_missing(client).await?,
        },
        files,
        pauses: pauses::read(client).await?,
        growth: GrowthStatus::default(),
        at: None,
    })
}

pub(super) fn fill(status: &mut StatusReport, gauges: &SourceGauges) {
    status.source.reachable = Some(true);
    if let Some(identity) = &gauges.identity {
        status.source.id = Some(identity.source_id.clone());
        status.source.epoch = Some(identity.epoch.0);
    }
    status.lag = Some(LagStatus {
        changes: gauges.lag.changes,
        age_seconds: gauges.lag.seconds,
    });
    status.quarantine = Some(gauges.quarantine);
    status.outbox_bytes = Some(gauges.outbox_bytes);
    status.outbox_growth = Some(gauges.growth);
    status.paused.clone_from(&gauges.pauses);
    status.files = FileCounts {
        waiting: gauges.files.waiting,
        uploaded: gauges.files.uploaded,
        missing: gauges.files.missing,
        missing_seconds: gauges.missing_seconds,
        failed: gauges.files.refused + gauges.files.failing,
        bytes: gauges.files.bytes,
        example: gauges.files.example.clone(),
        bytes_to_send: Some(gauges.files.bytes_to_send),
        ..std::mem::take(&mut status.files)
    };
}

pub(super) fn fill_checkpoint(status: &mut StatusReport, checkpoint: Option<&Checkpoint>) {
    let Some(checkpoint) = checkpoint.filter(|checkpoint| checkpoint.lo != Snapshot::beginning()) else {
        return;
    };
    let window = checkpoint.window.as_ref();
    status.checkpoint = Some(CheckpointStatus {
        position: window.map_or(checkpoint.low_water.0, |window| window.position.0),
        lo: checkpoint.lo.to_string(),
        hi: window.map(|window| window.hi.to_string()),
    });
}

pub(super) fn latency(metrics: &Metrics) -> Option<LatencyStatus> {
    let of_changes = metrics.latency()?;
    Some(LatencyStatus {
        p50_ms: of_changes.p50_ms,
        p99_ms: of_changes.p99_ms,
        steps: metrics.steps(),
    })
}

/// The status where no daemon answers: what the source database tells.
///
/// # Errors
/// The source's.
pub async fn offline_status(settings: &Settings) -> Result<StatusReport> {
    let questions = SourceStatusSession::new(settings)?;
    let gauges = questions.gauges(None).await?;
    let mut status = StatusReport::unknown(ReplicatorState::Stopped);
    fill(&mut status, &gauges);
    // One look shows no growth.
    let kept = questions.session.lock().await;
    if let Some(session) = kept.as_ref() {
        let watched = crate::source::drift::watch(session.client(), &settings.catalogue).await?;
        status.capture = super::drift_monitor::problems(&settings.catalogue, &watched);
    }
    drop(kept);
    status.cloud.url = settings.cloud.url.as_ref().map(ToString::to_string);
    let kept = questions.session.lock().await;
    if let (Some(session), Some(identity)) = (kept.as_ref(), &gauges.identity) {
        let mirrored = outbox::mirrored(session, identity).await?;
        fill_checkpoint(&mut status, mirrored.as_ref());
        if leader_lock::holder(session.client()).await?.is_some() {
            status.reason = Some(format!(
                "a replicator drains this outbox, and its operator API does not answer at {}",
                settings.control.listen
            ));
        }
    }
    Ok(status)
}

/// A session with the site's database for a command.
///
/// # Errors
/// As [`Session::open`].
pub async fn connect(settings: &Settings, purpose: &str) -> Result<Session> {
    Session::open(settings.require_database_url()?, purpose).await
}
