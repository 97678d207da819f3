//! One private PostgreSQL server for the test binary, gone with it however it ends.
//!
//! A shell that holds the other end of a pipe starts the server, and stops it as soon as the pipe closes:
//! that the kernel does even where the tests were killed.

use std::io::Write;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection, PgConnection};

static SERVER: OnceLock<Server> = OnceLock::new();

/// Initialises, starts and, when its standard input ends, stops and removes a server. $1 binaries, $2 folder,
/// $3 port; then options of the server. Each line of the input is a signal's name: it ends the server, which
/// is then started again.
const SCRIPT: &str = r#"
binaries=$1 folder=$2 port=$3
shift 3
"$binaries"/initdb -D "$folder/data" -U postgres -A trust -E UTF8 --locale=C.UTF-8 --no-sync >"$folder/log" 2>&1 </dev/null || exit 1
start() {
    "$binaries"/postgres -D "$folder/data" -c listen_addresses=127.0.0.1 -c port="$port" \
        -c unix_socket_directories="$folder" -c fsync=off -c max_connections=300 -c wal_level=logical \
        -c max_wal_size=4GB -c log_min_error_statement=panic "$@" >>"$folder/log" 2>&1 </dev/null &
    server=$!
}
start "$@"
while read -r signal; do
    kill -"$signal" $server
    wait $server
    start "$@"
done
kill -QUIT $server
wait $server
[ -e "$folder/keep" ] || rm -rf "$folder"
"#;

/// A running server.
pub(crate) struct Server {
    port: u16,
    folder: PathBuf,
    databases: AtomicU32,
    creating: tokio::sync::Mutex<()>,
    keeper: Mutex<Child>,
}

impl Drop for Server {
    /// Waits until the server is gone, and its folder.
    fn drop(&mut self) {
        let keeper = self.keeper.get_mut().unwrap_or_else(PoisonError::into_inner);
        drop(keeper.stdin.take());
        let _ = keeper.wait();
    }
}

impl Server {
    /// The run's server, started by the first who asks.
    pub(crate) fn get() -> &'static Self {
        SERVER.get_or_init(|| Self::with(&[]))
    }

    /// A server of one's own with further options, such as `max_prepared_transactions=20`. It ends when it is
    /// dropped.
    pub(crate) fn with(options: &[&str]) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("cloud-sync-tests-")
            .tempdir()
            .expect("a temporary folder")
            .keep();
        let port = free_port();
        let mut command = shell_for(&folder);
        let keeper = command
            .args(["-c", SCRIPT, "sh"])
            .arg(binaries())
            .arg(&folder)
            .arg(port.to_string())
            .args(options.iter().flat_map(|option| ["-c", option]))
            .current_dir("/")
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("a shell to keep the server");
        let server = Self {
            port,
            folder,
            databases: AtomicU32::new(0),
            creating: tokio::sync::Mutex::new(()),
            keeper: Mutex::new(keeper),
        };
        server.wait("");
        server
    }

    /// Ends the server by a signal and starts it again: `QUIT` as in a crash, `INT` in order.
    #[allow(dead_code, reason = "for tests with a server of their own")]
    pub(crate) fn restart(&self, signal: &str) {
        let before = self.status();
        let before = before.lines().next().unwrap_or_default();
        let mut keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner);
        let input = keeper.stdin.as_mut().expect("the keeper's input");
        input
            .write_all(format!("{signal}\n").as_bytes())
            .expect("the keeper listens");
        self.wait(before);
    }

    fn status(&self) -> String {
        std::fs::read_to_string(self.folder.join("data/postmaster.pid")).unwrap_or_default()
    }

    /// Waits until the server, another process than `before`, says in its lock file that it is ready.
    fn wait(&self, before: &str) {
        let start = Instant::now();
        loop {
            let text = self.status();
            let mut lines = text.lines();
            if lines.next().is_some_and(|process| process != before)
                && lines.nth(6).is_some_and(|line| line.trim() == "ready")
            {
                return;
            }
            if start.elapsed() > Duration::from_secs(60) {
                let log = std::fs::read_to_string(self.folder.join("log")).unwrap_or_default();
                panic!("the private PostgreSQL server did not start:\n{log}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Keeps its folder when it ends, and answers it.
    #[allow(dead_code, reason = "for whoever inspects what went wrong")]
    pub(crate) fn keep(&self) -> &Path {
        std::fs::write(self.folder.join("keep"), "").expect("the server's folder can be written");
        &self.folder
    }

    /// Where its data and its log are.
    #[allow(dead_code, reason = "for whoever searches the raw bytes")]
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The URL of a database.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// The folder of its Unix socket, and its port.
    #[allow(dead_code, reason = "for tests that need a socket instead of TCP")]
    pub(crate) fn socket(&self) -> (&Path, u16) {
        (&self.folder, self.port)
    }

    /// Creates a new database, and answers its URL.
    pub(crate) async fn database(&self, hint: &str) -> String {
        let number = self.databases.fetch_add(1, Ordering::Relaxed);
        let name = format!("{hint}_{number}");
        assert!(
            name.bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'),
            "{name} is not a plain name"
        );
        let _one_at_a_time = self.creating.lock().await;
        let mut connection = PgConnection::connect(&self.url("postgres"))
            .await
            .expect("the private server answers");
        sqlx::raw_sql(AssertSqlSafe(format!("create database {name}")))
            .execute(&mut connection)
            .await
            .expect("a new database");
        connection.close().await.expect("the connection closes");
        self.url(&name)
    }
}

/// A free port for a server that ends and comes back: not one that the kernel gives to connections that go
/// out, as it could be taken in between.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(97);
    for _ in 0..10_000 {
        let nth = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = 12_000 + (nth % 20_000) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("there is no free port");
}

/// A shell that may run servers in the folder: as the user `postgres` where the tests run as root, whom
/// PostgreSQL refuses.
pub(crate) fn shell_for(folder: &Path) -> Command {
    let root = Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|id| id.stdout.trim_ascii() == b"0");
    if root {
        let given = Command::new("chown").arg("postgres").arg(folder).status();
        assert!(given.is_ok_and(|status| status.success()), "chown to postgres");
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "sh"]);
        command
    } else {
        Command::new("sh")
    }
}

/// The folder of the newest PostgreSQL's binaries.
pub(crate) fn binaries() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let newest = versions
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .max();
    if let Some(version) = newest {
        return PathBuf::from(format!("/usr/lib/postgresql/{version}/bin"));
    }
    let asked = Command::new("pg_config")
        .arg("--bindir")
        .output()
        .expect("pg_config");
    PathBuf::from(String::from_utf8_lossy(&asked.stdout).trim())
}
