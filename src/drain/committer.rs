//! Commits checkpoints: first in the local store, then in the mirror, then the outbox is trimmed below it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_postgres::types::PgLsn;

use super::{Accepted, Drain, Pulse};
use crate::abort;
use crate::checkpoint::{Checkpoint, Store};
use crate::error::{Error, Kind, Result};
use crate::source::connect::Session;
use crate::source::outbox::{self, Trimmed};

/// How long the mirror may lag behind the store.
const MIRROR_EVERY: Duration = Duration::from_secs(1);

/// How long accepted changes may stay in the outbox.
const TRIM_EVERY: Duration = Duration::from_secs(5);

/// How long writers have to end in the slot that they were sent on from, before it is truncated.
const LEAVE: Duration = Duration::from_millis(250);

/// The same for one step, where nobody waits for the next one.
const LEAVE_STEP: Duration = Duration::from_millis(10);

/// The last stage.
pub(super) struct Committer {
    session: Session,
    store: Arc<dyn Store>,
    pulse: Arc<Pulse>,
    last: Option<Checkpoint>,
    /// The source's log is known to be on its disk up to here.
    flushed: PgLsn,
}

impl Committer {
    pub(super) fn new(drain: &Drain, session: Session) -> Self {
        Self {
            session,
            store: drain.store.clone(),
            pulse: drain.pulse.clone(),
            last: drain.pulse.checkpoint(),
            flushed: PgLsn::from(0),
        }
    }

    /// Commits one checkpoint in the store, once the source itself cannot forget what it stands for.
    #[tracing::instrument(level = "debug", skip_all, fields(serial = accepted.checkpoint.serial))]
    pub(super) async fn commit(&mut self, accepted: Accepted) -> Result<()> {
        let began = Instant::now();
        let Accepted {
            checkpoint,
            wal,
            stopwatch,
        } = accepted;
        if wal > self.flushed {
            outbox::flush(&self.session, wal).await?;
            self.flushed = wal;
        }
        let store = self.store.clone();
        let kept = checkpoint.clone();
        abort::point("before a commit");
        tokio::task::spawn_blocking(move || store.commit(&kept))
            .await
            .map_err(|error| Error::new(Kind::Store, "commit the checkpoint", error.to_string()))??;
        abort::point("after a commit");
        self.pulse
            .metrics
            .batch_took(&stopwatch.committed(began.elapsed()));
        self.pulse.accepted(checkpoint.clone());
        self.last = Some(checkpoint);
        Ok(())
    }

    async fn mirror(&mut self) -> Result<()> {
        if let Some(checkpoint) = &self.last {
            abort::point("before the mirror");
            outbox::mirror(&self.session, checkpoint).await?;
            abort::point("after the mirror");
        }
        Ok(())
    }

    /// Mirrors the last checkpoint, then trims below it, the slot that writers used included.
    pub(super) async fn mirror_and_trim(&mut self) -> Result<()> {
        if self.trim(true).await?.moved_on {
            tokio::time::sleep(LEAVE_STEP).await;
            self.trim(false).await?;
        }
        Ok(())
    }

    async fn trim(&mut self, move_on: bool) -> Result<Trimmed> {
        self.mirror().await?;
        let Some(checkpoint) = &self.last else {
            return Ok(Trimmed::default());
        };
        abort::point("before a trim");
        let trimmed = outbox::trim(&self.session, checkpoint, move_on).await?;
        if trimmed.bytes > 0 {
            abort::point("after a trim");
            tracing::debug!(bytes = trimmed.bytes, "trimmed the outbox");
        }
        Ok(trimmed)
    }

    /// Commits what arrives until the sender is gone; the mirror follows within a second, the trim within five. A trim that
    /// leaves something is tried again: a dump of the database may have held it up, or an earlier run did not come to it.
    pub(super) async fn run(mut self, mut delivered: mpsc::Receiver<Accepted>) -> Result<()> {
        let mut mirror_at: Option<Instant> = None;
        let mut trim_at = Some(Instant::now() + TRIM_EVERY);
        let mut move_on = true;
        loop {
            let due = [mirror_at, trim_at].into_iter().flatten().min();
            tokio::select! {
                checkpoint = delivered.recv() => {
                    let Some(checkpoint) = checkpoint else { break };
                    self.commit(checkpoint).await?;
                    mirror_at.get_or_insert(Instant::now() + MIRROR_EVERY);
                    trim_at.get_or_insert(Instant::now() + TRIM_EVERY);
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    mirror_at = None;
                    if trim_at.is_some_and(|at| at <= Instant::now()) {
                        let trimmed = self.trim(move_on).await?;
                        trim_at = (trimmed.left || trimmed.moved_on)
                            .then(|| Instant::now() + if trimmed.moved_on { LEAVE } else { TRIM_EVERY });
                        // Once a round: under a steady load each slot is left and trimmed in its turn.
                        move_on = !trimmed.moved_on;
                    } else {
                        self.mirror().await?;
                    }
                }
            }
        }
        self.mirror().await
    }
}
