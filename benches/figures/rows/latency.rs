//! Single commits, one at a time: from the moment at which the writer knows its commit until a reader sees it
//! in the cloud. Once where nothing else is to do, and once more as soon as a large insert has arrived, when
//! caches, the outbox and the log are full of it.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::Outcome;
use crate::load::{LoadTable, many_rows, one_row};
use crate::progress::Progress;
use crate::servers::World;
use crate::site::Site;
use crate::subscription::{Subscription, SubscriptionPlan};
use crate::table::{Row, Samples, Target, Unit};

const COMMITS: usize = 1_000;

/// The rows of the large insert.
const BULK: u64 = 300_000;

/// Between two commits.
const PAUSE: Duration = Duration::from_millis(10);

/// Between two looks of the reader.
const LOOK: Duration = Duration::from_micros(200);

const LIMIT: Duration = Duration::from_secs(30);

const SEEN_AT_RECEIVER: &str =
    "select exists (select 1 from cloud.logs where _site = 'figures' and log_id = $1)";
const SEEN_AT_SUBSCRIBER: &str = "select exists (select 1 from logs where log_id = $1)";

pub(crate) async fn latency(world: &World, progress: &Progress<'_>) -> Outcome<Vec<Row>> {
    let logs = LoadTable::logs("logs");
    let site = Site::with_logs(world).await?;
    let peer = Subscription::new(world, SubscriptionPlan::logs()).await?;
    let replicator = site.replicator_at_work(&logs).await?;
    let (mut ours, mut theirs) = (Percentiles::default(), Percentiles::default());
    let (mut ours_after, mut theirs_after) = (Percentiles::default(), Percentiles::default());
    let mut own_clock = None;
    for run in progress.runs() {
        progress.run(run, "cloud-sync");
        world.settle().await?;
        ours.add(commits(&site.source, &site.cloud, SEEN_AT_RECEIVER).await?);
        if own_clock.is_none() {
            // Later it would tell of the large insert's rows too.
            own_clock = Some(site.status().await?["latency"].clone());
        }
        progress.run(run, "cloud-sync, right after a bulk");
        site.source.batch_execute(&many_rows("logs", BULK)).await?;
        let all = site.goal(&logs).await?;
        site.reached(&all).await?;
        ours_after.add(commits(&site.source, &site.cloud, SEEN_AT_RECEIVER).await?);
        progress.run(run, "logical replication");
        peer.resume_and_catch_up().await?;
        world.settle().await?;
        theirs.add(commits(&peer.source, &peer.cloud, SEEN_AT_SUBSCRIBER).await?);
        progress.run(run, "logical replication, right after a bulk");
        peer.source.batch_execute(&many_rows("logs", BULK)).await?;
        let all = peer.goal().await?;
        peer.reached(&all).await?;
        theirs_after.add(commits(&peer.source, &peer.cloud, SEEN_AT_SUBSCRIBER).await?);
        peer.pause().await?;
    }
    let own_clock = own_clock.unwrap_or_default();
    let own = |name: &str| own_clock[name].as_f64().unwrap_or(f64::NAN);
    let note = format!(
        "a reader looks every {} ms, by key. The replicator's own clock, capture to acceptance: \
         p50 {:.1} ms, p99 {:.1} ms.",
        LOOK.as_secs_f64() * 1000.0,
        own("p50_ms"),
        own("p99_ms"),
    );
    replicator.end().await?;
    peer.end().await?;
    site.end().await?;
    let mut rows = lines(
        "commit to visible, 1,000 single commits",
        ours,
        theirs,
        Some(note),
    );
    rows.extend(lines("right after 300,000 rows", ours_after, theirs_after, None));
    Ok(rows)
}

/// The lines of the table, each percentile with the peer's.
fn lines(what: &str, ours: Percentiles, theirs: Percentiles, note: Option<String>) -> Vec<Row> {
    let line = |name: &str, ours, theirs, most| {
        Row::new("latency", format!("{what}, {name}"), Unit::Milliseconds, ours)
            .peer("logical replication", theirs)
            .target(Target::AtMost(most))
    };
    let half = line("p50", ours.half, theirs.half, 1.5);
    vec![
        match note {
            Some(note) => half.note(note),
            None => half,
        },
        line("p99", ours.nearly_all, theirs.nearly_all, 4.0),
        line("worst", ours.worst, theirs.worst, 20.0),
    ]
}

#[derive(Default)]
struct Percentiles {
    half: Samples,
    nearly_all: Samples,
    worst: Samples,
}

impl Percentiles {
    fn add(&mut self, mut milliseconds: Vec<f64>) {
        milliseconds.sort_by(f64::total_cmp);
        let rank = |percent: usize| milliseconds[(milliseconds.len() * percent).div_ceil(100) - 1];
        self.half.push(rank(50));
        self.nearly_all.push(rank(99));
        self.worst.push(rank(100));
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
            // The runtime's own clock is too coarse; nothing else runs in it at that time.
            std::thread::sleep(LOOK);
        }
        milliseconds.push(commit.elapsed().as_secs_f64() * 1000.0);
        tokio::time::sleep(PAUSE).await;
    }
    Ok(milliseconds)
}
