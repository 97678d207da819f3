//! One insert of 300,000 rows: what capture adds to it, and how soon its rows are in the cloud.

use std::time::Instant;

use tokio_postgres::Client;

use crate::Outcome;
use crate::load::{self, LoadTable, many_rows};
use crate::memory::PeakMemory;
use crate::peers;
use crate::progress::Progress;
use crate::servers::World;
use crate::site::Site;
use crate::subscription::{Subscription, SubscriptionPlan};
use crate::table::{Row, Samples, Target, Unit};

const ROWS: u64 = 300_000;

/// A run's inserts with capture and those without alternate, so that both see the machine as fast as it then
/// is.
const TURNS: u64 = 3;

/// The insert itself, while the replicator is stopped.
pub(crate) async fn bulk(world: &World, progress: &Progress<'_>) -> Outcome<Vec<Row>> {
    let site = Site::with_logs(world).await?;
    let (mut bare, mut captured) = (Samples::default(), Samples::default());
    let (mut bare_log, mut captured_log) = (Samples::default(), Samples::default());
    for run in progress.runs() {
        progress.run(run, "with capture and without, in turns");
        let (mut without, mut with) = (Samples::default(), Samples::default());
        for _ in 0..TURNS {
            let (seconds, bytes) = insert(world, &site.source, "bare").await?;
            without.push(seconds);
            bare_log.push(bytes);
            let (seconds, bytes) = insert(world, &site.source, "logs").await?;
            with.push(seconds);
            captured_log.push(bytes);
        }
        bare.push(without.mean());
        captured.push(with.mean());
    }
    site.end().await?;
    Ok(vec![
        Row::new("bulk", "300,000-row insert", Unit::Seconds, captured)
            .peer("without capture", bare)
            .target(Target::RatioAtMost(2.5)),
        Row::new("bulk", "its write-ahead log, a row", Unit::Bytes, captured_log)
            .peer("without capture", bare_log),
    ])
}

/// Its seconds, and the bytes of write-ahead log that each row cost.
async fn insert(world: &World, client: &Client, table: &str) -> Outcome<(f64, f64)> {
    world.settle().await?;
    let before = load::wal(client).await?;
    let start = Instant::now();
    client.batch_execute(&many_rows(table, ROWS)).await?;
    let seconds = start.elapsed().as_secs_f64();
    let after = load::wal(client).await?;
    Ok((seconds, (after - before) / ROWS as f64))
}

/// From the insert's commit until all rows are visible in the cloud.
pub(crate) async fn apply(world: &World, progress: &Progress<'_>) -> Outcome<Vec<Row>> {
    let site = Site::with_logs(world).await?;
    site.cloud
        .batch_execute(&format!("create table copied ({})", load::COLUMNS))
        .await?;
    let logs = LoadTable::logs("logs");
    let peer = Subscription::new(world, SubscriptionPlan::logs()).await?;
    let replicator = site.replicator_at_work(&logs).await?;
    let (mut ours, mut theirs, mut copied) = (Samples::default(), Samples::default(), Samples::default());
    for run in progress.runs() {
        progress.run(run, "cloud-sync");
        world.settle().await?;
        let all = site.goal(&logs).await?.and(ROWS);
        site.source.batch_execute(&many_rows("logs", ROWS)).await?;
        let start = Instant::now();
        ours.push((site.reached(&all).await? - start).as_secs_f64());
        progress.run(run, "logical replication");
        peer.resume_and_catch_up().await?;
        world.settle().await?;
        let all = peer.goal().await?.and(ROWS);
        peer.source.batch_execute(&many_rows("logs", ROWS)).await?;
        let start = Instant::now();
        theirs.push((peer.reached(&all).await? - start).as_secs_f64());
        peer.pause().await?;
        progress.run(run, "COPY");
        world.settle().await?;
        copied.push(peers::copy(world, &site.name, ROWS).await?);
        site.cloud.batch_execute("truncate copied").await?;
    }
    let mut memory = PeakMemory::default();
    memory.take(&site, &replicator).await?;
    replicator.end().await?;
    peer.end().await?;
    site.end().await?;
    let what = "300,000-row insert, commit to all rows visible";
    let mut rows = vec![
        Row::new("apply", what, Unit::Seconds, ours.clone())
            .peer("logical replication", theirs)
            .target(Target::RatioAtMost(0.95)),
        Row::new("apply", "the same beside the physical limit", Unit::Seconds, ours)
            .peer("psql COPY out and in", copied),
    ];
    rows.extend(memory.rows("apply", "300,000-row inserts", None));
    Ok(rows)
}
