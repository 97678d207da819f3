//! Answers that accept nothing, rows that are set aside, parents that the cloud lacks, files that share an
//! address.

use cloud_sync::quarantine;
use cloud_sync::source::{describe, install};
use serde_json::json;

use super::connected;
use crate::support::baseline::{Bulk, Names, Quirks, Refusal, Uploads};
use crate::support::fault::Fault;
use crate::support::process::Daemon;
use crate::support::site::{LIMIT, entity};

const TABLES: &str = "
    create table room (room_id int primary key, v text, image text);
    create table seat (seat_id int primary key, room_id int references room, v text)";

fn config(more: &str) -> String {
    [
        entity("rooms", "room", &["room_id"], more),
        entity("seats", "seat", &["seat_id"], ""),
    ]
    .concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_acceptance_is_sent_until_it_is_accepted() {
    let pages = [
        "<?xml version=\"1.0\"?><portal/>",
        "<script>location.href='http://login'</script>",
        "<HEAD><TITLE>Login</TITLE>",
        "Please log in to use this network",
        "<!-- portal --><html></html>",
        "\u{feff}<html></html>",
        "<br />\n<b>Notice</b>: x in /a.php on line 1 {\"success\":true}",
        "{\"success\":false,\"message\":\"not now\"}",
        "{\"errors\":{\"v\":[\"not now\"]}}",
    ];
    let (site, server) = connected(
        "no_acceptance",
        Quirks::from(&["delete"]),
        "",
        TABLES,
        &config(""),
    )
    .await;
    let running = site.replicate();
    site.run("insert into room values (0, 'first')").await;
    running.caught_up().await;
    for (nth, page) in pages.into_iter().enumerate() {
        // Given an answer that is not the cloud's to an update and to a delete,
        server.forget_requests();
        server.fault(Fault::answer(200, "text/plain", page).on("rooms").times(1));
        site.run(&format!("update room set v = 'v{nth}'")).await;
        running.caught_up().await;
        // then the update comes all the same.
        assert_eq!(
            server.row("rooms", "0").unwrap()["v"],
            format!("v{nth}"),
            "{page}"
        );
        assert!(
            server.calls().iter().filter(|call| *call == "POST rooms").count() >= 2,
            "{page}"
        );
        server.clear_faults();
    }
    running.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_rows_of_a_batch_are_found() {
    for (hint, names_keys) in [("bulk_unnamed", false), ("bulk_named", true)] {
        let quirks = Quirks {
            bulk: Bulk::SkipsRows { names_keys },
            refused: Refusal::Error500,
            ..Quirks::from(&["bulk", "delete"])
        };
        let (site, server) = connected(hint, quirks, "", TABLES, &config("")).await;
        server.refuse(|_, row| (row["v"] == "a bad value").then(|| "v: a bad value is too long".to_owned()));
        let running = site.replicate();
        site.run(
            "insert into room select n, case when n % 100 = 7 then 'a bad value' else 'good' end from \
             generate_series(1, 1000) n",
        )
        .await;
        running
            .until("set aside", |status| {
                status.quarantine == Some(10) && status.lag.is_some_and(|lag| lag.changes == 0)
            })
            .await;
        assert_eq!(server.count("rooms"), 990);
        for entry in quarantine::list(&site.client, None).await.unwrap() {
            assert!(
                entry.error.contains("too long") && !entry.error.contains("a bad value"),
                "{entry:?}"
            );
        }
        let waste = server.waste();
        println!("{hint}: {waste:?}");
        running.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parent_that_the_cloud_lacks_is_sent_before_its_child_is_tried_again() {
    for (hint, refused) in [
        ("parent_500", Refusal::Error500),
        ("parent_422", Refusal::Status4xx),
    ] {
        let quirks = Quirks {
            refused,
            ..Quirks::from(&["delete"])
        };
        let (site, server) = connected(hint, quirks, "", TABLES, &config("")).await;
        server.require("seats", "room_id", "rooms", "room_id");
        let running = site.replicate();
        site.run("insert into room select n from generate_series(1, 20) n")
            .await;
        running.caught_up().await;
        // Given a parent that was lost there,
        server.remove("rooms", "7");
        server.forget_requests();
        site.run("insert into seat select n, n from generate_series(1, 20) n")
            .await;
        // then it is sent again, and it alone, and its child follows.
        running
            .until("all there", |status| {
                status.quarantine == Some(0)
                    && status.lag.is_some_and(|lag| lag.changes == 0)
                    && server.count("seats") == 20
            })
            .await;
        let requests = server.requests();
        let posted = requests
            .iter()
            .filter(|request| request.method == "POST" && request.path == "rooms");
        let posted: Vec<i64> = posted
            .filter_map(|request| request.json()["room_id"].as_i64())
            .collect();
        assert!(
            !posted.is_empty() && posted.iter().all(|id| *id == 7),
            "{posted:?}"
        );
        running.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_is_set_aside_by_hand_until_it_is_retried() {
    let (site, server) = connected("by_hand", Quirks::from(&["delete"]), "", TABLES, &config("")).await;
    let daemon = Daemon::of(&site, "store");
    // Given a row that is set aside before it is sent,
    site.run("insert into room select n, 'v' from generate_series(1, 5) n")
        .await;
    let added = daemon.ask(&["quarantine", "add", "rooms", "3"]);
    assert!(added.status.success(), "{added:?}");
    for wrong in [["rooms", "{\"no\":1}"], ["roms", "3"]] {
        let refused = daemon.ask(&["quarantine", "add", wrong[0], wrong[1]]);
        assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    }
    let running = site.replicate();
    running.caught_up().await;
    // then all others are there, and its later changes do not go either,
    assert_eq!(server.count("rooms"), 4);
    site.run("update room set v = 'new'").await;
    running.caught_up().await;
    assert!(server.row("rooms", "3").is_none() && server.row("rooms", "4").unwrap()["v"] == "new");
    let list = daemon.ask(&["quarantine", "list"]);
    assert!(
        String::from_utf8_lossy(&list.stdout).contains("an operator has set it aside"),
        "{list:?}"
    );
    // until it is retried.
    let entries = quarantine::list(&site.client, None).await.unwrap();
    let catalogue = &site.settings.catalogue;
    let tables = describe::present_tables(&site.client, catalogue).await.unwrap();
    let attached = install::attached(&site.client, catalogue, &tables).await.unwrap();
    quarantine::retry(&site.client, catalogue, &attached, &entries)
        .await
        .unwrap();
    running
        .until("sent", |status| {
            status.quarantine == Some(0) && server.count("rooms") == 5
        })
        .await;
    assert_eq!(server.row("rooms", "3").unwrap()["v"], "new");
    running.end().await;
}

/// The rooms' file column, with the server's path in it.
fn images(more: &str) -> String {
    config(&format!(
        "files = [{{ column = \"image\", url_column = \"image\", directory = \"rooms\", column_value = \
         \"path\"{more} }}]"
    ))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_one_name_get_addresses_of_their_own() {
    let mut quirks = Quirks::from(&["delete"]);
    quirks.uploads.as_mut().unwrap().names = Names::BaseName;
    let (site, server) = connected("one_name", quirks, "", TABLES, &images("")).await;
    // Given two files of one name in different folders, at a server that keeps one of them,
    for (folder, content) in [("alice", "front of alice"), ("bob", "front of bob")] {
        std::fs::create_dir(site.media().join(folder)).unwrap();
        std::fs::write(site.media().join(folder).join("front.jpg"), content).unwrap();
    }
    let running = site.replicate();
    site.run("insert into room values (1, 'a', 'alice/front.jpg'), (2, 'b', 'bob/front.jpg')")
        .await;
    let whole = || {
        let path = |key: &str| Some(server.row("rooms", key)?["image"].as_str()?.to_owned());
        let content = |path: &str| {
            let file = server
                .files()
                .into_iter()
                .rev()
                .find(|file| path.ends_with(&file.stored))?;
            Some(String::from_utf8_lossy(&file.bytes).into_owned())
        };
        let (alice, bob) = (path("1").unwrap_or_default(), path("2").unwrap_or_default());
        alice != bob
            && content(&alice).as_deref() == Some("front of alice")
            && content(&bob).as_deref() == Some("front of bob")
    };
    // then each row has the path of its own content.
    running
        .until("each its own", |status| status.files.uploaded == 2 && whole())
        .await;
    running.caught_up().await;
    assert!(whole());
    running.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_address_of_a_file_that_waits_or_was_touched_is_its_own() {
    let mut quirks = Quirks::from(&["delete"]);
    quirks.uploads.as_mut().unwrap().names = Names::BaseName;
    let (site, server) = connected("one_address", quirks, "", TABLES, &images("")).await;
    let write = |folder: &str, content: &str| {
        std::fs::create_dir_all(site.media().join(folder)).unwrap();
        std::fs::write(site.media().join(folder).join("front.jpg"), content).unwrap();
    };
    write("alice", "front of alice");
    let running = site.replicate();
    site.run("insert into room values (1, 'a', 'alice/front.jpg')")
        .await;
    running
        .until("alice's", |status| status.files.uploaded == 1)
        .await;
    running.caught_up().await;
    // Given a file that waits, and has its address from before
    write("alice", "");
    running
        .until("it waits", |status| status.files.waiting == 1)
        .await;
    // When the server gives another file the same address
    write("bob", "front of bob");
    site.run("insert into room values (2, 'b', 'bob/front.jpg')")
        .await;
    running
        .until("bob's", |status| {
            status.files.uploaded == 1
                && server.row("rooms", "2").is_some_and(|row| {
                    let path = row["image"].as_str().unwrap_or_default();
                    path.starts_with("/storage/") && path != "/storage/rooms/front.jpg"
                })
        })
        .await;
    write("alice", "front of alice");
    running.until("both", |status| status.files.uploaded == 2).await;
    running.caught_up().await;
    // And when two have one address that an older program gave them, and one is touched,
    site.run("update cloud_sync.media set url = (select max(url) from cloud_sync.media), sent_as = null")
        .await;
    let touched = std::fs::File::options()
        .write(true)
        .open(site.media().join("alice/front.jpg"))
        .unwrap();
    touched.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    drop(touched);
    // then each gets its own.
    let apart = "select count(distinct url) = 2 from cloud_sync.media";
    let start = std::time::Instant::now();
    while !site.client.query_one(apart, &[]).await.unwrap().get::<_, bool>(0) {
        assert!(start.elapsed() < LIMIT, "one address still");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    running.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_whose_path_has_a_prefix_is_held_too() {
    let held = images(", until_uploaded = \"hold\"");
    let (mut site, server) = connected("held_prefix", Quirks::from(&["delete"]), "", TABLES, &held).await;
    site.reconfigure(
        "settle = \"100ms\"",
        "settle = \"100ms\"\nstrip_prefix = \"/storage\"",
    );
    let running = site.replicate();
    // Given rows that name files by a prefix, and one that names no file of this site
    site.run(
        "insert into room values (1, 'a', '/storage/rooms/a.jpg'), (2, 'b', '/elsewhere/b.jpg'), (3, 'c', null)",
    )
    .await;
    running.rows_caught_up().await;
    // Then the first one waits for its file,
    assert_eq!((server.row("rooms", "1"), server.count("rooms")), (None, 2));
    // and comes with its address.
    std::fs::create_dir(site.media().join("rooms")).unwrap();
    std::fs::write(site.media().join("rooms/a.jpg"), "a").unwrap();
    running
        .until("it is there", |_| server.row("rooms", "1").is_some())
        .await;
    let row = server.row("rooms", "1").unwrap();
    assert_eq!(row["image"], "rooms/a.jpg");
    running.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_the_server_does_not_take_stops_no_other() {
    let uploads = Uploads {
        field: "photo",
        requires: vec!["folder"],
        limit: Some(2_000),
        names: Names::WithTime,
    };
    let quirks = Quirks {
        uploads: Some(uploads),
        refused: Refusal::Error500,
        ..Quirks::from(&["delete"])
    };
    let held = images(", until_uploaded = \"hold\"");
    let config = format!("[files]\nfield = \"photo\"\nfields = {{ folder = \"rooms\" }}\n{held}");
    let (site, server) = connected("large_file", quirks, "", TABLES, &config).await;
    std::fs::write(site.media().join("large.jpg"), vec![1; 3_000]).unwrap();
    for n in 2..=10 {
        std::fs::write(site.media().join(format!("{n}.jpg")), vec![n; 100]).unwrap();
    }
    // Given a file above the server's limit before others, and rows that wait for their files,
    site.run(
        "insert into room select n, 'v', case n when 1 then 'large.jpg' else n || '.jpg' end from \
         generate_series(1, 10) n",
    )
    .await;
    let daemon = Daemon::of(&site, "store");
    let report = daemon.ask(&["sync", "--json"]);
    // then a one-shot sync ends, all others are there, and the file is reported with the server's words,
    assert_eq!(report.status.code(), Some(1), "{report:?}");
    let told: serde_json::Value = serde_json::from_slice(&report.stdout).unwrap();
    let errors = told["errors"].to_string();
    assert!(
        errors.contains("large.jpg") && errors.contains("greater than") && !errors.contains("does not list"),
        "{told}"
    );
    assert_eq!(server.files().len(), 9);
    assert_eq!(
        server.files()[0].fields.get("folder").map(String::as_str),
        Some("rooms")
    );
    assert_eq!(server.count("rooms"), 9, "its row waits for it");
    // and it goes when the server takes it.
    server.change(|quirks| quirks.uploads.as_mut().unwrap().limit = None);
    let report = daemon.ask(&["sync", "--json"]);
    assert!(report.status.success(), "{report:?}");
    assert_eq!((server.files().len(), server.count("rooms")), (10, 10));
    let row = server.row("rooms", "1").unwrap();
    assert!(row["image"].as_str().unwrap().starts_with("/storage/"), "{row}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_one_shot_sync_ends_whatever_its_files_are() {
    let config = format!("[files]\nupload_videos = false\n{}", images(""));
    let (site, server) = connected("odd_files", Quirks::from(&["delete"]), "", TABLES, &config).await;
    let daemon = Daemon::of(&site, "store");
    let sync = |code: i32| {
        let report = daemon.ask(&["sync", "--json"]);
        assert_eq!(report.status.code(), Some(code), "{report:?}");
        String::from_utf8_lossy(&report.stdout).into_owned()
    };
    // Given a video that is not to be uploaded, then nothing is wrong;
    std::fs::write(site.media().join("lesson.mp4"), "a video").unwrap();
    std::fs::write(site.media().join("good.jpg"), "a picture").unwrap();
    site.run("insert into room values (1, 'v', 'lesson.mp4'), (2, 'v', 'good.jpg')")
        .await;
    sync(0);
    assert_eq!((server.count("rooms"), server.files().len()), (2, 1));
    // an empty file is reported.
    std::fs::write(site.media().join("empty.jpg"), "").unwrap();
    site.run("insert into room values (3, 'v', 'empty.jpg')").await;
    let told = sync(1);
    assert!(
        told.contains("empty.jpg: the file is empty") && !told.contains("lesson"),
        "{told}"
    );
    assert_eq!(server.count("rooms"), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_finds_out_what_a_server_is_like() {
    let retention = "retention = { column = \"created_at\", days = 30 }";
    let tables =
        "create table room (room_id int primary key, day date, created_at timestamptz default now())";
    let rooms = entity("rooms", "room", &["room_id"], retention);
    let quirks = Quirks {
        days: vec![("rooms", vec!["day"])],
        ..Quirks::laravel()
    };
    let (mut site, server) = connected("check_cloud", quirks, "", tables, &rooms).await;
    let daemon = Daemon::of(&site, "store");
    // Given a server whose status is elsewhere, then it is found,
    let told = daemon.ask(&["check", "--cloud"]);
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    assert_eq!(told.status.code(), Some(4), "{text}");
    assert!(
        text.contains("cloud.prefix = \"sync\" and cloud.status_path = \"status\""),
        "{text}"
    );
    // and with its profile, what it can do and how it counts its days.
    site.reconfigure("timeout = \"5s\"\n", "timeout = \"5s\"\nprofile = \"laravel\"\n");
    let today = jiff::Zoned::now().date().to_string();
    server.seed(
        "rooms",
        json!({"room_id": 1, "day": today, "created_at": "2020-01-01 00:00:00"}),
    );
    let told = Daemon::of(&site, "store").ask(&["check", "--cloud"]);
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.status.success(), "{text}");
    for words in [
        "ok     status: GET /sync/status",
        "bulk too",
        "retention.cloud_days_by = \"day\"",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert_eq!(server.count("rooms"), 1);
    assert!(server.calls().iter().all(|call| !call.contains("DELETE")));
}

/// As where the server's table lacks a column.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entity_that_is_refused_as_a_whole_stops_no_other() {
    let quirks = Quirks {
        refused: Refusal::Error500,
        ..Quirks::from(&["delete"])
    };
    let (site, server) = connected("whole_entity", quirks, "", TABLES, &config("")).await;
    server.refuse(|path, _| (path == "rooms").then(|| "Unknown column 'v' in 'field list'".to_owned()));
    let running = site.replicate();
    // Given many rows of the entity, alone and then among others,
    site.run("insert into room select n, 'v' from generate_series(1, 600) n")
        .await;
    site.run("insert into room select n, 'v' from generate_series(601, 1200) n")
        .await;
    site.run("insert into seat select n, n, 'v' from generate_series(1, 500) n")
        .await;
    let still = |aside| {
        move |status: &cloud_sync::control::StatusReport| {
            status.quarantine == Some(aside) && status.lag.is_some_and(|lag| lag.changes == 0)
        }
    };
    running.until("set aside", still(1200)).await;
    // then the others are there, and the reason is reported,
    assert_eq!((server.count("rooms"), server.count("seats")), (0, 500));
    let entries = quarantine::list(&site.client, None).await.unwrap();
    assert!(entries.iter().all(|entry| entry.error.contains("Unknown column")));
    // and all come by themselves when the server is mended.
    server.clear_rules();
    running.until("all there", still(0)).await;
    assert_eq!(server.count("rooms"), 1200);
    running.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_proxy_is_named_as_the_proxy() {
    let (site, _server) = connected("dead_proxy", Quirks::contract(), "", TABLES, &config("")).await;
    let config = site.folder.path().join("cloud-sync.toml");
    let mut check = std::process::Command::new(env!("CARGO_BIN_EXE_cloud-sync"));
    check.args(["check", "--cloud", "--config"]).arg(config);
    // An address that no route leads to but the proxy's.
    for set in ["cloud.url=http://192.0.2.1/api", "cloud.allow_insecure_http=true"] {
        check.args(["--set", set]);
    }
    let told = check.env("http_proxy", "http://127.0.0.1:1").output().unwrap();
    let text = String::from_utf8_lossy(&told.stdout);
    assert_eq!(told.status.code(), Some(4), "{told:?}");
    assert!(
        text.contains("the proxy 127.0.0.1:1 that http_proxy names"),
        "{text}"
    );
}
