//! Single commits, one at a time: from the moment at which the writer knows its commit until a reader sees it in the
//! cloud.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::load::{LoadTable, one_row};
use crate::servers::World;
use crate::site::Site;
use crate::subscription::{Subscription, SubscriptionPlan};
use crate::table::{Row, Samples, Target, Unit};
use crate::{Outcome, Progress};

const COMMITS: usize = 200;

/// Between two commits.
const PAUSE: Duration = Duration::from_millis(20);

/// Between two looks of the reader.
const LOOK: Duration = Duration::from_micros(200);

const LIMIT: Duration = Duration::from_secs(30);

pub(crate) async fn latency(world: &World, progress: &Progress<'_>) -> Outcome<Vec<Row>> {
    let site = Site::with_logs(world).await?;
    let peer = Subscription::new(world, SubscriptionPlan::logs()).await?;
    let replicator = site.replicator_at_work(&LoadTable::logs("logs")).await?;
    let (mut ours, mut theirs) = (Percentiles::default(), Percentiles::default());
    for run in progress.runs() {
        progress.run(run, "cloud-sync");
        world.settle().await?;
        let seen = "select exists (select 1 from cloud.logs where _site = 'figures' and log_id = $1)";
        ours.add(commits(&site.source, &site.cloud, seen).await?);
        progress.run(run, "logical replication");
        peer.resume_and_catch_up().await?;
        world.settle().await?;
        let seen = "select exists (select 1 from logs where log_id = $1)";
        theirs.add(commits(&peer.source, &peer.cloud, seen).await?);
        peer.pause().await?;
    }
    let status = site.status().await?;
    let own = |name: &str| status["latency"][name].as_f64().unwrap_or(f64::NAN);
    let note = format!(
        "a reader looks every {} ms, by key. The replicator's own clock, capture to acceptance: p50 {:.1} ms, p99 {:.1} ms.",
        LOOK.as_secs_f64() * 1000.0,
        own("p50_ms"),
        own("p99_ms"),
    );
    replicator.end().await?;
    peer.end().await?;
    site.end().await?;
    Ok(vec![
        Row::new(
            "latency",
            "commit to visible, 200 single commits, p50",
            Unit::Milliseconds,
            ours.half,
        )
        .peer("logical replication", theirs.half)
        .target(Target::AtMost(3.0))
        .note(note),
        Row::new("latency", "the same, p99", Unit::Milliseconds, ours.nearly_all)
            .peer("logical replication", theirs.nearly_all)
            .target(Target::AtMost(15.0)),
    ])
}

#[derive(Default)]
struct Percentiles {
    half: Samples,
    nearly_all: Samples,
}

impl Percentiles {
    fn add(&mut self, mut milliseconds: Vec<f64>) {
        milliseconds.sort_by(f64::total_cmp);
        let rank = |percent: usize| milliseconds[(milliseconds.len() * percent).div_ceil(100) - 1];
        self.half.push(rank(50));
        self.nearly_all.push(rank(99));
    }
}

/// The milliseconds of each commit.
async fn commits(source: &Client, cloud: &Client, seen: &str) -> Outcome<Vec<f64>> {
    let insert = source
        .prepare(&format!("{} returning log_id", one_row("logs")))
        .await?;
    let seen = cloud.prepare(seen).await?;
    let mut milliseconds = Vec::with_capacity(COMMITS);
    for _ in 0..COMMITS {
        let id: i64 = source.query_one(&insert, &[]).await?.get(0);
        let commit = Instant::now();
        while !cloud.query_one(&seen, &[&id]).await?.get::<_, bool>(0) {
            if commit.elapsed() > LIMIT {
                return Err(format!("a commit is not visible after {LIMIT:?}").into());
            }
            // The runtime's own clock is too coarse; nothing else runs in it meanwhile.
            std::thread::sleep(LOOK);
        }
        milliseconds.push(commit.elapsed().as_secs_f64() * 1000.0);
        tokio::time::sleep(PAUSE).await;
    }
    Ok(milliseconds)
}
