//! H2, H8, and what a stopped stream says: how the touches of a window become changes.

use cloud_sync::drain::Limits;

use super::{TABLE, deletes, drain_by, drained, held, site_of, things};

// H2. Site's `a_t after truncate`: `insert into t values (1), (2), (3)`; batches of 2.
#[tokio::test]
async fn rows_that_a_truncate_trigger_seeds_outlive_the_truncate_in_the_cloud() {
    let tables = format!(
        "{TABLE}; create function seed() returns trigger language plpgsql as \
         'begin insert into thing values (1), (2), (3); return null; end'; \
         create trigger a_t after truncate on thing for each statement execute function seed()"
    );
    let (cloud, site) = site_of("seed", &tables, &things("")).await;
    site.run("insert into thing values (7), (8)").await;
    let drain = drain_by(&site, 2);
    let mut stages = drain.open().await.unwrap();
    drained(&mut stages).await;
    site.run("truncate thing").await;
    drained(&mut stages).await;
    site.assert_equal(&cloud).await;
    assert_eq!(
        held(&cloud, "select id::text from cloud.things order by id").await,
        ["1", "2", "3"]
    );
}

// H8. `update nm set id = 1.00` touches 1.00, then 1.0; batches of one. The cloud's key is typed: both are one row.
#[tokio::test]
async fn a_key_that_reads_differently_keeps_its_row() {
    let (cloud, site) = site_of(
        "reads",
        "create table thing (id numeric primary key, label text)",
        &things(""),
    )
    .await;
    let drain = drain_by(&site, 1);
    let mut stages = drain.open().await.unwrap();
    site.run("insert into thing values (1.0, 'one'), (2, 'two')")
        .await;
    drained(&mut stages).await;
    site.run("update thing set id = 1.00 where id = 1; delete from thing where id = 2")
        .await;
    drained(&mut stages).await;
    assert_eq!(
        held(&cloud, "select id::text from cloud.things order by id").await,
        ["1.00"],
    );
    site.assert_equal(&cloud).await;
}

// H8 where the cloud's key is text: the old spelling must not stay.
#[tokio::test]
async fn a_key_in_other_letters_leaves_one_row() {
    let tables = "create extension citext; create table thing (id citext primary key, label text)";
    let (cloud, site) = site_of("letters", tables, &things("")).await;
    let drain = drain_by(&site, 1);
    let mut stages = drain.open().await.unwrap();
    site.run("insert into thing values ('Room', 'one'), ('Hall', 'two')")
        .await;
    drained(&mut stages).await;
    site.run("update thing set id = 'ROOM' where id = 'room'").await;
    drained(&mut stages).await;
    let keys = held(&cloud, "select id::text from cloud.things order by id").await;
    assert_eq!(keys, ["Hall", "ROOM"]);
}

// Sentence 1: a stream that was stopped says nothing of the keys that it has not come to.
#[tokio::test]
async fn keys_that_a_stopped_stream_has_not_come_to_are_not_deleted() {
    let (cloud, site) = site_of("stopped", TABLE, &things("")).await;
    let mut drain = site.drain();
    drain.limits = Limits {
        rows: 1000,
        bytes: 40_000,
    };
    let mut stages = drain.open().await.unwrap();
    site.run(
        "insert into thing select n, 'small' from generate_series(1, 60) n; \
         update thing set label = (select string_agg(md5(n::text), '') from generate_series(1, 300) n); \
         delete from thing where id % 20 = 0",
    )
    .await;
    drained(&mut stages).await;
    site.assert_equal(&cloud).await;
    // Rows 20, 40 and 60 never were in the cloud: only their own deletes may have gone.
    assert!(deletes(&cloud).await <= 3);
    assert_eq!(held(&cloud, "select id::text from cloud.things").await.len(), 57);
}
