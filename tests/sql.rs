//! What is installed in the site's database: capture, its catalogue's checks, the wake-up, the trim.

use cloud_sync::catalogue::Catalogue;
use cloud_sync::error::Kind;
use cloud_sync::source::capture::WAKE_LOCK;
use cloud_sync::source::connect::Session;
use cloud_sync::source::outbox::Outbox;
use cloud_sync::source::{describe, install, recapture};
use futures::StreamExt;
use tokio_postgres::{AsyncMessage, NoTls, SimpleQueryMessage};

use crate::support::site::{Cloud, KEY, LIMIT, Site, connect};

const NOWHERE: &str = "http://127.0.0.1:9/api";

/// What `init` says to this catalogue on these tables.
async fn refusal(hint: &str, tables: &str, entities: &str) -> String {
    let site = Site::bare(hint, NOWHERE, KEY, tables, entities).await;
    let url = site.settings.require_database_url().unwrap();
    let error = install::init(url, &site.settings.catalogue, false)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Config, "{error}");
    error.to_string()
}

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
        refusal("no_table", "", &entity("rooms", "tbl_rom", "\"id\"")).await,
        &["tbl_rom", "rooms", "no such table", "take the entity out"],
    );
    has(
        refusal("no_column", table, &entity("a", "a", "\"idd\"")).await,
        &["no column idd", "key", "is id meant?"],
    );
    has(
        refusal("no_key", "create table k (id int);", &entity("k", "k", "\"id\"")).await,
        &[
            "table k has no primary or unique key on (id)",
            "add a primary key",
        ],
    );
    has(
        refusal(
            "null_key",
            "create table k (id int unique);",
            &entity("k", "k", "\"id\""),
        )
        .await,
        &["key column id of table k may be null", "set not null"],
    );
    let two = format!("{table} create table b (id int primary key, a_id int references a);");
    let child_first = entity("b", "b", "\"id\"") + &entity("a", "a", "\"id\"");
    has(
        refusal("order", &two, &child_first).await,
        &["entity b refers to a", "list a before b"],
    );
    let circle = format!("{two} alter table a add foreign key (b_id) references b;");
    has(
        refusal("circle", &circle, &child_first).await,
        &["in a circle: b -> a -> b", "take one of them out"],
    );
    has(
        refusal(
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
    let tables = "create schema \"Annex\"; create table \"Annex\".\"Seat \"\"Plan\"\"\" (\"Row\" int, seat text, \
                  taken boolean not null default false, note numeric, primary key (\"Row\", seat));";
    let config = "[[entity]]\nname = \"seats\"\ntable = '\"Annex\".\"Seat \"\"Plan\"\"\"'\nkey = [\"Row\", \"seat\"]\n\
                  where = \"taken\"\n";
    let site = Site::bare("odd", &cloud.url, KEY, tables, config).await;
    site.init().await;
    let role = format!("writer_{}", std::process::id());
    site.run(&format!(
        "create role {role}; grant usage on schema \"Annex\" to {role}; grant all on \"Annex\".\"Seat \"\"Plan\"\"\" to {role}; \
         set role {role}; \
         insert into \"Annex\".\"Seat \"\"Plan\"\"\" select n, 'seat ' || n, true, 12345678901234567890.123456789 from generate_series(1, 9) n; \
         insert into \"Annex\".\"Seat \"\"Plan\"\"\" values (10, E'o\\'dd \\\\ \"name\" \\n', true), (11, 'free', false); \
         update \"Annex\".\"Seat \"\"Plan\"\"\" set taken = false where \"Row\" = 2; \
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
        "select (\"Row\", seat, note)::text from \"Annex\".\"Seat \"\"Plan\"\"\" where taken order by \"Row\"",
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
    let again = install::init(url, &site.settings.catalogue, false).await.unwrap();
    assert_eq!(
        (again.unchanged.len(), again.attached.len(), again.epoch),
        (9, 0, 1)
    );
    // A trigger that someone disabled is put right.
    site.run("alter table tbl_room disable trigger cloud_sync_update")
        .await;
    let mended = install::init(url, &site.settings.catalogue, false).await.unwrap();
    assert_eq!(mended.attached, ["rooms"]);
    let renewed = install::init(url, &site.settings.catalogue, true).await.unwrap();
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

#[tokio::test]
async fn writers_look_for_no_sleeper_before_the_first_replicator_and_after_one_that_ended() {
    let cloud = Cloud::start("sleeper").await;
    let site = Site::school("sleeper", &cloud.url, KEY).await;
    let may_sleep = async || -> bool {
        let state = "select coalesce(pg_sequence_last_value('cloud_sync.slot'), 1) & 1 = 1";
        site.client.query_one(state, &[]).await.unwrap().get(0)
    };
    assert!(!may_sleep().await);
    let running = site.replicate();
    running.caught_up().await;
    let start = std::time::Instant::now();
    while !may_sleep().await {
        assert!(start.elapsed() < LIMIT, "it never lies down");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    running.end().await;
    assert!(!may_sleep().await);
}

#[tokio::test]
async fn writers_notify_only_while_the_replicator_sleeps() {
    let site = Site::school("wake", NOWHERE, KEY).await;
    let (listener, mut connection) = tokio_postgres::connect(&site.database_url, NoTls).await.unwrap();
    let (heard, mut hearing) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut messages = futures::stream::poll_fn(move |cx| connection.poll_message(cx));
        while let Some(Ok(message)) = messages.next().await {
            if let AsyncMessage::Notification(notification) = message {
                let _ = heard.send(notification.channel().to_owned());
            }
        }
    });
    listener.batch_execute("listen cloud_sync").await.unwrap();
    let insert = async |number: i32| {
        site.run(&format!("insert into tbl_room (room_no) values ('R{number}')"))
            .await;
    };
    // Awake: nobody notifies. A notification would have come before the answer of the listener's next query.
    insert(1).await;
    listener.batch_execute("select").await.unwrap();
    assert!(hearing.try_recv().is_err());
    // Asleep: the next commit does.
    let sleeper = connect(&site.database_url).await;
    site.run("select cloud_sync.asleep(true)").await;
    sleeper
        .execute("select pg_advisory_lock($1)", &[&WAKE_LOCK])
        .await
        .unwrap();
    insert(2).await;
    let channel = tokio::time::timeout(LIMIT, hearing.recv()).await.unwrap();
    assert_eq!(channel.as_deref(), Some("cloud_sync"));
    // A statement that changes nothing wakes no one.
    site.run("update tbl_room set room_name = 'x' where room_id < 0")
        .await;
    listener.batch_execute("select").await.unwrap();
    assert!(hearing.try_recv().is_err());
    // So do rows, and deletions, that are captured anew, without a trigger: the row of a file that was uploaded above all.
    let catalogue = Catalogue::builtin();
    let tables = describe::tables(&site.client, &catalogue).await.unwrap();
    let attached = install::attached(&site.client, &catalogue, &tables)
        .await
        .unwrap();
    let (rooms, table, number) = (&catalogue.entities()[0], &tables[0], attached[0].id);
    for (key, rows, deletes) in [(1, 1, 0), (99, 0, 1)] {
        let keys = [format!("{{\"room_id\": {key}}}")];
        let again = recapture::rows(&site.client, rooms, table, number, &keys).await;
        let gone = recapture::deletes(&site.client, rooms, table, number, &keys).await;
        assert_eq!(
            (again.unwrap().rows.len(), gone.unwrap().rows.len()),
            (rows, deletes)
        );
        let channel = tokio::time::timeout(LIMIT, hearing.recv()).await.unwrap();
        assert_eq!(channel.as_deref(), Some("cloud_sync"));
        listener.batch_execute("select").await.unwrap();
        assert!(
            hearing.try_recv().is_err(),
            "what captured nothing notifies no one"
        );
    }
    // Awake again, they notify no one either.
    sleeper
        .execute("select pg_advisory_unlock($1)", &[&WAKE_LOCK])
        .await
        .unwrap();
    let keys = ["{\"room_id\": 1}".to_owned()];
    recapture::rows(&site.client, rooms, table, number, &keys)
        .await
        .unwrap();
    listener.batch_execute("select").await.unwrap();
    assert!(hearing.try_recv().is_err());
}

#[tokio::test]
async fn a_newer_program_leaves_the_functions_of_an_older_schema_until_init() {
    let site = Site::school("older", NOWHERE, KEY).await;
    // Given a schema and functions of an older version
    site.run("delete from cloud_sync._sqlx_migrations where version = (select max(version) from cloud_sync._sqlx_migrations); \
              update cloud_sync.entity set definition = 'older'")
        .await;
    // when the guard would make the functions anew, then it is refused with the remedy: they would fail the site's writers.
    let (entity, client) = (&site.settings.catalogue.entities()[0], &site.client);
    let tables = describe::tables(client, &site.settings.catalogue).await.unwrap();
    let error = install::attach(client, entity, &tables[0]).await.unwrap_err();
    assert!(error.to_string().contains("cloud-sync init"), "{error}");
    site.run("insert into tbl_room (room_no) values ('A')").await;
}

#[tokio::test]
async fn a_window_is_read_along_the_slots_indexes_and_never_sorted() {
    let site = Site::school("ordered", NOWHERE, KEY).await;
    // Given statistics of changes that are trimmed by now, as if hardly any lay above them
    let fill = async |from: i64| {
        site.run(&format!(
            "insert into tbl_room (room_no, room_name) \
             select n::text, repeat('x', 200) from generate_series({from}, {from} + 19999) n"
        ))
        .await;
    };
    fill(1).await;
    site.run("analyze cloud_sync.outbox_0; truncate cloud_sync.outbox_0")
        .await;
    fill(20_001).await;
    // when a session is made ready to read windows, then its plan for a batch sorts nothing.
    let session = Session::open(site.settings.require_database_url().unwrap(), "plans")
        .await
        .unwrap();
    Outbox::prepare(&session, &[], &[]).await.unwrap();
    for (window, types, values) in [
        (include_str!("../sql/window.sql"), ", bigint", ", 4000000"),
        (include_str!("../sql/window_small.sql"), "", ""),
    ] {
        let plan = session
            .client()
            .simple_query(&format!(
                "prepare batch (bigint, text, text, bigint{types}) as {window}; \
                 explain execute batch (20001, '9000:9000:', '3:3:', 5000{values}); deallocate batch"
            ))
            .await
            .unwrap();
        let plan: Vec<_> = plan
            .iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => row.get(0),
                _ => None,
            })
            .collect();
        let plan = plan.join("\n");
        assert!(plan.contains("outbox_0_position"), "{plan}");
        assert!(!plan.contains("->  Sort") && !plan.contains("Seq Scan"), "{plan}");
    }
}

#[tokio::test]
async fn accepted_changes_give_their_space_back_and_unread_ones_never_go() {
    let cloud = Cloud::start("trim").await;
    let site = Site::school("trim", &cloud.url, KEY).await;
    let in_outbox = async || -> (i64, i64) {
        let row = site
            .client
            .query_one(
                "select count(*), (select sum(pg_relation_size('cloud_sync.outbox_' || slot))::bigint \
                 from generate_series(0, 3) slot) from cloud_sync.outbox",
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
    // A writer's uncommitted change in the same slot is never dropped.
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
    let error = install::init(url, &site.settings.catalogue, false)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Identity);
    assert!(error.to_string().contains("init --new-epoch"), "{error}");
    let renewed = install::init(url, &site.settings.catalogue, true).await.unwrap();
    assert_eq!(renewed.epoch, 2);
}

#[tokio::test]
async fn an_outbox_behind_its_checkpoint_is_noticed_and_the_remedy_works() {
    let cloud = Cloud::start("behind").await;
    let site = Site::school("behind", &cloud.url, KEY).await;
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
    install::init(url, &site.settings.catalogue, true).await.unwrap();
    let replicator = site.replicate();
    let synced = replicator
        .replicator
        .sync(&Default::default(), &cloud_sync::reconcile::Unobserved)
        .await
        .unwrap();
    // Then all is there.
    assert!(synced.success(), "{:?}", synced.errors());
    replicator.caught_up().await;
    site.assert_equal(&cloud).await;
    replicator.end().await;
}
