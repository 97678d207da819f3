//! Brings batches to the cloud: tells the schema first, tries again while the cloud is away, and settles what was refused.
//!
//! While a batch waits for its answer, the next one is sent ahead but for its last byte, which follows when the one before
//! it is committed. So at most one batch is ever with the cloud that it could have accepted and the site does not know of.
//!
//! The cloud is greeted at the start, after each failure and once in a while, whether or not there is anything to send:
//! so it shows at once that it is away, refuses the key, can do more or less than before, or has lost what it had.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::Stream;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::coming::Coming;
use super::reader::Shapes;
use super::{
    Accepted, Condition, Drain, Portion, Pulse, Side, cloud_is_ahead, cloud_is_behind, history_is_lost,
    wire_schema,
};
use crate::abort;
use crate::batch::{Batch, Fate};
use crate::catalogue::Catalogue;
use crate::change::Position;
use crate::checkpoint::Checkpoint;
use crate::deliver::{Ahead, Cloud, Failure, Hello, Origin, TableSchema};
use crate::error::{Class, Kind, Result};
use crate::media;
use crate::quarantine;
use crate::quarantine::orphans::Orphans;
use crate::retry::{Backoff, Repeats};
use crate::source::connect::Session;
use crate::source::recapture;

/// The middle stage.
pub(super) struct Courier {
    session: Arc<Session>,
    catalogue: Arc<Catalogue>,
    cloud: Cloud,
    origin: Origin,
    pulse: Arc<Pulse>,
    hello: Option<Hello>,
    /// When the cloud is greeted next.
    greet_at: Instant,
    greet_every: Duration,
    /// The cloud asked for nothing before.
    asked: Option<Instant>,
    backoff: Backoff,
    repeats: Repeats,
    /// The foreign keys of these shapes.
    orphans: Option<(Arc<Shapes>, Orphans)>,
    /// What the cloud was told of each entity's columns.
    told: Vec<Option<TableSchema>>,
    last: Position,
    /// The highest position that a cloud which orders by position has accepted.
    accepted: Position,
    /// The highest position that the cloud can have, where nobody remembers what was sent last and the database may
    /// have gone back since.
    limit: Option<Position>,
    media_root: PathBuf,
}

impl Courier {
    pub(super) fn new(
        drain: &Drain,
        session: Arc<Session>,
        origin: Origin,
        start: &Checkpoint,
        last: Position,
        limit: Option<Position>,
    ) -> Self {
        if start.lossy {
            drain.pulse.lose(
                None,
                "the cloud has less than it had accepted, and no sync has repaired that yet".to_owned(),
            );
        }
        Self {
            session,
            catalogue: drain.catalogue.clone(),
            cloud: drain.cloud.clone(),
            origin,
            pulse: drain.pulse.clone(),
            hello: None,
            greet_at: Instant::now(),
            greet_every: drain.greet_every,
            asked: None,
            backoff: Backoff::within(Duration::from_millis(100), Duration::from_secs(30)),
            repeats: Repeats::new("delivery"),
            orphans: None,
            told: vec![None; drain.catalogue.entities().len()],
            last,
            accepted: start.accepted,
            limit,
            media_root: drain.media_root.clone(),
        }
    }

    /// Delivers the portion, or says what stopped it.
    pub(super) async fn deliver_once(&mut self, portion: &mut Portion) -> Result<()> {
        self.sends(portion);
        self.attempt(&mut portion.batch, &portion.shapes, None).await?;
        self.settle(portion).await
    }

    /// Delivers what arrives until there is no more; on `shutdown` the batch at hand is given up unless it is accepted.
    pub(super) async fn run(
        mut self,
        portions: impl Stream<Item = Result<Portion>> + Send + 'static,
        accepted: mpsc::Sender<Accepted>,
        shutdown: &CancellationToken,
    ) -> Result<()> {
        self.pulse.set(Condition::Replicating);
        let mut coming = Coming::new(
            portions,
            self.cloud.clone(),
            self.origin.clone(),
            self.pulse.clone(),
        );
        let mut before = 0;
        loop {
            let next = tokio::select! {
                biased;
                next = coming.next() => next,
                greeted = self.greet_when_due() => {
                    self.note(greeted)?;
                    continue;
                }
            };
            let Some((mut portion, ahead)) = next.transpose()? else {
                return Ok(());
            };
            // Two batches that are accepted and not committed would both be sent again after a crash.
            self.pulse.committed(before).await;
            before = portion.after.serial;
            self.sends(&portion);
            let failed = Notify::new();
            let delivered = tokio::select! {
                biased;
                delivered = self.persist(&mut portion, ahead, &failed, shutdown) => delivered?,
                never = coming.look_ahead(&failed) => match never {},
            };
            if !delivered {
                return Ok(());
            }
            abort::point("after the delivery");
            self.settle(&mut portion).await?;
            abort::point("before the hand-over");
            if accepted.send(portion.accepted()).await.is_err() {
                return Ok(());
            }
        }
    }

    /// Tries until the batch is answered, and tells when an attempt fails; false where `shutdown` came first.
    async fn persist(
        &mut self,
        portion: &mut Portion,
        mut ahead: Option<Ahead>,
        failed: &Notify,
        shutdown: &CancellationToken,
    ) -> Result<bool> {
        if let Some(until) = self.asked
            && !self.rest(until, shutdown).await
        {
            return Ok(false);
        }
        loop {
            let pending = portion.batch.count(&Fate::Pending);
            let attempt = tokio::select! {
                biased;
                attempt = self.attempt(&mut portion.batch, &portion.shapes, ahead.take()) => attempt,
                () = after(shutdown, Duration::from_secs(5)) => return Ok(false),
            };
            let done = attempt.is_ok();
            if portion.batch.count(&Fate::Pending) < pending {
                // Part of it got through: the cloud is there, and a link that drops often still carries something.
                self.backoff.reset();
            }
            self.note(attempt)?;
            if done {
                return Ok(true);
            }
            failed.notify_one();
            if !self.rest(self.greet_at, shutdown).await {
                return Ok(false);
            }
        }
    }

    /// Waits until then, or until someone asks for a sync; false where `shutdown` came first.
    async fn rest(&self, until: Instant, shutdown: &CancellationToken) -> bool {
        tokio::select! {
            () = tokio::time::sleep_until(until) => true,
            () = self.pulse.kicked() => true,
            () = shutdown.cancelled() => false,
        }
    }

    /// Shows how an attempt or a greeting went, and after a failure sets the time of the next one.
    fn note(&mut self, went: std::result::Result<(), Failure>) -> Result<()> {
        let Err(failure) = went else {
            self.asked = None;
            self.backoff.reset();
            self.repeats.recovered();
            self.pulse.set(Condition::Replicating);
            return Ok(());
        };
        if failure.error().class() == Class::Fatal {
            return Err(failure.into());
        }
        self.hello = None;
        self.greet_at = Instant::now() + self.backoff.next(failure.retry_after());
        self.asked = failure.retry_after().map(|_| self.greet_at);
        self.pulse.greeted(None);
        self.pulse.metrics.cloud_error(failure.error().kind());
        self.repeats.failed(failure.error());
        let reason = failure.error().to_string();
        self.pulse.set(if failure.error().kind() == Kind::CloudAuth {
            Condition::KeyRefused { reason }
        } else {
            Condition::BackingOff {
                away: Side::Cloud,
                reason,
            }
        });
        Ok(())
    }

    /// Waits until the cloud is to be greeted, or someone asks for a sync, and greets it.
    async fn greet_when_due(&mut self) -> std::result::Result<(), Failure> {
        tokio::select! {
            () = tokio::time::sleep_until(self.greet_at) => {}
            () = self.pulse.kicked() => {}
        }
        self.greet().await.map(|_| ())
    }

    /// From now on the cloud may accept the portion, and nothing beyond it.
    fn sends(&mut self, portion: &Portion) {
        self.last = self.last.max(portion.batch.last_position().unwrap_or_default());
        self.pulse.sends(&portion.after);
    }

    async fn attempt(
        &mut self,
        batch: &mut Batch,
        shapes: &Shapes,
        mut ahead: Option<Ahead>,
    ) -> std::result::Result<(), Failure> {
        if batch.is_empty() {
            return Ok(());
        }
        let hello = match self.hello.clone() {
            Some(hello) if Instant::now() < self.greet_at => hello,
            _ => {
                // Nothing may stand before the greeting: see [`Coming::look_ahead`].
                ahead = None;
                self.greet().await?
            }
        };
        // Left by an attempt that was given up.
        batch.revive_untold();
        let tells = hello.capabilities.schema;
        if tells {
            let untold = self.untold(batch, shapes);
            ahead = ahead.filter(|_| untold.is_empty());
            self.tell(untold).await?;
        }
        self.cloud
            .deliver_begun(hello.capabilities, &self.origin, batch, ahead)
            .await?;
        if tells && batch.has_untold() {
            tracing::warn!("the cloud has forgotten columns that it was told: it is told again");
            for nth in batch.revive_untold() {
                self.told[batch.changes()[nth].entity] = None;
            }
            self.tell(self.untold(batch, shapes)).await?;
            // What it does not know now it never will.
            self.cloud
                .deliver(hello.capabilities, &self.origin, batch)
                .await?;
            batch.forget_untold();
        }
        if hello.capabilities.changes {
            let accepted = batch.changes().iter().enumerate();
            let accepted = accepted.filter(|(nth, _)| *batch.fate(*nth) == Fate::Accepted);
            let highest = accepted.map(|(_, change)| change.position).max();
            self.accepted = self.accepted.max(highest.unwrap_or_default());
        }
        Ok(())
    }

    async fn greet(&mut self) -> std::result::Result<Hello, Failure> {
        let hello = self.cloud.hello(&self.origin).await?;
        if let Some((epoch, position)) = hello.high_water
            && (epoch > self.origin.epoch || (epoch == self.origin.epoch && position > self.last))
        {
            return Err(cloud_is_ahead(position, self.last).into());
        }
        let expected = (self.accepted > Position(0)).then_some((self.origin.epoch, self.accepted));
        if hello.tells_high_water && hello.high_water < expected {
            let found = hello
                .high_water
                .and_then(|(epoch, position)| (epoch == self.origin.epoch).then_some(position));
            let reason = cloud_is_behind(self.accepted, found);
            if self.pulse.lose(hello.high_water, reason.clone()) {
                tracing::error!("{reason}");
                self.told.fill(None);
            }
        }
        if let Some(limit) = self.limit
            && hello
                .high_water
                .map_or(!hello.capabilities.changes, |(epoch, position)| {
                    epoch == self.origin.epoch && position > limit
                })
        {
            return Err(history_is_lost("nothing tells whether it has all that was sent").into());
        }
        self.limit = None;
        self.pulse.greeted(Some(hello.capabilities));
        // Another server may answer now, or the same one with an older state.
        let known = |before: &Hello| before.capabilities == hello.capabilities && before.site == hello.site;
        if !self.hello.as_ref().is_some_and(known) {
            self.told.fill(None);
        }
        self.greet_at = Instant::now() + self.greet_every;
        self.hello = Some(hello.clone());
        Ok(hello)
    }

    /// The columns of the batch's entities that the cloud was not told yet, by the entities' places.
    fn untold(&self, batch: &Batch, shapes: &Shapes) -> Vec<(usize, TableSchema)> {
        let mut seen = vec![false; self.told.len()];
        for change in batch.changes() {
            seen[change.entity] = true;
        }
        let mut untold = Vec::new();
        for (place, _) in seen.iter().enumerate().filter(|(_, seen)| **seen) {
            let (entity, table) = (&self.catalogue.entities()[place], &shapes.tables[place]);
            if !table.fits(entity) {
                // The cloud goes by what it was told before.
                continue;
            }
            let schema = wire_schema(entity, table);
            if self.told[place].as_ref() != Some(&schema) {
                untold.push((place, schema));
            }
        }
        untold
    }

    async fn tell(&mut self, untold: Vec<(usize, TableSchema)>) -> std::result::Result<(), Failure> {
        for (place, schema) in untold {
            self.cloud.put_schema(&schema).await?;
            self.told[place] = Some(schema);
        }
        Ok(())
    }

    /// Notes the files that the batch's rows name. A row whose file was uploaded meanwhile is captured anew.
    async fn note_files(&self, batch: &Batch, shapes: &Shapes) -> Result<()> {
        let client = self.session.client();
        let found = media::note_references(client, &self.media_root, &self.catalogue, batch).await?;
        for (place, key) in found.outdated {
            let entity = &self.catalogue.entities()[place];
            if !shapes.tables[place].fits(entity) {
                // Its rows cannot be found now: the sync that follows the remedy finds them.
                continue;
            }
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

    /// Writes down what was refused, captures anew what had waited for these rows, and counts the rest.
    async fn settle(&mut self, portion: &mut Portion) -> Result<()> {
        let (batch, shapes) = (&portion.batch, &portion.shapes);
        let occupied = quarantine::settle(self.session.client(), &self.catalogue, batch).await?;
        if !occupied.is_empty() {
            self.adopt(batch, shapes, &occupied).await?;
        }
        self.note_files(batch, shapes).await?;
        portion.after.accepted = self.accepted;
        portion.after.lossy = self.pulse.loss().is_some();
        let metrics = &self.pulse.metrics;
        metrics.batches.inc();
        metrics.bytes_sent.inc_by(batch.bytes() as u64);
        metrics.collapsed.inc_by(batch.collapsed() as u64);
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_micros() as i64);
        let mut refused: BTreeMap<(usize, u16), (Position, u64)> = BTreeMap::new();
        for (nth, change) in batch.changes().iter().enumerate() {
            match batch.fate(nth) {
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
                Fate::Kept | Fate::Unsupported => {
                    metrics.not_sent.inc();
                }
                Fate::Pending => {}
            }
        }
        // The cloud's own words may hold values of rows: they stay in the quarantine.
        for ((entity, code), (first, changes)) in refused {
            tracing::warn!(
                entity = self.catalogue.entities()[entity].name,
                code,
                changes,
                first = first.0,
                "the cloud refused changes: they are in quarantine; see `cloud-sync quarantine list`"
            );
        }
        Ok(())
    }

    /// Captures the rows in quarantine anew whose parents the cloud has just accepted.
    async fn adopt(&mut self, batch: &Batch, shapes: &Arc<Shapes>, occupied: &[usize]) -> Result<()> {
        let client = self.session.client();
        let orphans = match &mut self.orphans {
            Some((of, orphans)) if Arc::ptr_eq(of, shapes) => orphans,
            kept => {
                let read = Orphans::read(client, &shapes.tables).await?;
                &mut kept.insert((shapes.clone(), read)).1
            }
        };
        orphans
            .adopt(
                client,
                &self.catalogue,
                &shapes.tables,
                &shapes.numbers,
                batch,
                occupied,
            )
            .await?;
        Ok(())
    }
}

/// Some time after `shutdown`.
async fn after(shutdown: &CancellationToken, deadline: Duration) {
    shutdown.cancelled().await;
    tokio::time::sleep(deadline).await;
}
