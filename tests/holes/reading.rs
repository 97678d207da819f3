//! H2, H8, and what a stopped stream says: how the touches of a window become changes.

use cloud_sync::drain::BatchLimits;

use super::{TABLE, deletes, drain_by, drained, held, things};
use crate::support::postgres::Server;
use crate::support::site::{Cloud, KEY, Site, connect, until_whole};
use crate::support::sql::{texts, until_session_waits, until_some};
use crate::support::tcp_proxy::{TcpProxy, Trouble};

// H2. Site's `a_t after truncate`: `insert into t values (1), (2), (3)`; batches of 2.
#[tokio::test]
async fn rows_that_a_truncate_trigger_seeds_outlive_the_truncate_in_the_cloud() {
    let tables = format!(
        "{TABLE}; create function seed() returns trigger language plpgsql as \
         'begin insert into thing values (1), (2), (3); return null; end'; \
         create trigger a_t after truncate on thing for each statement execute function seed()"
    );
    let (cloud, site) = Site::captured("seed", &tables, &things("")).await;
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

// H8. `update nm set id = 1.00` touches 1.00, then 1.0; batches of one. The cloud's key is typed: both are
// one row.
#[tokio::test]
async fn a_key_that_reads_differently_keeps_its_row() {
    let (cloud, site) = Site::captured(
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
    let (cloud, site) = Site::captured("letters", tables, &things("")).await;
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
    let (cloud, site) = Site::captured("stopped", TABLE, &things("")).await;
    let mut drain = site.drain();
    drain.limits = BatchLimits {
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

// Sentence 2. The table changes amid the read of a page of a long window, and between two pages: what is read
// after it has the new form, and no page is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_changes_amid_a_long_window_is_followed_from_the_next_read_on() {
    let (cloud, site) = Site::captured("amid", TABLE, &things("")).await;
    let drain = drain_by(&site, 3);
    let mut stages = drain.open().await.unwrap();
    site.run("insert into thing select n, 'old' from generate_series(1, 15) n")
        .await;
    stages.step().await.unwrap();
    // Amid a read, which waits for the table's lock:
    let other = connect(&site.database_url).await;
    other
        .batch_execute("begin; alter table thing add column extra int not null default 7")
        .await
        .unwrap();
    let (stepped, ()) = tokio::join!(stages.step(), async {
        until_session_waits(&site.client, "drain").await;
        other.batch_execute("commit").await.unwrap();
    });
    stepped.unwrap();
    let extra = "select id::text from cloud.things where extra = 7 order by id";
    assert_eq!(held(&cloud, extra).await, ["4", "5", "6"]);
    // between two pages, one column under another name, and one with another type.
    site.run("alter table thing rename label to words").await;
    stages.step().await.unwrap();
    let words = "select id::text from cloud.things where words = 'old' order by id";
    assert_eq!(held(&cloud, words).await, ["7", "8", "9"]);
    site.run("alter table thing alter words type varchar(20) using upper(words), drop column extra")
        .await;
    drained(&mut stages).await;
    let words = "select id::text from cloud.things where words = 'OLD' and extra is null order by id";
    assert_eq!(held(&cloud, words).await, ["10", "11", "12", "13", "14", "15"]);
    // What was sent in the old form is compared.
    drop((stages, drain));
    let running = site.replicate_monitoring_drift();
    until_whole(&site, &running).await;
    site.assert_equal(&cloud).await;
    running.end().await;
}

// A read that is halved ends after the log's end was looked up: a commit that comes in between need not be on
// the disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_halved_read_shows_is_on_the_disk_before_it_is_sent() {
    let server = Server::with(&["wal_writer_delay=10s", "full_page_writes=off", "autovacuum=off"]);
    let cloud = Cloud::start("halved").await;
    let proxy = TcpProxy::start(cloud.address()).await;
    // Row 4 cannot be read; the read of row 1 waits for lock 7.
    let tables = format!(
        "{TABLE}; create function fine(bigint) returns boolean immutable language plpgsql as \
         'begin if $1 = 1 then perform pg_advisory_xact_lock_shared(7); end if; \
         return 1 / (4 - $1) is not null; end'"
    );
    let config = things("where = \"fine(id)\"");
    let site = Site::bare_on(&server, "halved", &proxy.url(), KEY, &tables, &config).await;
    site.init().await;
    let drain = site.drain();
    let mut stages = drain.open().await.unwrap();
    site.run("insert into thing values (9, 'first')").await;
    drained(&mut stages).await;
    let (there, writer) = (
        connect(&cloud.database_url).await,
        connect(&site.database_url).await,
    );
    site.run(
        "insert into thing values (4, 'bad'), (1, 'one'), (2, 'two'), (3, 'old'); select pg_advisory_lock(7)",
    )
    .await;
    proxy.set(Trouble::HoldAnswers);
    let (stepped, ()) = tokio::join!(stages.step(), async {
        until_session_waits(&site.client, "drain").await;
        writer
            .batch_execute("set synchronous_commit = off; update thing set label = 'new' where id = 3")
            .await
            .unwrap();
        let committed = texts(&writer, "select pg_current_wal_insert_lsn()::text").await;
        // Nobody else waits for the disk: neither does this session.
        site.run("set synchronous_commit = off; select pg_advisory_unlock(7)")
            .await;
        until_some(&there, "select label = 'new' from cloud.things where id = 3").await;
        let flushed = format!("select (pg_current_wal_flush_lsn() >= '{}')::text", committed[0]);
        assert_eq!(texts(&writer, &flushed).await, ["true"]);
        proxy.set(Trouble::None);
    });
    stepped.unwrap();
    drained(&mut stages).await;
    assert_eq!(held(&cloud, "select id::text from cloud.things").await.len(), 4);
}
