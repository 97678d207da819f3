//! Drains the outbox, in four stages that each see a batch once: read, prepare, send, record.
//!
//! ```text
//! reader -> prepare -> send -> record -> trimmer
//!                       ^         |
//!                       +- ack ---+      handshake: what the cloud is and can; retries: rows that are sent again
//! ```
//!
//! 1. [`reader`] reads what was touched, window by window, merges the touches of a row ([`merged_touches`]),
//!    and reads the present state of these rows, of tables as they are now ([`described_tables`]).
//! 2. [`prepare`] waits until that is on the source's disk, and adds the files' URLs.
//! 3. [`send`] sends the batch: its schema first ([`announce`]), under a term ([`terms`]). Several batches
//!    are on their way to a cloud that takes them in order only ([`prefetch`]); what a server without
//!    `changes` needs is in [`baseline_notes`], what fails for the fault of a row in [`failing_rows`].
//! 4. [`record`] makes durable what became of each change, commits the checkpoint, and acknowledges it to
//!    `send`.
//!
//! Beside them run [`handshake`], which asks the cloud who it is, [`retries`], and [`trimmer`], which gives
//! space back.
//!
//! Invariants: batches leave in the order in which they were read; nothing leaves that is not on the source's
//! disk; a checkpoint is committed only when everything before it is accepted, kept by decision, or in
//! quarantine; what is trimmed is below the checkpoint's mirror. Nothing here depends on
//! [`ReplicationState`]: it is for others to read.
//!
//! Flow: few batches wait between the stages, so that memory is bounded. [`Drain::run`] runs the stages side by
//! side; [`Drain::drain_once`] is one step of all, for tests.
//!
//! Reach of a failure: an entity that cannot be read ([`parking`]), or whose schema the cloud refuses, waits
//! alone; its touches are kept in the site's database. While the cloud is away, `send` keeps its batch and
//! tries again; whatever else fails ends the round, and the next round derives its position again from the
//! durable checkpoint.
//!
//! Pauses: when an operator pauses or resumes everything or an entity, the round ends in order, as on
//! `shutdown`. While everything is paused, no round begins. A paused entity is parked for the length of a round.

mod announce;
mod baseline_notes;
mod described_tables;
mod failing_rows;
mod handshake;
mod incidents;
mod merged_touches;
mod parents;
mod parking;
mod prefetch;
mod prepare;
mod reader;
mod record;
mod replication_state;
mod resume;
mod retries;
mod send;
mod terms;
mod trimmer;
mod wire_schema;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use secrecy::SecretString;
use tokio::sync::watch;
use tokio_postgres::types::PgLsn;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::catalogue::{Catalogue, EntityIndex};
use crate::checkpoint::{Checkpoint, Store};
use crate::deliver::Cloud;
use crate::error::{Class, Code, Error, Kind, Result};
use crate::latency::Stopwatch;
use crate::liveness::Liveness;
use crate::media::MediaRoot;
use crate::retry::{Backoff, waits};
use crate::source::connect::Session;
use crate::source::identity;
use crate::source::pauses::{Pause, Pauses};
use crate::supervise::{NextRound, Supervisor};

use handshake::Handshake;
pub use incidents::{Incident, IncidentKind};
use parents::Parents;
use prepare::Preparer;
use reader::OutboxReader;
use record::Recorder;
pub use replication_state::{AcceptedKeyRecorder, Condition, Peer, ReplicationState};
use resume::same_server;
use retries::Retries;
use send::{Sender, SenderLinks};
use trimmer::Trimmer;
pub use wire_schema::wire_schema;

/// The bounds of a batch.
#[derive(Debug, Clone, Copy)]
pub struct BatchLimits {
    /// Rows at most.
    pub rows: usize,
    /// Bytes at most, but one row in any case.
    pub bytes: usize,
}

/// What a drain works on. Clones share everything.
#[derive(Clone)]
pub struct Drain {
    /// The site's database.
    pub database_url: SecretString,
    /// The configured source id.
    pub source_id: Option<String>,
    /// What is replicated.
    pub catalogue: Arc<Catalogue>,
    /// The cloud.
    pub cloud: Cloud,
    /// The checkpoint's store.
    pub store: Arc<dyn Store>,
    /// The bounds of a batch.
    pub limits: BatchLimits,
    /// The media root: what file columns name lies below it.
    pub media_root: MediaRoot,
    /// Where others see how it goes.
    pub state: Arc<ReplicationState>,
    /// How often the cloud is asked who it is and what it can do, besides after each failure.
    pub handshake_every: Duration,
}

/// A round that lasts so long was no vain one.
const LONG_ROUND: Duration = Duration::from_secs(10);

/// How often a replicator asks its cloud who it is.
pub const HANDSHAKE_EVERY: Duration = Duration::from_secs(30);

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainStep {
    /// A batch was delivered and its checkpoint committed.
    Delivered,
    /// Nothing waited.
    Idle,
}

/// A batch on its way through the drain.
struct DrainBatch {
    batch: crate::batch::Batch,
    /// The checkpoint once the batch is accepted.
    after: Checkpoint,
    /// The batch may be sent when the server's log is on its disk up to here; `None` if it is.
    wal: Option<PgLsn>,
    /// The tables as they were when the batch was read.
    schemas: Arc<described_tables::DescribedTables>,
    /// Whether it went to a server without `changes`.
    to_baseline: bool,
    stopwatch: Stopwatch,
}

/// Why a round of the stages ended without an error.
enum RoundEnd {
    /// Someone asked for it.
    Stopped,
    /// What waits has to be read again, and goes under a new term.
    NewTerm,
}

/// The stages, connected.
pub struct Stages {
    reader: OutboxReader,
    preparer: Preparer,
    sender: Sender,
    recorder: Recorder,
    trimmer: Trimmer,
    handshake: Arc<Handshake>,
    retries: Arc<Retries>,
    liveness: Liveness,
}

impl Drain {
    /// Connects the stages, at the durable checkpoint.
    ///
    /// # Errors
    /// The source's; an identity error if the checkpoint belongs to another outbox.
    pub async fn open(&self) -> Result<Stages> {
        // Side by side: a connection takes the server longer than most of what is asked on it.
        let (session, sending, recording, trimming) = futures::try_join!(
            Session::open(&self.database_url, "drain"),
            Session::open(&self.database_url, "delivery"),
            Session::open(&self.database_url, "checkpoint"),
            Session::open(&self.database_url, "space"),
        )?;
        identity::check_sequence(session.client()).await?;
        let start = self.start(&session).await?;
        self.state.accepted(start.checkpoint.clone());
        // The highest value of the sequence that the checkpoint has seen.
        let window = start.checkpoint.window.as_ref();
        let expected = window.map_or(start.checkpoint.low_water, |window| window.next_low_water);
        let (refused, refusals) = watch::channel(BTreeMap::new());
        let reader = OutboxReader::open(
            session,
            self.catalogue.clone(),
            self.limits,
            start.checkpoint.clone(),
            start.fence.clone(),
            refusals,
            self.paused_entities(&self.state.pauses()),
        )
        .await?;
        let last = reader.last_position().await?;
        if last < expected {
            return Err(outbox_is_behind(expected, last));
        }
        for session in [&sending, &recording, &trimming] {
            same_server(session.client(), &start.checkpoint).await?;
        }
        let (sending, recording) = (Arc::new(sending), Arc::new(recording));
        let handshake = Arc::new(Handshake::new(
            self.cloud.clone(),
            start.origin(),
            self.state.clone(),
            self.handshake_every,
            start.known_accepted(),
        ));
        let parents = Arc::new(Parents::new(
            recording.clone(),
            self.catalogue.clone(),
            self.cloud.clone(),
            handshake.clone(),
        ));
        let retries = Arc::new(Retries::new(
            recording.clone(),
            self.catalogue.clone(),
            handshake.clone(),
            parents.clone(),
        ));
        let recorder = Recorder::new(self, recording, &start, parents, retries.clone());
        let links = SenderLinks {
            handshake: handshake.clone(),
            retries: retries.clone(),
            refused,
            recorded: recorder.acknowledgements(),
        };
        Ok(Stages {
            reader,
            preparer: Preparer::new(self, sending.clone()),
            trimmer: Trimmer::new(trimming, recorder.mirror(), start.fence.clone()),
            sender: Sender::new(self, sending, start, links),
            recorder,
            handshake,
            retries,
            liveness: self.state.liveness.clone(),
        })
    }

    /// Drains until `shutdown`, through outages of the source and of the cloud.
    ///
    /// # Errors
    /// Only what a person must correct before anything can go on: configuration and identity.
    pub async fn run(&self, shutdown: CancellationToken) -> Result<()> {
        let supervisor = Supervisor::new("drain", Backoff::of(waits::DRAIN));
        let new_term_waits = Mutex::new(Backoff::of(waits::NEW_TERM));
        let round = async || {
            let mut follow = self.state.follow_pauses();
            let pauses = follow.borrow_and_update().clone();
            if let Some(pause) = &pauses.all {
                return Ok(self.rest(pause, &mut follow, &shutdown).await);
            }
            let stages = tokio::select! {
                () = shutdown.cancelled() => return Ok(NextRound::Never),
                stages = self.open() => stages?,
            };
            supervisor.recovered();
            let began = Instant::now();
            let stop = shutdown.child_token();
            let other_pauses = async {
                let differ = |now: &Arc<Pauses>| {
                    now.all.is_some() || self.paused_entities(now) != self.paused_entities(&pauses)
                };
                // The sender lives as long as the state.
                let _ = follow.wait_for(differ).await;
                stop.cancel();
                std::future::pending::<Infallible>().await
            };
            let ended = tokio::select! {
                ended = Box::pin(stages.run(&stop)) => ended?,
                never = other_pauses => match never {},
            };
            Ok(match ended {
                RoundEnd::Stopped if stop.is_cancelled() && !shutdown.is_cancelled() => {
                    NextRound::After(Duration::ZERO)
                }
                RoundEnd::Stopped => NextRound::Never,
                RoundEnd::NewTerm => {
                    let mut waits = new_term_waits.lock().unwrap_or_else(PoisonError::into_inner);
                    if began.elapsed() > LONG_ROUND {
                        waits.reset();
                    }
                    NextRound::After(waits.next(None))
                }
            })
        };
        let failed = |error: &Error| {
            let reason = error.to_string();
            if error.class() == Class::Fatal {
                self.state.set(Condition::Stopped { reason });
                return;
            }
            self.state.metrics.source_errors.inc();
            self.state.set(Condition::BackingOff {
                away: Peer::Source,
                reason,
            });
        };
        supervisor.run(&shutdown, failed, round).await
    }

    /// Waits until not everything is paused, or until `shutdown`.
    async fn rest(
        &self,
        pause: &Pause,
        follow: &mut watch::Receiver<Arc<Pauses>>,
        shutdown: &CancellationToken,
    ) -> NextRound {
        let reason = format!("replication is {pause}");
        tracing::info!("{reason}: nothing is sent, and capture goes on");
        self.state.set(Condition::Paused { reason });
        tokio::select! {
            () = shutdown.cancelled() => return NextRound::Never,
            // The sender lives as long as the state.
            _ = follow.wait_for(|now| now.all.is_none()) => {}
        }
        tracing::info!("replication is resumed");
        NextRound::After(Duration::ZERO)
    }

    /// The entities of the catalogue that are paused.
    fn paused_entities(&self, pauses: &Pauses) -> BTreeSet<EntityIndex> {
        let paused = |name: &str| pauses.entities.contains_key(name);
        let entities = self.catalogue.indexed();
        entities
            .filter(|(_, entity)| paused(&entity.name))
            .map(|(entity_index, _)| entity_index)
            .collect()
    }

    /// One step from the durable checkpoint: reads a batch, delivers it, commits, mirrors and trims.
    ///
    /// # Errors
    /// Any stage's; the batch then is sent again by the next step.
    pub async fn drain_once(&self) -> Result<DrainStep> {
        self.open().await?.step().await
    }

    /// Steps until nothing waits.
    ///
    /// # Errors
    /// Any stage's.
    pub async fn drain_all(&self) -> Result<()> {
        let mut stages = self.open().await?;
        while stages.step().await? == DrainStep::Delivered {}
        stages.sender.end().await;
        Ok(())
    }
}

impl Stages {
    /// One step: read, prepare, send, record, mirror, trim.
    ///
    /// # Errors
    /// Any stage's.
    pub async fn step(&mut self) -> Result<DrainStep> {
        let Some(mut batch) = self.reader.next().await? else {
            return Ok(DrainStep::Idle);
        };
        self.preparer.prepare(&mut batch).await?;
        self.sender.send_once(&mut batch).await?;
        self.recorder.record_once(batch).await?;
        self.recorder.mirror_once().await?;
        self.retries.retry_when_due().await?;
        self.trimmer.trim_once().await?;
        Ok(DrainStep::Delivered)
    }

    /// Runs the stages side by side until `shutdown`; what was accepted by then is recorded.
    ///
    /// # Errors
    /// The first stage's that fails.
    async fn run(self, shutdown: &CancellationToken) -> Result<RoundEnd> {
        let Self {
            reader,
            preparer,
            sender,
            recorder,
            trimmer,
            handshake,
            retries,
            liveness,
        } = self;
        let (batches, read) = tokio::sync::mpsc::channel(1);
        let (answered, to_record) = tokio::sync::mpsc::channel(1);
        let (sending, recording) = (shutdown.child_token(), CancellationToken::new());
        let asking = CancellationToken::new();
        // A stage that ends drops its channel, and the next one ends after it has taken what is left.
        let ((), ended, (), (), (), ()) = futures::try_join!(
            in_a_task(&liveness, "reader", reader.run(batches, sending.clone())),
            async {
                let sender = sender.run(preparer.prepared(read), answered, shutdown.clone());
                let ended = in_a_task(&liveness, "sender", sender).await;
                sending.cancel();
                asking.cancel();
                ended
            },
            async {
                let recorded = in_a_task(&liveness, "recorder", recorder.run(to_record)).await;
                recording.cancel();
                recorded
            },
            trimmer.run(&recording),
            handshake.run(&asking),
            retries.run(&asking),
        )?;
        Ok(ended)
    }
}

/// Runs a stage as a task of its own, which ends with the future: stages have cores of their own, and a stage
/// that is woken for each few rows that come is woken on the thread where they came.
async fn in_a_task<T: Send + 'static>(
    liveness: &Liveness,
    name: &'static str,
    stage: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let liveness = liveness.clone();
    let stage = async move { liveness.answering(name, stage).await };
    match AbortOnDropHandle::new(tokio::spawn(stage)).await {
        Ok(ended) => ended,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// The error of an outbox that has not come as far as its own checkpoint: changes below it would never be
/// read.
fn outbox_is_behind(expected: crate::change::Position, last: crate::change::Position) -> Error {
    Error::new(
        Kind::Identity,
        "resume from the checkpoint",
        format!(
            "it is at position {expected}, and the outbox has only come to {last}: an older state of the \
             database was restored"
        ),
    )
    .with_code(Code::OutboxBehind)
    .remedy("run `cloud-sync init --new-epoch` and start the replicator again")
}
