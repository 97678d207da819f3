//! What capture costs the site's writers: 8 of them, a row a transaction. The same writers write to a table
//! without capture and to each peer's, in turns of seconds whose order alternates, so that all see the
//! machine as fast as it is just then.
//!
//! The school's table of attendance has foreign keys and indexes, as a site's tables do: there the price of
//! capture counts in addition to what a row costs anyway. The table of logs has neither: there it shows at its
//! largest.

use crate::load::{LoadTable, Until, Writers};
use crate::pgq::{Pgq, PgqOrSkipped};
use crate::progress::Progress;
use crate::servers::{Server, World};
use crate::site::{Plan, Site};
use crate::subscription::{Subscription, SubscriptionPlan};
use crate::table::{Row, Samples, Target, Unit, grouped};
use crate::{Outcome, school};

const WRITERS: u64 = 8;

/// Of one turn.
const SECONDS: u64 = 2;

/// How often each side has its turn in a run; an even number, so that of any two each goes first equally
/// often.
const TURNS: usize = 4;

/// Replicator and subscriber are stopped, and PgQ has no consumer.
pub(crate) async fn capture(world: &World, progress: &Progress<'_>) -> Outcome<Vec<Row>> {
    let bare = bare_school(world).await?;
    let site = Site::new(world, &Plan::of("", &school::tables())).await?;
    let logs = Site::with_logs(world).await?;
    let peer = Subscription::new(world, school_subscription()).await?;
    let pgq = Pgq::install(world, &school::tables(), &school::attendance().name).await?;
    let source = &world.source;
    let mut sides = vec![
        Side::new(source, &bare, school::attendance()),
        Side::new(source, &site.name, school::attendance()),
        Side::new(&world.publisher, &peer.name, school::attendance()),
        Side::new(source, &logs.name, LoadTable::logs("bare")),
        Side::new(source, &logs.name, LoadTable::logs("logs")),
    ];
    if let PgqOrSkipped::Installed(pgq) = &pgq {
        sides.push(Side::new(source, &pgq.name, school::attendance()));
    }
    let rates = measure(world, progress, &sides).await?;
    drop(sides);
    let [without, ours, slot, logs_without, logs_ours, pgq_rates @ ..] = &rates[..] else {
        return Err("a side is missing".into());
    };
    let line = |what, ours: &Samples, peer, theirs: &Samples| {
        Row::new("capture", what, Unit::PerSecond, ours.clone()).peer(peer, theirs.clone())
    };
    let beside_pgq = "the same beside PgQ";
    let beside_pgq = match (pgq, pgq_rates.first()) {
        (PgqOrSkipped::Installed(pgq), Some(theirs)) => {
            let events = pgq.events().await?;
            pgq.end().await?;
            line(beside_pgq, ours, "PgQ, no consumer", theirs)
                .target(Target::RatioAtLeast(1.0))
                .note(format!(
                    "its trigger pgq.logutriga, in C, keeps {} of the rate without capture; \
                     {} events are in its queue.",
                    share(theirs, without),
                    grouped(events as f64)
                ))
        }
        (PgqOrSkipped::Skipped(reason), _) => {
            let row = Row::new("capture", beside_pgq, Unit::PerSecond, ours.clone());
            row.note(format!("PgQ was skipped: {reason}."))
        }
        (PgqOrSkipped::Installed(_), None) => return Err("PgQ was not measured".into()),
    };
    let rows =
        vec![
        line(
            "8 writers, one-row inserts, attendance, replicator stopped",
            ours,
            "without capture",
            without,
        )
        .target(Target::RatioAtLeast(0.85)),
        beside_pgq,
        line("the same beside a slot", ours, "logical replication, subscriber stopped", slot).note(format!(
            "its server has wal_level = logical. It keeps {} of the rate without capture, that of a server \
             with wal_level = replica.",
            share(slot, without)
        )),
        line(
            "a table without indexes, replicator stopped",
            logs_ours,
            "without capture",
            logs_without,
        )
        .target(Target::RatioAtLeast(0.8)),
    ];
    peer.end().await?;
    logs.end().await?;
    site.end().await?;
    world.forget(&bare).await?;
    Ok(rows)
}

/// Replicator and subscriber have nothing to do until the writers begin, and work with them on the same
/// cores.
pub(crate) async fn draining(world: &World, progress: &Progress<'_>) -> Outcome<Vec<Row>> {
    let bare = bare_school(world).await?;
    let site = Site::new(world, &Plan::of("", &school::tables())).await?;
    let peer = Subscription::new(world, school_subscription()).await?;
    let replicator = site.replicator_at_work(&school::attendance()).await?;
    let sides = vec![
        Side::new(&world.source, &bare, school::attendance()),
        Side::new(&world.source, &site.name, school::attendance()).drained_by(Consumer::Replicator(&site)),
        Side::new(&world.publisher, &peer.name, school::attendance()).drained_by(Consumer::Subscriber(&peer)),
    ];
    let rates = measure(world, progress, &sides).await?;
    drop(sides);
    let [without, ours, theirs] = &rates[..] else {
        return Err("a side is missing".into());
    };
    replicator.end().await?;
    peer.end().await?;
    site.end().await?;
    world.forget(&bare).await?;
    Ok(vec![
        Row::new(
            "draining",
            "8 writers, one-row inserts, attendance, all running",
            Unit::PerSecond,
            ours.clone(),
        )
        .peer("without capture", without.clone())
        .target(Target::RatioAtLeast(0.8)),
        Row::new(
            "draining",
            "the same beside a running subscriber",
            Unit::PerSecond,
            ours.clone(),
        )
        .peer("logical replication", theirs.clone())
        .target(Target::RatioAtLeast(1.05))
        .note(format!(
            "logical replication keeps {} of the rate without capture. \
             Its table at the subscriber has no index but the key, \
             as the receiver's.",
            share(theirs, without)
        )),
    ])
}

/// A database with the school's tables, which nothing captures.
async fn bare_school(world: &World) -> Outcome<String> {
    let name = world.name("bare");
    world.source.create(&name).await?;
    let client = world.source.connect(&name).await?;
    client.batch_execute(&school::tables()).await?;
    Ok(name)
}

fn school_subscription() -> SubscriptionPlan {
    SubscriptionPlan {
        table: school::attendance(),
        tables: [school::tables(), school::subscriber_tables()],
        durable: false,
        through: None,
    }
}

/// What part of the rate without capture is kept.
fn share(rates: &Samples, without: &Samples) -> String {
    format!("{:.2} x", rates.median() / without.median())
}

/// A table that the writers write to in their turns.
struct Side<'a> {
    server: &'a Server,
    database: &'a str,
    table: LoadTable,
    consumer: Option<Consumer<'a>>,
}

/// What reads the changes while the writers write, and must have read all before the next turn.
#[derive(Clone, Copy)]
enum Consumer<'a> {
    Replicator(&'a Site<'a>),
    Subscriber(&'a Subscription<'a>),
}

impl<'a> Side<'a> {
    fn new(server: &'a Server, database: &'a str, table: LoadTable) -> Self {
        Self {
            server,
            database,
            table,
            consumer: None,
        }
    }

    fn drained_by(mut self, consumer: Consumer<'a>) -> Self {
        self.consumer = Some(consumer);
        self
    }

    /// One turn: the transactions a second.
    async fn rate(&self, world: &World) -> Outcome<f64> {
        if let Some(Consumer::Subscriber(peer)) = self.consumer {
            peer.resume_and_catch_up().await?;
        }
        world.settle().await?;
        let writers = Writers {
            server: self.server,
            database: self.database,
            clients: WRITERS,
        };
        let rate = writers.run(&self.table.one_row, Until::Seconds(SECONDS)).await?;
        match self.consumer {
            None => {}
            Some(Consumer::Replicator(site)) => {
                let all = site.goal_with_last_row(&self.table).await?;
                site.reached(&all).await?;
            }
            Some(Consumer::Subscriber(peer)) => {
                let all = peer.goal_with_last_row().await?;
                peer.reached(&all).await?;
                peer.pause().await?;
            }
        }
        Ok(rate)
    }
}

/// Gives each side its turns in each run; the mean rates of the runs, side by side.
async fn measure(world: &World, progress: &Progress<'_>, sides: &[Side<'_>]) -> Outcome<Vec<Samples>> {
    let mut rates = vec![Samples::default(); sides.len()];
    for run in progress.runs() {
        progress.run(
            run,
            &format!("{} sides, {TURNS} turns of {SECONDS} s each", sides.len()),
        );
        let mut turns = vec![Samples::default(); sides.len()];
        for turn in 0..TURNS {
            for index in order(turn, sides.len()) {
                turns[index].push(sides[index].rate(world).await?);
            }
        }
        for (rates, turns) in rates.iter_mut().zip(turns) {
            rates.push(turns.mean());
        }
    }
    Ok(rates)
}

/// The order of the sides in a turn: every second turn in the opposite direction, every third with another
/// first.
fn order(turn: usize, sides: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..sides).collect();
    order.rotate_left(turn / 2 * 2 % sides);
    if turn % 2 == 1 {
        order.reverse();
    }
    order
}
