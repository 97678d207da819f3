//! Drains the outbox: reads a batch, delivers it, commits the checkpoint, trims; over and over.
//!
//! Invariants: changes leave in the order of windows, and of positions within a window; a checkpoint is committed only
//! when all before it is accepted, kept by decision, or in quarantine; what is trimmed is below the checkpoint's mirror.
//!
//! Flow: [`reader`] reads batches, [`packer`] makes them ready, [`courier`] delivers them, [`committer`] commits. Each
//! works on a batch of its own, and few wait between them, so that memory is bounded. The cloud can accept a batch only
//! after the one before it is committed: at most one accepted batch is sent again after a crash. [`Drain::drain_once`]
//! is one step of all, for tests and for one-shot commands; [`Drain::run`] runs them side by side.
//!
//! Failure: while the cloud is away the courier keeps its batch and tries again; whatever else fails ends the round, and
//! the next round derives its position again from the durable checkpoint.

mod coming;
mod committer;
mod courier;
mod packer;
mod pulse;
mod reader;
mod resume;
mod schema;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use tokio_postgres::types::PgLsn;
use tokio_util::sync::CancellationToken;

use crate::catalogue::Catalogue;
use crate::change::Position;
use crate::checkpoint::{Checkpoint, Store};
use crate::deliver::{Cloud, Origin};
use crate::error::{Class, Error, Kind, Result};
use crate::latency::Stopwatch;
use crate::retry::{Backoff, Repeats};
use crate::source::connect::Session;
use crate::source::identity;

use committer::Committer;
use courier::Courier;
use packer::Packer;
pub use pulse::{Condition, Pulse, Side};
use reader::Reader;
use resume::{history_is_lost, same_run};
pub use schema::wire_schema;

/// The bounds of a batch.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
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
    pub limits: Limits,
    /// The media root: what file columns name lies below it.
    pub media_root: PathBuf,
    /// Where others see how it goes.
    pub pulse: Arc<Pulse>,
    /// How often the cloud is asked who it is and what it can do, beside after each failure.
    pub greet_every: Duration,
}

/// How often a replicator asks its cloud who it is.
pub const GREET_EVERY: Duration = Duration::from_secs(30);

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A batch was delivered and its checkpoint committed.
    Delivered,
    /// Nothing waited.
    Idle,
}

/// A batch on its way through the drain.
struct Portion {
    batch: crate::batch::Batch,
    /// The checkpoint once the batch is accepted.
    after: Checkpoint,
    /// All of the batch lies before this place of the server's log.
    wal: PgLsn,
    /// The tables as they were when the batch was read.
    shapes: Arc<reader::Shapes>,
    stopwatch: Stopwatch,
}

impl Portion {
    fn accepted(self) -> Accepted {
        Accepted {
            checkpoint: self.after,
            wal: self.wal,
            stopwatch: self.stopwatch.pushed(self.batch.answered()),
        }
    }
}

/// What the cloud has accepted, to be committed.
struct Accepted {
    checkpoint: Checkpoint,
    wal: PgLsn,
    stopwatch: Stopwatch,
}

/// The stages, connected.
pub struct Stages {
    reader: Reader,
    packer: Packer,
    courier: Courier,
    committer: Committer,
}

impl Drain {
    /// Connects the stages, at the durable checkpoint.
    ///
    /// # Errors
    /// The source's; an identity error where the checkpoint belongs to another outbox.
    pub async fn open(&self) -> Result<Stages> {
        // Side by side: a connection takes the server longer than most of what is asked on it.
        let (session, delivery, checkpoint) = futures::try_join!(
            Session::open(&self.database_url, "drain"),
            Session::open(&self.database_url, "delivery"),
            Session::open(&self.database_url, "checkpoint"),
        )?;
        let identity = identity::read(session.client(), self.source_id.as_deref()).await?;
        identity::check_sequence(session.client()).await?;
        let run = identity::run(session.client()).await?;
        let (start, limit) = self.start(&session, &identity, &run).await?;
        self.pulse.accepted(start.clone());
        let origin = Origin {
            source_id: identity.source_id.clone(),
            epoch: identity.epoch,
        };
        // The highest value of the sequence that the checkpoint has seen.
        let expected = start
            .window
            .as_ref()
            .map_or(start.floor, |window| window.next_floor);
        let begun = start.clone();
        let reader = Reader::open(session, self.catalogue.clone(), self.limits, start).await?;
        if reader.last_position() < expected {
            return Err(outbox_is_behind(expected, reader.last_position()));
        }
        for session in [&delivery, &checkpoint] {
            same_run(session.client(), &run).await?;
        }
        let delivery = Arc::new(delivery);
        let packer = Packer::new(self, delivery.clone());
        let courier = Courier::new(self, delivery, origin, &begun, reader.last_position(), limit);
        let committer = Committer::new(self, checkpoint);
        Ok(Stages {
            reader,
            packer,
            courier,
            committer,
        })
    }

    /// Drains until `shutdown`, through outages of the source and of the cloud.
    ///
    /// # Errors
    /// Only what a person must mend before anything can go on: configuration and identity.
    pub async fn run(&self, shutdown: CancellationToken) -> Result<()> {
        let mut backoff = Backoff::within(Duration::from_millis(100), Duration::from_secs(10));
        let mut repeats = Repeats::new("drain");
        while !shutdown.is_cancelled() {
            let round = async {
                let stages = tokio::select! {
                    () = shutdown.cancelled() => return Ok(()),
                    stages = self.open() => stages?,
                };
                backoff.reset();
                repeats.recovered();
                stages.run(&shutdown).await
            };
            let Err(error) = round.await else { break };
            if error.class() == Class::Fatal {
                self.pulse.set(Condition::Stopped {
                    reason: error.to_string(),
                });
                return Err(error);
            }
            self.pulse.metrics.source_errors.inc();
            repeats.failed(&error);
            self.pulse.set(Condition::BackingOff {
                away: Side::Source,
                reason: error.to_string(),
            });
            tokio::select! {
                () = tokio::time::sleep(backoff.next(None)) => {}
                () = shutdown.cancelled() => {}
            }
        }
        Ok(())
    }

    /// One step from the durable checkpoint: reads a batch, delivers it, commits, mirrors and trims.
    ///
    /// # Errors
    /// Any stage's; the batch then is sent again by the next step.
    pub async fn drain_once(&self) -> Result<Step> {
        self.open().await?.step().await
    }

    /// Steps until nothing waits.
    ///
    /// # Errors
    /// Any stage's.
    pub async fn drain_all(&self) -> Result<()> {
        let mut stages = self.open().await?;
        while stages.step().await? == Step::Delivered {}
        Ok(())
    }
}

impl Stages {
    /// One step: read, deliver, commit, mirror, trim.
    ///
    /// # Errors
    /// Any stage's.
    pub async fn step(&mut self) -> Result<Step> {
        let Some(mut portion) = self.reader.next().await? else {
            return Ok(Step::Idle);
        };
        self.packer.pack(&mut portion).await?;
        self.courier.deliver_once(&mut portion).await?;
        self.committer.commit(portion.accepted()).await?;
        self.committer.mirror_and_trim().await?;
        Ok(Step::Delivered)
    }

    /// Runs the stages side by side until `shutdown`; what was accepted by then is committed and mirrored.
    ///
    /// # Errors
    /// The first stage's that fails.
    async fn run(self, shutdown: &CancellationToken) -> Result<()> {
        let Self {
            reader,
            packer,
            courier,
            committer,
        } = self;
        let (batches, read) = tokio::sync::mpsc::channel(1);
        let (accepted, delivered) = tokio::sync::mpsc::channel(1);
        // A stage that ends drops its channel, and the next one ends after it has taken what is left.
        futures::try_join!(
            reader.run(batches, shutdown),
            courier.run(packer.packed(read), accepted, shutdown),
            committer.run(delivered),
        )?;
        Ok(())
    }
}

/// The error of an outbox that has not come as far as its own checkpoint: changes below it would never be read.
fn outbox_is_behind(expected: Position, last: Position) -> Error {
    Error::new(
        Kind::Identity,
        "resume from the checkpoint",
        format!(
            "it stands at position {expected}, and the outbox has only come to {last}: an older state of the \
             database was restored"
        ),
    )
    .remedy(
        "run `cloud-sync init --new-epoch`, then `cloud-sync sync --force`, then start the replicator again",
    )
}

/// What is said of a cloud that has less of this outbox than it had accepted.
fn cloud_is_behind(expected: Position, found: Option<Position>) -> String {
    let found = found.map_or("has nothing of this source".to_owned(), |found| {
        format!("knows it only up to {found}")
    });
    format!(
        "the cloud has accepted position {expected} from this source, and now {found}: an older state of it was \
         restored, or it is another one; the replicator syncs to repair its rows; if its files were lost too, run \
         `cloud-sync sync --force`"
    )
}

/// The error of a cloud that has seen more of this outbox than the outbox has.
fn cloud_is_ahead(position: Position, last: Position) -> Error {
    Error::new(
        Kind::Identity,
        "deliver to the cloud",
        format!(
            "the cloud has accepted position {position} from this source, and the outbox has only come to {last}: \
             it is not the outbox that the cloud knows"
        ),
    )
    .remedy("if the outbox was made anew or the database restored, run `cloud-sync init --new-epoch`, then `cloud-sync sync --force`, then start the replicator again")
}
