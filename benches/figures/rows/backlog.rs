//! A backlog of 100,000 one-row transactions: how long until it is in the cloud, and what that costs in CPU
//! and in memory of each process.

use std::time::Instant;

use crate::Outcome;
use crate::load::{LoadTable, Writers};
use crate::memory::{PeakMemory, PeerMemory};
use crate::progress::Progress;
use crate::servers::{Server, World};
use crate::site::Site;
use crate::subscription::{Subscription, SubscriptionPlan};
use crate::table::{Row, Samples, Target, Unit};

const CHANGES: u64 = 100_000;
const WRITERS: u64 = 8;

/// Each side counts from its start until the last row is visible. The peer is measured twice: with its own
/// default, where the subscriber confirms what is not on its disk yet, and durable, as the receiver is.
pub(crate) async fn backlog(world: &World, progress: &Progress<'_>) -> Outcome<Vec<Row>> {
    let logs = LoadTable::logs("logs");
    let site = Site::with_logs(world).await?;
    // The cloud has made its table.
    site.replicator_at_work(&logs).await?.end().await?;
    let peer = Subscription::new(world, SubscriptionPlan::logs()).await?;
    let durable = SubscriptionPlan {
        durable: true,
        ..SubscriptionPlan::logs()
    };
    let durable = Subscription::new(world, durable).await?;
    let (mut ours, mut memory) = (Samples::default(), PeakMemory::default());
    let mut spent: [Samples; 4] = Default::default();
    let (mut by_default, mut by_durable) = (PeerFigures::default(), PeerFigures::default());
    for run in progress.runs() {
        progress.run(run, "writing the backlog of cloud-sync");
        write(&world.source, &site.name).await?;
        let all = site.goal_with_last_row(&logs).await?;
        world.settle().await?;
        progress.run(run, "cloud-sync");
        site.receiver.reset_peak()?;
        let before = site.cpu();
        let start = Instant::now();
        let replicator = site.replicator()?;
        let reached = site.reached(&all).await?;
        ours.push((reached - start).as_secs_f64());
        let after = site.cpu();
        for (index, samples) in spent.iter_mut().take(3).enumerate() {
            samples.push(after[index] - before[index]);
        }
        spent[3].push(replicator.cpu());
        memory.take(&site, &replicator).await?;
        replicator.end().await?;

        progress.run(run, "logical replication");
        by_default.measure(world, &peer).await?;
        progress.run(run, "logical replication, durable");
        by_durable.measure(world, &durable).await?;
    }
    durable.end().await?;
    peer.end().await?;
    site.end().await?;
    let [source, cloud, receiver, replicator] = spent.each_ref().map(Samples::median);
    let [publisher, subscriber] = by_default.spent.each_ref().map(Samples::median);
    let by_process = format!(
        "source server {source:.2}, replicator {replicator:.2}, receiver {receiver:.2}, \
         cloud server {cloud:.2}; \
         logical replication: publisher's server {publisher:.2}, cloud server {subscriber:.2}."
    );
    let spent = Samples::sum(&spent);
    let mut rows = vec![
        Row::new(
            "backlog",
            "100,000 one-row transactions",
            Unit::Seconds,
            ours.clone(),
        )
        .peer("logical replication", by_default.seconds)
        .target(Target::RatioAtMost(0.45))
        .note("from the start of `run`, and from ALTER SUBSCRIPTION … ENABLE, until all rows are visible."),
        Row::new("backlog", "the same beside a durable peer", Unit::Seconds, ours)
            .peer("logical replication, durable", by_durable.seconds)
            .target(Target::RatioAtMost(0.1))
            .note(
                "a subscription with synchronous_commit = on: it confirms what is \
                 on disk, as the receiver does.",
            ),
        Row::new("backlog", "its CPU seconds, all processes", Unit::Seconds, spent)
            .peer("logical replication", Samples::sum(&by_default.spent))
            .target(Target::RatioAtMost(0.4))
            .note(by_process),
    ];
    rows.extend(memory.rows("backlog", "100,000 transactions", Some(by_default.memory)));
    Ok(rows)
}

/// What a subscription took, run by run.
#[derive(Default)]
struct PeerFigures {
    seconds: Samples,
    /// CPU of the publisher's server, and of the cloud's.
    spent: [Samples; 2],
    memory: PeerMemory,
}

impl PeerFigures {
    async fn measure(&mut self, world: &World, peer: &Subscription<'_>) -> Outcome<()> {
        // What was written for others is none of its backlog.
        peer.resume_and_catch_up().await?;
        peer.pause().await?;
        write(&world.publisher, &peer.name).await?;
        let all = peer.goal_with_last_row().await?;
        world.settle().await?;
        let before = peer.cpu();
        let start = Instant::now();
        peer.resume().await?;
        let reached = peer.reached(&all).await?;
        self.seconds.push((reached - start).as_secs_f64());
        let after = peer.cpu();
        for (index, samples) in self.spent.iter_mut().enumerate() {
            samples.push(after[index] - before[index]);
        }
        self.memory.take(peer).await?;
        peer.pause().await
    }
}

/// Commits the backlog.
pub(super) async fn write(server: &Server, database: &str) -> Outcome<()> {
    let writers = Writers {
        server,
        database,
        clients: WRITERS,
    };
    writers.commit_rows(&LoadTable::logs("logs"), CHANGES).await
}
