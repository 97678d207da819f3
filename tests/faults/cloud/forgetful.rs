//! A cloud that forgets: its capabilities, what it has received, and the rows themselves.

use std::time::Duration;

use cloud_sync::control::status::ReplicatorState;
use reqwest::Method;
use tokio_util::sync::CancellationToken;

use super::{rooms, why};
use crate::support::baseline::{self, BaselineServer};
use crate::support::fault::Fault;
use crate::support::fault_proxy::FaultProxy;
use crate::support::oracle::Tally;
use crate::support::postgres::Server;
use crate::support::site::{Cloud, KEY, Site, connect};

#[tokio::test]
async fn a_capability_that_vanishes_is_done_without_and_one_that_appears_is_used() {
    let server =
        BaselineServer::start(&cloud_sync::catalogue::Catalogue::builtin(), &["bulk", "delete"]).await;
    let site = Site::school("vanish", &server.url(), baseline::KEY).await;
    let mut drain = site.drain();
    drain.handshake_every = Duration::from_millis(100);
    let stop = CancellationToken::new();
    let task = tokio::spawn({
        let (drain, stop) = (drain.clone(), stop.clone());
        async move { drain.run(stop).await }
    });
    let mut tally = Tally::default();
    let bulk = |server: &BaselineServer| {
        let calls = server.calls();
        calls.iter().filter(|call| call.contains("bulk/")).count()
    };
    rooms(&site, 1, 20).await;
    server
        .wait_until("the first rows", |server| server.count("rooms") == 20)
        .await;
    assert!(bulk(&server) > 0);
    // Given a server that is put back to an older release
    server.set_capabilities(&[]);
    tally.faults += 1;
    rooms(&site, 21, 20).await;
    server
        .wait_until("rows one by one", |server| server.count("rooms") == 40)
        .await;
    // and forward again
    server.set_capabilities(&["bulk"]);
    server
        .wait_until("asked again", |server| {
            let calls = server.calls();
            calls.iter().rev().take(2).all(|call| call == "GET sync-status")
        })
        .await;
    server.forget_requests();
    rooms(&site, 41, 20).await;
    server
        .wait_until("rows in bulk", |server| server.count("rooms") == 60)
        .await;
    assert!(bulk(&server) > 0);
    stop.cancel();
    task.await.unwrap().unwrap();
    assert_eq!(
        cloud_sync::quarantine::count(&site.client, None).await.unwrap(),
        0
    );
}

#[tokio::test]
async fn a_cloud_that_loses_its_changes_call_gets_rows_one_by_one_and_then_changes_again() {
    let cloud = Cloud::start("downgrade").await;
    let fault_proxy = FaultProxy::before(&cloud.url).await;
    let site = Site::school("downgrade", &fault_proxy.url(), KEY).await;
    let mut tally = Tally::default();
    let replicator = site.replicate();
    rooms(&site, 1, 5).await;
    replicator.caught_up().await;
    fault_proxy.hide(&["changes", "bulk"]);
    tally.faults += 1;
    rooms(&site, 6, 5).await;
    let status = replicator.caught_up().await;
    assert!(!status.cloud.capabilities.contains(&"changes".to_owned()));
    fault_proxy.hide(&[]);
    // Asked by a sync, or after a while
    replicator
        .replicator
        .sync(&Default::default(), &cloud_sync::reconcile::NoObserver)
        .await
        .unwrap();
    replicator
        .until("asked", |status| {
            status.cloud.capabilities.contains(&"changes".to_owned())
        })
        .await;
    rooms(&site, 11, 5).await;
    site.run("update tbl_room set room_name = 'later' where room_id in (2, 7)")
        .await;
    let status = replicator.caught_up().await;
    assert_eq!(status.quarantine, Some(0));
    replicator.end().await;
    tally.judge(&site, &cloud).await;
    site.assert_equal(&cloud).await;
}

#[tokio::test]
async fn a_cloud_that_forgot_what_it_was_told_is_told_again_and_refuses_nothing() {
    let (cloud, site) = Site::school_with_cloud("forgot").await;
    let there = connect(&cloud.database_url).await;
    let mut tally = Tally::default();
    let replicator = site.replicate();
    rooms(&site, 1, 5).await;
    site.run("insert into tbl_faculty (faculty_fname) values ('a')")
        .await;
    replicator.caught_up().await;
    // Given a cloud that no longer knows an entity
    there
        .batch_execute("delete from cloud_meta.schemas where entity = 'rooms'")
        .await
        .unwrap();
    tally.faults += 1;
    site.run(
        "update tbl_room set room_name = 'after' where room_id < 4; \
         update tbl_faculty set faculty_fname = 'b'",
    )
    .await;
    // then it is reported, and nothing is refused,
    assert_eq!(replicator.caught_up().await.quarantine, Some(0));
    // and so where it lost a column.
    there
        .batch_execute(
            "alter table cloud.rooms drop column room_building_no; \
             update cloud_meta.entities set version = version + 1, \
             column_types = column_types[:array_position(column_names, 'room_building_no') - 1] \
                 || column_types[array_position(column_names, 'room_building_no') + 1:], \
             column_names = array_remove(column_names, 'room_building_no') where entity = 'rooms'",
        )
        .await
        .unwrap();
    tally.faults += 1;
    site.run("update tbl_room set room_building_no = 'B', room_name = 'third'")
        .await;
    assert_eq!(replicator.caught_up().await.quarantine, Some(0));
    replicator.end().await;
    tally.judge(&site, &cloud).await;
    site.assert_equal(&cloud).await;
}

/// Puts a database in the place of another.
async fn copy(from: &str, to: &str) {
    let name = |url: &str| {
        url.rsplit('/')
            .next()
            .unwrap()
            .split('?')
            .next()
            .unwrap()
            .to_owned()
    };
    let (from, to) = (name(from), name(to));
    let admin = connect(&Server::get().database("admin").await).await;
    admin
        .batch_execute(&format!("drop database if exists \"{to}\" with (force)"))
        .await
        .unwrap();
    admin
        .batch_execute(&format!("create database \"{to}\" template \"{from}\""))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_cloud_restored_from_a_backup_is_noticed_and_repaired() {
    let (mut cloud, site) = Site::school_with_cloud("restored").await;
    let backup = Server::get().database("restored_backup").await;
    let mut tally = Tally::default();
    for stopped in [false, true] {
        let mut replicator = site.replicate();
        rooms(&site, if stopped { 100 } else { 1 }, 10).await;
        replicator.caught_up().await;
        // Given a backup of the cloud, and changes that it does not have
        cloud.away().await;
        copy(&cloud.database_url, &backup).await;
        cloud.back().await;
        rooms(&site, if stopped { 120 } else { 20 }, 10).await;
        site.run(
            "update tbl_room set room_name = room_name || '!' where room_id % 3 = 0; \
             delete from tbl_room where room_id % 7 = 0",
        )
        .await;
        replicator.caught_up().await;
        // when it is put back, while the replicator runs or while it does not,
        if stopped {
            replicator.end().await;
            cloud.away().await;
            copy(&backup, &cloud.database_url).await;
            cloud.back().await;
            replicator = site.replicate();
        } else {
            cloud.away().await;
            rooms(&site, 40, 1).await;
            why(&replicator).await;
            copy(&backup, &cloud.database_url).await;
            cloud.back().await;
        }
        tally.faults += 1;
        // then a sync without a command brings what it lacks, and takes away what it has too much.
        replicator
            .until("repaired", |status| {
                status.state == ReplicatorState::Replicating
                    && status.last_sync.as_ref().is_some_and(|sync| sync.success)
                    && status.cloud.last_error.is_none()
            })
            .await;
        replicator.caught_up().await;
        site.assert_equal(&cloud).await;
        replicator.end().await;
    }
    tally.judge(&site, &cloud).await;
}

#[tokio::test]
async fn a_loss_that_could_not_be_repaired_yet_is_remembered_over_a_restart() {
    let mut cloud = Cloud::start("lossy").await;
    let fault_proxy = FaultProxy::before(&cloud.url).await;
    let site = Site::school("lossy", &fault_proxy.url(), KEY).await;
    let backup = Server::get().database("lossy_backup").await;
    let mut tally = Tally::default();
    let replicator = site.replicate();
    rooms(&site, 1, 10).await;
    replicator.caught_up().await;
    cloud.away().await;
    copy(&cloud.database_url, &backup).await;
    cloud.back().await;
    rooms(&site, 11, 10).await;
    replicator.caught_up().await;
    replicator.end().await;
    // Given a restored cloud that cannot be compared with,
    cloud.away().await;
    copy(&backup, &cloud.database_url).await;
    cloud.back().await;
    fault_proxy.fault(Fault::status(500).method(Method::GET).on("rooms"));
    tally.faults += 1;
    let replicator = site.replicate();
    let noticed = replicator
        .until("noticed", |status| {
            status.last_sync.is_some() && !status.capture.is_empty()
        })
        .await;
    let reason = noticed.capture[0].reason.clone();
    assert!(reason.contains("an older state of it was restored"), "{reason}");
    // and which accepts changes that put it ahead again,
    rooms(&site, 21, 1).await;
    replicator.caught_up().await;
    replicator.end().await;
    // then the next run still knows.
    fault_proxy.clear_faults();
    let replicator = site.replicate();
    replicator
        .until("repaired", |status| {
            status.last_sync.as_ref().is_some_and(|sync| sync.success) && status.capture.is_empty()
        })
        .await;
    replicator.caught_up().await;
    replicator.end().await;
    tally.judge(&site, &cloud).await;
    site.assert_equal(&cloud).await;
}
