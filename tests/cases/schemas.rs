//! Schemas that the cloud takes, and those that it refuses: reported by `check` before any change, and no other
//! entity waits.

use cloud_sync::control::{Health, Operator};
use cloud_sync::replicator::preconditions;
use serde_json::json;

use crate::support::says;
use crate::support::scenario::{Scenario, row_texts};
use crate::support::site::{Cloud, KEY, Site, connect, entity};

// Names that begin as the receiver's own columns do, a path of the receiver's files, and almost as many
// columns as a table can have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_the_receivers_own_is_taken() {
    let wide: String = (0..1590).map(|nth| format!(", c{nth} smallint")).collect();
    let tables = format!(
        "create table t (_site_id bigint primary key, _position text, _version_x int, key text, place text); \
         create table w (id bigint primary key{wide})"
    );
    let config = format!(
        "{}{}",
        entity("x", "t", &["_site_id"], "path = \"media\""),
        entity("wide", "w", &["id"], "")
    );
    let scenario = Scenario::start("own_names", &tables, &config).await;
    scenario
        .run(
            "insert into t select n, 'p', n, 'k', 'l' from generate_series(1, 300) n; update t set key = 'm' \
             where _site_id = 2; \
         delete from t where _site_id = 1; insert into w (id, c0, c1589) values (1, 2, 3); update w set c7 \
         = 8",
        )
        .await;
    scenario
        .assert_rows_equal("x", "t", "_site_id, _position, _version_x, key, place", "true")
        .await;
    scenario
        .assert_rows_equal("wide", "w", "id, c0, c7, c1588, c1589", "true")
        .await;
    scenario.assert_nothing_to_sync().await;
    scenario.running.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_that_the_cloud_refuses_is_told_by_check_before_a_change() {
    let mut cloud = Cloud::start("refusals").await;
    cloud.add_site("annex", "a-key-of-another-site");
    cloud.away().await;
    cloud.back().await;
    // Given entities that another site, and this one once, declared under another key, or with another type,
    let declare = async |key: &str, entity: &str, declared: &str, kind: &str| {
        let schema = json!({"entity": entity, "key": [declared], "columns": [
            {"name": "id", "type": "bigint"}, {"name": "no", "type": "bigint"}, 
            {"name": "at", "type": kind}]});
        let put = reqwest::Client::new()
            .put(format!("{}/schema/{entity}", cloud.url))
            .bearer_auth(key)
            .json(&schema);
        assert!(put.send().await.unwrap().status().is_success());
    };
    declare("a-key-of-another-site", "shared", "no", "date").await;
    declare(KEY, "keyed", "no", "date").await;
    declare(KEY, "typed", "id", "boolean").await;
    let names = ["good", "shared", "keyed", "typed", "named"];
    let mut tables: String = names
        .iter()
        .map(|name| format!("create table {name} (id bigint primary key, no bigint, at date); "))
        .collect();
    tables.push_str("alter table named add _site text");
    let config: String = names.iter().map(|name| entity(name, name, &["id"], "")).collect();
    let site = Site::bare("refusals", &cloud.url, KEY, &tables, &config).await;
    site.init().await;
    // then `check` tells each, with what helps,
    let wrong = async || -> Vec<(String, String)> {
        let findings = preconditions::check(&site.settings).await;
        let wrong = findings
            .iter()
            .filter_map(|one| Some((one.subject().to_owned(), one.error()?.to_owned())));
        wrong.collect()
    };
    let expected = [
        ("shared", "give the entity another name"),
        ("keyed", "give the entity another name"),
        ("typed", "rename the column"),
        ("named", "rename the column, or exclude it"),
    ];
    let found = wrong().await;
    assert_eq!(found.len(), 4, "{found:#?}");
    for ((subject, text), (name, remedy)) in found.iter().zip(expected) {
        assert_eq!(*subject, format!("schema of {name}"));
        says(text, &[remedy]);
    }
    // and while the replicator runs they alone wait, and every report says so.
    let running = site.replicate_monitoring_drift();
    for name in names {
        site.run(&format!("insert into {name} (id) values (1), (2)"))
            .await;
    }
    let status = running
        .until("parked", |status| {
            status.capture.iter().filter(|one| one.broken).count() == 4
        })
        .await;
    for ((name, remedy), trouble) in expected.into_iter().zip(&status.capture) {
        assert_eq!(trouble.entity, name);
        says(&trouble.reason, &[remedy, "wait in the site's database"]);
    }
    running.caught_up().await;
    let there = connect(&cloud.database_url).await;
    assert_eq!(
        row_texts(&there, "cloud.good", "id", "true").await,
        ["{1}", "{2}"]
    );
    let Health::Still(reason) = running.replicator.health() else {
        panic!("{:?}", running.replicator.health());
    };
    says(&reason, &["wait in the site's database"]);
    let metrics = running.replicator.metrics();
    for (name, parked) in [
        ("good", 0),
        ("shared", 1),
        ("keyed", 1),
        ("typed", 1),
        ("named", 1),
    ] {
        let line = format!("cloud_sync_parked{{entity=\"{name}\"}} {parked}");
        assert!(metrics.contains(&line), "no {line}");
    }
    let found = wrong().await;
    assert_eq!(found.len(), 4, "{found:#?}");
    running.end().await;
}

#[tokio::test]
async fn a_retention_by_a_column_that_is_no_time_is_refused_at_start() {
    for kind in ["bigint", "text", "time"] {
        let table = format!("create table t (id bigint primary key, at {kind})");
        let config = entity("x", "t", &["id"], "retention = { column = \"at\", days = 7 }");
        let text = Site::refusal("no_time", &table, &config).await;
        says(&text, &["entity x", "column at", kind, "under retention"]);
        let site = Site::bare("no_time", "http://127.0.0.1:9/api", KEY, &table, &config).await;
        let findings = preconditions::check(&site.settings).await;
        let errors = findings.iter().filter_map(|one| one.error());
        assert!(
            errors.into_iter().any(|text| text.contains("under retention")),
            "{kind}"
        );
    }
    for kind in ["date", "timestamp", "timestamptz"] {
        let table =
            format!("create domain moment as {kind}; create table t (id bigint primary key, at moment)");
        let config = entity("x", "t", &["id"], "retention = { column = \"at\", days = 7 }");
        let site = Site::bare("times", "http://127.0.0.1:9/api", KEY, &table, &config).await;
        site.init().await;
    }
}
