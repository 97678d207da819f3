//! H10, sentences 3, 8, 14, 15 and 17: writers do not fail, and write what names the row.

use cloud_sync::control::Operator;
use cloud_sync::replicator::preconditions;
use cloud_sync::source::identity::OutboxDeclaration;
use cloud_sync::source::install;

use super::{TABLE, drained, held, things};
use crate::support::postgres::Server;
use crate::support::site::{Cloud, KEY, LIMIT, Site, connect};
use crate::support::sql::{number, texts, until};

/// The least time between two looks of a replicator that sleeps and waits for nobody in particular, in
/// milliseconds.
const SLOW_POLL: i64 = 4_000;

// H10 i. The key goes from int to text: writers go on, and so does the row.
#[tokio::test]
async fn a_key_that_becomes_text_fails_no_writer() {
    let (cloud, site) = Site::captured("totext", TABLE, &things("")).await;
    let drain = site.drain();
    let mut stages = drain.open().await.unwrap();
    site.run("insert into thing values (1, 'one'), (2, 'two')").await;
    drained(&mut stages).await;
    site.run(
        "update thing set label = 'before' where id = 1; \
         alter table thing alter column id type text using id::text; \
         insert into thing values ('abc', 'three'); update thing set label = 'after' where id = '2'",
    )
    .await;
    drained(&mut stages).await;
    assert_eq!(
        texts(&site.client, "select id || ' ' || label from thing order by 1").await,
        ["1 before", "2 after", "abc three"]
    );
    // The cloud's column is a number's: what is one arrives, and the other is refused by name.
    let there = held(&cloud, "select id || ' ' || label from cloud.things order by 1").await;
    assert!(
        there.starts_with(&["1 before".to_owned(), "2 after".to_owned()]),
        "{there:?}"
    );
}

// H10 ii. `temp_file_limit`: transition tables hold whole rows. It cannot be helped, and `check` says so.
#[tokio::test]
async fn a_limit_of_temporary_files_is_told_by_check() {
    let (_cloud, site) = Site::captured("limited", TABLE, &things("")).await;
    let detail = || async {
        let findings = preconditions::check(&site.settings).await;
        let found = findings
            .iter()
            .find(|finding| finding.subject() == "temporary files");
        found.unwrap().detail().to_owned()
    };
    assert_eq!(detail().await, "without a limit");
    let name = site.database_url.rsplit('/').next().unwrap().to_owned();
    site.run(&format!(
        "alter role postgres in database {name} set temp_file_limit = '2MB'"
    ))
    .await;
    let detail = detail().await;
    assert!(
        detail.contains("role postgres") && detail.contains("temp_file_limit"),
        "{detail}"
    );
}

// H10 iii, sentences 3 and 15. Tables that cannot be captured as they are.
#[tokio::test]
async fn tables_whose_writes_would_fail_or_escape_are_refused_in_words() {
    for (tables, words) in [
        (
            "create extension postgres_fdw; create server s foreign data wrapper postgres_fdw; \
             create table thing (id bigint primary key, label text); \
             create foreign table child () inherits (thing) server s",
            "child",
        ),
        (
            "create table thing (id bigint primary key, label text); create table child () inherits (thing)",
            "child",
        ),
        ("create table thing (id bigint unique, label text)", "may be null"),
        (
            "create table real_thing (id bigint primary key); create view thing as select * from real_thing",
            "not a table",
        ),
    ] {
        let site = Site::bare("refused", "http://127.0.0.1:1/api", KEY, tables, &things("")).await;
        let url = site.settings.require_database_url().unwrap();
        let error = install::init(url, &site.settings.catalogue, OutboxDeclaration::Nothing)
            .await
            .expect_err(tables);
        assert!(error.to_string().contains(words), "{error}");
        // The site's own writers go on.
        if !tables.contains("view") {
            site.run("insert into thing values (1, 'one')").await;
        }
    }
}

// H10 iv. A transaction that has notified cannot be prepared.
#[tokio::test]
async fn prepared_transactions_go_on_while_the_replicator_sleeps() {
    let server = Server::with(&["max_prepared_transactions=5"]);
    let cloud = Cloud::start("prepared").await;
    let site = Site::bare_on(&server, "prepared", &cloud.url, KEY, TABLE, &things("")).await;
    site.init().await;
    let running = site.replicate();
    running.caught_up().await;
    // Someone may have said that a replicator sleeps, before the setting was changed.
    site.run("select cloud_sync.set_state(null, extract(epoch from now())::bigint + 3600)")
        .await;
    site.run("begin; insert into thing values (1, 'one'); prepare transaction 'p'")
        .await;
    site.run("commit prepared 'p'").await;
    running.caught_up().await;
    site.assert_equal(&cloud).await;
    running.end().await;
}

// H10 v. A table that has our row trigger is attached as a partition of a table that has it too.
#[tokio::test]
async fn a_captured_table_can_be_attached_as_a_partition() {
    let tables = "create table thing (id bigint primary key, label text) partition by range (id); \
         create table low partition of thing for values from (0) to (10); \
         create table high (id bigint primary key, label text)";
    let (cloud, site) = Site::captured("attach", tables, &things("")).await;
    // Given what an earlier capture of the same entity left on a table of its own
    site.run(
        "do $$ declare name text; begin \
           select replace(tgname, tgrelid::text, 'high'::regclass::oid::text) into name from pg_trigger \
             where tgrelid = 'thing'::regclass and tgname like 'cloud\\_sync\\_%\\_row%'; \
           execute format('create trigger %I after insert or update or delete on high for each row \
             execute function cloud_sync.capture_1_row()', name); end $$",
    )
    .await;
    site.run("alter table thing attach partition high for values from (10) to (20)")
        .await;
    // And rows that are written there before it has triggers of its own are captured, where the row triggers
    // fire.
    let drain = site.drain();
    let mut stages = drain.open().await.unwrap();
    site.run(
        "set session_replication_role = replica; insert into high values (11, 'applied'), (12, 'applied'); \
              update high set id = 13 where id = 12; set session_replication_role = origin",
    )
    .await;
    drained(&mut stages).await;
    assert_eq!(
        held(&cloud, "select id::text from cloud.things order by id").await,
        ["11", "13"]
    );
}

// Sentence 14. A subscription's worker fires row triggers only: they touch the new key and the old one.
#[tokio::test]
async fn a_key_that_an_apply_worker_changes_leaves_no_row_behind() {
    let (cloud, site) = Site::captured("applied", TABLE, &things("")).await;
    let publisher_url = Server::get().database("applied_publisher").await;
    let publisher = connect(&publisher_url).await;
    publisher
        .batch_execute(&format!("{TABLE}; create publication holes for table thing"))
        .await
        .unwrap();
    // In its own transaction. Within one server a subscription cannot make its slot itself.
    publisher
        .batch_execute("select pg_create_logical_replication_slot('holes', 'pgoutput')")
        .await
        .unwrap();
    site.run(&format!(
        "create subscription holes connection '{publisher_url}' publication holes with (create_slot = false)"
    ))
    .await;
    let drain = site.drain();
    let mut stages = drain.open().await.unwrap();
    for (change, there) in [
        (
            "insert into thing values (1, 'one'), (2, 'two'), (3, 'three')",
            "select count(*) = 3 from thing",
        ),
        (
            "update thing set id = 4 where id = 1; delete from thing where id = 2; \
             update thing set label = 'last' where id = 3",
            "select count(*) = 1 from thing where label = 'last'",
        ),
        ("truncate thing", "select count(*) = 0 from thing"),
    ] {
        publisher.batch_execute(change).await.unwrap();
        until(&site.client, there).await;
        drained(&mut stages).await;
        site.assert_equal(&cloud).await;
    }
    site.run("alter subscription holes disable").await;
    site.run("alter subscription holes set (slot_name = none)").await;
    site.run("drop subscription holes").await;
}

// H10 vi. A replicator is killed while it sleeps: behind its deadline writers notify no more.
#[tokio::test]
async fn a_sleeper_that_is_gone_is_notified_until_its_deadline_only() {
    let (_cloud, site) = Site::captured("sleeper", TABLE, &things("")).await;
    let running = site.replicate();
    running.caught_up().await;
    let deadline = "coalesce(pg_sequence_last_value('cloud_sync.state'), 0) >> 16";
    let now = "extract(epoch from clock_timestamp())::bigint";
    until(
        &site.client,
        &format!("select {deadline} > {now} and {deadline} <= {now} + 60"),
    )
    .await;
    assert!(matches!(
        running.replicator.health(),
        cloud_sync::control::Health::Well
    ));
    // It is gone without a word; what it wrote stays.
    let state = number(&site.client, "select pg_sequence_last_value('cloud_sync.state')").await;
    running.end().await;
    let heard = |until: &'static str| {
        let (url, site) = (site.database_url.clone(), &site);
        async move {
            site.run(&format!("select cloud_sync.set_state(null, {until})"))
                .await;
            let (client, mut connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls)
                .await
                .unwrap();
            let (send, mut heard) = tokio::sync::mpsc::unbounded_channel();
            tokio::spawn(async move {
                let mut messages = futures::stream::poll_fn(move |cx| connection.poll_message(cx));
                while let Some(Ok(message)) = futures::StreamExt::next(&mut messages).await {
                    if let tokio_postgres::AsyncMessage::Notification(_) = message {
                        let _ = send.send(());
                    }
                }
            });
            client.batch_execute("listen cloud_sync").await.unwrap();
            site.run("insert into thing select coalesce(max(id), 0) + 1 from thing")
                .await;
            // A notification comes before the answer of a statement that began after it.
            client.batch_execute("select 1").await.unwrap();
            client.batch_execute("select 1").await.unwrap();
            heard.try_recv().is_ok()
        }
    };
    assert!(state > 65_535);
    assert!(heard("extract(epoch from clock_timestamp())::bigint + 60").await);
    assert!(!heard("extract(epoch from clock_timestamp())::bigint - 1").await);
}

// Sentence 17. The text of a key does not depend on the writer's session: 0.1 + 0.2 is 0.3 under
// `extra_float_digits = 0`.
#[tokio::test]
async fn a_key_reads_the_same_whatever_the_writer_has_set() {
    let tables = "create table thing (id float8 primary key, label text); \
         create table day (id timestamptz primary key, span interval, label text)";
    let config = format!(
        "{}[[entity]]\nname = \"days\"\ntable = \"day\"\nkey = [\"id\"]\npath = \"days\"\n",
        things("")
    );
    let (cloud, site) = Site::captured("digits", tables, &config).await;
    let drain = site.drain();
    let mut stages = drain.open().await.unwrap();
    site.run(
        "set extra_float_digits = 0; set datestyle = 'German'; set timezone = 'Asia/Tokyo'; \
         set intervalstyle = 'sql_standard'; \
         insert into thing values (0.1::float8 + 0.2::float8, 'one'); \
         insert into day values ('2026-11-05 10:00+00', '1 day', 'one')",
    )
    .await;
    drained(&mut stages).await;
    assert_eq!(held(&cloud, "select label from cloud.things").await, ["one"]);
    assert_eq!(held(&cloud, "select label from cloud.days").await, ["one"]);
    site.run("update thing set label = 'two'; update day set label = 'two'; reset all")
        .await;
    drained(&mut stages).await;
    site.assert_equal(&cloud).await;
    assert_eq!(held(&cloud, "select label from cloud.days").await, ["two"]);
}

// Sentence 8. A transaction has written before the replicator lay down, and notifies nobody: as long as it
// runs the replicator looks again and again, and not only when the slow poll is due.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_does_not_know_of_the_sleeper_is_waited_for_by_short_looks() {
    let (cloud, site) = Site::captured("sleeper", TABLE, &things("")).await;
    let writer = connect(&site.database_url).await;
    writer
        .batch_execute("begin; insert into thing values (1, 'silent')")
        .await
        .unwrap();
    let running = site.replicate();
    until(
        &site.client,
        "select pg_sequence_last_value('cloud_sync.state') > 65535",
    )
    .await;
    // Two looks in a row come sooner than any slow poll would: one pair of looks is evidence that the wake
    // lock is armed.
    let look = "select (extract(epoch from query_start) * 1000)::bigint from pg_stat_activity \
         where datname = current_database() and application_name = 'cloud-sync drain' \
         and query like '%captured_at%'";
    let start = std::time::Instant::now();
    let mut looks: Vec<i64> = Vec::new();
    while !looks.windows(4).any(|looks| looks[3] - looks[0] < SLOW_POLL) {
        if let Some(row) = site.client.query_opt(look, &[]).await.unwrap() {
            let at = row.get(0);
            if looks.last() != Some(&at) {
                looks.push(at);
            }
        }
        assert!(start.elapsed() < LIMIT, "looks at {looks:?}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    // It commits without a notification; a notification wakes the replicator too.
    writer.batch_execute("commit").await.unwrap();
    running.caught_up().await;
    site.run("insert into thing values (2, 'told')").await;
    running.caught_up().await;
    site.assert_equal(&cloud).await;
    running.end().await;
}
