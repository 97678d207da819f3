//! Rounds of SIGKILL under writers that do all that a transaction can do.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{applied, applied_or_late, given};
use crate::support::oracle::{Tally, amid};
use crate::support::postgres::Server;
use crate::support::process::Daemon;
use crate::support::site::{Cloud, LIMIT, connect};
use crate::support::sql::number;
use crate::support::workload::{self, SERVER_OPTIONS, Workload, WorkloadScope, audited};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rounds_of_sigkill_under_writers_of_every_kind() {
    let rounds = given("CLOUD_SYNC_ROUNDS", 60);
    let seed = given("CLOUD_SYNC_SEED", rand::random());
    println!("CLOUD_SYNC_SEED={seed} CLOUD_SYNC_ROUNDS={rounds}");
    // Given a server that can prepare transactions, on which nobody notifies
    let server = Server::with(&SERVER_OPTIONS);
    let cloud = Cloud::start("sigkill").await;
    let site = workload::site(&server, "sigkill", &cloud.url).await;
    let there = connect(&cloud.database_url).await;
    let daemon = Daemon::of(&site, "store");
    let mut tally = Tally::default();
    let mut rng = StdRng::seed_from_u64(seed);

    // a change that waits: how long a start takes
    let start = Instant::now();
    let process = daemon.start();
    applied_or_late(&there, 1, LIMIT).await;
    println!("from spawn to the first accepted change: {:?}", start.elapsed());
    process.kill();

    // and writers,
    let workload = Workload::start(&site.database_url, rng.random(), WorkloadScope::Rows);
    // when the replicator is killed again and again, at random moments after a start or amid deliveries,
    for round in 0..rounds {
        let process = daemon.start();
        if round % 2 == 0 {
            tokio::time::sleep(Duration::from_millis(rng.random_range(30..400))).await;
        } else {
            let goal = applied(&there).await + rng.random_range(1..150);
            applied_or_late(&there, goal, Duration::from_secs(3)).await;
        }
        process.kill();
        tally.kills += 1;
        if round % 20 == 19 {
            // then what counts as accepted is in the cloud at any moment,
            let mut found = amid(&site, &cloud).await;
            found.extend(audited(&site, &cloud).await);
            tally.violations += found.len() as u64;
            assert!(found.is_empty(), "after {round} rounds:\n{}", found.join("\n"));
        }
    }
    let before = applied(&there).await;
    let committed = workload.end().await.committed();
    // and one last run leaves both sides equal, no row ever went back, and nothing was refused.
    let process = daemon.start();
    daemon.caught_up().await;
    println!(
        "{committed} transactions, {} changes; {before} applied amid {rounds} kills, {} in all",
        number(&site.client, "select last_value from cloud_sync.position").await,
        applied(&there).await
    );
    assert!(process.terminate().await.success());
    tally.judge(&site, &cloud).await;
    assert_eq!(audited(&site, &cloud).await, Vec::<String>::new());
    site.assert_equal(&cloud).await;
    assert_eq!(
        number(&site.client, "select count(*) from cloud_sync.quarantine").await,
        0
    );
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
}
