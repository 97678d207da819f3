//! Brings batches to the cloud: adds file URLs, tells the schema first, tries again while the cloud is away, and settles
//! what was refused.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::reader::Shapes;
use super::{Condition, Drain, Portion, Pulse, Side, cloud_is_ahead, wire_schema};
use crate::batch::{Batch, Fate};
use crate::catalogue::{Catalogue, Deletes};
use crate::change::{Op, Position};
use crate::checkpoint::Checkpoint;
use crate::deliver::{Cloud, Failure, Hello, Origin, TableSchema};
use crate::error::{Class, Kind, Result};
use crate::media;
use crate::quarantine::Quarantine;
use crate::retry::{Backoff, Repeats};
use crate::source::connect::Session;
use crate::source::recapture;

/// The middle stage.
pub(super) struct Courier {
    session: Session,
    catalogue: Arc<Catalogue>,
    cloud: Cloud,
    origin: Origin,
    pulse: Arc<Pulse>,
    quarantine: Quarantine,
    hello: Option<Hello>,
    /// What the cloud was told of each entity's columns.
    told: Vec<Option<TableSchema>>,
    last: Position,
    media_root: PathBuf,
}

impl Courier {
    pub(super) async fn open(drain: &Drain, origin: Origin, last: Position) -> Result<Self> {
        let session = Session::open(&drain.database_url, "delivery").await?;
        let quarantine = Quarantine::open(session.client(), &drain.catalogue).await?;
        drain.pulse.metrics.quarantine.set(quarantine.len() as i64);
        Ok(Self {
            session,
            catalogue: drain.catalogue.clone(),
            cloud: drain.cloud.clone(),
            origin,
            pulse: drain.pulse.clone(),
            quarantine,
            hello: None,
            told: vec![None; drain.catalogue.entities().len()],
            last,
            media_root: drain.media_root.clone(),
        })
    }

    /// Delivers the portion, or says what stopped it.
    pub(super) async fn deliver_once(&mut self, portion: &mut Portion) -> Result<()> {
        self.prepare(&mut portion.batch).await?;
        self.attempt(&mut portion.batch, &portion.shapes).await?;
        self.settle(&portion.batch, &portion.shapes).await
    }

    /// Delivers what arrives until the sender is gone; on `shutdown` the batch at hand is given up unless it is accepted.
    pub(super) async fn run(
        mut self,
        mut batches: mpsc::Receiver<Portion>,
        accepted: mpsc::Sender<Checkpoint>,
        shutdown: &CancellationToken,
    ) -> Result<()> {
        self.pulse.set(Condition::Replicating);
        // Asked before there is anything to send, so that what a person must mend shows at the start. That the cloud is
        // away is no matter yet.
        let greeted = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            greeted = self.greet() => greeted,
        };
        if let Err(failure) = greeted {
            if failure.error().class() == Class::Fatal {
                return Err(failure.into());
            }
            tracing::warn!("{failure}");
        }
        let mut before = 0;
        while let Some(mut portion) = batches.recv().await {
            self.prepare(&mut portion.batch).await?;
            // Two batches that are accepted and not committed would both be sent again after a crash.
            self.pulse.committed(before).await;
            before = portion.after.serial;
            if !self.persist(&mut portion, shutdown).await? {
                return Ok(());
            }
            self.settle(&portion.batch, &portion.shapes).await?;
            if accepted.send(portion.after).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Tries until the batch is answered; false where `shutdown` came first.
    async fn persist(&mut self, portion: &mut Portion, shutdown: &CancellationToken) -> Result<bool> {
        let mut backoff = Backoff::within(Duration::from_millis(100), Duration::from_secs(30));
        let mut repeats = Repeats::new("delivery");
        loop {
            let failure = tokio::select! {
                biased;
                attempt = self.attempt(&mut portion.batch, &portion.shapes) => match attempt {
                    Ok(()) => {
                        repeats.recovered();
                        self.pulse.set(Condition::Replicating);
                        return Ok(true);
                    }
                    Err(failure) => failure,
                },
                () = after(shutdown, Duration::from_secs(5)) => return Ok(false),
            };
            if failure.error().class() == Class::Fatal {
                return Err(failure.into());
            }
            self.hello = None;
            self.pulse.greeted(None);
            self.pulse.metrics.cloud_error(failure.error().kind());
            repeats.failed(failure.error());
            let reason = failure.error().to_string();
            self.pulse.set(if failure.error().kind() == Kind::CloudAuth {
                Condition::KeyRefused { reason }
            } else {
                Condition::BackingOff {
                    away: Side::Cloud,
                    reason,
                }
            });
            tokio::select! {
                () = tokio::time::sleep(backoff.next(failure.retry_after())) => {}
                () = self.pulse.kicked() => {}
                () = shutdown.cancelled() => return Ok(false),
            }
        }
    }

    async fn prepare(&mut self, batch: &mut Batch) -> Result<()> {
        // The cloud may have accepted whatever was sent, and nothing beyond it.
        self.last = self.last.max(batch.last_position().unwrap_or_default());
        for nth in 0..batch.len() {
            let change = &batch.changes()[nth];
            let keeps = self.catalogue.entities()[change.entity].deletes() == Deletes::Keep;
            if change.op != Op::Upsert && keeps {
                batch.set_fate(nth, Fate::Kept);
            }
        }
        batch.collapse();
        media::attach_urls(self.session.client(), &self.media_root, &self.catalogue, batch).await
    }

    async fn attempt(&mut self, batch: &mut Batch, shapes: &Shapes) -> std::result::Result<(), Failure> {
        if batch.is_empty() {
            return Ok(());
        }
        let hello = match self.hello.clone() {
            Some(hello) => hello,
            None => self.greet().await?,
        };
        if hello.capabilities.schema {
            self.tell(batch, shapes).await?;
        }
        self.cloud.deliver(hello.capabilities, &self.origin, batch).await
    }

    async fn greet(&mut self) -> std::result::Result<Hello, Failure> {
        let hello = self.cloud.hello(&self.origin).await?;
        if let Some((epoch, position)) = hello.high_water
            && (epoch > self.origin.epoch || (epoch == self.origin.epoch && position > self.last))
        {
            return Err(cloud_is_ahead(position, self.last).into());
        }
        self.pulse.greeted(Some(hello.capabilities));
        // Another server may answer now, or the same one with an older state.
        self.told.fill(None);
        self.hello = Some(hello.clone());
        Ok(hello)
    }

    /// Tells the cloud the columns of the batch's entities that it was not told yet.
    async fn tell(&mut self, batch: &Batch, shapes: &Shapes) -> std::result::Result<(), Failure> {
        let mut seen = vec![false; self.told.len()];
        for change in batch.changes() {
            seen[change.entity] = true;
        }
        for (place, _) in seen.iter().enumerate().filter(|(_, seen)| **seen) {
            let schema = wire_schema(&self.catalogue.entities()[place], &shapes.tables[place]);
            if self.told[place].as_ref() != Some(&schema) {
                self.cloud.put_schema(&schema).await?;
                self.told[place] = Some(schema);
            }
        }
        Ok(())
    }

    /// Notes the files that the batch's rows name. A row whose file was uploaded meanwhile is captured anew.
    async fn note_files(&self, batch: &Batch, shapes: &Shapes) -> Result<()> {
        let client = self.session.client();
        let found = media::note_references(client, &self.media_root, &self.catalogue, batch).await?;
        for (place, key) in found.outdated {
            let entity = &self.catalogue.entities()[place];
            recapture::rows(
                client,
                entity,
                &shapes.tables[place],
                shapes.numbers[place],
                &[key],
            )
            .await?;
        }
        if found.wanted {
            self.pulse.files_wanted.notify_one();
        }
        Ok(())
    }

    /// Writes down what was refused, and counts the rest.
    async fn settle(&mut self, batch: &Batch, shapes: &Shapes) -> Result<()> {
        self.quarantine
            .settle(self.session.client(), &self.catalogue, batch)
            .await?;
        self.note_files(batch, shapes).await?;
        let metrics = &self.pulse.metrics;
        metrics.quarantine.set(self.quarantine.len() as i64);
        metrics.batches.inc();
        metrics.bytes_sent.inc_by(batch.bytes() as u64);
        metrics.collapsed.inc_by(batch.collapsed() as u64);
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_micros() as i64);
        for (nth, change) in batch.changes().iter().enumerate() {
            match batch.fate(nth) {
                Fate::Accepted => {
                    metrics.accepted(change.entity).inc();
                    let micros = now.saturating_sub(change.captured_at).max(0) as u64;
                    metrics.delivered_after(Duration::from_micros(micros));
                }
                Fate::Refused { code, error } => {
                    metrics.refused.inc();
                    tracing::warn!(
                        entity = self.catalogue.entities()[change.entity].name,
                        position = change.position.0,
                        code,
                        error,
                        "the cloud refused a change: it is in quarantine"
                    );
                }
                Fate::Kept | Fate::Unsupported => {
                    metrics.not_sent.inc();
                }
                Fate::Pending => {}
            }
        }
        Ok(())
    }
}

/// Some time after `shutdown`.
async fn after(shutdown: &CancellationToken, deadline: Duration) {
    shutdown.cancelled().await;
    tokio::time::sleep(deadline).await;
}
