//! The third stage: sends batches to the cloud, in order, and tries again while the cloud is away.
//!
//! Before a batch goes, its schema is announced, and a term has begun. While a batch waits for its answer,
//! those behind it are on their way, at a cloud that takes batches in the order of their numbers only. If one
//! of them must go otherwise than it went, what is behind it may have been accepted already: then all is read
//! again, under a new term, since an old state must not follow a newer one.
//!
//! A batch leaves this stage with the fate of each of its changes; [`super::record`] makes that durable, and
//! acknowledges it. A term begins only when everything before it is acknowledged. A server without `changes`
//! gets its next batch only when the one before it is acknowledged: what is noted of its rows must be noted
//! in order.

use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::announce::AnnouncedSchemas;
use super::described_tables::DescribedTables;
use super::handshake::{CloudAnswer, Handshake};
use super::prefetch::{EarlyRequest, Prefetch};
use super::resume::DrainStart;
use super::retries::Retries;
use super::wire_schema::RefusedSchemas;
use super::{Condition, Drain, DrainBatch, ReplicationState, RoundEnd};
use crate::abort;
use crate::batch::{Batch, Fate};
use crate::catalogue::Catalogue;
use crate::checkpoint::{Checkpoint, Version};
use crate::deliver::{ChangeOrigin, Cloud, CloudInfo, Failure, InFlight, Numbering};
use crate::error::{Error, Kind, Result};
use crate::retry::{Backoff, waits};
use crate::source::connect::Session;
use crate::source::identity::StoredIdentity;
use crate::source::term::{self, Fence};

const PUSH: &str = "push changes to the cloud";

/// How long a request that is on its way may go on after `shutdown`.
const LAST_ANSWER: Duration = Duration::from_secs(5);

/// The third stage.
pub(super) struct Sender {
    pub(super) session: Arc<Session>,
    pub(super) catalogue: Arc<Catalogue>,
    pub(super) cloud: Cloud,
    pub(super) origin: ChangeOrigin,
    pub(super) state: Arc<ReplicationState>,
    pub(super) handshake: Arc<Handshake>,
    pub(super) retries: Arc<Retries>,
    pub(super) fence: Fence,
    /// The numbers of this drain's term; `None` before it has begun one.
    pub(super) numbering: Option<Numbering>,
    /// The checkpoint of the last batch that was sent and handed on.
    pub(super) handed_on: Checkpoint,
    /// A term's nonce that the database may have lost.
    pub(super) known_nonce: (i64, String),
    /// Whether the server was promoted or recovered to another timeline since.
    pub(super) promoted: bool,
    /// Whether the drain before this one ended in order.
    pub(super) ended_before: bool,
    pub(super) stored: StoredIdentity,
    /// The tables as they were when the last batch was read.
    pub(super) schemas: Option<Arc<DescribedTables>>,
    /// The last answer of the cloud that was acted on.
    pub(super) heeded: Option<CloudAnswer>,
    /// When the cloud last answered a batch: what it said before that is older than what it has.
    answered_at: Instant,
    /// The serial of the last checkpoint that was recorded.
    recorded: watch::Receiver<u64>,
    /// The schemas that the cloud has been sent.
    pub(super) announced: Arc<AnnouncedSchemas>,
    /// When refused schemas are sent again; `None` if there are none.
    pub(super) refused_at: Option<Instant>,
    pub(super) refused_backoff: Backoff,
    /// Since when the server's application has refused whatever was sent, in words.
    pub(super) told_since: Option<Instant>,
    /// Whether rows were set aside and nothing was accepted since.
    pub(super) set_aside_alone: bool,
    /// Above so many bytes no further batch is taken in to be sent behind others.
    in_flight_bytes: usize,
}

/// What joins the sender to the other parts.
pub(super) struct SenderLinks {
    pub(super) handshake: Arc<Handshake>,
    pub(super) retries: Arc<Retries>,
    /// Tells the reader which schemas the cloud refuses.
    pub(super) refused: watch::Sender<RefusedSchemas>,
    /// The serial of the last checkpoint that was recorded.
    pub(super) recorded: watch::Receiver<u64>,
}

impl Sender {
    pub(super) fn new(drain: &Drain, session: Arc<Session>, start: DrainStart, links: SenderLinks) -> Self {
        let SenderLinks {
            handshake,
            retries,
            refused,
            recorded,
        } = links;
        Self {
            session,
            catalogue: drain.catalogue.clone(),
            cloud: drain.cloud.clone(),
            origin: start.origin(),
            state: drain.state.clone(),
            handshake,
            retries,
            fence: start.fence,
            numbering: None,
            handed_on: start.checkpoint,
            known_nonce: start.nonce,
            promoted: start.promoted,
            ended_before: start.ended,
            stored: start.stored,
            schemas: None,
            heeded: None,
            answered_at: Instant::now(),
            recorded,
            announced: Arc::new(AnnouncedSchemas::new(drain.catalogue.clone(), refused)),
            refused_at: None,
            refused_backoff: Backoff::of(waits::REFUSED_SCHEMA),
            told_since: None,
            set_aside_alone: false,
            in_flight_bytes: drain.limits.bytes,
        }
    }

    /// Sends the batch, or says what stopped it.
    pub(super) async fn send_once(&mut self, drain_batch: &mut DrainBatch) -> Result<()> {
        self.note_schemas(&drain_batch.schemas);
        let mut attempt = Box::pin(self.attempt(&mut drain_batch.batch, &drain_batch.schemas, None)).await;
        if attempt.as_ref().is_err_and(Failure::needs_new_term) {
            self.leave_term();
            attempt = Box::pin(self.attempt(&mut drain_batch.batch, &drain_batch.schemas, None)).await;
        }
        attempt?;
        self.stamp(drain_batch);
        Ok(())
    }

    /// Notes that this drain has ended in order.
    pub(super) async fn end(&self) {
        if self.numbering.is_some() {
            // If that cannot be noted, the next drain is as careful as after a crash.
            let _ = term::end(self.session.client(), &self.fence).await;
        }
    }

    /// Sends what arrives until there is no more; on `shutdown` the batch at hand is given up unless it is
    /// accepted.
    pub(super) async fn run(
        mut self,
        batches: impl Stream<Item = Result<DrainBatch>> + Send + 'static,
        answered: mpsc::Sender<DrainBatch>,
        shutdown: CancellationToken,
    ) -> Result<RoundEnd> {
        self.state.set(Condition::Replicating);
        let mut prefetch = Prefetch::new(
            batches,
            self.in_flight_bytes,
            self.cloud.clone(),
            self.origin.clone(),
            self.announced.clone(),
            self.handshake.clone(),
        );
        let mut answers = self.handshake.answers();
        answers.mark_changed();
        loop {
            let next = tokio::select! {
                biased;
                next = prefetch.next() => next,
                // The handshake lives as long as this stage.
                _ = answers.changed() => {
                    let answer = answers.borrow_and_update().clone();
                    if let Some(answer) = answer {
                        let heeded = Box::pin(self.heed(answer)).await;
                        self.report(heeded)?;
                    }
                    continue;
                }
                () = tokio::time::sleep_until(self.refused_at.unwrap_or_else(Instant::now)), if self.refused_at.is_some() => {
                    let announced = self.announce_refused_when_due().await;
                    self.report(announced)?;
                    continue;
                }
            };
            let Some((mut drain_batch, early)) = next.transpose()? else {
                self.end().await;
                return Ok(RoundEnd::Stopped);
            };
            self.note_schemas(&drain_batch.schemas);
            let numbering = self.numbering.clone().filter(|_| !self.retries.has_any_by_hand());
            let ended = tokio::select! {
                biased;
                ended = self.send_with_retry(&mut drain_batch, early, &shutdown) => ended?,
                never = prefetch.look_ahead(numbering.as_ref()) => match never {},
            };
            if let Some(ended) = ended {
                return Ok(ended);
            }
            abort::point("after the delivery");
            self.stamp(&mut drain_batch);
            if answered.send(drain_batch).await.is_err() {
                return Ok(RoundEnd::Stopped);
            }
        }
    }

    /// Tries until the batch is answered; the pauses are those of the handshake, which has to be answered
    /// first. Returns why the round ends if the batch cannot be sent.
    async fn send_with_retry(
        &mut self,
        drain_batch: &mut DrainBatch,
        early: Option<EarlyRequest>,
        shutdown: &CancellationToken,
    ) -> Result<Option<RoundEnd>> {
        let mut in_flight = None;
        if let (Some(early), Some(numbering)) = (early, &mut self.numbering) {
            if early.number != numbering.next {
                return Ok(Some(RoundEnd::NewTerm));
            }
            numbering.note_sent_early(early.hash);
            in_flight = early.request;
        }
        let mut again = false;
        loop {
            if self.handshake.available(shutdown).await.is_none() {
                return Ok(Some(RoundEnd::Stopped));
            }
            let pending = drain_batch.batch.count(&Fate::Pending);
            let attempt = tokio::select! {
                biased;
                // Boxed: the future is large, and this one holds others too.
                attempt = Box::pin(self.attempt(&mut drain_batch.batch, &drain_batch.schemas, in_flight.take())) => attempt,
                () = after(shutdown, LAST_ANSWER) => return Ok(Some(RoundEnd::Stopped)),
            };
            if let Err(failure) = &attempt
                && failure.needs_new_term()
            {
                self.state.metrics.cloud_error(Kind::CloudProtocol);
                if self.numbering.as_ref().is_some_and(Numbering::sent_after_next) {
                    tracing::debug!(%failure, "what waits is read again");
                    return Ok(Some(RoundEnd::NewTerm));
                }
                // Nothing newer was sent: it goes again as it is, under a new term.
                self.leave_term();
                if std::mem::replace(&mut again, true) {
                    tokio::time::sleep(self.handshake.next_wait()).await;
                }
                continue;
            }
            if drain_batch.batch.count(&Fate::Pending) < pending {
                self.handshake.delivered_in_part();
            }
            let done = attempt.is_ok();
            self.report(attempt)?;
            if done {
                return Ok(None);
            }
        }
    }

    /// Tells the handshake how an attempt went.
    fn report(&self, attempt: std::result::Result<(), Failure>) -> Result<()> {
        match attempt {
            Ok(()) => {
                self.handshake.delivered();
                Ok(())
            }
            Err(failure) => self.handshake.failed(failure),
        }
    }

    /// The next attempt begins a term, and asks the cloud before that.
    fn leave_term(&mut self) {
        self.numbering = None;
        self.heeded = None;
        self.handshake.forget();
    }

    fn note_schemas(&mut self, schemas: &Arc<DescribedTables>) {
        self.schemas = Some(schemas.clone());
        self.retries.note_schemas(schemas);
    }

    /// One attempt to send a batch, in this order: what the cloud is (`handshake`, `terms`), the term (`terms`),
    /// the schema (`announce`), what a server without `changes` needs (`baseline_notes`), the rows that are
    /// known to fail (`failing_rows`), and then the batch.
    async fn attempt(
        &mut self,
        batch: &mut Batch,
        schemas: &DescribedTables,
        in_flight: Option<InFlight>,
    ) -> std::result::Result<(), Failure> {
        if batch.pending().is_empty() && !batch.has_undeclared() {
            return Ok(());
        }
        let answer = match self.handshake.answer() {
            Some(answer) => answer,
            None => self.handshake.ask().await?,
        };
        self.heed(answer.clone()).await?;
        let capabilities = answer.info.capabilities;
        if !capabilities.changes {
            self.wait_until_recorded().await?;
        }
        if self.numbering.is_none() {
            self.begin_term().await?;
        }
        // Left by an attempt that was given up.
        batch.revive_undeclared();
        if self.refused_at.is_some_and(|at| at <= Instant::now()) {
            self.announce_refused(capabilities).await?;
        }
        if capabilities.schema {
            self.announce(batch, schemas).await?;
        }
        if !capabilities.changes {
            self.settle_conditions(batch, schemas).await?;
        }
        self.expect_failing(batch).await?;
        let delivered = self.deliver(&answer.info, batch, in_flight).await;
        if !capabilities.changes {
            self.note_unanswered(batch).await?;
        }
        if let Err(failure) = delivered {
            let failure = self.set_aside(batch, failure).await;
            if !batch.pending().is_empty() {
                return Err(failure);
            }
        }
        if capabilities.schema && batch.has_undeclared() {
            tracing::warn!("the cloud no longer knows columns that it was sent: the schema is sent again");
            if self
                .numbering
                .as_ref()
                .is_some_and(Numbering::sent_after_last_taken)
            {
                return Err(Failure::new_term(
                    PUSH,
                    "the cloud no longer knows columns that it was sent",
                ));
            }
            for change_index in batch.revive_undeclared() {
                self.announced.note(batch[change_index].entity, None);
            }
            self.announce(batch, schemas).await?;
            // What it does not know now it never will.
            self.deliver(&answer.info, batch, None).await?;
            batch.forget_undeclared();
        }
        self.note_set_aside(batch);
        Ok(())
    }

    async fn deliver(
        &mut self,
        info: &CloudInfo,
        batch: &mut Batch,
        in_flight: Option<InFlight>,
    ) -> std::result::Result<(), Failure> {
        let Some(numbering) = &mut self.numbering else {
            return Err(Failure::new_term(PUSH, "no term has begun"));
        };
        let delivered = self
            .cloud
            .deliver_in_flight(info.capabilities, &self.origin, numbering, batch, in_flight)
            .await;
        self.answered_at = Instant::now();
        if info.capabilities.changes && numbering.next > 1 {
            self.handed_on.accepted = Some(Version {
                epoch: self.origin.epoch.0,
                term: numbering.term,
                batch: numbering.next - 1,
            });
            self.handshake.note_accepted(self.handed_on.accepted);
        }
        delivered
    }

    /// Acts on an answer of the cloud, once: another server may answer now, or the same one with an older
    /// state.
    async fn heed(&mut self, answer: CloudAnswer) -> std::result::Result<(), Failure> {
        let before = self.heeded.replace(answer.clone());
        if before
            .as_ref()
            .is_some_and(|before| before.asked_at == answer.asked_at)
        {
            return Ok(());
        }
        let info = &answer.info;
        let is_known = |before: &CloudAnswer| {
            before.info.capabilities == info.capabilities && before.info.site == info.site
        };
        if !before.as_ref().is_some_and(is_known) {
            self.announced.forget();
        }
        if self.has_changed(&answer) {
            if self.numbering.as_ref().is_some_and(Numbering::sent_after_next) {
                return Err(Failure::new_term(
                    PUSH,
                    "the cloud has changed amid what was sent to it",
                ));
            }
            self.announced.forget();
            self.begin_term().await?;
        }
        self.announce_refused(info.capabilities).await
    }

    /// What the cloud says of itself now: nothing was sent since it was asked.
    pub(super) async fn present_answer(&mut self) -> std::result::Result<CloudAnswer, Failure> {
        match self
            .handshake
            .answer()
            .filter(|answer| answer.asked_at >= self.answered_at)
        {
            Some(answer) => Ok(answer),
            None => {
                let answer = self.handshake.ask().await?;
                self.heeded = Some(answer.clone());
                Ok(answer)
            }
        }
    }

    async fn announce_refused_when_due(&mut self) -> std::result::Result<(), Failure> {
        match self.handshake.answer() {
            Some(answer) => self.announce_refused(answer.info.capabilities).await,
            // The next answer has them announced.
            None => {
                self.refused_at = None;
                Ok(())
            }
        }
    }

    /// Gives the batch's checkpoint what is known of the term that the batch went under.
    fn stamp(&mut self, drain_batch: &mut DrainBatch) {
        let after = &mut drain_batch.after;
        after.identity = self.handed_on.identity.clone();
        (after.term, after.nonce) = (self.handed_on.term, self.handed_on.nonce.clone());
        after.accepted = self.handed_on.accepted;
        after.mirrored = self.handed_on.mirrored;
        self.handed_on = after.clone();
        drain_batch.to_baseline = self
            .heeded
            .as_ref()
            .is_some_and(|answer| !answer.info.capabilities.changes);
    }

    /// Waits until everything that was handed on is recorded.
    pub(super) async fn wait_until_recorded(&mut self) -> Result<()> {
        let serial = self.handed_on.serial;
        match self.recorded.wait_for(|recorded| *recorded >= serial).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::new(
                Kind::SourceUnreachable,
                "wait until a batch is recorded",
                "the stage that records has ended",
            )),
        }
    }
}

/// Some time after `shutdown`.
async fn after(shutdown: &CancellationToken, deadline: Duration) {
    shutdown.cancelled().await;
    tokio::time::sleep(deadline).await;
}
