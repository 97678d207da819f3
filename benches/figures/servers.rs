//! Three private PostgreSQL servers, the site's, the publisher's and the cloud's, and the folder of all that
//! is measured.
//!
//! Settings are PostgreSQL's own, the durable ones too, but for what logical replication needs. That needs
//! `wal_level = logical`, which costs each writer of a server: so it has a server of its own, the publisher,
//! and cloud-sync, PgQ and the writers without any capture share the site's, with `wal_level = replica`. The
//! cloud's server has the receiver's database and the subscribers'.
//!
//! A small shell holds the other end of a pipe: when this program ends, however it ends, the shell waits
//! until the servers are gone and removes the folder.

use std::net::SocketAddr;
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

/// What logical replication needs of the server that it reads.
const PUBLISHER: [&str; 1] = ["alter system set wal_level = logical"];

/// A worker of a subscription is started at most so often: the peer shall not wait for that.
const CLOUD: [&str; 1] = ["alter system set wal_retrieve_retry_interval = '100ms'"];

/// All that is measured on.
pub(crate) struct World {
    /// The site's: `wal_level = replica`.
    pub(crate) source: Server,
    /// Logical replication's source: `wal_level = logical`.
    pub(crate) publisher: Server,
    pub(crate) cloud: Server,
    version: String,
    next: AtomicU32,
    /// Dropped last.
    folder: Folder,
}

impl World {
    pub(crate) async fn start() -> Outcome<Self> {
        let folder = Folder::new()?;
        let source = Server::start(&folder.path.join("source"), &[]).await?;
        let publisher = Server::start(&folder.path.join("publisher"), &PUBLISHER).await?;
        let cloud = Server::start(&folder.path.join("cloud"), &CLOUD).await?;
        let client = source.connect("postgres").await?;
        let version: String = client.query_one("show server_version", &[]).await?.get(0);
        Ok(Self {
            source,
            publisher,
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

    /// A database for a site and one for its cloud.
    pub(crate) async fn databases(&self, name: &str) -> Outcome<()> {
        self.source.create(name).await?;
        self.cloud.create(name).await
    }

    /// A database for a publication and one for its subscription.
    pub(crate) async fn peer_databases(&self, name: &str) -> Outcome<()> {
        self.publisher.create(name).await?;
        self.cloud.create(name).await
    }

    /// Removes a database from each server that has it.
    pub(crate) async fn forget(&self, name: &str) -> Outcome<()> {
        for server in self.servers() {
            let client = server.connect("postgres").await?;
            client
                .batch_execute(&format!("drop database if exists {name} with (force)"))
                .await?;
        }
        Ok(())
    }

    /// So that no measurement pays for what the one before has left.
    pub(crate) async fn settle(&self) -> Outcome<()> {
        for server in self.servers() {
            let client = server.connect("postgres").await?;
            client.batch_execute("checkpoint").await?;
        }
        Ok(())
    }

    fn servers(&self) -> [&Server; 3] {
        [&self.source, &self.publisher, &self.cloud]
    }
}

/// One of the servers.
pub(crate) struct Server {
    private: PrivateServer,
    postmaster: u32,
}

impl Server {
    async fn start(folder: &Path, settings: &[&str]) -> Outcome<Self> {
        let mut private = PrivateServer::start(folder).await?;
        if !settings.is_empty() {
            let client = connect(&private.url("postgres")).await?;
            for setting in settings {
                client.batch_execute(setting).await?;
            }
            drop(client);
            private.stop().await?;
            private = PrivateServer::start(folder).await?;
        }
        let lock = std::fs::read_to_string(folder.join("data/postmaster.pid"))?;
        let postmaster = lock.lines().next().unwrap_or_default().trim().parse()?;
        Ok(Self { private, postmaster })
    }

    /// Creates a database.
    pub(crate) async fn create(&self, name: &str) -> Outcome<()> {
        Ok(self.private.create_database(name).await?)
    }

    pub(crate) fn url(&self, database: &str) -> String {
        self.private.url(database)
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.private.address()
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
