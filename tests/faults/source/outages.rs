//! The site's server goes away and comes back; its sessions are killed; it has no connection left.

use std::collections::BTreeSet;
use std::time::Duration;

use cloud_sync::control::status::ReplicatorState;

use super::{TURN, garden, replicating};
use crate::support::machine::{Load, Machine, reach};
use crate::support::oracle::Tally;
use crate::support::process::Daemon;
use crate::support::site::{Cloud, LIMIT, connect};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_restarts_or_crashes_under_load_loses_nothing() {
    let mut tally = Tally::default();
    let cloud = Cloud::start("restart").await;
    let machine = Machine::start("");
    let mut site = garden(machine.database("site").await, &cloud).await;
    let daemon = Daemon::of(&site, "store");
    let process = daemon.start();
    let load = Load::start(&site.database_url, TURN);
    for mode in ["fast", "immediate", "immediate", "immediate"] {
        load.turns(60).await;
        machine.down("main", mode);
        tally.kills += 1;
        // While it is away the replicator says so, and what to do.
        let status = daemon
            .until("backing off", LIMIT, |status| {
                status.state == ReplicatorState::BackingOff && status.source.reachable == Some(false)
            })
            .await;
        let reason = status.reason.unwrap();
        assert!(reason.contains("check that the server runs"), "{reason}");
        assert_eq!(daemon.health().await, 503);
        machine.up("main", "");
        replicating(&daemon).await;
    }
    load.turns(40).await;
    load.end().await;
    site.client = reach(&site.database_url).await;
    daemon.caught_up().await;
    tally.judge(&site, &cloud).await;
    assert!(process.terminate().await.success(), "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transaction_numbers_that_a_crash_gives_again_hide_no_change() {
    let mut tally = Tally::default();
    let cloud = Cloud::start("again").await;
    let machine = Machine::start("-c wal_writer_delay=10s -c bgwriter_delay=10s");
    let mut site = garden(machine.database("site").await, &cloud).await;
    let daemon = Daemon::of(&site, "store");
    let process = daemon.start();
    daemon.caught_up().await;
    for turn in 0..6 {
        // Given one change that was delivered, on a server so quiet that nothing after it reaches its disk
        site.run(&format!("insert into pot values ({turn}, 'before')"))
            .await;
        let there = connect(&cloud.database_url).await;
        let arrived = format!("select count(*) from cloud.pots where pot_id = {turn}");
        let start = std::time::Instant::now();
        while there
            .query_one(&arrived, &[])
            .await
            .map_or(0, |row| row.get::<_, i64>(0))
            == 0
        {
            assert!(start.elapsed() < LIMIT);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // when the server crashes at once, and the next change takes the next number,
        machine.down("main", "immediate");
        tally.kills += 1;
        machine.up("main", "-c wal_writer_delay=10s -c bgwriter_delay=10s");
        site.client = reach(&site.database_url).await;
        site.run(&format!("insert into pot values (100 + {turn}, 'after')"))
            .await;
        daemon.caught_up().await;
    }
    // then it arrives too.
    tally.judge(&site, &cloud).await;
    assert!(process.terminate().await.success(), "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_the_replicators_sessions_may_be_killed_at_any_time() {
    let mut tally = Tally::default();
    let cloud = Cloud::start("killed").await;
    let machine = Machine::start("");
    let site = garden(machine.database("site").await, &cloud).await;
    let daemon = Daemon::of(&site, "store");
    let process = daemon.start();
    daemon.caught_up().await;
    let load = Load::start(&site.database_url, TURN);
    let root = reach(&machine.url("postgres")).await;
    let sessions =
        "select distinct application_name from pg_stat_activity where application_name like 'cloud-sync%'";
    let mut killed = BTreeSet::new();
    for _round in 0..2 {
        load.turns(40).await;
        let names: Vec<String> = root
            .query(sessions, &[])
            .await
            .unwrap()
            .iter()
            .map(|row| row.get(0))
            .collect();
        for name in names {
            tally.kills += root
                .query(
                    "select pg_terminate_backend(pid) from pg_stat_activity where application_name = $1",
                    &[&name],
                )
                .await
                .unwrap()
                .len() as u64;
            killed.insert(name);
            load.turns(10).await;
        }
        replicating(&daemon).await;
    }
    for name in ["drain", "delivery", "checkpoint", "leader", "status"] {
        assert!(killed.contains(&format!("cloud-sync {name}")), "{killed:?}");
    }
    println!("killed: {killed:?}");
    load.end().await;
    daemon.caught_up().await;
    tally.judge(&site, &cloud).await;
    assert!(process.terminate().await.success(), "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_a_free_connection_is_waited_for() {
    let mut tally = Tally::default();
    let cloud = Cloud::start("full").await;
    let machine = Machine::start("-c max_connections=24 -c superuser_reserved_connections=3");
    let url = machine.database("site").await;
    reach(&url)
        .await
        .batch_execute(
            "create role app login; grant create on database site to app; grant all on schema public to app",
        )
        .await
        .unwrap();
    let mut site = garden(machine.url_as("app", "site"), &cloud).await;
    let daemon = Daemon::of(&site, "store");
    // Given all connections taken by others
    let mut others = Vec::new();
    while let Ok((client, connection)) =
        tokio_postgres::connect(&site.database_url, tokio_postgres::NoTls).await
    {
        tokio::spawn(connection);
        others.push(client);
    }
    tally.faults += 1;
    let process = daemon.start();
    let status = daemon
        .until("backing off", LIMIT, |status| {
            status.state == ReplicatorState::BackingOff
        })
        .await;
    let reason = status.reason.unwrap();
    assert!(reason.contains("connect to the site's database"), "{reason}");
    println!("{reason}");
    site.run("insert into pot values (1, 'while full')").await;
    // when they are given back, it goes on.
    drop(others);
    daemon.caught_up().await;
    site.client = reach(&machine.url("site")).await;
    tally.judge(&site, &cloud).await;
    assert!(process.terminate().await.success(), "{}", daemon.log());
}
