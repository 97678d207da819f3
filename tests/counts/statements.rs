//! What a batch costs the two databases, whatever its rows.

use cloud_sync::drain::DrainStep;

use super::{Metered, rooms};
use crate::support::counting_proxy::Count;

/// What one batch may cost on a session: statements that are executed, and answers that are asked for.
struct Bound {
    session: &'static str,
    statements: u64,
    round_trips: u64,
}

/// In one round trip the sequence's value, the fence, and the window's first page; in another the rows of the
/// one entity, the columns' fingerprint, and where the log ends. Each asks for an answer of its own, and none
/// waits for the one before it.
const READER: Bound = Bound {
    session: "cloud-sync drain",
    statements: 6,
    round_trips: 6,
};

/// If another session has written to the log and not to the disk: is the log on the disk, and if it is not, a
/// message that takes it there.
const SENDER: Bound = Bound {
    session: "cloud-sync delivery",
    statements: 2,
    round_trips: 2,
};

/// The same if nobody else writes.
const SENDER_ALONE: u64 = 0;

/// Which entities have changes in quarantine, and the mirror.
const RECORDER: Bound = Bound {
    session: "cloud-sync checkpoint",
    statements: 2,
    round_trips: 2,
};

/// A step ends with a trim in two rounds. Each asks which segments are to be truncated, and whether writers
/// move on; the second truncates the one that they have left.
const TRIMMER: Bound = Bound {
    session: "cloud-sync space",
    statements: (1 + 1) + (1 + 1 + 1),
    round_trips: (1 + 1) + (1 + 1 + 1),
};

/// Begin, the site's lock, the source's turn and the entities' state in one round trip; one upsert for the one
/// entity; the record of the batch and the commit in one round trip. A batch of few rows is one round trip.
const RECEIVER: Bound = Bound {
    session: "cloud-sync receiver",
    statements: 7,
    round_trips: 3,
};

impl Bound {
    fn check(&self, rows: u64, cost: Count) {
        let cost = (cost.statements, cost.round_trips);
        assert!(
            (cost.0 > 0 || self.session == SENDER.session)
                && cost.0 <= self.statements
                && cost.1 <= self.round_trips,
            "{rows} rows cost {} {cost:?} statements and round trips, at most ({}, {}) are meant",
            self.session,
            self.statements,
            self.round_trips
        );
    }
}

#[tokio::test]
async fn a_batch_costs_the_same_few_statements_whatever_its_rows() {
    let metered = Metered::start("statements", "").await;
    let mut stages = metered.site.drain().open().await.unwrap();
    // Given that all is done that is done once: the schema is announced, statements are prepared.
    for _ in 0..2 {
        rooms(&metered.site, 10).await;
        assert_eq!(stages.step().await.unwrap(), DrainStep::Delivered);
    }
    let mut least = u64::MAX;
    for rows in [10, 1000, 5000] {
        // A batch that the machine's other work delays may be read in one more step: the least counts.
        let mut costs: Vec<Count> = Vec::new();
        for _ in 0..3 {
            rooms(&metered.site, rows).await;
            let bounds = [
                (READER, &metered.source),
                (SENDER, &metered.source),
                (RECORDER, &metered.source),
                (TRIMMER, &metered.source),
                (RECEIVER, &metered.target),
            ];
            let before = bounds
                .each_ref()
                .map(|(bound, counting_proxy)| counting_proxy.of(bound.session));
            let all = metered.source.of("cloud-sync");
            assert_eq!(stages.step().await.unwrap(), DrainStep::Delivered);
            let mut known = Count::default();
            for (index, ((bound, counting_proxy), before)) in bounds.iter().zip(before).enumerate() {
                let cost = counting_proxy.of(bound.session) - before;
                match costs.get_mut(index) {
                    Some(least) if cost.statements < least.statements => *least = cost,
                    Some(_) => {}
                    None => costs.push(cost),
                }
                if bound.session == SENDER.session {
                    least = least.min(cost.statements);
                }
                if bound.session != RECEIVER.session {
                    known = known + cost;
                }
            }
            // No other session takes part.
            assert_eq!(metered.source.of("cloud-sync") - all, known);
        }
        for (bound, cost) in [READER, SENDER, RECORDER, TRIMMER, RECEIVER].iter().zip(costs) {
            bound.check(rows, cost);
        }
    }
    assert_eq!(least, SENDER_ALONE);
    metered.site.assert_equal(&metered.cloud).await;
}
