//! SIGTERM in each phase: the program ends in order within ten seconds, with a current checkpoint.

use std::time::Duration;

use cloud_sync::checkpoint::{SledStore, Store};
use cloud_sync::control::status::ReplicatorState;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use super::{ENTITIES, TABLES, garden, plant, troubled};
use crate::support::baseline::{self, BaselineServer};
use crate::support::fault::Fault;
use crate::support::oracle::Tally;
use crate::support::process::{Daemon, Process};
use crate::support::site::{Cloud, KEY, LIMIT, Site, connect};
use crate::support::sql::number;

/// The guarantee's own bound.
const IN_ORDER: Duration = Duration::from_secs(10);

/// Ends it, and answers whether what the store holds is also what the mirror holds.
async fn ends_in_order(process: Process<'_>, daemon: &Daemon, site: &Site, current: bool) {
    process.signal("TERM");
    let start = std::time::Instant::now();
    let status = process.ended(IN_ORDER).await;
    println!("ended after {:?}", start.elapsed());
    assert_eq!(status.code(), Some(0), "{}", daemon.log());
    if current {
        let (store, aside) = SledStore::open(&daemon.checkpoint()).unwrap();
        assert!(aside.is_none());
        let stored = store
            .load()
            .unwrap()
            .map_or(0, |checkpoint| checkpoint.serial as i64);
        let mirrored = number(
            &site.client,
            "select coalesce(max(serial), 0) from cloud_sync.checkpoint",
        )
        .await;
        assert_eq!(stored, mirrored);
    }
}

/// A server that takes connections and requests, and never answers.
async fn silent() -> (String, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/api", listener.local_addr().unwrap());
    let task = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut buffer = vec![0; 65536];
                while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
            });
        }
    });
    (url, task)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_while_idle_and_while_a_cloud_does_not_answer() {
    let cloud = Cloud::start("term").await;
    let site = garden("term", &cloud).await;
    let daemon = Daemon::of(&site, "store");
    let mut tally = Tally::default();
    // Idle.
    let process = daemon.start();
    plant(&site, 1, 100).await;
    daemon.caught_up().await;
    ends_in_order(process, &daemon, &site, true).await;
    // Amid a batch that a cloud has taken and does not answer, and amid the first handshake.
    let (silent_url, silence) = silent().await;
    plant(&site, 101, 200).await;
    let url = format!("cloud.url={silent_url}");
    let process = daemon.start_with(&[&url, "cloud.timeout=60s"]);
    tally.faults += 1;
    daemon
        .until("draining", LIMIT, |status| status.lag.is_some())
        .await;
    ends_in_order(process, &daemon, &site, true).await;
    // A sync that waits for that cloud.
    let process = daemon.start_with(&[&url, "cloud.timeout=60s", "schedule.sync=* * * * * *"]);
    tally.faults += 1;
    daemon
        .until("draining", LIMIT, |status| status.lag.is_some())
        .await;
    ends_in_order(process, &daemon, &site, true).await;
    silence.abort();
    // While the cloud is away.
    let process = daemon.start_with(&["cloud.url=http://127.0.0.1:9/api"]);
    tally.faults += 1;
    troubled(&daemon, "cloud").await;
    ends_in_order(process, &daemon, &site, true).await;
    let process = daemon.start();
    daemon.caught_up().await;
    ends_in_order(process, &daemon, &site, true).await;
    tally.judge(&site, &cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_while_the_source_is_away_or_does_not_answer() {
    let cloud = Cloud::start("term_source").await;
    let site = garden("term_source", &cloud).await;
    let daemon = Daemon::of(&site, "store");
    let mut tally = Tally::default();
    let (silent_url, silence) = silent().await;
    let silent_port = silent_url
        .trim_start_matches("http://")
        .trim_end_matches("/api")
        .to_owned();
    for address in ["127.0.0.1:9", &silent_port] {
        let url = format!("source.database_url=postgres://postgres@{address}/school");
        let logged = daemon.log().len();
        let process = daemon.start_with(&[&url]);
        tally.faults += 1;
        // It listens before it asks the source.
        let start = std::time::Instant::now();
        while !daemon.log()[logged..].contains("the operator API listens") {
            assert!(start.elapsed() < LIMIT, "{}", daemon.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        ends_in_order(process, &daemon, &site, false).await;
    }
    silence.abort();
    plant(&site, 1, 10).await;
    let process = daemon.start();
    daemon.caught_up().await;
    ends_in_order(process, &daemon, &site, true).await;
    tally.judge(&site, &cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_amid_a_sync_and_while_standing_by() {
    let cloud = Cloud::start("term_sync").await;
    let site = garden("term_sync", &cloud).await;
    let (first, second) = (Daemon::of(&site, "first"), Daemon::of(&site, "second"));
    let mut tally = Tally::default();
    plant(&site, 1, 5000).await;
    let process = first.start_with(&["delivery.batch_rows=50"]);
    first.caught_up().await;
    // Standing by.
    let standby = second.start();
    second
        .until("standing by", LIMIT, |status| {
            status.state == ReplicatorState::Standby
        })
        .await;
    ends_in_order(standby, &second, &site, false).await;
    // During a sync that pushes all rows again.
    let there = connect(&cloud.database_url).await;
    there.batch_execute("delete from cloud.pots").await.unwrap();
    tally.faults += 1;
    let before = number(&site.client, "select last_value from cloud_sync.position").await;
    let sync = tokio::task::spawn_blocking({
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_cloud-sync"));
        command.args(["sync", "--force", "--json", "--set"]);
        command.arg(format!("control.listen={}", first.listen()));
        command.arg("--set");
        command.arg(format!(
            "store.path={}",
            site.folder.path().join("first").display()
        ));
        command.current_dir(site.folder.path()).env_clear();
        move || command.output().unwrap()
    });
    while number(&site.client, "select last_value from cloud_sync.position").await == before {
        assert!(!sync.is_finished(), "{}", first.log());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    ends_in_order(process, &first, &site, true).await;
    sync.await.unwrap();
    // then the next run finishes what the sync had captured, and the next sync the rest.
    let process = first.start();
    first.caught_up().await;
    let output = first.ask(&["sync", "--force", "--json"]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    ends_in_order(process, &first, &site, true).await;
    tally.judge(&site, &cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_skips_the_drain() {
    let cloud = Cloud::start("twice").await;
    let (silent_url, silence) = silent().await;
    let site = garden("twice", &cloud).await;
    let daemon = Daemon::of(&site, "store");
    let mut tally = Tally::default();
    plant(&site, 1, 100).await;
    let process = daemon.start_with(&[&format!("cloud.url={silent_url}"), "cloud.capabilities=changes"]);
    daemon
        .until("draining", LIMIT, |status| status.lag.is_some())
        .await;
    process.signal("TERM");
    let start = std::time::Instant::now();
    while !daemon.log().contains("a second signal ends it at once") {
        assert!(start.elapsed() < LIMIT, "{}", daemon.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    process.signal("TERM");
    // Either the second signal ended it, or the first had done so before.
    let status = process.ended(IN_ORDER).await;
    assert!(matches!(status.code(), Some(0 | 143)), "{status}");
    tally.kills += 1;
    silence.abort();
    let process = daemon.start();
    daemon.caught_up().await;
    assert!(process.terminate().await.success());
    tally.judge(&site, &cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_amid_a_backfill() {
    let cloud = Cloud::start("term_backfill").await;
    let site = Site::bare("term_backfill", &cloud.url, KEY, TABLES, ENTITIES).await;
    let there = connect(&cloud.database_url).await;
    let mut tally = Tally::default();
    // Given rows that are older than capture
    plant(&site, 1, 60_000).await;
    site.init().await;
    let held = async || -> i64 {
        let counted = there
            .query_one("select to_regclass('cloud.pots') is not null", &[])
            .await;
        if !counted.unwrap().get::<_, bool>(0) {
            return 0;
        }
        let counted = there.query_one("select count(*) from cloud.pots", &[]).await;
        counted.unwrap().get(0)
    };
    // when their backfill gets the signal to end, it does, in order,
    let daemon = Daemon::of(&site, "store");
    let process = daemon.start_under(&[], |command| {
        let mut other = std::process::Command::new(command.get_program());
        other.args(["backfill", "--set"]);
        other.arg(format!(
            "store.path={}",
            site.folder.path().join("store").display()
        ));
        other.current_dir(site.folder.path()).env_clear();
        other
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        *command = other;
    });
    tally.faults += 1;
    let start = std::time::Instant::now();
    while held().await == 0 {
        assert!(start.elapsed() < LIMIT);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    process.signal("TERM");
    let status = process.ended(IN_ORDER).await;
    let amid = held().await;
    println!("{status}, {amid} rows");
    assert!(matches!(status.code(), Some(0 | 1)), "{status}");
    assert!(amid < 60_000, "it was not amid the backfill");
    // and the next one resumes.
    let output = daemon.ask(&["backfill"]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(held().await, 60_000);
    tally.judge(&site, &cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_amid_an_upload_and_amid_a_batch() {
    // Given an upload that the cloud has taken and does not answer,
    let catalogue = cloud_sync::catalogue::Catalogue::builtin();
    let cloud = BaselineServer::start(&catalogue, &[]).await;
    let site = Site::school("term_upload", &cloud.url(), baseline::KEY).await;
    cloud.fault(Fault::stall().on("upload/leave_slips").times(1));
    std::fs::write(site.media().join("slip.jpg"), vec![7; 3 << 20]).unwrap();
    site.run(
        "insert into tbl_faculty (faculty_fname, faculty_lname) values ('a', 'b'); \
         insert into tbl_leave (faculty_id, leave_slip_image, leave_start_date, leave_end_date) \
         select faculty_id, 'slip.jpg', current_date, current_date from tbl_faculty",
    )
    .await;
    let daemon = Daemon::of(&site, "store");
    let process = daemon.start_with(&["cloud.timeout=60s"]);
    called(&cloud, "POST upload/leave_slips").await;
    // when the program gets the signal to end, it does, and the next run uploads the file.
    ends_in_order(process, &daemon, &site, true).await;
    assert!(cloud.files().is_empty());
    let process = daemon.start();
    daemon
        .until("uploaded", LIMIT, |status| status.files.uploaded == 1)
        .await;
    daemon.caught_up().await;
    ends_in_order(process, &daemon, &site, true).await;
    assert_eq!(cloud.files()[0].bytes.len(), 3 << 20);
    let row = &cloud.rows("leaves")[0];
    assert!(row["leave_slip_cloud_url"].is_string(), "{row}");
    // Nor does a batch that the cloud has taken and does not answer hold the end up.
    cloud.fault(Fault::stall().on("rooms").times(1));
    let process = daemon.start_with(&["cloud.timeout=60s"]);
    site.run("insert into tbl_room (room_no, room_name) values ('1', 'one')")
        .await;
    called(&cloud, "POST rooms").await;
    ends_in_order(process, &daemon, &site, true).await;
    let process = daemon.start();
    daemon.caught_up().await;
    ends_in_order(process, &daemon, &site, true).await;
    assert_eq!(cloud.count("rooms"), 1);
}

/// Waits for a request, answered or not.
async fn called(cloud: &BaselineServer, request: &str) {
    let start = std::time::Instant::now();
    while !cloud.calls().iter().any(|call| call == request) {
        assert!(start.elapsed() < LIMIT, "{:?}", cloud.calls());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
