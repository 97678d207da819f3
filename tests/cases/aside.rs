//! Rows that a cloud does not take, whatever it answers to them: they wait aside, and all others go on.

use cloud_sync::catalogue::{Catalogue, Entity};
use cloud_sync::control::status::ReplicatorState;
use cloud_sync::quarantine;
use serde_json::Value;

use crate::support::baseline::{self, BaselineServer};
use crate::support::fault::Fault;
use crate::support::fault_proxy::FaultProxy;
use crate::support::scenario::{Scenario, row_texts};
use crate::support::site::{Cloud, KEY, Running, Site, connect, entity};

const TABLE: &str = "create table t (id bigint primary key, v text)";

fn catalogue() -> Catalogue {
    Catalogue::new(vec![Entity::new("x", "t", &["id"])]).unwrap()
}

/// A firewall that does not like a row's text.
fn firewall() -> Fault {
    let page = "<!DOCTYPE html><html><body><h1>403 Forbidden</h1>Request blocked.</body></html>";
    Fault::answer(403, "text/html", page)
}

fn is_bad(row: &Value) -> bool {
    row["v"] == "bad"
}

/// Rows that fail for ever, first alone and then among others; they follow by themselves once `mend` was
/// called.
async fn bad_rows_wait_aside(site: &Site, running: &Running, code: i32, mend: impl FnOnce()) {
    // Given a row that fails, alone,
    site.run("insert into t values (1, 'bad')").await;
    running
        .until("set aside", |status| {
            status.quarantine == Some(1) && status.lag.is_some_and(|lag| lag.changes == 0)
        })
        .await;
    // and several among others, the first of all too,
    site.run(
        "insert into t select n, case when n in (2, 3, 700) then 'bad' else 'good' end from \
         generate_series(2, 1500) n",
    )
    .await;
    let status = running.caught_up().await;
    // then they wait aside, with what was answered and without what was sent,
    assert_eq!(status.quarantine, Some(4));
    for entry in quarantine::list(&site.client, None).await.unwrap() {
        assert_eq!(entry.code, code, "{entry:?}");
        assert!(entry.error.contains(&code.to_string()), "{entry:?}");
    }
    // each is to be tried again in twice the time of the last try,
    let growing = "select bool_and(next_attempt - refused_at = interval '10 s' * 2 ^ (attempts - 1)) and \
         max(attempts) > 1 \
                   from cloud_sync.quarantine";
    crate::support::sql::until(&site.client, growing).await;
    // and they come by themselves when the server takes them.
    mend();
    running
        .until("tried again", |status| {
            status.quarantine == Some(0) && status.lag.is_some_and(|lag| lag.changes == 0)
        })
        .await;
}

async fn at_a_baseline_server(hint: &str, capabilities: &[&str], fault: Fault, code: i32) {
    let server = BaselineServer::start(&catalogue(), capabilities).await;
    let site = Site::bare(
        hint,
        &server.url(),
        baseline::KEY,
        TABLE,
        &entity("x", "t", &["id"], ""),
    )
    .await;
    site.init().await;
    let running = site.replicate();
    server.fault(fault.when(is_bad));
    bad_rows_wait_aside(&site, &running, code, || server.clear_faults()).await;
    assert_eq!(server.count("x"), 1500);
    running.end().await;
}

async fn at_a_server_with_changes(hint: &str, fault: Fault, code: i32) {
    let cloud = Cloud::start(hint).await;
    let fault_proxy = FaultProxy::before(&cloud.url).await;
    let site = Site::bare(
        hint,
        &fault_proxy.url(),
        KEY,
        TABLE,
        &entity("x", "t", &["id"], ""),
    )
    .await;
    site.init().await;
    let running = site.replicate();
    fault_proxy.fault(fault.on("changes").when(is_bad));
    bad_rows_wait_aside(&site, &running, code, || fault_proxy.clear_faults()).await;
    site.assert_equal(&cloud).await;
    running.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_always_gets_500_waits_aside() {
    at_a_baseline_server("always_500", &[], Fault::status(500), 500).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_always_gets_500_is_found_in_bulk() {
    at_a_baseline_server("always_500_bulk", &["bulk", "delete"], Fault::status(500), 500).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_always_gets_500_is_found_in_a_batch() {
    at_a_server_with_changes("always_500_batch", Fault::status(500), 500).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_a_firewall_refuses_waits_aside() {
    at_a_baseline_server("firewall", &[], firewall(), 403).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_a_firewall_refuses_is_found_in_a_batch() {
    at_a_server_with_changes("firewall_batch", firewall(), 403).await;
}

// The status call answers well all the while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cloud_that_takes_no_row_at_all_is_waited_for() {
    let gateway = Fault::answer(502, "text/html", "<h1>Bad Gateway</h1>");
    for (fault, words) in [(gateway, "502"), (firewall(), "takes the key")] {
        let server = BaselineServer::start(&catalogue(), &[]).await;
        let config = entity("x", "t", &["id"], "");
        let site = Site::bare("takes_nothing", &server.url(), baseline::KEY, TABLE, &config).await;
        site.init().await;
        let running = site.replicate();
        server.fault(fault.on("x"));
        // Given a first row, which may be at fault itself,
        site.run("insert into t values (1, 'good')").await;
        running
            .until("set aside", |status| status.quarantine == Some(1))
            .await;
        // when all that follow get the same answer, then they wait, and the status says why.
        site.run("insert into t select n, 'good' from generate_series(2, 20) n")
            .await;
        let tries = |server: &BaselineServer| server.calls().iter().filter(|call| *call == "POST x").count();
        let before = tries(&server);
        server
            .wait_until("more tries", |server| tries(server) > before + 30)
            .await;
        let is_told = |reason: &Option<String>| reason.as_ref().is_some_and(|reason| reason.contains(words));
        let status = running
            .until("told", |status| {
                status.state == ReplicatorState::BackingOff && is_told(&status.reason)
            })
            .await;
        assert_eq!(status.quarantine, Some(1), "{status:#?}");
        assert_eq!(status.lag.unwrap().changes, 19);
        server.clear_faults();
        running
            .until("all accepted", |status| {
                status.quarantine == Some(0) && status.lag.is_some_and(|lag| lag.changes == 0)
            })
            .await;
        assert_eq!(server.count("x"), 20);
        running.end().await;
    }
}

/// Text that no compression makes shorter.
const RANDOM: &str = "create function random_text(length int) returns text language sql volatile as $$ \
     select string_agg(chr(35 + (random() * 55)::int), '') from generate_series(1, $1) $$;";

// Keys almost as long as the table's own index takes them: what else keeps keys has room for them, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_as_long_as_an_index_can_hold_stop_nothing() {
    let tables = format!(
        "{RANDOM} create table t (id text primary key, v text, picture text); \
         create table u (id bigint primary key, v text)"
    );
    let config = format!(
        "{}files = [{{ column = \"picture\", url_column = \"picture_url\", directory = \"pictures\" }}]\n{}",
        entity("x", "t", &["id"], ""),
        entity("y", "u", &["id"], ""),
    );
    let scenario = Scenario::start("long_keys", &tables, &config).await;
    // Given keys that the cloud has no room for together with the site's name, and some that it just has,
    scenario
        .run(
            "insert into t select random_text(2690), 'long', 'a.jpg' from generate_series(1, 3); \
         insert into t select random_text(2682), 'short', 'a.jpg' from generate_series(1, 3); \
         insert into t values ('key', 'path', random_text(5000)); \
         insert into u select n, 'v' from generate_series(1, 100) n",
        )
        .await;
    let is_still = |count| {
        move |status: &cloud_sync::control::StatusReport| {
            status.quarantine == Some(count) && status.lag.is_some_and(|lag| lag.changes == 0)
        }
    };
    // then the long ones alone wait aside, and their refusals are counted,
    scenario.running.until("aside", is_still(3)).await;
    scenario
        .run("update t set v = 'long 2' where v = 'long'; insert into u values (101, 'v')")
        .await;
    scenario.running.until("aside still", is_still(3)).await;
    for entry in quarantine::list(&scenario.site.client, None).await.unwrap() {
        assert!(entry.attempts >= 2 && entry.key.len() > 2690, "{entry:?}");
    }
    assert_eq!(
        row_texts(&scenario.cloud_client, "cloud.y", "id", "true")
            .await
            .len(),
        101
    );
    let held = |condition| row_texts(&scenario.cloud_client, "cloud.x", "v", condition);
    assert_eq!(held("true").await.len(), 4);
    // a path that is too long is reported,
    let refused = "select count(*) from cloud_sync.media where error like '%longer than%'";
    let here = connect(&scenario.site.database_url).await;
    crate::support::sql::until(&here, &format!("select ({refused}) = 1")).await;
    // they go when they are deleted,
    scenario.run("delete from t where v = 'long 2'").await;
    scenario.running.until("gone", is_still(0)).await;
    // and a delete leaves its trace for long keys, too.
    scenario
        .run("create table kept as select * from t where v = 'short'; delete from t where v = 'short'")
        .await;
    scenario.running.until("deleted", is_still(0)).await;
    assert!(held("v = 'short'").await.is_empty());
    scenario.run("insert into t select * from kept").await;
    scenario.running.until("there again", is_still(0)).await;
    assert_eq!(held("v = 'short'").await.len(), 3);
    scenario.running.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_was_set_aside_by_hand_is_in_no_batch() {
    let scenario = Scenario::start("by_hand_batch", TABLE, &entity("x", "t", &["id"], "")).await;
    quarantine::add(&scenario.site.client, "x", "{\"id\":3}")
        .await
        .unwrap();
    // A sync has the replicator look.
    scenario.assert_nothing_to_sync().await;
    for round in 0..5 {
        scenario.run(&format!(
            "insert into t select n, 'v{round}' from generate_series(1, 2000) n on conflict (id) do update \
             set v = excluded.v"
        ))
        .await;
    }
    scenario
        .running
        .until("still", |status| {
            status.quarantine == Some(1) && status.lag.is_some_and(|lag| lag.changes == 0)
        })
        .await;
    assert_eq!(
        row_texts(&scenario.cloud_client, "cloud.x", "id", "true")
            .await
            .len(),
        1999
    );
    assert!(
        row_texts(&scenario.cloud_client, "cloud.x", "id", "id = 3")
            .await
            .is_empty()
    );
    scenario.running.end().await;
}
