//! Changes on their way, end to end: from committed statements to the receiver's tables.

use cloud_sync::drain::DrainStep;

use crate::support::oracle::assert_never_back;
use crate::support::site::{Cloud, KEY, Site, connect};

/// One room, and the number in its name, as the receiver has it.
async fn room_name(cloud: &Cloud, number: i64) -> Option<String> {
    connect(&cloud.database_url)
        .await
        .query_opt("select room_name from cloud.rooms where room_id = $1", &[&number])
        .await
        .unwrap()
        .map(|row| row.get(0))
}

const ROOM: &str = "insert into tbl_room (room_id, room_no, room_name) overriding system value values";

#[tokio::test]
async fn a_transaction_that_commits_late_below_the_read_position_is_not_lost() {
    let (cloud, site) = Site::school_with_cloud("late").await;
    let drain = site.drain();
    // Given a transaction that has taken its position and stays open
    let late = connect(&site.database_url).await;
    late.batch_execute(&format!("begin; {ROOM} (1, 'A1', 'late')"))
        .await
        .unwrap();
    // and a later one whose change was read and delivered
    site.run(&format!("{ROOM} (2, 'A2', 'early')")).await;
    drain.drain_all().await.unwrap();
    assert_eq!(room_name(&cloud, 2).await.as_deref(), Some("early"));
    // When the first one commits
    late.batch_execute("commit").await.unwrap();
    // Then its change arrives too.
    assert_eq!(drain.drain_once().await.unwrap(), DrainStep::Delivered);
    assert_eq!(room_name(&cloud, 1).await.as_deref(), Some("late"));
    site.assert_equal(&cloud).await;
}

#[tokio::test]
async fn a_transaction_that_no_snapshot_lists_is_read_from_its_first_change() {
    let (cloud, site) = Site::school_with_cloud("newest").await;
    let drain = site.drain();
    let mut stages = drain.open().await.unwrap();
    // Given a transaction with the newest number of all, which a snapshot's list of those in progress leaves
    // out
    let newest = connect(&site.database_url).await;
    newest
        .batch_execute(&format!("begin; {ROOM} (1, 'A1', 'first')"))
        .await
        .unwrap();
    // and a window that ends while it is amid its changes,
    assert_eq!(stages.step().await.unwrap(), DrainStep::Idle);
    newest
        .batch_execute(&format!("{ROOM} (2, 'A2', 'second'); commit"))
        .await
        .unwrap();
    // then the changes before that window arrive too.
    while stages.step().await.unwrap() == DrainStep::Delivered {}
    assert_eq!(room_name(&cloud, 1).await.as_deref(), Some("first"));
    assert_eq!(room_name(&cloud, 2).await.as_deref(), Some("second"));
    site.assert_equal(&cloud).await;
}

#[tokio::test]
async fn of_three_overlapping_transactions_a_row_keeps_its_order() {
    let (cloud, site) = Site::school_with_cloud("three").await;
    site.run(&format!("{ROOM} (1, 'A1', 'first'), (9, 'A9', 'other')"))
        .await;
    let drain = site.drain();
    drain.drain_all().await.unwrap();
    // Given the longest transaction, open, with a change of another row
    let longest = connect(&site.database_url).await;
    longest
        .batch_execute("begin; update tbl_room set room_name = 'longest' where room_id = 9")
        .await
        .unwrap();
    // and one that begins before the next and updates the row after it: its number is lower, its change is
    // later
    let second = connect(&site.database_url).await;
    second
        .batch_execute("begin; select pg_current_xact_id()")
        .await
        .unwrap();
    let third = connect(&site.database_url).await;
    third
        .batch_execute("begin; update tbl_room set room_name = 'earlier' where room_id = 1; commit")
        .await
        .unwrap();
    // When a window ends between the two updates
    assert_eq!(drain.drain_once().await.unwrap(), DrainStep::Delivered);
    assert_eq!(room_name(&cloud, 1).await.as_deref(), Some("earlier"));
    second
        .batch_execute("update tbl_room set room_name = 'later' where room_id = 1; commit")
        .await
        .unwrap();
    // Then the later update arrives while the longest is still open,
    drain.drain_all().await.unwrap();
    assert_eq!(room_name(&cloud, 1).await.as_deref(), Some("later"));
    // and the longest one's change when it commits, and nothing goes back.
    longest.batch_execute("commit").await.unwrap();
    drain.drain_all().await.unwrap();
    assert_eq!(room_name(&cloud, 9).await.as_deref(), Some("longest"));
    site.assert_equal(&cloud).await;
    assert_never_back(&cloud).await;
}

#[tokio::test]
async fn every_kind_of_statement_reaches_the_receiver() {
    let (cloud, site) = Site::school_with_cloud("kinds").await;
    let replicator = site.replicate();
    // insert, and a multi-row update
    site.run(
        "insert into tbl_room (room_no, room_name) select 'R' || n, 'room ' || n \
         from generate_series(1, 50) n; \
         update tbl_room set room_name = upper(room_name) where room_id <= 20; \
         insert into tbl_faculty (faculty_fname) select 'f' || n from generate_series(1, 30) n; \
         insert into tbl_camera (camera_name, room_no) select 'c' || n, 'R' || n \
         from generate_series(1, 10) n",
    )
    .await;
    // a key change, a swap of keys, a delete, and an upsert
    site.run("update tbl_room set room_id = 1000 where room_id = 50")
        .await;
    site.run("delete from tbl_room where room_id in (40, 41)").await;
    site.run(
        "insert into tbl_room (room_no, room_name) values ('R30', 'conflict'), ('R99', 'new') \
         on conflict (room_no) do update set room_name = excluded.room_name",
    )
    .await;
    // COPY
    let copy = site
        .client
        .copy_in("copy tbl_faculty (faculty_fname, faculty_lname) from stdin")
        .await
        .unwrap();
    futures::pin_mut!(copy);
    futures::SinkExt::send(
        &mut copy,
        bytes::Bytes::from_static(b"copied\tone\ncopied\ttwo\n"),
    )
    .await
    .unwrap();
    copy.finish().await.unwrap();
    // a cascade
    site.run(
        "insert into tbl_teaching_load (faculty_id, teaching_load_subject) select faculty_id, 's' \
         from tbl_faculty; delete from tbl_faculty where faculty_id <= 5",
    )
    .await;
    replicator.caught_up().await;
    site.assert_equal(&cloud).await;
    // a column added while running, of a type that needs its own image
    site.run(
        "alter table tbl_room add column room_capacity int, add column room_plan bytea; \
         update tbl_room set room_capacity = room_id, room_plan = '\\x00ff10' where room_id < 10",
    )
    .await;
    replicator.caught_up().await;
    site.assert_equal(&cloud).await;
    // TRUNCATE, and rows after it
    site.run(
        "truncate tbl_teaching_load cascade; insert into tbl_teaching_load (teaching_load_subject) \
         values ('after')",
    )
    .await;
    replicator.caught_up().await;
    site.assert_equal(&cloud).await;
    assert_never_back(&cloud).await;
    replicator.end().await;
}

#[tokio::test]
async fn of_keys_that_lie_close_together_each_row_arrives_and_each_gap_is_a_delete() {
    let cloud = Cloud::start("range").await;
    let tables = "create table item (item_id smallint primary key, amount int, note text)";
    let entities = "[[entity]]\nname = \"items\"\ntable = \"item\"\nkey = [\"item_id\"]\nwhere = \"100 / \
         amount > 0\"\n\
                    [[entity]]\nname = \"more\"\ntable = \"item\"\nkey = [\"item_id\"]\n";
    let site = Site::bare("range", &cloud.url, KEY, tables, entities).await;
    site.init().await;
    let drain = site.drain();
    // Given rows next to each other, at the ends of their type and around 0,
    let insert = "insert into item select n, 1 + abs(n) % 90 * case when n % 5 = 0 then 2 \
         else 1 end, 'first' from generate_series";
    for (from, to) in [(-32768, -32500), (-200, 200), (32400, 32767)] {
        site.run(&format!("{insert}({from}, {to}) n where n % 11 <> 0"))
            .await;
    }
    drain.drain_all().await.unwrap();
    // when some of them are deleted, some get another key, some no longer meet the condition, and for one it
    // has no value,
    site.run(
        "begin; update item set note = 'second'; delete from item where item_id % 7 = 0; \
         update item set item_id = item_id / 11 * 11 where item_id % 11 = 1 and item_id between 20 and 180; \
         update item set amount = 1000 where item_id % 13 = 0; \
         update item set amount = 0 where item_id = 5; commit",
    )
    .await;
    drain.drain_all().await.unwrap();
    // then the cloud has those that are there and meet the condition, as they are, and no others.
    let there = |sql: String, client: tokio_postgres::Client| async move {
        let rows = client.query(&sql, &[]).await.unwrap();
        let rows = rows.iter().map(|row| (row.get(0), row.get(1), row.get(2)));
        rows.collect::<Vec<(i16, Option<i32>, String)>>()
    };
    for (entity, met) in [("items", "amount between 1 and 100"), ("more", "true")] {
        let columns = "item_id, amount, note";
        let at_site = format!("select {columns} from item where {met} and item_id <> 5 order by 1");
        let in_cloud = format!("select {columns} from cloud.{entity} where item_id <> 5 order by 1");
        let expected = there(at_site, connect(&site.database_url).await).await;
        assert!(expected.len() > 500, "{}", expected.len());
        assert_eq!(
            there(in_cloud, connect(&cloud.database_url).await).await,
            expected,
            "{entity}"
        );
    }
    let aside = site
        .client
        .query("select key from cloud_sync.quarantine", &[])
        .await
        .unwrap();
    let aside: Vec<String> = aside.iter().map(|row| row.get(0)).collect();
    assert_eq!(
        aside,
        [r#"{"item_id":5}"#],
        "the row that the condition fails for is alone"
    );
}

#[tokio::test]
async fn a_cloud_that_comes_back_is_greeted_with_what_was_sent_meanwhile() {
    let (mut cloud, site) = Site::school_with_cloud("greeted").await;
    // Given a replicator that began on an empty outbox, and has delivered since
    let replicator = site.replicate();
    site.run(&format!("{ROOM} (1, 'A1', 'before')")).await;
    replicator.caught_up().await;
    // When the cloud goes away and comes back
    cloud.away().await;
    site.run(&format!("{ROOM} (2, 'A2', 'meanwhile')")).await;
    replicator
        .until("backing off", |status| {
            status.state == cloud_sync::control::status::ReplicatorState::BackingOff
        })
        .await;
    cloud.back().await;
    // Then it is known again, and gets what waited.
    replicator.caught_up().await;
    site.assert_equal(&cloud).await;
    replicator.end().await;
}
