//! Keys of unusual types: found again on both sides, sent once, deleted where they go.

use cloud_sync::catalogue::Catalogue;

use super::backfill_all;
use crate::support::baseline::{self, BaselineServer};
use crate::support::scenario::Scenario;
use crate::support::site::{Site, entity};

#[tokio::test]
async fn keys_of_structured_types_are_backfilled_and_compared_page_by_page() {
    for (hint, types, of, value) in [
        ("array", "", "int[]", "array[n, null, -n]"),
        ("texts", "", "text[]", "array['a,b', '\"' || n, '']"),
        (
            "composite_key",
            "create type place as (building text, no int);",
            "place",
            "row('B \"' || n, n)::place",
        ),
        (
            "jsonb_key",
            "",
            "jsonb",
            "jsonb_build_object('n', n, 'a', '[1.0, null]'::jsonb)",
        ),
        (
            "hstore_keys",
            "create extension hstore;",
            "hstore",
            "hstore('k', n::text)",
        ),
        ("range", "", "int4range", "int4range(n, n + 5)"),
        ("float", "", "double precision", "n / 3.0"),
        (
            "timestamps",
            "",
            "timestamptz",
            "timestamptz '2026-01-01 00:00:00.123456+08' + n * interval '1 minute'",
        ),
        ("intervals", "", "interval", "n * interval '25 hours 0.5 seconds'"),
        ("inets", "", "inet", "inet '10.0.0.0' + n"),
        ("numerics", "", "numeric", "n / 7.0::numeric(30, 20)"),
    ] {
        println!("{of}");
        // Given more rows than a page has
        let tables = format!(
            "{types} create table t (id {of} primary key, v text); \
             insert into t select {value}, 'v' || n from generate_series(1, 3000) n"
        );
        let scenario = Scenario::start(hint, &tables, &entity("x", "t", &["id"], "")).await;
        // When they are backfilled
        let report = backfill_all(&scenario.site).await;
        assert_eq!(report.pushed.get("x"), Some(&3000), "{of}");
        scenario.assert_settled("id, v").await;
        // Then they are compared as equal,
        scenario.assert_nothing_to_sync().await;
        // and each change finds its row.
        scenario
            .assert_each(
                &[
                    "update t set v = 'changed' where v like 'v1%'",
                    "delete from t where v like 'v2%'",
                ],
                "id, v",
            )
            .await;
        scenario.assert_nothing_to_sync().await;
        scenario.running.end().await;
    }
}

const BYTES: &str = "create table t (id bytea primary key, v text);
    insert into t select decode(md5(n::text), 'hex'), 'v' || n from generate_series(1, 600) n";
const CHANGES: &str = "insert into t values ('\\x00ff5c22', 'new'), ('', 'empty'); \
     update t set v = 'changed' where v in ('v1', 'v2'); \
    delete from t where v in ('v3', 'v4'); update t set id = '\\xdeadbeef' where v = 'v5'";

#[tokio::test]
async fn keys_of_bytes_are_found_by_the_receiver() {
    let scenario = Scenario::start("bytes", BYTES, &entity("x", "t", &["id"], "")).await;
    backfill_all(&scenario.site).await;
    scenario.assert_settled("id, v").await;
    scenario.assert_each(&[CHANGES], "id, v").await;
    scenario.assert_nothing_to_sync().await;
    scenario.running.end().await;
}

#[tokio::test]
async fn keys_of_bytes_are_deleted_at_a_baseline_server() {
    let catalogue = Catalogue::new(vec![cloud_sync::catalogue::Entity::new("x", "t", &["id"])]).unwrap();
    let server = BaselineServer::start(&catalogue, &["delete"]).await;
    let site = Site::bare(
        "bytes_baseline",
        &server.url(),
        baseline::KEY,
        BYTES,
        &entity("x", "t", &["id"], ""),
    )
    .await;
    site.init().await;
    let running = site.replicate();
    backfill_all(&site).await;
    assert_eq!(server.count("x"), 600);
    site.run(CHANGES).await;
    running.caught_up().await;
    let mut held: Vec<String> = server
        .rows("x")
        .iter()
        .map(|row| row["v"].as_str().unwrap().to_owned())
        .collect();
    held.sort_unstable();
    let rows = site
        .client
        .query("select v from t order by v collate \"C\"", &[])
        .await
        .unwrap();
    let here: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(held, here);
    running.end().await;
}

#[tokio::test]
async fn a_key_that_is_equal_to_the_table_and_reads_differently_is_one_row() {
    let tables = "create collation ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false); \
         create extension citext;
        create table t (id text collate ci primary key, v text); \
        create table c (id citext primary key, v text);
        create table n (id numeric primary key, v text);
        insert into t values ('bob', 'b'), ('eve', 'e'); insert into c select * from t; \
        insert into n values (1.0, 'b'), (2, 'e')";
    let config =
        entity("x", "t", &["id"], "") + &entity("c", "c", &["id"], "") + &entity("n", "n", &["id"], "");
    let scenario = Scenario::start("equal_keys", tables, &config).await;
    backfill_all(&scenario.site).await;
    let equal = async || {
        for (name, table) in [("x", "t"), ("c", "c"), ("n", "n")] {
            scenario.assert_rows_equal(name, table, "id, v", "true").await;
        }
    };
    equal().await;
    for sql in [
        "update t set id = 'Bob' where id = 'BOB'; update c set id = 'Bob' where id = 'BOB'; \
         update n set id = 1.00 where id = 1",
        "update t set v = 'new' where id = 'EVE'; update c set v = 'new' where id = 'EVE'; \
         update n set v = 'new' where id = 2.000",
        "begin; delete from t where id = 'eve'; insert into t values ('EVE', 'again'); \
         delete from c where id = 'eve'; \
         insert into c values ('EVE', 'again'); delete from n where id = 2; \
         insert into n values (2.0, 'again'); commit",
        "delete from t where id = 'bob'; delete from c where id = 'bob'; delete from n where id = 1",
    ] {
        scenario.run(sql).await;
        equal().await;
    }
    scenario.assert_nothing_to_sync().await;
    equal().await;
    scenario.running.end().await;
}

#[tokio::test]
async fn a_key_whose_type_changes_is_one_row_still() {
    for (hint, before, after, value) in [
        ("padded", "char(5)", "char(10)", "'k' || n"),
        ("unpadded", "char(5)", "text", "'k' || n"),
        ("widened", "int", "bigint", "n"),
        ("written", "int", "text", "n"),
        ("scaled", "numeric(10, 2)", "numeric(12, 4)", "n"),
        ("moment", "date", "timestamp", "date '2026-01-01' + n"),
    ] {
        println!("{before} {after}");
        // As JSON: the text of a padded type has no padding.
        let columns = "(to_jsonb(id)#>>'{}'), v";
        let tables = format!("create table t (id {before} primary key, v text)");
        let scenario = Scenario::start(hint, &tables, &entity("x", "t", &["id"], "")).await;
        scenario
            .assert_each(
                &[&format!(
                    "insert into t select {value}, 'v' || n from generate_series(1, 30) n"
                )],
                columns,
            )
            .await;
        // When the key's type changes
        scenario
            .run(&format!(
                "alter table t alter id type {after}; \
             update t set v = 'after' where v like 'v1%'; delete from t where v = 'v2'"
            ))
            .await;
        // Then no row is there twice,
        scenario.until_whole().await;
        scenario.assert_rows_equal("x", "t", columns, "true").await;
        // nor after writes and a sync.
        scenario
            .run("update t set v = 'later' where v like 'v3%'; delete from t where v = 'v4'")
            .await;
        scenario.assert_rows_equal("x", "t", columns, "true").await;
        scenario.assert_nothing_to_sync().await;
        scenario.running.end().await;
    }
}

#[tokio::test]
async fn a_primary_key_that_includes_other_columns_is_a_key() {
    let tables = "create table t (id int, tenant int, v text, primary key (id) include (v)); \
         insert into t values (1, 1, 'a')";
    let scenario = Scenario::start("including", tables, &entity("x", "t", &["id"], "")).await;
    backfill_all(&scenario.site).await;
    scenario
        .assert_each(
            &[
                "update t set v = 'b' where id = 1; insert into t values (2, 1, null)",
                "update t set v = null; delete from t where id = 2",
            ],
            "id, tenant, v",
        )
        .await;
    scenario.running.end().await;
    // The columns that it includes are no part of it.
    let message = Site::refusal("not_including", tables, &entity("x", "t", &["id", "v"], "")).await;
    crate::support::says(
        &message,
        &["no primary or unique key on (id, v)", "its primary key is (id)"],
    );
}

const DOMAINS: &str = "create domain email as text not null check (value like '%@%');
    create domain quantity as int not null default 0 check (value >= 0); create domain code as int not null;
    create table t (id code primary key, mail email, n quantity default 0, note text, photo email);
    insert into t values (1, 'a@x', 1, 'one', 'a@1.jpg'), (2, 'b@x', 2, 'two', 'b@2.jpg')";

#[tokio::test]
async fn domains_that_are_not_null_are_synced_backfilled_and_compared() {
    let scenario = Scenario::start("domains", DOMAINS, &entity("x", "t", &["id"], "")).await;
    let columns = "id, mail, n, note, photo";
    backfill_all(&scenario.site).await;
    scenario.assert_settled(columns).await;
    scenario
        .assert_each(
            &["insert into t values (3, 'c@x', 3, 'three', 'c@3.jpg'); \
         update t set note = 'x' where id = 1; delete from t where id = 2"],
            columns,
        )
        .await;
    // A sync repairs a row that the cloud has lost,
    scenario
        .cloud_client
        .batch_execute("delete from cloud.x where id = 3; update cloud.x set note = 'lost' where id = 1")
        .await
        .unwrap();
    scenario.sync().await;
    scenario.assert_settled(columns).await;
    // and a change of a type is noticed and compared.
    scenario
        .run("alter table t alter column note type varchar(40) using note || '!'")
        .await;
    scenario.until_whole().await;
    scenario.assert_rows_equal("x", "t", columns, "true").await;
    scenario.running.end().await;
}

#[tokio::test]
async fn domains_that_are_not_null_are_backfilled_to_a_baseline_server_with_their_files() {
    let catalogue = Catalogue::new(vec![cloud_sync::catalogue::Entity::new("x", "t", &["id"])]).unwrap();
    let server = BaselineServer::start(&catalogue, &[]).await;
    let mut site = Site::bare(
        "domains_baseline",
        &server.url(),
        baseline::KEY,
        DOMAINS,
        &entity("x", "t", &["id"], ""),
    )
    .await;
    let files = "key = [\"id\"]\nfiles = [{ column = \"photo\", url_column = \"photo_url\", \
         directory = \"photos\" }]\n";
    site.reconfigure("key = [\"id\"]\n", files);
    for name in ["a@1.jpg", "b@2.jpg"] {
        std::fs::write(site.media().join(name), name).unwrap();
    }
    site.init().await;
    let running = site.replicate();
    backfill_all(&site).await;
    running.caught_up().await;
    server
        .wait_until("both URLs", |server| {
            server
                .rows("x")
                .iter()
                .filter(|row| {
                    row["photo_url"]
                        .as_str()
                        .is_some_and(|url| url.contains("photos/"))
                })
                .count()
                == 2
        })
        .await;
    running.end().await;
}
