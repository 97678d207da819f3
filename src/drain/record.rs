//! The last stage: makes durable what became of a batch, and acknowledges it to the stage that sends.
//!
//! In this order: what was refused goes to quarantine, what had waited for accepted rows is touched again,
//! the files that rows name are noted, the checkpoint is committed in the local store, and within a second in
//! the mirror in the site's database. [`super::trimmer`] gives the outbox's space back below the mirror.
//!
//! Invariant: a checkpoint is committed only when everything before it is accepted, kept by decision, or in
//! quarantine.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::baseline_notes;
use super::described_tables::DescribedTables;
use super::parents::Parents;
use super::resume::DrainStart;
use super::retries::Retries;
use super::{Drain, DrainBatch, ReplicationState};
use crate::abort;
use crate::batch::{Batch, Fate};
use crate::catalogue::{Catalogue, EntityIndex};
use crate::change::Position;
use crate::checkpoint::{Checkpoint, Store};
use crate::error::{Error, Kind, Result};
use crate::latency::Stopwatch;
use crate::media::{self, MediaRoot};
use crate::quarantine;
use crate::source::connect::Session;
use crate::source::outbox;
use crate::source::term::Fence;
use crate::source::touch;

/// How long the mirror may lag behind the store.
const MIRROR_EVERY: Duration = Duration::from_secs(1);

/// The last stage.
pub(super) struct Recorder {
    session: Arc<Session>,
    catalogue: Arc<Catalogue>,
    store: Arc<dyn Store>,
    state: Arc<ReplicationState>,
    fence: Fence,
    media_root: MediaRoot,
    parents: Arc<Parents>,
    retries: Arc<Retries>,
    last: Option<Checkpoint>,
    /// The mirror that is known to be in the site's database: term and serial.
    mirrored: (i64, u64),
    /// The serial of the last checkpoint that is recorded: the acknowledgement.
    recorded: watch::Sender<u64>,
    /// The checkpoint that is in the mirror.
    mirror: watch::Sender<Option<Checkpoint>>,
}

impl Recorder {
    pub(super) fn new(
        drain: &Drain,
        session: Arc<Session>,
        start: &DrainStart,
        parents: Arc<Parents>,
        retries: Arc<Retries>,
    ) -> Self {
        Self {
            session,
            catalogue: drain.catalogue.clone(),
            store: drain.store.clone(),
            state: drain.state.clone(),
            fence: start.fence.clone(),
            media_root: drain.media_root.clone(),
            parents,
            retries,
            last: None,
            mirrored: start.checkpoint.mirrored,
            recorded: watch::Sender::new(start.checkpoint.serial),
            mirror: watch::Sender::new(start.mirror.clone()),
        }
    }

    /// The serial of the last checkpoint that is recorded.
    pub(super) fn acknowledgements(&self) -> watch::Receiver<u64> {
        self.recorded.subscribe()
    }

    /// The checkpoint that is in the mirror.
    pub(super) fn mirror(&self) -> watch::Receiver<Option<Checkpoint>> {
        self.mirror.subscribe()
    }

    /// Records one batch.
    pub(super) async fn record_once(&mut self, answered: DrainBatch) -> Result<()> {
        self.settle(&answered).await?;
        abort::point("before the hand-over");
        let stopwatch = answered.stopwatch.pushed(answered.batch.answered());
        let serial = answered.after.serial;
        self.commit(answered.after, stopwatch).await?;
        self.recorded.send_replace(serial);
        Ok(())
    }

    /// Keeps what was refused, touches again what had waited for these rows, and counts the rest.
    async fn settle(&self, answered: &DrainBatch) -> Result<()> {
        let (batch, schemas) = (&answered.batch, &answered.schemas);
        let client = self.session.client();
        let to_baseline = answered.to_baseline;
        let settled =
            quarantine::record_fates(client, self.fence.term(), &self.catalogue, batch, to_baseline).await?;
        if !settled.occupied.is_empty() {
            self.parents
                .touch_children(batch, schemas, &settled.occupied)
                .await?;
        }
        // A row that was refused once may have come before what it needs: it counts when it is refused behind
        // the rest.
        let again: Vec<(String, String)> = settled
            .retouch
            .iter()
            .map(|(entity_index, key)| (self.catalogue[*entity_index].name.clone(), key.clone()))
            .collect();
        self.parents.send_lacking(&again).await?;
        for (entity_index, key) in settled.retouch {
            self.touch(entity_index, schemas, &key).await?;
        }
        if to_baseline {
            baseline_notes::forget_deleted(client, self.fence.term(), &self.catalogue, batch, schemas)
                .await?;
        }
        self.note_files(batch, schemas).await?;
        if settled.mended {
            self.retries.note_mended();
        }
        self.state.delivered(batch);
        self.count(batch);
        Ok(())
    }

    async fn touch(&self, entity_index: EntityIndex, schemas: &DescribedTables, key: &str) -> Result<()> {
        let entity = &self.catalogue[entity_index];
        let number = schemas.numbers[entity_index.0];
        touch::keys(self.session.client(), entity, number, &[key]).await?;
        Ok(())
    }

    /// Notes the files that the batch's rows name. A row whose file was uploaded since it was read is touched
    /// again.
    async fn note_files(&self, batch: &Batch, schemas: &DescribedTables) -> Result<()> {
        let client = self.session.client();
        let found = media::note_references(client, &self.media_root, &self.catalogue, batch).await?;
        for (entity_index, key) in found.outdated {
            self.touch(entity_index, schemas, &key).await?;
        }
        if found.wanted {
            self.state.files.wanted.notify_one();
        }
        Ok(())
    }

    fn count(&self, batch: &Batch) {
        let metrics = &self.state.metrics;
        metrics.batches.inc();
        metrics.bytes_sent.inc_by(batch.bytes() as u64);
        self.state.files.bandwidth.note_rows(batch.bytes() as u64);
        metrics.collapsed.inc_by(batch.collapsed() as u64);
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_micros() as i64);
        let mut refused: BTreeMap<(EntityIndex, u16), (Position, u64)> = BTreeMap::new();
        for (change_index, change) in batch.indexed() {
            match batch.fate(change_index) {
                Fate::Accepted => {
                    metrics.accepted(change.entity).inc();
                    let micros = now.saturating_sub(change.captured_at).max(0) as u64;
                    metrics.delivered_after(Duration::from_micros(micros));
                }
                Fate::Refused { code, .. } => {
                    metrics.refused.inc();
                    let first = (change.position, 0);
                    refused.entry((change.entity, *code)).or_insert(first).1 += 1;
                }
                Fate::Kept | Fate::Unsupported | Fate::Held => {
                    metrics.not_sent.inc();
                }
                Fate::Parked | Fate::Pending => {}
            }
        }
        // The cloud's own words may hold values of rows: they stay in the quarantine.
        for ((entity_index, code), (first, changes)) in refused {
            let entity = &self.catalogue[entity_index].name;
            let first = first.0;
            if code == 0 {
                tracing::warn!(
                    entity,
                    changes,
                    first,
                    "rows cannot be read: they are in quarantine; see `cloud-sync quarantine list`"
                );
                continue;
            }
            tracing::warn!(
                entity,
                code,
                changes,
                first,
                "the cloud refused changes: they are in quarantine; see `cloud-sync quarantine list`"
            );
        }
    }

    /// Commits one checkpoint in the store. What it covers is on the source's disk: nothing else is sent.
    #[tracing::instrument(level = "debug", skip_all, fields(serial = checkpoint.serial))]
    async fn commit(&mut self, mut checkpoint: Checkpoint, stopwatch: Stopwatch) -> Result<()> {
        let began = Instant::now();
        // Beginning a term has written a mirror too.
        self.mirrored = self.mirrored.max(checkpoint.mirrored);
        checkpoint.mirrored = self.mirrored;
        let store = self.store.clone();
        let kept = checkpoint.clone();
        abort::point("before a commit");
        tokio::task::spawn_blocking(move || store.commit(&kept))
            .await
            .map_err(|error| {
                Error::new(Kind::Store, "commit the checkpoint", error.to_string()).caused_by(error)
            })??;
        abort::point("after a commit");
        self.state
            .metrics
            .batch_took(&stopwatch.committed(began.elapsed()));
        self.state.accepted(checkpoint.clone());
        self.last = Some(checkpoint);
        Ok(())
    }

    /// Writes the mirror if it is behind the store, and shows what may be trimmed.
    pub(super) async fn mirror_once(&mut self) -> Result<()> {
        if let Some(checkpoint) = &self.last
            && checkpoint.order() > self.mirrored
        {
            abort::point("before the mirror");
            outbox::mirror(self.session.client(), &self.fence, checkpoint).await?;
            self.mirrored = checkpoint.order();
            self.mirror.send_replace(Some(checkpoint.clone()));
            abort::point("after the mirror");
        }
        Ok(())
    }

    /// Records what arrives until the sender is gone; the mirror follows within a second.
    pub(super) async fn run(mut self, mut answered: mpsc::Receiver<DrainBatch>) -> Result<()> {
        let mut mirror_at: Option<Instant> = None;
        loop {
            tokio::select! {
                batch = answered.recv() => {
                    let Some(batch) = batch else { break };
                    self.record_once(batch).await?;
                    mirror_at.get_or_insert(Instant::now() + MIRROR_EVERY);
                }
                () = sleep_until(mirror_at.unwrap_or_else(Instant::now)), if mirror_at.is_some() => {
                    mirror_at = None;
                    self.mirror_once().await?;
                }
            }
        }
        self.mirror_once().await
    }
}
