//! What a replicator costs its source while nothing happens.

use std::time::{Duration, Instant};

use super::{Metered, rooms};
use crate::support::postgres::Server;

/// What a session may execute so often.
struct Round {
    session: &'static str,
    every: Duration,
    statements: u64,
}

/// The slow poll is every five seconds, jittered by a fifth: the sequence's value, the fence, and the
/// window's first page. Every half minute it renews the time until which it sleeps.
const READER: Round = Round {
    session: "cloud-sync drain",
    every: Duration::from_secs(4),
    statements: 3 + 1,
};

/// The gauges: identity, quarantine, lag, the outbox's size, files, pauses, and room on the disk.
const STATUS: Round = Round {
    session: "cloud-sync status",
    every: Duration::from_secs(5),
    statements: 9,
};

/// The look at the capture: seven statements an entity, and one.
const GUARD: Round = Round {
    session: "cloud-sync drift",
    every: Duration::from_secs(15),
    statements: 9 * 7 + 1,
};

/// What was accepted last is mirrored. Then no more.
const COMMITTER: Round = Round {
    session: "cloud-sync checkpoint",
    every: Duration::from_secs(3600),
    statements: 1,
};

/// What was accepted last is trimmed in two rounds: which segments are to be truncated, one that is, and
/// moving on. Then no more, unless something holds it up.
const TRIMMER: Round = Round {
    session: "cloud-sync space",
    every: Duration::from_secs(5),
    statements: 1 + 1 + 1,
};

#[tokio::test]
async fn an_idle_replicator_asks_its_source_only_what_is_due() {
    // The transactions of other tests would keep it from lying down for long.
    let server = Server::with(&[]);
    let metered = Metered::start_on(&server, "idle", "").await;
    let replicator = metered.site.replicate();
    rooms(&metered.site, 10).await;
    replicator.caught_up().await;
    let rounds = [READER, STATUS, GUARD, COMMITTER, TRIMMER];
    let count = || {
        let of = |session: &str| metered.source.of(session).statements;
        (rounds.each_ref().map(|round| of(round.session)), of("cloud-sync"))
    };
    // However slow the machine is, timers send no more than that.
    let (start, (before, all)) = (Instant::now(), count());
    tokio::time::sleep(Duration::from_secs(16)).await;
    let (after, all_after) = count();
    let elapsed = start.elapsed();
    for ((round, before), after) in rounds.iter().zip(before).zip(after) {
        let times = (elapsed.as_millis() / round.every.as_millis()) as u64 + 1;
        assert!(
            after - before <= times * round.statements,
            "{} executed {} statements in {elapsed:?}",
            round.session,
            after - before
        );
    }
    assert!(after[0] > before[0], "it polls");
    let known: u64 = after
        .iter()
        .zip(before)
        .map(|(after, before)| after - before)
        .sum();
    assert_eq!(all_after - all, known, "no other session asks anything");
    replicator.end().await;
}
