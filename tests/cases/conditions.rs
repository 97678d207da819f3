//! Conditions: one meaning wherever they are evaluated, and never in a writer's session.

use cloud_sync::catalogue::{Catalogue, Entity};
use cloud_sync::control::{Operator, SyncRequest};

use super::backfill_all;
use crate::support::baseline::{self, BaselineServer};
use crate::support::says;
use crate::support::scenario::Scenario;
use crate::support::site::{Site, entity};

const TABLES: &str = "create extension citext; create type state as enum ('draft', 'live');
    create function is_live(s state) returns boolean language sql immutable as $$ select s = 'live' $$;
    create function fails(s state) returns boolean language plpgsql immutable as $$ begin
        if current_setting('application_name') = 'a writer' then raise exception 'evaluated in a writer''s \
        session'; end if;
        return s = 'live'; end $$;
    create domain kind as citext check (value <> '');
    create table t (id int primary key, kind citext, k kind, s state, v text)";

#[tokio::test]
async fn a_condition_means_the_same_in_the_stream_and_in_a_sync() {
    for (hint, condition) in [
        ("where_citext", "kind = 'Public'"),
        ("where_domain", "k = 'Public'"),
        ("where_enum", "s = 'live'"),
        ("where_cast", "s = 'live'::state"),
        ("where_function", "is_live(s)"),
        ("where_plpgsql", "fails(s)"),
        ("where_text", "v like 'w%' and kind in ('public', 'Other')"),
    ] {
        let config = entity("x", "t", &["id"], &format!("where = \"{condition}\""));
        let scenario = Scenario::start(hint, TABLES, &config).await;
        scenario.run("set application_name = 'a writer'").await;
        let equal = async || {
            scenario
                .assert_rows_equal("x", "t", "id, kind, k, s, v", condition)
                .await
        };
        for sql in [
            "insert into t values (1, 'public', 'public', 'live', 'x'), (2, 'PUBLIC', 'PUBLIC', 'live', \
             'wy'), (3, 'private', 'p', 'draft', 'z')",
            "update t set v = 'w' where id = 1; insert into t \
             values (4, 'Public', 'Public', 'live', 'w'), (5, null, null, null, 'w')",
            "update t set kind = 'private', k = 'private', s = 'draft', v = 'no' where id = 2",
            "update t set kind = 'pUBLIC', k = 'pUBLIC', s = 'live', v = 'w' where id = 3",
            "delete from t where id = 4",
        ] {
            scenario.run(sql).await;
            equal().await;
        }
        scenario.assert_nothing_to_sync().await;
        equal().await;
        backfill_all(&scenario.site).await;
        equal().await;
        scenario.until_whole().await;
        scenario.running.end().await;
    }
}

#[tokio::test]
async fn a_condition_that_is_not_of_the_row_alone_is_refused() {
    for (hint, condition, words) in [
        ("where_now", "v < now()::text", "immutable"),
        ("where_random", "random() < 0.5", "immutable"),
        ("where_query", "exists (select from t)", "subquery"),
        ("where_missing", "nothing = 1", "nothing"),
        ("where_broken", "id = ", "syntax"),
        ("where_number", "id + 1", "boolean"),
        ("where_two", "true; drop table t", "syntax"),
    ] {
        let message = Site::refusal(
            hint,
            TABLES,
            &entity("x", "t", &["id"], &format!("where = \"{condition}\"")),
        )
        .await;
        says(&message, &["entity x", "where", words]);
    }
}

const EVENTS: &str = "create table t (id int primary key, kind text, v text)";

#[tokio::test]
async fn two_entities_share_a_table_and_rows_change_sides() {
    let config = entity("open", "t", &["id"], "where = \"kind = 'open'\"")
        + &entity(
            "closed",
            "t",
            &["id"],
            "where = \"kind = 'closed'\"\nexclude = [\"v\"]",
        );
    let scenario = Scenario::start("sides", EVENTS, &config).await;
    let equal = async || {
        scenario
            .assert_rows_equal("open", "t", "id, kind, v", "kind = 'open'")
            .await;
        scenario
            .assert_rows_equal("closed", "t", "id, kind", "kind = 'closed'")
            .await;
    };
    for sql in [
        "insert into t select n, case n % 3 when 0 then 'open' when 1 then 'closed' \
         else 'neither' end, 'v' || n from generate_series(1, 60) n",
        // Rows change sides, there and back, within one transaction too.
        "update t set kind = 'closed' where id in (3, 6, 9)",
        "begin; update t set kind = 'open' where id in (3, 4); update t set kind = 'closed' where id = 4; \
         commit",
        "update t set kind = 'neither' where id < 20; \
         update t set kind = 'open' where kind = 'neither' and id > 40",
        "update t set id = id + 100, kind = 'closed' where id = 30",
        "delete from t where id > 50 and id < 100",
    ] {
        scenario.run(sql).await;
        equal().await;
    }
    // `init` leaves both their triggers, and a sync finds nothing.
    scenario.site.init().await;
    scenario
        .run("insert into t values (1001, 'open', 'a'), (1002, 'closed', 'b')")
        .await;
    equal().await;
    scenario.until_whole().await;
    scenario.assert_nothing_to_sync().await;
    scenario
        .run("truncate t; insert into t values (1, 'open', 'x')")
        .await;
    equal().await;
    scenario.running.end().await;
}

#[tokio::test]
async fn a_row_that_changes_sides_leaves_the_other_side_of_a_baseline_server() {
    let open = Entity {
        filter: Some("kind = 'open'".into()),
        ..Entity::new("open", "t", &["id"])
    };
    let closed = Entity {
        filter: Some("kind = 'closed'".into()),
        ..Entity::new("closed", "t", &["id"])
    };
    let server = BaselineServer::start(&Catalogue::new(vec![open, closed]).unwrap(), &["delete"]).await;
    let config = entity("open", "t", &["id"], "where = \"kind = 'open'\"")
        + &entity("closed", "t", &["id"], "where = \"kind = 'closed'\"");
    let site = Site::bare("sides_baseline", &server.url(), baseline::KEY, EVENTS, &config).await;
    site.init().await;
    let running = site.replicate();
    let held = |path: &str| -> Vec<i64> {
        server
            .rows(path)
            .iter()
            .map(|row| row["id"].as_i64().unwrap())
            .collect()
    };
    site.run("insert into t values (1, 'open', 'a'), (2, 'closed', 'b'), (3, 'open', 'c')")
        .await;
    running.caught_up().await;
    assert_eq!((held("open"), held("closed")), (vec![1, 3], vec![2]));
    site.run("update t set kind = 'closed' where id = 1; update t set kind = 'open' where id = 2")
        .await;
    running.caught_up().await;
    assert_eq!((held("open"), held("closed")), (vec![2, 3], vec![1]));
    let report = running.replicator.sync_now(SyncRequest::default()).await.unwrap();
    assert!(report.success(), "{:?}", report.errors());
    assert_eq!((held("open"), held("closed")), (vec![2, 3], vec![1]));
    running.end().await;
}

#[tokio::test]
async fn a_row_whose_condition_fails_is_set_aside_alone() {
    let tables =
        "create table t (id int primary key, n int, v text); create table other (id int primary key, v text)";
    let config =
        entity("x", "t", &["id"], "where = \"100 / n > 1\"") + &entity("other", "other", &["id"], "");
    let scenario = Scenario::start("where_fails", tables, &config).await;
    scenario
        .run(
            "insert into t values (1, 10, 'a'), (2, 0, 'b'), (3, 90, 'c'), (4, 5, 'd'); \
         insert into other values (1, 'x')",
        )
        .await;
    let status = scenario.running.caught_up().await;
    assert_eq!(status.quarantine, Some(1));
    let entries = cloud_sync::quarantine::list(&scenario.site.client, None)
        .await
        .unwrap();
    assert_eq!(
        (entries[0].key.as_str(), entries[0].op.as_str()),
        ("{\"id\":2}", "r")
    );
    says(&entries[0].error, &["condition"]);
    // Once the condition can be evaluated, the row follows without a command.
    scenario.run("update t set n = 3 where id = 2").await;
    scenario
        .assert_rows_equal("x", "t", "id, n, v", "100 / n > 1")
        .await;
    scenario
        .assert_rows_equal("other", "other", "id, v", "true")
        .await;
    scenario.running.end().await;
}

#[tokio::test]
async fn a_condition_that_the_table_no_longer_fits_parks_its_entity_alone() {
    let tables = "create table t (id int primary key, kind text, v text); \
         create table other (id int primary key, v text)";
    let config =
        entity("x", "t", &["id"], "where = \"kind = 'open'\"") + &entity("other", "other", &["id"], "");
    let scenario = Scenario::start("where_gone", tables, &config).await;
    scenario.run("insert into t values (1, 'open', 'a')").await;
    scenario
        .assert_rows_equal("x", "t", "id, v", "kind = 'open'")
        .await;
    // When a column of the condition has another name
    scenario
        .run(
            "alter table t rename column kind to sort; insert into t values (2, 'open', 'b'); \
         insert into other values (1, 'x')",
        )
        .await;
    // Then the other entity goes on, and the status says what is wrong;
    scenario
        .assert_rows_equal("other", "other", "id, v", "true")
        .await;
    let status = scenario
        .running
        .until("told", |status| {
            status.capture.iter().any(|one| one.entity == "x" && one.broken)
        })
        .await;
    says(&status.capture[0].reason, &["where", "kind"]);
    // once it has its name again, nothing of it is lost.
    scenario
        .run("update t set v = 'c' where id = 1; alter table t rename column sort to kind")
        .await;
    scenario.until_whole().await;
    scenario
        .assert_rows_equal("x", "t", "id, v", "kind = 'open'")
        .await;
    scenario.running.end().await;
}
