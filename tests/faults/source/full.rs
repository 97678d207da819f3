//! The source's disk is full: for the outbox, and for the other tables of the replicator.

use cloud_sync::control::status::ReplicatorState;

use super::garden;
use crate::support::machine::{Machine, reach};
use crate::support::oracle::Tally;
use crate::support::postgres::Server;
use crate::support::process::Daemon;
use crate::support::site::{Cloud, KEY, LIMIT, Site};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_outbox_fails_the_writer_and_gives_its_space_back() {
    let mut tally = Tally::default();
    let mut cloud = Cloud::start("full_disk").await;
    let machine = Machine::start("");
    // Long keys: a touch holds the key and nothing else of the row.
    let table = "create table tag (name text primary key, weight bigint not null default 0)";
    let entity = "[[entity]]\nname = \"tags\"\ntable = \"tag\"\nkey = [\"name\"]\n";
    let mut site = Site::at(machine.database("site").await, &cloud.url, KEY, table, entity).await;
    site.init().await;
    site.run(
        "insert into tag select (select string_agg(md5(n::text || m), '') from generate_series(1, 48) m) \
         from generate_series(1, 200) n",
    )
    .await;
    machine.down("main", "fast");
    machine.up_bounded("main", 20 * 1024);
    site.client = reach(&site.database_url).await;
    let daemon = Daemon::of(&site, "store");
    let process = daemon.start();
    daemon.caught_up().await;
    // Given a cloud that is away, and an outbox that grows until it can no more
    cloud.away().await;
    let fill = "update tag set weight = weight + 1";
    let mut written = 0;
    let error = loop {
        if let Err(error) = site.client.execute(fill, &[]).await {
            break error;
        }
        written += 1;
        site.run("vacuum tag").await;
        assert!(written < 200, "the disk never became full");
    };
    tally.faults += 1;
    println!(
        "after {written} turns the writer got: {}",
        error.as_db_error().unwrap()
    );
    // then the writer gets an error, and its transaction has not happened,
    let weight: i64 = site
        .client
        .query_one("select max(weight) from tag", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(weight, written);
    // and once the cloud is back, all is delivered, the space comes back and the writer goes on.
    cloud.back().await;
    daemon.caught_up().await;
    let start = std::time::Instant::now();
    while let Err(error) = site.client.execute(fill, &[]).await {
        assert!(start.elapsed() < LIMIT, "{error:?}\n{}", daemon.log());
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        // What a failed turn leaves in the table itself would fill that.
        site.run("vacuum tag").await;
    }
    daemon.caught_up().await;
    tally.judge(&site, &cloud).await;
    assert!(process.terminate().await.success(), "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_too_full_for_the_replicators_own_tables_is_told_and_waited_for() {
    let mut tally = Tally::default();
    let cloud = Cloud::start("no_mirror").await;
    let site = garden(Server::get().database("no_mirror").await, &cloud).await;
    let daemon = Daemon::of(&site, "store");
    let process = daemon.start();
    daemon.caught_up().await;
    // When nothing can be written but the outbox
    site.run(
        "create function full_disk() returns trigger language plpgsql as $$ begin \
         raise exception using errcode = 'disk_full', message = 'could not extend file: No space left \
         on device'; end $$; \
         create trigger full_disk before insert or update on cloud_sync.checkpoint for each row execute \
         function full_disk(); \
         create trigger full_disk before insert or update on cloud_sync.quarantine for each row execute \
         function full_disk()",
    )
    .await;
    tally.faults += 1;
    site.run("insert into pot select n, 'meanwhile' from generate_series(1, 500) n")
        .await;
    // then it is reported,
    let status = daemon
        .until("backing off", LIMIT, |status| {
            status.state == ReplicatorState::BackingOff
        })
        .await;
    let reason = status.reason.unwrap();
    assert!(reason.contains("No space left on device"), "{reason}");
    // nothing is trimmed that is not in the mirror,
    let left = "select count(*) from cloud_sync.outbox";
    assert_eq!(
        site.client.query_one(left, &[]).await.unwrap().get::<_, i64>(0),
        500
    );
    // and it goes on when there is space.
    site.run("drop function full_disk() cascade").await;
    daemon.caught_up().await;
    tally.judge(&site, &cloud).await;
    assert!(process.terminate().await.success(), "{}", daemon.log());
}
