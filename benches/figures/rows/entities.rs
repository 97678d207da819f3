//! Many entities, as a database of a few hundred tables has them, by one pattern: the rate over 100 tables; and with
//! 500, how soon a change is delivered after a start, and what a process that has nothing to do uses.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::load::{self, LoadTable, many_rows};
use crate::memory::backends;
use crate::progress::Progress;
use crate::servers::World;
use crate::site::{Plan, Site};
use crate::table::{Row, Samples, Target, Unit};
use crate::{Outcome, process};

const PATTERN: &str = "[catalogue]\ntables = [\"public.*\"]\n";

/// Tables, and changes of each, for the rate.
const BUSY: (u64, u64) = (100, 100);

/// Tables for the start, and for the idle process.
const MANY: u64 = 500;

/// How long after its last change it counts as idle, and how long it is watched then.
const QUIET: Duration = Duration::from_secs(5);
const WATCH: Duration = Duration::from_secs(30);

pub(crate) async fn entities(world: &World, progress: &Progress<'_>) -> Outcome<Vec<Row>> {
    let mut rates = Samples::default();
    let busy = site_of(world, BUSY.0).await?;
    let replicator = busy.replicator_at_work(&table(0)).await?;
    for run in progress.runs() {
        progress.run(run, "10,000 changes over 100 tables");
        rates.push(rate(&busy).await?);
    }
    replicator.end().await?;
    busy.end().await?;

    let many = site_of(world, MANY).await?;
    progress.say("500 tables, the first start");
    let first = until_delivered(&many).await?;
    let mut later = Samples::default();
    for run in progress.runs() {
        progress.run(run, "500 tables, a start");
        later.push(until_delivered(&many).await?);
    }
    progress.say("500 tables, idle");
    let idle = idle(&many).await?;
    many.end().await?;
    let single = |figure: f64| std::iter::once(figure).collect::<Samples>();
    Ok(vec![
        Row::new(
            "entities",
            "10,000 changes over 100 tables",
            Unit::PerSecond,
            rates,
        )
        .target(Target::AtLeast(20_000.0))
        .note("one transaction, ten rows of each table in turn; from its commit until all rows are visible."),
        Row::new(
            "entities",
            "500 tables: from a start to the first delivery",
            Unit::Seconds,
            later,
        )
        .target(Target::AtMost(2.0)),
        Row::new(
            "entities",
            "the same, before the cloud has its tables",
            Unit::Seconds,
            single(first),
        )
        .target(Target::AtMost(2.0))
        .note("the cloud makes 500 tables before it takes the first row."),
        Row::new(
            "entities",
            "500 tables: idle, replicator and its backends",
            Unit::PercentOfCore,
            single(idle),
        )
        .target(Target::AtMost(0.5)),
    ])
}

fn table(number: u64) -> LoadTable {
    LoadTable::logs(&format!("logs_{number}"))
}

/// A site of so many tables.
async fn site_of(world: &World, tables: u64) -> Outcome<Site<'_>> {
    let definitions: String = (0..tables)
        .map(|number| format!("create table {} ({});", table(number).name, load::COLUMNS))
        .collect();
    Site::new(world, &Plan::of(PATTERN, &definitions)).await
}

/// Changes a second, while the replicator runs.
async fn rate(site: &Site<'_>) -> Outcome<f64> {
    let (tables, changes) = BUSY;
    let round: String = (0..tables)
        .map(|number| format!("{};", many_rows(&table(number).name, 10)))
        .collect();
    let all = round.repeat(usize::try_from(changes / 10)?);
    site.source.batch_execute(&format!("begin;{all}commit")).await?;
    let start = Instant::now();
    let mut end = start;
    // The last table's rows come last: looking at the others costs little then.
    for number in (0..tables).rev() {
        let goal = site.goal(&table(number)).await?;
        end = end.max(site.reached(&goal).await?);
    }
    Ok((tables * changes) as f64 / (end - start).as_secs_f64())
}

/// Seconds from a start of the replicator until a row that waited is visible.
async fn until_delivered(site: &Site<'_>) -> Outcome<f64> {
    let goal = site.goal_with_last_row(&table(MANY / 2)).await?;
    let start = Instant::now();
    let replicator = site.replicator()?;
    let seconds = (site.reached(&goal).await? - start).as_secs_f64();
    site.caught_up().await?;
    replicator.end().await?;
    Ok(seconds)
}

/// Percent of a core that the replicator and its backends use when nothing happens.
async fn idle(site: &Site<'_>) -> Outcome<f64> {
    let replicator = site.replicator_at_work(&table(0)).await?;
    sleep(QUIET).await;
    let mut pids = backends(&site.source).await?;
    pids.push(replicator.pid());
    let used = || pids.iter().map(|&pid| process::scheduled(pid)).sum::<f64>();
    let (before, start) = (used(), Instant::now());
    sleep(WATCH).await;
    let percent = 100.0 * (used() - before) / start.elapsed().as_secs_f64();
    replicator.end().await?;
    Ok(percent)
}
