//! The outbox while the cloud is away for days, and after.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::support::oracle::Tally;
use crate::support::process::Daemon;
use crate::support::site::{LIMIT, Site, connect};
use crate::support::sql::number;

const TABLES: &str = "create table note (id int primary key, text text)";
const CATALOGUE: &str = "[[entity]]\nname = \"notes\"\ntable = \"note\"\nkey = [\"id\"]\n";

/// Bytes of the segments, as the server's files are on its disk.
async fn on_disk(client: &Client) -> i64 {
    number(
        client,
        "select coalesce(sum((pg_stat_file(pg_relation_filepath(inhrelid))).size), 0)::bigint \
         from pg_inherits where inhparent = 'cloud_sync.outbox'::regclass",
    )
    .await
}

/// Waits until the segments' files are empty.
async fn given_back(client: &Client) {
    let start = Instant::now();
    while on_disk(client).await > 0 {
        assert!(
            start.elapsed() < LIMIT,
            "the outbox keeps {} bytes",
            on_disk(client).await
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Writers that give up where they have to wait for a lock. Not at once: tables grow under a lock that they
/// share.
struct Writers {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Writers {
    async fn start(site: &Site, count: i64) -> Self {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut tasks = Vec::new();
        for nth in 0..count {
            let client = connect(&site.database_url).await;
            // Ids of its own: the only locks that two of them share are the outbox's.
            client
                .batch_execute("set lock_timeout = '5s'; set synchronous_commit = off")
                .await
                .unwrap();
            let (stop, written) = (stop.clone(), written.clone());
            tasks.push(tokio::spawn(async move {
                let statement = client
                    .prepare(
                        "insert into note values ($1, repeat('x', 200)) on conflict (id) do update \
                         set text = excluded.text || $1",
                    )
                    .await
                    .unwrap();
                let mut id = 0;
                while !stop.load(Ordering::Relaxed) {
                    id = (id + 1) % 500;
                    let key = (1_000_000 * (nth + 1) + id) as i32;
                    client
                        .execute(&statement, &[&key])
                        .await
                        .expect("a writer never waits for the outbox");
                    written.fetch_add(1, Ordering::Relaxed);
                }
            }));
        }
        Self { stop, written, tasks }
    }

    async fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        self.written.load(Ordering::Relaxed)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_outbox_grows_by_what_waits_and_gives_it_back_past_an_old_snapshot() {
    let mut tally = Tally::default();
    let (mut cloud, site) = Site::captured("growth", TABLES, CATALOGUE).await;
    // Given a snapshot that is older than everything, and stays
    let old = connect(&site.database_url).await;
    old.batch_execute("begin isolation level repeatable read; select count(*) from note")
        .await
        .unwrap();
    let daemon = Daemon::of(&site, "store");
    let process = daemon.start_with(&["source.outbox_limit=1GiB"]);
    daemon.caught_up().await;
    // When the cloud is away while much is written
    cloud.away().await;
    tally.faults += 1;
    let before = daemon
        .until("asked", LIMIT, |status| status.outbox_bytes.is_some())
        .await;
    for round in 0..5 {
        site.run(&format!(
            "insert into note select {round} * 20000 + n, repeat('y', 300) from generate_series(1, 20000) n"
        ))
        .await;
    }
    // Then the outbox holds it, and status says how it grows and how long that can go on,
    let status = daemon
        .until("seen growing", LIMIT, |status| {
            status.outbox_bytes > before.outbox_bytes.map(|bytes| bytes + (4 << 20))
                && status.outbox_growth.is_some_and(|growth| {
                    growth.bytes_per_second.is_some_and(|rate| rate > 0.0)
                        && growth.full_in_seconds.is_some()
                        && growth.room_bytes.is_some_and(|room| room < 1 << 30)
                })
        })
        .await;
    assert!(status.outbox_bytes.unwrap() < 120 << 20, "{status:?}");
    let printed = String::from_utf8(daemon.ask(&["status"]).stdout).unwrap();
    assert!(
        printed.contains("a second, room for") && printed.contains(": full in"),
        "{printed}"
    );
    let json = String::from_utf8(daemon.ask(&["status", "--json"]).stdout).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(json["outbox_growth"]["full_in_seconds"].is_f64(), "{json}");
    // and it grows no more than by what waits: rows that are rolled back or changed again and again go too.
    cloud.back().await;
    let caught_up = daemon.caught_up().await;
    assert_eq!(caught_up.lag.unwrap().changes, 0);
    given_back(&site.client).await;
    // What is kept in addition stays small although dead versions cannot go yet.
    let further_tables = number(
        &site.client,
        "select sum(pg_total_relation_size('cloud_sync.' || name))::bigint \
         from unnest(array['checkpoint', 'identity', 'entity', 'media', 'quarantine', 'backfill']) name",
    )
    .await;
    assert!(further_tables < 4 << 20, "{further_tables}");
    old.batch_execute("commit").await.unwrap();
    tally.judge(&site, &cloud).await;
    assert!(process.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_while_segments_are_trimmed_beneath_writers() {
    let mut tally = Tally::default();
    let (cloud, site) = Site::captured("trimming", TABLES, CATALOGUE).await;
    let writers = Writers::start(&site, 4).await;
    let drain = site.drain();
    // A truncated segment has another file.
    let files = "select sum(pg_relation_filenode(inhrelid)::bigint)::bigint from pg_inherits \
                 where inhparent = 'cloud_sync.outbox'::regclass";
    let files = async || number(&site.client, files).await;
    // When segments are trimmed over and over beneath them, far more often than a running replicator does
    let (start, mut rounds) = (Instant::now(), 0);
    let mut last = files().await;
    while rounds < 5 {
        drain.drain_once().await.unwrap();
        let now = files().await;
        rounds += u64::from(now > last);
        last = now;
        assert!(start.elapsed() < LIMIT, "only {rounds} trims");
    }
    // Then none of them ever waited, and all arrives.
    tally.faults += rounds;
    assert!(writers.end().await > 100);
    drain.drain_all().await.unwrap();
    given_back(&site.client).await;
    tally.judge(&site, &cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_go_on_while_a_segment_is_being_truncated() {
    let mut tally = Tally::default();
    let (cloud, site) = Site::captured("truncating", TABLES, CATALOGUE).await;
    // Given changes that are accepted, in a segment that a dump kept from being trimmed
    let dump = connect(&site.database_url).await;
    dump.batch_execute("begin; lock table cloud_sync.outbox in access share mode")
        .await
        .unwrap();
    site.run("insert into note select n, 'x' from generate_series(1, 5000) n")
        .await;
    site.drain().drain_all().await.unwrap();
    dump.batch_execute("commit").await.unwrap();
    assert!(on_disk(&site.client).await > 0);
    // A segment that writers use is left, though all in it is accepted: nobody would get past its truncation.
    let kept = on_disk(&site.client).await;
    site.run(
        "select cloud_sync.set_state(0, null); \
         select cloud_sync.trim_segment(term, segment, (body::json->>'lo')::pg_snapshot, \
         9223372036854775807) \
         from cloud_sync.checkpoint, generate_series(0, 3) segment; select cloud_sync.rotate(1 << 20)",
    )
    .await;
    assert_eq!(on_disk(&site.client).await, kept);
    // When each segment is trimmed, in a transaction that stays open with all its locks
    let trim = connect(&site.database_url).await;
    trim.batch_execute("begin").await.unwrap();
    let bytes = number(
        &trim,
        "select sum(cloud_sync.trim_segment(term, segment, (body::json->>'lo')::pg_snapshot, \
         9223372036854775807))::bigint \
         from cloud_sync.checkpoint, generate_series(0, 3) segment",
    )
    .await;
    assert!(bytes > 0);
    tally.faults += 1;
    // Then the writers of the site do not wait for it.
    let writers = Writers::start(&site, 2).await;
    let start = Instant::now();
    while writers.written.load(Ordering::Relaxed) < 500 {
        assert!(start.elapsed() < LIMIT, "writers stand still");
        assert!(
            writers.tasks.iter().all(|task| !task.is_finished()),
            "a writer gave up"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    trim.batch_execute("commit").await.unwrap();
    writers.end().await;
    site.drain().drain_all().await.unwrap();
    given_back(&site.client).await;
    tally.judge(&site, &cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dump_of_the_site_delays_the_trim_and_nothing_else() {
    let mut tally = Tally::default();
    let (cloud, site) = Site::captured("dumping", TABLES, CATALOGUE).await;
    let running = site.replicate();
    running.caught_up().await;
    // Given a dump that reads for hours: a snapshot, and every table locked against being dropped
    let dump = connect(&site.database_url).await;
    dump.batch_execute(
        "begin isolation level repeatable read; lock table cloud_sync.outbox, note in access share mode; \
         select count(*) from note",
    )
    .await
    .unwrap();
    tally.faults += 1;
    // When the site writes on
    let writers = Writers::start(&site, 2).await;
    let start = Instant::now();
    while writers.written.load(Ordering::Relaxed) < 2000 {
        assert!(start.elapsed() < LIMIT, "writers stand still");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    writers.end().await;
    running.caught_up().await;
    // Then all has arrived, and only the space is not back before the dump has ended.
    assert!(on_disk(&site.client).await > 0);
    dump.batch_execute("commit").await.unwrap();
    given_back(&site.client).await;
    tally.judge(&site, &cloud).await;
    running.end().await;
}

#[tokio::test]
async fn a_large_segment_that_writers_use_is_left_and_trimmed() {
    let mut tally = Tally::default();
    let (cloud, site) = Site::captured("large", TABLES, CATALOGUE).await;
    // Given more in one segment than was ever trimmed under writers, and one that rolled back
    site.run(
        "begin; insert into note select n, repeat('z', 300) from generate_series(1, 60000) n; rollback; \
              insert into note select n, repeat('z', 1000) from generate_series(1, 70000) n",
    )
    .await;
    assert!(on_disk(&site.client).await > 4 << 20);
    let segment = "select coalesce(pg_sequence_last_value('cloud_sync.state'), 0) & 65535";
    let before = number(&site.client, segment).await;
    site.drain().drain_all().await.unwrap();
    // Then it is back although nobody writes, and writers go on in another.
    given_back(&site.client).await;
    assert!(number(&site.client, segment).await > before);
    site.run("update note set text = 'after' where id = 1").await;
    site.drain().drain_all().await.unwrap();
    tally.judge(&site, &cloud).await;
}

#[tokio::test]
async fn what_is_kept_beside_the_outbox_does_not_bloat() {
    let mut tally = Tally::default();
    let (cloud, site) = Site::captured("concurrent", TABLES, CATALOGUE).await;
    let drain = site.drain();
    for round in 0..150 {
        site.run(&format!("insert into note values ({round}, 'x')")).await;
        drain.drain_once().await.unwrap();
    }
    // Each round updated the checkpoint's mirror and the identity in place.
    for table in ["checkpoint", "identity"] {
        let bytes = number(
            &site.client,
            &format!("select pg_relation_size('cloud_sync.{table}')"),
        )
        .await;
        assert!(bytes <= 8 * 8192, "{table}: {bytes}");
    }
    tally.judge(&site, &cloud).await;
}
