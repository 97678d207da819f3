//! What the cloud has of an earlier outbox, of another database, or has refused.

use std::time::Duration;

use cloud_sync::quarantine;
use cloud_sync::source::install;

use super::backfill;
use crate::support::scenario::Scenario;
use crate::support::site::{KEY, Site, entity};

const TABLE: &str = "create table t (id int primary key, v text)";

#[tokio::test]
async fn capture_installed_again_with_an_empty_store_is_newer_than_all_that_the_cloud_has() {
    let mut scenario = Scenario::start("again_new", TABLE, &entity("x", "t", &["id"], "")).await;
    for n in 0..5 {
        scenario
            .assert_each(
                &[&format!(
                    "insert into t select {n} * 10 + k, 'v' from generate_series(1, 9) k"
                )],
                "id, v",
            )
            .await;
    }
    // Given capture that was taken away and installed again, and a store that is gone
    scenario.running.end().await;
    install::uninstall(scenario.site.settings.require_database_url().unwrap())
        .await
        .unwrap();
    std::fs::remove_dir_all(&scenario.site.settings.store.path).unwrap();
    scenario.site.init().await;
    scenario.running = scenario.site.replicate_monitoring_drift();
    // When rows are updated and deleted
    scenario
        .run(
            "update t set v = 'after' where id < 5; delete from t where id between 10 and 20; \
         insert into t values (100, 'new')",
        )
        .await;
    // Then the cloud takes that as newer.
    scenario.assert_rows_equal("x", "t", "id, v", "true").await;
    scenario.running.end().await;
}

#[tokio::test]
async fn two_databases_under_one_key_that_share_an_entity_are_refused_at_the_handshake() {
    let config = entity("x", "t", &["id"], "");
    let scenario = Scenario::start("shared_a", TABLE, &config).await;
    scenario
        .assert_each(&["insert into t values (1, 'first')"], "id, v")
        .await;
    // Given a second database that is configured with the same site and key
    let mut second = Site::bare("shared_b", &scenario.cloud.url, KEY, TABLE, &config).await;
    for source_id in ["college", "college-second"] {
        if source_id != "college" {
            second.reconfigure("source_id = \"college\"", &format!("source_id = \"{source_id}\""));
        }
        second.init().await;
        second
            .run("insert into t values (1, 'second') on conflict (id) do update set v = 'second again'")
            .await;
        // When its replicator starts
        let running = second.replicate();
        let status = running.until("refused", |status| status.reason.is_some()).await;
        // Then it gets an error that says so, and nothing of it reaches the cloud.
        let reason = status.reason.unwrap();
        assert!(reason.contains("database"), "{reason}");
        scenario.assert_settled("id, v").await;
        tokio::time::timeout(Duration::from_secs(30), running.abandon())
            .await
            .unwrap();
    }
    // The first one goes on.
    scenario
        .assert_each(&["update t set v = 'first again'"], "id, v")
        .await;
    scenario.running.end().await;
}

#[tokio::test]
async fn a_backfill_takes_no_refused_change_out_of_quarantine_without_delivering_it() {
    let scenario = Scenario::start("refused", TABLE, &entity("x", "t", &["id"], "")).await;
    scenario
        .assert_each(
            &[
                "insert into t values (1, 'good'), (2, 'other')",
                "delete from t where id = 1",
            ],
            "id, v",
        )
        .await;
    // Given a row whose present state the cloud refuses
    scenario
        .cloud_client
        .batch_execute("alter table cloud.x add constraint never check (v <> 'bad')")
        .await
        .unwrap();
    scenario.run("insert into t values (1, 'bad')").await;
    let status = scenario.running.caught_up().await;
    assert_eq!(status.quarantine, Some(1));
    // When the entity is backfilled
    let report = backfill(&scenario.site, true).await;
    // Then the row is still set aside, and the report says so.
    assert!(!report.success, "{report:?}");
    assert_eq!(quarantine::count(&scenario.site.client, None).await.unwrap(), 1);
    // Once the cloud takes it, another one delivers it.
    scenario
        .cloud_client
        .batch_execute("alter table cloud.x drop constraint never")
        .await
        .unwrap();
    let report = backfill(&scenario.site, true).await;
    assert!(report.success, "{report:?}");
    scenario.assert_rows_equal("x", "t", "id, v", "true").await;
    scenario.running.end().await;
}

#[tokio::test]
async fn a_backfill_from_the_start_brings_rows_that_were_loaded_after_a_truncate() {
    let mut scenario = Scenario::start("reloaded", TABLE, &entity("x", "t", &["id"], "")).await;
    scenario
        .assert_each(
            &[
                "insert into t select n, 'before' from generate_series(1, 10) n",
                "truncate t",
            ],
            "id, v",
        )
        .await;
    // Given the same keys, loaded while triggers were off and no replicator ran
    scenario.running.end().await;
    scenario
        .site
        .run(
            "alter table t disable trigger all; \
         insert into t select n, 'loaded' from generate_series(1, 10) n",
        )
        .await;
    scenario.site.init().await;
    // When it is backfilled from the start
    let report = backfill(&scenario.site, true).await;
    // Then what it says was pushed is there.
    assert!(report.success, "{report:?}");
    assert_eq!(report.pushed.get("x"), Some(&10));
    let held: i64 = scenario
        .cloud_client
        .query_one("select count(*) from cloud.x where v = 'loaded'", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(held, 10);
    scenario.running = scenario.site.replicate_monitoring_drift();
    scenario.until_whole().await;
    scenario.assert_rows_equal("x", "t", "id, v", "true").await;
    scenario.running.end().await;
}
