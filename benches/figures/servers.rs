//! Two private PostgreSQL servers, the site's and the cloud's, and the folder of all that is measured.
//!
//! Settings are PostgreSQL's own, the durable ones too, but for what logical replication needs. A small shell holds the
//! other end of a pipe: when this program ends, however it ends, the shell waits until the servers are gone and removes
//! the folder.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use cloud_sync::demo::postgres::PrivateServer;
use tokio_postgres::{Client, NoTls};

use crate::{Outcome, process};

/// Removes the folder $1 once standard input has ended and no server is left in it.
const SWEEPER: &str = r#"
read -r line
turns=0
while [ "$turns" -lt 600 ] && ls "$1"/*/data/postmaster.pid >/dev/null 2>&1; do
    sleep 0.1
    turns=$((turns + 1))
done
rm -rf "$1"
"#;

/// A worker of a subscription is started at most so often: the peer shall not wait for that.
const SETTINGS: [&str; 2] = [
    "alter system set wal_level = logical",
    "alter system set wal_retrieve_retry_interval = '100ms'",
];

/// All that is measured on.
pub(crate) struct World {
    pub(crate) source: Server,
    pub(crate) cloud: Server,
    version: String,
    next: AtomicU32,
    /// Dropped last.
    folder: Folder,
}

impl World {
    pub(crate) async fn start() -> Outcome<Self> {
        let folder = Folder::new()?;
        let source = Server::start(&folder.path.join("source")).await?;
        let cloud = Server::start(&folder.path.join("cloud")).await?;
        let client = source.connect("postgres").await?;
        let version: String = client.query_one("show server_version", &[]).await?.get(0);
        Ok(Self {
            source,
            cloud,
            version,
            next: AtomicU32::new(1),
            folder,
        })
    }

    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// A new folder in the world's.
    pub(crate) fn folder(&self, name: &str) -> Outcome<PathBuf> {
        let path = self.folder.path.join(name);
        std::fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// A name that nothing has yet.
    pub(crate) fn name(&self, of: &str) -> String {
        format!("{of}_{}", self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// A database on each server.
    pub(crate) async fn databases(&self, name: &str) -> Outcome<()> {
        for server in [&self.source, &self.cloud] {
            server.private.create_database(name).await?;
        }
        Ok(())
    }

    /// Removes a database from each server.
    pub(crate) async fn forget(&self, name: &str) -> Outcome<()> {
        for server in [&self.source, &self.cloud] {
            let client = server.connect("postgres").await?;
            client
                .batch_execute(&format!("drop database {name} with (force)"))
                .await?;
        }
        Ok(())
    }

    /// So that no measurement pays for what the one before has left.
    pub(crate) async fn settle(&self) -> Outcome<()> {
        for server in [&self.source, &self.cloud] {
            let client = server.connect("postgres").await?;
            client.batch_execute("checkpoint").await?;
        }
        Ok(())
    }
}

/// One of the servers.
pub(crate) struct Server {
    private: PrivateServer,
    postmaster: u32,
}

impl Server {
    async fn start(folder: &Path) -> Outcome<Self> {
        let private = PrivateServer::start(folder).await?;
        let client = connect(&private.url("postgres")).await?;
        for setting in SETTINGS {
            client.batch_execute(setting).await?;
        }
        drop(client);
        private.stop().await?;
        let private = PrivateServer::start(folder).await?;
        let lock = std::fs::read_to_string(folder.join("data/postmaster.pid"))?;
        let postmaster = lock.lines().next().unwrap_or_default().trim().parse()?;
        Ok(Self { private, postmaster })
    }

    pub(crate) fn url(&self, database: &str) -> String {
        self.private.url(database)
    }

    pub(crate) async fn connect(&self, database: &str) -> Outcome<Client> {
        connect(&self.url(database)).await
    }

    /// Seconds of CPU so far, of all its processes.
    pub(crate) fn cpu(&self) -> f64 {
        process::cpu_of_family(self.postmaster)
    }
}

async fn connect(url: &str) -> Outcome<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// A program of PostgreSQL's: below its newest version's folder where Debian puts them, else on the PATH.
pub(crate) fn program(name: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let newest = versions
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path())))
        .max();
    let program = newest.map(|(_, folder)| folder.join("bin").join(name));
    program
        .filter(|program| program.exists())
        .unwrap_or_else(|| PathBuf::from(name))
}

/// A folder that is gone when this program is gone.
struct Folder {
    path: PathBuf,
    sweeper: Child,
}

impl Folder {
    fn new() -> Outcome<Self> {
        // Files that shall reach a disk do not belong in a memory file system, as /tmp may be one.
        let parent = std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        let path = tempfile::Builder::new()
            .prefix("cloud-sync-figures-")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .tempdir_in(parent)?
            .keep();
        let sweeper = Command::new("sh")
            .args(["-c", SWEEPER, "sweeper"])
            .arg(&path)
            .current_dir("/")
            .stdin(Stdio::piped())
            // Ctrl-C is not for it.
            .process_group(0)
            .spawn()?;
        Ok(Self { path, sweeper })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(self.sweeper.stdin.take());
        let _ = self.sweeper.wait();
    }
}
