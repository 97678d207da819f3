//! A site, its cloud and the replicator between them: databases of their own, the released binary.

use std::cell::Cell;
use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::process::Command;
use tokio::time::sleep;
use tokio_postgres::Client;

use crate::arrival::{Arrivals, Destination, Goal, LIMIT, LOOK, wait};
use crate::load::LoadTable;
use crate::process::{self, Process};
use crate::servers::World;
use crate::{Outcome, arrival, load};

/// The site's key at the receiver.
pub(crate) const KEY: &str = "figures-key";

/// What a site is made of.
pub(crate) struct Plan<'a> {
    /// The entities, as TOML.
    pub(crate) entities: &'a str,
    /// The tables, and the rows that stand before capture.
    pub(crate) tables: &'a str,
    /// Where its files lie; its own folder where there are none.
    pub(crate) media: Option<&'a Path>,
    /// The base URL of another cloud than the receiver.
    pub(crate) cloud: Option<&'a str>,
    /// Whether changes are compressed: else they are not, as the cloud is on this machine.
    pub(crate) compress: bool,
}

impl<'a> Plan<'a> {
    pub(crate) fn of(entities: &'a str, tables: &'a str) -> Self {
        Self {
            entities,
            tables,
            media: None,
            cloud: None,
            compress: false,
        }
    }
}

/// A site with capture installed, and its receiver. Its replicator is started and stopped by
/// [`Site::replicator`] and [`Process::end`].
pub(crate) struct Site<'a> {
    world: &'a World,
    /// Of the databases on both servers.
    pub(crate) name: String,
    folder: PathBuf,
    /// Where the receiver listens.
    pub(crate) address: SocketAddr,
    pub(crate) receiver: Process,
    /// Connections to both databases.
    pub(crate) source: Client,
    pub(crate) cloud: Client,
    /// The backend of `cloud`, which looks for what has arrived.
    observer: u32,
    runs: Cell<u32>,
    arrivals: Arrivals,
}

impl<'a> Site<'a> {
    /// A site with one table of logs, `logs`, that is captured, and one that is not, `bare`.
    pub(crate) async fn with_logs(world: &'a World) -> Outcome<Self> {
        let columns = load::COLUMNS;
        let tables = format!("create table logs ({columns}); create table bare ({columns})");
        Self::new(world, &Plan::of(&load::entity("logs"), &tables)).await
    }

    pub(crate) async fn new(world: &'a World, plan: &Plan<'_>) -> Outcome<Self> {
        let name = world.name("site");
        world.databases(&name).await?;
        let source = world.source.connect(&name).await?;
        let cloud = world.cloud.connect(&name).await?;
        let observer = arrival::backend(&cloud).await?;
        source.batch_execute(plan.tables).await?;
        let folder = world.folder(&name)?;
        let address = free_address();
        let media = plan.media.unwrap_or(&folder);
        let url = plan
            .cloud
            .map_or_else(|| format!("http://{address}/api"), str::to_owned);
        let settings = format!(
            "[source]\ndatabase_url = {source:?}\nsource_id = \"figures\"\n\
             [cloud]\nurl = {url:?}\nkey = {KEY:?}\n\
             [store]\npath = {store:?}\n[media]\nroot = {media:?}\n\
             [delivery]\ncompress = {compress}\n\
             [control]\nlisten = \"{control}\"\ntoken = \"figures\"\n[schedule]\nsync = \"off\"\n\
             [receiver]\nlisten = \"{address}\"\ndatabase_url = {cloud:?}\nfiles = {files:?}\n\
             [receiver.keys]\nfigures = [{KEY:?}]\n{entities}",
            source = world.source.url(&name),
            cloud = world.cloud.url(&name),
            store = folder.join("store"),
            control = free_address(),
            compress = plan.compress,
            files = folder.join("files"),
            entities = plan.entities,
        );
        std::fs::write(folder.join("cloud-sync.toml"), settings)?;
        let receiver = Process::start("the receiver", &mut logged(&folder, "receiver", "receiver.log")?)?;
        let mut site = Self {
            world,
            name,
            folder,
            address,
            receiver,
            source,
            cloud,
            observer,
            runs: Cell::new(0),
            arrivals: Arrivals::new(Destination::Receiver),
        };
        site.until_it_listens().await?;
        process::finished("init", command(&site.folder).arg("init")).await?;
        Ok(site)
    }

    async fn until_it_listens(&mut self) -> Outcome<()> {
        let start = Instant::now();
        while TcpStream::connect(self.address).is_err() {
            self.receiver.check()?;
            if start.elapsed() > LIMIT {
                return Err("the receiver does not listen".into());
            }
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// Starts the replicator.
    pub(crate) fn replicator(&self) -> Outcome<Process> {
        self.runs.set(self.runs.get() + 1);
        let log = format!("run-{}.log", self.runs.get());
        Process::start("the replicator", &mut logged(&self.folder, "run", &log)?)
    }

    /// Starts the replicator, and waits until it has brought all rows of a table, one more among them.
    pub(crate) async fn replicator_at_work(&self, table: &LoadTable) -> Outcome<Process> {
        let replicator = self.replicator()?;
        let goal = self.goal_with_last_row(table).await?;
        self.reached(&goal).await?;
        Ok(replicator)
    }

    /// Its status, as `status --json` tells it.
    pub(crate) async fn status(&self) -> Outcome<Value> {
        let output = process::finished("status", command(&self.folder).args(["status", "--json"])).await?;
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// The rows that a table has now.
    pub(crate) async fn goal(&self, table: &LoadTable) -> Outcome<Goal> {
        self.arrivals.goal(&self.source, table).await
    }

    /// The same, after one row more, which commits last.
    pub(crate) async fn goal_with_last_row(&self, table: &LoadTable) -> Outcome<Goal> {
        self.arrivals.goal_with_last_row(&self.source, table).await
    }

    /// Waits until these rows are visible in the cloud; the moment at which they were seen.
    pub(crate) async fn reached(&self, goal: &Goal) -> Outcome<Instant> {
        self.arrivals
            .reached(&self.cloud, goal)
            .await
            .map_err(|error| format!("{error}\n{}", self.log()).into())
    }

    /// Waits until the cloud's database says true to this.
    pub(crate) async fn until(&self, sql: &str) -> Outcome<()> {
        wait(&self.cloud, sql, &[])
            .await
            .map_err(|error| format!("{error}\n{}", self.log()).into())
    }

    /// Waits until the running replicator says that nothing waits.
    pub(crate) async fn caught_up(&self) -> Outcome<()> {
        let start = Instant::now();
        loop {
            let status = self.status().await?;
            if status["state"] == "replicating" && status["lag"]["changes"] == 0 {
                return Ok(());
            }
            if start.elapsed() > LIMIT {
                return Err(format!("not caught up within {LIMIT:?}: {status}\n{}", self.log()).into());
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// The last lines that the replicator logged.
    fn log(&self) -> String {
        let file = self.folder.join(format!("run-{}.log", self.runs.get()));
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }

    /// Seconds of CPU so far: the source's server, the cloud's but for the backend that looks, the receiver.
    pub(crate) fn cpu(&self) -> [f64; 3] {
        [
            self.world.source.cpu(),
            self.world.cloud.cpu() - process::scheduled(self.observer),
            self.receiver.cpu(),
        ]
    }

    /// Ends the receiver, and removes databases and files. The replicator must have ended.
    pub(crate) async fn end(self) -> Outcome<()> {
        self.receiver.end().await?;
        drop((self.source, self.cloud));
        self.world.forget(&self.name).await?;
        std::fs::remove_dir_all(&self.folder)?;
        Ok(())
    }
}

/// An address that is free, and is not one that the kernel gives to connections that go out.
pub(crate) fn free_address() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(97);
    loop {
        let nth = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let address = SocketAddr::from(([127, 0, 0, 1], 12_000 + (nth % 20_000) as u16));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

fn command(folder: &Path) -> Command {
    let mut command = process::command(env!("CARGO_BIN_EXE_cloud-sync"));
    command.current_dir(folder);
    command
}

fn logged(folder: &Path, name: &str, log: &str) -> Outcome<Command> {
    let log = File::create(folder.join(log))?;
    let mut command = command(folder);
    command.arg(name).stdout(log.try_clone()?).stderr(log);
    Ok(command)
}
