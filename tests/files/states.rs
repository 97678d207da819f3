//! What waits, fails or is no longer named: each file has its own wait, and does not hold up the others.

use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use cloud_sync::control::{Operator, StatusReport};

use super::{FACULTY, LEAVE};
use crate::support::baseline::{self, BaselineServer};
use crate::support::fault::Fault;
use crate::support::process::Daemon;
use crate::support::site::{Cloud, KEY, LIMIT, SCHOOL, Site};

async fn server_and_site(hint: &str) -> (BaselineServer, Site) {
    let catalogue = cloud_sync::catalogue::Catalogue::builtin();
    let server = BaselineServer::start(&catalogue, &[]).await;
    let site = Site::school(hint, &server.url(), baseline::KEY).await;
    site.run(&format!("{FACULTY} ('x', null)")).await;
    (server, site)
}

fn uploads(server: &BaselineServer) -> usize {
    let requests = server.requests();
    requests
        .iter()
        .filter(|request| request.path.starts_with("upload/"))
        .count()
}

#[tokio::test]
async fn a_large_file_that_fails_does_not_hold_up_the_one_behind_it() {
    let (server, site) = server_and_site("bad_large").await;
    for (name, byte) in [("bad.jpg", 1_u8), ("good.jpg", 2)] {
        std::fs::write(site.media().join(name), vec![byte; 9 << 20]).unwrap();
    }
    server.fault(Fault::status(500).on("upload/leave_slips").times(1));
    let running = site.replicate();
    site.run(&format!("{LEAVE} (1, 'bad.jpg'), (1, 'good.jpg')"))
        .await;
    // One of them fails, and waits for seconds; the other one goes.
    running
        .until("one of them", |status| {
            status.files.uploaded == 1 && status.files.failed == 1
        })
        .await;
    assert_eq!(uploads(&server), 2);
    running.end().await;
}

#[tokio::test]
async fn a_small_file_overtakes_a_backlog_of_large_ones() {
    let (server, site) = server_and_site("backlog_large").await;
    // Given more large files than are looked at together, and an upload that is held
    for number in 0..40 {
        let large = std::fs::File::create(site.media().join(format!("{number}.jpg"))).unwrap();
        large.set_len(8 << 20).unwrap();
    }
    let (hold, latch) = Fault::hold();
    server.fault(hold.on("upload/leave_slips").times(1));
    let running = site.replicate();
    site.run(
        &format!("{LEAVE} select 1, n || '.jpg' from generate_series(0, 39) n").replace(" values ", " "),
    )
    .await;
    server
        .wait_until("the first upload", |server| uploads(server) == 1)
        .await;
    running
        .until("all wait", |status| status.files.waiting == 40)
        .await;
    // When a slip comes
    std::fs::write(site.media().join("slip.jpg"), "slip").unwrap();
    site.run("insert into tbl_pass (faculty_id, pass_slip_image) values (1, 'slip.jpg')")
        .await;
    // Then it is there before any of them.
    running
        .until("the slip", |status| status.files.uploaded == 1)
        .await;
    assert_eq!(uploads(&server), 2);
    latch.open();
    running.until("all", |status| status.files.uploaded == 41).await;
    running.end().await;
}

#[tokio::test]
async fn a_cloud_that_asks_for_time_is_given_it() {
    let (server, site) = server_and_site("retry_after").await;
    for number in 0..20 {
        std::fs::write(site.media().join(format!("{number}.jpg")), format!("{number}")).unwrap();
    }
    server.fault(Fault::status(503).retry_after("60").on("upload/leave_slips"));
    let running = site.replicate();
    site.run(
        &format!("{LEAVE} select 1, n || '.jpg' from generate_series(0, 19) n").replace(" values ", " "),
    )
    .await;
    server.wait_until("an upload", |server| uploads(server) > 0).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    // Those that were sent together, and no others; rows go on.
    assert!(uploads(&server) <= 12, "{}", uploads(&server));
    site.run("update tbl_faculty set faculty_lname = 'y'").await;
    running.rows_caught_up().await;
    assert!(uploads(&server) <= 12, "{}", uploads(&server));
    running.end().await;
}

#[tokio::test]
async fn a_cloud_that_takes_no_file_is_not_asked_for_each_of_them() {
    let (server, site) = server_and_site("takes_none").await;
    for number in 0..200 {
        std::fs::write(site.media().join(format!("{number}.jpg")), format!("{number}")).unwrap();
    }
    server.fault(Fault::status(500).on("upload/leave_slips"));
    let running = site.replicate();
    site.run(
        &format!("{LEAVE} select 1, n || '.jpg' from generate_series(0, 199) n").replace(" values ", " "),
    )
    .await;
    server.wait_until("uploads", |server| uploads(server) >= 8).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let tried = uploads(&server);
    assert!(tried < 120, "{tried}");
    server.clear_faults();
    running
        .until("all", |status| status.files.uploaded + status.files.failed == 200)
        .await;
    running.end().await;
}

#[tokio::test]
async fn what_no_row_names_any_more_is_forgotten() {
    let (_cloud, mut site) = Site::captured("unnamed", SCHOOL, "").await;
    site.reconfigure("settle = \"100ms\"", "settle = \"100ms\"\nrescan = \"1s\"");
    site.run(&format!("{FACULTY} ('x', null)")).await;
    let running = site.replicate();
    site.run(&format!("{FACULTY} ('y', '[\"b.jpg\"]')")).await;
    site.run(&format!("{LEAVE} (1, 'a.jpg'), (1, 'c.jpg'), (1, 'c.jpg')"))
        .await;
    running
        .until("three missing", |status| status.files.missing == 3)
        .await;
    running.rows_caught_up().await;
    // When a row names another file, a row is deleted, and one of two rows that name a file is
    site.run("update tbl_leave set leave_slip_image = 'd.jpg' where leave_id = 1")
        .await;
    site.run("delete from tbl_leave where leave_id = 2; delete from tbl_faculty where faculty_fname = 'y'")
        .await;
    // Then what a row names is known, and nothing else is.
    running
        .until("two missing", |status| {
            let lag = status.lag.is_some_and(|lag| lag.changes == 0);
            lag && (status.files.missing, status.files.waiting) == (2, 0)
        })
        .await;
    let rows = site
        .client
        .query("select path from cloud_sync.media order by path", &[])
        .await
        .unwrap();
    let paths: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(paths, ["c.jpg", "d.jpg"]);
    running.end().await;
}

#[tokio::test]
async fn a_one_shot_sync_ends_with_the_files_that_are_not_there() {
    let (cloud, site) = Site::captured("one_shot_files", SCHOOL, "").await;
    std::fs::write(site.media().join("good.jpg"), "slip").unwrap();
    std::fs::write(site.media().join("empty.jpg"), "").unwrap();
    site.run(&format!(
        "{FACULTY} ('x', null); {LEAVE} (1, 'good.jpg'), (1, 'empty.jpg'), (1, 'none.jpg')"
    ))
    .await;
    let program = async |arguments: &[&str]| -> Output {
        tokio::process::Command::new(env!("CARGO_BIN_EXE_cloud-sync"))
            .args([
                "--config",
                site.folder.path().join("cloud-sync.toml").to_str().unwrap(),
            ])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .await
            .unwrap()
    };
    let text = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned();
    let began = Instant::now();
    let synced = program(&["sync"]).await;
    assert!(began.elapsed() < LIMIT);
    assert_eq!(synced.status.code(), Some(1), "{synced:?}");
    assert!(
        text(&synced).contains("empty.jpg: the file is empty"),
        "{}",
        text(&synced)
    );
    // The list has each with its reason,
    let list = program(&["files", "list"]).await;
    assert_eq!(list.status.code(), Some(1));
    assert!(
        text(&list).contains("none.jpg") && text(&list).contains("empty.jpg"),
        "{}",
        text(&list)
    );
    assert!(!text(&list).contains("good.jpg"), "{}", text(&list));
    // and one file its whole story.
    let why = program(&["files", "why", "good.jpg"]).await;
    assert_eq!(why.status.code(), Some(0), "{}", text(&why));
    assert!(
        text(&why).contains("the cloud has it") && text(&why).contains("leaves"),
        "{}",
        text(&why)
    );
    let json: serde_json::Value =
        serde_json::from_slice(&program(&["files", "why", "none.jpg", "--json"]).await.stdout).unwrap();
    assert_eq!(
        (json["state"].as_str(), json["rows"][0]["entity"].as_str()),
        (Some("missing"), Some("leaves"))
    );
    assert_eq!(
        program(&["files", "why", "nobody.jpg"]).await.status.code(),
        Some(2)
    );
    drop(cloud);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_file_goes_while_the_timetable_says_off_and_rows_do() {
    let (server, mut site) = server_and_site("bandwidth_off").await;
    site.reconfigure("[control]", "[files]\nbandwidth = \"off\"\n[control]");
    std::fs::write(site.media().join("a.jpg"), "slip").unwrap();
    let running = site.replicate();
    site.run(&format!("{LEAVE} (1, 'a.jpg')")).await;
    let status = running.rows_caught_up().await;
    assert_eq!((status.files.bandwidth_limit, status.files.waiting), (Some(0), 1));
    let asked = |server: &BaselineServer| {
        let calls = server.calls();
        calls.iter().filter(|call| call.contains("sync-status")).count()
    };
    let before = asked(&server);
    tokio::time::sleep(Duration::from_millis(3_500)).await;
    assert_eq!(uploads(&server), 0);
    // The cloud is not asked over and over,
    assert!(asked(&server) <= before + 1, "{before} {}", asked(&server));
    running.end().await;
    // a sync from the command line ends,
    let synced = Daemon::of(&site, "one_shot").ask(&["sync"]);
    assert!(synced.status.success(), "{synced:?}");
    assert_eq!(uploads(&server), 0);
    let running = site.replicate();
    // and a change is seen.
    std::fs::write(site.media().join("b.jpg"), "another").unwrap();
    site.run(&format!("{LEAVE} (1, 'b.jpg')")).await;
    running
        .until("both wait", |status| status.files.waiting == 2)
        .await;
    // When new settings are taken while it runs
    site.reconfigure("bandwidth = \"off\"", "bandwidth = \"1MiB/s\"");
    let file = Some(site.folder.path().join("cloud-sync.toml"));
    let options = cloud_sync::config::LoadOptions::of_process(file, Vec::new());
    let loaded = cloud_sync::config::Settings::load(options).unwrap();
    running.replicator.reload(&loaded).unwrap();
    // Then it goes.
    let status = running
        .until("uploaded", |status| status.files.uploaded == 2)
        .await;
    assert_eq!(status.files.bandwidth_limit, Some(1 << 20));
    running.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_wait_for_the_next_day_when_the_budget_is_used_up_also_after_a_restart() {
    let (server, mut site) = server_and_site("budget").await;
    site.reconfigure(
        "[control]",
        "[files]\nbudget = \"200kB/day; 1GB/month\"\n[control]",
    );
    let write = async |name: &str| {
        std::fs::write(site.media().join(name), vec![name.as_bytes()[0]; 150_000]).unwrap();
        site.run(&format!("{LEAVE} (1, '{name}')")).await;
    };
    // Given two files that take more than what a day has
    let running = site.replicate();
    write("a.jpg").await;
    running.until("one", |status| status.files.uploaded == 1).await;
    write("b.jpg").await;
    running.until("two", |status| status.files.uploaded == 2).await;
    // When a third one comes
    write("c.jpg").await;
    let status = running.until("waits", |status| status.files.waiting == 1).await;
    // Then it waits, and the status says why and how much is left to send,
    let budget = status.files.budget.unwrap();
    assert!(budget.day_bytes >= 300_000 && budget.day_is_used_up() && !budget.month_is_used_up());
    assert_eq!(budget.month_bytes, budget.day_bytes);
    assert_eq!(budget.day_limit, Some(200_000));
    let counted = async || -> i64 {
        let counted = site.client.query_one(
            "select coalesce(sum(bytes), 0)::bigint from cloud_sync.traffic",
            &[],
        );
        counted.await.unwrap().get(0)
    };
    while counted().await < 300_000 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    running.end().await;
    // also with another store, and to a sync from the command line,
    let synced = Daemon::of(&site, "another").ask(&["sync"]);
    assert!(synced.status.success(), "{synced:?}");
    assert_eq!(uploads(&server), 2);
    // and in the cloud rows go on.
    let running = site.replicate();
    site.run(&format!("{FACULTY} ('y', null)")).await;
    let status = running.rows_caught_up().await;
    assert_eq!((status.files.uploaded, status.files.waiting), (2, 1));
    assert!(status.files.budget.unwrap().day_bytes >= 300_000);
    assert!(status.files.bytes_to_send.is_some());
    running.end().await;
    // With more bytes a day it goes.
    site.reconfigure("200kB/day", "2MB/day");
    let running = site.replicate();
    running.until("three", |status| status.files.uploaded == 3).await;
    running.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_in_parts_stops_when_the_budget_is_used_up_and_goes_on_from_there() {
    let config = "[files]\nbandwidth = \"1MB/s\"\nbudget = \"1MB/day\"\n";
    let (_cloud, mut site) = Site::captured("budget_parts", SCHOOL, config).await;
    std::fs::write(site.media().join("a.jpg"), vec![7; 6_000_000]).unwrap();
    site.run(&format!("{FACULTY} ('x', null)")).await;
    site.run(&format!("{LEAVE} (1, 'a.jpg')")).await;
    let running = site.replicate();
    let used_up = |status: &StatusReport| status.files.budget.is_some_and(|budget| budget.day_is_used_up());
    running.until("used up", used_up).await;
    let why = "select error from cloud_sync.media where error like '%files.budget%'";
    let start = Instant::now();
    while site.client.query_opt(why, &[]).await.unwrap().is_none() {
        assert!(start.elapsed() < LIMIT, "the upload does not stop");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let sent = running
        .replicator
        .status()
        .await
        .unwrap()
        .files
        .budget
        .unwrap()
        .day_bytes;
    assert!(sent < 5_000_000, "{sent}");
    running.end().await;
    site.reconfigure("budget = \"1MB/day\"", "budget = \"1GB/day\"");
    let running = site.replicate();
    let status = running.until("there", |status| status.files.uploaded == 1).await;
    // What had arrived was not sent again.
    let sent = status.files.budget.unwrap().day_bytes;
    assert!(sent < 7_000_000, "{sent}");
    running.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_due_does_not_wait_for_the_end_of_a_rescan() {
    let (server, site) = server_and_site("long_rescan").await;
    // Given many files that are missing, the last one of which is there now, and one that is due
    for name in ["due.jpg", "zzz.jpg"] {
        std::fs::write(site.media().join(name), name).unwrap();
    }
    site.run(
        "insert into cloud_sync.media (path, directory, state) \
         select 'm\\%41ä' || n, 'leave_slips', 'missing' from generate_series(1, 30000) n; \
         insert into cloud_sync.media (path, directory, state) values \
         ('zzz.jpg', 'leave_slips', 'missing'), ('due.jpg', 'leave_slips', 'waiting'); \
         insert into cloud_sync.media_ref values ('due.jpg', 'leaves', '{\"leave_id\":1}'), \
         ('zzz.jpg', 'leaves', '{\"leave_id\":2}')",
    )
    .await;
    // When the rescan at the start looks at all of them
    let running = site.replicate();
    server
        .wait_until("the upload", |server| uploads(server) > 0)
        .await;
    // Then the one that is due went before its end.
    let state = "select state from cloud_sync.media where path = 'zzz.jpg'";
    let row = site.client.query_one(state, &[]).await.unwrap();
    assert_eq!(row.get::<_, String>(0), "missing");
    running
        .until("the last one", |status| status.files.uploaded == 2)
        .await;
    running.end().await;
}

#[tokio::test]
async fn a_cloud_that_gives_all_files_one_address_is_not_asked_over_and_over() {
    let (server, site) = server_and_site("one_address").await;
    let answer = r#"{"success":true,"url":"http://cloud.invalid/a"}"#;
    server.fault(Fault::answer(200, "application/json", answer).on("upload/leave_slips"));
    for name in ["a.jpg", "b.jpg"] {
        std::fs::write(site.media().join(name), format!("slip {name}")).unwrap();
    }
    let running = site.replicate();
    site.run(&format!("{LEAVE} (1, 'a.jpg'), (1, 'b.jpg')")).await;
    running
        .until("a file that fails", |status| status.files.failed > 0)
        .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(uploads(&server) <= 6, "{}", uploads(&server));
    running.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_go_when_they_are_old_enough_and_at_their_times() {
    let cloud = Cloud::start("file_times").await;
    let from_now = |hours: i64| {
        let at = jiff::Zoned::now() + jiff::SignedDuration::from_hours(hours);
        at.strftime("%H:%M").to_string()
    };
    let later = format!("{}-{}", from_now(2), from_now(4));
    let config = format!(
        "[[entity]]\nname = \"faculties\"\ntable = \"tbl_faculty\"\nkey = [\"faculty_id\"]\n\
         [[entity]]\nname = \"leaves\"\ntable = \"tbl_leave\"\nkey = [\"leave_id\"]\n\
         files = [{{ column = \"leave_slip_image\", url_column = \"url\", directory = \"leaves\", after = \"1h\" }}]\n\
         [[entity]]\nname = \"passes\"\ntable = \"tbl_pass\"\nkey = [\"pass_id\"]\n\
         files = [{{ column = \"pass_slip_image\", url_column = \"url\", directory = \"passes\", when = \"{later}\" }}]\n"
    );
    let mut site = Site::bare("file_times", &cloud.url, KEY, SCHOOL, &config).await;
    site.init().await;
    for name in ["new.jpg", "old.jpg", "pass.jpg"] {
        std::fs::write(site.media().join(name), name).unwrap();
    }
    let old = std::fs::File::options()
        .write(true)
        .open(site.media().join("old.jpg"))
        .unwrap();
    let hours_ago = std::time::SystemTime::now() - Duration::from_secs(2 * 3600);
    old.set_modified(hours_ago).unwrap();
    drop(old);
    site.run(&format!(
        "{FACULTY} ('x', null); {LEAVE} (1, 'new.jpg'), (1, 'old.jpg'); \
         insert into tbl_pass (faculty_id, pass_slip_image) values (1, 'pass.jpg')"
    ))
    .await;
    let daemon = Daemon::of(&site, "store");
    let process = daemon.start();
    // Only what is old enough goes; all rows do.
    daemon
        .until("the old one", LIMIT, |status| {
            status.files.uploaded == 1 && status.lag.is_some_and(|lag| lag.changes == 0)
        })
        .await;
    let why = |path: &str| {
        let said = daemon.ask(&["files", "why", path, "--json"]);
        let said: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap();
        let reason = said["reason"].as_str().unwrap_or_default().to_owned();
        (reason, said["next_attempt_seconds"].as_f64().unwrap_or_default())
    };
    for (path, word) in [("new.jpg", "old enough"), ("pass.jpg", "other times")] {
        let start = Instant::now();
        while !why(path).0.contains(word) {
            assert!(start.elapsed() < LIMIT, "{:?}", why(path));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!((3_000.0..=3_600.0).contains(&why(path).1), "{:?}", why(path));
    }
    // A sync is complete without them,
    let report = daemon.ask(&["sync"]);
    assert!(
        report.status.success(),
        "{}",
        String::from_utf8_lossy(&report.stdout)
    );
    assert!(process.terminate().await.success());
    // and they go when their time has come.
    site.reconfigure(&later, &format!("{}-{}", from_now(-1), from_now(4)));
    site.reconfigure("after = \"1h\"", "after = \"1s\"");
    let daemon = Daemon::of(&site, "store");
    let process = daemon.start();
    daemon
        .until("all", LIMIT, |status| status.files.uploaded == 3)
        .await;
    assert!(process.terminate().await.success());
}
