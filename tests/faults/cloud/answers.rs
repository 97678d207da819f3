//! Answers that a cloud, or a proxy in front of it, gives in place of the right one.

use std::time::Duration;

use axum::http::header;
use reqwest::Method;
use serde_json::Value;

use super::{rooms, waits, why};
use crate::support::baseline::{self, BaselineServer};
use crate::support::fault::Fault;
use crate::support::fault_proxy::FaultProxy;
use crate::support::oracle::Tally;
use crate::support::site::{Cloud, KEY, Site, connect};

/// An HTTP date a moment from now.
fn soon() -> String {
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(1);
    jiff::fmt::rfc2822::DateTimePrinter::new()
        .timestamp_to_rfc9110_string(&soon)
        .unwrap()
}

#[tokio::test]
async fn whatever_is_answered_in_its_place_a_change_is_sent_until_it_is_accepted() {
    let cloud = Cloud::start("answers").await;
    let fault_proxy = FaultProxy::before(&cloud.url).await;
    let site = Site::school("answers", &fault_proxy.url(), KEY).await;
    let elsewhere = BaselineServer::start(&site.settings.catalogue, &[]).await;
    let mut tally = Tally::default();
    let replicator = site.replicate();
    rooms(&site, 1, 1).await;
    replicator.caught_up().await;
    let mut faults: Vec<Fault> = [408, 425, 429, 500, 501, 502, 503, 504, 507]
        .into_iter()
        .map(Fault::status)
        .collect();
    faults.extend([
        Fault::status(429).retry_after("1"),
        Fault::status(503).retry_after(&soon()),
        Fault::status(407),
        // It is done, and a proxy answers something else.
        Fault::status(502).after_store(),
        Fault::status(504).after_store(),
        Fault::cut(),
        Fault::cut_after_store(),
        Fault::page(),
        Fault::page().after_store(),
        Fault::answer(200, "application/json", ""),
        Fault::answer(200, "application/json", "{\"applied\":1,\"skip"),
        Fault::answer(200, "application/json", "{\"applied\":1}"),
        Fault::answer(200, "application/json", "[]"),
        Fault::answer(
            200,
            "application/json",
            "{\"applied\":0,\"skipped\":0,\"rejected\":[]}",
        ),
        Fault::answer(204, "application/json", ""),
        Fault::status(308).header(header::LOCATION, &format!("{}/changes", elsewhere.url())),
        // The call is gone for a moment, and listed all the while.
        Fault::status(404),
        Fault::status(405),
    ]);
    let mut id = 1;
    for call in ["changes", "sync-status"] {
        for fault in &faults {
            // Given a call that is answered so,
            let struck = fault_proxy.struck();
            fault_proxy.fault(fault.clone().on(call).times(1));
            if call == "sync-status" {
                // which comes after a failure,
                fault_proxy.fault(Fault::cut().on("changes").times(1));
            }
            id += 1;
            rooms(&site, id, 1).await;
            // when it passes, the change arrives.
            replicator.caught_up().await;
            assert!(fault_proxy.struck() > struck, "{call}");
            fault_proxy.clear_faults();
        }
    }
    // Nothing was refused for good, and nothing went elsewhere.
    let status = replicator.caught_up().await;
    assert_eq!(status.quarantine, Some(0));
    assert!(elsewhere.requests().is_empty());
    replicator.end().await;
    tally.faults += fault_proxy.struck();
    tally.judge(&site, &cloud).await;
    site.assert_equal(&cloud).await;
}

#[tokio::test]
async fn a_wait_that_the_cloud_asks_for_is_kept_and_ends_when_someone_asks_for_a_sync() {
    let cloud = Cloud::start("patience").await;
    let fault_proxy = FaultProxy::before(&cloud.url).await;
    let site = Site::school("patience", &fault_proxy.url(), KEY).await;
    let mut tally = Tally::default();
    let replicator = site.replicate();
    rooms(&site, 1, 1).await;
    replicator.caught_up().await;
    // Given a cloud that wants to be left alone for an hour
    fault_proxy.fault(Fault::status(429).retry_after("3000").times(1));
    rooms(&site, 2, 1).await;
    let reason = why(&replicator).await;
    assert!(
        reason.contains("the cloud answered 429") && reason.contains("no sooner than the cloud asks for"),
        "{reason}"
    );
    // then it is left alone,
    let before = fault_proxy.requests().len();
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert_eq!(fault_proxy.requests().len(), before);
    waits(&replicator, 1).await;
    // until someone asks.
    let all = cloud_sync::control::SyncRequest::default();
    let synced = replicator
        .replicator
        .sync(&all, &cloud_sync::reconcile::NoObserver);
    assert!(synced.await.unwrap().success());
    replicator.caught_up().await;
    replicator.end().await;
    tally.faults += fault_proxy.struck();
    tally.judge(&site, &cloud).await;
}

#[tokio::test]
async fn a_wait_that_an_idle_replicator_was_asked_for_holds_for_what_comes_then() {
    let cloud = Cloud::start("idle_wait").await;
    let fault_proxy = FaultProxy::before(&cloud.url).await;
    let site = Site::school("idle_wait", &fault_proxy.url(), KEY).await;
    let mut tally = Tally::default();
    fault_proxy.fault(Fault::status(503).retry_after("3000"));
    let replicator = site.replicate();
    why(&replicator).await;
    fault_proxy.clear_faults();
    rooms(&site, 1, 3).await;
    waits(&replicator, 3).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    why(&replicator).await;
    let all = cloud_sync::control::SyncRequest::default();
    let synced = replicator
        .replicator
        .sync(&all, &cloud_sync::reconcile::NoObserver);
    synced.await.unwrap();
    replicator.caught_up().await;
    replicator.end().await;
    tally.faults += fault_proxy.struck();
    tally.judge(&site, &cloud).await;
}

#[tokio::test]
async fn what_is_too_long_is_halved_and_one_row_that_is_too_long_alone_stands_aside() {
    let cloud = Cloud::start("too_long").await;
    let fault_proxy = FaultProxy::before(&cloud.url).await;
    let site = Site::school("too_long", &fault_proxy.url(), KEY).await;
    let mut tally = Tally::default();
    // Given a cloud that takes no request beyond 64 KB, many rows, and one beyond it
    fault_proxy.limit(64 * 1024);
    site.run(
        "insert into tbl_room (room_id, room_no, room_name) overriding system value \
         select n, 'R' || n, repeat('x', case n when 500 then 100000 else 500 end) \
         from generate_series(1, 1000) n",
    )
    .await;
    let replicator = site.replicate();
    let status = replicator.caught_up().await;
    // then only that one is kept aside,
    assert_eq!(status.quarantine, Some(1));
    let there = connect(&cloud.database_url).await;
    let count: i64 = there
        .query_one("select count(*) from cloud.rooms", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(count, 999);
    let entries = cloud_sync::quarantine::list(&site.client, None).await.unwrap();
    assert_eq!((entries[0].code, entries[0].key.contains("500")), (413, true));
    // until it is short enough.
    site.run("update tbl_room set room_name = 'short' where room_id = 500")
        .await;
    assert_eq!(replicator.caught_up().await.quarantine, Some(0));
    replicator.end().await;
    tally.faults += 1;
    tally.judge(&site, &cloud).await;
    site.assert_equal(&cloud).await;
}

#[tokio::test]
async fn one_refused_row_among_thousands_stands_aside_on_every_kind_of_server() {
    // A server with positions
    let (cloud, site) = Site::school_with_cloud("one_of").await;
    let mut tally = Tally::default();
    rooms(&site, 1, 1).await;
    site.drain().drain_all().await.unwrap();
    let there = connect(&cloud.database_url).await;
    there
        .batch_execute("alter table cloud.rooms add constraint odd check (room_no <> 'R2500')")
        .await
        .unwrap();
    let replicator = site.replicate();
    rooms(&site, 2, 4999).await;
    let status = replicator.caught_up().await;
    assert_eq!(status.quarantine, Some(1));
    let count: i64 = there
        .query_one("select count(*) from cloud.rooms", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(count, 4999);
    there
        .batch_execute("alter table cloud.rooms drop constraint odd")
        .await
        .unwrap();
    site.run("update tbl_room set room_name = 'again' where room_id = 2500")
        .await;
    assert_eq!(replicator.caught_up().await.quarantine, Some(0));
    replicator.end().await;
    tally.faults += 1;
    tally.judge(&site, &cloud).await;
    // Servers without
    for capabilities in [&[][..], &["bulk"], &["bulk", "delete"]] {
        let site_of = format!("one_of_{}", capabilities.len());
        let server = BaselineServer::start(&cloud_sync::catalogue::Catalogue::builtin(), capabilities).await;
        let site = Site::school(&site_of, &server.url(), baseline::KEY).await;
        server.fault(
            Fault::status(422)
                .method(Method::POST)
                .when(|row: &Value| row["room_no"] == "R1500"),
        );
        let replicator = site.replicate();
        rooms(&site, 1, 2000).await;
        let status = replicator.caught_up().await;
        assert_eq!((status.quarantine, server.count("rooms")), (Some(1), 1999));
        replicator.end().await;
        tally.faults += 1;
    }
}
