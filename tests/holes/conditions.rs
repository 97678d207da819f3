//! H6, H7 and sentences 6 and 7: entities with a condition, and entities whose deletes the cloud keeps.

use std::time::Duration;

use cloud_sync::catalogue::Deletes;
use cloud_sync::control::{Operator, SyncRequest};
use cloud_sync::source::identity::OutboxDeclaration;
use cloud_sync::source::install;
use serde_json::json;

use super::{TABLE, drained, elsewhere, held, things};
use crate::support::baseline::{self, BaselineServer};
use crate::support::site::{Site, connect};
use crate::support::sql::until_session_waits;

const CONDITION: &str = "where = \"label <> 'hidden'\"";

/// A site whose cloud is a baseline server that can delete.
async fn before_baseline(hint: &str, more: &str) -> (BaselineServer, Site) {
    let probe = Site::bare(
        hint,
        "http://127.0.0.1:1/api",
        baseline::KEY,
        TABLE,
        &things(more),
    )
    .await;
    let server = BaselineServer::start(&probe.settings.catalogue, &["delete"]).await;
    let mut site = Site::bare(hint, &server.url(), baseline::KEY, TABLE, &things(more)).await;
    site.settings.cloud.timeout = Duration::from_millis(500);
    site.init().await;
    (server, site)
}

// H6. Drain A reads row 1, which meets the condition, and has not noted it; row 1 stops meeting it; drain B
// begins a term, reads it, does not know it and passes; A notes it and sends it.
#[tokio::test]
async fn a_drain_that_was_followed_sends_nothing_that_it_has_not_noted() {
    let (server, site) = before_baseline("fenced", CONDITION).await;
    let drain = site.drain();
    let mut one = drain.open().await.unwrap();
    site.run("insert into thing values (9, 'other')").await;
    drained(&mut one).await;
    // Given drain A amid noting row 1
    site.run("insert into thing values (1, 'shown')").await;
    let lock = connect(&site.database_url).await;
    lock.batch_execute("begin; lock table cloud_sync.sent in share mode")
        .await
        .unwrap();
    let second = elsewhere(&drain);
    let (first, ()) = tokio::join!(one.step(), async {
        until_session_waits(&site.client, "delivery").await;
        // when row 1 stops meeting the condition, and drain B passes it,
        site.run("update thing set label = 'hidden' where id = 1").await;
        second.drain_all().await.unwrap();
        lock.batch_execute("commit").await.unwrap();
    });
    // then A has lost its right to send it.
    first.unwrap_err();
    second.drain_all().await.unwrap();
    assert!(server.row("things", "1").is_none());
    assert!(server.row("things", "9").is_some());
}

// H7. The cloud has a row from before the condition, which nothing here remembers.
#[tokio::test]
async fn a_sync_removes_what_was_sent_before_the_condition() {
    let (server, site) = before_baseline("before", CONDITION).await;
    server.seed("things", json!({"id": 1, "label": "from before"}));
    server.seed("things", json!({"id": 77, "label": "not this site's to judge"}));
    // No touch tells of these rows.
    site.run("insert into thing values (1, 'hidden'), (2, 'shown'); truncate cloud_sync.segment_0")
        .await;
    let running = site.replicate();
    let request = SyncRequest {
        force: false,
        entities: vec!["things".to_owned()],
    };
    running.replicator.sync_now(request).await.unwrap();
    running.caught_up().await;
    assert!(server.row("things", "1").is_none());
    assert!(server.row("things", "2").is_some());
    running.end().await;
}

// H7 on a server with `changes`: the delete is sent whether or not anybody remembers that the row was.
#[tokio::test]
async fn a_row_that_stops_meeting_the_condition_leaves_the_cloud() {
    for deletes in ["keep", "propagate"] {
        let config = things(&format!("{CONDITION}\ndeletes = \"{deletes}\""));
        let (cloud, site) = Site::captured("leaves", TABLE, &config).await;
        let drain = site.drain();
        site.run("insert into thing values (1, 'one'), (2, 'hidden'), (3, 'three')")
            .await;
        drain.drain_all().await.unwrap();
        site.run("truncate cloud_sync.sent; update thing set label = 'hidden' where id = 1")
            .await;
        drain.drain_all().await.unwrap();
        assert_eq!(held(&cloud, "select id::text from cloud.things").await, ["3"]);
    }
}

// Sentence 6. A condition that changes its mind without a touch is refused.
#[tokio::test]
async fn a_condition_on_more_than_the_rows_own_columns_is_refused() {
    let tables = "create table thing (id bigint primary key, label text, at timestamptz); \
         create table list (label text); \
         create function asked(text) returns boolean language plpgsql as 'begin return true; end'";
    for (condition, fits) in [
        ("at > now() - interval '1 day'", false),
        ("label in (select label from list)", false),
        ("asked(label)", false),
        ("random() < 2", false),
        ("label <> 'hidden' and id % 2 = 0", true),
        ("at > '2020-01-01 00:00:00+00' and upper(label) = label", true),
    ] {
        let cloud = "http://127.0.0.1:1/api";
        let config = things(&format!("where = {condition:?}"));
        let site = Site::bare("condition", cloud, baseline::KEY, tables, &config).await;
        let url = site.settings.require_database_url().unwrap();
        let installed = install::init(url, &site.settings.catalogue, OutboxDeclaration::Nothing).await;
        assert_eq!(installed.is_ok(), fits, "{condition}: {installed:?}");
        if let Err(error) = installed {
            assert!(error.to_string().contains("where"), "{error}");
        }
    }
}

// Sentence 7. `keep` keeps what is deleted and truncated, but a changed key leaves its old one.
#[tokio::test]
async fn what_is_kept_has_no_second_row_after_a_change_of_key() {
    let (cloud, site) = Site::captured("rekeyed", TABLE, &things("deletes = \"keep\"")).await;
    assert_eq!(site.settings.catalogue.entities()[0].deletes(), Deletes::Keep);
    let drain = site.drain();
    let ids = "select id::text from cloud.things order by id";
    site.run("insert into thing values (5, 'five'), (7, 'seven')")
        .await;
    drain.drain_all().await.unwrap();
    site.run("update thing set id = 6 where id = 5").await;
    drain.drain_all().await.unwrap();
    assert_eq!(held(&cloud, ids).await, ["6", "7"]);
    site.run("delete from thing where id = 7").await;
    drain.drain_all().await.unwrap();
    site.run("truncate thing").await;
    drain.drain_all().await.unwrap();
    assert_eq!(held(&cloud, ids).await, ["6", "7"]);
}

// Sentence 7. A key is changed and the table truncated in one batch: the truncate is kept, so the old key's
// delete is not left to it.
#[tokio::test]
async fn an_old_key_beside_a_truncate_that_is_kept_leaves_the_cloud() {
    let (cloud, site) = Site::captured("keep_moved", super::TABLE, &things("deletes = \"keep\"")).await;
    let drain = site.drain();
    let mut stages = drain.open().await.unwrap();
    site.run("insert into thing select n, 'old' from generate_series(1, 3) n")
        .await;
    drained(&mut stages).await;
    site.run("update thing set id = 11 where id = 1; truncate thing; insert into thing values (11, 'again')")
        .await;
    drained(&mut stages).await;
    let rows = held(&cloud, "select id || ' ' || label from cloud.things order by id").await;
    assert_eq!(rows, ["2 old", "3 old", "11 again"]);
}
