//! H1: a table that is rewritten while its rows are read.

use super::{deletes, drained, settled, things};
use crate::support::site::{Cloud, Site, connect};
use crate::support::sql::{number, until, until_session_waits};

const TABLES: &str = "create table thing (id bigint primary key, n int); \
     insert into thing select n, n from generate_series(1, 5) n";

/// All that leaves the table empty for a snapshot from before.
const REWRITES: [&str; 7] = [
    "alter table thing set unlogged",
    "alter table thing set logged",
    "alter table thing alter column n type bigint using n + 1",
    "alter table thing add column drawn float8 default random()",
    "alter table thing add column twice bigint generated always as (n * 2) stored",
    "create temporary table kept as select * from thing; truncate thing; \
     insert into thing (id, n, drawn) select id, n, drawn from kept",
    // The new table has no triggers: that is drift, which other tests cover.
    "create table anew (like thing including all); \
     insert into anew (id, n, drawn) select id, n, drawn from thing; \
     drop table thing; alter table anew rename to thing",
];

// H1. Rows 1..5 sent; `update … id < 4`; a rewrite is running when the batch comes: the read waits for
// it.
#[tokio::test]
async fn a_rewrite_that_ends_while_the_read_waits_deletes_nothing() {
    let (cloud, site) = Site::captured("rewrite", TABLES, &things("")).await;
    let drain = site.drain();
    let mut stages = drain.open().await.unwrap();
    site.run("update thing set n = n").await;
    drained(&mut stages).await;
    let other = connect(&site.database_url).await;
    for rewrite in REWRITES {
        // Given touches of rows, and a rewrite of the table that has not ended
        site.run("update thing set n = n + 1 where id < 4").await;
        other.batch_execute(&format!("begin; {rewrite}")).await.unwrap();
        // when it ends while the read waits for the table's lock,
        let (stepped, ()) = tokio::join!(stages.step(), async {
            until_session_waits(&site.client, "drain").await;
            other.batch_execute("commit").await.unwrap();
        });
        stepped.unwrap();
        // then the rows are there, and no delete was ever sent.
        settled(&mut stages, &site).await;
        all_there(&cloud, rewrite).await;
        // Values that the rewrite itself has changed are the drift monitor's to find.
        site.run("update thing set n = n").await;
        settled(&mut stages, &site).await;
        site.assert_equal(&cloud).await;
    }
}

/// Every row is in the cloud, and none ever left it.
async fn all_there(cloud: &Cloud, rewrite: &str) {
    let there = connect(&cloud.database_url).await;
    assert_eq!(
        number(&there, "select count(*) from cloud.things").await,
        5,
        "{rewrite}"
    );
    assert_eq!(deletes(cloud).await, 0, "{rewrite}");
}

// H1, the other outcome: the rewrite takes longer than the drain waits for a lock.
#[tokio::test]
async fn a_rewrite_that_outlasts_the_wait_parks_the_entity_and_deletes_nothing() {
    let (cloud, site) = Site::captured("outlast", TABLES, &things("")).await;
    let drain = site.drain();
    let mut stages = drain.open().await.unwrap();
    site.run("update thing set n = n").await;
    drained(&mut stages).await;
    let other = connect(&site.database_url).await;
    for rewrite in [REWRITES[0], REWRITES[2]] {
        site.run("update thing set n = n + 1 where id < 4; delete from thing where id = 100")
            .await;
        other.batch_execute(&format!("begin; {rewrite}")).await.unwrap();
        let (stepped, ()) = tokio::join!(stages.step(), async {
            until(&site.client, "select count(*) = 3 from cloud_sync.parked_key").await;
            other.batch_execute("commit").await.unwrap();
        });
        stepped.unwrap();
        settled(&mut stages, &site).await;
        all_there(&cloud, rewrite).await;
        assert_eq!(
            number(&site.client, "select count(*) from cloud_sync.parked_key").await,
            0
        );
    }
}

// H1 with one leaf of a partitioned table rewritten.
#[tokio::test]
async fn a_leaf_that_is_rewritten_while_the_read_waits_deletes_nothing() {
    let tables = "create table thing (id bigint primary key, n int) partition by range (id); \
         create table low partition of thing for values from (0) to (10); \
         create table high partition of thing for values from (10) to (20); \
         insert into thing select n, n from generate_series(8, 12) n";
    let (cloud, site) = Site::captured("leaf", tables, &things("")).await;
    let drain = site.drain();
    let mut stages = drain.open().await.unwrap();
    site.run("update thing set n = n").await;
    drained(&mut stages).await;
    let other = connect(&site.database_url).await;
    site.run("update thing set n = n + 1").await;
    other
        .batch_execute("begin; alter table high set unlogged")
        .await
        .unwrap();
    let (stepped, ()) = tokio::join!(stages.step(), async {
        until_session_waits(&site.client, "drain").await;
        other.batch_execute("commit").await.unwrap();
    });
    stepped.unwrap();
    settled(&mut stages, &site).await;
    site.assert_equal(&cloud).await;
    assert_eq!(deletes(&cloud).await, 0);
}
