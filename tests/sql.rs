//! What is installed in the site's database: capture, the checks of its catalogue, waking, the segments,
//! drift.

use std::collections::BTreeSet;

use cloud_sync::error::Kind;
use cloud_sync::source::identity::OutboxDeclaration;
use cloud_sync::source::{install, outbox};
use futures::StreamExt;
use tokio_postgres::{AsyncMessage, Client, NoTls, SimpleQueryMessage};

use crate::support::process::Daemon;
use crate::support::site::{Cloud, KEY, LIMIT, NOWHERE, Site, connect};
use crate::support::sql::number;

fn entity(name: &str, table: &str, key: &str) -> String {
    format!("[[entity]]\nname = \"{name}\"\ntable = \"{table}\"\nkey = [{key}]\n")
}

#[tokio::test]
async fn a_catalogue_that_does_not_fit_is_refused_by_name_with_the_remedy() {
    let table = "create table a (id int primary key, b_id int);";
    let has = |text: String, words: &[&str]| {
        for word in words {
            assert!(text.contains(word), "no {word:?} in: {text}");
        }
    };
    has(
        Site::refusal("no_table", "", &entity("rooms", "tbl_rom", "\"id\"")).await,
        &["tbl_rom", "rooms", "no such table", "take the entity out"],
    );
    has(
        Site::refusal("no_column", table, &entity("a", "a", "\"idd\"")).await,
        &["no column idd", "key", "is id meant?"],
    );
    has(
        Site::refusal("no_key", "create table k (id int);", &entity("k", "k", "\"id\"")).await,
        &[
            "table k has no primary or unique key on (id)",
            "add a primary key",
        ],
    );
    has(
        Site::refusal(
            "null_key",
            "create table k (id int unique);",
            &entity("k", "k", "\"id\""),
        )
        .await,
        &["key column id of table k may be null", "set not null"],
    );
    has(
        Site::refusal(
            "view",
            "create view v as select 1 as id;",
            &entity("v", "v", "\"id\""),
        )
        .await,
        &["not a table"],
    );
}

#[tokio::test]
async fn odd_tables_composite_keys_filters_and_roles_without_rights_are_captured() {
    let cloud = Cloud::start("odd").await;
    let tables = "create schema \"Annex\"; create table \"Annex\".\"Seat \"\"Plan\"\"\" (\"Row\" int, \
         seat text, taken boolean not null default false, note numeric, primary key (\"Row\", seat));";
    let config = "[[entity]]\nname = \"seats\"\ntable = '\"Annex\".\"Seat \"\"Plan\"\"\"'\nkey = \
         [\"Row\", \"seat\"]\n\
                  where = \"taken\"\n";
    let site = Site::bare("odd", &cloud.url, KEY, tables, config).await;
    site.init().await;
    let role = format!("writer_{}", std::process::id());
    site.run(&format!(
        "create role {role}; grant usage on schema \"Annex\" to {role}; \
         grant all on \"Annex\".\"Seat \"\"Plan\"\"\" to {role}; \
         set role {role}; \
         insert into \"Annex\".\"Seat \"\"Plan\"\"\" select n, 'seat ' || n, true, \
         12345678901234567890.123456789 from generate_series(1, 9) n; \
         insert into \"Annex\".\"Seat \"\"Plan\"\"\" values (10, E'o\\'dd \\\\ \"name\" \\n', true), (11, \
         'free', false); update \"Annex\".\"Seat \"\"Plan\"\"\" set taken = false where \"Row\" = 2; \
         update \"Annex\".\"Seat \"\"Plan\"\"\" set \"Row\" = 30 where \"Row\" = 3; \
         delete from \"Annex\".\"Seat \"\"Plan\"\"\" where \"Row\" = 4; \
         reset role; drop owned by {role}; drop role {role}"
    ))
    .await;
    site.drain().drain_all().await.unwrap();
    let held = |client: tokio_postgres::Client, sql: &'static str| async move {
        client
            .query(sql, &[])
            .await
            .unwrap()
            .iter()
            .map(|row| row.get::<_, String>(0))
            .collect::<Vec<_>>()
    };
    let ours = held(
        connect(&site.database_url).await,
        "select (\"Row\", seat, note)::text from \"Annex\".\"Seat \"\"Plan\"\"\" where taken \
         order by \"Row\"",
    )
    .await;
    let theirs = held(
        connect(&cloud.database_url).await,
        "select (\"Row\", seat, note)::text from cloud.seats order by \"Row\"",
    )
    .await;
    assert_eq!(ours.len(), 8);
    assert_eq!(ours, theirs);
}

#[tokio::test]
async fn init_and_uninstall_can_be_run_again() {
    let site = Site::school("again", NOWHERE, KEY).await;
    let url = site.settings.require_database_url().unwrap();
    let again = install::init(url, &site.settings.catalogue, OutboxDeclaration::Nothing)
        .await
        .unwrap();
    assert_eq!(
        (again.unchanged.len(), again.attached.len(), again.epoch),
        (9, 0, 1)
    );
    // A trigger that someone disabled is put right.
    site.run("alter table tbl_room disable trigger cloud_sync_1_update")
        .await;
    let mended = install::init(url, &site.settings.catalogue, OutboxDeclaration::Nothing)
        .await
        .unwrap();
    assert_eq!(mended.attached, ["rooms"]);
    let renewed = install::init(url, &site.settings.catalogue, OutboxDeclaration::NewEpoch)
        .await
        .unwrap();
    assert_eq!(renewed.epoch, 2);
    assert_eq!(install::uninstall(url).await.unwrap().len(), 9);
    assert!(install::uninstall(url).await.unwrap().is_empty());
    site.run("insert into tbl_room (room_no) values ('R1')").await;
    let left: i64 = site
        .client
        .query_one(
            "select count(*) from pg_trigger where tgname like 'cloud_sync%'",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert_eq!(left, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uninstall_says_at_once_who_drains_the_outbox() {
    let (cloud, site) = Site::school_with_cloud("led").await;
    let running = site.replicate();
    running.caught_up().await;
    for arguments in [&["uninstall"][..], &["uninstall", "--force"]] {
        let answer = Daemon::of(&site, "other").ask(arguments);
        let stderr = String::from_utf8_lossy(&answer.stderr);
        assert_eq!(answer.status.code(), Some(2), "{stderr}");
        let leader = "select 'session ' || pid from pg_stat_activity \
             where datname = current_database() and application_name = 'cloud-sync leader'";
        let leader: String = site.client.query_one(leader, &[]).await.unwrap().get(0);
        for words in [leader.as_str(), "127.0.0.1", "stop `cloud-sync run`"] {
            assert!(stderr.contains(words), "no {words:?} in: {stderr}");
        }
    }
    // Nothing was taken away by half, and it goes once the replicator has ended.
    site.run("insert into tbl_room (room_no) values ('R1')").await;
    running.caught_up().await;
    site.assert_equal(&cloud).await;
    running.end().await;
    let answer = Daemon::of(&site, "other").ask(&["uninstall"]);
    assert!(
        answer.status.success(),
        "{}",
        String::from_utf8_lossy(&answer.stderr)
    );
}

#[tokio::test]
async fn writers_look_for_no_sleeper_before_the_first_replicator_and_after_one_that_ended() {
    let (_cloud, site) = Site::school_with_cloud("sleeper").await;
    let may_sleep = async || -> bool {
        let state = "select pg_sequence_last_value('cloud_sync.state') > 65535";
        site.client.query_one(state, &[]).await.unwrap().get(0)
    };
    assert!(!may_sleep().await);
    let running = site.replicate();
    running.caught_up().await;
    let start = std::time::Instant::now();
    while !may_sleep().await {
        assert!(start.elapsed() < LIMIT, "it never arms the wake lock");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    running.end().await;
    assert!(!may_sleep().await);
}

const TABLES: &str = "create table num (id int primary key, v text); \
     create table txt (id text primary key, v text); \
     create table pair (a int, b text, v text, primary key (a, b)); \
     create table part (id int, day int, v text, primary key (id, day)) partition by range (day); \
     create table part_1 partition of part for values from (0) to (100); \
     create table part_2 (v text, day int not null, id int not null, primary key (id, day)); \
     alter table part attach partition part_2 for values from (100) to (200);";

/// A site with tables of one integer key, of one text key, of two key columns, and of partitions.
async fn tables(hint: &str) -> Site {
    let config = entity("num", "num", "\"id\"")
        + &entity("txt", "txt", "\"id\"")
        + &entity("pair", "pair", "\"a\", \"b\"")
        + &entity("part", "part", "\"id\", \"day\"");
    let site = Site::bare(hint, NOWHERE, KEY, TABLES, &config).await;
    site.init().await;
    site
}

/// What a writer's script touches: entity, op, and the key, with `#` before a number; sorted.
async fn touched(site: &Site, writer: &Client, sql: &str) -> Vec<String> {
    let last = "select last_value - (not is_called)::int from cloud_sync.position";
    let before: i64 = site.client.query_one(last, &[]).await.unwrap().get(0);
    for statement in sql.split(";\n") {
        writer
            .batch_execute(statement)
            .await
            .unwrap_or_else(|error| panic!("{statement}: {error:?}"));
    }
    let touches = "select e.name || ' ' || o.op::text || ' ' || coalesce('#' || o.number, o.key, '-') \
         from cloud_sync.outbox o join cloud_sync.entity e on e.id = o.entity where o.position > $1";
    let rows = site.client.query(touches, &[&before]).await.unwrap();
    let mut touches: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    touches.sort();
    touches
}

#[tokio::test]
async fn each_row_that_a_statement_writes_is_touched_by_its_key() {
    let site = tables("touches").await;
    let writer = connect(&site.database_url).await;
    let server = number(
        &site.client,
        "select current_setting('server_version_num')::bigint",
    )
    .await;
    let merge = "merge into num using (values (2), (4)) s (id) on num.id = s.id \
         when matched then update set v = 'm' when not matched then insert values (s.id)";
    for (sql, expected) in [
        ("insert into num values (1), (2)", vec!["num w #1", "num w #2"]),
        ("update num set v = 'x' where id = 1", vec!["num w #1"]),
        (
            "update num set id = 10 where id = 1",
            vec!["num m #1", "num w #10"],
        ),
        // A key that another row of the statement takes is no old one.
        (
            "update num set id = id + 1 where id = 10",
            vec!["num m #10", "num w #11"],
        ),
        ("delete from num where id = 11", vec!["num w #11"]),
        ("update num set v = 'x' where id < 0", vec![]),
        (
            "insert into num values (2), (3) on conflict (id) do update set v = 'c'",
            vec!["num w #2", "num w #3"],
        ),
        ("insert into num values (3) on conflict do nothing", vec![]),
        (merge, vec!["num w #2", "num w #4"]),
        (
            "with d as (delete from num where id = 3 returning id) insert into num select id + 100 from d",
            vec!["num w #103", "num w #3"],
        ),
        (
            "copy num (id) from program 'seq 50 51'",
            vec!["num w #50", "num w #51"],
        ),
        (
            "begin;\ninsert into num values (60);\nsavepoint a;\ninsert into num \
             values (61);\nrollback to a;\n\
             savepoint b;\ninsert into num values (62);\nrelease b;\ncommit",
            vec!["num w #60", "num w #62"],
        ),
        (
            "begin;\ninsert into num values (70);\ntruncate num;\nrollback",
            vec![],
        ),
        ("truncate num", vec!["num t -"]),
        // A text that looks like an integer is a text.
        (
            "insert into txt values ('5'), ('NULL'), (''), (E'a \"b\" \\\\')",
            vec!["txt w ", "txt w 5", "txt w NULL", "txt w a \"b\" \\"],
        ),
        (
            "update txt set id = 'x' where id = '5'",
            vec!["txt m 5", "txt w x"],
        ),
        (
            "insert into pair values (1, 'x'), (2, 'NULL'), (3, E'a, \"b\" \\\\')",
            vec![
                "pair w {1,x}",
                "pair w {2,\"NULL\"}",
                "pair w {3,\"a, \\\"b\\\" \\\\\"}",
            ],
        ),
        (
            "update pair set b = 'y' where a = 1",
            vec!["pair m {1,x}", "pair w {1,y}"],
        ),
        (
            "insert into part values (1, 1), (2, 101)",
            vec!["part w {1,1}", "part w {2,101}"],
        ),
        ("update part_2 set v = 'x'", vec!["part w {2,101}"]),
        (
            "update part set day = 102 where id = 1",
            vec!["part m {1,1}", "part w {1,102}"],
        ),
        // Which rows a partition had is not known; the whole table's truncate says it of each partition, too.
        ("truncate part_2", vec!["part g -"]),
        ("truncate part", vec!["part g -", "part g -", "part t -"]),
    ] {
        if sql == merge && server < 150_000 {
            continue;
        }
        assert_eq!(touched(&site, &writer, sql).await, expected, "{sql}");
    }
    // Whatever savepoints there were, a touch has the number of the transaction that commits.
    let numbers = "select count(distinct xid) from cloud_sync.outbox where number in (60, 62)";
    assert_eq!(number(&site.client, numbers).await, 1);
}

#[tokio::test]
async fn keys_that_rows_exchange_in_one_statement_are_touched_once_and_none_as_an_old_one() {
    let table = "create table num (id int primary key deferrable, v text)";
    let site = Site::bare("exchange", NOWHERE, KEY, table, &entity("num", "num", "\"id\"")).await;
    site.init().await;
    let writer = connect(&site.database_url).await;
    writer
        .batch_execute("insert into num values (1), (2), (3)")
        .await
        .unwrap();
    let exchange = "update num set id = id % 3 + 1";
    assert_eq!(
        touched(&site, &writer, exchange).await,
        ["num w #1", "num w #2", "num w #3"]
    );
    let shift = "update num set id = id + 1";
    assert_eq!(
        touched(&site, &writer, shift).await,
        ["num m #1", "num w #2", "num w #3", "num w #4"]
    );
}

#[tokio::test]
async fn the_text_of_a_key_does_not_depend_on_the_writers_session() {
    let tables = "create table f (id float8 primary key, v int); \
         create table r (id real primary key, v int); \
         create table z (id timestamptz primary key, v int); \
         create table i (id interval primary key, v int); \
         create table y (id bytea primary key, v int); \
         create table d (a date, f float8, v int, primary key (a, f)); \
         insert into f values (0.1::float8 + 0.2); insert into r values (1.1); \
         insert into z values ('2026-01-02 03:04:05.6+00'); insert into i values ('1 day 2 hours'); \
         insert into y values ('\\x00ff'); insert into d values ('2026-02-01', 0.1::float8 + 0.2);";
    let names = ["f", "r", "z", "i", "y"];
    let config: String = names.iter().map(|name| entity(name, name, "\"id\"")).collect();
    let config = config + &entity("d", "d", "\"a\", \"f\"");
    let site = Site::bare("keytexts", NOWHERE, KEY, tables, &config).await;
    site.init().await;
    for settings in [
        "select",
        "set extra_float_digits = 0; set datestyle = 'SQL, DMY'; set timezone = 'Asia/Kathmandu'; \
         set intervalstyle = 'iso_8601'; set bytea_output = 'escape'",
    ] {
        let writer = connect(&site.database_url).await;
        writer.batch_execute(settings).await.unwrap();
        let update = "update f set v = 1;\nupdate r set v = 1;\nupdate z set v = 1;\nupdate i set v = 1;\n\
             update y set v = 1;\nupdate d set v = 1";
        let expected = [
            "d w {2026-02-01,0.30000000000000004}",
            "f w 0.30000000000000004",
            "i w 1 day 02:00:00",
            "r w 1.1",
            "y w \\x00ff",
            "z w 2026-01-02 03:04:05.6+00",
        ];
        assert_eq!(touched(&site, &writer, update).await, expected, "{settings}");
    }
}

#[tokio::test]
async fn a_writer_never_fails_for_a_key_column_that_is_not_what_it_was() {
    let site = tables("keydrift").await;
    // Given a writer whose session has its plans, and compiles what it can
    let writer = connect(&site.database_url).await;
    let jit = "set jit = on; set jit_above_cost = 0; set jit_inline_above_cost = 0; \
         set jit_optimize_above_cost = 0";
    writer.batch_execute(jit).await.unwrap();
    let touches = async |num: &str, txt: &str, pair: &str| {
        let script = format!(
            "insert into num values ({num}, 'a');\nupdate num set v = 'b';\nupdate num set v = 'c';\n\
             insert into txt (v, {txt});\nupdate txt set v = 'b';\n\
             insert into pair values ({pair}, 'a');\nupdate pair set v = 'b';\n\
             delete from num;\ndelete from txt;\ndelete from pair"
        );
        let touches: BTreeSet<_> = touched(&site, &writer, &script).await.into_iter().collect();
        touches.into_iter().collect::<Vec<_>>()
    };
    let first = touches("1", "id) values ('a', 'x'", "1, 'x'").await;
    assert_eq!(first, ["num w #1", "pair w {1,x}", "txt w x"]);
    // when keys get another type, then their texts are as they are now.
    site.run(
        "alter table num alter id type text; alter table txt alter id type int using 0; \
         alter table pair alter a type text",
    )
    .await;
    let text = touches("'abc'", "id) values ('a', 5", "'ü', 'x'").await;
    assert_eq!(text, ["num w abc", "pair w {ü,x}", "txt w 5"]);
    site.run("alter table num alter id type bigint using 0").await;
    let bigint = touches("6", "id) values ('a', 5", "'ü', 'x'").await;
    assert_eq!(bigint, ["num w 6", "pair w {ü,x}", "txt w 5"]);
    // When they are renamed or dropped, then touches say that their key is not known.
    site.run(
        "alter table num rename id to other; alter table txt drop id; alter table txt add other text; \
         alter table pair rename a to c",
    )
    .await;
    let unknown = touches("6", "other) values ('a', 'b'", "'ü', 'x'").await;
    // Of two keys that are not known nobody can say that they are the same.
    let expected = [
        "num m -",
        "num w -",
        "pair m {NULL,x}",
        "pair w {NULL,x}",
        "txt m -",
        "txt w -",
    ];
    assert_eq!(unknown, expected);
}

#[tokio::test]
async fn a_role_without_rights_writes_in_every_segment_whatever_its_search_path_defines() {
    let site = tables("hostile").await;
    let role = format!("hostile_{}", std::process::id());
    let mut hostile = "create schema hostile;".to_owned();
    for right in ["bigint", "integer"] {
        for (of, operators) in [("boolean", vec!["=", ">", "<>"]), ("bigint", vec!["&", ">>"])] {
            hostile.push_str(&format!(
                "create function hostile.{of}_of(bigint, {right}) returns {of} language plpgsql as $$ begin \
                 raise 'taken'; end $$;"
            ));
            for operator in operators {
                hostile.push_str(&format!(
                    "create operator hostile.{operator} (leftarg = bigint, rightarg = {right}, \
                     function = hostile.{of}_of);"
                ));
            }
        }
    }
    site.run(&hostile).await;
    site.run(&format!(
        "create role {role}; grant usage on schema hostile to {role}; \
         grant all on num, txt, pair, part, part_1, part_2 to {role}; \
         select cloud_sync.add_segment(), cloud_sync.add_segment()"
    ))
    .await;
    let writer = connect(&site.database_url).await;
    writer
        .batch_execute(&format!(
            "set role {role}; set search_path = hostile, pg_catalog, public"
        ))
        .await
        .unwrap();
    assert!(writer.batch_execute("select 1::bigint = 1").await.is_err());
    // Given each segment in its turn, of which the last have no branch of their own, and a replicator that
    // sleeps or not
    let asleep = 1_i64 << 40;
    let states = (0..6)
        .map(|segment| (segment, 0))
        .chain([(0, asleep), (2, asleep), (5, asleep)]);
    for (segment, until) in states {
        site.run(&format!(
            "truncate cloud_sync.outbox; select cloud_sync.set_state({segment}, {until})"
        ))
        .await;
        let script = "insert into num values (1);\nupdate num set v = 'x';\nupdate num set id = 2;\ndelete \
             from num;\n\
             truncate num;\ninsert into txt values ('a');\ntruncate txt;\ninsert into pair values (1, 'a');\n\
             delete from pair;\ninsert into part values (1, 1);\ntruncate part_1;\ntruncate part";
        let expected = [
            "num m #1",
            "num t -",
            "num w #1",
            "num w #1",
            "num w #2",
            "num w #2",
            "pair w {1,a}",
            "pair w {1,a}",
            "part g -",
            "part g -",
            "part g -",
            "part t -",
            "part w {1,1}",
            "txt t -",
            "txt w a",
        ];
        let touches = touched(&site, &writer, script).await;
        assert_eq!(touches, expected, "segment {segment}, until {until}");
        let elsewhere = format!(
            "select count(*) from cloud_sync.outbox where tableoid <> \
             'cloud_sync.segment_{segment}'::regclass and op not in ('t', 'g')"
        );
        assert_eq!(number(&site.client, &elsewhere).await, 0);
    }
    assert!(
        writer
            .batch_execute("select from cloud_sync.outbox")
            .await
            .is_err()
    );
    site.run(&format!("drop owned by {role}; drop role {role}")).await;
}

#[tokio::test]
async fn rows_that_replication_applies_are_touched_by_the_row_trigger() {
    let site = tables("applied").await;
    // Given that only row triggers fire, and that the search path is empty, as in an apply worker
    let mut disable = String::new();
    for (table, id) in [("num", 1), ("pair", 3), ("part", 4), ("part_1", 4), ("part_2", 4)] {
        for event in ["insert", "update", "delete"] {
            disable.push_str(&format!(
                "alter table {table} disable trigger cloud_sync_{id}_{event};"
            ));
        }
    }
    site.run(&disable).await;
    let writer = connect(&site.database_url).await;
    let ordinary = touched(&site, &writer, "insert into public.num values (1)").await;
    assert!(ordinary.is_empty(), "{ordinary:?}");
    writer
        .batch_execute("set session_replication_role = replica; set search_path = ''")
        .await
        .unwrap();
    for (sql, expected) in [
        ("insert into public.num values (2)", vec!["num w #2"]),
        ("update public.num set v = 'x' where id = 1", vec!["num w #1"]),
        (
            "update public.num set id = 3 where id = 1",
            vec!["num m #1", "num w #3"],
        ),
        ("delete from public.num where id = 3", vec!["num w #3"]),
        ("truncate public.num", vec!["num t -"]),
        ("insert into public.pair values (1, 'a')", vec!["pair w {1,a}"]),
        (
            "update public.pair set b = 'b'",
            vec!["pair m {1,a}", "pair w {1,b}"],
        ),
        ("insert into public.part values (1, 1)", vec!["part w {1,1}"]),
        ("update public.part_1 set v = 'x'", vec!["part w {1,1}"]),
    ] {
        assert_eq!(touched(&site, &writer, sql).await, expected, "{sql}");
    }
}

#[tokio::test]
async fn a_table_that_has_triggers_of_ours_can_become_a_partition() {
    let config = entity("note", "note", "\"id\"") + &entity("other", "other", "\"id\"");
    let tables = "create table note (id int primary key); create table other (id int primary key)";
    let site = Site::bare("attached", NOWHERE, KEY, tables, &config).await;
    site.init().await;
    // Given a captured table that becomes a partition of the one that takes its name
    site.run(
        "alter table note rename to old; create table note (like old including all) partition by range (id); \
         alter table note attach partition old for values from (0) to (100)",
    )
    .await;
    site.init().await;
    // when partitions come, leave and come back, and one is another entity's table, then nothing fails.
    site.run(
        "create table note_2 partition of note for values from (100) to (200); \
         alter table note detach partition old; \
         alter table note attach partition old for values from (0) to (100)",
    )
    .await;
    site.init().await;
    site.run(
        "alter table note detach partition note_2; \
         alter table note attach partition note_2 for values from (100) to (200); \
         alter table note attach partition other for values from (200) to (300)",
    )
    .await;
    let writer = connect(&site.database_url).await;
    let touches = touched(&site, &writer, "insert into note values (1), (101)").await;
    assert_eq!(touches, ["note w #1", "note w #101"]);
}

/// A session that listens, and what it has heard.
async fn listener(site: &Site) -> (Client, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let (listener, mut connection) = tokio_postgres::connect(&site.database_url, NoTls).await.unwrap();
    let (heard, hearing) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut messages = futures::stream::poll_fn(move |cx| connection.poll_message(cx));
        while let Some(Ok(message)) = messages.next().await {
            if let AsyncMessage::Notification(notification) = message {
                let _ = heard.send(notification.channel().to_owned());
            }
        }
    });
    listener.batch_execute("listen cloud_sync").await.unwrap();
    (listener, hearing)
}

#[tokio::test]
async fn writers_and_touches_notify_only_while_the_replicator_sleeps() {
    let site = Site::school("wake", NOWHERE, KEY).await;
    let (listener, mut hearing) = listener(&site).await;
    let touch = "select cloud_sync.touch(1::smallint, 'w', array[1::bigint], array[null])";
    for (until, notified) in [
        ("0", false),
        ("extract(epoch from clock_timestamp())::bigint + 60", true),
        // A replicator that was killed costs writers nothing once its time is over.
        ("extract(epoch from clock_timestamp())::bigint - 1", false),
    ] {
        site.run(&format!("select cloud_sync.set_state(null, {until})"))
            .await;
        for sql in [
            "insert into tbl_room (room_no) values (clock_timestamp()::text)",
            touch,
        ] {
            site.run(sql).await;
            // A notification comes before the answer of the listener's next query.
            listener.batch_execute("select").await.unwrap();
            let heard = std::iter::from_fn(|| hearing.try_recv().ok()).count();
            assert_eq!(heard, usize::from(notified), "{until}: {sql}");
        }
    }
    // touch() says which transaction it was.
    let same = format!("select ({touch}) - pg_current_xact_id()::text::bigint");
    assert_eq!(number(&site.client, &same).await, 0);
}

#[tokio::test]
async fn segment_and_time_are_set_side_by_side_and_neither_undoes_the_other() {
    let site = tables("state").await;
    let set = |arguments: &'static str| {
        let url = site.database_url.clone();
        async move {
            let client = connect(&url).await;
            for nth in 1..=200_i64 {
                let arguments = arguments.replace('#', &nth.to_string());
                client
                    .batch_execute(&format!("select cloud_sync.set_state({arguments})"))
                    .await
                    .unwrap();
            }
        }
    };
    tokio::join!(set("#, null"), set("null, #"));
    let state = number(&site.client, "select pg_sequence_last_value('cloud_sync.state')").await;
    assert_eq!((state & 65_535, state >> 16), (200, 200));
}

/// Trims a segment, with all accepted that a snapshot sees; the present one where none is given.
async fn trim(client: &Client, segment: i32, snapshot: Option<&str>) -> Option<i64> {
    let sql = "select cloud_sync.trim_segment(0, $1, coalesce($2::text::pg_snapshot, \
         pg_current_snapshot()), 9223372036854775807)";
    client
        .query_one(sql, &[&segment, &snapshot])
        .await
        .unwrap()
        .get(0)
}

async fn rotate(site: &Site, large: i64) -> bool {
    let row = site
        .client
        .query_one("select cloud_sync.rotate($1)", &[&large])
        .await;
    row.unwrap().get(0)
}

#[tokio::test]
async fn a_segment_is_truncated_only_when_all_in_it_is_accepted_and_nobody_writes_there() {
    let site = tables("trims").await;
    assert!(!rotate(&site, 0).await, "nothing is in it");
    // Given a touch of an open transaction, and one of a committed one
    let writer = connect(&site.database_url).await;
    writer
        .batch_execute("begin; insert into num values (1)")
        .await
        .unwrap();
    site.run("insert into num values (2)").await;
    assert_eq!(trim(&site.client, 0, None).await, None, "writers use it");
    assert!(rotate(&site, i64::MAX).await);
    // then its segment stays while the transaction is open, and as long as what it wrote was not accepted.
    let before = site
        .client
        .query_one("select pg_current_snapshot()::text", &[])
        .await
        .unwrap();
    let before: &str = before.get(0);
    assert_eq!(trim(&site.client, 0, None).await, None, "it is open");
    writer.batch_execute("commit").await.unwrap();
    assert_eq!(
        trim(&site.client, 0, Some(before)).await,
        None,
        "it was not accepted"
    );
    assert!(trim(&site.client, 0, None).await > Some(0));
    assert_eq!(trim(&site.client, 0, None).await, None, "it is empty");
    // A term that is not the present one trims nothing.
    site.run("insert into num values (3)").await;
    assert!(rotate(&site, i64::MAX).await);
    for sql in [
        "select cloud_sync.trim_segment(1, 1, pg_current_snapshot(), 9223372036854775807)",
        "select cloud_sync.hold_term(1)",
        "select cloud_sync.unpark(1, 1::smallint)",
    ] {
        let error = site.client.query(sql, &[]).await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "CS001", "{error}");
    }
    site.run("select cloud_sync.hold_term(0)").await;
}

#[tokio::test]
async fn a_touch_that_comes_between_the_look_and_the_lock_is_not_truncated() {
    let site = tables("looks").await;
    // Given a trim that has seen a segment whose touches are all accepted, and waits for the term before it
    // locks it
    site.run("insert into num values (1)").await;
    assert!(rotate(&site, i64::MAX).await);
    let snapshot = site
        .client
        .query_one("select pg_current_snapshot()::text", &[])
        .await
        .unwrap();
    let snapshot: String = snapshot.get(0);
    let other = connect(&site.database_url).await;
    other
        .batch_execute("begin; select from cloud_sync.term for update")
        .await
        .unwrap();
    let (trimmer, accepted) = (connect(&site.database_url).await, snapshot.clone());
    let trimming = tokio::spawn(async move { trim(&trimmer, 0, Some(&accepted)).await });
    let waiting = "select count(*) from pg_stat_activity where datname = current_database() \
         and wait_event_type = 'Lock' and query like '%trim_segment%' and pid <> pg_backend_pid()";
    let start = std::time::Instant::now();
    while number(&site.client, waiting).await == 0 {
        assert!(start.elapsed() < LIMIT, "it never waits");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    // when a writer who had chosen the segment before commits there
    site.run("insert into cloud_sync.segment_0 (entity, op, number) values (1, 'w', 2)")
        .await;
    other.batch_execute("commit").await.unwrap();
    // then the segment stays.
    assert_eq!(trimming.await.unwrap(), None);
    let left = "select count(*) from cloud_sync.segment_0";
    assert_eq!(number(&site.client, left).await, 2);
}

#[tokio::test]
async fn segments_that_are_held_are_passed_over_and_a_fifth_is_made_only_when_it_must_be() {
    let site = tables("fifth").await;
    // Given a transaction that holds each of the four segments
    let holder = connect(&site.database_url).await;
    holder.batch_execute("begin").await.unwrap();
    for segment in 0..4 {
        let insert = |number: i32| format!("insert into num values ({number})");
        holder.batch_execute(&insert(segment * 10)).await.unwrap();
        site.run(&insert(segment * 10 + 1)).await;
        assert_eq!(
            rotate(&site, i64::MAX).await,
            segment < 3,
            "none is made while this one is small"
        );
    }
    for segment in 0..4 {
        assert_eq!(trim(&site.client, segment, None).await, None);
    }
    // when it must be, then another is made, and writers go on there.
    assert!(rotate(&site, 1).await);
    let writer = connect(&site.database_url).await;
    let script = "insert into num values (100);\nupdate num set id = 101 where id = 100;\ndelete from num \
         where id = 101;\n\
         select cloud_sync.touch(1::smallint, 'w', array[5::bigint], array[null])";
    let touches = touched(&site, &writer, script).await;
    assert_eq!(
        touches,
        ["num m #100", "num w #100", "num w #101", "num w #101", "num w #5"]
    );
    assert_eq!(
        number(&site.client, "select count(*) from cloud_sync.segment_4").await,
        5
    );
    // The held ones come back when the holder has ended, and the first of them is used again.
    holder.batch_execute("commit").await.unwrap();
    for segment in 0..4 {
        assert!(trim(&site.client, segment, None).await.is_some(), "{segment}");
    }
    assert!(rotate(&site, i64::MAX).await);
    assert!(trim(&site.client, 4, None).await.is_some());
    let segment = "select pg_sequence_last_value('cloud_sync.state') & 65535";
    assert_eq!(number(&site.client, segment).await, 0);
}

#[tokio::test]
async fn no_touch_is_truncated_before_it_was_accepted_while_writers_come_and_go() {
    const WRITERS: i64 = 3;
    const COMMITS: i64 = 150;
    let site = tables("trimstorm").await;
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let url = site.database_url.clone();
            tokio::spawn(async move {
                let client = connect(&url).await;
                for nth in writer * COMMITS..(writer + 1) * COMMITS {
                    let insert = format!("begin; insert into num values ({nth})");
                    client.batch_execute(&insert).await.unwrap();
                    client.batch_execute("commit").await.unwrap();
                }
            })
        })
        .collect();
    // Whoever accepts notes all that a snapshot shows, then trims by that snapshot.
    let mut accepted = BTreeSet::new();
    loop {
        let done = writers.iter().all(tokio::task::JoinHandle::is_finished);
        site.run("begin isolation level repeatable read").await;
        let snapshot = site
            .client
            .query_one("select pg_current_snapshot()::text", &[])
            .await
            .unwrap();
        let rows = site
            .client
            .query("select number from cloud_sync.outbox", &[])
            .await
            .unwrap();
        accepted.extend(rows.iter().map(|row| row.get::<_, i64>(0)));
        site.run("commit").await;
        for segment in 0..4 {
            trim(&site.client, segment, Some(snapshot.get(0))).await;
        }
        rotate(&site, i64::MAX).await;
        if done {
            break;
        }
    }
    assert_eq!(accepted.len() as i64, WRITERS * COMMITS);
}

#[tokio::test]
async fn a_window_is_read_along_the_segments_indexes_and_never_sorted() {
    let site = Site::school("ordered", NOWHERE, KEY).await;
    // Given statistics of touches that are trimmed by now, as if hardly any lay above them
    let fill = async |from: i64| {
        site.run(&format!(
            "insert into tbl_room (room_no) select n::text from generate_series({from}, {from} + 19999) n"
        ))
        .await;
    };
    fill(1).await;
    site.run("analyze cloud_sync.segment_0; truncate cloud_sync.segment_0")
        .await;
    fill(20_001).await;
    // when a session reads windows as the drain does, then its plans sort nothing and scan no segment.
    let client = connect(&site.database_url).await;
    client.batch_execute(outbox::READING).await.unwrap();
    for (window, types, values) in [
        (
            outbox::WINDOW,
            "bigint, text, text, bigint",
            "20001, '9000:9000:', '3:3:', 5000",
        ),
        (outbox::OPEN_WINDOW, "bigint, text, bigint", "20001, '3:3:', 5000"),
    ] {
        let explain = format!(
            "prepare batch ({types}) as {window}; explain execute batch ({values}); deallocate batch"
        );
        let plan = client.simple_query(&explain).await.unwrap();
        let plan: Vec<_> = plan
            .iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => row.get(0),
                _ => None,
            })
            .collect();
        let plan = plan.join("\n");
        assert!(plan.contains("segment_0_position"), "{plan}");
        assert!(!plan.contains("->  Sort") && !plan.contains("Seq Scan"), "{plan}");
    }
}

#[tokio::test]
async fn a_schema_of_the_version_that_wrote_rows_is_refused_with_the_remedy() {
    let tables = "create table num (id int primary key); create schema cloud_sync; \
         create table cloud_sync.outbox_0 ()";
    let text = Site::refusal("oldschema", tables, &entity("num", "num", "\"id\"")).await;
    for words in [
        "older version",
        "cloud-sync uninstall",
        "cloud-sync init",
        "cloud-sync sync",
    ] {
        assert!(text.contains(words), "no {words:?} in: {text}");
    }
}

#[tokio::test]
async fn a_gap_is_marked_where_values_change_without_a_touch_and_nowhere_else() {
    let tables = "create type mood as enum ('a', 'b'); create type pair as (x int, y int); \
         create table note (id int primary key, n int, t text, e mood, c pair, es mood[])";
    let site = Site::bare("shapes", NOWHERE, KEY, tables, &entity("note", "note", "\"id\"")).await;
    site.init().await;
    site.run("insert into note values (1, 1, 't', 'a', (1, 2), '{a}')")
        .await;
    let gap = async || -> bool {
        let note = "select cloud_sync.note_shape(id, relid) from cloud_sync.entity";
        site.client.query_one(note, &[]).await.unwrap().get(0)
    };
    for (sql, marked) in [
        ("select", false),
        ("alter table note alter n type int using n + 1", true),
        ("alter table note rename t to u", true),
        ("alter type mood rename value 'a' to 'z'", true),
        ("alter type pair add attribute z int", true),
        ("alter table note add d int default 5", true),
        (
            "alter table note add g int generated always as (id * 2) stored",
            true,
        ),
        ("alter table note add f int", false),
        ("alter type mood add value 'q'", false),
        ("alter table note drop f", false),
        ("vacuum full note", false),
        ("analyze note", false),
        ("truncate note", false),
        ("create index on note (n)", false),
    ] {
        site.run(sql).await;
        assert_eq!(gap().await, marked, "{sql}");
        assert!(!gap().await, "it is known: {sql}");
    }
    let kept = "select count(gap) from cloud_sync.entity";
    assert_eq!(number(&site.client, kept).await, 1);
}

#[tokio::test]
async fn a_key_that_is_touched_as_number_and_as_text_is_sent_once() {
    let cloud = Cloud::start("domain").await;
    let table = "create domain whole as bigint; create table num (id whole primary key, v text)";
    let site = Site::bare("domain", &cloud.url, KEY, table, &entity("num", "num", "\"id\"")).await;
    site.init().await;
    site.run(
        "insert into num values (1, 'a'); select cloud_sync.touch(1::smallint, 'w', array[1::bigint], \
         array[null])",
    )
    .await;
    let forms = "select count(number) * 10 + count(key) from cloud_sync.outbox";
    assert_eq!(number(&site.client, forms).await, 11);
    let drain = site.drain();
    drain.drain_all().await.unwrap();
    assert_eq!(drain.state.metrics.accepted_total(), 1);
    site.assert_equal(&cloud).await;
}

#[tokio::test]
async fn a_truncate_of_the_whole_table_leaves_no_gap_and_one_of_a_partition_does() {
    let cloud = Cloud::start("emptied").await;
    let config = entity("part", "part", "\"id\", \"day\"");
    let site = Site::bare("emptied", &cloud.url, KEY, TABLES, &config).await;
    site.init().await;
    for (sql, marked) in [
        ("insert into part values (1, 1), (2, 101)", false),
        (
            "begin; truncate part; insert into part values (3, 3), (4, 104); commit",
            false,
        ),
        ("truncate part_2", true),
    ] {
        site.run(sql).await;
        site.drain().drain_all().await.unwrap();
        let gaps = number(&site.client, "select count(gap) from cloud_sync.entity").await;
        assert_eq!(gaps, i64::from(marked), "{sql}");
        if !marked {
            site.assert_equal(&cloud).await;
        }
    }
}

#[tokio::test]
async fn accepted_changes_give_their_space_back_and_unread_ones_never_go() {
    let (cloud, site) = Site::school_with_cloud("trim").await;
    let in_outbox = async || -> (i64, i64) {
        let row = site
            .client
            .query_one(
                "select count(*), (select sum(pg_relation_size('cloud_sync.segment_' || segment))::bigint \
                 from generate_series(0, 3) segment) from cloud_sync.outbox",
                &[],
            )
            .await
            .unwrap();
        (row.get(0), row.get(1))
    };
    // Given a transaction elsewhere that stays open
    let elsewhere = connect(&site.database_url).await;
    elsewhere
        .batch_execute("create table elsewhere (x int); begin; insert into elsewhere values (1)")
        .await
        .unwrap();
    // and changes that are accepted: their space is back at the operating system's level.
    site.run("insert into tbl_room (room_no) select 'R' || n from generate_series(1, 5000) n")
        .await;
    assert!(in_outbox().await.1 > 0);
    site.drain().drain_all().await.unwrap();
    assert_eq!(in_outbox().await, (0, 0));
    // A writer's uncommitted change in the same segment is never dropped.
    let writer = connect(&site.database_url).await;
    writer
        .batch_execute("begin; insert into tbl_room (room_no) values ('uncommitted')")
        .await
        .unwrap();
    site.run("insert into tbl_room (room_no) values ('committed')")
        .await;
    site.drain().drain_all().await.unwrap();
    writer.batch_execute("commit").await.unwrap();
    assert_eq!(in_outbox().await.0, 2);
    site.drain().drain_all().await.unwrap();
    assert_eq!(in_outbox().await.0, 0);
    site.assert_equal(&cloud).await;
}

#[tokio::test]
async fn a_dump_restored_elsewhere_is_noticed_and_the_remedy_works() {
    let site = Site::school("restored", NOWHERE, KEY).await;
    site.run("insert into tbl_room (room_no) values ('R1')").await;
    site.run("update cloud_sync.identity set system_id = 'another server/db'")
        .await;
    let url = site.settings.require_database_url().unwrap();
    let error = install::init(url, &site.settings.catalogue, OutboxDeclaration::Nothing)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Identity);
    assert!(error.to_string().contains("init --new-epoch"), "{error}");
    let renewed = install::init(url, &site.settings.catalogue, OutboxDeclaration::NewEpoch)
        .await
        .unwrap();
    assert_eq!(renewed.epoch, 2);
}

#[tokio::test]
async fn an_outbox_behind_its_checkpoint_is_noticed_and_the_remedy_works() {
    let (cloud, site) = Site::school_with_cloud("behind").await;
    site.run("insert into tbl_room (room_no) select 'R' || n from generate_series(1, 100) n")
        .await;
    site.drain().drain_all().await.unwrap();
    // Given the sequence of an older dump
    site.run("select setval('cloud_sync.position', 5)").await;
    site.run("insert into tbl_room (room_no) values ('restored')")
        .await;
    let error = site.drain().drain_all().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Identity, "{error}");
    assert!(error.to_string().contains("init --new-epoch"), "{error}");
    // When the outbox is declared a new one, and both sides are compared
    let url = site.settings.require_database_url().unwrap();
    install::init(url, &site.settings.catalogue, OutboxDeclaration::NewEpoch)
        .await
        .unwrap();
    let replicator = site.replicate();
    let synced = replicator
        .replicator
        .sync(&Default::default(), &cloud_sync::reconcile::NoObserver)
        .await
        .unwrap();
    // Then all is there.
    assert!(synced.success(), "{:?}", synced.errors());
    replicator.caught_up().await;
    site.assert_equal(&cloud).await;
    replicator.end().await;
}
