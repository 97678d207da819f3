//! The site's tables change while the replicator runs.

use cloud_sync::control::status::ReplicatorState;
use cloud_sync::control::{Health, Operator};
use cloud_sync::replicator::preconditions;

use crate::support::baseline::{self, BaselineServer};
use crate::support::oracle::Tally;
use crate::support::site::{Cloud, KEY, LIMIT, Running, Site, connect, until_whole};

const NOTES: &str = "create table note (id int primary key, text text, size int, photo bytea, secret text); \
     create table other (id int primary key, text text);";

const CATALOGUE: &str = "[[entity]]\nname = \"notes\"\ntable = \"note\"\nkey = [\"id\"]\n\
     [[entity]]\nname = \"others\"\ntable = \"other\"\nkey = [\"id\"]\n";

/// Two tables of a few columns, captured and replicated, with a few rows.
async fn notes(hint: &str, tables: &str, catalogue: &str) -> (Cloud, Site, Running) {
    let (cloud, site) = Site::captured(hint, tables, catalogue).await;
    let running = site.replicate_monitoring_drift();
    running.caught_up().await;
    (cloud, site, running)
}

/// Waits until an entity's capture is known to be broken, with these words.
async fn broken(running: &Running, entity: &str, words: &[&str]) -> String {
    let status = running
        .until("known to be broken", |status| {
            status
                .capture
                .iter()
                .any(|trouble| trouble.broken && trouble.entity == entity)
                && status.state == ReplicatorState::Replicating
        })
        .await;
    let trouble = status
        .capture
        .iter()
        .find(|trouble| trouble.entity == entity)
        .unwrap();
    for word in words {
        let reason = &trouble.reason;
        assert!(reason.contains(word), "no {word:?} in: {reason}");
    }
    assert!(status.reason.is_some());
    assert!(matches!(running.replicator.health(), Health::Still(_)));
    assert!(
        running
            .replicator
            .metrics()
            .contains("cloud_sync_capture_broken 1")
    );
    trouble.reason.clone()
}

/// Waits until the cloud's rows of an entity are so many.
async fn cloud_holds(cloud: &Cloud, sql: &str) {
    let client = connect(&cloud.database_url).await;
    let start = std::time::Instant::now();
    loop {
        let held = client
            .query_opt(sql, &[])
            .await
            .ok()
            .flatten()
            .is_some_and(|row| row.get::<_, bool>(0));
        if held {
            return;
        }
        assert!(start.elapsed() < LIMIT, "never: {sql}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn columns_added_dropped_renamed_and_retyped_are_followed_without_a_restart() {
    let mut tally = Tally::default();
    let (cloud, site, running) = notes("columns", NOTES, CATALOGUE).await;
    site.run("insert into note select n, 'text ' || n, n, '\\x00ff', 's' from generate_series(1, 50) n")
        .await;
    running.caught_up().await;
    for change in [
        // A column that comes empty, and is filled by updates; one that comes with values of its own.
        "alter table note add column colour text; update note set colour = 'red' where id % 2 = 0",
        "alter table note add column weight numeric(8,3) default 1.5; \
         insert into note (id, text) values (101, 'new')",
        "alter table note add column drawn float8 default random()",
        // Types that widen, and types that become others: each row is rewritten and no trigger fires.
        "alter table note alter column size type bigint using size * 10000000000; \
         insert into note (id, size) values (102, 9000000000000)",
        "alter table note alter column size type text using 'size ' || size; \
         update note set text = 'after' where id = 3",
        "alter table note alter column weight type numeric(12,1)",
        "alter table note alter column colour type jsonb using to_jsonb(colour); \
         insert into note (id, colour) values (103, '\"blue\"')",
        // A binary column that is one no more must not fail the writer, and a new one is sent as one.
        "alter table note alter column photo type text using 'no photo \\z'; \
         update note set text = 'x' where id = 4; \
         insert into note (id, photo) values (104, E'\\\\xzz')",
        "alter table note add column scan bytea; update note set scan = '\\xdeadbeef' where id < 9",
        // A column under another name, and one that goes.
        "alter table note rename column text to body; update note set body = 'renamed' where id = 5",
        "alter table note drop column secret; insert into note (id, body) values (105, 'without')",
        "alter table note alter column id type bigint",
        "insert into note (id, body) values (5000000000, 'wide key'); delete from note where id = 1",
    ] {
        site.run(change).await;
        tally.faults += 1;
    }
    until_whole(&site, &running).await;
    tally.judge(&site, &cloud).await;
    // One at a time too, each settled before the next.
    for change in [
        "alter table note add column again int default 7",
        "alter table note alter column again type text using 'again ' || again",
        "alter table note rename column again to anew",
    ] {
        site.run(change).await;
        site.run("update note set body = body || '.' where id = 7").await;
        tally.faults += 1;
        until_whole(&site, &running).await;
        site.assert_equal(&cloud).await;
    }
    tally.judge(&site, &cloud).await;
    // The cloud's column was text before it could hold JSON, and narrows never: it holds the JSON's text.
    site.run(
        "alter table note alter column body type jsonb using to_jsonb(body); \
         update note set body = '{\"a\": [1]}' where id = 7",
    )
    .await;
    tally.faults += 1;
    until_whole(&site, &running).await;
    cloud_holds(
        &cloud,
        "select body::jsonb = '{\"a\": [1]}' from cloud.notes where id = 7",
    )
    .await;
    running.end().await;
}

#[tokio::test]
async fn changes_from_before_a_column_went_arrive_without_it() {
    let mut tally = Tally::default();
    let (mut cloud, site, running) = notes("before", NOTES, CATALOGUE).await;
    site.run("insert into note (id, text, secret) values (1, 'one', 'old')")
        .await;
    running.caught_up().await;
    // Given changes in the outbox, of columns that go while the cloud is away
    cloud.away().await;
    site.run(
        "insert into note (id, text, secret) select n, 'text', 'old' from generate_series(2, 300) n; \
         update note set secret = 'older' where id = 1; alter table note drop column secret; \
         alter table other add column more text; insert into other (id, more) values (1, 'more')",
    )
    .await;
    tally.faults += 2;
    running.end().await;
    // When both are back, the replicator as a new process
    cloud.back().await;
    let running = site.replicate_monitoring_drift();
    until_whole(&site, &running).await;
    // Then the rows are there as they are now. The cloud's column stays: it drops nothing.
    tally.judge(&site, &cloud).await;
    cloud_holds(
        &cloud,
        "select count(*) = 300 and count(secret) <= 1 from cloud.notes",
    )
    .await;
    running.end().await;
}

#[tokio::test]
async fn a_key_column_that_goes_never_blocks_the_site_and_nothing_else() {
    let mut tally = Tally::default();
    let (cloud, site, running) = notes("key", NOTES, CATALOGUE).await;
    site.run("insert into note (id, text) select n, 'text' from generate_series(1, 20) n")
        .await;
    running.caught_up().await;
    for (away, back) in [
        (
            "alter table note rename column id to number",
            "alter table note rename column number to id",
        ),
        (
            "alter table note rename column id to number; alter table note add column id2 int",
            "alter table note drop column id2; alter table note rename column number to id",
        ),
    ] {
        // When the key is renamed, the site's own statements go on,
        site.run(away).await;
        tally.faults += 1;
        site.run(
            "insert into note (number, text) select 1 + max(number), 'written without a key' from note; \
             update note set text = 'changed without a key' where number = 3; \
             update note set number = -number where number = 4; \
             delete from note where number = 5; insert into other (id) select 1 + count(*) from other",
        )
        .await;
        // the status says so, with the remedy, and other entities continue.
        broken(&running, "notes", &["no column id", "key"]).await;
        let others = site.client.query_one("select count(*) from other", &[]).await;
        let others: i64 = others.unwrap().get(0);
        cloud_holds(&cloud, &format!("select count(*) = {others} from cloud.others")).await;
        // When the remedy is followed, all of it is in the cloud.
        site.run(back).await;
        site.init().await;
        until_whole(&site, &running).await;
        tally.judge(&site, &cloud).await;
    }
    // A key that is dropped with its values, and a new one in its place.
    let recreated = "alter table note drop column id; insert into note (text) values ('no key at all'); \
         alter table note add column id int";
    site.run(recreated).await;
    broken(&running, "notes", &["key"]).await;
    running.end().await;
    let running = site.replicate_monitoring_drift();
    broken(&running, "notes", &["key"]).await;
    site.run("insert into other (id) values (77)").await;
    cloud_holds(&cloud, "select true from cloud.others where id = 77").await;
    site.run(
        "update note set id = n from (select ctid as c, row_number() over () as n from note) numbered \
         where note.ctid = c; alter table note add primary key (id)",
    )
    .await;
    site.init().await;
    until_whole(&site, &running).await;
    tally.judge(&site, &cloud).await;
    running.end().await;
}

#[tokio::test]
async fn a_private_column_that_is_renamed_stays_private_and_is_reported() {
    let mut tally = Tally::default();
    let private = CATALOGUE.replace("key = [\"id\"]\n[[", "key = [\"id\"]\nexclude = [\"secret\"]\n[[");
    let (cloud, site, running) = notes("private_gone", NOTES, &private).await;
    site.run("insert into note (id, secret) values (1, 'hush')").await;
    running.caught_up().await;
    site.run(
        "alter table note rename column secret to hidden; \
         insert into note (id, hidden) values (2, 'hush'); insert into other (id) values (1)",
    )
    .await;
    tally.faults += 1;
    broken(&running, "notes", &["no column secret", "exclude"]).await;
    cloud_holds(&cloud, "select true from cloud.others where id = 1").await;
    site.run("alter table note rename column hidden to secret").await;
    site.init().await;
    until_whole(&site, &running).await;
    tally.judge(&site, &cloud).await;
    let dump = connect(&cloud.database_url).await;
    let leaked: i64 = dump
        .query_one(
            "select count(*) from cloud.notes n where n::text like '%hush%'",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert_eq!(leaked, 0);
    running.end().await;
}

#[tokio::test]
async fn a_table_renamed_dropped_or_made_anew_is_reported_and_the_rest_flows_on() {
    let mut tally = Tally::default();
    let (cloud, site, running) = notes("tables", NOTES, CATALOGUE).await;
    site.run("insert into note (id, text) select n, 'text' from generate_series(1, 20) n")
        .await;
    running.caught_up().await;
    // A table keeps its triggers under another name: the status says so, and nothing is missed.
    site.run(
        "alter table note rename to memo; insert into memo (id, text) values (21, 'under another name')",
    )
    .await;
    tally.faults += 1;
    let status = running
        .until("told of the name", |status| !status.capture.is_empty())
        .await;
    assert!(!status.capture[0].broken);
    assert!(
        status.capture[0].reason.contains("renamed to public.memo"),
        "{}",
        status.capture[0].reason
    );
    cloud_holds(&cloud, "select true from cloud.notes where id = 21").await;
    // A new table under the old name, as a migration swaps them: it has no triggers.
    site.run(
        "create table note (like memo including all); insert into note select * from memo where id > 5; \
              insert into note (id, text) values (22, 'in the new table')",
    )
    .await;
    tally.faults += 1;
    broken(&running, "notes", &["re-created", "init"]).await;
    site.run("insert into other (id) values (1)").await;
    cloud_holds(&cloud, "select true from cloud.others where id = 1").await;
    site.init().await;
    until_whole(&site, &running).await;
    site.run(
        "insert into memo (id, text) values (23, 'no entity any more'); insert into note (id) values (24)",
    )
    .await;
    until_whole(&site, &running).await;
    tally.judge(&site, &cloud).await;
    // A table that is gone, seen by the running replicator and by one that starts.
    site.run("drop table note; insert into other (id) values (2)")
        .await;
    tally.faults += 1;
    broken(&running, "notes", &["no such table"]).await;
    running.end().await;
    let running = site.replicate_monitoring_drift();
    broken(&running, "notes", &["no such table"]).await;
    cloud_holds(&cloud, "select true from cloud.others where id = 2").await;
    site.run("create table note (like memo including all); insert into note (id, text) values (1, 'back')")
        .await;
    site.init().await;
    until_whole(&site, &running).await;
    tally.judge(&site, &cloud).await;
    running.end().await;
}

#[tokio::test]
async fn triggers_that_someone_disables_drops_or_alters_are_noticed_while_running() {
    let mut tally = Tally::default();
    let (cloud, site, running) = notes("triggers", NOTES, CATALOGUE).await;
    site.run("insert into note (id, text) select n, 'text' from generate_series(1, 20) n")
        .await;
    running.caught_up().await;
    for (number, (fault, mended)) in [
        ("alter table note disable trigger cloud_sync_1_update", true),
        ("alter table note disable trigger all", true),
        // As pg_restore --disable-triggers leaves it.
        (
            "alter table note disable trigger all; update note set text = 'restored' where id = 8; \
             alter table note enable trigger all",
            true,
        ),
        ("drop trigger cloud_sync_1_delete on note", true),
        ("drop function cloud_sync.capture_1_insert() cascade", true),
        (
            "create or replace function cloud_sync.capture_1_update() returns trigger language plpgsql as \
             'begin return null; end'",
            true,
        ),
        // Off and on again between two looks.
        (
            "begin; alter table note disable trigger cloud_sync_1_update; \
             update note set text = 'unseen' where id = 9; \
          alter table note enable always trigger cloud_sync_1_update; commit",
            true,
        ),
    ]
    .into_iter()
    .enumerate()
    {
        site.run(fault).await;
        tally.faults += 1;
        broken(&running, "notes", &["init"]).await;
        site.run(&format!(
            "update note set text = 'missed {number}' where id < 5; \
             insert into note (id) values ({number} + 1000); delete from note where id = 10 + {number}"
        ))
        .await;
        if mended {
            site.init().await;
        }
        until_whole(&site, &running).await;
        tally.judge(&site, &cloud).await;
    }
    // Writers that act as a replica, as logical replication does, are captured.
    site.run(
        "set session_replication_role = replica; update note set text = 'by a replica' where id = 3; \
              set session_replication_role = origin",
    )
    .await;
    running.caught_up().await;
    tally.judge(&site, &cloud).await;
    running.end().await;
}

#[tokio::test]
async fn partitions_are_captured_whichever_way_rows_come_and_go() {
    let mut tally = Tally::default();
    let tables = "create table note (id int, day int, text text, primary key (id, \
         day)) partition by range (day); \
         create table note_1 partition of note for values from (0) to (100); \
         create table note_2 (text text, day int not null, id int not null, primary key (id, day)); \
         alter table note attach partition note_2 for values from (100) to (200); \
         create table note_3 partition of note for values from (200) to (400) partition by range (day); \
         create table note_3a partition of note_3 for values from (200) to (300); \
         create table other (id int primary key, text text);";
    let catalogue = CATALOGUE.replacen("key = [\"id\"]", "key = [\"id\", \"day\"]", 1);
    let (cloud, site, running) = notes("partitions", tables, &catalogue).await;
    // Given rows that come through the table, and straight into partitions
    site.run(
        "insert into note select n, n, 'through' from generate_series(0, 299, 3) n; \
         insert into note_1 values (1, 1, 'straight'); \
         insert into note_2 (id, day, text) values (2, 101, 'straight'); \
         insert into note_3 values (3, 201, 'middle'); insert into note_3a values (4, 202, 'leaf'); \
         update note set day = day + 100 where id = 6; update note_1 set text = 'changed' where id < 30; \
         delete from note_2 where id = 150; delete from note where id = 153; \
         update note_3a set id = -id where id = 204",
    )
    .await;
    running.caught_up().await;
    tally.judge(&site, &cloud).await;
    let doubled: i64 = connect(&cloud.database_url)
        .await
        .query_one(
            "select count(*) from cloud_meta.history where entity = 'notes' and key::text like '%299%'",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert!(doubled <= 1);
    // A partition that comes with rows, one that comes empty and is written to at once, one that goes, one
    // that is truncated.
    for change in [
        "create table note_4 (like note including all); \
         insert into note_4 select n, 400 + n, 'brought' from generate_series(1, 9) n; \
         alter table note attach partition note_4 for values from (400) to (500); \
         insert into note_4 values (10, 410, 'early')",
        "create table note_5 partition of note for values from (500) to (600); \
         insert into note_5 values (1, 501, 'early'); \
         insert into note values (2, 502, 'through')",
        "alter table note detach partition note_1; \
         insert into note_1 values (999, 1, 'no part of it any more')",
        "truncate note_2",
        "truncate note",
    ] {
        site.run(change).await;
        tally.faults += 1;
        // A truncate of the whole is no gap.
        if change != "truncate note" {
            running
                .until("noticed", |status| !status.capture.is_empty())
                .await;
        }
        until_whole(&site, &running).await;
        // What only said that something changed was not sent: something later is.
        site.run("insert into other (id) select 1 + count(*) from other")
            .await;
        running.caught_up().await;
        tally.judge(&site, &cloud).await;
    }
    site.run(
        "insert into note select n, n, 'after' from generate_series(100, 250, 50) n; \
         insert into note_5 values (3, 503, 'straight')",
    )
    .await;
    running.caught_up().await;
    tally.judge(&site, &cloud).await;
    running.end().await;
}

#[tokio::test]
async fn a_condition_that_fails_blocks_nobody() {
    let mut tally = Tally::default();
    let filtered = CATALOGUE.replacen(
        "key = [\"id\"]\n",
        "key = [\"id\"]\nwhere = \"100 / size > 1\"\n",
        1,
    );
    let (cloud, site, running) = notes("condition", NOTES, &filtered).await;
    site.run("insert into note (id, size) values (1, 10), (2, 90)")
        .await;
    running.caught_up().await;
    // When a row of the site makes the condition itself fail, the row stays, and is reported by its key; the
    // others go on.
    site.run("insert into note (id, size) values (3, 0); insert into note (id, size) values (4, 20)")
        .await;
    tally.faults += 1;
    running
        .until("told of the row", |status| {
            status.quarantine == Some(1) && status.lag.is_some_and(|lag| lag.changes == 0)
        })
        .await;
    cloud_holds(&cloud, "select count(*) = 2 from cloud.notes").await;
    // When the row is mended, it goes.
    site.run("update note set size = 5 where id = 3").await;
    let status = until_whole(&site, &running).await;
    assert_eq!(status.quarantine, Some(0));
    cloud_holds(&cloud, "select count(*) = 3 from cloud.notes").await;
    running.end().await;
}

#[tokio::test]
async fn a_server_that_tells_keys_only_gets_every_row_after_a_gap() {
    let catalogue = cloud_sync::catalogue::Catalogue::builtin();
    let server = BaselineServer::start(&catalogue, &[]).await;
    let site = Site::school("keys_only", &server.url(), baseline::KEY).await;
    let running = site.replicate_monitoring_drift();
    site.run(
        "insert into tbl_room (room_no, room_name) select 'R' || n, 'room' from generate_series(1, 5) n",
    )
    .await;
    running.caught_up().await;
    site.run(
        "alter table tbl_room disable trigger cloud_sync_1_update; \
         update tbl_room set room_name = 'missed' where room_id = 3",
    )
    .await;
    broken(&running, "rooms", &["disabled"]).await;
    site.init().await;
    until_whole(&site, &running).await;
    assert_eq!(server.row("rooms", "3").unwrap()["room_name"], "missed");
    running.end().await;
}

/// What `check` finds wrong: subject and words.
async fn wrong(site: &Site) -> Vec<(String, String)> {
    preconditions::check(&site.settings)
        .await
        .iter()
        .filter_map(|finding| Some((finding.subject().to_owned(), finding.error()?.to_owned())))
        .collect()
}

#[tokio::test]
async fn check_proves_each_precondition_and_names_the_remedies_in_their_order() {
    let cloud = Cloud::start("check").await;
    let tables = format!("{NOTES} create table lone (id int primary key);");
    let catalogue = format!("{CATALOGUE}[[entity]]\nname = \"lones\"\ntable = \"lone\"\nkey = [\"id\"]\n");
    let site = Site::bare("check", &cloud.url, KEY, &tables, &catalogue).await;
    let found = wrong(&site).await;
    assert!(
        found[0].0 == "identity" && found[0].1.contains("cloud-sync init"),
        "{found:?}"
    );
    site.init().await;
    assert!(wrong(&site).await.is_empty(), "{:?}", wrong(&site).await);
    for (fault, subject, words, mended) in [
        (
            "alter table note disable trigger cloud_sync_1_delete",
            "capture of notes",
            "init",
            "",
        ),
        (
            "alter function cloud_sync.capture_2_insert() security invoker",
            "outbox",
            "capture_2_insert",
            "",
        ),
        (
            "create or replace function cloud_sync.capture_2_delete() returns trigger language plpgsql \
             security definer as 'begin return null; end'",
            "capture of others",
            "altered",
            "",
        ),
        (
            "alter table cloud_sync.segment_2 set unlogged",
            "outbox",
            "segment_2",
            "alter table cloud_sync.segment_2 set logged",
        ),
        (
            "alter sequence cloud_sync.position cache 10",
            "outbox",
            "blocks",
            "alter sequence cloud_sync.position cache 1",
        ),
        (
            "create table lone_child () inherits (lone)",
            "catalogue",
            "child public.lone_child",
            "drop table lone_child",
        ),
        (
            "alter table lone rename column id to number",
            "catalogue",
            "no column id",
            "alter table lone rename column number to id",
        ),
        ("alter table other alter column text type varchar(30)", "", "", ""),
        ("drop table cloud_sync.segment_3", "outbox", "uninstall", "-"),
    ] {
        site.run(fault).await;
        let found = wrong(&site).await;
        match found.first() {
            Some((first, text)) => assert!(first == subject && text.contains(words), "{fault}: {found:?}"),
            None => assert!(subject.is_empty(), "{fault}"),
        }
        if mended == "-" {
            break;
        }
        site.run(mended).await;
        site.init().await;
        site.run("update cloud_sync.entity set gap = null").await;
        assert!(wrong(&site).await.is_empty(), "{fault}: {:?}", wrong(&site).await);
    }
    // After a restore elsewhere that alone is reported, with its remedy.
    site.run("update cloud_sync.identity set system_id = 'elsewhere'")
        .await;
    let found = wrong(&site).await;
    assert!(
        found[0].0 == "identity" && found[0].1.contains("init --new-epoch"),
        "{found:?}"
    );
    assert!(
        found.iter().all(|(subject, _)| !subject.starts_with("capture")),
        "{found:?}"
    );
    let json = serde_json::to_value(preconditions::check(&site.settings).await).unwrap();
    assert!(
        json.as_array()
            .unwrap()
            .iter()
            .any(|finding| finding["subject"] == "identity" && finding["ok"] == false)
    );
}
