//! Brings batches to the cloud: begins a term, tells the schema first, tries again while the cloud is away, and settles what was
//! refused.
//!
//! While a batch waits for its answer, those behind it are on their way, at a cloud that takes batches in the order of their
//! numbers only. Where one has to go otherwise than it went, what is behind it may have been accepted already: then all is read
//! again, under a new term, since an old state must not follow a newer one.
//!
//! The cloud is greeted at the start, after each failure and once in a while, whether or not there is anything to send:
//! so it shows at once that it is away, refuses the key, can do more or less than before, is another one, or has less
//! than it had accepted.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::Stream;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::announce::AnnouncedSchemas;
use super::prefetch::{EarlyRequest, Prefetch};
use super::resume::DrainStart;
use super::schema::RefusedSchemas;
use super::table_schemas::TableSchemas;
use super::{AcceptedBatch, BatchInFlight, Condition, Drain, Peer, ReplicationState, RoundEnd};
use crate::abort;
use crate::batch::{Batch, Fate};
use crate::catalogue::{Catalogue, EntityIndex};
use crate::change::Position;
use crate::checkpoint::{Checkpoint, Version};
use crate::deliver::{ChangeOrigin, Cloud, CloudInfo, Failure, InFlight, Numbering};
use crate::error::{Class, Kind, Result};
use crate::media;
use crate::quarantine;
use crate::quarantine::orphans::Orphans;
use crate::retry::{Backoff, FailureLog};
use crate::source::connect::Session;
use crate::source::identity::StoredIdentity;
use crate::source::term::{self, Fence};
use crate::source::touch;

const PUSH: &str = "push changes to the cloud";

/// The middle stage.
pub(super) struct Sender {
    pub(super) session: Arc<Session>,
    pub(super) catalogue: Arc<Catalogue>,
    pub(super) cloud: Cloud,
    pub(super) origin: ChangeOrigin,
    pub(super) pulse: Arc<ReplicationState>,
    pub(super) fence: Fence,
    /// The numbers of this drain's term; none before it has begun one.
    pub(super) numbering: Option<Numbering>,
    /// The last checkpoint whose batch is accepted.
    pub(super) resume: Checkpoint,
    /// The furthest batch that is known outside the database to have been accepted before this drain.
    pub(super) accepted_before: Option<Version>,
    /// A term's nonce that the database may have lost.
    pub(super) known_nonce: (i64, String),
    /// Whether the server was promoted or recovered to another timeline since.
    pub(super) promoted: bool,
    /// Whether the drain before this one ended in order.
    pub(super) ended_before: bool,
    pub(super) stored: StoredIdentity,
    pub(super) shapes: Option<Arc<TableSchemas>>,
    pub(super) hello: Option<CloudInfo>,
    /// When the cloud is greeted next.
    pub(super) greet_at: Instant,
    greet_every: Duration,
    /// A greeting has begun, and has not ended: it may have been given up for a batch that came.
    greeting: bool,
    /// The cloud asked for nothing before.
    asked: Option<Instant>,
    backoff: Backoff,
    repeats: FailureLog,
    /// The foreign keys of these shapes.
    orphans: Option<(Arc<TableSchemas>, Arc<Orphans>)>,
    /// What the cloud was told of the entities' columns.
    pub(super) announced: Arc<AnnouncedSchemas>,
    /// When refused schemas are sent again.
    pub(super) refused_backoff: Backoff,
    /// How many rows are in quarantine whose requests failed.
    pub(super) failing: i64,
    /// How many rows are in quarantine since an operator has set them aside. While there are any, no batch is
    /// sent behind another: each is looked at first.
    pub(super) by_hand: i64,
    /// Whether a row that had failed was accepted unchanged, since rows were last touched again.
    pub(super) mended: bool,
    /// Since when the server's application has refused whatever was sent, in words.
    pub(super) told_since: Option<Instant>,
    /// Whether rows were set aside and nothing was accepted since.
    pub(super) set_aside_alone: bool,
    media_root: PathBuf,
    /// Above so many bytes no further batch is taken in to be sent behind others.
    in_flight_bytes: usize,
}

impl Sender {
    pub(super) fn new(
        drain: &Drain,
        session: Arc<Session>,
        origin: ChangeOrigin,
        start: DrainStart,
        refused: watch::Sender<RefusedSchemas>,
    ) -> Self {
        Self {
            session,
            catalogue: drain.catalogue.clone(),
            cloud: drain.cloud.clone(),
            origin,
            pulse: drain.pulse.clone(),
            fence: start.fence,
            numbering: None,
            resume: start.checkpoint,
            accepted_before: start.accepted,
            known_nonce: start.nonce,
            promoted: start.promoted,
            ended_before: start.ended,
            stored: start.stored,
            shapes: None,
            hello: None,
            greet_at: Instant::now(),
            greet_every: drain.greet_every,
            greeting: false,
            asked: None,
            backoff: Backoff::within(Duration::from_millis(100), Duration::from_secs(30)),
            repeats: FailureLog::new("delivery"),
            orphans: None,
            announced: Arc::new(AnnouncedSchemas::new(drain.catalogue.clone(), refused)),
            refused_backoff: Backoff::within(Duration::from_millis(500), Duration::from_secs(30)),
            failing: 0,
            by_hand: 0,
            mended: false,
            told_since: None,
            set_aside_alone: false,
            media_root: drain.media_root.clone(),
            in_flight_bytes: drain.limits.bytes,
        }
    }

    /// Delivers the portion, or says what stopped it.
    pub(super) async fn deliver_once(&mut self, portion: &mut BatchInFlight) -> Result<()> {
        self.shapes = Some(portion.shapes.clone());
        let mut attempt = self.attempt(&mut portion.batch, &portion.shapes, None).await;
        if attempt.as_ref().is_err_and(Failure::needs_new_term) {
            self.numbering = None;
            self.hello = None;
            attempt = self.attempt(&mut portion.batch, &portion.shapes, None).await;
        }
        attempt?;
        self.settle(portion).await
    }

    /// Notes that this drain has ended in order.
    pub(super) async fn end(&self) {
        if self.numbering.is_some() {
            // Where it cannot be said, the next drain is as careful as after a crash.
            let _ = term::end(self.session.client(), &self.fence).await;
        }
    }

    /// Delivers what arrives until there is no more; on `shutdown` the batch at hand is given up unless it is accepted.
    pub(super) async fn run(
        mut self,
        portions: impl Stream<Item = Result<BatchInFlight>> + Send + 'static,
        accepted: mpsc::Sender<AcceptedBatch>,
        shutdown: &CancellationToken,
    ) -> Result<RoundEnd> {
        self.pulse.set(Condition::Replicating);
        let mut coming = Prefetch::new(
            portions,
            self.in_flight_bytes,
            self.cloud.clone(),
            self.origin.clone(),
            self.announced.clone(),
            self.pulse.clone(),
        );
        loop {
            let next = tokio::select! {
                biased;
                next = coming.next() => next,
                greeted = self.greet_when_due() => {
                    self.note(greeted)?;
                    continue;
                }
            };
            let Some((mut portion, sent)) = next.transpose()? else {
                self.end().await;
                return Ok(RoundEnd::Stopped);
            };
            self.shapes = Some(portion.shapes.clone());
            let numbering = self.numbering.clone().filter(|_| self.by_hand == 0);
            let ended = tokio::select! {
                biased;
                ended = self.persist(&mut portion, sent, shutdown) => ended?,
                never = coming.look_ahead(numbering.as_ref()) => match never {},
            };
            if let Some(ended) = ended {
                return Ok(ended);
            }
            abort::point("after the delivery");
            self.settle(&mut portion).await?;
            abort::point("before the hand-over");
            if accepted.send(portion.accepted()).await.is_err() {
                return Ok(RoundEnd::Stopped);
            }
        }
    }

    /// Tries until the batch is answered; where that cannot be, answers why.
    async fn persist(
        &mut self,
        portion: &mut BatchInFlight,
        sent: Option<EarlyRequest>,
        shutdown: &CancellationToken,
    ) -> Result<Option<RoundEnd>> {
        let mut in_flight = None;
        if let (Some(sent), Some(numbering)) = (sent, &mut self.numbering) {
            if sent.number != numbering.next {
                return Ok(Some(RoundEnd::NewTerm));
            }
            numbering.note_sent(sent.hash);
            in_flight = sent.request;
        }
        if let Some(until) = self.asked
            && !self.rest(until, shutdown).await
        {
            return Ok(Some(RoundEnd::Stopped));
        }
        let mut again = false;
        loop {
            let pending = portion.batch.count(&Fate::Pending);
            let attempt = tokio::select! {
                biased;
                attempt = self.attempt(&mut portion.batch, &portion.shapes, in_flight.take()) => attempt,
                () = after(shutdown, Duration::from_secs(5)) => return Ok(Some(RoundEnd::Stopped)),
            };
            if let Err(failure) = &attempt
                && failure.needs_new_term()
            {
                self.pulse.metrics.cloud_error(Kind::CloudProtocol);
                if self.numbering.as_ref().is_some_and(Numbering::is_followed) {
                    tracing::debug!(%failure, "what waits is read again");
                    return Ok(Some(RoundEnd::NewTerm));
                }
                // Nothing newer was sent: it goes again as it is, under a new term.
                self.numbering = None;
                self.hello = None;
                if std::mem::replace(&mut again, true) {
                    tokio::time::sleep(self.backoff.next(None)).await;
                }
                continue;
            }
            if portion.batch.count(&Fate::Pending) < pending {
                // Part of it got through: the cloud is there, and a link that drops often still carries something.
                self.backoff.reset();
            }
            let done = attempt.is_ok();
            self.note(attempt)?;
            if done {
                return Ok(None);
            }
            if !self.rest(self.greet_at, shutdown).await {
                return Ok(Some(RoundEnd::Stopped));
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
        // The source's failures end the round, whose sessions are opened again.
        if failure.error().class() == Class::Fatal
            || matches!(failure.error().kind(), Kind::Source | Kind::SourceUnreachable)
        {
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
                away: Peer::Cloud,
                reason,
            }
        });
        Ok(())
    }

    /// Waits until the cloud is to be greeted, or someone asks for a sync, and greets it.
    async fn greet_when_due(&mut self) -> std::result::Result<(), Failure> {
        if !self.greeting {
            tokio::select! {
                () = tokio::time::sleep_until(self.greet_at) => {}
                () = self.pulse.kicked() => {}
            }
        }
        self.greet().await.map(|_| ())
    }

    async fn attempt(
        &mut self,
        batch: &mut Batch,
        shapes: &TableSchemas,
        in_flight: Option<InFlight>,
    ) -> std::result::Result<(), Failure> {
        if batch.pending().is_empty() && !batch.has_untold() {
            return Ok(());
        }
        let hello = match self.hello.clone() {
            Some(hello) if !self.greeting && Instant::now() < self.greet_at => hello,
            _ => self.greet().await?,
        };
        if self.numbering.is_none() {
            self.begin_term(&hello).await?;
        }
        // Left by an attempt that was given up.
        batch.revive_untold();
        let tells = hello.capabilities.schema;
        if tells {
            self.tell(batch, shapes).await?;
        }
        if !hello.capabilities.changes {
            self.settle_conditions(batch, shapes).await?;
        }
        self.expect_failing(batch).await?;
        let delivered = self.deliver(&hello, batch, in_flight).await;
        if !hello.capabilities.changes {
            self.note_unanswered(batch).await?;
        }
        if let Err(failure) = delivered {
            let failure = self.set_aside(batch, failure).await;
            if !batch.pending().is_empty() {
                return Err(failure);
            }
        }
        if tells && batch.has_untold() {
            tracing::warn!("the cloud has forgotten columns that it was told: it is told again");
            if self.numbering.as_ref().is_some_and(Numbering::was_followed) {
                return Err(Failure::new_term(
                    PUSH,
                    "the cloud has forgotten columns that it was told",
                ));
            }
            for change_index in batch.revive_untold() {
                self.announced.note(batch[change_index].entity, None);
            }
            self.tell(batch, shapes).await?;
            // What it does not know now it never will.
            self.deliver(&hello, batch, None).await?;
            batch.forget_untold();
        }
        Ok(())
    }

    async fn deliver(
        &mut self,
        hello: &CloudInfo,
        batch: &mut Batch,
        in_flight: Option<InFlight>,
    ) -> std::result::Result<(), Failure> {
        let Some(numbering) = &mut self.numbering else {
            return Err(Failure::new_term(PUSH, "no term has begun"));
        };
        let delivered = self
            .cloud
            .deliver_in_flight(hello.capabilities, &self.origin, numbering, batch, in_flight)
            .await;
        if hello.capabilities.changes && numbering.next > 1 {
            self.resume.accepted = Some(Version {
                epoch: self.origin.epoch.0,
                term: numbering.term,
                batch: numbering.next - 1,
            });
        }
        delivered
    }

    async fn greet(&mut self) -> std::result::Result<CloudInfo, Failure> {
        self.greeting = true;
        let greeted = self.greet_whole().await;
        self.greeting = false;
        greeted
    }

    async fn greet_whole(&mut self) -> std::result::Result<CloudInfo, Failure> {
        let hello = self.cloud.hello(&self.origin).await?;
        self.pulse.greeted(Some(hello.capabilities));
        // Another server may answer now, or the same one with an older state.
        let known =
            |before: &CloudInfo| before.capabilities == hello.capabilities && before.site == hello.site;
        if !self.hello.as_ref().is_some_and(known) {
            self.announced.forget();
        }
        if self.has_changed(&hello) {
            if self.numbering.as_ref().is_some_and(Numbering::is_followed) {
                return Err(Failure::new_term(
                    PUSH,
                    "the cloud has changed amid what was sent to it",
                ));
            }
            self.announced.forget();
            self.begin_term(&hello).await?;
        }
        self.greet_at = Instant::now() + self.greet_every;
        self.hello = Some(hello.clone());
        self.tell_refused(hello.capabilities).await?;
        if !hello.capabilities.changes {
            self.touch_unanswered().await?;
        }
        self.touch_failing().await?;
        Ok(hello)
    }

    /// Notes the files that the batch's rows name. A row whose file was uploaded meanwhile is touched again.
    async fn note_files(&self, batch: &Batch, shapes: &TableSchemas) -> Result<()> {
        let client = self.session.client();
        let found = media::note_references(client, &self.media_root, &self.catalogue, batch).await?;
        for (entity_index, key) in found.outdated {
            let entity = &self.catalogue[entity_index];
            touch::keys(client, entity, shapes.numbers[entity_index.0], &[key]).await?;
        }
        if found.wanted {
            self.pulse.files_wanted.notify_one();
        }
        Ok(())
    }

    /// Writes down what was refused, touches again what had waited for these rows, and counts the rest.
    async fn settle(&mut self, portion: &mut BatchInFlight) -> Result<()> {
        let (batch, shapes) = (&portion.batch, &portion.shapes);
        let client = self.session.client();
        let baseline = self
            .hello
            .as_ref()
            .is_some_and(|hello| !hello.capabilities.changes);
        let settled = quarantine::settle(client, self.fence.term(), &self.catalogue, batch, baseline).await?;
        if !settled.occupied.is_empty() {
            self.adopt(batch, shapes, &settled.occupied).await?;
        }
        // A row that was refused once may have come before what it needs: it counts when it is refused behind the rest.
        let again: Vec<(String, String)> = settled
            .again
            .iter()
            .map(|(entity_index, key)| (self.catalogue[*entity_index].name.clone(), key.clone()))
            .collect();
        self.bring_parents(&again).await?;
        for (entity_index, key) in settled.again {
            let entity = &self.catalogue[entity_index];
            touch::keys(
                self.session.client(),
                entity,
                shapes.numbers[entity_index.0],
                &[key],
            )
            .await?;
        }
        if baseline {
            self.forget_deleted(batch, shapes).await?;
        }
        self.note_files(batch, shapes).await?;
        self.note_set_aside(batch);
        if settled.put_forward {
            self.mended = true;
            self.greet_at = Instant::now();
        }
        self.pulse.delivered(batch);
        let after = &mut portion.after;
        after.identity = self.resume.identity.clone();
        (after.term, after.nonce) = (self.resume.term, self.resume.nonce.clone());
        after.accepted = self.resume.accepted;
        after.mirrored = self.resume.mirrored;
        self.resume = after.clone();
        let metrics = &self.pulse.metrics;
        metrics.batches.inc();
        metrics.bytes_sent.inc_by(batch.bytes() as u64);
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
        for ((entity, code), (first, changes)) in refused {
            if code == 0 {
                tracing::warn!(
                    entity = self.catalogue[entity].name,
                    changes,
                    first = first.0,
                    "rows cannot be read: they are in quarantine; see `cloud-sync quarantine list`"
                );
                continue;
            }
            tracing::warn!(
                entity = self.catalogue[entity].name,
                code,
                changes,
                first = first.0,
                "the cloud refused changes: they are in quarantine; see `cloud-sync quarantine list`"
            );
        }
        Ok(())
    }

    /// Touches the rows in quarantine again whose parents the cloud has just accepted.
    async fn adopt(
        &mut self,
        batch: &Batch,
        shapes: &Arc<TableSchemas>,
        occupied: &[EntityIndex],
    ) -> Result<()> {
        let session = self.session.clone();
        let catalogue = self.catalogue.clone();
        let orphans = self.orphans(shapes).await?;
        orphans
            .adopt(session.client(), &catalogue, &shapes.numbers, batch, occupied)
            .await?;
        Ok(())
    }

    /// The foreign keys of these shapes.
    pub(super) async fn orphans(&mut self, shapes: &Arc<TableSchemas>) -> Result<Arc<Orphans>> {
        if let Some((of, orphans)) = &self.orphans
            && Arc::ptr_eq(of, shapes)
        {
            return Ok(orphans.clone());
        }
        let read = Arc::new(Orphans::read(self.session.client(), &shapes.tables).await?);
        self.orphans = Some((shapes.clone(), read.clone()));
        Ok(read)
    }
}

/// Some time after `shutdown`.
async fn after(shutdown: &CancellationToken, deadline: Duration) {
    shutdown.cancelled().await;
    tokio::time::sleep(deadline).await;
}
