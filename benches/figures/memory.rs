//! The memory of every process between a site's tables and the cloud's.
//!
//! A peak is the kernel's high-water mark of resident memory, in MiB. For PostgreSQL's backends it includes
//! the pages of shared buffers that the backend has touched, which all backends share: their sum counts such
//! a page several times.

use tokio_postgres::Client;

use crate::Outcome;
use crate::process::{self, Process};
use crate::site::Site;
use crate::subscription::Subscription;
use crate::table::{Row, Samples, Unit};

/// Backends that belong to one of our processes, in one database.
const BACKENDS: &str = "select pid from pg_stat_activity \
     where datname = current_database() and application_name like 'cloud-sync%'";

/// The peaks of cloud-sync, run by run.
#[derive(Default)]
pub(crate) struct PeakMemory {
    pub(crate) replicator: Samples,
    pub(crate) receiver: Samples,
    source_backends: Samples,
    cloud_backends: Samples,
}

/// The peaks of a subscription, run by run.
#[derive(Default)]
pub(crate) struct PeerMemory {
    sender: Samples,
    worker: Samples,
}

impl PeakMemory {
    /// Takes the peaks of a run that has ended; the replicator still runs.
    pub(crate) async fn take(&mut self, site: &Site<'_>, replicator: &Process) -> Outcome<()> {
        self.replicator.push(replicator.peak());
        self.receiver.push(site.receiver.peak());
        self.source_backends.push(peak(&backends(&site.source).await?));
        self.cloud_backends.push(peak(&backends(&site.cloud).await?));
        Ok(())
    }

    /// The lines of the table; `what` says in which work.
    pub(crate) fn rows(self, row: &'static str, what: &str, peer: Option<PeerMemory>) -> Vec<Row> {
        let line = |process: &str, samples| {
            Row::new(
                row,
                format!("{what}, peak memory of {process}"),
                Unit::Mebibytes,
                samples,
            )
        };
        let mut replicator = line("the replicator", self.replicator);
        let mut receiver = line("the receiver", self.receiver);
        if let Some(peer) = peer {
            replicator = replicator.peer("WAL sender", peer.sender);
            receiver = receiver.peer("apply worker", peer.worker);
        }
        vec![
            replicator,
            receiver,
            line("the replicator's backends", self.source_backends),
            line("the receiver's backends", self.cloud_backends).note(
                "a backend's memory includes the shared buffers that it has touched, \
                     as the peer's processes' does.",
            ),
        ]
    }
}

impl PeerMemory {
    /// Takes the peaks of a run that has ended; the subscription is still enabled.
    pub(crate) async fn take(&mut self, peer: &Subscription<'_>) -> Outcome<()> {
        let [sender, worker] = peer.processes().await?;
        self.sender.push(process::peak(sender));
        self.worker.push(process::peak(worker));
        Ok(())
    }
}

/// The processes of the backends that serve the replicator, or the receiver, in the client's database.
pub(crate) async fn backends(client: &Client) -> Outcome<Vec<u32>> {
    let rows = client.query(BACKENDS, &[]).await?;
    rows.iter()
        .map(|row| Ok(u32::try_from(row.get::<_, i32>(0))?))
        .collect()
}

fn peak(pids: &[u32]) -> f64 {
    pids.iter().map(|&pid| process::peak(pid)).sum()
}
