//! What a sync asks the cloud, and what it reports.

use cloud_sync::catalogue::Catalogue;
use cloud_sync::control::SyncRequest;
use cloud_sync::reconcile::NoObserver;
use cloud_sync::reconcile::backfill::RowSpan;
use cloud_sync::replicator::{self, OneShot};
use tokio_util::sync::CancellationToken;

use crate::support::baseline::{self, BaselineServer};
use crate::support::site::{Cloud, KEY, Site};

const ROWS: &str = "
    insert into tbl_faculty (faculty_fname) values ('Ann');
    insert into tbl_leave (faculty_id, leave_reason) values (1, 'rest'), (1, 'trip');
    insert into tbl_room (room_no, room_name) select 'R' || n, 'room ' || n from generate_series(1, 12) n";

#[tokio::test]
async fn a_sync_and_a_backfill_ask_for_as_many_days_as_the_contract_says() {
    let catalogue = Catalogue::builtin();
    let server = BaselineServer::start(&catalogue, &[]).await;
    let site = Site::school("days", &server.url(), baseline::KEY).await;
    let asked = |path: &str| -> Vec<String> {
        let requests = server.requests();
        requests
            .iter()
            .filter(|one| one.method == reqwest::Method::GET && one.path == path)
            .map(|one| one.query.clone())
            .collect()
    };
    let expect = |when: &str| {
        for entity in catalogue.entities() {
            let days = entity
                .retention
                .as_ref()
                .map_or(String::new(), |window| format!("days={}", window.days));
            let queries = asked(&entity.path);
            assert!(
                !queries.is_empty() && queries.iter().all(|query| *query == days),
                "{when}: {}: {queries:?}",
                entity.name
            );
        }
    };
    let once = OneShot::start(&site.settings).await.unwrap();
    let report = once.sync(&SyncRequest::default(), &NoObserver).await.unwrap();
    assert!(report.success(), "{:?}", report.errors());
    once.finish().await.unwrap();
    expect("a sync");
    server.forget_requests();
    let stop = CancellationToken::new();
    let report = replicator::backfill(&site.settings, &[], RowSpan::Retention, false, &NoObserver, &stop)
        .await
        .unwrap();
    assert!(report.success, "{:?}", report.errors);
    expect("a backfill");
}

/// One sync without a daemon, as cron runs it.
async fn one_sync(site: &Site) -> serde_json::Value {
    let once = OneShot::start(&site.settings).await.unwrap();
    let report = once.sync(&SyncRequest::default(), &NoObserver).await.unwrap();
    once.finish().await.unwrap();
    serde_json::to_value(&report).unwrap()
}

/// Asserts that the report names these rows and nothing else.
fn names(report: &serde_json::Value, rooms: usize, leaves: usize) {
    assert_eq!(report["success"], true, "{report}");
    assert_eq!(report["synced"].as_object().unwrap().len(), 9, "{report}");
    for (name, count) in [("rooms", rooms), ("leaves", leaves), ("cameras", 0)] {
        assert_eq!(report["summary"][name], count, "{report}");
        assert_eq!(
            report["synced"][name].as_array().unwrap().len(),
            count,
            "{report}"
        );
    }
}

#[tokio::test]
async fn a_sync_without_a_daemon_reports_the_rows_that_its_drain_delivered() {
    let cloud = Cloud::start("cron").await;
    let server = BaselineServer::start(&Catalogue::builtin(), &[]).await;
    for (hint, url, key) in [
        ("cron_receiver", cloud.url.clone(), KEY),
        ("cron_baseline", server.url(), baseline::KEY),
    ] {
        let site = Site::school(hint, &url, key).await;
        // Given rows that were captured since the last sync
        site.run(ROWS).await;
        // When the next one runs, then it reports them, once;
        let report = one_sync(&site).await;
        names(&report, 12, 2);
        assert_eq!(report["synced"]["rooms"][11], 12, "{report}");
        // the one after has nothing to report,
        names(&one_sync(&site).await, 0, 0);
        // and updates are reported as new rows are.
        site.run(
            "update tbl_room set room_name = 'again' where room_id <= 3; \
             update tbl_room set room_name = 'twice' where room_id = 1",
        )
        .await;
        names(&one_sync(&site).await, 3, 0);
    }
}
