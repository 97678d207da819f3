//! Processes that have nothing to do: the replicator, the receiver, and the backends of both at their
//! databases.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::load::LoadTable;
use crate::memory::backends;
use crate::progress::Progress;
use crate::servers::World;
use crate::site::Site;
use crate::table::{Row, Samples, Target, Unit};
use crate::{Outcome, process};

/// How long after its last change it counts as idle.
const QUIET: Duration = Duration::from_secs(5);

/// How long it is watched: once, since it is long already.
const WATCH: Duration = Duration::from_secs(60);

pub(crate) async fn idle(world: &World, progress: &Progress<'_>) -> Outcome<Vec<Row>> {
    let site = Site::with_logs(world).await?;
    let replicator = site.replicator_at_work(&LoadTable::logs("logs")).await?;
    sleep(QUIET).await;
    let groups = [
        ("replicator", vec![replicator.pid()]),
        ("its backends", backends(&site.source).await?),
        ("receiver", vec![site.receiver.pid()]),
        ("its backends", backends(&site.cloud).await?),
    ];
    progress.say(&format!("{} s", WATCH.as_secs()));
    let (before, start) = (groups.each_ref().map(|(_, pids)| Use::of(pids)), Instant::now());
    sleep(WATCH).await;
    let seconds = start.elapsed().as_secs_f64();
    let after = groups.each_ref().map(|(_, pids)| Use::of(pids));
    // A backend that was replaced in between would count as nothing.
    for (client, (_, pids)) in [(&site.source, &groups[1]), (&site.cloud, &groups[3])] {
        if backends(client).await?.iter().any(|pid| !pids.contains(pid)) {
            progress.say("a backend began while it was watched; what it used is not counted");
        }
    }
    let memory = [replicator.pid(), site.receiver.pid()].map(process::resident);
    replicator.end().await?;
    site.end().await?;

    let percent: [f64; 4] =
        std::array::from_fn(|group| 100.0 * (after[group].seconds - before[group].seconds) / seconds);
    let wakeups: [f64; 4] =
        std::array::from_fn(|group| (after[group].sleeps - before[group].sleeps) / seconds);
    let by_group = |figures: [f64; 4]| {
        let parts: Vec<String> = groups
            .iter()
            .zip(figures)
            .map(|((name, _), figure)| format!("{name} {figure:.3}"))
            .collect();
        format!("{}.", parts.join(", "))
    };
    let single = |figure: f64| std::iter::once(figure).collect::<Samples>();
    let row = |what: &str, unit, figure| Row::new("idle", what, unit, single(figure));
    Ok(vec![
        row(
            "all processes, of a core, over 60 s",
            Unit::PercentOfCore,
            percent.iter().sum(),
        )
        .target(Target::AtMost(0.15))
        .note(by_group(percent)),
        row("wake-ups of their threads", Unit::PerSecond, wakeups.iter().sum())
            .target(Target::AtMost(10.0))
            .note(by_group(wakeups)),
        row("memory of the replicator", Unit::Mebibytes, memory[0]).target(Target::AtMost(20.0)),
        row("memory of the receiver", Unit::Mebibytes, memory[1]),
    ])
}

/// What processes have used so far.
struct Use {
    /// Of CPU.
    seconds: f64,
    /// How often their threads went to sleep, which is how often they woke.
    sleeps: f64,
}

impl Use {
    fn of(pids: &[u32]) -> Self {
        Self {
            seconds: pids.iter().map(|&pid| process::scheduled(pid)).sum(),
            sleeps: pids.iter().map(|&pid| process::sleeps(pid)).sum(),
        }
    }
}
