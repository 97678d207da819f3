//! H14, and sentences 4 and 5: an entity that cannot be read or believed waits alone, and its touches are
//! kept.

use super::{TABLE, deletes, drain_by, drained, held, settled, things};
use crate::support::site::{Site, connect};
use crate::support::sql::{number, texts, until};

const COLLATED: &str = "create collation words (provider = icu, locale = 'en'); \
     create table thing (id text collate words primary key, label text); \
     create table other (id bigint primary key)";

const OTHER: &str = "[[entity]]\nname = \"others\"\ntable = \"other\"\nkey = [\"id\"]\npath = \"others\"\n";

async fn parked(site: &crate::support::site::Site) -> Vec<String> {
    texts(
        &site.client,
        "select name || ': ' || parked from cloud_sync.entity where parked is not null",
    )
    .await
}

// H14. The index of a key disagrees with its collation: rows that it does not find may be there.
#[tokio::test]
async fn absences_by_an_index_of_another_collation_version_are_not_believed() {
    let (cloud, site) = Site::captured("collation", COLLATED, &format!("{}{OTHER}", things(""))).await;
    let drain = site.drain();
    site.run("insert into thing select 'key ' || n, 'text' from generate_series(1, 9) n")
        .await;
    drain.drain_all().await.unwrap();
    // Given a library that sorts in another way since
    site.run("update pg_collation set collversion = 'x' where collname = 'words'")
        .await;
    let mut stages = drain.open().await.unwrap();
    // then what is found is sent,
    site.run("update thing set label = 'found' where id = 'key 1'")
        .await;
    drained(&mut stages).await;
    let found = "select label from cloud.things where id = 'key 1'";
    assert_eq!(held(&cloud, found).await, ["found"]);
    // what is not found is no delete,
    site.run("delete from thing where id = 'key 2'; insert into other values (1)")
        .await;
    drained(&mut stages).await;
    assert_eq!(deletes(&cloud).await, 0);
    let parked = parked(&site).await;
    assert!(
        parked[0].starts_with("things: ") && parked[0].contains("reindex"),
        "{parked:?}"
    );
    // others flow on,
    assert_eq!(held(&cloud, "select id::text from cloud.others").await, ["1"]);
    // and after the remedy the delete goes out.
    site.run("reindex table thing; alter collation words refresh version")
        .await;
    settled(&mut stages, &site).await;
    assert_eq!(deletes(&cloud).await, 1);
    site.assert_equal(&cloud).await;
}

// H14 with the database's own collation, which is what most text keys have.
#[tokio::test]
async fn absences_are_not_believed_either_where_the_databases_collation_has_changed() {
    use crate::support::postgres::Server;
    use crate::support::site::{Cloud, KEY, Site};
    let root = connect(&Server::get().url("postgres")).await;
    root.batch_execute(
        "create database holes_icu template template0 locale_provider icu icu_locale 'en' locale 'C.UTF-8'",
    )
    .await
    .unwrap();
    let cloud = Cloud::start("icu").await;
    let tables = "create table thing (id text primary key, label text)";
    let url = Server::get().url("holes_icu");
    let site = Site::at(url, &cloud.url, KEY, tables, &things("")).await;
    site.init().await;
    let drain = site.drain();
    site.run("insert into thing values ('a'), ('b')").await;
    drain.drain_all().await.unwrap();
    site.run("update pg_database set datcollversion = 'x' where datname = current_database()")
        .await;
    let mut stages = drain.open().await.unwrap();
    site.run("delete from thing where id = 'a'").await;
    drained(&mut stages).await;
    assert_eq!(deletes(&cloud).await, 0);
    let parked = parked(&site).await;
    assert!(parked[0].contains("refresh collation version"), "{parked:?}");
    site.run("reindex table thing; alter database holes_icu refresh collation version")
        .await;
    settled(&mut stages, &site).await;
    assert_eq!(deletes(&cloud).await, 1);
    site.assert_equal(&cloud).await;
}

// Sentences 4 and 5. One table is locked for longer than the drain waits, in the window of another.
#[tokio::test]
async fn an_entity_that_is_locked_waits_alone_and_loses_nothing() {
    let tables = format!("{TABLE}; create table other (id bigint primary key)");
    let (cloud, site) = Site::captured("locked", &tables, &format!("{}{OTHER}", things(""))).await;
    let drain = site.drain();
    site.run("insert into thing values (1, 'one'), (2, 'two')").await;
    drain.drain_all().await.unwrap();
    let mut stages = drain.open().await.unwrap();
    let other = connect(&site.database_url).await;
    site.run(
        "update thing set label = 'kept' where id = 1; delete from thing where id = 2; \
         insert into other values (1)",
    )
    .await;
    other
        .batch_execute("begin; lock table thing in access exclusive mode")
        .await
        .unwrap();
    drained(&mut stages).await;
    // The other entity's change of the same window is there, and the keys are kept when the drain dies.
    assert_eq!(held(&cloud, "select id::text from cloud.others").await, ["1"]);
    let kept = "select count(*) from cloud_sync.parked_key";
    assert_eq!(number(&site.client, kept).await, 2);
    drop(stages);
    let mut stages = drain.open().await.unwrap();
    other.batch_execute("commit").await.unwrap();
    settled(&mut stages, &site).await;
    until(&site.client, "select count(*) = 0 from cloud_sync.parked_key").await;
    site.assert_equal(&cloud).await;
    assert_eq!(deletes(&cloud).await, 1);
}

// A truncate that was kept comes behind what was delivered since, and takes it from the cloud: that comes
// again.
#[tokio::test]
async fn a_truncate_of_a_table_that_was_locked_takes_nothing_for_good() {
    let (cloud, site) = Site::captured("kept_truncate", TABLE, &things("")).await;
    let drain = drain_by(&site, 10);
    site.run("insert into thing select n, 'old' from generate_series(1, 5) n")
        .await;
    drain.drain_all().await.unwrap();
    let mut stages = drain.open().await.unwrap();
    let other = connect(&site.database_url).await;
    // Given a table that is truncated and filled, for longer than the drain waits,
    site.run("update thing set label = 'touched' where id = 1").await;
    other
        .batch_execute(
            "begin; truncate thing; insert into thing select n, 'new' from generate_series(1, 100) n",
        )
        .await
        .unwrap();
    drained(&mut stages).await;
    assert_eq!(parked(&site).await.len(), 1);
    // and can be read again amid the window that holds the truncate,
    other.batch_execute("commit").await.unwrap();
    stages.step().await.unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    settled(&mut stages, &site).await;
    let gaps =
        "select count(*) from cloud_sync.entity where gap like '%truncated while it could not be read'";
    assert_eq!(number(&site.client, gaps).await, 1);
    drop((stages, drain));
    // then it is compared.
    let running = site.replicate_monitoring_drift();
    until(
        &site.client,
        "select count(*) = 0 from cloud_sync.entity where gap is not null",
    )
    .await;
    running.caught_up().await;
    site.assert_equal(&cloud).await;
    running.end().await;
}
