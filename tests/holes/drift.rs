//! H15, sentences 4, 7 and 16: what changes rows without a touch is found and compared.

use cloud_sync::catalogue::Catalogue;

use super::{TABLE, drained, held, things};
use crate::support::site::{Site, connect, until_whole};
use crate::support::sql::{number, until_session_waits};

// H15. `alter column v type int using v + 1`: names, types and touches are as before.
#[tokio::test]
async fn values_that_change_without_a_touch_are_compared() {
    let tables = "create table thing (id bigint primary key, v int)";
    let (cloud, site) = Site::captured("using", tables, &things("")).await;
    let running = site.replicate_monitoring_drift();
    site.run("insert into thing select n, n from generate_series(1, 9) n")
        .await;
    running.caught_up().await;
    until_whole(&site, &running).await;
    let there = connect(&cloud.database_url).await;
    for (change, so) in [
        (
            "alter table thing alter column v type int using v + 1",
            "select sum(v) = 54 from cloud.things",
        ),
        (
            "alter table thing add column w int generated always as (v * 2) stored",
            "select sum(w) = 108 from cloud.things",
        ),
    ] {
        site.run(change).await;
        crate::support::sql::until_some(&there, so).await;
    }
    until_whole(&site, &running).await;
    site.assert_equal(&cloud).await;
    running.end().await;
}

// H15. A trigger is disabled and enabled in one transaction: its state is as before.
#[tokio::test]
async fn a_trigger_that_was_off_for_a_moment_is_noticed() {
    let (cloud, site) = Site::captured("moment", TABLE, &things("")).await;
    let running = site.replicate_monitoring_drift();
    site.run("insert into thing values (1, 'one'), (2, 'two')").await;
    running.caught_up().await;
    until_whole(&site, &running).await;
    site.run(
        "begin; alter table thing disable trigger cloud_sync_1_update; \
         update thing set label = 'unseen' where id = 1; \
         alter table thing enable always trigger cloud_sync_1_update; commit",
    )
    .await;
    running
        .until("noticed", |status| !status.capture.is_empty())
        .await;
    site.init().await;
    until_whole(&site, &running).await;
    site.assert_equal(&cloud).await;
    running.end().await;
}

// Sentence 4. Retention of 30 days, triggers off, a row of 60 days is changed: the gap's comparison has no
// bound.
#[tokio::test]
async fn what_a_gap_missed_is_found_whatever_its_age() {
    let tables = "create table thing (id bigint primary key, label text, at timestamptz not null)";
    let config = things("retention = { column = \"at\", days = 30 }");
    let (cloud, site) = Site::captured("age", tables, &config).await;
    let running = site.replicate_monitoring_drift();
    site.run("insert into thing values (1, 'old', now() - interval '60 days'), (2, 'new', now())")
        .await;
    running.caught_up().await;
    until_whole(&site, &running).await;
    site.run("alter table thing disable trigger all; update thing set label = 'missed'")
        .await;
    running
        .until("noticed", |status| !status.capture.is_empty())
        .await;
    site.init().await;
    until_whole(&site, &running).await;
    assert_eq!(
        held(&cloud, "select label from cloud.things order by id").await,
        ["missed", "missed"]
    );
    running.end().await;
}

// Sentences 7 and 16. A leaf is truncated; a new partition is written to before it has triggers.
#[tokio::test]
async fn a_leafs_truncate_and_a_new_partition_are_compared() {
    let tables = "create table thing (id bigint primary key, label text) partition by range (id); \
         create table low partition of thing for values from (0) to (10); \
         create table high partition of thing for values from (10) to (20)";
    let (cloud, site) = Site::captured("leaves", tables, &things("")).await;
    let running = site.replicate_monitoring_drift();
    site.run("insert into thing select n, 'text' from generate_series(5, 14) n")
        .await;
    running.caught_up().await;
    until_whole(&site, &running).await;
    site.run("truncate low").await;
    crate::support::sql::until_some(
        &connect(&cloud.database_url).await,
        "select count(*) = 5 and min(id) = 10 from cloud.things",
    )
    .await;
    until_whole(&site, &running).await;
    let truncates = held(&cloud, "select op from cloud_meta.history where op = 'truncate'").await;
    assert!(truncates.is_empty());
    // One transaction: no look of the drift monitor comes in between.
    site.run(
        "begin; create table more partition of thing for values from (20) to (30); \
         insert into more values (21, 'direct'); commit",
    )
    .await;
    crate::support::sql::until_some(
        &connect(&cloud.database_url).await,
        "select count(*) = 6 from cloud.things",
    )
    .await;
    until_whole(&site, &running).await;
    site.assert_equal(&cloud).await;
    running.end().await;
}

const PARTITIONS: &str = "create table thing (id bigint primary key, label text) partition by range (id); \
     create table low partition of thing for values from (0) to (10); \
     create table high partition of thing for values from (10) to (20)";

// A partition is dropped, or leaves while another comes: its rows left without a trigger, and nothing else is
// wrong.
#[tokio::test]
async fn a_partition_that_goes_is_compared() {
    let (cloud, site) = Site::captured("leaf_goes", PARTITIONS, &things("")).await;
    let running = site.replicate_monitoring_drift();
    site.run("insert into thing select n, 'text' from generate_series(5, 14) n")
        .await;
    running.caught_up().await;
    until_whole(&site, &running).await;
    for (change, left) in [
        ("drop table low", 5),
        (
            "begin; alter table thing detach partition high; \
             create table more partition of thing for values from (20) to (30); commit",
            0,
        ),
    ] {
        site.run(change).await;
        crate::support::sql::until_some(
            &connect(&cloud.database_url).await,
            &format!("select count(*) = {left} from cloud.things"),
        )
        .await;
        until_whole(&site, &running).await;
        site.assert_equal(&cloud).await;
    }
    running.end().await;
}

// A partition comes, its row is read, and it leaves while the same batch is read still: no look at the tables
// ever shows it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_of_a_partition_that_is_there_for_one_read_does_not_stay() {
    // The rows of `other` are read after those of `thing`, and wait for lock 7.
    let tables = format!(
        "{PARTITIONS}; create table other (id bigint primary key); \
         create function fine(bigint) returns boolean immutable language plpgsql as \
         'begin perform pg_advisory_xact_lock_shared(7); return true; end'"
    );
    let others = "[[entity]]\nname = \"others\"\ntable = \"other\"\nkey = [\"id\"]\nwhere = \"fine(id)\"\n";
    let (cloud, site) = Site::captured("one_read", &tables, &format!("{}{others}", things(""))).await;
    let drain = site.drain();
    let mut stages = drain.open().await.unwrap();
    site.run("insert into thing values (1, 'text'); insert into other values (1)")
        .await;
    drained(&mut stages).await;
    let locker = connect(&site.database_url).await;
    locker.batch_execute("select pg_advisory_lock(7)").await.unwrap();
    site.run(
        "begin; create table more partition of thing for values from (20) to (30); \
         insert into thing values (25, 'text'); insert into other values (2); commit",
    )
    .await;
    let (stepped, ()) = tokio::join!(stages.step(), async {
        until_session_waits(&site.client, "drain").await;
        site.run("alter table thing detach partition more").await;
        locker
            .batch_execute("select pg_advisory_unlock(7)")
            .await
            .unwrap();
    });
    stepped.unwrap();
    drained(&mut stages).await;
    assert_eq!(held(&cloud, "select id::text from cloud.things").await, ["1"]);
    site.assert_equal(&cloud).await;
}

// Between two looks of the drift monitor a partition comes, a row of it is sent, and it leaves, or loses the row
// without a touch.
#[tokio::test]
async fn what_a_partition_lost_between_two_looks_is_compared() {
    for (nth, change) in [
        "alter table thing detach partition more",
        "drop table more",
        "truncate more",
        "delete from more",
        "delete from more; vacuum more",
    ]
    .into_iter()
    .enumerate()
    {
        let (cloud, site) = Site::captured(&format!("between_{nth}"), PARTITIONS, &things("")).await;
        let drain = site.drain();
        let mut stages = drain.open().await.unwrap();
        site.run("create table more partition of thing for values from (20) to (30)")
            .await;
        site.run("insert into thing values (1, 'stays'), (21, 'through the parent')")
            .await;
        super::drained(&mut stages).await;
        assert_eq!(held(&cloud, "select id::text from cloud.things").await.len(), 2);
        for one in change.split("; ") {
            site.run(one).await;
        }
        drop((stages, drain));
        let running = site.replicate_monitoring_drift();
        let start = std::time::Instant::now();
        while held(&cloud, "select id::text from cloud.things").await != ["1"] {
            assert!(start.elapsed() < std::time::Duration::from_secs(10), "{change}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        until_whole(&site, &running).await;
        site.assert_equal(&cloud).await;
        running.end().await;
    }
}

// Rows of an entity are written while the configuration does not have it, and its triggers are still there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changed_while_the_catalogue_lacked_its_entity_is_compared() {
    let tables = format!("{TABLE}; create table other (id bigint primary key, label text)");
    let others = "[[entity]]\nname = \"others\"\ntable = \"other\"\nkey = [\"id\"]\npath = \"others\"\n";
    let (cloud, mut site) = Site::captured("foreign", &tables, &format!("{}{others}", things(""))).await;
    site.run(
        "insert into thing values (1, 'one'); insert into other select n, 'old' from generate_series(1, 5) n",
    )
    .await;
    site.drain().drain_all().await.unwrap();
    site.assert_equal(&cloud).await;
    // Given a drain that does not know the entity,
    let only_things = site.settings.catalogue.entities()[..1].to_vec();
    let only_things = Catalogue::new(only_things).unwrap();
    let all = std::mem::replace(&mut site.settings.catalogue, only_things);
    site.run(
        "update other set label = 'new' where id = 1; delete from other where id = 2; \
         insert into other values (6, 'new'); \
         insert into thing values (2, 'two')",
    )
    .await;
    site.drain().drain_all().await.unwrap();
    // whose own entities flow on, and which gives the space of the touches back,
    assert_eq!(
        held(&cloud, "select id::text from cloud.things order by id").await,
        ["1", "2"]
    );
    assert_eq!(
        number(&site.client, "select count(*) from cloud_sync.outbox").await,
        0
    );
    // then the entity is compared when it is there again.
    site.settings.catalogue = all;
    let running = site.replicate_monitoring_drift();
    until_whole(&site, &running).await;
    site.assert_equal(&cloud).await;
    running.end().await;
}
