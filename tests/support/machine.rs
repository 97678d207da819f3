//! Servers of a test's own, which it may start, stop, copy and promote; all gone with the test however it
//! ends.
//!
//! A shell runs one command a line and answers its exit status; when its input ends it stops the servers and
//! removes their folder: that it does even where the tests were killed.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls};

use super::postgres::{binaries, free_port, shell_for};
use super::site::LIMIT;

/// $1 binaries, $2 folder.
const SCRIPT: &str = r#"
PATH="$1:$PATH"; cd "$2"; unset PGDATA PGPORT PGHOST
while read -r line; do eval "$line" >>"$2/log" 2>&1 </dev/null; echo "$?"; done
for pid in "$2"/*/postmaster.pid; do if [ -f "$pid" ]; then kill -QUIT "$(head -n 1 "$pid")"; fi; done
cd /; sleep 0.2; rm -rf "$2"
"#;

/// A folder of servers, each by its name.
pub(crate) struct Machine {
    folder: PathBuf,
    port: u16,
    shell: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
    _keeper: Child,
}

impl Machine {
    /// A machine with one running server, `main`, with these settings and the usual ones.
    pub(crate) fn start(settings: &str) -> Self {
        let machine = Self::empty();
        machine.run("initdb -D main -U postgres -A trust -E UTF8 --locale=C.UTF-8 --no-sync");
        machine.up("main", settings);
        machine
    }

    fn empty() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("cloud-sync-machine-")
            .tempdir()
            .unwrap()
            .keep();
        let port = free_port();
        let mut command = shell_for(&folder);
        let mut keeper = command
            .args(["-c", SCRIPT, "sh"])
            .arg(binaries())
            .arg(&folder)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let shell = (
            keeper.stdin.take().unwrap(),
            BufReader::new(keeper.stdout.take().unwrap()),
        );
        Self {
            folder,
            port,
            shell: Mutex::new(shell),
            _keeper: keeper,
        }
    }

    /// Runs a command in the machine's folder, with PostgreSQL's own in its path.
    pub(crate) fn run(&self, command: &str) {
        let status = self.try_run(command);
        let log = std::fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        assert_eq!(status, 0, "{command}\n{log}");
    }

    fn try_run(&self, command: &str) -> i32 {
        let mut shell = self.shell.lock().unwrap();
        writeln!(shell.0, "{command}").unwrap();
        let mut answer = String::new();
        shell.1.read_line(&mut answer).unwrap();
        answer.trim().parse().unwrap()
    }

    /// Starts a server on the machine's port.
    pub(crate) fn up(&self, name: &str, settings: &str) {
        self.up_at(name, self.port, settings);
    }

    /// Starts a server on another port.
    pub(crate) fn up_at(&self, name: &str, port: u16, settings: &str) {
        self.run(&format!(
            "pg_ctl -D {name} -w -t 60 -l {name}.log -o \"-c listen_addresses=127.0.0.1 -c port={port} \
             -c unix_socket_directories={} -c fsync=off -c autovacuum=off {settings}\" start",
            self.folder.display()
        ));
    }

    /// Starts a server whose files cannot grow beyond so many kilobytes: to it, the disk is full then.
    pub(crate) fn up_bounded(&self, name: &str, kilobytes: u32) {
        // The unit of `ulimit -f` is 512 bytes in one shell and 1,024 in another: `prlimit` counts bytes.
        self.run(&format!(
            "prlimit --fsize={} pg_ctl -D {name} -w -t 60 -l {name}.log -o \"-c listen_addresses=127.0.0.1 \
             -c port={} \
             -c unix_socket_directories={} -c fsync=off -c autovacuum=off -c max_wal_size=64MB\" start",
            u64::from(kilobytes) * 1024,
            self.port,
            self.folder.display()
        ));
    }

    /// Stops a server: `fast` or `immediate`.
    pub(crate) fn down(&self, name: &str, mode: &str) {
        self.run(&format!("pg_ctl -D {name} -w -t 60 -m {mode} stop"));
    }

    /// A running streaming replica of the server on the machine's port, on a port of its own. Answers that
    /// port.
    pub(crate) fn replica(&self, name: &str) -> u16 {
        self.run(&format!(
            "pg_basebackup -h 127.0.0.1 -p {} -U postgres -D {name} -X stream -c fast -R -d \
             'application_name={name}'",
            self.port
        ));
        let port = free_port();
        self.up_at(name, port, "");
        port
    }

    /// The machine's port.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Promotes a replica, and waits until it takes writes.
    pub(crate) fn promote(&self, name: &str) {
        self.run(&format!("pg_ctl -D {name} -w -t 60 promote"));
    }

    /// The URL of a database of the server on the machine's port.
    pub(crate) fn url(&self, database: &str) -> String {
        self.url_at(self.port, "postgres", database)
    }

    /// The URL of a database, as a role.
    pub(crate) fn url_as(&self, role: &str, database: &str) -> String {
        self.url_at(self.port, role, database)
    }

    pub(crate) fn url_at(&self, port: u16, role: &str, database: &str) -> String {
        format!("postgres://{role}@127.0.0.1:{port}/{database}")
    }

    /// Makes a database, and answers its URL.
    pub(crate) async fn database(&self, name: &str) -> String {
        let client = reach(&self.url("postgres")).await;
        client
            .batch_execute(&format!("create database {name}"))
            .await
            .unwrap();
        self.url(name)
    }
}

/// Connects as soon as the server lets it.
pub(crate) async fn reach(url: &str) -> Client {
    let start = Instant::now();
    loop {
        match tokio_postgres::connect(url, NoTls).await {
            Ok((client, connection)) => {
                tokio::spawn(connection);
                return client;
            }
            Err(error) => assert!(start.elapsed() < LIMIT, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A writer that goes on through every outage of its server.
pub(crate) struct Load {
    done: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Load {
    /// Runs the statement over and over, with `$n` in it the number of the turn.
    pub(crate) fn start(url: &str, statement: &'static str) -> Self {
        let (done, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let task = tokio::spawn({
            let (url, done, stop) = (url.to_owned(), done.clone(), stop.clone());
            async move {
                let mut turn = 0;
                while !stop.load(Ordering::Relaxed) {
                    let Ok((client, connection)) = tokio_postgres::connect(&url, NoTls).await else {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        continue;
                    };
                    tokio::spawn(connection);
                    while !stop.load(Ordering::Relaxed) {
                        turn += 1;
                        let sql = statement.replace("$n", &turn.to_string());
                        if client.batch_execute(&sql).await.is_err() {
                            break;
                        }
                        done.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                }
            }
        });
        Self { done, stop, task }
    }

    /// Waits until so many further turns have succeeded.
    pub(crate) async fn turns(&self, count: u64) {
        let (goal, start) = (self.done.load(Ordering::Relaxed) + count, Instant::now());
        while self.done.load(Ordering::Relaxed) < goal {
            assert!(start.elapsed() < LIMIT, "the writer cannot write");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends it.
    pub(crate) async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
    }
}
