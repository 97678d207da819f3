//! Lets faults of every kind strike one site for minutes: `make soak ARGS="--minutes N --seed S"`.
//!
//! Writers of every kind work against a site whose replicator, cloud, database and line are killed, cut and
//! stalled at random. After each round the oracle is asked what must hold at any moment; every few rounds all
//! is left to catch up, and the oracle is asked whether both sides are equal. The last line says what was
//! done and found.

mod arguments;
mod catch_up;
mod faults;
mod tenant;

#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod support;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio_util::sync::CancellationToken;

use arguments::Arguments;
use clap::Parser;
use support::fault_proxy::FaultProxy;
use support::oracle::{self, Tally};
use support::postgres::Server;
use support::process::{Daemon, Process};
use support::receiver::ReceiverProcess;
use support::site::{Cloud, KEY, SITE, Site, connect};
use support::tcp_proxy::{TcpProxy, Trouble};
use support::workload::{self, SERVER_OPTIONS, TransactionCounts, Workload, WorkloadScope, audited};
use tenant::Tenant;

/// After so many rounds all is left to catch up.
const ROUNDS: u64 = 3;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let tally = runtime.block_on(soak(&arguments));
    drop(runtime);
    println!("{tally}");
    let violated = tally.violations > 0;
    #[allow(clippy::mem_forget, reason = "what the tests add up is theirs")]
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
    let (source, cloud_server) = (Server::with(&SERVER_OPTIONS), Server::with(&[]));
    let mut cloud = Cloud::start_on(&cloud_server, "soak").await;
    // From here on the real binary serves in its place.
    cloud.away().await;
    let fault_proxy = FaultProxy::before(&cloud.url).await;
    let proxy = TcpProxy::start(fault_proxy.address()).await;
    let site = workload::site_of_every_kind(&source, "soak", &proxy.url()).await;
    let daemons = [Daemon::of(&site, "first"), Daemon::of(&site, "second")];
    let mut world = World {
        receiver: ReceiverProcess::new(
            &cloud,
            site.folder.path().to_owned(),
            &[(SITE, &[KEY]), (tenant::SITE, &[tenant::KEY])],
        ),
        tenant: Some(Tenant::start(cloud.address(), arguments.seed)),
        source: &source,
        cloud_server: &cloud_server,
        cloud,
        site,
        fault_proxy,
        proxy,
        daemons: &daemons,
        running: [None, None],
        command: None,
        rng: StdRng::seed_from_u64(arguments.seed),
        tally: Tally::default(),
        counts: TransactionCounts::default(),
        commands: false,
        stop,
    };
    let mut round = 0;
    while Instant::now() < end && !world.stop.is_cancelled() {
        let scope = if world.rng.random_bool(0.6) {
            WorkloadScope::Definitions
        } else {
            WorkloadScope::EveryKind
        };
        world.commands = world.rng.random_bool(0.25);
        println!("workload: {scope:?}, commands {}", world.commands);
        let workload = Workload::start(&world.site.database_url, world.rng.random(), scope);
        let mut found = Vec::new();
        for _ in 0..ROUNDS {
            round += 1;
            found = world.round(round).await;
            if !found.is_empty() || Instant::now() >= end || world.stop.is_cancelled() {
                break;
            }
        }
        if found.is_empty() {
            found = world.calm(workload).await;
        }
        if !found.is_empty() {
            world.tally.violations += found.len() as u64;
            world.keep(&found);
            break;
        }
    }
    if let Some(tenant) = world.tenant.take() {
        world.receiver.ensure();
        let found = tenant.end(&world.cloud).await;
        world.tally.violations += found.len() as u64;
        found.iter().for_each(|found| println!("VIOLATED: {found}"));
    }
    world.tally.changes = world.changes().await;
    let World {
        running,
        command,
        tally,
        counts,
        ..
    } = world;
    drop((running, command));
    print!("transactions by kind:\n{counts}");
    tally
}

/// Cancelled by SIGINT and SIGTERM: the soak then ends, and ends its processes.
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

/// A replicator that runs, and whether it may abort at a crash point.
struct Run<'a> {
    process: Process<'a>,
    armed: bool,
}

struct World<'a> {
    receiver: ReceiverProcess,
    /// Another site's rows.
    tenant: Option<Tenant>,
    source: &'a Server,
    cloud_server: &'a Server,
    cloud: Cloud,
    site: Site,
    /// Refuses requests.
    fault_proxy: FaultProxy,
    proxy: TcpProxy,
    daemons: &'a [Daemon; 2],
    running: [Option<Run<'a>>; 2],
    /// A command of the command line that runs at the same time.
    command: Option<Process<'a>>,
    rng: StdRng,
    tally: Tally,
    /// What the writers of all workloads did.
    counts: TransactionCounts,
    /// Whether `sync` and `backfill` are among the faults: each would hide that a change was missed.
    commands: bool,
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
            let expected = (*armed && aborted) || self.stop.is_cancelled();
            if !expected {
                return Err(format!(
                    "the replicator ended without a fault ({status}):\n{}",
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
