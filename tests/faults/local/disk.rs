//! The disk under the store and under the log.
//!
//! A limit on the size of files, set on the running process, takes the place of a full disk: each write
//! fails, no root is needed, and the space comes back when the limit is lifted.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use super::{garden, plant, troubled};
use crate::support::oracle::Tally;
use crate::support::process::{Daemon, Process};
use crate::support::site::{Cloud, LIMIT, Site, connect};

/// Limits the size of what the process writes.
fn limit(process: &Process<'_>, bytes: &str) {
    let done = Command::new("prlimit")
        .args(["--pid", &process.pid(), &format!("--fsize={bytes}:unlimited")])
        .status()
        .expect("prlimit, of util-linux");
    assert!(done.success());
}

/// How many stores were set aside.
fn set_aside(site: &Site) -> usize {
    let names = std::fs::read_dir(site.folder.path().join("store")).unwrap();
    names
        .filter(|entry| {
            let name = entry.as_ref().unwrap().file_name();
            name.to_string_lossy().contains("broken")
        })
        .count()
}

fn is_root() -> bool {
    Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|id| id.stdout.trim_ascii() == b"0")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_stops_the_drain_loudly_and_it_goes_on_when_there_is_space() {
    let cloud = Cloud::start("disk_full").await;
    let site = garden("disk_full", &cloud).await;
    let daemon = Daemon::of(&site, "store");
    let mut tally = Tally::default();
    let process = daemon.start();
    plant(&site, 1, 100).await;
    daemon.caught_up().await;
    for round in 1..=3 {
        // Given a disk that takes no byte, of the store or of the log,
        limit(&process, "1");
        tally.faults += 1;
        // when changes come, they are captured, and the program says what it cannot do and what helps;
        plant(&site, round * 1000, round * 1000 + 200).await;
        troubled(&daemon, "the checkpoint in").await;
        let reason = daemon.status().await.unwrap().reason.unwrap();
        for words in ["File too large", "free space on that disk"] {
            assert!(reason.contains(words), "{reason}");
        }
        plant(&site, round * 1000 + 300, round * 1000 + 400).await;
        // then it continues once there is space.
        limit(&process, "unlimited");
        daemon.caught_up().await;
    }
    assert!(process.terminate().await.success());
    // Nothing was set aside: no byte of the store was broken.
    assert_eq!(set_aside(&site), 0);
    tally.judge(&site, &cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_full_at_the_start_is_waited_for() {
    let cloud = Cloud::start("full_start").await;
    let site = garden("full_start", &cloud).await;
    let daemon = Daemon::of(&site, "store");
    let mut tally = Tally::default();
    let process = daemon.start();
    plant(&site, 1, 100).await;
    daemon.caught_up().await;
    process.kill();
    tally.kills += 1;
    let trash = daemon.checkpoint().join("db");
    for spoil in [false, true] {
        if spoil {
            // Nor is a store whose bytes are broken set aside while the disk takes nothing.
            std::fs::write(&trash, vec![0xa5; 1 << 20]).unwrap();
        }
        // Given a disk that is full from the first moment
        let script = "ulimit -S -f 0; exec \"$0\" \"$@\"";
        let process = daemon.start_under(&[], |command| {
            let mut shell = Command::new("sh");
            shell.args(["-c", script]).arg(command.get_program());
            shell
                .args(command.get_args())
                .current_dir(site.folder.path())
                .env_clear();
            shell
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            *command = shell;
        });
        tally.faults += 1;
        let count = i64::from(spoil) * 1000;
        plant(&site, 1000 + count, 1100 + count).await;
        troubled(&daemon, "open the checkpoint store").await;
        // then it continues once there is space.
        limit(&process, "unlimited");
        daemon.caught_up().await;
        process.kill();
        tally.kills += 1;
        // What was set aside then was broken indeed.
        assert_eq!(set_aside(&site), usize::from(spoil));
    }
    tally.judge(&site, &cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_takes_nothing_stops_nothing() {
    let mut cloud = Cloud::start("log_full").await;
    let site = garden("log_full", &cloud).await;
    let daemon = Daemon::of(&site, "store");
    let mut tally = Tally::default();
    // Given a log on a full disk
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let process = daemon.start_under(&["delivery.batch_rows=50"], |command| {
        command.stdout(full()).stderr(full());
    });
    tally.faults += 1;
    plant(&site, 1, 100).await;
    daemon.caught_up().await;
    // when there is much to say,
    cloud.away().await;
    plant(&site, 101, 200).await;
    troubled(&daemon, "cloud").await;
    cloud.back().await;
    // then all goes on as ever.
    daemon.caught_up().await;
    assert_eq!(process.terminate().await.code(), Some(0));
    tally.judge(&site, &cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_cannot_be_a_folder_is_told_with_its_remedy() {
    let cloud = Cloud::start("no_folder").await;
    let site = garden("no_folder", &cloud).await;
    let mut tally = Tally::default();
    // Given a file where the store's folder should be
    std::fs::write(site.folder.path().join("taken"), "a file").unwrap();
    let daemon = Daemon::of(&site, "taken");
    plant(&site, 1, 100).await;
    tally.faults += 1;
    let status = daemon.start().ended(LIMIT).await;
    assert_eq!(status.code(), Some(1), "{}", daemon.log());
    for words in ["cannot ", "taken", "move it away, or set store.path"] {
        assert!(daemon.log().contains(words), "{}", daemon.log());
    }
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
    // or a file in place of the database's folder below it, which a running program waits for.
    let daemon = Daemon::of(&site, "half");
    std::fs::create_dir(site.folder.path().join("half")).unwrap();
    std::fs::write(daemon.checkpoint(), "a file").unwrap();
    tally.faults += 1;
    let process = daemon.start();
    troubled(&daemon, "is not a folder; move it away").await;
    std::fs::remove_file(daemon.checkpoint()).unwrap();
    daemon.caught_up().await;
    assert!(process.terminate().await.success());
    tally.judge(&site, &cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_cannot_be_written_is_told_with_its_remedy() {
    let cloud = Cloud::start("read_only").await;
    let site = garden("read_only", &cloud).await;
    let daemon = Daemon::of(&site, "store");
    let mut tally = Tally::default();
    let process = daemon.start();
    plant(&site, 1, 100).await;
    daemon.caught_up().await;
    assert!(process.terminate().await.success());
    // Given a store that belongs to someone else, as a careless chmod leaves it
    let store = site.folder.path().join("store");
    let modes = |folder: u32, rest: u32| {
        for (path, mode) in [(daemon.checkpoint(), rest), (store.clone(), folder)] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    let open = |mode| std::fs::set_permissions(site.folder.path(), std::fs::Permissions::from_mode(mode));
    open(0o755).unwrap();
    modes(0o555, 0o555);
    for name in ["store/control.token", "cloud-sync.toml"] {
        let path = site.folder.path().join(name);
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
    }
    tally.faults += 1;
    plant(&site, 101, 200).await;
    // Rights do not bind root: there the program runs as another user.
    let output = if is_root() {
        // From a place that this user can reach.
        let binary = site.folder.path().join("cloud-sync");
        std::fs::copy(env!("CARGO_BIN_EXE_cloud-sync"), &binary).unwrap();
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(binary);
        command
    } else {
        Command::new(env!("CARGO_BIN_EXE_cloud-sync"))
    }
    .args(["check", "--set", &format!("store.path={}", store.display())])
    .current_dir(site.folder.path())
    .env_clear()
    .output()
    .unwrap();
    // then it says which folder, and what helps.
    let printed =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{printed}");
    for words in [
        "open the checkpoint store",
        "Permission denied",
        "make the folder writable",
    ] {
        assert!(printed.contains(words), "no {words:?} in {printed}");
    }
    modes(0o755, 0o755);
    let process = daemon.start();
    daemon.caught_up().await;
    assert!(process.terminate().await.success());
    tally.judge(&site, &cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_store_for_two_sites_is_refused() {
    let cloud = Cloud::start("two_sites").await;
    let (one, other) = (
        garden("two_sites", &cloud).await,
        garden("two_sites", &cloud).await,
    );
    let mut tally = Tally::default();
    let first = Daemon::of(&one, "store");
    let process = first.start();
    plant(&one, 1, 50).await;
    first.caught_up().await;
    // Given a second site's replicator that was given the first one's store,
    let shared = one.folder.path().join("store").display().to_string();
    let second = Daemon::of(&other, &shared);
    tally.faults += 1;
    let other_process = second.start();
    troubled(&second, "another cloud-sync process uses it").await;
    // then the first one is not disturbed;
    plant(&one, 51, 100).await;
    first.caught_up().await;
    assert!(process.terminate().await.success());
    // and when it ends, the second one does not take its checkpoint for its own.
    assert_eq!(
        other_process.ended(LIMIT).await.code(),
        Some(3),
        "{}",
        second.log()
    );
    for words in [
        "the store holds the checkpoint of outbox",
        "correct source.database_url or store.path",
    ] {
        assert!(second.log().contains(words), "{}", second.log());
    }
    let there = connect(&cloud.database_url).await;
    let rows: i64 = there
        .query_one("select count(*) from cloud.pots", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(rows, 100);
    tally.judge(&one, &cloud).await;
}
