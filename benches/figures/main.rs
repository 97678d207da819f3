//! What the project promises to be as fast as, compared with its peers: `make bench`, one row `make bench
//! ARGS=latency`.
//!
//! Whole processes are measured, the released binary among them, from outside: a private PostgreSQL server
//! for the site, one for the cloud and one for logical replication's source, with PostgreSQL's own durable
//! settings; the replicator, the receiver, and each peer at its own defaults; all of it on this machine and
//! its loopback. Each figure is measured three times, interleaved with its peer's; the table has the medians,
//! and as spread the lowest and the highest of the runs. The whole takes less than 15 minutes: a row that
//! nobody named and that takes long is left with fewer runs.
//!
//! Invariants:
//! - Nothing survives: neither a server nor a process nor a file, be it after the end, after a failure,
//!   after Ctrl-C or after SIGKILL ([`servers`], [`process`]).
//! - A target that is missed is a line of the table; only a measurement that failed is a failure.
//! - Where something is counted in (a start, a hash, an fsync) or estimated, a note below the table says so.
//!
//! A measurement travels: [`arguments`] -> [`rows`] -> [`site`] or a peer ([`subscription`], [`pgq`],
//! [`peers`]), both on [`servers`], under a [`load`] -> [`arrival`] -> [`table`].

mod arguments;
mod arrival;
mod line;
mod load;
mod machine;
mod memory;
mod peers;
mod pgq;
mod plot;
mod process;
mod progress;
mod rows;
mod school;
mod servers;
mod site;
mod subscription;
mod table;

use std::process::ExitCode;
use std::time::Instant;

use tokio::signal::unix::{SignalKind, signal};

use arguments::Arguments;
use clap::Parser;
use machine::Machine;
use progress::{ALLOWANCE, Progress};
use servers::World;
use table::Row;

/// What a measurement comes to; its error is for a person to read.
type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.list {
        println!("{}", arguments::list());
        return ExitCode::SUCCESS;
    }
    // One thread: what it starts ends with the thread that started it.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        tokio::select! {
            biased;
            () = stopped() => {
                eprintln!("stopped; nothing is left behind");
                ExitCode::from(130)
            }
            code = bench(&arguments) => code,
        }
    })
}

/// Measures, and prints what was measured.
async fn bench(arguments: &Arguments) -> ExitCode {
    let start = Instant::now();
    let machine = Machine::describe();
    eprintln!("{machine}");
    let world = match World::start().await {
        Ok(world) => world,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut measured: Vec<Row> = Vec::new();
    let mut failed: Vec<String> = Vec::new();
    for name in arguments.rows() {
        let progress = Progress {
            name,
            start,
            row: Instant::now(),
            runs: arguments.runs.into(),
            allowance: (!arguments.has_names()).then_some(ALLOWANCE),
        };
        match rows::measure(name, &world, arguments.plot.as_deref(), &progress).await {
            Ok(rows) => measured.extend(rows),
            Err(error) => {
                progress.say(&format!("FAILED: {error}"));
                failed.push(format!("{name}: {error}"));
            }
        }
    }
    let version = world.version().to_owned();
    drop(world);
    let seconds = start.elapsed().as_secs_f64();
    if arguments.json {
        println!("{}", table::json(&measured, &failed, &machine, &version, seconds));
    } else {
        println!("{}", table::text(&measured));
        println!("\n{machine}, PostgreSQL {version}; {seconds:.0} s");
        for failure in &failed {
            println!("FAILED {failure}");
        }
    }
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Comes when someone wants it to end.
async fn stopped() {
    let mut signals = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ]
    .map(|kind| signal(kind).expect("a signal can be listened to"));
    let [interrupt, terminate, hangup] = &mut signals;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
}
