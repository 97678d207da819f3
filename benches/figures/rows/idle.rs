//! A replicator that has nothing to do.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::load::LoadTable;
use crate::servers::World;
use crate::site::Site;
use crate::table::{Row, Samples, Target, Unit};
use crate::{Outcome, Progress};

/// How long after its last change it counts as idle.
const QUIET: Duration = Duration::from_secs(5);

const LOOK: Duration = Duration::from_secs(20);

pub(crate) async fn idle(world: &World, progress: &Progress<'_>) -> Outcome<Vec<Row>> {
    let site = Site::with_logs(world).await?;
    let replicator = site.replicator_at_work(&LoadTable::logs("logs")).await?;
    let (mut cpu, mut memory, mut sleeps) = (Samples::default(), Samples::default(), Samples::default());
    sleep(QUIET).await;
    for run in progress.runs() {
        progress.run(run, "20 s");
        let (before, slept, start) = (replicator.cpu(), replicator.sleeps(), Instant::now());
        sleep(LOOK).await;
        let seconds = start.elapsed().as_secs_f64();
        cpu.push(100.0 * (replicator.cpu() - before) / seconds);
        sleeps.push((replicator.sleeps() - slept) / seconds);
        memory.push(replicator.resident());
    }
    replicator.end().await?;
    site.end().await?;
    Ok(vec![
        Row::new("idle", "of a core, over 20 s", Unit::PercentOfCore, cpu).target(Target::AtMost(0.5)),
        Row::new("idle", "memory", Unit::Mebibytes, memory).target(Target::AtMost(40.0)),
        Row::new("idle", "wake-ups of its threads", Unit::PerSecond, sleeps),
    ])
}
