//! Lets faults of every kind strike one site for minutes: `make soak ARGS="--minutes N --seed S"`.
//!
//! Writers of every kind work against a site whose replicator, cloud, database and line are killed, cut and stalled at
//! random. After each round the oracle is asked what must hold at any moment; every few rounds all is left to catch up,
//! and the oracle is asked whether both sides are equal. The last line says what was done and found.

mod arguments;
mod faults;
mod receiver;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod support;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use cloud_sync::control::status::State;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio_util::sync::CancellationToken;

use arguments::{Arguments, HELP, arguments};
use receiver::Receiver;
use support::oracle::{self, Tally};
use support::postgres::Server;
use support::process::{Daemon, Process};
use support::proxy::{Proxy, Trouble};
use support::site::{Cloud, Site, connect};
use support::storm::{self, SERVER, Storm, audited};

/// How long the replicator may take until nothing waits, once nothing is in its way.
const CATCH_UP: Duration = Duration::from_secs(150);

/// After so many rounds all is left to catch up.
const ROUNDS: u64 = 3;

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
        command: None,
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
    let World {
        running,
        command,
        tally,
        ..
    } = world;
    drop((running, command));
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
    /// A command of the command line that runs beside them.
    command: Option<Process<'a>>,
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

    /// Ends the storm, leaves everything alone until nothing waits, and answers what is broken then.
    async fn calm(&mut self, storm: Storm) -> Vec<String> {
        self.proxy.set(Trouble::None);
        self.receiver.ensure();
        let committed = storm.end().await;
        let begun = Instant::now();
        self.command = None;
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
