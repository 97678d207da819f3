//! What operators pause: read before anything is sent, and followed while this process leads.
//!
//! A session of its own listens, and everything is read again now and then, should a notification be lost. If
//! the session fails, what was known goes on until another one has read.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Replicator;
use crate::control::PauseStatus;
use crate::error::Result;
use crate::metrics::Metrics;
use crate::source::connect::Session;
use crate::source::pauses::{self, PauseScope, Pauses};
use crate::supervise::{NextRound, Supervisor};

/// The longest time between two reads.
const READ_EVERY: Duration = Duration::from_secs(60);

/// The time before a session that failed is opened again.
const TRY_EVERY: Duration = Duration::from_secs(2);

impl Replicator {
    /// Reads what is paused, and obeys.
    pub(super) async fn read_pauses(&self) -> Result<()> {
        self.obey(self.questions.pauses().await?);
        Ok(())
    }

    /// Follows what is paused, until `stop`.
    pub(super) async fn follow_pauses(&self, stop: &CancellationToken) {
        let supervisor = Supervisor::tireless("pauses", TRY_EVERY);
        let round = async || {
            let session = Session::open(self.live().settings.require_database_url()?, "pauses").await?;
            pauses::listen(&session).await?;
            supervisor.recovered();
            while !session.is_closed() {
                self.obey(pauses::read(session.client()).await?);
                tokio::select! {
                    () = stop.cancelled() => return Ok(NextRound::Never),
                    () = session.closed() => {}
                    () = session.notified() => {}
                    () = tokio::time::sleep(READ_EVERY) => {}
                }
            }
            Ok(NextRound::After(Duration::ZERO))
        };
        // It is tireless: it ends when it is stopped.
        let _ = supervisor.run(stop, |_| {}, round).await;
    }

    /// Pauses something, and obeys at once if this process leads.
    pub(super) async fn begin_pause(&self, scope: &PauseScope, by: &str) -> Result<PauseStatus> {
        scope.check(&self.live().settings.catalogue)?;
        let is_new = self.questions.pause(scope, by).await?;
        if is_new {
            tracing::info!(by, "{scope} is paused");
        }
        self.changed_pauses(is_new).await
    }

    /// Ends a pause, and obeys at once if this process leads.
    pub(super) async fn end_pause(&self, scope: &PauseScope, by: &str) -> Result<PauseStatus> {
        scope.check(&self.live().settings.catalogue)?;
        let was_paused = self.questions.resume(scope).await?;
        if was_paused {
            tracing::info!(by, "{scope} is resumed");
        }
        self.changed_pauses(was_paused).await
    }

    async fn changed_pauses(&self, changed: bool) -> Result<PauseStatus> {
        let paused = self.questions.pauses().await?;
        self.obey(paused.clone());
        Ok(PauseStatus {
            success: true,
            changed,
            paused,
        })
    }

    fn obey(&self, pauses: Pauses) {
        self.note_pauses(&self.state.metrics, &pauses);
        self.state.set_pauses(pauses);
    }

    fn note_pauses(&self, metrics: &Metrics, pauses: &Pauses) {
        metrics.paused_all.set(i64::from(pauses.all.is_some()));
        metrics.paused_files.set(i64::from(pauses.files.is_some()));
        for (entity_index, entity) in self.live().settings.catalogue.indexed() {
            let is_paused = pauses.entities.contains_key(&entity.name);
            metrics.paused(entity_index).set(i64::from(is_paused));
        }
    }

    /// Waits until not everything is paused, or until `stop`. Returns whether it was `stop`.
    pub(super) async fn until_resumed(&self, stop: &CancellationToken) -> bool {
        let mut follow = self.state.follow_pauses();
        loop {
            if follow.borrow_and_update().all.is_none() {
                return stop.is_cancelled();
            }
            tokio::select! {
                () = stop.cancelled() => return true,
                // The sender lives as long as the state.
                _ = follow.changed() => {}
            }
        }
    }
}
