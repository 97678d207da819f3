//! One private PostgreSQL server for the test binary, gone with it however it ends.
//!
//! A shell that holds the other end of a pipe starts the server, and stops it as soon as the pipe closes: that the
//! kernel does even where the tests were killed.

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection, PgConnection};

static SERVER: OnceLock<Server> = OnceLock::new();

/// Initialises, starts and, when its standard input ends, stops and removes a server.
/// $1 binaries, $2 folder, $3 port.
const SCRIPT: &str = r#"
"$1"/initdb -D "$2/data" -U postgres -A trust -E UTF8 --locale=C.UTF-8 --no-sync >"$2/log" 2>&1 </dev/null || exit 1
"$1"/postgres -D "$2/data" -c listen_addresses=127.0.0.1 -c port="$3" -c unix_socket_directories="$2" \
    -c fsync=off -c max_connections=300 -c wal_level=logical -c max_wal_size=4GB \
    -c log_min_error_statement=panic >>"$2/log" 2>&1 </dev/null &
server=$!
read -r _
kill -QUIT $server
wait $server
rm -rf "$2"
"#;

/// A running server.
pub struct Server {
    port: u16,
    folder: PathBuf,
    databases: AtomicU32,
    creating: tokio::sync::Mutex<()>,
    _keeper: Child,
}

impl Server {
    /// The run's server, started by the first who asks.
    pub fn get() -> &'static Self {
        SERVER.get_or_init(Self::start)
    }

    fn start() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("cloud-sync-tests-")
            .tempdir()
            .expect("a temporary folder")
            .keep();
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a free port")
            .port();
        let root = Command::new("id")
            .arg("-u")
            .output()
            .is_ok_and(|id| id.stdout.trim_ascii() == b"0");
        let mut command = if root {
            let given = Command::new("chown").arg("postgres").arg(&folder).status();
            assert!(given.is_ok_and(|status| status.success()), "chown to postgres");
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "sh"]);
            command
        } else {
            Command::new("sh")
        };
        let keeper = command
            .args(["-c", SCRIPT, "sh"])
            .arg(binaries())
            .arg(&folder)
            .arg(port.to_string())
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
            _keeper: keeper,
        };
        server.wait();
        server
    }

    /// Waits until the server says on its socket's lock file that it is ready.
    fn wait(&self) {
        let status = self.folder.join("data/postmaster.pid");
        let start = Instant::now();
        loop {
            let ready = std::fs::read_to_string(&status)
                .is_ok_and(|text| text.lines().nth(7).is_some_and(|line| line.trim() == "ready"));
            if ready {
                return;
            }
            if start.elapsed() > Duration::from_secs(60) {
                let log = std::fs::read_to_string(self.folder.join("log")).unwrap_or_default();
                panic!("the private PostgreSQL server did not start:\n{log}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The URL of a database.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// The folder of its Unix socket, and its port.
    #[allow(dead_code, reason = "for tests that need a socket instead of TCP")]
    pub fn socket(&self) -> (&Path, u16) {
        (&self.folder, self.port)
    }

    /// Creates a new database, and answers its URL.
    pub async fn database(&self, hint: &str) -> String {
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

/// The folder of the newest PostgreSQL's binaries.
fn binaries() -> PathBuf {
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
