//! A program one version older and this one, at the two ends of one replication. The older one is built once from
//! the last tag, below the folder of the build; `CLOUD_SYNC_OLD_PROGRAM` names another one. Where there is
//! neither, the tests say so and end.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use crate::support::postgres::Server;
use crate::support::process::Daemon;
use crate::support::receiver::ReceiverProcess;
use crate::support::site::{Cloud, KEY, SITE, Site, connect, entity};
use crate::support::sql::until;

const TABLES: &str = "
    create table room (id bigint primary key, name text, price numeric, at timestamptz, about jsonb);
    create table seat (room_id bigint references room, place int, photo text, primary key (room_id, place));";

const EVERY_WRITE: &str = "
    insert into room select n, 'room ' || n, n / 8.0, now(), jsonb_build_object('n', n) from generate_series(1, 300) n;
    insert into seat select n, 1, 'seat.jpg' from generate_series(1, 50) n;
    update room set name = name || ' é' where id % 3 = 0;
    delete from seat where room_id > 40;
    delete from room where id > 290;";

const MORE_WRITES: &str = "
    insert into room (id, name) select n, 'late' from generate_series(1000, 1100) n;
    update seat set photo = null where room_id = 2;
    delete from room where id = 280;";

const CHANGED_FILE: &str = "select count(*) = 39 from cloud.seat where photo_url is not null";

fn config() -> String {
    let files = "files = [{ column = \"photo\", url_column = \"photo_url\", directory = \"seats\" }]";
    entity("room", "room", &["id"], "") + &entity("seat", "seat", &["room_id", "place"], files)
}

/// The older program; `None` if there is none, which is said.
fn old_program() -> Option<&'static Path> {
    static PROGRAM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match PROGRAM.get_or_init(find_or_build) {
        Ok(program) => Some(program),
        Err(why) => {
            println!("skipped: {why}");
            None
        }
    }
}

fn find_or_build() -> Result<PathBuf, String> {
    if let Some(program) = std::env::var_os("CLOUD_SYNC_OLD_PROGRAM") {
        return Ok(program.into());
    }
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let git = |arguments: &[&str]| {
        let output = Command::new("git")
            .args(arguments)
            .current_dir(repository)
            .output();
        let output = output.map_err(|error| format!("there is no git: {error}"))?;
        match output.status.success() {
            true => Ok(output.stdout),
            false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        }
    };
    // The tag of this very commit is no older one.
    let tag = git(&["describe", "--tags", "--abbrev=0", "HEAD^"])
        .map_err(|why| format!("no older commit has a tag to build a program from: {why}"))?;
    let tag = String::from_utf8_lossy(&tag).trim().to_owned();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("versions");
    let program = folder.join(format!("cloud-sync-{}", tag.replace('/', "-")));
    if program.exists() {
        return Ok(program);
    }
    println!("building the program of {tag}");
    let source = folder.join("source");
    let _ = std::fs::remove_dir_all(&source);
    std::fs::create_dir_all(&source).map_err(|error| error.to_string())?;
    let archive = folder.join("source.tar");
    std::fs::write(&archive, git(&["archive", "--format=tar", &tag])?).map_err(|error| error.to_string())?;
    run(Command::new("tar")
        .arg("-xf")
        .arg(&archive)
        .arg("-C")
        .arg(&source));
    let target = folder.join("target");
    run(Command::new(env!("CARGO"))
        .args(["build", "--locked", "--bin", "cloud-sync", "--target-dir"])
        .arg(&target)
        .current_dir(&source));
    std::fs::rename(target.join("debug/cloud-sync"), &program).map_err(|error| error.to_string())?;
    Ok(program)
}

fn run(command: &mut Command) {
    let output: Output = command.stdin(Stdio::null()).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {printed}");
}

fn ask(daemon: &Daemon, arguments: &[&str]) {
    let output = daemon.ask(arguments);
    let printed = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{arguments:?}: {printed}");
}

async fn site(hint: &str, cloud: &Cloud) -> Site {
    let site = Site::bare(hint, &cloud.url, KEY, TABLES, &config()).await;
    std::fs::create_dir_all(site.media()).unwrap();
    std::fs::write(site.media().join("seat.jpg"), "a picture").unwrap();
    site
}

/// Waits until the cloud has all that was written, its last statement among it, and compares both sides.
async fn assert_arrives(site: &Site, cloud: &Cloud, last: &str) {
    let held = connect(&cloud.database_url).await;
    until(
        &held,
        "select to_regclass('cloud.room') is not null and to_regclass('cloud.seat') is not null",
    )
    .await;
    until(&held, last).await;
    site.assert_equal(cloud).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn this_replicator_works_with_the_last_versions_receiver() {
    let Some(old) = old_program() else { return };
    let mut cloud = Cloud::start("old_receiver").await;
    cloud.away().await;
    // What the older receiver makes itself.
    cloud.database_url = Server::get().database("old_receiver_cloud").await;
    let folder = tempfile::tempdir().unwrap();
    let mut receiver = ReceiverProcess::new(&cloud, folder.path().to_owned(), &[(SITE, &[KEY])]);
    receiver.set_program(old);
    receiver.ensure();
    receiver.logged("the receiver listens").await;
    let site = site("old_receiver", &cloud).await;
    let daemon = Daemon::of(&site, "store");
    ask(&daemon, &["init"]);
    site.run("insert into room (id, name) values (0, 'before')").await;
    let running = daemon.start();
    site.run(EVERY_WRITE).await;
    daemon.caught_up().await;
    assert_arrives(
        &site,
        &cloud,
        "select count(*) = 40 from cloud.seat where photo_url is not null",
    )
    .await;
    ask(&daemon, &["check"]);
    // The receiver is replaced by today's, on the same database, while changes come.
    receiver.kill();
    site.run(MORE_WRITES).await;
    receiver.set_program(Path::new(env!("CARGO_BIN_EXE_cloud-sync")));
    receiver.ensure();
    daemon.caught_up().await;
    assert_arrives(&site, &cloud, CHANGED_FILE).await;
    running.terminate().await;
    ask(&daemon, &["sync"]);
    assert_arrives(&site, &cloud, CHANGED_FILE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_versions_replicator_works_with_this_receiver_and_is_replaced_by_this_one() {
    let Some(old) = old_program() else { return };
    let cloud = Cloud::start("old_replicator").await;
    let site = site("old_replicator", &cloud).await;
    let mut daemon = Daemon::of(&site, "store");
    daemon.set_program(old);
    ask(&daemon, &["init"]);
    let running = daemon.start();
    site.run(EVERY_WRITE).await;
    assert_arrives(
        &site,
        &cloud,
        "select count(*) = 40 from cloud.seat where photo_url is not null",
    )
    .await;
    ask(&daemon, &["check"]);
    running.terminate().await;
    site.run(MORE_WRITES).await;
    daemon.set_program(Path::new(env!("CARGO_BIN_EXE_cloud-sync")));
    ask(&daemon, &["upgrade"]);
    let running = daemon.start();
    daemon.caught_up().await;
    assert_arrives(&site, &cloud, CHANGED_FILE).await;
    assert!(running.terminate().await.success(), "{}", daemon.log());
    ask(&daemon, &["sync"]);
    assert_arrives(&site, &cloud, CHANGED_FILE).await;
}
