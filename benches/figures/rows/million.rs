//! Backlogs of 10,000, 100,000 and 1,000,000 changes: the replicator's memory is bounded, and its time grows
//! as the backlog does.

use std::path::Path;
use std::time::Instant;

use crate::Outcome;
use crate::load::{LoadTable, Until, Writers, many_rows};
use crate::memory::PeakMemory;
use crate::plot::{self, Point};
use crate::progress::Progress;
use crate::servers::World;
use crate::site::Site;
use crate::table::{Row, Samples, Target, Unit, grouped};

const BACKLOGS: [u64; 3] = [10_000, 100_000, 1_000_000];

/// Rows of one transaction.
const ROWS: u64 = 1_000;

/// MiB that the replicator may have at its peak.
const MEMORY: f64 = 48.0;

/// How much longer a change may take in the largest backlog than in the one before, so that time counts as
/// linear.
const LINEAR: f64 = 1.15;

pub(crate) async fn million(
    world: &World,
    plot: Option<&Path>,
    progress: &Progress<'_>,
) -> Outcome<Vec<Row>> {
    let site = Site::with_logs(world).await?;
    let start = drained(world, &site, 0, &mut PeakMemory::default()).await?;
    let mut points = Vec::new();
    let mut rows = Vec::new();
    // Microseconds a change, without the start.
    let mut each = Vec::new();
    let mut largest = PeakMemory::default();
    for changes in BACKLOGS {
        let (mut times, mut memory) = (Samples::default(), PeakMemory::default());
        for run in progress.runs() {
            progress.run(run, &format!("{} changes", grouped(changes as f64)));
            times.push(drained(world, &site, changes, &mut memory).await?);
        }
        let seconds = times.median();
        each.push((seconds - start) / changes as f64);
        points.push(Point {
            changes: changes as f64,
            seconds,
            megabytes: memory.replicator.median(),
        });
        let what = format!("{} changes", grouped(changes as f64));
        let rate = changes as f64 / seconds;
        rows.push(
            Row::new("million", &what, Unit::Seconds, times)
                .note(format!("{} changes a second, start included.", grouped(rate))),
        );
        if changes < BACKLOGS[2] {
            let what = format!("{what}, peak memory of the replicator");
            rows.push(Row::new("million", what, Unit::Mebibytes, memory.replicator));
        } else {
            largest = memory;
        }
    }
    site.end().await?;
    if let Some(file) = plot {
        std::fs::write(file, plot::svg(&points, MEMORY))
            .map_err(|error| format!("{}: {error}", file.display()))?;
    }
    let linear: Samples = std::iter::once(each[2] / each[1]).collect();
    let mut memory = largest.rows("million", "1,000,000 changes", None).into_iter();
    rows.extend(memory.next().map(|row| row.target(Target::AtMost(MEMORY))));
    rows.extend(memory);
    rows.push(
        Row::new(
            "million",
            "time a change, 1,000,000 to 100,000",
            Unit::Times,
            linear,
        )
        .target(Target::AtMost(LINEAR))
        .note(format!(
            "without the replicator's start, {start:.2} s; linear is 1."
        )),
    );
    Ok(rows)
}

/// Drains a backlog, and takes the peaks of memory: the seconds from the replicator's start. A backlog of 0
/// is three rows.
async fn drained(world: &World, site: &Site<'_>, changes: u64, memory: &mut PeakMemory) -> Outcome<f64> {
    let writers = Writers {
        server: &world.source,
        database: &site.name,
        clients: 2,
    };
    let (script, transactions) = match changes {
        0 => (many_rows("logs", 1), 2),
        changes => (many_rows("logs", ROWS), changes / ROWS),
    };
    writers.run(&script, Until::Transactions(transactions)).await?;
    let all = site.goal_with_last_row(&LoadTable::logs("logs")).await?;
    world.settle().await?;
    site.receiver.reset_peak()?;
    let start = Instant::now();
    let replicator = site.replicator()?;
    let seconds = (site.reached(&all).await? - start).as_secs_f64();
    memory.take(site, &replicator).await?;
    replicator.end().await?;
    Ok(seconds)
}
