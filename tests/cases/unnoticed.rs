//! What no trigger of a writer tells: changes of types, of the catalogue, by a subscription, by a crash.

use cloud_sync::control::SyncRequest;
use cloud_sync::reconcile::NoObserver;
use cloud_sync::replicator::OneShot;

use super::backfill_all;
use crate::support::postgres::Server;
use crate::support::scenario::Scenario;
use crate::support::site::{Cloud, KEY, LIMIT, Site, connect, entity};

const TABLE: &str = "create table t (id int primary key, v text)";

#[tokio::test]
async fn rows_that_a_subscription_applies_are_captured() {
    let server = Server::with(&[]);
    // Given a site whose table is a subscriber's
    let publisher = connect(&server.database("publisher").await).await;
    publisher
        .batch_execute(&format!(
            "{TABLE}; insert into t select n, 'copied' from generate_series(1, 5) n; \
             create publication p for table t"
        ))
        .await
        .unwrap();
    let name: String = publisher
        .query_one("select current_database()::text", &[])
        .await
        .unwrap()
        .get(0);
    publisher
        .batch_execute("select pg_create_logical_replication_slot('sub', 'pgoutput')")
        .await
        .unwrap();
    let cloud = Cloud::start_on(&server, "subscribed").await;
    let site = Site::bare_on(
        &server,
        "subscribed",
        &cloud.url,
        KEY,
        TABLE,
        &entity("x", "t", &["id"], ""),
    )
    .await;
    let scenario = Scenario::of(cloud, site).await;
    // The first copy needs a slot of its own on the same server, and waits for no transaction of ours for
    // long.
    scenario
        .site
        .client
        .batch_execute(&format!(
            "create subscription sub connection '{}' publication p \
             with (create_slot = false, slot_name = 'sub')",
            server.url(&name)
        ))
        .await
        .unwrap();
    let arrived = async |sql: &str| {
        let start = std::time::Instant::now();
        loop {
            let row = scenario.site_client.query_one(sql, &[]).await.unwrap();
            if row.get(0) {
                return;
            }
            assert!(start.elapsed() < LIMIT, "never: {sql}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    arrived("select count(*) = 5 from t").await;
    scenario.assert_rows_equal("x", "t", "id, v", "true").await;
    // When rows are inserted, updated, given other keys, deleted and truncated there
    for (sql, here) in [
        (
            "insert into t select n, 'inserted' from generate_series(6, 20) n",
            "select count(*) = 20 from t",
        ),
        (
            "update t set v = 'updated' where id % 2 = 0",
            "select count(*) = 10 from t where v = 'updated'",
        ),
        (
            "update t set id = id + 100 where id < 4",
            "select count(*) = 3 from t where id > 100",
        ),
        (
            "delete from t where id > 15 and id < 100",
            "select count(*) = 15 from t",
        ),
        (
            "truncate t; insert into t values (1, 'after')",
            "select count(*) = 1 from t",
        ),
    ] {
        publisher.batch_execute(sql).await.unwrap();
        arrived(here).await;
        // Then the cloud follows.
        scenario.assert_settled("id, v").await;
    }
    scenario.run("drop subscription sub").await;
    scenario.running.end().await;
}

#[tokio::test]
async fn attributes_of_a_composite_type_and_labels_of_an_enum_are_followed() {
    let tables = "create type mood as enum ('ok', 'bad'); create type address as (street text, zip text);
        create table t (kind mood, id int, a address, aa address[], primary key (kind, id));
        insert into t select case n % 2 when 0 then 'ok' else 'bad' end::mood, n, ('s' || n, 'z')::address, \
        array[('x', 'y')::address]
        from generate_series(1, 30) n";
    let scenario = Scenario::start("composite", tables, &entity("x", "t", &["kind", "id"], "")).await;
    backfill_all(&scenario.site).await;
    let columns = "kind, id, a, aa";
    scenario.assert_settled(columns).await;
    // When types of columns change, which fires no trigger
    for sql in [
        "alter type address rename attribute zip to postcode",
        "alter type address add attribute city text cascade; update t set a.city = 'Q' where id = 1",
        "alter type address drop attribute street cascade",
        "alter type mood add value 'great' after 'ok'; insert into t values ('bad', 99, null, null)",
        "update t set kind = 'great' where id = 2",
        // The key itself reads differently then.
        "alter type mood rename value 'ok' to 'fine'",
    ] {
        scenario.run(sql).await;
        // Then the cloud has what the site has, without anybody asking for a sync,
        scenario.until_whole().await;
        scenario.assert_rows_equal("x", "t", columns, "true").await;
    }
    // and a sync works as before.
    scenario.assert_nothing_to_sync().await;
    scenario.running.end().await;
}

#[tokio::test]
async fn an_unlogged_table_that_a_crash_has_emptied_is_emptied_in_the_cloud() {
    let server = Server::with(&["fsync=on"]);
    let tables = "create unlogged table t (id int primary key, v text); \
         create table kept (id int primary key, v text);
        create table parts (id int primary key) partition by range (id);
        create unlogged table parts_low partition of parts for values from (0) to (100);
        create table parts_high partition of parts for values from (100) to (200)";
    let config = entity("x", "t", &["id"], "")
        + &entity("kept", "kept", &["id"], "")
        + &entity("parts", "parts", &["id"], "");
    let cloud = Cloud::start("unlogged").await;
    let site = Site::bare_on(&server, "unlogged", &cloud.url, KEY, tables, &config).await;
    let mut scenario = Scenario::of(cloud, site).await;
    scenario
        .run(
            "insert into t select n, 'v' from generate_series(1, 5) n; \
         insert into kept values (1, 'v'); insert into parts values (1), (101)",
        )
        .await;
    scenario.assert_settled("id, v").await;
    // Given that nothing of these rows would be read again after a restart
    let sent: std::time::SystemTime = scenario
        .site_client
        .query_one("select clock_timestamp()", &[])
        .await
        .unwrap()
        .get(0);
    scenario.run("insert into kept values (2, 'v')").await;
    let start = std::time::Instant::now();
    while !scenario
        .site_client
        .query_one(
            "select coalesce(max(mirrored_at) > $1, false) from cloud_sync.checkpoint",
            &[&sent],
        )
        .await
        .unwrap()
        .get::<_, bool>(0)
    {
        assert!(start.elapsed() < LIMIT, "no mirror is written");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    // When the server crashes: it empties its unlogged tables
    server.restart("QUIT");
    scenario.site.client = connect(&scenario.site.database_url).await;
    scenario.site_client = connect(&scenario.site.database_url).await;
    let left: i64 = scenario
        .site_client
        .query_one("select count(*) from t", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(left, 0);
    // Then the replicator notices that, compares, and the cloud ends equal.
    let start = std::time::Instant::now();
    loop {
        let held: i64 = scenario
            .cloud_client
            .query_one(
                "select (select count(*) from cloud.x) + (select count(*) from cloud.parts)",
                &[],
            )
            .await
            .unwrap()
            .get(0);
        if held == 1 {
            break;
        }
        assert!(start.elapsed() < LIMIT, "{held} rows stay in the cloud");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    scenario.until_whole().await;
    scenario.assert_rows_equal("x", "t", "id, v", "true").await;
    scenario.assert_rows_equal("kept", "kept", "id, v", "true").await;
    scenario.assert_rows_equal("parts", "parts", "id", "true").await;
    scenario.running.end().await;
}

const FEED: &str = "create table t (id int primary key, kind text, secret text, feed text)";
const ROWS: &str = "insert into t select n, case n % 2 when 0 then 'public' \
     else 'private' end, 'word' || n, 'u:word' || n || '@h' from generate_series(1, 40) n";

/// Asserts that private rows and secrets are gone from the cloud.
async fn no_secrets(scenario: &Scenario) {
    let held: i64 = scenario
        .cloud_client
        .query_one(
            "select count(*) from cloud.x where kind = 'private' or to_jsonb(x.*) ->> 'secret' is not null",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert_eq!(held, 0);
    scenario
        .assert_rows_equal("x", "t", "id, kind, feed", "kind = 'public'")
        .await;
}

#[tokio::test]
async fn rows_and_columns_that_are_no_longer_chosen_leave_the_cloud_of_a_running_replicator() {
    let mut scenario = Scenario::start("chosen", FEED, &entity("x", "t", &["id"], "")).await;
    scenario.assert_each(&[ROWS], "id, kind, secret, feed").await;
    // Given a condition and an exclusion that are added after rows were sent
    scenario.running.end().await;
    scenario.site.reconfigure(
        "key = [\"id\"]\n",
        "key = [\"id\"]\nwhere = \"kind = 'public'\"\nexclude = [\"secret\"]\n",
    );
    // When capture is installed for them and the replicator runs
    scenario.site.init().await;
    scenario.running = scenario.site.replicate_monitoring_drift();
    scenario.until_whole().await;
    // Then what is not chosen is gone.
    no_secrets(&scenario).await;
    // One that starts without `init` notices too.
    scenario.running.end().await;
    scenario.site.reconfigure("kind = 'public'", "kind = 'private'");
    scenario.running = scenario.site.replicate_monitoring_drift();
    scenario.until_whole().await;
    scenario
        .assert_rows_equal("x", "t", "id, kind, feed", "kind = 'private'")
        .await;
    scenario.running.end().await;
}

#[tokio::test]
async fn rows_and_columns_that_are_no_longer_chosen_leave_the_cloud_with_a_sync() {
    let mut scenario = Scenario::start("chosen_sync", FEED, &entity("x", "t", &["id"], "")).await;
    scenario.assert_each(&[ROWS], "id, kind, secret, feed").await;
    scenario.running.end().await;
    scenario.site.reconfigure(
        "key = [\"id\"]\n",
        "key = [\"id\"]\nwhere = \"kind = 'public'\"\nexclude = [\"secret\"]\n",
    );
    scenario.site.init().await;
    // When one sync runs, without a daemon
    let once = OneShot::start(&scenario.site.settings).await.unwrap();
    let report = once.sync(&SyncRequest::default(), &NoObserver).await.unwrap();
    assert!(report.success(), "{:?}", report.errors());
    once.finish().await.unwrap();
    // Then what is not chosen is gone.
    scenario.running = scenario.site.replicate();
    no_secrets(&scenario).await;
    scenario.running.end().await;
}

#[tokio::test]
async fn advisory_locks_of_a_role_without_rights_hold_nothing_up() {
    let scenario = Scenario::start("locks", TABLE, &entity("x", "t", &["id"], "")).await;
    // Given that no session of ours holds or awaits an advisory lock that others could take
    let ours: i64 = scenario
        .site_client
        .query_one(
            "select count(*) from pg_locks where locktype = 'advisory' and database = (select oid \
             from pg_database where datname = current_database())",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert_eq!(ours, 0);
    // and that a role without rights can read or lock nothing in our schema
    let role = format!("nobody_{}", std::process::id());
    scenario
        .run(&format!("create role {role}; set role {role}"))
        .await;
    for sql in [
        "begin; lock table cloud_sync.term in access exclusive mode",
        "begin; lock table cloud_sync.leader in access share mode",
        "select * from cloud_sync.outbox",
        "select setval('cloud_sync.state', 1)",
    ] {
        let refused = scenario.site.client.batch_execute(sql).await.unwrap_err();
        assert_eq!(refused.code().unwrap().code(), "42501", "{sql}");
        scenario.run("rollback").await;
    }
    scenario.run(&format!("reset role; drop role {role}")).await;
    scenario
        .assert_each(&["insert into t values (1, 'one')"], "id, v")
        .await;
    scenario.running.end().await;
}

#[tokio::test]
async fn a_column_whose_type_changes_is_compared_once_and_then_left_alone() {
    let tables = "create table t (id int primary key, n text, d text, b text)";
    let scenario = Scenario::start("retyped", tables, &entity("x", "t", &["id"], "")).await;
    scenario
        .assert_each(
            &[
                "insert into t select n, n, '2026-01-' || lpad((1 + n % 28)::text, 2, '0'), \
         n % 2 = 0 from generate_series(1, 50) n",
            ],
            "id, n, d, b",
        )
        .await;
    // When texts become numbers, dates and booleans
    scenario
        .run(
            "alter table t alter n type int using n::int; alter table t alter d type date using d::date; \
         alter table t alter b type boolean using b::boolean; \
         insert into t values (100, 5, '2026-12-31', true)",
        )
        .await;
    scenario.until_whole().await;
    scenario.assert_rows_equal("x", "t", "id, n, d, b", "true").await;
    // Then no later sync pushes a row.
    scenario.assert_nothing_to_sync().await;
    scenario.assert_nothing_to_sync().await;
    scenario.running.end().await;
}
