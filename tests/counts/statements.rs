//! What a batch costs the two databases, whatever its rows.

use cloud_sync::drain::Step;

use super::{Metered, rooms};
use crate::support::meter::Count;

/// What one batch may cost on a session: statements that are executed, and answers that are asked for.
struct Bound {
    session: &'static str,
    statements: u64,
    round_trips: u64,
}

/// The sequence's value, the fence and the snapshot; the batch; the columns' fingerprint.
const READER: Bound = Bound {
    session: "cloud-sync drain",
    statements: 5,
    round_trips: 5,
};

/// Which entities have changes in quarantine.
const COURIER: Bound = Bound {
    session: "cloud-sync delivery",
    statements: 1,
    round_trips: 1,
};

/// Is the log on the disk, and where it is not, a message that takes it there. Then, since a step ends with a trim in two
/// rounds: the mirror, four slots and moving on, twice.
const COMMITTER: Bound = Bound {
    session: "cloud-sync checkpoint",
    statements: 2 + 2 * (1 + 4 + 1),
    round_trips: 2 + 2 * (1 + 4 + 1),
};

/// Begin, the site's lock, the entities' state, one upsert for the one entity, commit; and the pool asks whether the
/// connection still lives.
const RECEIVER: Bound = Bound {
    session: "cloud-sync receiver",
    statements: 5,
    round_trips: 6,
};

impl Bound {
    fn check(&self, rows: u64, cost: Count) {
        let cost = (cost.statements, cost.round_trips);
        assert!(
            cost.0 > 0 && cost.0 <= self.statements && cost.1 <= self.round_trips,
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
    // Given that all is done that is done once: the cloud is told the columns, statements are prepared.
    for _ in 0..2 {
        rooms(&metered.site, 10).await;
        assert_eq!(stages.step().await.unwrap(), Step::Delivered);
    }
    for rows in [10, 1000, 5000] {
        rooms(&metered.site, rows).await;
        let bounds = [
            (READER, &metered.source),
            (COURIER, &metered.source),
            (COMMITTER, &metered.source),
            (RECEIVER, &metered.target),
        ];
        let before = bounds.each_ref().map(|(bound, meter)| meter.of(bound.session));
        let all = metered.source.of("cloud-sync");
        assert_eq!(stages.step().await.unwrap(), Step::Delivered);
        let mut known = Count::default();
        for ((bound, meter), before) in bounds.iter().zip(before) {
            let cost = meter.of(bound.session) - before;
            bound.check(rows, cost);
            if bound.session != RECEIVER.session {
                known = known + cost;
            }
        }
        // No other session takes part.
        assert_eq!(metered.source.of("cloud-sync") - all, known);
    }
    metered.site.assert_equal(&metered.cloud).await;
}
