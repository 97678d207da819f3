//! Writers that must neither fail nor wait, whatever their rows hold.

use std::time::Duration;

use cloud_sync::control::Operator;
use cloud_sync::error::Result;
use cloud_sync::quarantine;
use cloud_sync::replicator::preconditions;
use cloud_sync::source::identity::OutboxDeclaration;
use cloud_sync::source::install::{self, Installed};

use crate::support::postgres::Server;
use crate::support::scenario::Scenario;
use crate::support::site::{Cloud, KEY, LIMIT, Site, connect, entity};

#[tokio::test]
async fn keys_of_types_of_an_extension_never_fail_a_writer() {
    for (hint, extension, keys) in [
        ("ltree", "ltree", ["top.a", "top.b", "top.c.d"]),
        ("hstore", "hstore", ["a=>1", "b=>2, c=>NULL", "d=>\"x y\""]),
        ("citext_key", "citext", ["Ann", "bob", "O'Hara \\ \"x\""]),
        (
            "isn",
            "isn",
            ["978-0-393-04002-9", "978-3-16-148410-0", "978-0-306-40615-7"],
        ),
    ] {
        let of = if extension == "isn" { "isbn13" } else { extension };
        let tables = format!(
            "create schema ext; create extension {extension} schema ext; set search_path = public, ext; \
                              create table t (id ext.{of} primary key, v text)"
        );
        let scenario = Scenario::start(hint, &tables, &entity("x", "t", &["id"], "")).await;
        let literal = |key: &str| format!("'{}'::ext.{of}", key.replace('\'', "''"));
        let [a, b, c] = keys.map(literal);
        scenario
            .assert_each(
                &[
                    &format!("insert into t values ({a}, 'a'), ({b}, 'b')"),
                    &format!("update t set v = 'changed' where id = {a}"),
                    &format!("update t set id = {c} where id = {b}"),
                    &format!(
                        "insert into t values ({a}, 'over') on conflict (id) do update set v = excluded.v"
                    ),
                    &format!("delete from t where id = {a}"),
                ],
                "id, v",
            )
            .await;
        // From a session that does not find the type's operators.
        let other = connect(&scenario.site.database_url).await;
        other
            .batch_execute("set search_path = ''; update public.t set v = 'elsewhere'; delete from public.t")
            .await
            .unwrap();
        scenario.assert_settled("id, v").await;
        scenario.assert_nothing_to_sync().await;
        scenario.running.end().await;
    }
}

#[tokio::test]
async fn geometries_of_every_kind_arrive_as_they_are() {
    let probe = connect(&Server::get().database("postgis").await).await;
    if probe.batch_execute("create extension postgis").await.is_err() {
        println!("skipped: the extension postgis is not installed (Debian: postgresql-15-postgis-3)");
        return;
    }
    let tables = "create extension postgis; create table t (id int primary key, g geometry, w geography)";
    let scenario = Scenario::start("geometry", tables, &entity("x", "t", &["id"], "")).await;
    let geometries = [
        "POINT(121.0437000000001234 14.6760412345678)",
        "SRID=32651;POINTM(1 2 3)",
        "SRID=999999;POINT(1 2)",
        "POINT EMPTY",
        "CIRCULARSTRING(0 0, 1 1, 2 0)",
        "CURVEPOLYGON(CIRCULARSTRING(0 0, 4 0, 4 4, 0 4, 0 0))",
        "TIN(((0 0 0, 0 0 1, 0 1 0, 0 0 0)))",
        "MULTISURFACE(CURVEPOLYGON(CIRCULARSTRING(0 0, 4 0, 4 4, 0 4, 0 0)))",
    ];
    for (nth, geometry) in geometries.iter().enumerate() {
        scenario.run(&format!(
            "insert into t values ({nth}, '{geometry}'::geometry, 'SRID=4326;POINT(121.04370000000012 14.6)')"
        ))
        .await;
    }
    scenario.assert_settled("id, g, w").await;
    scenario
        .run("update t set w = null; delete from t where id = 4")
        .await;
    scenario.assert_settled("id, g, w").await;
    scenario.assert_nothing_to_sync().await;
    scenario.running.end().await;
}

#[tokio::test]
async fn json_that_jsonb_refuses_never_fails_a_writer() {
    let server = Server::get();
    let admin = connect(&server.url("postgres")).await;
    let name = format!("latin_{}", std::process::id());
    admin
        .batch_execute(&format!(
            "create database {name} encoding 'LATIN1' lc_collate 'C' lc_ctype 'C' template template0"
        ))
        .await
        .unwrap();
    // Given such values next to a bytea and next to an excluded column, in a database of another encoding
    let tables = "create table t (id int primary key, doc json, photo bytea, name text); \
                  create table hidden (id int primary key, doc json, secret text)";
    let config =
        entity("x", "t", &["id"], "") + &entity("hidden", "hidden", &["id"], "exclude = [\"secret\"]");
    let cloud = Cloud::start("latin").await;
    let site = Site::at(server.url(&name), &cloud.url, KEY, tables, &config).await;
    let scenario = Scenario::of(cloud, site).await;
    for doc in [
        r#"{"a":1e200000}"#,
        r#"{"a":"\u20ac"}"#,
        r#"{"a":"\u0000", "a" : 1.0}"#,
        r#"[1,  2.00, "é" ]"#,
        r#""\ud83d\ude00""#,
    ] {
        // When they are written
        scenario
            .run(&format!(
                "delete from t; delete from hidden; \
             insert into t values (1, '{doc}', '\\x00ff', 'é'); \
             insert into hidden values (1, '{doc}', 's'); \
             update t set photo = '\\x01'; update hidden set secret = 't'; \
             insert into hidden values (2, null, 'u')"
            ))
            .await;
        // Then they arrive as they are.
        scenario.assert_settled("id, doc, photo, name").await;
        scenario
            .assert_rows_equal("hidden", "hidden", "id, doc", "true")
            .await;
    }
    scenario.running.end().await;
}

/// Writes two large values between two small rows. Then each large row has arrived or is set aside by its
/// key, and all others have arrived.
async fn large_values(cloud: Cloud, hint: &str, bytes: usize, letters: usize) {
    let tables = "create table t (id int primary key, photo bytea, body text, secret text)";
    let config = entity("x", "t", &["id"], "exclude = [\"secret\"]");
    let site = Site::bare(hint, &cloud.url, KEY, tables, &config).await;
    let scenario = Scenario::of(cloud, site).await;
    scenario
        .run(&format!(
            "insert into t values (1, null, 'before', 's'); \
         insert into t values (2, repeat('x', {bytes})::bytea, null, 's'); \
         insert into t values (3, null, repeat('y', {letters}), 's'); \
         insert into t values (4, null, 'after', 's')"
        ))
        .await;
    let start = std::time::Instant::now();
    while scenario
        .running
        .replicator
        .status()
        .await
        .unwrap()
        .lag
        .is_none_or(|lag| lag.changes > 0)
    {
        assert!(start.elapsed() < 10 * LIMIT, "the rows behind a large one wait");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let set_aside = quarantine::list(&scenario.site.client, None).await.unwrap();
    for (id, size) in [(1, 6), (2, bytes), (3, letters), (4, 5)] {
        let held = scenario
            .cloud_client
            .query_opt(
                "select coalesce(length(photo), length(body)) from cloud.x where id = $1",
                &[&id],
            )
            .await
            .unwrap();
        match held {
            Some(row) => assert_eq!(row.get::<_, i32>(0) as usize, size),
            None => {
                assert!(size > 1 << 20, "row {id} has not arrived");
                let key = format!("{{\"id\":{id}}}");
                assert!(set_aside.iter().any(|entry| entry.key == key), "{set_aside:?}");
            }
        }
    }
    // A smaller state of such a row follows without a command.
    scenario
        .run("update t set photo = '\\x00', body = 'small' where id in (2, 3)")
        .await;
    scenario.assert_settled("id, photo, body").await;
    scenario.running.end().await;
}

#[tokio::test]
async fn values_too_large_for_one_request_fail_no_writer_and_stop_no_other_row() {
    let mut cloud = Cloud::start("large").await;
    cloud.away().await;
    cloud.set_body_limit(1 << 20);
    cloud.back().await;
    large_values(cloud, "large", 3 << 20, 5 << 20).await;
}

#[tokio::test]
#[ignore = "minutes, and gigabytes of memory, in a build that is not optimized"]
async fn values_too_large_for_jsonb_fail_no_writer_and_stop_no_other_row() {
    large_values(Cloud::start("larger").await, "larger", 140_000_000, 270_000_000).await;
}

#[tokio::test]
async fn a_limit_of_temporary_files_is_told_by_check() {
    let scenario = Scenario::start(
        "temporary",
        "create table t (id int primary key, v text)",
        &entity("x", "t", &["id"], ""),
    )
    .await;
    let role = format!("limited_{}", std::process::id());
    scenario
        .run(&format!(
            "create role {role}; alter role {role} set temp_file_limit = '2MB'; grant all on t to {role}"
        ))
        .await;
    // The limit is that of a session; a writer below it is captured,
    let writer = connect(&scenario.site.database_url).await;
    writer
        .batch_execute(&format!(
            "set temp_file_limit = '2MB'; set role {role}; \
             insert into t select n, 'v' from generate_series(1, 10000) n"
        ))
        .await
        .unwrap();
    scenario.assert_settled("id, v").await;
    // and `check` names the role.
    let findings = preconditions::check(&scenario.site.settings).await;
    let finding = findings
        .iter()
        .find(|finding| finding.subject() == "temporary files")
        .unwrap();
    crate::support::says(
        finding.detail(),
        &["temp_file_limit", &role, "2MB", "raise the limit"],
    );
    scenario
        .run(&format!("drop owned by {role}; drop role {role}"))
        .await;
    scenario.running.end().await;
}

/// Runs `init` while a transaction that has written to `t` stays open, and other sessions write at the same
/// time.
async fn init_beside_writers(
    site: &Site,
    declared: OutboxDeclaration,
    entities: &[&str],
) -> Result<Installed> {
    let open = connect(&site.database_url).await;
    open.batch_execute("begin; insert into t values (1000, 'open')")
        .await
        .unwrap();
    let url = site.settings.require_database_url().unwrap();
    let catalogue = site.settings.catalogue.clone();
    let init = install::init(url, &catalogue, declared);
    tokio::pin!(init);
    let writers = async {
        let writer = connect(&site.database_url).await;
        // Far below how long the transaction stays open otherwise, and far above what a try of `init` may
        // take.
        writer
            .batch_execute("set statement_timeout = '20s'")
            .await
            .unwrap();
        for n in 0..40 {
            for table in entities {
                let sql = format!(
                    "insert into {table} values ({n}, 'meanwhile') on conflict (id) do update \
                     set v = excluded.v"
                );
                writer.batch_execute(&sql).await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    // Whatever becomes of `init`, the writers continue.
    let early = tokio::select! {
        biased;
        installed = &mut init => Some(installed),
        () = writers => None,
    };
    open.batch_execute("commit").await.unwrap();
    match early {
        Some(installed) => installed,
        None => tokio::time::timeout(LIMIT, init).await.expect("init ends"),
    }
}

#[tokio::test]
async fn an_outbox_declared_new_makes_no_writer_wait_behind_an_open_transaction() {
    let tables =
        "create table t (id int primary key, v text); create table other (id int primary key, v text)";
    let config = entity("x", "t", &["id"], "") + &entity("other", "other", &["id"], "");
    let mut scenario = Scenario::start("new_epoch", tables, &config).await;
    scenario
        .assert_each(&["insert into t values (1, 'one')"], "id, v")
        .await;
    scenario.running.end().await;
    let installed = init_beside_writers(&scenario.site, OutboxDeclaration::NewEpoch, &["other", "t"])
        .await
        .unwrap();
    assert!(installed.epoch > 1);
    scenario.running = scenario.site.replicate_monitoring_drift();
    scenario.until_whole().await;
    scenario.assert_rows_equal("x", "t", "id, v", "true").await;
    scenario
        .assert_rows_equal("other", "other", "id, v", "true")
        .await;
    scenario.running.end().await;
}

#[tokio::test]
async fn capture_installed_again_makes_no_writer_wait_behind_an_open_transaction() {
    let tables =
        "create table t (id int primary key, v text); create table other (id int primary key, v text)";
    let config = entity("x", "t", &["id"], "") + &entity("other", "other", &["id"], "");
    let scenario = Scenario::start("init_again", tables, &config).await;
    scenario
        .run("drop trigger cloud_sync_1_update on t; drop trigger cloud_sync_2_update on other")
        .await;
    let installed = init_beside_writers(&scenario.site, OutboxDeclaration::Nothing, &["other", "t"])
        .await
        .unwrap();
    assert_eq!(installed.attached.len(), 2);
    scenario.until_whole().await;
    scenario.assert_rows_equal("x", "t", "id, v", "true").await;
    scenario
        .assert_rows_equal("other", "other", "id, v", "true")
        .await;
    scenario.running.end().await;
}
