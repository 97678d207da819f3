//! The replicator dies at each point where dying could matter, starts again, and loses nothing.

use std::time::Duration;

use super::{BATCH, IN_FLIGHT, Stream, applied, applied_or_late, garden, sent};
use crate::support::oracle::Tally;
use crate::support::process::Daemon;
use crate::support::site::{Cloud, KEY, LIMIT, SITE, Site, connect};
use crate::support::sql::number;
use crate::support::tcp_proxy::{TcpProxy, Trouble};

/// What the replicator does when it comes by the point.
enum AbortedWork {
    /// It replicates under load.
    Drain,
    /// It backfills rows that are older than capture.
    Backfill,
    /// It compares with a cloud that lacks rows.
    Sync,
    /// It uploads files.
    Upload,
}

macro_rules! points {
    ($($name:ident: $work:ident $point:literal;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                match AbortedWork::$work {
                    AbortedWork::Drain => amid_a_drain(stringify!($name), $point).await,
                    AbortedWork::Backfill => amid_a_backfill(stringify!($name), $point).await,
                    AbortedWork::Sync => amid_a_sync(stringify!($name), $point).await,
                    AbortedWork::Upload => amid_an_upload(stringify!($name), $point).await,
                }
            }
        )*

        #[test]
        fn no_point_is_left_out() {
            for point in cloud_sync::abort::POINTS {
                let tested = |at: &&str| at.split('#').next() == Some(point);
                assert!([$($point),*].iter().any(tested), "{point}");
            }
        }
    };
}

points! {
    dies_after_a_read: Drain "after a read#3";
    dies_after_a_batch_behind_another: Drain "after a batch behind another#2";
    dies_before_a_send: Drain "before a send#3";
    dies_amid_the_answer: Drain "amid the answer#6";
    dies_after_the_answer: Drain "after the answer#3";
    dies_after_the_delivery: Drain "after the delivery#3";
    dies_before_the_hand_over: Drain "before the hand-over#3";
    dies_before_the_first_commit: Drain "before a commit";
    dies_before_a_commit: Drain "before a commit#4";
    dies_amid_the_first_commit: Drain "amid a commit";
    dies_amid_a_commit: Drain "amid a commit#4";
    dies_after_the_first_commit: Drain "after a commit";
    dies_after_a_commit: Drain "after a commit#4";
    dies_before_the_mirror: Drain "before the mirror";
    dies_after_the_mirror: Drain "after the mirror";
    dies_before_a_trim: Drain "before a trim";
    dies_amid_a_trim: Drain "amid a trim";
    dies_after_a_trim: Drain "after a trim";
    dies_amid_a_backfill: Backfill "amid a backfill#2";
    dies_after_a_page_of_a_backfill: Backfill "after a page of a backfill";
    dies_amid_a_sync: Sync "amid a sync";
    dies_after_the_capture_of_a_sync: Sync "after a sync's capture";
    dies_amid_an_upload: Upload "amid an upload#7";
    dies_after_an_upload: Upload "after an upload#2";
    dies_before_an_upload_is_noted: Upload "before an upload is noted";
    dies_after_an_upload_is_noted: Upload "after an upload is noted";
}

/// Waits until what was being sent when the replicator died is applied, and returns how much that is.
async fn settled(cloud: &tokio_postgres::Client) -> i64 {
    let mut before = -1;
    while before < applied(cloud).await {
        before = applied(cloud).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    before
}

/// Starts again after a death, when `total` changes were made, and asks the oracle.
async fn starts_again(site: &Site, cloud: &Cloud, daemon: &Daemon, total: i64, tally: &mut Tally) {
    let there = connect(&cloud.database_url).await;
    let before = settled(&there).await;
    let process = daemon.start_with(&[&format!("delivery.batch_rows={BATCH}")]);
    let status = daemon.caught_up().await;
    let again = sent(&status) - (total - before);
    println!("{again} sent again of {before}");
    assert!((0..=IN_FLIGHT).contains(&again), "{again} were sent again");
    assert!(process.terminate().await.success());
    tally.judge(site, cloud).await;
}

async fn amid_a_drain(hint: &str, point: &str) {
    let cloud = Cloud::start(hint).await;
    let site = garden(hint, &cloud).await;
    let daemon = Daemon::of(&site, "store");
    let mut tally = Tally::default();
    // Given a load, and a replicator that dies under it
    let process = daemon.start_to_abort(point, &[&format!("delivery.batch_rows={BATCH}")]);
    let load = Stream::start(&site, 20);
    load.reach(1000).await;
    let mut total = load.end().await;
    process.aborted().await;
    tally.kills += 1;
    // when more is written, and it starts again,
    let more = Stream::start(&site, 20);
    more.reach(200).await;
    total += more.end().await;
    // then nothing is lost, and no more is sent again than was in flight.
    starts_again(&site, &cloud, &daemon, total, &mut tally).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_while_it_awaits_the_answer() {
    let cloud = Cloud::start("awaits").await;
    let proxy = TcpProxy::start(cloud.address()).await;
    let site = Site::bare("awaits", &proxy.url(), KEY, super::TABLES, super::ENTITIES).await;
    site.init().await;
    let there = connect(&cloud.database_url).await;
    let daemon = Daemon::of(&site, "store");
    let mut tally = Tally::default();
    // Given a request that the cloud has applied, whose answer is still on its way
    let process = daemon.start_with(&[&format!("delivery.batch_rows={BATCH}")]);
    let load = Stream::start(&site, 20);
    applied_or_late(&there, 500, LIMIT).await;
    proxy.set(Trouble::HoldAnswers);
    let total = load.end().await;
    settled(&there).await;
    // when the replicator is killed and started again,
    process.kill();
    tally.kills += 1;
    tally.faults += 1;
    proxy.set(Trouble::None);
    // then what was in flight is sent again, and nothing else.
    starts_again(&site, &cloud, &daemon, total, &mut tally).await;
}

async fn amid_a_backfill(hint: &str, point: &str) {
    let cloud = Cloud::start(hint).await;
    let site = Site::bare(hint, &cloud.url, KEY, super::TABLES, super::ENTITIES).await;
    // Given rows that are older than capture, some of which change at the same time
    site.run(
        "insert into pot select n, 'before', n from generate_series(1, 3000) n; \
         insert into leaf select n, 1, 'before' from generate_series(1, 300) n",
    )
    .await;
    site.init().await;
    let mut tally = Tally::default();
    let daemon = Daemon::of(&site, "store");
    let process = daemon.start();
    // when the backfill dies, and is run again,
    daemon.ask_to_abort(point, &["backfill", "--all"]).aborted().await;
    tally.kills += 1;
    site.run(
        "update pot set label = 'meanwhile' where pot_id % 10 = 0; delete from pot where pot_id % 100 = 7",
    )
    .await;
    let again = daemon.ask(&["backfill", "--all", "--json"]);
    assert!(again.status.success(), "{again:?}");
    // then every row is there, the changed ones as they are now.
    daemon.caught_up().await;
    assert!(process.terminate().await.success());
    tally.judge(&site, &cloud).await;
    site.assert_equal(&cloud).await;
}

async fn amid_a_sync(hint: &str, point: &str) {
    let cloud = Cloud::start(hint).await;
    let site = garden(hint, &cloud).await;
    let there = connect(&cloud.database_url).await;
    let mut tally = Tally::default();
    let daemon = Daemon::of(&site, "store");
    let process = daemon.start_to_abort(point, &[]);
    site.run("insert into pot select n, 'pot', n from generate_series(1, 500) n")
        .await;
    daemon.caught_up().await;
    // Given a cloud that has lost rows, holds others in another state, and some that the site has not
    there
        .batch_execute(&format!(
            "delete from cloud.pots where pot_id <= 100; \
             update cloud.pots set label = 'other' where pot_id > 400; \
             insert into cloud.pots (_site, _epoch, _version, pot_id, label) \
             select '{SITE}', 1, 0, n, 'stranger' from generate_series(1001, 1010) n"
        ))
        .await
        .unwrap();
    // when the replicator dies amid the sync,
    assert!(!daemon.ask(&["sync"]).status.success());
    process.aborted().await;
    tally.kills += 1;
    // then the next one brings all of it back.
    let process = daemon.start();
    daemon.caught_up().await;
    let again = daemon.ask(&["sync", "--json"]);
    assert!(again.status.success(), "{again:?}");
    daemon.caught_up().await;
    assert!(process.terminate().await.success());
    tally.judge(&site, &cloud).await;
    site.assert_equal(&cloud).await;
}

async fn amid_an_upload(hint: &str, point: &str) {
    let (cloud, site) = Site::school_with_cloud(hint).await;
    let there = connect(&cloud.database_url).await;
    let mut tally = Tally::default();
    let daemon = Daemon::of(&site, "store");
    // Given files of many pieces, and rows that name them
    for name in ["a", "b", "c"] {
        let bytes: Vec<u8> = (0..3_000_000_u32)
            .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8 ^ name.as_bytes()[0])
            .collect();
        std::fs::write(site.media().join(format!("{name}.jpg")), bytes).unwrap();
    }
    site.run(
        "insert into tbl_faculty (faculty_fname) values ('x'), ('y'); \
         insert into tbl_leave (faculty_id, leave_slip_image) \
         values (1, 'a.jpg'), (1, 'b.jpg'), (1, 'c.jpg'), (2, 'a.jpg')",
    )
    .await;
    // when the replicator dies while it uploads,
    daemon.start_to_abort(point, &[]).aborted().await;
    tally.kills += 1;
    // then no half file is to be seen,
    let halves = "select count(*) from cloud_meta.files where size <> 3000000";
    assert_eq!(number(&there, halves).await, 0);
    // and the next run brings all of them, each once, and their rows name them.
    let process = daemon.start();
    daemon
        .until("all files uploaded", LIMIT, |status| {
            status.files.uploaded == 3 && status.lag.is_some_and(|lag| lag.changes == 0)
        })
        .await;
    daemon.caught_up().await;
    assert!(process.terminate().await.success());
    assert_eq!(number(&there, "select count(*) from cloud_meta.files").await, 3);
    tally.judge(&site, &cloud).await;
    let report = site.compare(&cloud).await;
    let files: u64 = report.entities.iter().map(|entity| entity.files_verified).sum();
    assert_eq!(files, 4, "{report}");
}
