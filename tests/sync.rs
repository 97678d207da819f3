//! Sync, backfill and quarantine, against a server that knows the baseline calls only, and against the
//! receiver.

use cloud_sync::control::SyncRequest;
use cloud_sync::quarantine;
use cloud_sync::reconcile::NoObserver;
use cloud_sync::reconcile::backfill::RowSpan;
use cloud_sync::replicator::{self, OneShot};
use cloud_sync::source::{describe, install};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::support::baseline::{self, BaselineServer};
use crate::support::fault::Fault;
use crate::support::oracle::assert_never_back;
use crate::support::site::{Cloud, KEY, Site, connect};

/// Rows of four entities, children after their parents; some outside their windows.
const ROWS: &str = "
    insert into tbl_room (room_no, room_name) select 'R' || n, 'room ' || n from generate_series(1, 12) n;
    insert into tbl_camera (camera_name, room_no, camera_ip_address, camera_username, camera_password, \
    camera_live_feed)
        select 'camera ' || n, 'R' || n, '10.77.0.' || n, 'private-user-' || n, 'private-word-' || n,
               format('rtsp://private-user-%s:private-word-%s@10.77.0.%s:554/live?channel=%s', n, n, n, n)
        from generate_series(1, 8) n;
    insert into tbl_faculty (faculty_fname) select 'faculty ' || n from generate_series(1, 6) n;
    insert into tbl_recognition_logs (camera_id, faculty_id, status, distance, created_at)
        select 1 + n % 8, 1 + n % 6, 'recognized', 0.123456, now() - make_interval(days => n % 14)
        from generate_series(1, 140) n;";

async fn sync(site: &Site, request: &SyncRequest) -> cloud_sync::control::SyncReport {
    let once = OneShot::start(&site.settings).await.unwrap();
    let report = once.sync(request, &NoObserver).await.unwrap();
    once.finish().await.unwrap();
    report
}

#[tokio::test]
async fn a_row_on_its_way_is_not_pushed_by_a_sync_too() {
    let catalogue = cloud_sync::catalogue::Catalogue::builtin();
    let server = BaselineServer::start(&catalogue, &[]).await;
    let site = Site::school("underway", &server.url(), baseline::KEY).await;
    // Given rows that nothing has drained yet
    site.run(ROWS).await;
    // When it is synced
    let report = sync(&site, &SyncRequest::default()).await;
    // Then each goes once.
    assert!(report.success(), "{:?}", report.errors());
    let posts = |path: &str| {
        server
            .calls()
            .iter()
            .filter(|call| **call == format!("POST {path}"))
            .count()
    };
    assert_eq!((posts("rooms"), posts("cameras"), posts("faculties")), (12, 8, 6));
    assert_eq!(posts("recognition-logs"), 140);
}

#[tokio::test]
async fn a_baseline_server_gets_what_is_missing_once_and_parents_first() {
    let catalogue = cloud_sync::catalogue::Catalogue::builtin();
    let server = BaselineServer::start(&catalogue, &[]).await;
    let site = Site::school("baseline", &server.url(), baseline::KEY).await;
    site.run(ROWS).await;
    // Given a server that holds some of the rows already, and rows that the drain has delivered
    site.drain().drain_all().await.unwrap();
    for number in [3, 7] {
        server.remove("rooms", &number.to_string()).unwrap();
        server.remove("cameras", &number.to_string()).unwrap();
    }
    server.forget_requests();
    // When it is synced
    let report = sync(&site, &SyncRequest::default()).await;
    // Then what was missing is pushed, parents before children,
    assert!(report.success(), "{:?}", report.errors());
    assert_eq!(report.summary().get("rooms"), Some(&2));
    assert_eq!(report.summary().get("cameras"), Some(&2));
    assert_eq!(report.summary().get("recognition_logs"), Some(&0));
    let posts: Vec<String> = server
        .calls()
        .into_iter()
        .filter(|call| call.starts_with("POST"))
        .collect();
    let places: Vec<_> = posts.iter().map(|call| call.contains("cameras")).collect();
    assert_eq!(places, [false, false, true, true], "{posts:?}");
    // nothing of the capabilities is called,
    for call in server.calls() {
        let known = call.starts_with("GET ") || call.starts_with("POST ");
        let capability = ["changes", "bulk", "schema"]
            .iter()
            .any(|name| call.contains(name));
        assert!(known && !capability, "{call}");
    }
    // and a second sync pushes nothing.
    server.forget_requests();
    let second = sync(&site, &SyncRequest::default()).await;
    assert!(second.success());
    assert!(second.summary().iter().all(|(_, &count)| count == 0));
    assert!(server.calls().iter().all(|call| call.starts_with("GET")));
}

#[tokio::test]
async fn a_sync_goes_on_past_errors_and_reports_them() {
    let catalogue = cloud_sync::catalogue::Catalogue::builtin();
    let server = BaselineServer::start(&catalogue, &[]).await;
    let site = Site::school("past", &server.url(), baseline::KEY).await;
    site.run(ROWS).await;
    server.fault(Fault::status(404).on("cameras").method(reqwest::Method::GET));
    let report = sync(&site, &SyncRequest::default()).await;
    assert!(!report.success());
    assert!(
        report
            .errors()
            .iter()
            .any(|error| error.starts_with("Failed to sync cameras: ")),
        "{:?}",
        report.errors()
    );
    assert_eq!(server.count("faculties"), 6);
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["success"], false);
    assert_eq!(json["synced"].as_object().unwrap().len(), 9);
}

#[tokio::test]
async fn a_refused_row_waits_in_quarantine_and_leaves_it_when_it_is_accepted() {
    let catalogue = cloud_sync::catalogue::Catalogue::builtin();
    let server = BaselineServer::start(&catalogue, &[]).await;
    let site = Site::school("refused", &server.url(), baseline::KEY).await;
    server.fault(
        Fault::status(422)
            .on("rooms")
            .when(|row: &Value| row["room_id"] == 5),
    );
    let replicator = site.replicate();
    site.run(ROWS).await;
    let status = replicator.caught_up().await;
    // Given one row that the server refused, and all others there
    assert_eq!(status.quarantine, Some(1));
    assert_eq!(server.count("rooms"), 11);
    assert_eq!(server.count("recognition-logs"), 140);
    let entries = quarantine::list(&site.client, None).await.unwrap();
    assert_eq!((entries.len(), entries[0].code), (1, 422));
    assert!(entries[0].key.contains('5') && entries[0].entity == "rooms");
    let shown = quarantine::show(&site.client, cloud_sync::change::Position(entries[0].position))
        .await
        .unwrap();
    assert!(shown[0].image.as_ref().unwrap().contains("room 5"));
    // When it is retried while the server still refuses, it stays
    let tables = describe::fitting_tables(&site.client, &catalogue).await.unwrap();
    let attached = install::attached(&site.client, &catalogue, &tables)
        .await
        .unwrap();
    let retry = async || {
        quarantine::retry(&site.client, &catalogue, &attached, &entries)
            .await
            .unwrap()
    };
    assert_eq!(retry().await, 1);
    replicator.caught_up().await;
    assert_eq!(quarantine::list(&site.client, None).await.unwrap()[0].attempts, 2);
    // and when the server accepts it, it is delivered and leaves.
    server.clear_faults();
    assert_eq!(retry().await, 1);
    let status = replicator.caught_up().await;
    assert_eq!(status.quarantine, Some(0));
    assert_eq!(server.row("rooms", "5").unwrap()["room_name"], "room 5");
    // A row that was refused and then gets a good image leaves without a command.
    server.fault(
        Fault::status(422)
            .on("rooms")
            .when(|row: &Value| row["room_name"] == "bad"),
    );
    site.run("update tbl_room set room_name = 'bad' where room_id = 6")
        .await;
    assert_eq!(replicator.caught_up().await.quarantine, Some(1));
    site.run("update tbl_room set room_name = 'good' where room_id = 6")
        .await;
    assert_eq!(replicator.caught_up().await.quarantine, Some(0));
    assert_eq!(server.row("rooms", "6").unwrap()["room_name"], "good");
    replicator.end().await;
}

#[tokio::test]
async fn private_columns_leave_neither_for_the_cloud_nor_for_the_outbox() {
    let catalogue = cloud_sync::catalogue::Catalogue::builtin();
    let server = BaselineServer::start(&catalogue, &[]).await;
    let site = Site::school("private", &server.url(), baseline::KEY).await;
    let in_outbox = async || -> Vec<String> {
        site.client
            .query("select outbox::text from cloud_sync.outbox outbox", &[])
            .await
            .unwrap()
            .iter()
            .map(|row| row.get(0))
            .collect()
    };
    site.run(ROWS).await;
    site.run("update tbl_camera set camera_name = camera_name || ' updated'")
        .await;
    let mut outbox = in_outbox().await;
    let replicator = site.replicate();
    replicator.caught_up().await;
    // Captured again, by a sync that trusts nothing
    let request = SyncRequest {
        force: true,
        entities: vec!["cameras".into()],
    };
    let report = replicator.replicator.sync(&request, &NoObserver).await.unwrap();
    assert_eq!(report.summary().get("cameras"), Some(&8));
    outbox.extend(in_outbox().await);
    let bodies: Vec<String> = server
        .requests()
        .iter()
        .map(|request| String::from_utf8_lossy(&request.body).into_owned())
        .collect();
    assert!(!outbox.is_empty());
    assert!(bodies.iter().any(|text| text.contains("camera 3 updated")));
    assert!(
        bodies.iter().any(|text| text.contains("rtsp://")),
        "the live feed itself is replicated"
    );
    for secret in [
        "private-user-",
        "private-word-",
        "10.77.0.",
        "camera_password",
        "camera_username",
        "camera_ip_address",
    ] {
        for text in outbox.iter().chain(&bodies) {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
    replicator.end().await;
}

#[tokio::test]
async fn a_backfill_brings_the_windows_and_never_overwrites_a_newer_row() {
    let cloud = Cloud::start("backfill").await;
    let site = Site::bare(
        "backfill",
        &cloud.url,
        KEY,
        include_str!("../sql/sample_school.sql"),
        "",
    )
    .await;
    // Given rows that are older than capture, and changes of some of them while it streams
    site.run(ROWS).await;
    site.init().await;
    let replicator = site.replicate();
    site.run("update tbl_room set room_name = 'newer' where room_id <= 6")
        .await;
    let report = replicator::backfill(
        &site.settings,
        &[],
        RowSpan::Retention,
        false,
        &NoObserver,
        &CancellationToken::new(),
    )
    .await
    .unwrap();
    assert!(report.success, "{:?}", report.errors);
    site.run("update tbl_faculty set faculty_fname = 'newer' where faculty_id = 1")
        .await;
    replicator.caught_up().await;
    // Then each window is there and equal; rows outside are not; and nothing went back.
    site.assert_equal(&cloud).await;
    assert_never_back(&cloud).await;
    let in_cloud = connect(&cloud.database_url).await;
    let logs: i64 = in_cloud
        .query_one("select count(*) from cloud.recognition_logs", &[])
        .await
        .unwrap()
        .get(0);
    let window: i64 = site
        .client
        .query_one(
            "select count(*) from tbl_recognition_logs where created_at >= now() - interval '7 days'",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert_eq!(logs, window);
    assert!(window < 140);
    // A second one has nothing to do, and one that begins again finds everything held.
    let again = |restart| {
        let settings = site.settings.clone();
        async move {
            replicator::backfill(
                &settings,
                &[],
                RowSpan::Retention,
                restart,
                &NoObserver,
                &CancellationToken::new(),
            )
            .await
            .unwrap()
        }
    };
    assert_eq!(again(false).await.pushed.get("rooms"), report.pushed.get("rooms"));
    let restarted = again(true).await;
    assert_eq!(
        (restarted.pushed.get("rooms"), restarted.held.get("rooms")),
        (Some(&0), Some(&12))
    );
    replicator.end().await;
}

#[tokio::test]
async fn a_sync_repairs_rows_that_the_receiver_lost_changed_or_has_too_many_of() {
    let (cloud, site) = Site::school_with_cloud("repair").await;
    let replicator = site.replicate();
    site.run(ROWS).await;
    replicator.caught_up().await;
    // Given a receiver whose rows were lost, changed and left over behind the replicator's back
    let in_cloud = connect(&cloud.database_url).await;
    in_cloud
        .batch_execute(
            "delete from cloud.rooms where room_id = 2; \
             update cloud.rooms set room_name = 'wrong' where room_id = 4; \
             insert into cloud.rooms (_site, _epoch, _version, room_id, room_no) \
             values ('college', 0, 0, 999, 'X')",
        )
        .await
        .unwrap();
    let report = replicator
        .replicator
        .sync(&SyncRequest::default(), &NoObserver)
        .await
        .unwrap();
    assert!(report.success(), "{:?}", report.errors());
    assert_eq!(report.summary().get("rooms"), Some(&3));
    site.assert_equal(&cloud).await;
    let second = replicator
        .replicator
        .sync(&SyncRequest::default(), &NoObserver)
        .await
        .unwrap();
    assert!(
        second.summary().iter().all(|(_, &count)| count == 0),
        "{:?}",
        second.summary()
    );
    replicator.end().await;
}
