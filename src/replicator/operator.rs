//! What the operator API asks of a replicator that runs: its state, a sync, its health, its metrics, and what
//! the page shows besides.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::PoisonError;
use std::time::Duration;

use jiff::{Timestamp, Zoned};

use super::source_status::SourceGauges;
use super::{Replicator, source_status};
use crate::change::Position;
use crate::control::status::{ReplicatorState, StatusReport};
use crate::control::{Health, Operator, Overview, PauseStatus, RowInquiry, SyncRequest};
use crate::drain::{Condition, Peer};
use crate::error::{Error, Kind, Result};
use crate::quarantine::QuarantineEntry;
use crate::reconcile::NoObserver;
use crate::reconcile::report::SyncReport;
use crate::source::pauses::PauseScope;

/// How long the source may take to say what waits, before the status counts it as not reachable.
const ANSWER: Duration = Duration::from_secs(15);

/// How long the drain may stand still while changes wait, before the replicator counts as unhealthy.
const STILL: Duration = Duration::from_secs(60);

/// How old "nothing waits" may be and still count as the lag of now: the source is asked once a minute at
/// least.
const LAG_IS_OLD: Duration = Duration::from_secs(90);

/// How old what the source said may be and still count as what is so: counting a long backlog takes 15 s at
/// most, and the source is left alone for 19 times as long.
const GAUGES_ARE_OLD: Duration = Duration::from_secs(330);

impl Operator for Replicator {
    async fn status(&self) -> Result<StatusReport> {
        let checkpoint = self.state.checkpoint();
        let asked = tokio::time::timeout(ANSWER, self.questions.gauges(checkpoint))
            .await
            .unwrap_or_else(|_| Err(no_answer()));
        if let Ok(gauges) = &asked {
            self.note(gauges.clone());
        }
        Ok(self.status_with(Some(asked)))
    }

    async fn why(&self, entity: &str, key: &str) -> Result<RowInquiry> {
        let status = self.status().await?;
        let live = self.live();
        tokio::time::timeout(ANSWER, super::inquire(&live.settings, &status, entity, key))
            .await
            .unwrap_or_else(|_| Err(no_answer()))
    }

    async fn sync_now(&self, request: SyncRequest) -> Result<SyncReport> {
        if let Some(reason) = self.standby() {
            return Err(Error::config("sync", reason).remedy("ask the replicator that drains the outbox"));
        }
        self.sync_and_tell_files(&request, &NoObserver).await
    }

    fn health(&self) -> Health {
        if let Some(reason) = self.standby() {
            return Health::Starting(format!("standing by: {reason}"));
        }
        if let Some(pause) = &self.state.pauses().all {
            return Health::Noted(format!("replication is {pause}"));
        }
        let gauges = self.gauges.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let waiting = gauges.lag.changes;
        if let Some(reason) = self.overdue() {
            return Health::Still(reason);
        }
        match self.state.condition() {
            Condition::Starting => Health::Starting("connecting".to_owned()),
            Condition::Replicating | Condition::BackingOff { .. } if self.drift.reason().is_some() => {
                Health::Still(self.drift.reason().unwrap_or_default())
            }
            Condition::Stopped { reason } | Condition::KeyRefused { reason } => Health::Still(reason),
            // It is resumed a moment ago.
            Condition::Paused { reason } => Health::Noted(reason),
            // Without the source, nobody knows what waits.
            Condition::BackingOff {
                away: Peer::Source,
                reason,
            } => Health::Still(reason),
            Condition::BackingOff { reason, .. } if waiting > 0 => Health::Still(reason),
            Condition::BackingOff { .. } => well(&gauges),
            Condition::Replicating => {
                let since = self.state.progressed_at().elapsed();
                if waiting > 0 && since > STILL && gauges.lag.seconds > STILL.as_secs_f64() {
                    Health::Still(format!(
                        "{waiting} changes wait, and no batch was accepted for {} s",
                        since.as_secs()
                    ))
                } else {
                    well(&gauges)
                }
            }
        }
    }

    fn metrics(&self) -> String {
        self.state.metrics.encode()
    }

    async fn overview(&self, ask_source: bool) -> Overview {
        let source = match ask_source {
            // The status says why the source does not answer.
            true => self.questions.overview(self.state.checkpoint()).await.ok(),
            false => None,
        };
        Overview {
            incidents: self.state.last_incidents(),
            compared: self.sync_progress.compared(),
            source,
        }
    }

    fn lag_now(&self) -> Option<Duration> {
        let gauges = self.gauges.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let unasked = gauges.at?.elapsed();
        match gauges.lag.changes {
            0 if unasked > LAG_IS_OLD => None,
            0 => Some(Duration::ZERO),
            _ => Some(Duration::try_from_secs_f64(gauges.lag.seconds).ok()? + unasked),
        }
    }

    fn activity(&self) -> u64 {
        let metrics = &self.state.metrics;
        let mut hasher = DefaultHasher::new();
        (
            metrics.accepted_total(),
            metrics.refused.get(),
            metrics.checkpoint_position.get(),
            metrics.quarantine.get(),
            self.state.files.progress(),
        )
            .hash(&mut hasher);
        (self.state.since(), self.state.condition().reason()).hash(&mut hasher);
        (self.standby(), self.drift.reason()).hash(&mut hasher);
        self.state.pauses().hash(&mut hasher);
        if let Some(sync) = self.sync_progress.running() {
            (sync.began_at, sync.entity, sync.compared, sync.pushed).hash(&mut hasher);
        }
        hasher.finish()
    }

    async fn quarantined(&self, position: Position) -> Result<Vec<QuarantineEntry>> {
        self.questions.quarantined(position).await
    }

    async fn retry(&self, position: Position) -> Result<u64> {
        let live = self.live();
        self.questions.retry(&live.settings.catalogue, position).await
    }

    async fn discard(&self, position: Position) -> Result<u64> {
        self.questions.discard(position).await
    }

    async fn pause(&self, scope: &PauseScope, by: &str) -> Result<PauseStatus> {
        self.begin_pause(scope, by).await
    }

    async fn resume(&self, scope: &PauseScope, by: &str) -> Result<PauseStatus> {
        self.end_pause(scope, by).await
    }
}

/// The error of a source that hangs.
fn no_answer() -> Error {
    Error::new(
        Kind::SourceUnreachable,
        "ask the site's database what waits",
        format!("it gave no answer within {} s", ANSWER.as_secs()),
    )
    .remedy("look whether PostgreSQL hangs, or waits for its disk")
}

/// Well; where rows are in quarantine, with a word of it.
fn well(gauges: &SourceGauges) -> Health {
    match gauges.quarantine {
        0 => Health::Well,
        count => Health::Noted(format!(
            "{count} refused changes are in quarantine: see cloud-sync quarantine list"
        )),
    }
}

impl Replicator {
    /// The status as far as it is known without asking anybody.
    pub(crate) fn known_status(&self) -> StatusReport {
        let gauges = self.gauges.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let is_recent = gauges.at.is_some_and(|asked| asked.elapsed() <= GAUGES_ARE_OLD);
        self.status_with(is_recent.then_some(Ok(gauges)))
    }

    /// The status, with what the source said; `None` if it was not asked.
    fn status_with(&self, asked: Option<Result<SourceGauges>>) -> StatusReport {
        let live = self.live();
        let mut status = StatusReport::unknown(ReplicatorState::Starting);
        status.running_since = Some(self.started_at);
        let metrics = &self.state.metrics;
        status.paused = (*self.state.pauses()).clone();
        (status.state, status.reason) = match (self.standby(), self.state.condition()) {
            (Some(reason), _) => (ReplicatorState::Standby, Some(reason)),
            (None, Condition::Starting) => (ReplicatorState::Starting, None),
            (None, Condition::Replicating) => (ReplicatorState::Replicating, None),
            (None, Condition::BackingOff { reason, .. }) => (ReplicatorState::BackingOff, Some(reason)),
            (None, Condition::KeyRefused { reason }) => (ReplicatorState::KeyRefused, Some(reason)),
            (None, Condition::Stopped { reason }) => (ReplicatorState::Stopped, Some(reason)),
            (None, Condition::Paused { reason }) => (ReplicatorState::Paused, Some(reason)),
        };
        let standby = self.standby_since().map(|(since, _)| since);
        status.state_since = Some(standby.unwrap_or_else(|| self.state.since()));
        status.last_accepted_at = self.state.delivered_at();
        status.running_sync = self.sync_progress.running();
        status.capture = self.drift.problems();
        let bandwidth = &self.state.files.bandwidth;
        status.files.bandwidth_limit = bandwidth.limit();
        status.files.budget = bandwidth.budget();
        status.files.bytes_per_second = bandwidth.rate().map(|rate| rate as u64);
        status.files.watch_problem = self.state.files.watch_problem();
        if status.reason.is_none() {
            status.reason = self.drift.reason();
        }
        match asked {
            None => {}
            Some(Ok(gauges)) => {
                source_status::fill(&mut status, &gauges);
                let time = bandwidth.time_for(gauges.files.bytes_to_send);
                let is_waiting = gauges.files.bytes_to_send > 0;
                status.files.caught_up_at = time.filter(|_| is_waiting).map(|time| Timestamp::now() + time);
            }
            Some(Err(error)) => {
                status.source.reachable = Some(false);
                status.source.last_error = Some(error.to_string());
            }
        }
        source_status::fill_checkpoint(&mut status, self.state.checkpoint().as_ref());
        status.cloud.url = live.settings.cloud.url.as_ref().map(ToString::to_string);
        let capabilities = self.state.capabilities();
        status.cloud.capabilities = capabilities
            .unwrap_or_default()
            .names()
            .into_iter()
            .map(str::to_owned)
            .collect();
        status.cloud.reachable = match self.state.condition() {
            Condition::BackingOff {
                away: Peer::Cloud, ..
            }
            | Condition::KeyRefused { .. } => Some(false),
            _ => capabilities.map(|_| true),
        };
        status.cloud.last_error = match status.cloud.reachable {
            Some(false) => status.reason.clone(),
            _ => None,
        };
        status.last_sync = self
            .last_sync
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        status.next_sync = live
            .schedule
            .as_ref()
            .and_then(|schedule| schedule.next_after(&Zoned::now()))
            .map(|next| next.timestamp());
        status.counts.accepted = metrics.accepted_total();
        status.counts.refused = metrics.refused.get();
        status.counts.collapsed = metrics.collapsed.get();
        status.counts.batches = metrics.batches.get();
        status.counts.bytes = metrics.bytes_sent.get();
        status.entities = live
            .settings
            .catalogue
            .indexed()
            .map(|(entity_index, entity)| (entity.name.clone(), metrics.accepted(entity_index).get()))
            .collect();
        status.latency = source_status::latency(metrics);
        status
    }

    /// Says why a change waits for longer than the limit, whatever holds it up; `None` if none does. A more
    /// exact reason comes first.
    pub(super) fn overdue(&self) -> Option<String> {
        let gauges = self.gauges.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let limit = self.live().settings.control.lag_limit;
        let unasked = gauges
            .at
            .map_or_else(|| self.started.elapsed(), |asked| asked.elapsed());
        let told = match self.state.condition() {
            Condition::Starting | Condition::Replicating => self.drift.reason(),
            Condition::BackingOff { reason, .. }
            | Condition::KeyRefused { reason }
            | Condition::Stopped { reason }
            | Condition::Paused { reason } => Some(reason),
        };
        let (what, seconds) = if gauges.lag.changes > 0 {
            let changes = gauges.lag.changes;
            let what = format!("{changes} changes wait, and the oldest is");
            (what, gauges.lag.seconds + unasked.as_secs_f64())
        } else {
            let what = "what the site's database last told of the changes that wait is".to_owned();
            (what, unasked.as_secs_f64())
        };
        (seconds > limit.as_secs_f64()).then(|| {
            let why = told.unwrap_or_else(|| "`cloud-sync status` and `cloud-sync check` say why".to_owned());
            format!(
                "{what} {seconds:.0} s old, where control.lag_limit is {} s: {why}",
                limit.as_secs()
            )
        })
    }
}
