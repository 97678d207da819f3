//! What capture costs the site's writers: 8 of them, a row a transaction.

use crate::load::{LoadTable, Until, Writers, one_row};
use crate::servers::World;
use crate::site::Site;
use crate::table::{Row, Samples, Target, Unit};
use crate::{Outcome, Progress};

const WRITERS: u64 = 8;

/// A run's seconds with capture and those without alternate, so that both see the machine as fast as it then is.
const TURNS: u64 = 3;
const SECONDS: u64 = 2;

/// The replicator is stopped.
pub(crate) async fn capture(world: &World, progress: &Progress<'_>) -> Outcome<Vec<Row>> {
    let site = Site::with_logs(world).await?;
    let (mut bare, mut captured) = (Samples::default(), Samples::default());
    for run in progress.runs() {
        progress.run(run, "with capture and without, in turns");
        let (without, with) = in_turns(world, &site, false).await?;
        bare.push(without);
        captured.push(with);
    }
    site.end().await?;
    let row = Row::new(
        "capture",
        "8 writers, one-row inserts, replicator stopped",
        Unit::PerSecond,
        captured,
    )
    .peer("without capture", bare)
    .target(Target::RatioAtLeast(0.9));
    Ok(vec![row])
}

/// The replicator has nothing to do until the writers begin, and works beside them on the same cores.
pub(crate) async fn draining(world: &World, progress: &Progress<'_>) -> Outcome<Vec<Row>> {
    let site = Site::with_logs(world).await?;
    let (mut bare, mut captured) = (Samples::default(), Samples::default());
    let replicator = site.replicator_at_work(&LoadTable::logs("logs")).await?;
    for run in progress.runs() {
        progress.run(run, "with capture and a drain, and without, in turns");
        let (without, with) = in_turns(world, &site, true).await?;
        bare.push(without);
        captured.push(with);
    }
    replicator.end().await?;
    site.end().await?;
    let what = "8 writers, one-row inserts, with a running drain";
    let row = Row::new("draining", what, Unit::PerSecond, captured)
        .peer("without capture", bare)
        .target(Target::RatioAtLeast(0.9));
    Ok(vec![row])
}

/// The mean rates without capture and with it; where a replicator drains, no turn begins before it has caught up.
async fn in_turns(world: &World, site: &Site<'_>, drained: bool) -> Outcome<(f64, f64)> {
    let (mut without, mut with) = (Samples::default(), Samples::default());
    for _ in 0..TURNS {
        without.push(rate(world, site, "bare").await?);
        with.push(rate(world, site, "logs").await?);
        if drained {
            let all = site.goal_with_last_row(&LoadTable::logs("logs")).await?;
            site.reached(&all).await?;
        }
    }
    Ok((without.mean(), with.mean()))
}

async fn rate(world: &World, site: &Site<'_>, table: &str) -> Outcome<f64> {
    world.settle().await?;
    let writers = Writers {
        server: &world.source,
        database: &site.name,
        clients: WRITERS,
    };
    writers.run(&one_row(table), Until::Seconds(SECONDS)).await
}
