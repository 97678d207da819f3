//! What the real program tells a service manager that started it, and what its log is like in the journal.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::process::{Daemon, signal};
use crate::support::site::{Cloud, KEY, LIMIT, NOWHERE, Site};

const TABLES: &str = "create table pot (pot_id bigint primary key, label text)";

const ENTITIES: &str = "
[[entity]]
name = \"pots\"
table = \"pot\"
key = [\"pot_id\"]
path = \"pots\"
";

/// The socket of a service manager, and what it has heard.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    heard: Vec<String>,
}

impl Manager {
    fn listen(folder: &Path) -> Self {
        let path = folder.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        Self {
            socket,
            path,
            heard: Vec::new(),
        }
    }

    /// The environment that systemd gives a service with `Type=notify` and `WatchdogSec=600ms`.
    fn environment(&self, command: &mut Command) {
        command
            .env("NOTIFY_SOCKET", &self.path)
            .env("WATCHDOG_USEC", "600000");
    }

    /// Waits for a line that begins with this, and drops what came before it.
    fn hears(&mut self, beginning: &str) -> String {
        let start = Instant::now();
        loop {
            let found = self.heard.iter().position(|line| line.starts_with(beginning));
            if let Some(index) = found {
                return self.heard.drain(..=index).next_back().unwrap();
            }
            assert!(start.elapsed() < LIMIT, "no {beginning:?} among {:?}", self.heard);
            self.receive();
        }
    }

    fn receive(&mut self) {
        let mut buffer = [0; 4096];
        if let Ok(length) = self.socket.recv(&mut buffer) {
            let text = String::from_utf8(buffer[..length].to_vec()).unwrap();
            self.heard.extend(text.lines().map(str::to_owned));
        }
    }
}

/// Lets a command log to a file that it takes for the journal.
fn log_to_journal(command: &mut Command, path: &Path) {
    let file = File::create(path).unwrap();
    let stat = file.metadata().unwrap();
    command
        .env("JOURNAL_STREAM", format!("{}:{}", stat.dev(), stat.ino()))
        .stderr(file);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_replicator_tells_that_it_is_ready_alive_reloading_and_stopping() {
    let (_cloud, site) = Site::captured("notify", TABLES, ENTITIES).await;
    let mut manager = Manager::listen(site.folder.path());
    let journal = site.folder.path().join("journal");
    let daemon = Daemon::of(&site, "store");
    let process = daemon.start_under(&[], |command| {
        manager.environment(command);
        log_to_journal(command, &journal);
    });
    manager.hears("READY=1");
    site.run("insert into pot values (1, 'a pot')").await;
    daemon.caught_up().await;
    manager.hears("STATUS=Every");
    for _ in 0..3 {
        manager.hears("WATCHDOG=1");
    }
    process.signal("HUP");
    manager.hears("RELOADING=1");
    manager.hears("MONOTONIC_USEC=");
    manager.hears("READY=1");
    manager.hears("WATCHDOG=1");
    process.signal("TERM");
    manager.hears("STOPPING=1");
    assert!(process.ended(LIMIT).await.success());
    // Each line has its priority, and no time: the journal has that.
    let log = std::fs::read_to_string(&journal).unwrap();
    assert!(
        log.contains("<6>cloud_sync::cli::run: the operator API listens"),
        "{log}"
    );
    for line in log.lines() {
        assert!(
            ["<3>", "<4>", "<6>"].iter().any(|mark| line.starts_with(mark)),
            "{line:?} in\n{log}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_away_delays_no_start_and_is_told() {
    let patterns = "[catalogue]\ntables = [\"public.*\"]\n";
    let site = Site::bare("notify_away", NOWHERE, KEY, TABLES, patterns).await;
    let mut manager = Manager::listen(site.folder.path());
    let journal = site.folder.path().join("journal");
    let daemon = Daemon::of(&site, "store");
    let away = ["source.database_url=postgresql://postgres@127.0.0.1:9/nowhere"];
    let process = daemon.start_under(&away, |command| {
        manager.environment(command);
        log_to_journal(command, &journal);
    });
    manager.hears("READY=1");
    manager.hears("STATUS=The site's database is not reachable.");
    manager.hears("WATCHDOG=1");
    process.signal("TERM");
    manager.hears("STOPPING=1");
    assert!(process.ended(LIMIT).await.success());
    let log = std::fs::read_to_string(&journal).unwrap();
    assert!(
        log.contains("<4>cloud_sync::cli::run: the site's database has to tell"),
        "{log}"
    );
    // What ends a program is an error in the journal too.
    let wrong = daemon.start_under(&["cloud.timeout=soon"], |command| {
        log_to_journal(command, &journal)
    });
    assert_eq!(wrong.ended(LIMIT).await.code(), Some(2));
    let log = std::fs::read_to_string(&journal).unwrap();
    assert!(log.starts_with("<3>error[CS"), "{log}");
    assert!(log.lines().all(|line| line.starts_with("<3>")), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_receiver_tells_that_it_serves_is_alive_and_stops() {
    let mut cloud = Cloud::start("notify").await;
    cloud.away().await;
    let folder = tempfile::tempdir().unwrap();
    let mut manager = Manager::listen(folder.path());
    let address = cloud.address().to_string();
    let settings = format!(
        "[receiver]\nlisten = {address:?}\ndatabase_url = {:?}\nfiles = \"files\"\n\
         [receiver.keys]\ncollege = [\"{KEY}\"]\n",
        cloud.database_url
    );
    std::fs::write(folder.path().join("receiver.toml"), settings).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_cloud-sync"));
    command
        .args(["receiver", "--config", "receiver.toml"])
        .current_dir(folder.path())
        .env_clear()
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    manager.environment(&mut command);
    let mut child = command.spawn().unwrap();
    manager.hears("READY=1");
    assert_eq!(
        manager.hears("STATUS="),
        format!("STATUS=Serves sites at {address}.")
    );
    for _ in 0..3 {
        manager.hears("WATCHDOG=1");
    }
    signal(child.id(), "HUP");
    manager.hears("RELOADING=1");
    manager.hears("READY=1");
    signal(child.id(), "TERM");
    manager.hears("STOPPING=1");
    let ended = tokio::task::spawn_blocking(move || child.wait().unwrap());
    assert!(ended.await.unwrap().success());
}
