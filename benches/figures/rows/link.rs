//! A backlog of 100,000 one-row transactions over a slow line: how long it takes, and what passes over the
//! line.

use std::time::{Duration, Instant};

use crate::Outcome;
use crate::line::Line;
use crate::load::{self, LoadTable};
use crate::progress::Progress;
use crate::rows::backlog::write;
use crate::servers::World;
use crate::site::{Plan, Site};
use crate::subscription::{Subscription, SubscriptionPlan};
use crate::table::{Row, Samples, Target, Unit};

const BITS_PER_SECOND: u64 = 5_000_000;
const ROUND_TRIP: Duration = Duration::from_millis(100);

/// Each side counts from its start until the last row is visible, over a line of the same kind. The bytes are
/// those of all connections, both ways.
pub(crate) async fn link(world: &World, progress: &Progress<'_>) -> Outcome<Vec<Row>> {
    let logs = LoadTable::logs("logs");
    let (line, peers_line) = (line()?, line()?);
    let (entities, columns) = (load::entity("logs"), load::COLUMNS);
    let tables = format!("create table logs ({columns})");
    let url = format!("http://{}/api", line.address);
    let plan = Plan {
        cloud: Some(&url),
        compress: true,
        ..Plan::of(&entities, &tables)
    };
    let site = Site::new(world, &plan).await?;
    line.lead_to(site.address);
    // The cloud has made its table.
    site.replicator_at_work(&logs).await?.end().await?;
    peers_line.lead_to(world.publisher.address());
    let peer = SubscriptionPlan {
        through: Some(peers_line.address),
        ..SubscriptionPlan::logs()
    };
    let peer = Subscription::new(world, peer).await?;
    let (mut ours, mut theirs) = (Samples::default(), Samples::default());
    let (mut our_bytes, mut their_bytes) = (Samples::default(), Samples::default());
    for run in progress.runs() {
        progress.run(run, "cloud-sync");
        write(&world.source, &site.name).await?;
        let all = site.goal_with_last_row(&logs).await?;
        world.settle().await?;
        let (before, start) = (line.bytes(), Instant::now());
        let replicator = site.replicator()?;
        let reached = site.reached(&all).await?;
        ours.push((reached - start).as_secs_f64());
        our_bytes.push((line.bytes() - before) as f64);
        replicator.end().await?;

        progress.run(run, "logical replication");
        write(&world.publisher, &peer.name).await?;
        let all = peer.goal_with_last_row().await?;
        world.settle().await?;
        let (before, start) = (peers_line.bytes(), Instant::now());
        peer.resume().await?;
        let reached = peer.reached(&all).await?;
        theirs.push((reached - start).as_secs_f64());
        their_bytes.push((peers_line.bytes() - before) as f64);
        peer.pause().await?;
    }
    peer.end().await?;
    site.end().await?;
    Ok(vec![
        Row::new(
            "link",
            "100,000 one-row transactions over 5 Mbit/s, 100 ms",
            Unit::Seconds,
            ours,
        )
        .peer("logical replication", theirs)
        .target(Target::RatioAtMost(0.35))
        .note("5 Mbit/s each way, and a round trip of 100 ms."),
        Row::new("link", "bytes over the line, both ways", Unit::Bytes, our_bytes)
            .peer("logical replication", their_bytes)
            .target(Target::RatioAtMost(0.3)),
    ])
}

fn line() -> Outcome<Line> {
    Line::start(BITS_PER_SECOND, ROUND_TRIP)
}
