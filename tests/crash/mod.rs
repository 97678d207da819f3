//! Crashes and outages: the real binary is killed, its store is lost, the cloud goes away, and nothing is
//! lost.

mod abort;
mod opening;
mod recovery;
mod workload;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use cloud_sync::checkpoint::{SledStore, Store};
use cloud_sync::control::StatusReport;
use cloud_sync::control::status::ReplicatorState;
use rand::RngExt;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::support::oracle::assert_never_back;
use crate::support::postgres::Server;
use crate::support::process::Daemon;
use crate::support::site::{Cloud, KEY, LIMIT, Site, connect};
use crate::support::sql::number;
use crate::support::workload::{ENTITIES, TABLES};

async fn garden(hint: &str, cloud: &Cloud) -> Site {
    garden_on(Server::get(), hint, cloud).await
}

async fn garden_on(server: &Server, hint: &str, cloud: &Cloud) -> Site {
    let site = Site::bare_on(server, hint, &cloud.url, KEY, TABLES, ENTITIES).await;
    site.init().await;
    site
}

/// A value from the environment, so that a run can be repeated or made longer.
fn given(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .map_or(default, |text| text.parse().unwrap())
}

/// How many rows the receiver has applied: one that is sent again is read again, and is applied as the newer
/// state.
async fn applied(cloud: &Client) -> i64 {
    number(
        cloud,
        "select count(*) from (select distinct entity, key from cloud_meta.history) applied",
    )
    .await
}

/// Waits until the receiver has applied so many, or some time has passed.
async fn applied_or_late(cloud: &Client, count: i64, limit: Duration) {
    let start = Instant::now();
    while applied(cloud).await < count && start.elapsed() < limit {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Changes that a run has brought to the cloud, those that it had already included.
fn sent(status: &StatusReport) -> i64 {
    (status.counts.accepted + status.counts.collapsed) as i64
}

/// Inserts pots, each one change that no other supersedes, in transactions of `rows`, until it is stopped.
struct Stream {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    written: Arc<AtomicI64>,
}

impl Stream {
    fn start(site: &Site, rows: i64) -> Self {
        let stop = CancellationToken::new();
        let written = Arc::new(AtomicI64::new(0));
        let task = tokio::spawn({
            let (url, stop, written) = (site.database_url.clone(), stop.clone(), written.clone());
            async move {
                let client = connect(&url).await;
                // After what other streams have written.
                let first = number(&client, "select coalesce(max(pot_id), 0) from pot").await;
                while !stop.is_cancelled() {
                    let from = first + written.load(Ordering::Relaxed) + 1;
                    client
                        .execute(
                            "insert into pot select n, 'pot', n from generate_series($1::bigint, $2) n",
                            &[&from, &(from + rows - 1)],
                        )
                        .await
                        .unwrap();
                    written.fetch_add(rows, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
        });
        Self { stop, task, written }
    }

    /// Waits until it has written so many.
    async fn reach(&self, rows: i64) {
        while self.written.load(Ordering::Relaxed) < rows {
            assert!(!self.task.is_finished());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn end(self) -> i64 {
        self.stop.cancel();
        self.task.await.unwrap();
        self.written.load(Ordering::Relaxed)
    }
}

/// Delivers under load, ends once by SIGTERM and once by SIGKILL, spoils the store by `spoil` while the load
/// goes on, and starts again. Every log of such a start holds `log_words`.
async fn spoilt_store(hint: &str, log_words: &[&str], spoil: impl Fn(&Daemon)) {
    let cloud = Cloud::start(hint).await;
    let site = garden(hint, &cloud).await;
    let there = connect(&cloud.database_url).await;
    let daemon = Daemon::of(&site, "store");
    let mut total = 0;
    for orderly in [true, false] {
        let process = daemon.start();
        let load = Stream::start(&site, 5);
        load.reach(1500).await;
        applied_or_late(&there, total + 1500, LIMIT).await;
        // The mirror may be a second behind.
        tokio::time::sleep(Duration::from_millis(1200)).await;
        if orderly {
            assert!(process.terminate().await.success());
        } else {
            process.kill();
        }
        spoil(&daemon);
        let delivered = applied(&there).await;
        assert!(delivered >= 1500);
        let logged = daemon.log().len();
        load.reach(load.written.load(Ordering::Relaxed) + 100).await;
        let process = daemon.start();
        total += load.end().await;
        let status = daemon.caught_up().await;
        let log = daemon.log()[logged..].to_owned();
        for words in log_words {
            assert!(log.contains(words), "no {words:?} in\n{log}");
        }
        println!(
            "{hint}, {}: {} of {total} changes sent, {} of them again",
            if orderly { "SIGTERM" } else { "SIGKILL" },
            sent(&status),
            sent(&status) - (total - delivered)
        );
        assert!(sent(&status) < total, "{status:#?}");
        assert_eq!(applied(&there).await, total);
        assert!(process.terminate().await.success());
        site.assert_equal(&cloud).await;
        assert_never_back(&cloud).await;
    }
}

const RESUMES: &str = "resuming from the mirror in the source database";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_store_resumes_from_the_mirror() {
    spoilt_store("deleted", &[RESUMES], |daemon| {
        std::fs::remove_dir_all(daemon.checkpoint()).unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overwritten_store_is_set_aside_and_resumes_from_the_mirror() {
    let log_words = [RESUMES, "the checkpoint store cannot be read: it is set aside"];
    spoilt_store("overwritten", &log_words, |daemon| {
        let mut rng = rand::rng();
        let mut folders = vec![daemon.checkpoint()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let mut bytes = vec![0; std::fs::metadata(&path).unwrap().len() as usize];
                rng.fill(&mut bytes[..]);
                std::fs::write(path, bytes).unwrap();
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_is_told_and_made_up_for() {
    let mut cloud = Cloud::start("outage").await;
    let site = garden("outage", &cloud).await;
    let daemon = Daemon::of(&site, "store");
    let process = daemon.start();
    site.run("insert into pot values (0, 'before', 0)").await;
    daemon.caught_up().await;
    assert_eq!(daemon.health().await, 200);
    // Given a cloud that is away while 20,000 changes are written
    cloud.away().await;
    for from in (1_i64..=20_000).step_by(100) {
        site.client
            .execute(
                "insert into pot select n, 'pot', n from generate_series($1::bigint, $1 + 99) n",
                &[&from],
            )
            .await
            .unwrap();
    }
    // then the status tells how much waits, since when, and why,
    daemon
        .until("backing off", LIMIT, |status| {
            status.state == ReplicatorState::BackingOff && status.lag.is_some_and(|lag| lag.changes == 20_000)
        })
        .await;
    let output = daemon.ask(&["status", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(status["state"], "backing off");
    assert_eq!(status["lag"]["changes"], 20_000);
    assert!(status["lag"]["age_seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(status["cloud"]["reachable"], false);
    let reason = status["reason"].as_str().unwrap();
    println!("reason: {reason}");
    assert!(reason.to_lowercase().contains("connect"), "{reason}");
    assert_eq!(daemon.health().await, 503);
    // and all of it is made up for once the cloud is back.
    cloud.back().await;
    daemon.caught_up().await;
    assert_eq!(daemon.health().await, 200);
    assert!(process.terminate().await.success());
    site.assert_equal(&cloud).await;
    assert_never_back(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_thousand_changes_are_drained_in_bounded_memory() {
    const ROWS: i64 = 300_000;
    let cloud = Cloud::start("backlog").await;
    let site = garden("backlog", &cloud).await;
    let there = connect(&cloud.database_url).await;
    let daemon = Daemon::of(&site, "store");
    // Half of it in one transaction, half in transactions of 1,000.
    let mut from = 1;
    for rows in std::iter::once(ROWS / 2).chain(std::iter::repeat_n(1000, 150)) {
        site.client
            .execute(
                "insert into pot select n, rpad('pot ' || n, 250, 'x'), n \
                 from generate_series($1::bigint, $2) n",
                &[&from, &(from + rows - 1)],
            )
            .await
            .unwrap();
        from += rows;
    }
    let start = Instant::now();
    let process = daemon.start();
    daemon
        .until("drained", Duration::from_secs(600), |status| {
            status.state == ReplicatorState::Replicating && status.lag.is_some_and(|lag| lag.changes == 0)
        })
        .await;
    let (took, peak) = (start.elapsed(), process.peak_memory());
    println!(
        "{ROWS} changes in {took:?}, {:.1} MiB resident at the peak",
        peak as f64 / f64::from(1 << 20)
    );
    assert!(process.terminate().await.success());
    assert_eq!(number(&there, "select count(*) from cloud.pots").await, ROWS);
    assert_eq!(applied(&there).await, ROWS);
    assert!(peak < 128 << 20, "{peak} bytes");
}

const BATCH: i64 = 100;

/// The changes of the batches in flight, at most, and of three that are accepted and on their way into the
/// checkpoint.
const IN_FLIGHT: i64 = (cloud_sync::wire::limits::MAX_IN_FLIGHT + 3) * BATCH;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_ends_with_a_current_checkpoint() {
    let cloud = Cloud::start("sigterm").await;
    let site = garden("sigterm", &cloud).await;
    let there = connect(&cloud.database_url).await;
    let daemon = Daemon::of(&site, "store");
    let overrides = [&*format!("delivery.batch_rows={BATCH}")];
    // When it is ended under load
    let process = daemon.start_with(&overrides);
    let load = Stream::start(&site, 20);
    load.reach(2000).await;
    applied_or_late(&there, 1000, LIMIT).await;
    let start = Instant::now();
    assert_eq!(process.terminate().await.code(), Some(0), "{}", daemon.log());
    println!("SIGTERM to exit: {:?}", start.elapsed());
    // then the mirror is the store's checkpoint,
    let stored = {
        let (store, aside) = SledStore::open(&daemon.checkpoint()).unwrap();
        assert!(aside.is_none());
        store.load().unwrap().unwrap().serial
    };
    let mirrored = number(&site.client, "select serial from cloud_sync.checkpoint").await;
    assert_eq!(stored as i64, mirrored);
    // and the next run sends at most one batch again.
    let total = load.end().await;
    let left = total - applied(&there).await;
    let process = daemon.start_with(&overrides);
    let status = daemon.caught_up().await;
    println!("{} sent where {left} were left", sent(&status));
    assert!((left..=left + BATCH).contains(&sent(&status)), "{status:#?}");
    assert!(process.terminate().await.success());
    site.assert_equal(&cloud).await;
    assert_never_back(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_sigkill_at_most_the_batches_in_flight_are_sent_again() {
    let cloud = Cloud::start("again").await;
    let site = garden("again", &cloud).await;
    let there = connect(&cloud.database_url).await;
    let daemon = Daemon::of(&site, "store");
    let overrides = [&*format!("delivery.batch_rows={BATCH}")];
    let mut total = 0;
    for round in 0..8 {
        // Given a backlog of many batches, and a run that is killed amid it
        site.client
            .execute(
                "insert into pot select n, 'pot', n from generate_series($1::bigint, $2) n",
                &[&(total + 1), &(total + 30 * BATCH)],
            )
            .await
            .unwrap();
        total += 30 * BATCH;
        let process = daemon.start_with(&overrides);
        applied_or_late(&there, total - 20 * BATCH, LIMIT).await;
        process.kill();
        // A request that was being sent may still be applied.
        let mut before = -1;
        while before < applied(&there).await {
            before = applied(&there).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        // when it is started again, it sends what is left and what was in flight.
        let process = daemon.start_with(&overrides);
        let status = daemon.caught_up().await;
        let again = sent(&status) - (total - before);
        println!("round {round}: {again} sent again of {before}");
        assert!((0..=IN_FLIGHT).contains(&again), "{again} were sent again");
        process.terminate().await;
    }
    site.assert_equal(&cloud).await;
    assert_never_back(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_replicator_stands_by_and_takes_over() {
    let cloud = Cloud::start("standby").await;
    let site = garden("standby", &cloud).await;
    let (first, second) = (Daemon::of(&site, "first"), Daemon::of(&site, "second"));
    let leader = first.start();
    site.run("insert into pot select n, 'first', n from generate_series(1, 500) n")
        .await;
    first.caught_up().await;
    // Given one that drains and a standby
    let other = second.start();
    let status = second
        .until("standing by", LIMIT, |status| {
            status.state == ReplicatorState::Standby
        })
        .await;
    assert!(
        status
            .reason
            .is_some_and(|reason| reason.contains("another replicator"))
    );
    site.run("update pot set label = 'second'").await;
    first.caught_up().await;
    assert_eq!(second.status().await.unwrap().counts.accepted, 0);
    // when the first dies, the second takes over and loses nothing,
    leader.kill();
    site.run("update pot set label = 'third' where pot_id > 100; delete from pot where pot_id <= 50")
        .await;
    second.caught_up().await;
    site.assert_equal(&cloud).await;
    // and the first, started again, is the standby.
    let leader = first.start();
    first
        .until("standing by", LIMIT, |status| {
            status.state == ReplicatorState::Standby
        })
        .await;
    assert!(other.terminate().await.success());
    site.run("delete from pot where pot_id <= 60").await;
    first.caught_up().await;
    assert!(leader.terminate().await.success());
    site.assert_equal(&cloud).await;
    assert_never_back(&cloud).await;
}
