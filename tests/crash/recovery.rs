//! The replicator and the source's server die together, as when the power fails.

use super::garden_on;
use crate::support::oracle::Tally;
use crate::support::postgres::Server;
use crate::support::process::Daemon;
use crate::support::site::{Cloud, connect};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_stands_on_nothing_that_a_crash_of_the_source_takes_back() {
    // Given a server that writes its log to the disk at commits only
    let server = Server::with(&["wal_writer_delay=10s"]);
    let cloud = Cloud::start("recovery").await;
    let mut site = garden_on(&server, "recovery", &cloud).await;
    let daemon = Daemon::of(&site, "store");
    let mut tally = Tally::default();
    let process = daemon.start();
    site.run("insert into pot values (1, 'before', 0)").await;
    daemon.caught_up().await;
    assert!(process.terminate().await.success());
    // a committed change, and after it a transaction that has taken positions, of which the disk knows
    // nothing
    site.run("update pot set label = 'committed' where pot_id = 1")
        .await;
    let open = connect(&site.database_url).await;
    open.batch_execute("begin; insert into pot select n, 'never', n from generate_series(1000, 1999) n")
        .await
        .unwrap();
    // when the replicator dies as soon as it has a checkpoint after that change, and the server with it,
    daemon.start_to_abort("after a commit", &[]).aborted().await;
    server.restart("QUIT");
    tally.kills += 2;
    site.client = connect(&site.database_url).await;
    // then what comes next, whatever numbers it gets, arrives.
    site.run("insert into pot select n, 'after', n from generate_series(2, 500) n")
        .await;
    let process = daemon.start();
    site.run("update pot set weight = 7 where pot_id <= 3").await;
    daemon.caught_up().await;
    assert!(process.terminate().await.success());
    tally.judge(&site, &cloud).await;
    site.assert_equal(&cloud).await;
}
