//! Makes what was read ready to be sent: waits until it is on the source's disk, marks what the cloud keeps,
//! and adds the files' URLs.

use std::sync::Arc;

use futures::{Stream, stream};
use tokio::sync::mpsc;

use super::{Drain, DrainBatch};
use crate::batch::ChangeIndex;
use crate::batch::Fate;
use crate::catalogue::{Catalogue, Deletes};
use crate::change::{Cause, Op};
use crate::error::Result;
use crate::media::{self, MediaRoot};
use crate::source::connect::Session;
use crate::source::outbox;

/// The second stage.
pub(super) struct Preparer {
    session: Arc<Session>,
    catalogue: Arc<Catalogue>,
    media_root: MediaRoot,
}

impl Preparer {
    pub(super) fn new(drain: &Drain, session: Arc<Session>) -> Self {
        Self {
            session,
            catalogue: drain.catalogue.clone(),
            media_root: drain.media_root.clone(),
        }
    }

    /// Makes the batch ready. What it shows is on the source's disk then: nothing else may be sent.
    pub(super) async fn prepare(&self, drain_batch: &mut DrainBatch) -> Result<()> {
        if let Some(wal) = drain_batch.wal {
            outbox::flush(self.session.client(), wal).await?;
        }
        let batch = &mut drain_batch.batch;
        for change_index in (0..batch.len()).map(ChangeIndex) {
            let change = &batch[change_index];
            let keeps = self.catalogue[change.entity].deletes() == Deletes::Keep;
            // What was purged here stays in the cloud. What has another key now, or no longer belongs to the
            // entity, does not.
            if change.op != Op::Upsert && keeps && change.cause == Cause::Gone {
                batch.set_fate(change_index, Fate::Kept);
            }
        }
        media::attach_urls(self.session.client(), &self.media_root, &self.catalogue, batch).await
    }

    /// All that arrive, ready. Nothing is taken that is not asked for.
    pub(super) fn prepared(
        self,
        batches: mpsc::Receiver<DrainBatch>,
    ) -> impl Stream<Item = Result<DrainBatch>> {
        stream::unfold((self, batches), |(preparer, mut batches)| async move {
            let mut drain_batch = batches.recv().await?;
            let prepared = preparer.prepare(&mut drain_batch).await;
            Some((prepared.map(|()| drain_batch), (preparer, batches)))
        })
    }
}
