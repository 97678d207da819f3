//! Kills while the program starts: its store opens after each of them.

use std::time::{Duration, Instant};

use cloud_sync::checkpoint::{SledStore, Store};
use rand::RngExt;

use super::{applied, garden, given};
use crate::support::oracle::Tally;
use crate::support::process::Daemon;
use crate::support::site::{Cloud, LIMIT, connect};

const OPENED: &str = "this process drains the outbox";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_opens_with_its_checkpoint_after_each_kill_of_a_program_that_starts() {
    let kills = given("CLOUD_SYNC_KILLS", 200);
    let cloud = Cloud::start("opening").await;
    let site = garden("opening", &cloud).await;
    let daemon = Daemon::of(&site, "store");
    // Given a store with a checkpoint, and how long a start takes until it is open
    let process = daemon.start();
    site.run("insert into pot values (0, 'before', 0)").await;
    daemon.caught_up().await;
    assert!(process.terminate().await.success());
    let (start, logged) = (Instant::now(), daemon.log().len());
    let process = daemon.start();
    while !daemon.log()[logged..].contains(OPENED) {
        assert!(start.elapsed() < LIMIT, "{}", daemon.log());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let until_open = start.elapsed();
    process.kill();
    let mut before = (0, 0);
    let mut tally = Tally::default();
    for kill in 1..=kills {
        // When it is killed at any moment of its start, while rows are written
        site.client
            .execute("insert into pot values ($1, 'pot', 0)", &[&(kill as i64)])
            .await
            .unwrap();
        let process = daemon.start();
        let moment = until_open.mul_f64(rand::rng().random_range(0.0..1.4));
        tokio::time::sleep(moment).await;
        process.kill();
        tally.kills += 1;
        // Then its store opens with the checkpoint that it had, or a later one.
        let (store, aside) = SledStore::open(&daemon.checkpoint()).unwrap();
        assert_eq!(aside, None, "kill {kill}, after {moment:?}");
        let place = store.load().unwrap().expect("a checkpoint").order();
        assert!(place >= before, "{place:?} after {before:?}");
        before = place;
    }
    println!(
        "{kills} kills within {:?} of a start, the store open in {} of them",
        until_open.mul_f64(1.4),
        daemon.log().matches(OPENED).count() - 2
    );
    assert!(!daemon.log().contains("set aside"), "{}", daemon.log());
    // And no change is lost.
    let process = daemon.start();
    daemon.caught_up().await;
    assert!(process.terminate().await.success());
    assert_eq!(
        applied(&connect(&cloud.database_url).await).await,
        kills as i64 + 1
    );
    tally.judge(&site, &cloud).await;
    site.assert_equal(&cloud).await;
}
