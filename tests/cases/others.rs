//! Rows 26, 27 and 29: while one row or one entity is in trouble, those of all others arrive as ever.

use axum::http::Method;

use super::entity;
use crate::support::fault::Fault;
use crate::support::gate::Gate;
use crate::support::lone;
use crate::support::process::Daemon;
use crate::support::site::{Cloud, KEY, LIMIT, Site, connect};

/// A site with tables `t` and `u` as entities `x` and `y`, a gate before its cloud, and its replicator's settings.
async fn two(hint: &str) -> (Cloud, Gate, Site, Daemon) {
    let cloud = Cloud::start(hint).await;
    let gate = Gate::before(&cloud.url).await;
    let tables = "create table t (id bigint primary key, v text); create table u (id bigint primary key)";
    let config = entity("x", "t", &["id"], "") + &entity("y", "u", &["id"], "");
    let site = Site::bare(hint, &gate.url(), KEY, tables, &config).await;
    site.init().await;
    let daemon = Daemon::of(&site, "store");
    (cloud, gate, site, daemon)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_row_holds_no_other_entity_up() {
    let (cloud, _gate, site, daemon) = two("beside_row").await;
    let process = daemon.start();
    site.run("insert into t values (1, 'good'); insert into u values (1)")
        .await;
    daemon.caught_up().await;
    let there = connect(&cloud.database_url).await;
    there
        .batch_execute("alter table cloud.x add check (v <> 'bad')")
        .await
        .unwrap();
    site.run("insert into t values (2, 'bad')").await;
    daemon
        .until("refused", LIMIT, |status| status.quarantine == Some(1))
        .await;
    lone::commits("a refused row", &site, &cloud, "u", "y").await;
    assert!(process.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_always_gets_500_holds_no_other_entity_up() {
    let (cloud, gate, site, daemon) = two("beside_500").await;
    gate.fault(Fault::status(500).on("changes").when(|row| row["v"] == "bad"));
    let process = daemon.start();
    site.run("insert into t values (1, 'bad'); insert into u values (1)")
        .await;
    daemon
        .until("set aside", LIMIT, |status| status.quarantine == Some(1))
        .await;
    lone::commits("a row that always gets 500", &site, &cloud, "u", "y").await;
    assert!(process.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_schema_holds_no_other_entity_up() {
    let (cloud, gate, site, daemon) = two("beside_schema").await;
    gate.fault(Fault::status(422).method(Method::PUT).on("schema/x"));
    let process = daemon.start();
    site.run("insert into t values (1, 'kept'); insert into u values (1)")
        .await;
    daemon
        .until("parked", LIMIT, |status| {
            status.capture.iter().any(|trouble| trouble.entity == "x")
        })
        .await;
    lone::commits("a refused schema", &site, &cloud, "u", "y").await;
    gate.clear_faults();
    daemon
        .until("no longer parked", LIMIT, |status| status.capture.is_empty())
        .await;
    daemon.caught_up().await;
    site.assert_equal(&cloud).await;
    assert!(process.terminate().await.success());
}
