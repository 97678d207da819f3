//! H9: one key or row that cannot be read does not stop the batch.

use super::{drained, held, settled, things};
use crate::support::postgres::Server;
use crate::support::site::{Cloud, KEY, Site, connect, until_whole};
use crate::support::sql::texts;

async fn quarantined(site: &Site) -> Vec<String> {
    texts(&site.client, "select key from cloud_sync.quarantine order by key").await
}

// H9. An enum key is touched and deleted, then its label is renamed: `invalid input value for enum`.
#[tokio::test]
async fn an_enum_key_whose_label_was_renamed_is_a_delete() {
    let tables =
        "create type mood as enum ('a', 'b', 'c'); create table thing (id mood primary key, label text)";
    let (cloud, site) = Site::captured("label", tables, &things("")).await;
    let drain = site.drain();
    let mut stages = drain.open().await.unwrap();
    site.run("insert into thing values ('a', 'one'), ('b', 'two')")
        .await;
    drained(&mut stages).await;
    site.run(
        "update thing set label = 'three' where id = 'a'; update thing set label = 'four' where id = 'b'; \
         alter type mood rename value 'b' to 'd'; insert into thing values ('c', 'five')",
    )
    .await;
    drained(&mut stages).await;
    // What is read by `a` and `c` is there, and nothing is left of `b`.
    assert_eq!(
        held(&cloud, "select id || ' ' || label from cloud.things order by 1").await,
        ["a three", "c five"]
    );
    assert!(quarantined(&site).await.is_empty());
    // That the row is called `d` now is the drift monitor's to find.
    drop((stages, drain));
    let running = site.replicate_monitoring_drift();
    crate::support::sql::until_some(
        &connect(&cloud.database_url).await,
        "select count(*) = 3 from cloud.things where id in ('a', 'c', 'd')",
    )
    .await;
    until_whole(&site, &running).await;
    site.assert_equal(&cloud).await;
    running.end().await;
}

// H9. A key column goes from text to int, with 'abc' touched and deleted before.
#[tokio::test]
async fn a_key_that_is_none_of_the_new_type_is_a_delete() {
    let (cloud, site) = Site::captured(
        "newtype",
        "create table thing (id text primary key, label text)",
        &things(""),
    )
    .await;
    let drain = site.drain();
    let mut stages = drain.open().await.unwrap();
    site.run("insert into thing values ('1', 'one'), ('abc', 'two')")
        .await;
    drained(&mut stages).await;
    site.run(
        "update thing set label = 'three' where id = '1'; delete from thing where id = 'abc'; \
         alter table thing alter column id type int using id::int; insert into thing values (2, 'four')",
    )
    .await;
    drained(&mut stages).await;
    assert_eq!(
        held(
            &cloud,
            "select id::text || ' ' || label from cloud.things order by 1"
        )
        .await,
        ["1 three", "2 four"]
    );
    assert!(quarantined(&site).await.is_empty());
}

// H9. `where` divides by zero for one row of a batch.
#[tokio::test]
async fn a_condition_that_fails_for_one_row_sets_that_row_aside() {
    let tables = "create table thing (id bigint primary key, size int)";
    let (cloud, site) = Site::captured("zero", tables, &things("where = \"100 / size > 1\"")).await;
    let drain = site.drain();
    let mut stages = drain.open().await.unwrap();
    site.run("insert into thing select n, n - 5 from generate_series(1, 20) n")
        .await;
    drained(&mut stages).await;
    assert_eq!(quarantined(&site).await, [r#"{"id":5}"#]);
    assert_eq!(held(&cloud, "select id::text from cloud.things").await.len(), 15);
    // The row is sent once it can be read.
    site.run("update thing set size = 7 where id = 5").await;
    drained(&mut stages).await;
    assert!(quarantined(&site).await.is_empty());
    assert_eq!(held(&cloud, "select id::text from cloud.things").await.len(), 16);
}

// H9. A text of an SQL_ASCII database has bytes that are no UTF-8.
#[tokio::test]
async fn bytes_that_are_no_text_set_their_row_aside() {
    let root = connect(&Server::get().url("postgres")).await;
    root.batch_execute("create database holes_ascii template template0 encoding 'SQL_ASCII' locale 'C'")
        .await
        .unwrap();
    let cloud = Cloud::start("ascii").await;
    let site = Site::at(
        Server::get().url("holes_ascii"),
        &cloud.url,
        KEY,
        super::TABLE,
        &things(""),
    )
    .await;
    site.init().await;
    let drain = site.drain();
    let mut stages = drain.open().await.unwrap();
    site.run(
        "insert into thing select n, case n when 3 then E'\\xff\\xfe' else 'text' end \
         from generate_series(1, 9) n",
    )
    .await;
    drained(&mut stages).await;
    assert_eq!(quarantined(&site).await, [r#"{"id":3}"#]);
    assert_eq!(held(&cloud, "select id::text from cloud.things").await.len(), 8);
}

// H9. Types without a binary output function, and those whose binary form is another value.
#[tokio::test]
async fn types_without_a_binary_form_are_read_as_text() {
    let tables = "create extension seg; create extension isn; create table thing (id bigint primary key, \
         acl aclitem, keys gtsvector, range seg, book isbn13, class regclass, price money, books isbn13[])";
    let (cloud, site) = Site::captured("forms", tables, &things("")).await;
    let drain = site.drain();
    let mut stages = drain.open().await.unwrap();
    site.run(
        "insert into thing values (1, 'postgres=r/postgres', null, '1.5 .. 2.5', '978-0-393-04002-9', \
         'pg_class', 12.5, array['978-0-393-04002-9'::isbn13]); insert into thing values (2)",
    )
    .await;
    drained(&mut stages).await;
    assert!(quarantined(&site).await.is_empty());
    assert_eq!(
        held(
            &cloud,
            "select concat_ws(' | ', acl, range, book, class, price, books) from cloud.things order by id"
        )
        .await,
        [
            "postgres=r/postgres | 1.5 .. 2.5 | 978-0-393-04002-9 | pg_class | $12.50 | {978-0-393-04002-9}",
            ""
        ]
    );
}

// What the condition calls is gone: each read of the entity fails in a way that mostly passes, as tables
// change, and this does not.
#[tokio::test]
async fn an_entity_whose_reading_fails_for_good_is_parked_alone() {
    let tables = "create function helper(text) returns boolean language sql as 'select true'; \
         create function fits(text) returns boolean immutable language plpgsql as 'begin return \
         public.helper($1); end'; \
         create table thing (id text primary key, label text); create table other (id bigint primary key)";
    let config = format!(
        "{}[[entity]]\nname = \"others\"\ntable = \"other\"\nkey = [\"id\"]\npath = \"others\"\n",
        things("where = \"fits(label)\"")
    );
    let (cloud, site) = Site::captured("for_good", tables, &config).await;
    let drain = site.drain();
    let mut stages = drain.open().await.unwrap();
    site.run("insert into thing values ('a', 'one'), ('b', 'two')")
        .await;
    drained(&mut stages).await;
    site.run(
        "drop function helper(text); update thing set label = 'three'; delete from thing where id = 'b'; \
         insert into other values (1)",
    )
    .await;
    drained(&mut stages).await;
    // Others flow, and the status says which waits and why.
    assert_eq!(held(&cloud, "select id::text from cloud.others").await, ["1"]);
    let parked = "select name || ': ' || parked from cloud_sync.entity where parked is not null";
    let why = texts(&site.client, parked).await;
    assert!(
        why.len() == 1 && why[0].starts_with("things: ") && why[0].contains("helper"),
        "{why:?}"
    );
    assert!(quarantined(&site).await.is_empty());
    // What is kept is sent once it can be read.
    site.run("create function helper(text) returns boolean language sql as 'select true'")
        .await;
    drop(stages);
    let mut stages = drain.open().await.unwrap();
    settled(&mut stages, &site).await;
    site.assert_equal(&cloud).await;
}
