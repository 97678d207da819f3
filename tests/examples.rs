//! The programs in `examples` are compiled with the tests, and do what they say.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::postgres::Server;
use crate::support::site::{Cloud, KEY, LIMIT, Site, connect, entity, provider};

const TABLE: &str = "create table room (id bigint primary key, name text)";

fn example(name: &str) -> Command {
    let program = Path::new(env!("CARGO_BIN_EXE_cloud-sync"));
    let path: PathBuf = program.parent().unwrap().join("examples").join(name);
    Command::new(path)
}

/// A site with two rooms, and its receiver.
async fn rooms(hint: &str) -> (Cloud, Site) {
    let (cloud, site) = Site::captured(hint, TABLE, &entity("rooms", "room", &["id"], "")).await;
    site.run("insert into room values (1, 'A'), (2, 'B')").await;
    (cloud, site)
}

fn replicating(name: &str, cloud: &Cloud, site: &Site) -> Command {
    let folder = site.folder.path();
    std::fs::create_dir_all(folder.join("pictures")).unwrap();
    let mut command = example(name);
    command
        .args([folder.join("pictures"), folder.join("example")])
        .env("DATABASE_URL", &site.database_url)
        .env("CLOUD_URL", &cloud.url)
        .env("CLOUD_KEY", KEY);
    command
}

/// Interrupts it, as ctrl-c does, and checks that it ends well.
fn interrupt(mut process: Child) {
    let id = process.id().to_string();
    let sent = Command::new("kill").args(["-INT", &id]).status().unwrap();
    assert!(sent.success());
    assert!(process.wait().unwrap().success());
}

#[test]
fn own_catalogue_lists_its_entities() {
    let output = example("own_catalogue").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    assert!(text.contains("tbl_attendance goes to /api/attendance"), "{text}");
}

// The receiver answers on another thread while this one waits for the program.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sync_once_pushes_what_the_cloud_lacks() {
    let (cloud, site) = rooms("example_sync").await;
    let output = replicating("sync_once", &cloud, &site).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("rooms: 2 rows pushed"), "{output:?}");
    site.assert_equal(&cloud).await;
}

#[tokio::test]
async fn embed_replicator_replicates_until_it_is_interrupted() {
    let (cloud, site) = rooms("example_run").await;
    let mut process = replicating("embed_replicator", &cloud, &site)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = process.stdout.take().unwrap();
    let client = connect(&cloud.database_url).await;
    let start = Instant::now();
    loop {
        // Before the first row there is no table.
        let rows = client.query("select from cloud.rooms", &[]).await;
        if rows.is_ok_and(|rows| rows.len() == 2) {
            break;
        }
        assert!(start.elapsed() < LIMIT, "the rooms are not in the cloud");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    interrupt(process);
    let told: Vec<String> = BufReader::new(output).lines().map(|line| line.unwrap()).collect();
    for line in ["replicating", "accepted by the cloud: 2"] {
        assert!(told.iter().any(|told| told == line), "{told:?}");
    }
    site.assert_equal(&cloud).await;
}

#[tokio::test]
async fn embed_receiver_serves_until_it_is_interrupted() {
    let files = tempfile::tempdir().unwrap();
    let mut process = example("embed_receiver")
        .arg(files.path())
        .env("DATABASE_URL", Server::get().database("example_receiver").await)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let output = process.stdout.take().unwrap();
    BufReader::new(output).read_line(&mut line).unwrap();
    let url = line.trim().strip_prefix("cloud.url is ").unwrap();
    provider();
    let answer = reqwest::Client::new()
        .get(format!("{url}/sync-status"))
        .bearer_auth("key-of-the-college")
        .send()
        .await
        .unwrap();
    assert!(answer.status().is_success());
    interrupt(process);
}
