//! Replay: puts the checkpoint back, so that the drain sends the rows again whose touches are still in the
//! outbox. It sends their present states, so that no row goes back.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::leader::Leader;
use crate::change::{Position, Snapshot};
use crate::checkpoint::{Checkpoint, SledStore, Store};
use crate::config::Settings;
use crate::error::{Error, Kind, Result};
use crate::source::connect::Session;
use crate::source::{identity, outbox, term};

/// Where a replay begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayFrom {
    /// At this position.
    Position(Position),
    /// At the first change that was captured at this time or later.
    Time(Timestamp),
}

/// A checkpoint that was put back.
#[derive(Debug, Clone, Copy)]
pub struct ReplayedCheckpoint {
    /// The first position that is drained again.
    pub from: Position,
    /// How many changes.
    pub changes: u64,
}

/// Puts the checkpoint back before `from`. No replicator may run at the same time.
///
/// # Errors
/// A replicator runs, or the outbox holds nothing from there on; the source's and the store's.
pub async fn replay(settings: &Settings, from: ReplayFrom) -> Result<ReplayedCheckpoint> {
    let url = settings.require_database_url()?;
    let leader = Leader::try_take(url).await?.ok_or_else(|| {
        Error::new(
            Kind::Config,
            "put the checkpoint back",
            "a replicator drains the outbox",
        )
        .remedy("stop it, replay, and start it again")
    })?;
    let session = Session::open(url, "replay").await?;
    let identity =
        identity::stored_identity_of(session.client(), settings.source.source_id.as_deref()).await?;
    let first = match from {
        ReplayFrom::Position(position) => outbox::first_from_position(session.client(), position).await?,
        ReplayFrom::Time(time) => outbox::first_from_time(session.client(), &time.to_string()).await?,
    };
    let Some(first) = first else {
        return Err(
            Error::config("put the checkpoint back", "the outbox holds no change from there on")
                .remedy("changes are trimmed once they are accepted; `cloud-sync sync --force` compares everything instead"),
        );
    };
    let (store, _aside) = SledStore::open(&settings.store.path.join("checkpoint"))?;
    let stored = store.load()?.filter(|stored| stored.identity == identity);
    let mirrored = outbox::mirrored(&session, &identity).await?;
    let current = [stored, mirrored]
        .into_iter()
        .flatten()
        .max_by_key(Checkpoint::order);
    let checkpoint = put_back(
        current.unwrap_or_else(|| Checkpoint::beginning(identity)),
        Position(first),
    );
    store.commit(&checkpoint)?;
    let fence = term::term_at_open(session.client()).await?.fence;
    outbox::mirror(session.client(), &fence, &checkpoint).await?;
    let changes = outbox::lag(&session, &checkpoint).await?.changes;
    leader.release().await;
    Ok(ReplayedCheckpoint {
        from: Position(checkpoint.low_water.0 + 1),
        changes,
    })
}

/// The checkpoint before `first`. All that says who drained, and in which life of the server, stays.
fn put_back(current: Checkpoint, first: Position) -> Checkpoint {
    Checkpoint {
        low_water: Position(first.0 - 1).min(current.low_bound()),
        lo: Snapshot::beginning(),
        window: None,
        low_water_by_transaction: BTreeMap::new(),
        serial: current.serial + 1,
        ..current
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Epoch;
    use crate::checkpoint::Identity;

    #[test]
    fn a_replay_keeps_who_drained() {
        let mut current = Checkpoint::beginning(Identity {
            source_id: "college".into(),
            outbox_id: "o".into(),
            system_id: "1/d".into(),
            epoch: Epoch(1),
        });
        (current.term, current.nonce, current.serial) = (3, "n".into(), 7);
        current.incarnation = "i".into();
        current.mirrored = (3, 6);
        current.open_window("10:12:10".parse().unwrap(), Position(100));
        current.close_window();
        let back = put_back(current.clone(), Position(50));
        assert_eq!((back.low_water, back.order()), (Position(0), (3, 8)));
        assert_eq!((back.lo, back.window), (Snapshot::beginning(), None));
        assert_eq!((back.nonce.as_str(), back.mirrored), ("n", (3, 6)));
        current.low_water_by_transaction.clear();
        assert_eq!(put_back(current, Position(50)).low_water, Position(49));
    }
}
