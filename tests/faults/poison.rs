//! Changes that the cloud refuses: they stand aside, the rest flows, and they come back when what was wrong
//! is mended.

use std::time::Duration;

use cloud_sync::control::status::ReplicatorState;
use cloud_sync::quarantine;
use cloud_sync::reconcile::NoObserver;
use cloud_sync::reconcile::backfill::RowSpan;
use cloud_sync::replicator;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::support::baseline::{self, BaselineServer};
use crate::support::fault::Fault;
use crate::support::oracle::Tally;
use crate::support::process::Daemon;
use crate::support::site::{Cloud, KEY, Site, connect};
use crate::support::sql::number;

const SCHOOL: &str = include_str!("../../sql/sample_school.sql");

/// A room that is refused, its cameras, and what these saw: three floors of children.
const FAMILY: &str = "
    insert into tbl_room (room_no, room_name) values ('R1', 'bad'), ('R2', 'good');
    insert into tbl_camera (camera_name, room_no) select 'c' || n, 'R' || 1 + n % 2 \
    from generate_series(1, 40) n;
    insert into tbl_recognition_logs (camera_id, status) select 1 + n % 40, 's' \
    from generate_series(1, 200) n;";

#[tokio::test]
async fn rows_without_their_parent_wait_aside_and_follow_it_on_servers_without_positions() {
    for capabilities in [&[][..], &["bulk", "delete"]] {
        let hint = format!("family_{}", capabilities.len());
        let server = BaselineServer::start(&cloud_sync::catalogue::Catalogue::builtin(), capabilities).await;
        server.require("cameras", "room_no", "rooms", "room_no");
        server.require("recognition-logs", "camera_id", "cameras", "camera_id");
        server.fault(Fault::status(422).when(|row: &Value| row["room_name"] == "bad"));
        let site = Site::school(&hint, &server.url(), baseline::KEY).await;
        let tally = Tally {
            faults: 1,
            ..Tally::default()
        };
        let replicator = site.replicate();
        // Given a room that is refused, and so are all below it
        site.run(FAMILY).await;
        let status = replicator.caught_up().await;
        assert_eq!(status.quarantine, Some(1 + 20 + 100));
        let entries = quarantine::list(&site.client, Some("cameras")).await.unwrap();
        assert!(
            entries
                .iter()
                .all(|entry| (entry.code, entry.attempts) == (409, 1))
        );
        // when it is mended, then they follow by themselves, floor by floor.
        site.run("update tbl_room set room_name = 'good' where room_no = 'R1'")
            .await;
        replicator
            .until("all accepted", |status| {
                status.quarantine == Some(0) && status.lag.is_some_and(|lag| lag.changes == 0)
            })
            .await;
        assert_eq!(server.count("rooms"), 2);
        assert_eq!(server.count("cameras"), 40);
        assert_eq!(server.count("recognition-logs"), 200);
        replicator.end().await;
        drop(tally);
    }
}

#[tokio::test]
async fn rows_without_their_parent_wait_aside_and_follow_it_on_a_server_with_positions() {
    let (cloud, site) = Site::school_with_cloud("family").await;
    let there = connect(&cloud.database_url).await;
    let mut tally = Tally::default();
    let replicator = site.replicate();
    site.run(
        "insert into tbl_camera (camera_name) values ('first'); \
         insert into tbl_room (room_no) values ('first'); \
              insert into tbl_recognition_logs (status) values ('first')",
    )
    .await;
    replicator.caught_up().await;
    // Given a cloud whose owner has added foreign keys and a check
    there
        .batch_execute(
            "alter table cloud.rooms add unique (_site, room_no), add check (room_name <> 'bad'); \
             alter table cloud.cameras add foreign key (_site, room_no) references cloud.rooms (_site, \
             room_no); \
             alter table cloud.recognition_logs add foreign key (_site, camera_id) references cloud.cameras",
        )
        .await
        .unwrap();
    tally.faults += 1;
    let id = number(&site.client, "select max(camera_id) from tbl_camera").await;
    site.run(&FAMILY.replace("select 1 + n % 40", &format!("select {id} + 1 + n % 40")))
        .await;
    assert_eq!(replicator.caught_up().await.quarantine, Some(1 + 20 + 100));
    site.run("update tbl_room set room_name = 'good' where room_no = 'R1'")
        .await;
    replicator
        .until("all accepted", |status| {
            status.quarantine == Some(0) && status.lag.is_some_and(|lag| lag.changes == 0)
        })
        .await;
    replicator.end().await;
    tally.judge(&site, &cloud).await;
    site.assert_equal(&cloud).await;
}

#[tokio::test]
async fn a_child_that_is_bad_for_another_reason_is_not_retried_for_ever() {
    let server = BaselineServer::start(&cloud_sync::catalogue::Catalogue::builtin(), &[]).await;
    server.fault(Fault::status(422).when(|row: &Value| row["camera_name"] == "bad"));
    let site = Site::school("stubborn", &server.url(), baseline::KEY).await;
    let _tally = Tally {
        faults: 1,
        ..Tally::default()
    };
    let replicator = site.replicate();
    site.run(
        "insert into tbl_room (room_no) values ('R1'); \
         insert into tbl_camera (camera_name, room_no) values ('bad', 'R1')",
    )
    .await;
    // Given a parent that changes again and again
    for nth in 0..20 {
        site.run(&format!("update tbl_room set room_name = 'name {nth}'"))
            .await;
        replicator.caught_up().await;
    }
    let status = replicator.caught_up().await;
    assert_eq!(status.quarantine, Some(1));
    let sent = server
        .calls()
        .iter()
        .filter(|call| *call == "POST cameras")
        .count();
    let attempts = quarantine::list(&site.client, None).await.unwrap()[0].attempts;
    assert_eq!(attempts, 10);
    assert!((10..30).contains(&sent), "{sent}");
    replicator.end().await;
}

#[tokio::test]
async fn rows_of_one_table_that_need_each_other_find_their_order() {
    let tables =
        "create table node (node_id bigint primary key, parent_id bigint references node, slot text unique)";
    let config = "[[entity]]\nname = \"nodes\"\ntable = \"node\"\nkey = [\"node_id\"]\npath = \"nodes\"\n";
    for capabilities in [&[][..], &["bulk"]] {
        // Given a server that wants a row's parent, in the same table, first
        let hint = format!("tree_{}", capabilities.len());
        let mut site = Site::bare(&hint, "http://127.0.0.1:1/api", baseline::KEY, tables, config).await;
        let server = BaselineServer::start(&site.settings.catalogue, capabilities).await;
        server.require("nodes", "parent_id", "nodes", "node_id");
        site.settings.cloud.url = Some(server.url().parse().unwrap());
        site.init().await;
        let _tally = Tally {
            faults: 1,
            ..Tally::default()
        };
        // when a tree comes in one transaction, its leaves last, and once more with its root last,
        site.run("insert into node select n, nullif(n / 2, 0) from generate_series(1, 60) n")
            .await;
        let replicator = site.replicate();
        assert_eq!(replicator.caught_up().await.quarantine, Some(0));
        site.run(
            "begin; alter table node drop constraint node_parent_id_fkey; \
             insert into node select 1000 - n, case when n > 0 then 1001 - n end \
             from generate_series(40, 0, -1) n; \
             alter table node add constraint node_parent_id_fkey foreign key (parent_id) references node; \
             commit",
        )
        .await;
        // then all of it is accepted.
        replicator
            .until("all accepted", |status| {
                status.quarantine == Some(0) && status.lag.is_some_and(|lag| lag.changes == 0)
            })
            .await;
        assert_eq!(server.count("nodes"), 101);
        replicator.end().await;
    }
}

#[tokio::test]
async fn a_refused_row_leaves_when_it_is_mended_deleted_or_truncated() {
    let (cloud, site) = Site::school_with_cloud("mended").await;
    let there = connect(&cloud.database_url).await;
    let mut tally = Tally::default();
    let replicator = site.replicate();
    site.run("insert into tbl_room (room_no) values ('first')").await;
    replicator.caught_up().await;
    there
        .batch_execute("alter table cloud.rooms add constraint odd check (room_name <> 'bad')")
        .await
        .unwrap();
    tally.faults += 1;
    let bad = "insert into tbl_room (room_id, room_no, room_name) overriding system value \
               select n, 'B' || n, 'bad' from generate_series(11, 14) n";
    site.run(bad).await;
    assert_eq!(replicator.caught_up().await.quarantine, Some(4));
    site.run("update tbl_room set room_name = 'good' where room_id = 11")
        .await;
    assert_eq!(replicator.caught_up().await.quarantine, Some(3));
    site.run("delete from tbl_room where room_id = 12").await;
    assert_eq!(replicator.caught_up().await.quarantine, Some(2));
    site.run("update tbl_room set room_id = 15, room_name = 'good' where room_id = 13")
        .await;
    assert_eq!(replicator.caught_up().await.quarantine, Some(1));
    site.run("truncate tbl_room cascade; insert into tbl_room (room_no) values ('last')")
        .await;
    assert_eq!(replicator.caught_up().await.quarantine, Some(0));
    replicator.end().await;
    tally.judge(&site, &cloud).await;
    site.assert_equal(&cloud).await;
}

#[tokio::test]
async fn a_row_that_a_backfill_had_refused_leaves_when_the_drain_brings_it() {
    let cloud = Cloud::start("filled").await;
    let site = Site::bare("filled", &cloud.url, KEY, SCHOOL, "").await;
    let there = connect(&cloud.database_url).await;
    let mut tally = Tally::default();
    // Given rows from before capture, and a running drain
    site.run("insert into tbl_room (room_no, room_name) values ('R1', 'bad'), ('R2', 'good')")
        .await;
    site.init().await;
    let replicator = site.replicate();
    site.run("insert into tbl_room (room_no) values ('first')").await;
    replicator.caught_up().await;
    there
        .batch_execute("alter table cloud.rooms add constraint odd check (room_name <> 'bad')")
        .await
        .unwrap();
    tally.faults += 1;
    // when a backfill at the same time has one refused,
    let report = replicator::backfill(
        &site.settings,
        &[],
        RowSpan::Retention,
        false,
        &NoObserver,
        &CancellationToken::new(),
    )
    .await
    .unwrap();
    assert!(!report.success);
    assert_eq!(replicator.caught_up().await.quarantine, Some(1));
    // then the drain takes it out of quarantine once a good change of it is accepted.
    site.run("update tbl_room set room_name = 'good'").await;
    assert_eq!(replicator.caught_up().await.quarantine, Some(0));
    replicator.end().await;
    tally.judge(&site, &cloud).await;
    site.assert_equal(&cloud).await;
}

#[tokio::test]
async fn every_third_row_refused_lets_the_others_through() {
    let (cloud, site) = Site::school_with_cloud("third").await;
    let there = connect(&cloud.database_url).await;
    let mut tally = Tally::default();
    let replicator = site.replicate();
    site.run("insert into tbl_room (room_no) values ('first')").await;
    replicator.caught_up().await;
    there
        .batch_execute("alter table cloud.rooms add constraint odd check (room_name <> 'bad')")
        .await
        .unwrap();
    site.run(
        "insert into tbl_room (room_no, room_name) \
         select 'R' || n, case n % 3 when 0 then 'bad' else 'good' end from generate_series(1, 900) n",
    )
    .await;
    tally.faults += 300;
    assert_eq!(replicator.caught_up().await.quarantine, Some(300));
    assert_eq!(number(&there, "select count(*) from cloud.rooms").await, 601);
    site.run("update tbl_room set room_name = 'mended' where room_name = 'bad'")
        .await;
    assert_eq!(replicator.caught_up().await.quarantine, Some(0));
    replicator.end().await;
    tally.judge(&site, &cloud).await;
    site.assert_equal(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_refused_rows_hold_nothing_up_and_can_be_decided_on() {
    let server = BaselineServer::start(&cloud_sync::catalogue::Catalogue::builtin(), &[]).await;
    let site = Site::school("many", &server.url(), baseline::KEY).await;
    let daemon = Daemon::of(&site, "store");
    let mut tally = Tally::default();
    let bad = |row: &Value| {
        row["room_name"]
            .as_str()
            .is_some_and(|name| name.starts_with("bad"))
    };
    server.fault(Fault::status(422).on("rooms").when(bad));
    let process = daemon.start();
    // Given 20,000 rows of which 10,000 are refused, in between
    site.run(
        "insert into tbl_room (room_id, room_no, room_name) overriding system value select n, 'R' || n, \
         case n % 2 when 0 then 'bad' else 'good' end || repeat(' x', 200) from generate_series(1, 20000) n",
    )
    .await;
    let settled = |quarantine| {
        daemon.until("settled", Duration::from_secs(120), move |status| {
            status.state == ReplicatorState::Replicating
                && status.lag.is_some_and(|lag| lag.changes == 0)
                && status.quarantine == Some(quarantine)
        })
    };
    settled(10_000).await;
    tally.faults += 10_000;
    assert_eq!(server.count("rooms"), 10_000);
    // then a list is short, and says how many more there are,
    let ask = |arguments: &[&str]| {
        let output = daemon.ask(arguments);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let list = ask(&["quarantine", "list"]);
    assert!(list.lines().count() < 120 && list.contains("9900 more"), "{list}");
    let list: Value = serde_json::from_str(&ask(&["quarantine", "list", "--limit", "3", "--json"])).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 3);
    let positions: Vec<String> = (0..3).map(|nth| list[nth]["position"].to_string()).collect();
    assert!(ask(&["quarantine", "show", &positions[0]]).contains("bad x x"));
    // some are given up, some are sent again in vain, and then all with success.
    assert!(ask(&["quarantine", "discard", &positions[0]]).contains("1 refused changes are discarded"));
    assert!(ask(&["quarantine", "retry", &positions[1], &positions[2]]).contains("2 rows are sent again"));
    settled(9_999).await;
    server.clear_faults();
    assert!(ask(&["quarantine", "retry", "--all"]).contains("9999 rows are sent again"));
    settled(0).await;
    assert_eq!(server.count("rooms"), 19_999);
    assert!(ask(&["quarantine", "list"]).contains("the quarantine is empty"));
    let peak = process.peak_memory();
    println!("{:.1} MiB resident at the peak", peak as f64 / f64::from(1 << 20));
    assert!(peak < 96 << 20, "{peak} bytes");
    assert!(daemon.log().lines().count() < 1000, "a line for each refused row");
    assert!(process.terminate().await.success());
}
