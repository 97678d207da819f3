//! A backlog of 100,000 one-row transactions: how long until it is in the cloud, and what that costs in memory and CPU.

use std::time::Instant;

use crate::load::{LoadTable, Writers};
use crate::servers::{Server, World};
use crate::site::Site;
use crate::subscription::{Subscription, SubscriptionPlan};
use crate::table::{Row, Samples, Target, Unit};
use crate::{Outcome, Progress};

const CHANGES: u64 = 100_000;
const WRITERS: u64 = 8;

/// Both sides count from their start until the last row is visible.
pub(crate) async fn backlog(world: &World, progress: &Progress<'_>) -> Outcome<Vec<Row>> {
    let logs = LoadTable::logs("logs");
    let site = Site::with_logs(world).await?;
    // The cloud has made its table.
    site.replicator_at_work(&logs).await?.end().await?;
    let peer = Subscription::new(world, SubscriptionPlan::logs()).await?;
    let (mut ours, mut theirs, mut memory) = (Samples::default(), Samples::default(), Samples::default());
    let mut spent: [Samples; 4] = Default::default();
    let mut peer_spent: [Samples; 2] = Default::default();
    for run in progress.runs() {
        progress.run(run, "writing the backlog of cloud-sync");
        write(&world.source, &site.name).await?;
        let all = site.goal_with_last_row(&logs).await?;
        world.settle().await?;
        progress.run(run, "cloud-sync");
        let before = site.cpu();
        let start = Instant::now();
        let replicator = site.replicator()?;
        ours.push((site.reached(&all).await? - start).as_secs_f64());
        memory.push(replicator.peak());
        let after = site.cpu();
        for (index, samples) in spent.iter_mut().take(3).enumerate() {
            samples.push(after[index] - before[index]);
        }
        spent[3].push(replicator.cpu());
        replicator.end().await?;

        progress.run(run, "writing the backlog of logical replication");
        // What was written for us is none of its backlog.
        peer.resume_and_catch_up().await?;
        peer.pause().await?;
        write(&world.publisher, &peer.name).await?;
        let all = peer.goal_with_last_row().await?;
        world.settle().await?;
        progress.run(run, "logical replication");
        let before = peer.cpu();
        let start = Instant::now();
        peer.resume().await?;
        theirs.push((peer.reached(&all).await? - start).as_secs_f64());
        let after = peer.cpu();
        for (index, samples) in peer_spent.iter_mut().enumerate() {
            samples.push(after[index] - before[index]);
        }
        peer.pause().await?;
    }
    peer.end().await?;
    site.end().await?;
    let [source, cloud, receiver, replicator] = spent.each_ref().map(Samples::median);
    let [peer_source, peer_cloud] = peer_spent.each_ref().map(Samples::median);
    let by_process = format!(
        "source server {source:.2}, replicator {replicator:.2}, receiver {receiver:.2}, cloud server {cloud:.2}; \
         logical replication: source server {peer_source:.2}, cloud server {peer_cloud:.2}."
    );
    Ok(vec![
        Row::new("backlog", "100,000 one-row transactions", Unit::Seconds, ours)
            .peer("logical replication", theirs)
            .target(Target::RatioAtMost(0.5))
            .note(
                "from the start of `run`, and from ALTER SUBSCRIPTION … ENABLE, until all rows are visible.",
            ),
        Row::new(
            "backlog",
            "its CPU seconds, all processes",
            Unit::Seconds,
            Samples::sum(&spent),
        )
        .peer("logical replication", Samples::sum(&peer_spent))
        .note(by_process),
        Row::new(
            "backlog",
            "its peak memory, the replicator's",
            Unit::Mebibytes,
            memory,
        ),
    ])
}

async fn write(server: &Server, database: &str) -> Outcome<()> {
    let writers = Writers {
        server,
        database,
        clients: WRITERS,
    };
    writers.commit_rows(&LoadTable::logs("logs"), CHANGES).await
}
