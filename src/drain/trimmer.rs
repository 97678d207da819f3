//! Gives the outbox's space back, in a session of its own: never in the way of a delivery.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::abort;
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::source::connect::Session;
use crate::source::outbox::{self, TrimOutcome};
use crate::source::term::Fence;

/// How long accepted touches may stay in the outbox.
const EVERY: Duration = Duration::from_secs(5);

/// How long writers have to end in the segment that they were sent on from, before it is truncated.
const LEAVE: Duration = Duration::from_millis(250);

/// The same for one step, when nobody waits for the next one.
const LEAVE_STEP: Duration = Duration::from_millis(10);

/// Truncates what the checkpoint's mirror has accepted.
pub(super) struct Trimmer {
    session: Session,
    mirror: watch::Receiver<Option<Checkpoint>>,
    fence: Fence,
}

impl Trimmer {
    pub(super) fn new(session: Session, mirror: watch::Receiver<Option<Checkpoint>>, fence: Fence) -> Self {
        Self {
            session,
            mirror,
            fence,
        }
    }

    async fn trim(&self, checkpoint: &Checkpoint, rotate: bool) -> Result<TrimOutcome> {
        abort::point("before a trim");
        let trimmed = outbox::trim(self.session.client(), &self.fence, checkpoint, rotate).await?;
        if trimmed.bytes > 0 {
            abort::point("after a trim");
            tracing::debug!(bytes = trimmed.bytes, "trimmed the outbox");
        }
        Ok(trimmed)
    }

    /// Trims once, the segment that writers used included.
    pub(super) async fn trim_once(&self) -> Result<()> {
        let Some(checkpoint) = self.mirror.borrow().clone() else {
            return Ok(());
        };
        if self.trim(&checkpoint, true).await?.rotated {
            tokio::time::sleep(LEAVE_STEP).await;
            self.trim(&checkpoint, false).await?;
        }
        Ok(())
    }

    /// Trims whenever a mirror has come on, until `stop`. A trim that leaves something is tried again: a dump
    /// of the database may have held it up, or a transaction is open in the segment.
    pub(super) async fn run(mut self, stop: &CancellationToken) -> Result<()> {
        let mut trim_at = Some(Instant::now() + EVERY);
        let mut rotate = true;
        self.mirror.mark_changed();
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Ok(()) = self.mirror.changed() => {
                    self.mirror.mark_unchanged();
                    trim_at.get_or_insert(Instant::now() + EVERY);
                }
                () = sleep_until(trim_at.unwrap_or_else(Instant::now)), if trim_at.is_some() => {
                    trim_at = None;
                    let Some(checkpoint) = self.mirror.borrow().clone() else { continue };
                    let trimmed = self.trim(&checkpoint, rotate).await?;
                    if trimmed.left || trimmed.rotated {
                        trim_at = Some(Instant::now() + if trimmed.rotated { LEAVE } else { EVERY });
                    }
                    // Once a round: under a steady load each segment is left and trimmed in its turn.
                    rotate = !trimmed.rotated;
                }
            }
        }
    }
}
