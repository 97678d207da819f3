//! Rows 26, 27 and 29: while one row or one entity is in trouble, those of all others arrive as ever.

use axum::http::Method;

use crate::support::commit_latency;
use crate::support::fault::Fault;
use crate::support::fault_proxy::FaultProxy;
use crate::support::process::Daemon;
use crate::support::says;
use crate::support::site::{Cloud, KEY, LIMIT, Site, connect, entity};

/// A site with tables `t` and `u` as entities `x` and `y`, a fault proxy before its cloud, and its
/// replicator's settings.
async fn two(hint: &str) -> (Cloud, FaultProxy, Site, Daemon) {
    let cloud = Cloud::start(hint).await;
    let fault_proxy = FaultProxy::before(&cloud.url).await;
    let tables = "create table t (id bigint primary key, v text); create table u (id bigint primary key)";
    let config = entity("x", "t", &["id"], "") + &entity("y", "u", &["id"], "");
    let site = Site::bare(hint, &fault_proxy.url(), KEY, tables, &config).await;
    site.init().await;
    let daemon = Daemon::of(&site, "store");
    (cloud, fault_proxy, site, daemon)
}

/// One row that the cloud answers by this status, as `spoil` makes it: those of another entity arrive as
/// ever, and every report says what is wrong and what to do.
async fn one_row(hint: &str, what: &str, status: i32, spoil: impl AsyncFnOnce(&Cloud, &FaultProxy)) {
    let (cloud, fault_proxy, site, daemon) = two(hint).await;
    let process = daemon.start();
    site.run("insert into t values (1, 'good'); insert into u values (1)")
        .await;
    daemon.caught_up().await;
    assert_eq!(daemon.healthz().await, (200, "ok\n".to_owned()));
    // Given a cloud that does not take one row
    spoil(&cloud, &fault_proxy).await;
    // When it is written
    site.run("insert into t values (2, 'bad')").await;
    daemon
        .until("in quarantine", LIMIT, |status| status.quarantine == Some(1))
        .await;
    // Then the rows of another entity arrive,
    commit_latency::print_commit_latency(what, &site, &cloud, "u", "y").await;
    // and each place says what is wrong and what to do.
    let ask = |arguments: &[&str]| {
        let output = daemon.ask(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    says(
        &ask(&["status"]),
        &["1 refused changes: see cloud-sync quarantine list"],
    );
    says(
        &ask(&["check"]),
        &[
            "ok     quarantine: take care, the cloud is without the present state of 1 row of x: ",
            "`cloud-sync quarantine list` says why; correct the row, or the cloud and then run `cloud-sync \
             quarantine retry`",
        ],
    );
    let (code, text) = daemon.healthz().await;
    assert_eq!(code, 200, "{text}");
    says(
        &text,
        &["1 refused changes are in quarantine: see cloud-sync quarantine list"],
    );
    says(
        &ask(&["quarantine", "list"]),
        &[&status.to_string(), "{\"id\":2}"],
    );
    // When the row is corrected, then nobody speaks of it any more.
    site.run("update t set v = 'good' where id = 2").await;
    daemon
        .until("out of quarantine", LIMIT, |status| status.quarantine == Some(0))
        .await;
    says(&ask(&["status"]), &["quarantine  empty"]);
    says(&ask(&["check"]), &["ok     quarantine: empty"]);
    assert_eq!(daemon.healthz().await, (200, "ok\n".to_owned()));
    assert!(process.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_row_holds_no_other_entity_up_and_is_told() {
    one_row("beside_row", "a refused row", 422, async |cloud, _| {
        let there = connect(&cloud.database_url).await;
        there
            .batch_execute("alter table cloud.x add check (v <> 'bad')")
            .await
            .unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_always_gets_500_holds_no_other_entity_up_and_is_told() {
    one_row(
        "beside_500",
        "a row that always gets 500",
        500,
        async |_, fault_proxy| {
            fault_proxy.fault(Fault::status(500).on("changes").when(|row| row["v"] == "bad"));
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_schema_holds_no_other_entity_up() {
    let (cloud, fault_proxy, site, daemon) = two("beside_schema").await;
    fault_proxy.fault(Fault::status(422).method(Method::PUT).on("schema/x"));
    let process = daemon.start();
    site.run("insert into t values (1, 'kept'); insert into u values (1)")
        .await;
    daemon
        .until("parked", LIMIT, |status| {
            status.capture.iter().any(|trouble| trouble.entity == "x")
        })
        .await;
    commit_latency::print_commit_latency("a refused schema", &site, &cloud, "u", "y").await;
    fault_proxy.clear_faults();
    daemon
        .until("no longer parked", LIMIT, |status| status.capture.is_empty())
        .await;
    daemon.caught_up().await;
    site.assert_equal(&cloud).await;
    assert!(process.terminate().await.success());
}
