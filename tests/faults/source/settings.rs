//! What a site's own settings and long transactions do to the replicator, and what they must not do to its
//! changes.

use std::time::Duration;

use cloud_sync::control::status::ReplicatorState;
use tokio_postgres::Client;

use super::{ENTITIES, TABLES, garden};
use crate::support::oracle::Tally;
use crate::support::postgres::Server;
use crate::support::process::Daemon;
use crate::support::site::{Cloud, KEY, LIMIT, Site, connect};

/// Settings of a database that its administrator may have reasons for, each hostile to a session that does
/// not expect it.
const HOSTILE: &[&str] = &[
    "statement_timeout = '500ms'",
    "lock_timeout = '50ms'",
    "idle_in_transaction_session_timeout = '100ms'",
    "idle_session_timeout = '300ms'",
    "default_transaction_isolation = 'serializable'",
    "default_transaction_read_only = on",
    "default_transaction_deferrable = on",
    "synchronous_commit = off",
    "search_path = public, pg_catalog",
    "datestyle = 'SQL, DMY'",
    "intervalstyle = 'sql_standard'",
    "timezone = 'Asia/Kathmandu'",
    "bytea_output = 'escape'",
    "extra_float_digits = -15",
    "standard_conforming_strings = off",
    "backslash_quote = off",
    "quote_all_identifiers = on",
    "client_min_messages = error",
    "row_security = off",
    "xmloption = document",
    "transform_null_equals = on",
    "enable_indexscan = off",
    "jit = on",
];

/// A schema that a writer may have before all others, with what a capture function could take for the
/// database's own.
const EVIL: &str = "create schema evil; \
    create function evil.no(bigint, bigint) returns bigint language plpgsql as $$ begin raise 'hijacked'; \
    end $$; \
    create function evil.never(bigint, bigint) returns boolean language plpgsql as $$ begin raise \
    'hijacked'; end $$; create operator evil.& (leftarg = bigint, rightarg = bigint, function = evil.no); \
    create operator evil.= (leftarg = bigint, rightarg = bigint, function = evil.never); \
    create function evil.nextval(regclass) returns bigint language plpgsql as $$ begin raise 'hijacked'; \
    end $$; \
    create function evil.pg_sequence_last_value(regclass) returns bigint language plpgsql as $$ begin raise \
    'hijacked'; end $$; \
    create function evil.pg_try_advisory_lock_shared(bigint) returns boolean language plpgsql as $$ begin \
    raise 'hijacked'; end $$; \
    create domain evil.text as pg_catalog.text check (false); \
    create domain evil.json as pg_catalog.json check (false); \
    create domain evil.\"char\" as pg_catalog.\"char\" check (false); \
    create domain evil.regclass as pg_catalog.text check (false)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_settings_of_the_database_change_nothing() {
    let mut tally = Tally::default();
    let cloud = Cloud::start("hostile").await;
    let url = Server::get().database("hostile").await;
    let name = url.rsplit('/').next().unwrap().to_owned();
    let tables = format!(
        "{TABLES}; create table odd (id int primary key, at timestamptz, i interval, f float8, b bytea, \
         r tstzrange, feed text, secret text); \
         create function public.pg_current_snapshot() returns text language sql as $$ \
         select 'not this one' $$; \
         create function public.now() returns text language sql as $$ select 'nor this one' $$; {EVIL}"
    );
    let entities = format!(
        "{ENTITIES}\n[[entity]]\nname = \"odds\"\ntable = \"odd\"\nkey = [\"id\"]\nexclude = \
         [\"secret\"]\nredact = [\"feed\"]\n"
    );
    let mut site = Site::at(url.clone(), &cloud.url, KEY, &tables, &entities).await;
    for setting in HOSTILE {
        site.run(&format!("alter database {name} set {setting}")).await;
        tally.faults += 1;
    }
    site.init().await;
    let daemon = Daemon::of(&site, "store");
    let process = daemon.start();
    // A writer of an application that knows its database.
    let writer = connect(&url).await;
    writer
        .batch_execute(
            "set idle_session_timeout = 0; set default_transaction_read_only = off; \
             set default_transaction_deferrable = off; set search_path = evil, pg_catalog, public",
        )
        .await
        .unwrap();
    for turn in 0..8 {
        writer
            .batch_execute(&format!(
                "insert into pot select n, 'it''s', n from generate_series({turn} * 50, {turn} * 50 + 49) n; \
                 insert into odd values ({turn}, now() - interval '400 days', '1 year 2 mons -3 days', \
                 0.1::float8 + 0.2, \
                 'x'::bytea, tstzrange(pg_catalog.now(), null), \
                 'rtsp://passe:sss@camera/live?pass=secret&x=1', 'sss')",
            ).replace("now() - interval", "pg_catalog.now() - interval"))
            .await
            .unwrap();
        // Long enough for an idle session to be ended that has not asked to stay.
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    daemon.caught_up().await;
    let log = daemon.log();
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    for command in [
        &["check"][..],
        &["status"],
        &["sync", "--json"],
        &["backfill", "--all"],
    ] {
        let output = daemon.ask(command);
        assert!(output.status.success(), "{command:?}: {output:?}");
    }
    let feeds: Vec<String> = connect(&cloud.database_url)
        .await
        .query("select feed from cloud.odds", &[])
        .await
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert!(!feeds.is_empty());
    assert!(feeds.iter().all(|feed| feed == "rtsp://camera/live"), "{feeds:?}");
    for setting in HOSTILE {
        let parameter = setting.split(' ').next().unwrap();
        site.run(&format!("alter database {name} reset {parameter}"))
            .await;
    }
    site.client = connect(&url).await;
    tally.judge(&site, &cloud).await;
    assert!(process.terminate().await.success(), "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sequence_that_hands_out_blocks_is_refused_by_name() {
    let mut tally = Tally::default();
    let cloud = Cloud::start("blocks").await;
    let site = garden(Server::get().database("blocks").await, &cloud).await;
    site.run("alter sequence cloud_sync.position cache 50").await;
    tally.faults += 1;
    let daemon = Daemon::of(&site, "store");
    assert_eq!(daemon.start().ended(LIMIT).await.code(), Some(2));
    let remedy = "alter sequence cloud_sync.position increment 1 cache 1 no cycle";
    assert!(daemon.log().contains(remedy), "{}", daemon.log());
    // The remedy works.
    site.run(&format!("insert into pot values (1, 'kept'); {remedy}"))
        .await;
    for command in [&["init", "--new-epoch"][..], &["sync", "--force"]] {
        let output = daemon.ask(command);
        assert!(output.status.success(), "{command:?}: {output:?}");
    }
    let process = daemon.start();
    daemon.caught_up().await;
    tally.judge(&site, &cloud).await;
    assert!(process.terminate().await.success(), "{}", daemon.log());
}

/// How many rows of the outbox a window's query looks at, from the plan of the one that the drain runs.
async fn looked_at(client: &Client, after: i64, hi: &str, lo: &str) -> i64 {
    let sql = cloud_sync::source::outbox::WINDOW
        .replace("$1", &after.to_string())
        .replace("$2", &format!("'{hi}'"))
        .replace("$3", &format!("'{lo}'"))
        .replace("$4", "1000")
        .replace("$5", "1000000");
    // As the replicator's own session plans it.
    client
        .batch_execute("set enable_sort = off; set enable_seqscan = off; set enable_bitmapscan = off")
        .await
        .unwrap();
    let rows = client
        .query(
            &format!("explain (analyze, format text, costs off, timing off) {sql}"),
            &[],
        )
        .await
        .unwrap();
    let mut looked = 0;
    for row in rows {
        let line: String = row.get(0);
        assert!(!line.contains("Seq Scan on segment_"), "{line}");
        if let Some((_, count)) = line.split_once("rows=").filter(|_| line.contains("Scan")) {
            looked += count.split(' ').next().unwrap().parse::<i64>().unwrap();
        }
        if let Some((_, count)) = line.split_once("Rows Removed by Filter: ") {
            looked += count.trim().parse::<i64>().unwrap();
        }
    }
    looked
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_stays_open_costs_neither_its_changes_nor_a_slow_query() {
    let mut tally = Tally::default();
    let cloud = Cloud::start("open").await;
    let site = garden(Server::get().database("open").await, &cloud).await;
    let daemon = Daemon::of(&site, "store");
    let process = daemon.start();
    // Given one session that has written and stays in its transaction, and one that only has a snapshot
    let writer = connect(&site.database_url).await;
    writer
        .batch_execute("begin; insert into pot values (0, 'old'); update pot set weight = 1 where pot_id = 0")
        .await
        .unwrap();
    let reader = connect(&site.database_url).await;
    reader
        .batch_execute("begin isolation level repeatable read; select count(*) from pot")
        .await
        .unwrap();
    tally.faults += 2;
    // while others write, and all of that is delivered,
    for turn in 0..20_i64 {
        site.run(&format!(
            "insert into pot select n, 'young' from generate_series({turn} * 500 + 1, {turn} * 500 + 500) n; \
             update pot set label = 'younger' where pot_id between {turn} * 500 + 1 and {turn} * 500 + 250"
        ))
        .await;
    }
    let accepted = daemon.caught_up().await.checkpoint.unwrap();
    let mut looks = Vec::new();
    for turn in 0..3 {
        let lo: String = site
            .client
            .query_one("select pg_current_snapshot()::text", &[])
            .await
            .unwrap()
            .get(0);
        let last: i64 = site
            .client
            .query_one("select last_value from cloud_sync.position", &[])
            .await
            .unwrap()
            .get(0);
        site.run(&format!(
            "update pot set weight = {turn} where pot_id between 1 and 10"
        ))
        .await;
        let hi: String = site
            .client
            .query_one("select pg_current_snapshot()::text", &[])
            .await
            .unwrap()
            .get(0);
        site.run("analyze cloud_sync.segment_0").await;
        // then the next window looks only at what is new,
        looks.push(looked_at(&site.client, last, &hi, &lo).await);
    }
    println!("rows looked at: {looks:?}, accepted {accepted:?}");
    assert!(looks.iter().all(|&looked| looked <= 40), "{looks:?}");
    daemon.caught_up().await;
    // and what commits at last arrives.
    writer.batch_execute("commit").await.unwrap();
    daemon
        .until("arrived", LIMIT, |status| {
            status.state == ReplicatorState::Replicating && status.lag.is_some_and(|lag| lag.changes == 0)
        })
        .await;
    reader.batch_execute("commit").await.unwrap();
    tally.judge(&site, &cloud).await;
    assert!(process.terminate().await.success(), "{}", daemon.log());
}
