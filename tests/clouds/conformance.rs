//! The program serves each kind of server: rows, updates, deletes, moves between two paths, files, refused
//! rows, and a sync that finds nothing to do.

use cloud_sync::control::StatusReport;
use cloud_sync::quarantine;
use serde_json::json;

use super::{connected, pushed, sync};

use crate::support::baseline::{BaselineServer, Quirks, Refusal};
use crate::support::site::{Running, Site, entity};

const TABLES: &str = "
    create table room (room_id int primary key, room_no text, note text);
    create table slip (slip_id int primary key, kind text not null, room_id int references room, image text,
        start_date date default current_date, created_at timestamptz not null default now())";

/// What can be expected of a server.
#[derive(Clone, Copy)]
struct Can {
    delete: bool,
    update: bool,
    files: bool,
    /// `leaves` and `passes` are one table there.
    one_table: bool,
}

const ALL: Can = Can {
    delete: true,
    update: true,
    files: true,
    one_table: false,
};

fn config() -> String {
    let slips = |kind: &str| {
        format!(
            "where = \"kind = '{kind}'\"\ncolumns = {{ created_at = {{ as = \"local datetime\", zone = \"Asia/Manila\" }} }}\n\
             files = [{{ column = \"image\", url_column = \"image\", directory = \"slips\", column_value = \"path\" }}]"
        )
    };
    [
        entity("rooms", "room", &["room_id"], ""),
        entity("leaves", "slip", &["slip_id"], &slips("leave")),
        entity("passes", "slip", &["slip_id"], &slips("pass")),
    ]
    .concat()
}

async fn still(running: &Running, aside: u64) -> StatusReport {
    running
        .until("still", |status| {
            status.quarantine == Some(aside)
                && status.lag.is_some_and(|lag| lag.changes == 0)
                && status.files.waiting == 0
        })
        .await
}

async fn serves(hint: &str, quirks: Quirks, cloud: &str, can: Can) {
    let passes_by_itself = quirks.refused != Refusal::Status4xx && quirks.refused != Refusal::Fields400;
    let (site, server) = connected(hint, quirks, cloud, TABLES, &config()).await;
    let running = site.replicate();
    let aside = if can.update { 0 } else { 3 };
    brings_rows_and_files(&site, &server, &running, can).await;
    // When rows change and go,
    site.run("update room set note = 'changed' where room_id <= 3; delete from room where room_id > 240")
        .await;
    still(&running, aside).await;
    // then they do so in the cloud, as far as it can.
    let changed = server
        .rows("rooms")
        .iter()
        .filter(|row| row["note"] == "changed")
        .count();
    assert_eq!(changed, if can.update { 3 } else { 0 });
    assert_eq!(server.count("rooms"), if can.delete { 240 } else { 250 });
    if !can.update {
        let entries = quarantine::list(&site.client, None).await.unwrap();
        assert!(
            entries.iter().all(|one| one.error.contains("duplicate")),
            "{entries:?}"
        );
        running.end().await;
        return;
    }
    if can.delete {
        moves(&site, &server, &running, can).await;
    }
    refuses(&site, &server, &running, passes_by_itself).await;
    // A sync has nothing to do then.
    let before = server.requests().len();
    let report = sync(&running, false).await;
    assert!(report.success() && pushed(&report) == 0, "{:?}", report.errors());
    let requests = server.requests();
    assert!(
        requests[before..]
            .iter()
            .all(|request| request.method != "POST" || request.path.starts_with("upload")),
        "{:?}",
        server.calls()
    );
    running.end().await;
}

async fn brings_rows_and_files(site: &Site, server: &BaselineServer, running: &Running, can: Can) {
    // Given rows and files
    for n in 1..=6 {
        std::fs::write(
            site.media().join(format!("slip {n}.jpg")),
            vec![n; 1000 + usize::from(n)],
        )
        .unwrap();
    }
    site.run(
        "insert into room select n, 'R' || n, 'as it was' from generate_series(1, 250) n; \
         insert into slip select n, case when n <= 10 then 'leave' else 'pass' end, n, \
             case when n <= 6 then 'slip ' || n || '.jpg' end from generate_series(1, 20) n",
    )
    .await;
    if !can.files {
        running
            .until("sent", |status| status.lag.is_some_and(|lag| lag.changes == 0))
            .await;
        assert_eq!(server.count("rooms"), 250);
        return;
    }
    still(running, 0).await;
    // then all are there, each file once and its path in its row,
    assert_eq!(
        (
            server.count("rooms"),
            server.count("leaves"),
            server.count("passes")
        ),
        (250, 10, 10)
    );
    let files = server.files();
    assert_eq!(files.len(), 6);
    let paths: Vec<String> = server
        .rows("leaves")
        .iter()
        .map(|row| row["image"].to_string())
        .collect();
    for file in &files {
        assert!(
            paths.iter().any(|path| path.contains(&file.stored)),
            "{} in {paths:?}",
            file.stored
        );
    }
    // and times are the server's.
    let row = server.row("leaves", "1").unwrap();
    let at = row["created_at"].as_str().unwrap();
    assert!(at.len() == 19 && at.as_bytes()[10] == b' ', "{at}");
}

async fn moves(site: &Site, server: &BaselineServer, running: &Running, can: Can) {
    // When rows move from one path to the other, both ways, together and one by one,
    site.run(
        "update slip set kind = case kind when 'pass' then 'leave' else 'pass' end where slip_id in (1, 2, 11, 12); \
         update slip set kind = 'pass' where slip_id = 3",
    )
    .await;
    still(running, 0).await;
    site.run("update slip set kind = 'leave' where slip_id = 13")
        .await;
    still(running, 0).await;
    // then each is there under its new path, and there alone.
    let ids = |path: &str| -> Vec<i64> {
        let mut ids: Vec<i64> = server
            .rows(path)
            .iter()
            .filter_map(|row| row["slip_id"].as_i64())
            .collect();
        ids.sort_unstable();
        ids
    };
    assert_eq!(
        ids("leaves"),
        [4, 5, 6, 7, 8, 9, 10, 11, 12, 13],
        "{}",
        can.one_table
    );
    assert_eq!(ids("passes"), [1, 2, 3, 14, 15, 16, 17, 18, 19, 20]);
    // A row that becomes nobody's goes.
    site.run("update slip set kind = 'other' where slip_id = 20; delete from slip where slip_id = 19")
        .await;
    still(running, 0).await;
    assert_eq!((server.count("leaves"), server.count("passes")), (10, 8));
}

async fn refuses(site: &Site, server: &BaselineServer, running: &Running, passes_by_itself: bool) {
    server.require("leaves", "room_id", "rooms", "room_id");
    server.refuse(|path, row| {
        let bad = path == "rooms" && row["note"] == "a note that is bad";
        bad.then(|| format!("Data too long for column 'note' (SQL: values ({}))", row["note"]))
    });
    // Given a row that the server refuses, its child, and good ones,
    site.run(
        "insert into room select n, 'R' || n, case n when 310 then 'a note that is bad' else 'good' end \
         from generate_series(301, 320) n; \
         insert into slip select n, 'leave', n from generate_series(301, 320) n",
    )
    .await;
    still(running, 2).await;
    // then the good ones are there, the two are told in the server's words without the row's,
    let there = |path: &str, id: &str| server.row(path, id).is_some();
    assert!((301..=320).all(|n| there("rooms", &n.to_string()) == (n != 310)));
    assert!((301..=320).all(|n| there("leaves", &n.to_string()) == (n != 310)));
    let entries = quarantine::list(&site.client, None).await.unwrap();
    for entry in &entries {
        assert!(!entry.error.contains("that is bad"), "{entry:?}");
    }
    let room = entries.iter().find(|entry| entry.entity == "rooms").unwrap();
    assert!(room.error.contains("Data too long"), "{room:?}");
    // a sync pushes those alone,
    let report = sync(running, false).await;
    assert!(!report.success() && pushed(&report) == 0, "{report:?}");
    still(running, 2).await;
    // and when the server takes them they come: by themselves where it might have been the server's fault.
    server.clear_rules();
    if !passes_by_itself {
        let report = sync(running, false).await;
        assert!(report.success(), "{report:?}");
    }
    still(running, 0).await;
    assert!(there("rooms", "310") && there("leaves", "310"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contracts_server() {
    let delete_none = Can { delete: false, ..ALL };
    serves("conforms_contract_0", Quirks::contract(), "", delete_none).await;
    serves("conforms_contract", Quirks::from(&["bulk", "delete"]), "", ALL).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_laravel_server() {
    let can = Can {
        one_table: true,
        ..ALL
    };
    let quirks = Quirks {
        refuses_offsets: true,
        ..Quirks::laravel()
    };
    serves("conforms_laravel", quirks.clone(), "profile = \"laravel\"", can).await;
    let bulk = "profile = \"laravel\"\ncapabilities = [\"bulk\", \"delete\"]";
    serves("conforms_laravel_bulk", quirks.clone(), bulk, can).await;
    // A server whose new path replaces the row needs no delete.
    let kept = "profile = \"laravel\"\ndelete_moved = false";
    serves("conforms_laravel_moved", quirks, kept, can).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_says_failure_with_200() {
    for refused in [Refusal::SuccessFalse200, Refusal::Errors200] {
        let quirks = Quirks {
            refused,
            ..Quirks::from(&["delete"])
        };
        let words = |one: Refusal| format!("conforms_{one:?}").to_lowercase();
        serves(&words(refused), quirks, "", ALL).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_django_server() {
    serves("conforms_django", Quirks::django(), "", ALL).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_server() {
    let cloud = "status_path = \"rooms\"\ncapabilities = [\"delete\"]";
    let can = Can { files: false, ..ALL };
    serves("conforms_json", Quirks::json_server(true), cloud, can).await;
    let can = Can { update: false, ..can };
    serves("conforms_json_insert", Quirks::json_server(false), cloud, can).await;
}

/// A key that is text here and a number there: so is each comparison's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_and_forms_are_the_servers() {
    let config = entity(
        "rooms",
        "room",
        &["room_id"],
        "path = \"Room\"\nrename = { room_id = \"id\", room_no = \"number\" }\ncolumns = { room_id = { as = \"text\" } }\n\
         constants = { school = \"college\" }\ndelete_path = \"Room/by-id/{key}\"\nbulk_path = \"Room/bulk\"",
    );
    let quirks = Quirks {
        delete_paths: vec![["Room", "Room/by-id/{key}"]],
        bulk_paths: vec![["Room", "Room/bulk"]],
        ..Quirks::from(&["bulk", "delete"])
    };
    // The server knows its own names.
    let named = entity("rooms", "room", &["id"], "path = \"Room\"");
    let catalogue = Site::bare("names_0", "http://127.0.0.1:1/api", "k", "", &named)
        .await
        .settings
        .catalogue;
    let server = BaselineServer::start(&catalogue, quirks).await;
    let key = crate::support::baseline::KEY;
    let site = Site::bare("names", &server.url(), key, TABLES, &config).await;
    site.init().await;
    let running = site.replicate();
    site.run("insert into room select n, 'R' || n from generate_series(1, 20) n")
        .await;
    still(&running, 0).await;
    site.run("delete from room where room_id > 10; update room set room_no = 'X' where room_id = 1")
        .await;
    still(&running, 0).await;
    assert_eq!(server.count("Room"), 10);
    let expected = json!({"id": "1", "number": "X", "note": null, "school": "college"});
    assert_eq!(server.row("Room", "1").unwrap(), expected);
    server.remove("Room", "7");
    let report = sync(&running, false).await;
    assert!(report.success() && pushed(&report) == 1, "{report:?}");
    assert_eq!(server.count("Room"), 10);
    // A truncate takes all of them, and brings back nothing.
    site.run("truncate room cascade").await;
    still(&running, 0).await;
    assert_eq!(server.count("Room"), 0);
    running.end().await;
}
