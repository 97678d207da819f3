//! Commits checkpoints: first in the local store, then in the mirror.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::{AcceptedBatch, Drain, ReplicationState};
use crate::abort;
use crate::checkpoint::{Checkpoint, Store};
use crate::error::{Error, Kind, Result};
use crate::source::connect::Session;
use crate::source::outbox;
use crate::source::term::Fence;

/// How long the mirror may lag behind the store.
const MIRROR_EVERY: Duration = Duration::from_secs(1);

/// The last stage.
pub(super) struct Committer {
    session: Session,
    store: Arc<dyn Store>,
    pulse: Arc<ReplicationState>,
    fence: Fence,
    last: Option<Checkpoint>,
    /// The mirror that is known to be in the site's database: term and serial.
    mirrored: (i64, u64),
}

impl Committer {
    pub(super) fn new(drain: &Drain, session: Session, start: &Checkpoint, fence: Fence) -> Self {
        Self {
            session,
            store: drain.store.clone(),
            pulse: drain.pulse.clone(),
            fence,
            last: None,
            mirrored: start.mirrored,
        }
    }

    /// Commits one checkpoint in the store. What it stands for is on the source's disk: nothing else is sent.
    #[tracing::instrument(level = "debug", skip_all, fields(serial = accepted.checkpoint.serial))]
    pub(super) async fn commit(&mut self, accepted: AcceptedBatch) -> Result<()> {
        let began = Instant::now();
        let AcceptedBatch {
            mut checkpoint,
            stopwatch,
        } = accepted;
        // Beginning a term has written a mirror too.
        self.mirrored = self.mirrored.max(checkpoint.mirrored);
        checkpoint.mirrored = self.mirrored;
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

    /// Writes the mirror, where it is behind the store, and shows what may be trimmed.
    pub(super) async fn mirror(&mut self) -> Result<()> {
        if let Some(checkpoint) = &self.last
            && checkpoint.place() > self.mirrored
        {
            abort::point("before the mirror");
            outbox::mirror(self.session.client(), &self.fence, checkpoint).await?;
            self.mirrored = checkpoint.place();
            self.pulse.mirrored(checkpoint.clone());
            abort::point("after the mirror");
        }
        Ok(())
    }

    /// Commits what arrives until the sender is gone; the mirror follows within a second.
    pub(super) async fn run(mut self, mut delivered: mpsc::Receiver<AcceptedBatch>) -> Result<()> {
        let mut mirror_at: Option<Instant> = None;
        loop {
            tokio::select! {
                checkpoint = delivered.recv() => {
                    let Some(checkpoint) = checkpoint else { break };
                    self.commit(checkpoint).await?;
                    mirror_at.get_or_insert(Instant::now() + MIRROR_EVERY);
                }
                () = sleep_until(mirror_at.unwrap_or_else(Instant::now)), if mirror_at.is_some() => {
                    mirror_at = None;
                    self.mirror().await?;
                }
            }
        }
        self.mirror().await
    }
}
