//! Drains the outbox: reads a batch, delivers it, commits the checkpoint, trims; over and over.
//!
//! Invariants: batches leave in the order in which they were read; nothing leaves that is not on the source's disk; a checkpoint is committed only
//! when all before it is accepted, kept by decision, or in quarantine; what is trimmed is below the checkpoint's mirror.
//!
//! Flow: [`reader`] reads batches, [`prepare`] makes them ready, [`sender`] delivers them, [`committer`] commits; [`trimmer`] gives
//! space back. Few batches wait between them, so that memory is bounded. Several are on their way to a cloud that takes them in
//! order only ([`prefetch`]); at most these are sent again after a crash.
//! [`Drain::drain_once`] is one step of all, for tests and for one-shot commands; [`Drain::run`] runs them side by side.
//!
//! Reach: an entity that cannot be read ([`parking`]), or whose schema the cloud refuses ([`announce`]), waits alone; its touches are
//! kept in the site's database.
//!
//! Failure: while the cloud is away the courier keeps its batch and tries again; whatever else fails ends the round, and
//! the next round derives its position again from the durable checkpoint.

mod announce;
mod aside;
mod baseline;
mod committer;
mod merged_touches;
mod parking;
mod prefetch;
mod prepare;
mod reader;
mod replication_state;
mod resume;
mod schema;
mod sender;
mod table_schemas;
mod terms;
mod trimmer;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use secrecy::SecretString;
use tokio::sync::watch;
use tokio_postgres::types::PgLsn;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::catalogue::Catalogue;
use crate::checkpoint::{Checkpoint, Store};
use crate::deliver::{ChangeOrigin, Cloud};
use crate::error::{Class, Error, Kind, Result};
use crate::latency::Stopwatch;
use crate::retry::{Backoff, FailureLog};
use crate::source::connect::Session;
use crate::source::identity;

use committer::Committer;
use prepare::Preparer;
use reader::OutboxReader;
pub use replication_state::{AcceptedKeyRecorder, Condition, Peer, ReplicationState};
use resume::same_server;
pub use schema::wire_schema;
use sender::Sender;
use trimmer::Trimmer;

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
    pub media_root: PathBuf,
    /// Where others see how it goes.
    pub pulse: Arc<ReplicationState>,
    /// How often the cloud is asked who it is and what it can do, beside after each failure.
    pub greet_every: Duration,
}

/// A round that lasts so long was no vain one.
const LONG_ROUND: Duration = Duration::from_secs(10);

/// How often a replicator asks its cloud who it is.
pub const GREET_EVERY: Duration = Duration::from_secs(30);

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainStep {
    /// A batch was delivered and its checkpoint committed.
    Delivered,
    /// Nothing waited.
    Idle,
}

/// A batch on its way through the drain.
struct BatchInFlight {
    batch: crate::batch::Batch,
    /// The checkpoint once the batch is accepted.
    after: Checkpoint,
    /// The batch may be sent when the server's log is on its disk up to here; none where it is.
    wal: Option<PgLsn>,
    /// The tables as they were when the batch was read.
    shapes: Arc<table_schemas::TableSchemas>,
    stopwatch: Stopwatch,
}

impl BatchInFlight {
    fn accepted(self) -> AcceptedBatch {
        AcceptedBatch {
            checkpoint: self.after,
            stopwatch: self.stopwatch.pushed(self.batch.answered()),
        }
    }
}

/// What the cloud has accepted, to be committed.
struct AcceptedBatch {
    checkpoint: Checkpoint,
    stopwatch: Stopwatch,
}

/// Why a round of the stages ended without an error.
enum RoundEnd {
    /// It was told to.
    Stopped,
    /// What waits has to be read again, and goes under a new term.
    NewTerm,
}

/// The stages, connected.
pub struct Stages {
    reader: OutboxReader,
    packer: Preparer,
    courier: Sender,
    committer: Committer,
    trimmer: Trimmer,
}

impl Drain {
    /// Connects the stages, at the durable checkpoint.
    ///
    /// # Errors
    /// The source's; an identity error where the checkpoint belongs to another outbox.
    pub async fn open(&self) -> Result<Stages> {
        // Side by side: a connection takes the server longer than most of what is asked on it.
        let (session, delivery, checkpoint, space) = futures::try_join!(
            Session::open(&self.database_url, "drain"),
            Session::open(&self.database_url, "delivery"),
            Session::open(&self.database_url, "checkpoint"),
            Session::open(&self.database_url, "space"),
        )?;
        identity::check_sequence(session.client()).await?;
        let start = self.start(&session).await?;
        self.pulse.accepted(start.checkpoint.clone());
        if let Some(mirror) = &start.mirror {
            self.pulse.mirrored(mirror.clone());
        }
        let identity = &start.checkpoint.identity;
        let origin = ChangeOrigin {
            source_id: identity.source_id.clone(),
            epoch: identity.epoch,
            database: identity.database(),
        };
        // The highest value of the sequence that the checkpoint has seen.
        let window = start.checkpoint.window.as_ref();
        let expected = window.map_or(start.checkpoint.floor, |window| window.next_floor);
        let (refused, refusals) = watch::channel(BTreeMap::new());
        let reader = OutboxReader::open(
            session,
            self.catalogue.clone(),
            self.limits,
            start.checkpoint.clone(),
            start.fence.clone(),
            refusals,
        )
        .await?;
        if reader.last_position().await? < expected {
            return Err(outbox_is_behind(expected, reader.last_position().await?));
        }
        for session in [&delivery, &checkpoint, &space] {
            same_server(session.client(), &start.checkpoint).await?;
        }
        let delivery = Arc::new(delivery);
        let packer = Preparer::new(self, delivery.clone());
        let committer = Committer::new(self, checkpoint, &start.checkpoint, start.fence.clone());
        let trimmer = Trimmer::new(space, self.pulse.clone(), start.fence.clone());
        let courier = Sender::new(self, delivery, origin, start, refused);
        Ok(Stages {
            reader,
            packer,
            courier,
            committer,
            trimmer,
        })
    }

    /// Drains until `shutdown`, through outages of the source and of the cloud.
    ///
    /// # Errors
    /// Only what a person must mend before anything can go on: configuration and identity.
    pub async fn run(&self, shutdown: CancellationToken) -> Result<()> {
        let mut backoff = Backoff::within(Duration::from_millis(100), Duration::from_secs(10));
        let mut terms = Backoff::within(Duration::from_millis(10), Duration::from_secs(10));
        let mut repeats = FailureLog::new("drain");
        while !shutdown.is_cancelled() {
            let round = async {
                let stages = tokio::select! {
                    () = shutdown.cancelled() => return Ok(RoundEnd::Stopped),
                    stages = self.open() => stages?,
                };
                backoff.reset();
                repeats.recovered();
                stages.run(&shutdown).await
            };
            let began = Instant::now();
            let error = match round.await {
                Ok(RoundEnd::Stopped) => break,
                Ok(RoundEnd::NewTerm) => {
                    if began.elapsed() > LONG_ROUND {
                        terms.reset();
                    }
                    wait(terms.next(None), &shutdown).await;
                    continue;
                }
                Err(error) => error,
            };
            if error.class() == Class::Fatal {
                self.pulse.set(Condition::Stopped {
                    reason: error.to_string(),
                });
                return Err(error);
            }
            self.pulse.metrics.source_errors.inc();
            repeats.failed(&error);
            self.pulse.set(Condition::BackingOff {
                away: Peer::Source,
                reason: error.to_string(),
            });
            wait(backoff.next(None), &shutdown).await;
        }
        Ok(())
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
        stages.courier.end().await;
        Ok(())
    }
}

impl Stages {
    /// One step: read, deliver, commit, mirror, trim.
    ///
    /// # Errors
    /// Any stage's.
    pub async fn step(&mut self) -> Result<DrainStep> {
        let Some(mut portion) = self.reader.next().await? else {
            return Ok(DrainStep::Idle);
        };
        self.packer.pack(&mut portion).await?;
        self.courier.deliver_once(&mut portion).await?;
        self.committer.commit(portion.accepted()).await?;
        self.committer.mirror().await?;
        self.trimmer.trim_once().await?;
        Ok(DrainStep::Delivered)
    }

    /// Runs the stages side by side until `shutdown`; what was accepted by then is committed and mirrored.
    ///
    /// # Errors
    /// The first stage's that fails.
    async fn run(self, shutdown: &CancellationToken) -> Result<RoundEnd> {
        let Self {
            reader,
            packer,
            courier,
            committer,
            trimmer,
        } = self;
        let (batches, read) = tokio::sync::mpsc::channel(1);
        let (accepted, delivered) = tokio::sync::mpsc::channel(1);
        let (reading, trimming) = (shutdown.child_token(), CancellationToken::new());
        // A stage that ends drops its channel, and the next one ends after it has taken what is left.
        let ((), ended, (), ()) = futures::try_join!(
            in_a_task(reader.run(batches, reading.clone())),
            async {
                let ended = courier.run(packer.packed(read), accepted, shutdown).await;
                reading.cancel();
                ended
            },
            async {
                let committed = committer.run(delivered).await;
                trimming.cancel();
                committed
            },
            trimmer.run(&trimming),
        )?;
        Ok(ended)
    }
}

/// Waits so long, or until `shutdown`.
async fn wait(time: Duration, shutdown: &CancellationToken) {
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        () = shutdown.cancelled() => {}
    }
}

/// Runs a stage as a task of its own, which ends with the future. The reader is woken for each few rows that come: a task is woken
/// on the thread where they came, and two stages have two cores.
async fn in_a_task(stage: impl Future<Output = Result<()>> + Send + 'static) -> Result<()> {
    match AbortOnDropHandle::new(tokio::spawn(stage)).await {
        Ok(ended) => ended,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// The error of an outbox that has not come as far as its own checkpoint: changes below it would never be read.
fn outbox_is_behind(expected: crate::change::Position, last: crate::change::Position) -> Error {
    Error::new(
        Kind::Identity,
        "resume from the checkpoint",
        format!(
            "it stands at position {expected}, and the outbox has only come to {last}: an older state of the \
             database was restored"
        ),
    )
    .remedy("run `cloud-sync init --new-epoch` and start the replicator again")
}
