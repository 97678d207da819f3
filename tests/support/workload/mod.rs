//! A workload: writers of every kind against one site, and an audit of what they committed.

pub(crate) mod audit;
mod definitions;
mod kinds;
mod rows;
mod schema;
mod writer;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub(crate) use audit::audited;
pub(crate) use schema::{ENTITIES, TABLES};

use super::postgres::Server;
use super::site::{KEY, Site};
use writer::Writer;

/// What a workload needs of a server: writers prepare transactions, and a crash takes back all that no commit
/// has written.
pub(crate) const SERVER_OPTIONS: [&str; 2] = ["max_prepared_transactions=20", "wal_writer_delay=10s"];

/// What the writers of a workload do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WorkloadScope {
    /// Transactions on pots and leaves.
    Rows,
    /// Every kind of transaction, on all tables of the workload.
    EveryKind,
    /// The same, while one writer changes the definitions of tables.
    Definitions,
}

/// The site of a workload on pots and leaves, with its audit, on this server.
pub(crate) async fn site(server: &Server, hint: &str, cloud_url: &str) -> Site {
    let (tables, entities) = (TABLES, ENTITIES);
    audited_site(server, hint, cloud_url, tables, entities).await
}

/// The same with the tables of every kind.
pub(crate) async fn site_of_every_kind(server: &Server, hint: &str, cloud_url: &str) -> Site {
    let (tables, entities) = schema::every_kind();
    audited_site(server, hint, cloud_url, &tables, &entities).await
}

async fn audited_site(server: &Server, hint: &str, cloud_url: &str, tables: &str, entities: &str) -> Site {
    let site = Site::bare_on(server, hint, cloud_url, KEY, tables, entities).await;
    site.init().await;
    site.run(audit::AUDIT).await;
    site.run("insert into pot values (1, 'hot', 0)").await;
    site
}

/// How many writers a workload has.
const WRITERS: u64 = 8;

/// How many transactions of each kind were committed, and how many failed: on a key, a lock or a deadlock.
#[derive(Debug, Clone, Default)]
pub(crate) struct TransactionCounts(BTreeMap<&'static str, (u64, u64)>);

impl TransactionCounts {
    /// How many were committed.
    pub(crate) fn committed(&self) -> u64 {
        self.0.values().map(|(committed, _)| committed).sum()
    }

    /// Adds those of another workload.
    pub(crate) fn add(&mut self, other: &Self) {
        for (kind, (committed, failed)) in &other.0 {
            let counts = self.0.entry(kind).or_default();
            counts.0 += committed;
            counts.1 += failed;
        }
    }
}

impl fmt::Display for TransactionCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, (committed, failed)) in &self.0 {
            writeln!(f, "  {kind}: {committed} committed, {failed} failed")?;
        }
        Ok(())
    }
}

/// Writers at work.
pub(crate) struct Workload {
    stop: CancellationToken,
    writers: JoinSet<()>,
    counts: Arc<Mutex<TransactionCounts>>,
}

impl Workload {
    /// Starts the writers; the same seed starts the same ones.
    pub(crate) fn start(url: &str, seed: u64, scope: WorkloadScope) -> Self {
        let stop = CancellationToken::new();
        let counts = Arc::new(Mutex::default());
        let mut writers = JoinSet::new();
        for number in 0..WRITERS {
            let writer = Writer {
                number,
                scope,
                url: url.to_owned(),
                stop: stop.clone(),
                rng: StdRng::seed_from_u64(seed.wrapping_mul(31).wrapping_add(number)),
                counts: Arc::clone(&counts),
                merge: false,
                prepared: Vec::new(),
            };
            writers.spawn(writer.run());
        }
        Self {
            stop,
            writers,
            counts,
        }
    }

    /// Ends them, with nothing left open or prepared. Returns what they did.
    pub(crate) async fn end(mut self) -> TransactionCounts {
        self.stop.cancel();
        while let Some(ended) = self.writers.join_next().await {
            ended.unwrap();
        }
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
