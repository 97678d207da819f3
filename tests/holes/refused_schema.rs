//! DESIGN 8: refusals reach as far as they must. An entity whose schema the cloud refuses is parked alone,
//! and loses nothing.

use axum::http::Method;
use cloud_sync::control::Operator;
use cloud_sync::error::Kind;
use cloud_sync::replicator::preconditions;

use super::{TABLE, held, settled, things};
use crate::support::fault::Fault;
use crate::support::fault_proxy::FaultProxy;
use crate::support::site::{Cloud, KEY, Running, Site, until_whole};
use crate::support::sql::{number, texts, until};

const OTHER: &str = "[[entity]]\nname = \"others\"\ntable = \"other\"\nkey = [\"id\"]\npath = \"others\"\n";

/// A site with entities `things` and `others`, and a fault proxy before its cloud.
async fn gated(hint: &str, tables: &str) -> (Cloud, FaultProxy, Site) {
    let cloud = Cloud::start(hint).await;
    let fault_proxy = FaultProxy::before(&cloud.url).await;
    let tables = format!("{tables}; create table other (id bigint primary key)");
    let config = format!("{}{OTHER}", things(""));
    let site = Site::bare(hint, &fault_proxy.url(), KEY, &tables, &config).await;
    site.init().await;
    (cloud, fault_proxy, site)
}

fn refused_schema(status: u16) -> Fault {
    Fault::status(status).method(Method::PUT).on("schema/things")
}

/// Waits until the status says that `things` is parked, and returns why.
async fn parked(running: &Running) -> String {
    let is_parked = |trouble: &cloud_sync::control::status::CaptureProblem| {
        trouble.broken && trouble.entity == "things" && trouble.reason.contains("wait in the site's database")
    };
    let status = running
        .until("parked", |status| status.capture.iter().any(is_parked))
        .await;
    let trouble = status.capture.into_iter().find(is_parked).unwrap();
    trouble.reason
}

// The cloud answers a 4xx to one schema, until someone mends the cloud.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_schema_parks_its_entity_alone() {
    // A path of its own may be unknown to a server that has the call, too.
    for status in [422, 404] {
        let (cloud, fault_proxy, site) = gated("refused_schema", TABLE).await;
        fault_proxy.fault(refused_schema(status));
        let running = site.replicate_monitoring_drift();
        site.run(
            "insert into thing select n, 'one' from generate_series(1, 3) n; insert into other values (1)",
        )
        .await;
        // It is reported, with the reason,
        let why = parked(&running).await;
        assert!(why.contains(&status.to_string()), "{why}");
        let metrics = running.replicator.metrics();
        for line in [
            "cloud_sync_parked{entity=\"things\"} 1",
            "cloud_sync_parked{entity=\"others\"} 0",
        ] {
            assert!(metrics.contains(line), "no {line}");
        }
        let findings = preconditions::check(&site.settings).await;
        let errors: Vec<_> = findings.iter().filter_map(|finding| finding.error()).collect();
        assert!(
            errors.len() == 1 && errors[0].contains(&status.to_string()),
            "{errors:?}"
        );
        // all others flow,
        site.run("insert into other values (2)").await;
        running.caught_up().await;
        assert_eq!(
            held(&cloud, "select id::text from cloud.others order by id").await,
            ["1", "2"]
        );
        // what is written until then is kept, also over a restart,
        site.run("update thing set label = 'two' where id = 1; delete from thing where id = 2")
            .await;
        running.caught_up().await;
        running.end().await;
        assert!(number(&site.client, "select count(*) from cloud_sync.parked_key").await >= 3);
        let running = site.replicate_monitoring_drift();
        parked(&running).await;
        site.run("update thing set id = 4 where id = 3").await;
        running.caught_up().await;
        // and it is tried again without a command.
        fault_proxy.clear_faults();
        until_whole(&site, &running).await;
        site.assert_equal(&cloud).await;
        running.end().await;
    }
}

// The table had another type when the cloud's was made: the cloud refuses that, until someone mends the
// table.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_that_is_mended_at_the_site_is_sent_as_it_is_then() {
    let (cloud, _gate, site) = gated(
        "mended_schema",
        "create table thing (id bigint primary key, at timestamptz)",
    )
    .await;
    let running = site.replicate_monitoring_drift();
    site.run("insert into thing values (1, '2026-01-01')").await;
    running.caught_up().await;
    site.run(
        "alter table thing alter at type boolean using true; insert into thing values (2, false), (3, true)",
    )
    .await;
    parked(&running).await;
    site.run("insert into other values (1)").await;
    until(&site.client, "select count(*) >= 2 from cloud_sync.parked_key").await;
    running.caught_up().await;
    assert_eq!(held(&cloud, "select id::text from cloud.others").await, ["1"]);
    site.run(
        "alter table thing alter at type timestamptz using '2026-02-02'; delete from thing where id = 2",
    )
    .await;
    until_whole(&site, &running).await;
    site.assert_equal(&cloud).await;
    running.end().await;
}

// 401 stops the pushing, and 503 passes: neither is a refusal of the schema.
#[tokio::test]
async fn what_is_no_refusal_of_a_schema_parks_nothing() {
    let (cloud, fault_proxy, site) = gated("no_refusal", TABLE).await;
    let drain = site.drain();
    let mut stages = drain.open().await.unwrap();
    site.run("insert into thing values (1, 'one')").await;
    for (status, kind) in [
        (401, Kind::CloudAuth),
        (503, Kind::CloudUnreachable),
        (429, Kind::CloudUnreachable),
    ] {
        fault_proxy.fault(refused_schema(status));
        let failed = stages.step().await.unwrap_err();
        assert_eq!(failed.kind(), kind, "{failed}");
        fault_proxy.clear_faults();
        stages = drain.open().await.unwrap();
    }
    let why = texts(
        &site.client,
        "select parked from cloud_sync.entity where parked is not null",
    )
    .await;
    assert!(why.is_empty(), "{why:?}");
    settled(&mut stages, &site).await;
    site.assert_equal(&cloud).await;
}

// Changes that were read already are kept by their keys' JSON: that names the same rows, whatever the keys'
// types.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_any_type_are_kept_as_they_are() {
    let several = "a bytea, b timestamptz, c float8, d int[], e text, primary key (a, b, c, d, e)";
    let values = "'\\x5c22', '2026-01-02 03:04:05.678901+08', 0.1::float8 + 0.2, '{1,2}', '{\"a\", \\b'";
    for (columns, key, values) in [
        ("id bytea primary key", "\"id\"", "'\\xff00aa'"),
        (several, "\"a\", \"b\", \"c\", \"d\", \"e\"", values),
    ] {
        let cloud = Cloud::start("kept_keys").await;
        let fault_proxy = FaultProxy::before(&cloud.url).await;
        let config = things("").replace("\"id\"", key);
        let tables = format!("create table thing ({columns})");
        let site = Site::bare("kept_keys", &fault_proxy.url(), KEY, &tables, &config).await;
        site.init().await;
        fault_proxy.fault(refused_schema(422));
        let running = site.replicate_monitoring_drift();
        site.run(&format!("insert into thing values ({values})")).await;
        until(&site.client, "select count(*) = 1 from cloud_sync.parked_key").await;
        fault_proxy.clear_faults();
        until_whole(&site, &running).await;
        assert_eq!(
            held(&cloud, "select count(*)::text from cloud.things").await,
            ["1"],
            "{columns}"
        );
        running.end().await;
    }
}
