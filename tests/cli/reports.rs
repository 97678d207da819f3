//! What `check`, `status`, `sync` and `backfill` report of the sample school and its receiver, one file each.

use super::transcript::Transcript;
use crate::support::process::Daemon;
use crate::support::site::{Cloud, KEY, SCHOOL, Site};

const ROWS: &str = "
    insert into tbl_room (room_no, room_name) select 'R' || n, 'room ' || n from generate_series(1, 12) n;
    insert into tbl_camera (camera_name, room_no) select 'camera ' || n, 'R' || n \
    from generate_series(1, 3) n;
    insert into tbl_faculty (faculty_fname) values ('Ann')";

/// A transcript in which ports, folders, databases, times and sizes are hidden.
fn transcript(site: &Site) -> Transcript {
    Transcript::default()
        .hide(&regex_of(&site.folder.path().display().to_string()), "[FOLDER]")
        .hide(r"127\.0\.0\.1:\d+", "127.0.0.1:[PORT]")
        .hide(r"PostgreSQL \d[\w.]*( \([^)]*\))?", "PostgreSQL [VERSION]")
        .hide(r"_site_\d+", "_site")
        .hide(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?Z?", "[TIME]")
        .hide(r"\d+(\.\d+)? (KiB|MiB|GiB|TiB|B)\b", "[SIZE]")
        .hide(r"(\d+\.\d+/)?\d+(\.\d+)? ms\b", "[MS]")
}

/// A pattern that matches this text.
fn regex_of(text: &str) -> String {
    text.replace('.', r"\.")
}

fn ask(transcript: &mut Transcript, daemon: &Daemon, arguments: &[&str]) {
    transcript.command(arguments, &[], daemon.ask(arguments));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check() {
    let mut cloud = Cloud::start("checked").await;
    let site = Site::bare("checked", &cloud.url, KEY, SCHOOL, "").await;
    let daemon = Daemon::of(&site, "store");
    let mut transcript = transcript(&site);
    transcript.heading("Before `init`");
    ask(&mut transcript, &daemon, &["check"]);
    ask(&mut transcript, &daemon, &["check", "--json"]);
    site.init().await;
    transcript.heading("All is well");
    ask(&mut transcript, &daemon, &["check"]);
    ask(&mut transcript, &daemon, &["check", "--cloud"]);
    site.run("drop trigger cloud_sync_1_update on tbl_room; drop table tbl_pass cascade")
        .await;
    cloud.away().await;
    transcript.heading("A trigger and a table are gone, and the cloud is away");
    ask(&mut transcript, &daemon, &["check"]);
    transcript.assert("reports", "check");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status() {
    let (_cloud, site) = Site::school_with_cloud("status").await;
    let daemon = Daemon::of(&site, "store");
    let mut transcript = transcript(&site)
        .hide(r"\w+ [^\n]* a batch, p50/p99", "[STEPS] a batch, p50/p99")
        .hide(r"\d+\.\d+ s old", "[AGE] old")
        .hide(r"(outbox +\[SIZE\])[^\n]*", "$1, [GROWTH AND ROOM]");
    site.run(ROWS).await;
    transcript.heading("No replicator runs");
    ask(&mut transcript, &daemon, &["status"]);
    let process = daemon.start();
    daemon.caught_up().await;
    transcript.heading("A replicator runs and has caught up");
    ask(&mut transcript, &daemon, &["status"]);
    assert!(process.terminate().await.success());
    transcript.assert("reports", "status");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sync() {
    let mut cloud = Cloud::start("synced").await;
    let site = Site::bare("synced", &cloud.url, KEY, SCHOOL, "").await;
    site.run(ROWS).await;
    site.init().await;
    let daemon = Daemon::of(&site, "store");
    let mut transcript = transcript(&site);
    transcript.heading("Rows that are older than capture");
    ask(
        &mut transcript,
        &daemon,
        &["sync", "--entity", "rooms", "--entity", "cameras"],
    );
    ask(&mut transcript, &daemon, &["sync", "--json"]);
    cloud.away().await;
    transcript.heading("The cloud is away");
    ask(&mut transcript, &daemon, &["sync", "--log", "error"]);
    transcript.assert("reports", "sync");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backfill() {
    let mut cloud = Cloud::start("filled").await;
    let site = Site::bare("filled", &cloud.url, KEY, SCHOOL, "").await;
    site.run(ROWS).await;
    let daemon = Daemon::of(&site, "store");
    let mut transcript = transcript(&site);
    transcript.heading("Before `init`");
    ask(&mut transcript, &daemon, &["backfill"]);
    site.init().await;
    transcript.heading("Rows that are older than capture");
    ask(&mut transcript, &daemon, &["backfill"]);
    ask(
        &mut transcript,
        &daemon,
        &["backfill", "--entity", "rooms", "--all", "--json"],
    );
    cloud.away().await;
    transcript.heading("The cloud is away");
    ask(
        &mut transcript,
        &daemon,
        &["backfill", "--restart", "--log", "error"],
    );
    transcript.assert("reports", "backfill");
}
