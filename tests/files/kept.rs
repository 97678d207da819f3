//! Files that the cloud may have lost: it is asked for each of them, and those that are gone are sent again.

use std::path::PathBuf;
use std::time::Instant;

use axum::http::Method;
use cloud_sync::control::{Operator, SyncRequest};
use cloud_sync::reconcile::NoObserver;

use super::{FACULTY, LEAVE, slip_url};
use crate::support::baseline::{self, BaselineServer};
use crate::support::fault::Fault;
use crate::support::fault_proxy::FaultProxy;
use crate::support::postgres::Server;
use crate::support::site::{Cloud, KEY, LIMIT, Running, Site, connect, until_whole};

/// Files that were sent since the replicator began.
fn sent(running: &Running) -> u64 {
    let metrics = Operator::metrics(&*running.replicator);
    let line = metrics
        .lines()
        .find(|line| line.contains("cloud_sync_files_total{state=\"uploaded\"}"));
    line.unwrap().rsplit(' ').next().unwrap().parse().unwrap()
}

/// Writes slips, each with a row.
async fn slips(site: &Site, names: &[&str]) {
    for name in names {
        std::fs::write(site.media().join(name), format!("slip {name}")).unwrap();
        site.run(&format!("{LEAVE} (1, '{name}')")).await;
    }
}

async fn force(running: &Running) {
    let request = SyncRequest {
        force: true,
        ..SyncRequest::default()
    };
    let report = running.replicator.sync(&request, &NoObserver).await.unwrap();
    assert!(report.success(), "{:?}", report.errors());
}

/// Where the cloud keeps the slip of a leave.
async fn stored(cloud: &Cloud, leave: i64) -> PathBuf {
    let url = slip_url(cloud, leave).await.unwrap();
    cloud.files.join(url.split_once("/media/").unwrap().1)
}

async fn all_uploaded(running: &Running, files: u64) {
    running
        .until("all uploaded", |status| {
            (status.files.uploaded, status.files.waiting) == (files, 0)
        })
        .await;
    running.caught_up().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forced_sync_brings_back_the_files_that_the_cloud_lost() {
    let (mut cloud, site) = Site::school_with_cloud("forced_files").await;
    site.run(&format!("{FACULTY} ('x', null)")).await;
    let running = site.replicate();
    slips(&site, &["a.jpg", "b.jpg", "c.jpg"]).await;
    all_uploaded(&running, 3).await;
    let lost = stored(&cloud, 2).await;
    // Given a cloud that has lost one file, and a file that is in the cloud only
    std::fs::remove_file(&lost).unwrap();
    std::fs::remove_file(site.media().join("c.jpg")).unwrap();
    // When a sync is forced, then the one that is gone comes back, and no other file goes.
    force(&running).await;
    let start = Instant::now();
    while std::fs::read(&lost).ok().as_deref() != Some(b"slip b.jpg") {
        assert!(start.elapsed() < LIMIT, "the file did not come back");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    all_uploaded(&running, 3).await;
    assert_eq!(sent(&running), 4);
    // When the cloud has another address for its files, then the rows get it, without a file that goes.
    cloud.away().await;
    cloud.set_public_url("https://files.example");
    cloud.back().await;
    force(&running).await;
    for leave in 1..=3 {
        let start = Instant::now();
        loop {
            let url = slip_url(&cloud, leave).await;
            if url
                .as_ref()
                .is_some_and(|url| url.starts_with("https://files.example/"))
            {
                break;
            }
            assert!(start.elapsed() < LIMIT, "{leave}: {url:?}");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
    all_uploaded(&running, 3).await;
    assert_eq!(sent(&running), 4);
    running.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forced_sync_sends_each_file_to_a_server_that_cannot_be_asked() {
    let catalogue = cloud_sync::catalogue::Catalogue::builtin();
    let server = BaselineServer::start(&catalogue, &[]).await;
    let site = Site::school("forced_baseline", &server.url(), baseline::KEY).await;
    site.run(&format!("{FACULTY} ('x', null)")).await;
    let running = site.replicate();
    slips(&site, &["a.jpg", "b.jpg"]).await;
    all_uploaded(&running, 2).await;
    // A file that is here no more cannot be sent, and counts as it did.
    std::fs::remove_file(site.media().join("b.jpg")).unwrap();
    server.forget_requests();
    force(&running).await;
    all_uploaded(&running, 2).await;
    let uploads = server.calls();
    let uploads = uploads.iter().filter(|call| call.starts_with("POST upload/"));
    assert_eq!(uploads.count(), 1);
    running.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cloud_that_went_back_gets_the_files_that_it_lacks() {
    let (mut cloud, site) = Site::school_with_cloud("backup_files").await;
    site.run(&format!("{FACULTY} ('x', null)")).await;
    let running = site.replicate();
    slips(&site, &["a.jpg"]).await;
    all_uploaded(&running, 1).await;
    // Given a backup of the cloud, and a file that came after it
    cloud.away().await;
    let root = connect(&Server::get().url("postgres")).await;
    let name = cloud.database_url.rsplit('/').next().unwrap().to_owned();
    root.batch_execute(&format!("create database {name}_copy template {name}"))
        .await
        .unwrap();
    cloud.back().await;
    slips(&site, &["b.jpg"]).await;
    all_uploaded(&running, 2).await;
    let lost = stored(&cloud, 2).await;
    // When the backup takes the cloud's place
    cloud.away().await;
    std::fs::remove_file(&lost).unwrap();
    cloud.database_url = format!("{}_copy", cloud.database_url);
    cloud.set_database(cloud.database_url.clone());
    cloud.back().await;
    site.run("update tbl_leave set leave_reason = 'changed' where leave_id = 1")
        .await;
    // Then the file comes back, and the one that is there is not sent.
    let start = Instant::now();
    while !lost.exists() {
        assert!(start.elapsed() < LIMIT, "the file did not come back");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    all_uploaded(&running, 2).await;
    until_whole(&site, &running).await;
    site.assert_equal(&cloud).await;
    assert_eq!(sent(&running), 3);
    running.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_address_of_another_cloud_counts_whatever_the_state_of_its_file_is() {
    let (cloud, mut site) = Site::school_with_cloud("moved_files").await;
    site.run(&format!("{FACULTY} ('x', null)")).await;
    let running = site.replicate();
    slips(&site, &["a.jpg", "b.jpg", "c.jpg", "d.jpg"]).await;
    all_uploaded(&running, 4).await;
    running.end().await;
    // Given files that were uploaded, and are to be uploaded again or cannot be
    for name in ["b.jpg", "c.jpg"] {
        std::fs::remove_file(site.media().join(name)).unwrap();
    }
    site.run(
        "update cloud_sync.media set state = 'missing' where path = 'b.jpg'; \
         update cloud_sync.media set state = 'waiting' where path = 'c.jpg'; \
         update cloud_sync.media set state = 'failing', next_attempt = now() + interval '1 hour' \
         where path = 'd.jpg'",
    )
    .await;
    // When the site moves to another cloud
    let other = Cloud::start("moved_files_to").await;
    site.reconfigure(&cloud.url, &other.url);
    let running = site.replicate();
    running
        .until("what is here is there", |status| {
            (status.files.uploaded, status.files.missing) == (2, 2)
        })
        .await;
    running.caught_up().await;
    until_whole(&site, &running).await;
    // Then rows have addresses of that cloud only, and what is not there has none.
    for (leave, is_there) in [(1, true), (2, false), (3, false), (4, true)] {
        let url = slip_url(&other, leave).await;
        assert_eq!(url.is_some(), is_there, "{leave}: {url:?}");
        let address = other.address().to_string();
        assert!(url.is_none_or(|url| url.contains(&address)), "{leave}");
    }
    let left: i64 = site
        .client
        .query_one(
            "select count(*) from cloud_sync.media where state = 'missing' and (url is not null or hash is not null)",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert_eq!(left, 0);
    running.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_goes_where_the_cloud_does_not_say_whether_it_has_it() {
    let cloud = Cloud::start("no_say").await;
    let fault_proxy = FaultProxy::before(&cloud.url).await;
    let site = Site::school("no_say", &fault_proxy.url(), KEY).await;
    site.run(&format!("{FACULTY} ('x', null)")).await;
    let running = site.replicate();
    slips(&site, &["a.jpg"]).await;
    all_uploaded(&running, 1).await;
    // Given a cloud that fails to answer the question
    fault_proxy.fault(Fault::status(500).on("upload/leave_slips").method(Method::HEAD));
    // When a file of the same size comes, then it goes; and so does each that is asked for again.
    slips(&site, &["b.jpg"]).await;
    all_uploaded(&running, 2).await;
    assert!(fault_proxy.struck() > 0);
    force(&running).await;
    all_uploaded(&running, 2).await;
    assert_eq!(sent(&running), 4);
    running.end().await;
}
