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
use tokio_postgres::types::ToSql;

use crate::process::{self, Process};
use crate::servers::{Server, World};
use crate::{Outcome, load};

/// The site's key at the receiver.
pub(crate) const KEY: &str = "figures-key";

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(300);

/// How often the cloud is asked whether everything is there; less often where the answer takes long, so that asking takes
/// little from what is measured.
const LOOK: Duration = Duration::from_millis(3);
const LOOK_SHARE: u32 = 10;

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
}

impl<'a> Plan<'a> {
    pub(crate) fn of(entities: &'a str, tables: &'a str) -> Self {
        Self {
            entities,
            tables,
            media: None,
            cloud: None,
        }
    }
}

/// A site with capture installed, and its receiver. Its replicator is started and stopped by [`Site::replicator`] and
/// [`Process::end`].
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
    runs: Cell<u32>,
}

/// The rows that a table had, which shall be in the cloud.
pub(crate) struct Goal {
    table: String,
    last: Option<i64>,
    count: i64,
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
             [control]\nlisten = \"{control}\"\ntoken = \"figures\"\n[schedule]\nsync = \"off\"\n\
             [receiver]\nlisten = \"{address}\"\ndatabase_url = {cloud:?}\nfiles = {files:?}\n\
             [receiver.keys]\nfigures = [{KEY:?}]\n{entities}",
            source = world.source.url(&name),
            cloud = world.cloud.url(&name),
            store = folder.join("store"),
            control = free_address(),
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
            runs: Cell::new(0),
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

    /// Starts the replicator, and waits until it has brought the first row of `logs`.
    pub(crate) async fn replicator_at_work(&self) -> Outcome<Process> {
        let replicator = self.replicator()?;
        self.source.batch_execute(&load::one_row("logs")).await?;
        let goal = self.goal("logs").await?;
        self.reached(&goal).await?;
        Ok(replicator)
    }

    /// Its status, as `status --json` tells it.
    pub(crate) async fn status(&self) -> Outcome<Value> {
        let output = process::finished("status", command(&self.folder).args(["status", "--json"])).await?;
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// The rows that a table of logs has now.
    pub(crate) async fn goal(&self, table: &str) -> Outcome<Goal> {
        Goal::of(&self.source, table).await
    }

    /// Waits until these rows are visible in the cloud.
    pub(crate) async fn reached(&self, goal: &Goal) -> Outcome<()> {
        let there = format!("cloud.{}", goal.table);
        goal.reached(&self.cloud, &there)
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

    /// The servers' seconds of CPU so far: the source's, the cloud's, the receiver's.
    pub(crate) fn cpu(&self) -> [f64; 3] {
        [
            self.world.source.cpu(),
            self.world.cloud.cpu(),
            self.receiver.cpu(),
        ]
    }

    pub(crate) fn server(&self) -> &Server {
        &self.world.source
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

impl Goal {
    pub(crate) async fn of(source: &Client, table: &str) -> Outcome<Self> {
        let sql = format!("select max(log_id), count(*) from {table}");
        let row = source.query_one(&sql, &[]).await?;
        Ok(Self {
            table: table.to_owned(),
            last: row.get(0),
            count: row.get(1),
        })
    }

    /// The rows that it has once one writer has inserted so many more.
    pub(crate) fn and(self, rows: u64) -> Self {
        Self {
            last: Some(self.last.unwrap_or(0) + rows as i64),
            count: self.count + rows as i64,
            ..self
        }
    }

    /// Waits until the table `there` has as many rows: first for the last one, by its key, since that costs nothing.
    pub(crate) async fn reached(&self, cloud: &Client, there: &str) -> Outcome<()> {
        wait(cloud, "select to_regclass($1::text) is not null", &[&there]).await?;
        let last = format!("select exists (select 1 from {there} where log_id = $1)");
        let last = if there.starts_with("cloud.") {
            last.replace("where", "where _site = 'figures' and")
        } else {
            last
        };
        if self.last.is_some() {
            wait(cloud, &last, &[&self.last]).await?;
        }
        wait(
            cloud,
            &format!("select count(*) >= $1 from {there}"),
            &[&self.count],
        )
        .await
    }
}

/// Waits until a database says true to this.
pub(crate) async fn wait(client: &Client, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Outcome<()> {
    let statement = client.prepare(sql).await?;
    let start = Instant::now();
    loop {
        let asked = Instant::now();
        if client.query_one(&statement, values).await?.get(0) {
            return Ok(());
        }
        if start.elapsed() > LIMIT {
            return Err(format!("not within {LIMIT:?}: {sql}").into());
        }
        sleep(LOOK.max(asked.elapsed() * LOOK_SHARE)).await;
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
