//! What we are measured beside: PostgreSQL's logical replication and its COPY, curl, rclone.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::time::sleep;
use tokio_postgres::Client;

use crate::process::{self, Process};
use crate::servers::{World, program};
use crate::site::{Goal, free_address, wait};
use crate::{Outcome, load};

/// A publication of the table `logs` and a subscription to it, in databases of their own. It is paused unless it was
/// told to go on, so that it takes nothing from what is measured beside it.
pub(crate) struct Subscription<'a> {
    world: &'a World,
    pub(crate) name: String,
    pub(crate) source: Client,
    pub(crate) cloud: Client,
}

impl<'a> Subscription<'a> {
    pub(crate) async fn new(world: &'a World) -> Outcome<Self> {
        let name = world.name("peer");
        world.databases(&name).await?;
        let source = world.source.connect(&name).await?;
        let cloud = world.cloud.connect(&name).await?;
        let table = format!("create table logs ({})", load::COLUMNS);
        source.batch_execute(&table).await?;
        cloud.batch_execute(&table).await?;
        source
            .batch_execute("create publication logs for table logs")
            .await?;
        let url = world.source.url(&name);
        cloud
            .batch_execute(&format!(
                "create subscription {name} connection '{url}' publication logs"
            ))
            .await?;
        wait(
            &cloud,
            "select bool_and(srsubstate = 'r') from pg_subscription_rel",
            &[],
        )
        .await?;
        let peer = Self {
            world,
            name,
            source,
            cloud,
        };
        peer.pause().await?;
        Ok(peer)
    }

    pub(crate) async fn pause(&self) -> Outcome<()> {
        self.alter("disable").await?;
        wait(
            &self.cloud,
            "select count(*) = 0 from pg_stat_subscription where pid is not null",
            &[],
        )
        .await?;
        wait(
            &self.source,
            "select not bool_or(active) from pg_replication_slots where database = current_database()",
            &[],
        )
        .await
    }

    pub(crate) async fn go_on(&self) -> Outcome<()> {
        self.alter("enable").await
    }

    /// Lets it go on, and waits until it has read everything that was written so far.
    pub(crate) async fn go_on_and_catch_up(&self) -> Outcome<()> {
        self.go_on().await?;
        self.source.batch_execute(&load::one_row("logs")).await?;
        let goal = self.goal().await?;
        self.reached(&goal).await
    }

    pub(crate) async fn goal(&self) -> Outcome<Goal> {
        Goal::of(&self.source, "logs").await
    }

    pub(crate) async fn reached(&self, goal: &Goal) -> Outcome<()> {
        goal.reached(&self.cloud, "logs").await
    }

    /// The servers' seconds of CPU so far: the source's, the cloud's.
    pub(crate) fn cpu(&self) -> [f64; 2] {
        [self.world.source.cpu(), self.world.cloud.cpu()]
    }

    pub(crate) async fn end(self) -> Outcome<()> {
        self.cloud
            .batch_execute(&format!("drop subscription {}", self.name))
            .await?;
        drop((self.source, self.cloud));
        self.world.forget(&self.name).await
    }

    async fn alter(&self, how: &str) -> Outcome<()> {
        let sql = format!("alter subscription {} {how}", self.name);
        Ok(self.cloud.batch_execute(&sql).await?)
    }
}

/// The seconds that it takes to copy the newest rows of a site's table `logs` to the cloud's table `copied`, by COPY out
/// and in.
pub(crate) async fn copy(world: &World, database: &str, rows: u64) -> Outcome<f64> {
    let psql = program("psql");
    let (from, to) = (world.source.url(database), world.cloud.url(database));
    let out = format!("copy (select * from logs order by log_id desc limit {rows}) to stdout");
    let script = r#""$1" -X -q -c "$2" "$3" | "$1" -X -q -c 'copy copied from stdin' "$4""#;
    let start = Instant::now();
    let mut shell = process::command("sh");
    shell
        .args(["-c", script, "sh"])
        .arg(psql)
        .args([&out, &from, &to]);
    process::finished("psql", &mut shell).await?;
    Ok(start.elapsed().as_secs_f64())
}

/// The seconds that curl takes to upload a file to the receiver.
pub(crate) async fn curl(file: &Path, receiver: SocketAddr, directory: &str, key: &str) -> Outcome<f64> {
    let mut curl = process::command("curl");
    curl.args(["--silent", "--show-error", "--fail", "--form"])
        .arg(format!("file=@{}", file.display()))
        .args(["--header", &format!("Authorization: Bearer {key}")])
        .arg(format!("http://{receiver}/api/upload/{directory}"));
    let start = Instant::now();
    process::finished("curl", &mut curl).await?;
    Ok(start.elapsed().as_secs_f64())
}

/// rclone's own WebDAV server.
pub(crate) struct Webdav {
    folder: PathBuf,
    address: SocketAddr,
    server: Process,
}

impl Webdav {
    pub(crate) async fn start(world: &World) -> Outcome<Self> {
        let folder = world.folder(&world.name("webdav"))?;
        let address = free_address();
        let mut rclone = process::command("rclone");
        rclone
            .args(["--config", "", "serve", "webdav", "--addr", &address.to_string()])
            .arg(&folder)
            .stderr(std::process::Stdio::null());
        let mut server = Process::start("rclone serve", &mut rclone)?;
        while TcpStream::connect(address).is_err() {
            server.check()?;
            sleep(Duration::from_millis(10)).await;
        }
        Ok(Self {
            folder,
            address,
            server,
        })
    }

    /// The seconds that rclone takes to copy a folder there.
    pub(crate) async fn copy(&self, from: &Path, to: &str) -> Outcome<f64> {
        let mut rclone = process::command("rclone");
        rclone
            .args(["--config", "", "copy"])
            .arg(from)
            .arg(format!(":webdav:{to}"))
            .args(["--webdav-url", &format!("http://{}/", self.address)]);
        let start = Instant::now();
        process::finished("rclone copy", &mut rclone).await?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// How many files it has in that folder.
    pub(crate) fn count(&self, folder: &str) -> Outcome<usize> {
        Ok(std::fs::read_dir(self.folder.join(folder))?.count())
    }

    pub(crate) async fn end(self) -> Outcome<()> {
        self.server.end().await?;
        std::fs::remove_dir_all(&self.folder)?;
        Ok(())
    }
}
