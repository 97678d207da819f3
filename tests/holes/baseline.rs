//! H11 and H12: a server without `changes`, which has no versions.

use std::time::Duration;

use axum::http::Method;
use cloud_sync::control::status::ReplicatorState;
use cloud_sync::quarantine;
use serde_json::json;

use super::{drain_by, drained, elsewhere};
use crate::support::baseline::{self, BaselineServer};
use crate::support::fault::Fault;
use crate::support::site::Site;

const TABLE: &str =
    "create table room (id bigint primary key, no text unique deferrable initially deferred, name text)";
const ROOMS: &str = "[[entity]]\nname = \"rooms\"\ntable = \"room\"\nkey = [\"id\"]\npath = \"rooms\"\n";

async fn rooms(hint: &str, timeout: Duration) -> (BaselineServer, Site) {
    let probe = Site::bare(hint, "http://127.0.0.1:1/api", baseline::KEY, TABLE, ROOMS).await;
    let server = BaselineServer::start(&probe.settings.catalogue, &["delete"]).await;
    let mut site = Site::bare(hint, &server.url(), baseline::KEY, TABLE, ROOMS).await;
    site.settings.cloud.timeout = timeout;
    site.init().await;
    (server, site)
}

// H11. Window: touch room 2, room 1 'A' -> 'C', room 2 'B' -> 'A', in one batch and in batches of one.
#[tokio::test]
async fn a_unique_value_that_moves_between_rows_ends_in_no_quarantine() {
    for rows in [100, 1] {
        let (server, site) = rooms("moves", Duration::from_secs(5)).await;
        server.unique("rooms", "no");
        let mut drain = drain_by(&site, rows);
        drain.handshake_every = Duration::from_secs(3600);
        let mut stages = drain.open().await.unwrap();
        site.run("insert into room values (1, 'A', 'one'), (2, 'B', 'two')")
            .await;
        drained(&mut stages).await;
        site.run(
            "begin; update room set name = 'touched' where id = 2; update room set no = 'C' where id = 1; \
             update room set no = 'A' where id = 2; commit",
        )
        .await;
        drained(&mut stages).await;
        assert_eq!(server.row("rooms", "1").unwrap()["no"], "C", "{rows}");
        assert_eq!(server.row("rooms", "2").unwrap()["no"], "A", "{rows}");
        let left = "select count(*) from cloud_sync.quarantine";
        assert_eq!(super::number(&site.client, left).await, 0, "{rows}");
    }
}

// H11. A row is refused once for a reason that passes, and nothing touches it again: one refusal does not
// count.
#[tokio::test]
async fn one_refusal_does_not_count() {
    let (server, site) = rooms("once", Duration::from_secs(5)).await;
    let drain = site.drain();
    let mut stages = drain.open().await.unwrap();
    // The row goes alone and is the last of its window, as a row whose unique value another row of the cloud
    // still has.
    server.fault(Fault::status(422).on("rooms").times(1));
    site.run("insert into room values (1, 'A', 'one')").await;
    drained(&mut stages).await;
    assert_eq!(server.row("rooms", "1").unwrap()["no"], "A");
    assert!(quarantine::list(&site.client, None).await.unwrap().is_empty());
}

// H11. A true swap can never go row by row: both rows are said to be refused, and others flow on.
#[tokio::test]
async fn a_true_swap_is_said_and_blocks_nobody() {
    let (server, site) = rooms("swap", Duration::from_secs(5)).await;
    server.unique("rooms", "no");
    let drain = site.drain();
    let mut stages = drain.open().await.unwrap();
    site.run("insert into room values (1, 'A', 'one'), (2, 'B', 'two')")
        .await;
    drained(&mut stages).await;
    site.run(
        "begin; update room set no = 'B' where id = 1; update room set no = 'A' where id = 2; commit; \
         insert into room values (3, 'D', 'three')",
    )
    .await;
    drained(&mut stages).await;
    let entries = quarantine::list(&site.client, None).await.unwrap();
    assert_eq!(entries.len(), 2, "{entries:?}");
    assert!(server.row("rooms", "3").is_some());
    // A newer state that is accepted ends it.
    site.run("update room set no = 'E' where id = 1").await;
    drained(&mut stages).await;
    site.run("update room set name = 'again' where id = 2").await;
    drained(&mut stages).await;
    assert!(quarantine::list(&site.client, None).await.unwrap().is_empty());
    assert_eq!(server.row("rooms", "2").unwrap()["no"], "A");
}

// H12. v1 timed out, v2 was accepted, v1 arrives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_arrives_late_does_not_stay() {
    let (server, site) = rooms("late", Duration::from_secs(3)).await;
    let running = site.replicate();
    running.caught_up().await;
    let (fault, latch) = Fault::hold();
    server.fault(fault.on("rooms").when(|row| row["name"] == json!("v1")).times(1));
    site.run("insert into room values (1, 'A', 'v1')").await;
    // Given a second try that was answered
    server
        .wait_until("the second try", |server| server.row("rooms", "1").is_some())
        .await;
    site.run("update room set name = 'v2'").await;
    let name = |server: &BaselineServer| server.row("rooms", "1").map(|row| row["name"].clone());
    server
        .wait_until("v2", |server| name(server) == Some(json!("v2")))
        .await;
    // when the first one arrives,
    latch.open();
    server
        .wait_until("the late request", |server| server.late() == 1)
        .await;
    assert_eq!(name(&server), Some(json!("v1")));
    // then the row is sent again.
    server
        .wait_until("v2 again", |server| name(server) == Some(json!("v2")))
        .await;
    running.end().await;
}

// H12 with two drains: the one that sent v1 is gone, and has noted nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_that_takes_over_waits_until_no_request_can_arrive() {
    const TIMEOUT: Duration = Duration::from_secs(3);
    let (server, site) = rooms("takes_over", TIMEOUT).await;
    let drain = site.drain();
    let (fault, latch) = Fault::hold();
    server.fault(fault.on("rooms").times(1));
    site.run("insert into room values (1, 'A', 'v1')").await;
    let mut first = drain.open().await.unwrap();
    let dying = tokio::spawn(async move { first.step().await });
    server
        .wait_until("v1 on its way", |server| {
            server.calls().contains(&"POST rooms".to_owned())
        })
        .await;
    dying.abort();
    assert!(dying.await.unwrap_err().is_cancelled());
    site.run("update room set name = 'v2'").await;
    let second = elsewhere(&drain);
    let name = |server: &BaselineServer| server.row("rooms", "1").map(|row| row["name"].clone());
    let (drained, ()) = tokio::join!(second.drain_all(), async {
        // A request lives for twice the time limit: this one comes after half of that, or at once after v2.
        let v2 = server.wait_until("v2", |server| name(server) == Some(json!("v2")));
        let _ = tokio::time::timeout(TIMEOUT, v2).await;
        latch.open();
    });
    drained.unwrap();
    server
        .wait_until("the late request", |server| server.late() == 1)
        .await;
    assert_eq!(name(&server), Some(json!("v2")));
}

// H12 with a truncate, which such a server gets as one delete a row: one of them timed out, the row is there
// again, the delete arrives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_of_a_truncate_that_arrives_late_does_not_stay() {
    let (server, site) = rooms("late_truncate", Duration::from_secs(3)).await;
    let running = site.replicate();
    site.run("insert into room values (1, 'A', 'v1'), (2, 'B', 'v1')")
        .await;
    server.wait_until("v1", |server| server.count("rooms") == 2).await;
    running.caught_up().await;
    let (fault, latch) = Fault::hold();
    server.fault(fault.method(Method::DELETE).on("rooms/1").times(1));
    site.run("truncate room").await;
    // Given a second try that was answered
    server
        .wait_until("the truncate", |server| server.count("rooms") == 0)
        .await;
    site.run("insert into room values (1, 'A', 'v2')").await;
    let name = |server: &BaselineServer| server.row("rooms", "1").map(|row| row["name"].clone());
    server
        .wait_until("v2", |server| name(server) == Some(json!("v2")))
        .await;
    // when the first one arrives,
    latch.open();
    server
        .wait_until("the late delete", |server| server.late() == 1)
        .await;
    assert_eq!(name(&server), None);
    // then the row is sent again.
    server
        .wait_until("v2 again", |server| name(server) == Some(json!("v2")))
        .await;
    running.end().await;
}

// The site's sessions break while a delivery is tried again: the round ends, and the next one has sessions of
// its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_fails_amid_a_delivery_ends_the_round_and_loses_nothing() {
    let table = "create table room (id bigint primary key, name text)";
    let config = format!("{ROOMS}where = \"id > 0\"\n");
    let probe = Site::bare(
        "amid_delivery",
        "http://127.0.0.1:1/api",
        baseline::KEY,
        table,
        &config,
    )
    .await;
    let server = BaselineServer::start(&probe.settings.catalogue, &["delete"]).await;
    let site = Site::bare("amid_delivery", &server.url(), baseline::KEY, table, &config).await;
    site.init().await;
    let running = site.replicate();
    running.caught_up().await;
    server.fault(Fault::status(503).on("rooms"));
    site.run("insert into room values (1, 'v1')").await;
    running
        .until("trying again", |status| {
            status.state == ReplicatorState::BackingOff
        })
        .await;
    // Each attempt first notes in the site's database what goes out.
    let killed = "select count(*) from (select pg_terminate_backend(pid) from pg_stat_activity \
         where datname = current_database() and application_name = 'cloud-sync delivery') killed";
    assert_eq!(super::number(&site.client, killed).await, 1);
    site.run("update room set name = 'v2'; insert into room values (2, 'v1')")
        .await;
    server.clear_faults();
    running.caught_up().await;
    server
        .wait_until("both rows", |server| server.count("rooms") == 2)
        .await;
    assert_eq!(server.row("rooms", "1").unwrap()["name"], "v2");
    running.end().await;
}
