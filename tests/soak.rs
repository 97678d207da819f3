//! Lets faults of every kind strike one site for minutes: `make soak ARGS="--minutes N --seed S"`.
//!
//! Writers of every kind work against a site whose replicator, cloud, database and line are killed, cut and stalled at
//! random. After each round the oracle is asked what must hold at any moment; every few rounds all is left to catch up,
//! and the oracle is asked whether both sides are equal. The last line says what was done and found.

#[allow(dead_code, reason = "the tests use the rest")]
mod support;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use cloud_sync::abort;
use cloud_sync::control::status::State;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio_util::sync::CancellationToken;

use support::oracle::{self, Tally};
use support::postgres::Server;
use support::process::{Daemon, Process};
use support::proxy::{Proxy, Trouble};
use support::site::{Cloud, KEY, SITE, Site, connect};
use support::storm::{self, SERVER, Storm, audited};

const HELP: &str = "\
Lets faults of every kind strike a site, its replicator and its cloud, and says whether a guarantee was broken.

Usage: soak [--minutes N] [--seed S]

  --minutes N   how long, about; 10 unless said otherwise
  --seed S      the seed of writers and faults; random unless said otherwise
  --help        this

The last line is: kills K, faults F, changes C, violations V. The exit code is 1 where V is not 0, 2 for wrong usage.";

/// How long the replicator may take until nothing waits, once nothing is in its way.
const CATCH_UP: Duration = Duration::from_secs(150);

/// After so many rounds all is left to catch up.
const ROUNDS: u64 = 3;

/// The faults, and how often each is drawn.
const FAULTS: [(Fault, u32); 18] = [
    (Fault::Kill, 20),
    (Fault::Abort, 20),
    (Fault::Terminate, 6),
    (Fault::KillBackends, 8),
    (Fault::KillReceiver, 8),
    (Fault::KillReceiverBackends, 6),
    (Fault::CrashSource, 4),
    (Fault::RestartSource, 2),
    (Fault::CrashCloudDatabase, 2),
    (Fault::CutRequest, 8),
    (Fault::CutAnswer, 8),
    (Fault::HoldAnswers, 4),
    (Fault::Stall, 4),
    (Fault::Slow, 4),
    (Fault::Refuse, 6),
    (Fault::DeleteStore, 3),
    (Fault::OverwriteStore, 3),
    (Fault::SecondReplicator, 5),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Kill,
    Abort,
    Terminate,
    KillBackends,
    KillReceiver,
    KillReceiverBackends,
    CrashSource,
    RestartSource,
    CrashCloudDatabase,
    CutRequest,
    CutAnswer,
    HoldAnswers,
    Stall,
    Slow,
    Refuse,
    DeleteStore,
    OverwriteStore,
    SecondReplicator,
}

struct Arguments {
    minutes: f64,
    seed: u64,
}

/// The arguments; none where only help was asked for.
fn arguments(given: impl Iterator<Item = String>) -> Result<Option<Arguments>, String> {
    let mut arguments = Arguments {
        minutes: 10.0,
        seed: rand::random(),
    };
    let mut given = given;
    while let Some(flag) = given.next() {
        let (flag, value) = match flag.split_once('=') {
            Some((flag, value)) => (flag.to_owned(), Some(value.to_owned())),
            None => (flag, None),
        };
        if flag == "--help" || flag == "-h" {
            return Ok(None);
        }
        if flag != "--minutes" && flag != "--seed" {
            return Err(format!("there is no flag {flag}"));
        }
        let value = value
            .or_else(|| given.next())
            .ok_or(format!("{flag} wants a number"))?;
        let wrong = || format!("{flag} wants a number, not {value:?}");
        if flag == "--seed" {
            arguments.seed = value.parse().map_err(|_| wrong())?;
        } else {
            arguments.minutes = value.parse().map_err(|_| wrong())?;
            if !(arguments.minutes > 0.0 && arguments.minutes <= 100_000.0) {
                return Err(wrong());
            }
        }
    }
    Ok(Some(arguments))
}

fn main() -> ExitCode {
    let arguments = match arguments(std::env::args().skip(1)) {
        Ok(Some(arguments)) => arguments,
        Ok(None) => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(wrong) => {
            eprintln!("error: {wrong}\n\n{HELP}");
            return ExitCode::from(2);
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let tally = runtime.block_on(soak(&arguments));
    drop(runtime);
    println!("{tally}");
    let violated = tally.violations > 0;
    // What the tests add up is theirs.
    std::mem::forget(tally);
    if violated {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

async fn soak(arguments: &Arguments) -> Tally {
    let end = Instant::now() + Duration::from_secs_f64(arguments.minutes * 60.0);
    println!("seed {}, {} minutes", arguments.seed, arguments.minutes);
    let stop = stop_on_signals();
    let (source, cloud_server) = (Server::with(&SERVER), Server::with(&[]));
    let mut cloud = Cloud::start_on(&cloud_server, "soak").await;
    // From here on the real binary serves in its place.
    cloud.away().await;
    let proxy = Proxy::start(cloud.address()).await;
    let site = storm::site(&source, "soak", &proxy.url()).await;
    let daemons = [Daemon::of(&site, "first"), Daemon::of(&site, "second")];
    let mut world = World {
        receiver: Receiver::new(&cloud, site.folder.path().join("receiver.log")),
        source: &source,
        cloud_server: &cloud_server,
        cloud,
        site,
        proxy,
        daemons: &daemons,
        running: [None, None],
        rng: StdRng::seed_from_u64(arguments.seed),
        tally: Tally::default(),
        stop,
    };
    let mut round = 0;
    while Instant::now() < end && !world.stop.is_cancelled() {
        let storm = Storm::start(&world.site.database_url, world.rng.random());
        let mut found = Vec::new();
        for _ in 0..ROUNDS {
            round += 1;
            found = world.round(round).await;
            if !found.is_empty() || Instant::now() >= end || world.stop.is_cancelled() {
                break;
            }
        }
        if found.is_empty() {
            found = world.calm(storm).await;
        }
        if !found.is_empty() {
            world.tally.violations += found.len() as u64;
            world.keep(&found);
            break;
        }
    }
    world.tally.changes = world.changes().await;
    let World { running, tally, .. } = world;
    drop(running);
    tally
}

/// Cancelled by SIGINT and SIGTERM: the soak then ends by itself, and takes its processes with it.
fn stop_on_signals() -> CancellationToken {
    use tokio::signal::unix::{SignalKind, signal};
    let stop = CancellationToken::new();
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt()).expect("SIGINT can be caught"),
        signal(SignalKind::terminate()).expect("SIGTERM can be caught"),
    );
    let token = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        eprintln!("stopping");
        token.cancel();
    });
    stop
}

/// The receiver as a process of its own.
struct Receiver {
    listen: String,
    database_url: String,
    files: PathBuf,
    log: PathBuf,
    child: Option<Child>,
}

impl Receiver {
    fn new(cloud: &Cloud, log: PathBuf) -> Self {
        Self {
            listen: cloud.address().to_string(),
            database_url: cloud.database_url.clone(),
            files: cloud.files.clone(),
            log,
            child: None,
        }
    }

    /// Starts it where it does not run: it ends by itself where its database does not answer at its start.
    fn ensure(&mut self) {
        if let Some(child) = &mut self.child
            && child.try_wait().expect("a child can be asked").is_none()
        {
            return;
        }
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.expect("the log can be written");
        let child = Command::new(env!("CARGO_BIN_EXE_cloud-sync"))
            .args([
                "receiver",
                "--listen",
                &self.listen,
                "--database-url",
                &self.database_url,
            ])
            .arg("--files")
            .arg(&self.files)
            .args(["--set", "receiver.history=true"])
            .current_dir(self.log.parent().expect("a folder"))
            .env_clear()
            .env("CLOUD_SYNC_RECEIVER_KEYS", format!("{SITE}={KEY}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn();
        self.child = Some(child.expect("the receiver starts"));
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A replicator that runs, and whether it may abort by itself.
struct Run<'a> {
    process: Process<'a>,
    armed: bool,
}

struct World<'a> {
    receiver: Receiver,
    source: &'a Server,
    cloud_server: &'a Server,
    cloud: Cloud,
    site: Site,
    proxy: Proxy,
    daemons: &'a [Daemon; 2],
    running: [Option<Run<'a>>; 2],
    rng: StdRng,
    tally: Tally,
    stop: CancellationToken,
}

impl<'a> World<'a> {
    /// One round of faults; answers what is broken after it.
    async fn round(&mut self, round: u64) -> Vec<String> {
        let begun = Instant::now();
        let end = begun + Duration::from_millis(self.rng.random_range(10_000..18_000));
        let mut count = BTreeMap::new();
        while Instant::now() < end && !self.stop.is_cancelled() {
            if let Err(found) = self.revive() {
                return vec![found];
            }
            self.pause(30, 900).await;
            let fault = self.draw();
            *count.entry(fault).or_insert(0) += 1;
            if let Err(found) = self.strike(fault).await {
                return vec![format!("after {fault:?}: {found}")];
            }
        }
        self.proxy.set(Trouble::None);
        self.site.client = connect(&self.site.database_url).await;
        let mut found = oracle::amid(&self.site, &self.cloud).await;
        found.extend(audited(&self.site, &self.cloud).await);
        self.tally.changes = self.changes().await;
        let counts: Vec<String> = count
            .iter()
            .map(|(fault, times)| format!("{fault:?} {times}"))
            .collect();
        println!(
            "round {round}, {:.0} s: {} | {}",
            begun.elapsed().as_secs_f64(),
            counts.join(", "),
            self.tally
        );
        found
    }

    fn draw(&mut self) -> Fault {
        let sum = FAULTS.iter().map(|(_, weight)| weight).sum::<u32>();
        let mut at = self.rng.random_range(0..sum);
        for (fault, weight) in FAULTS {
            if at < weight {
                return fault;
            }
            at -= weight;
        }
        Fault::Kill
    }

    async fn pause(&mut self, least: u64, most: u64) {
        let time = Duration::from_millis(self.rng.random_range(least..most));
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            () = self.stop.cancelled() => {}
        }
    }

    /// Starts what has died: the receiver, and a replicator where none runs.
    fn revive(&mut self) -> Result<(), String> {
        self.receiver.ensure();
        for (run, daemon) in self.running.iter_mut().zip(self.daemons) {
            let Some(Run { process, armed }) = run else {
                continue;
            };
            let Some(status) = process.has_ended() else {
                continue;
            };
            let aborted = std::os::unix::process::ExitStatusExt::signal(&status) == Some(6);
            if !(*armed && aborted) && !self.stop.is_cancelled() {
                return Err(format!(
                    "the replicator ended by itself ({status}):\n{}",
                    tail(&daemon.log())
                ));
            }
            self.tally.kills += 1;
            *run = None;
        }
        if self.running.iter().all(Option::is_none) {
            self.start(0, None);
        }
        Ok(())
    }

    fn start(&mut self, which: usize, point: Option<&str>) {
        let daemon = &self.daemons[which];
        let process = match point {
            Some(point) => daemon.start_to_abort(point, &[]),
            None => daemon.start(),
        };
        self.running[which] = Some(Run {
            process,
            armed: point.is_some(),
        });
    }

    /// Kills one of the replicators that run, and answers which.
    fn kill(&mut self) -> usize {
        let mut which = self.rng.random_range(0..2);
        if self.running[which].is_none() {
            which = 1 - which;
        }
        // Dropped, it is killed.
        self.running[which] = None;
        self.tally.kills += 1;
        which
    }

    async fn strike(&mut self, fault: Fault) -> Result<(), String> {
        let trouble = match fault {
            Fault::Kill => {
                let which = self.kill();
                if self.rng.random_bool(0.3) {
                    self.pause(1, 1500).await;
                }
                self.start(which, None);
                return Ok(());
            }
            Fault::Abort => {
                let which = self.kill();
                let point = abort::POINTS[self.rng.random_range(0..abort::POINTS.len())];
                let point = format!("{point}#{}", self.rng.random_range(1..8));
                self.start(which, Some(&point));
                return Ok(());
            }
            Fault::Terminate => return self.terminate().await,
            Fault::KillBackends => {
                self.tally.kills += 1;
                let some = self.rng.random_range(1..100);
                let _ = self
                    .ask(
                        &self.site.database_url,
                        &format!(
                            "select pg_terminate_backend(pid) from pg_stat_activity \
                             where application_name like 'cloud-sync%' and pid % 100 < {some}"
                        ),
                    )
                    .await;
                return Ok(());
            }
            Fault::KillReceiver => {
                self.tally.kills += 1;
                self.receiver.kill();
                self.pause(1, 1500).await;
                self.receiver.ensure();
                return Ok(());
            }
            Fault::KillReceiverBackends => {
                self.tally.kills += 1;
                let _ = self
                    .ask(
                        &self.cloud.database_url,
                        "select pg_terminate_backend(pid) from pg_stat_activity \
                         where datname = current_database() and pid <> pg_backend_pid()",
                    )
                    .await;
                return Ok(());
            }
            Fault::CrashSource | Fault::RestartSource | Fault::CrashCloudDatabase => {
                self.tally.kills += 1;
                let server = match fault {
                    Fault::CrashCloudDatabase => self.cloud_server,
                    _ => self.source,
                };
                let signal = if fault == Fault::RestartSource {
                    "INT"
                } else {
                    "QUIT"
                };
                tokio::task::block_in_place(|| server.restart(signal));
                return Ok(());
            }
            Fault::DeleteStore | Fault::OverwriteStore => {
                self.tally.faults += 1;
                let which = self.kill();
                self.spoil(&self.daemons[which].checkpoint(), fault);
                self.start(which, None);
                return Ok(());
            }
            Fault::SecondReplicator => {
                self.tally.faults += 1;
                match self.running.iter().position(Option::is_none) {
                    Some(which) => self.start(which, None),
                    None => {
                        self.kill();
                    }
                }
                return Ok(());
            }
            Fault::CutRequest => Trouble::CutRequest(self.rng.random_range(0..6000)),
            Fault::CutAnswer => Trouble::CutAnswer(self.rng.random_range(0..400)),
            Fault::HoldAnswers => Trouble::HoldAnswers,
            Fault::Stall => Trouble::Stall,
            Fault::Slow => Trouble::Slow(
                self.rng.random_range(100..2000),
                Duration::from_millis(self.rng.random_range(1..50)),
            ),
            Fault::Refuse => Trouble::Refuse,
        };
        self.tally.faults += 1;
        self.proxy.set(trouble);
        self.pause(100, 2500).await;
        // Sometimes the trouble stays while others come.
        if self.rng.random_bool(0.7) {
            self.proxy.set(Trouble::None);
        }
        Ok(())
    }

    /// SIGTERM to each replicator that runs: each must end in order.
    async fn terminate(&mut self) -> Result<(), String> {
        for (run, daemon) in self.running.iter_mut().zip(self.daemons) {
            let Some(Run { mut process, armed }) = run.take() else {
                continue;
            };
            if process.has_ended().is_some() {
                continue;
            }
            self.tally.faults += 1;
            let status = process.terminate().await;
            if !status.success() && !armed {
                return Err(format!("SIGTERM ended in {status}:\n{}", tail(&daemon.log())));
            }
        }
        Ok(())
    }

    /// Deletes a store, or overwrites its files.
    fn spoil(&self, store: &std::path::Path, fault: Fault) {
        if fault == Fault::DeleteStore {
            let _ = std::fs::remove_dir_all(store);
            return;
        }
        for entry in std::fs::read_dir(store).into_iter().flatten().flatten() {
            if let Ok(about) = entry.metadata()
                && about.is_file()
            {
                let _ = std::fs::write(entry.path(), vec![0xa5; about.len() as usize]);
            }
        }
    }

    /// A question of a moment, to a server that may be away.
    async fn ask(&self, url: &str, sql: &str) -> Result<(), tokio_postgres::Error> {
        let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        client.batch_execute(sql).await
    }

    /// Ends the storm, leaves everything alone until nothing waits, and answers what is broken then.
    async fn calm(&mut self, storm: Storm) -> Vec<String> {
        self.proxy.set(Trouble::None);
        self.receiver.ensure();
        let committed = storm.end().await;
        let begun = Instant::now();
        if let Err(found) = self.terminate().await {
            return vec![found];
        }
        let which = self.rng.random_range(0..2);
        self.start(which, None);
        loop {
            self.receiver.ensure();
            let status = self.daemons[which].status().await;
            let done = status.as_ref().is_some_and(|status| {
                status.state == State::Replicating && status.lag.is_some_and(|lag| lag.changes == 0)
            });
            if done {
                break;
            }
            if let Some(run) = &mut self.running[which]
                && let Some(ended) = run.process.has_ended()
                && !self.stop.is_cancelled()
            {
                let log = tail(&self.daemons[which].log());
                return vec![format!("the replicator ended by itself ({ended}):\n{log}")];
            }
            if self.stop.is_cancelled() {
                return Vec::new();
            }
            if begun.elapsed() > CATCH_UP {
                let log = tail(&self.daemons[which].log());
                return vec![format!(
                    "it did not catch up within {CATCH_UP:?}: {status:#?}\n{log}"
                )];
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let caught_up = begun.elapsed();
        self.site.client = connect(&self.site.database_url).await;
        let mut found = oracle::check(&self.site, &self.cloud).await;
        found.extend(audited(&self.site, &self.cloud).await);
        for (daemon, log) in self.daemons.iter().map(|daemon| (daemon, daemon.log())) {
            if log.contains("panicked") {
                found.push(format!("a panic in {}", daemon.checkpoint().display()));
            }
        }
        println!(
            "calm: {committed} transactions; caught up in {:.1} s; {}",
            caught_up.as_secs_f64(),
            if found.is_empty() {
                "both sides are equal"
            } else {
                "VIOLATED"
            }
        );
        if found.is_empty() {
            self.forget().await;
        }
        found
    }

    /// Forgets what was checked, so that checks stay quick: of each row's history only the last entry is kept.
    async fn forget(&self) {
        storm::forget_audit(&self.site).await;
        let sql = "delete from cloud_meta.history h using (select site, entity, key, max(id) as id \
                   from cloud_meta.history group by 1, 2, 3) l where h.site = l.site and h.entity = l.entity \
                   and h.key is not distinct from l.key and h.id < l.id";
        let there = connect(&self.cloud.database_url).await;
        there
            .batch_execute(sql)
            .await
            .expect("the cloud's database answers");
    }

    async fn changes(&self) -> u64 {
        let client = connect(&self.site.database_url).await;
        let row = client
            .query_one("select last_value from cloud_sync.position", &[])
            .await
            .expect("the site's database answers");
        row.get::<_, i64>(0) as u64
    }

    /// Says what was broken, and keeps everything for whoever looks into it.
    fn keep(&mut self, found: &[String]) {
        println!("VIOLATED:\n{}", found.join("\n"));
        self.site.folder.disable_cleanup(true);
        self.cloud.folder().disable_cleanup(true);
        println!(
            "kept: {}, {}, {}, {}",
            self.site.folder.path().display(),
            self.cloud.folder().path().display(),
            self.source.keep().display(),
            self.cloud_server.keep().display()
        );
    }
}

/// The end of a log.
fn tail(log: &str) -> String {
    let start = log.len().saturating_sub(4000);
    let start = (start..log.len())
        .find(|&at| log.is_char_boundary(at))
        .unwrap_or(start);
    log[start..].to_owned()
}
