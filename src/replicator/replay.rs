//! Replay: puts the checkpoint back, so that the drain sends changes again that are still in the outbox.

use jiff::Timestamp;

use super::leader::Leader;
use crate::change::{Position, Snapshot};
use crate::checkpoint::{Checkpoint, SledStore, Store};
use crate::config::Settings;
use crate::deliver::Origin;
use crate::error::{Error, Kind, Result};
use crate::source::connect::Session;
use crate::source::{identity, outbox};

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
pub struct Replayed {
    /// The first position that is drained again.
    pub from: Position,
    /// How many changes.
    pub changes: u64,
}

/// Puts the checkpoint back before `from`. No replicator may run meanwhile.
///
/// # Errors
/// A replicator runs; or, for a server that does not order by position, a later change than `from` is already trimmed: a
/// replay would end in an older state there.
pub async fn replay(settings: &Settings, from: ReplayFrom) -> Result<Replayed> {
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
    let identity = identity::read(session.client(), settings.source.source_id.as_deref()).await?;
    let failed = |error| Error::postgres("look for the first change to replay", error);
    let first: Option<i64> = match from {
        ReplayFrom::Position(position) => session
            .client()
            .query_one(
                "select min(position) from cloud_sync.outbox where position >= $1",
                &[&position.0],
            )
            .await
            .map_err(failed)?
            .get(0),
        ReplayFrom::Time(time) => session
            .client()
            .query_one(
                "select min(position) from cloud_sync.outbox where captured_at >= $1::text::timestamptz",
                &[&time.to_string()],
            )
            .await
            .map_err(failed)?
            .get(0),
    };
    let Some(first) = first else {
        return Err(
            Error::config("put the checkpoint back", "the outbox holds no change from there on")
                .remedy("changes are trimmed once they are accepted; `cloud-sync sync --force` compares everything instead"),
        );
    };
    check_trimmed(settings, &session, &identity, first).await?;
    let (store, _aside) = SledStore::open(&settings.store.path.join("checkpoint"))?;
    let stored = store.load()?.filter(|stored| stored.identity == identity);
    let mirrored = outbox::mirrored(&session, &identity).await?;
    let current = [stored, mirrored]
        .into_iter()
        .flatten()
        .max_by_key(Checkpoint::place);
    let mut checkpoint = Checkpoint::beginning(identity);
    let waiting = current.as_ref().map_or(Position(0), Checkpoint::bound);
    checkpoint.floor = Position((first - 1).min(waiting.0));
    let (term, serial) = current.map_or((0, 0), |current| current.place());
    (checkpoint.term, checkpoint.serial) = (term, serial + 1);
    debug_assert_eq!(checkpoint.lo, Snapshot::beginning());
    store.commit(&checkpoint)?;
    outbox::mirror(&session, &checkpoint).await?;
    let changes = outbox::lag(&session, &checkpoint).await?.changes;
    leader.release().await;
    Ok(Replayed {
        from: Position(checkpoint.floor.0 + 1),
        changes,
    })
}

async fn check_trimmed(
    settings: &Settings,
    session: &Session,
    identity: &identity::Identity,
    first: i64,
) -> Result<()> {
    let trimmed: i64 = session
        .client()
        .query_one("select trimmed from cloud_sync.identity", &[])
        .await
        .map_err(|error| Error::postgres("read how far the outbox is trimmed", error))?
        .get(0);
    if first > trimmed {
        return Ok(());
    }
    let origin = Origin {
        source_id: identity.source_id.clone(),
        epoch: identity.epoch,
    };
    if super::cloud(settings)?.hello(&origin).await?.capabilities.changes {
        return Ok(());
    }
    Err(Error::config(
        "put the checkpoint back",
        format!("changes up to position {trimmed} are trimmed, and this cloud does not order by position: a replay could end in an older state"),
    )
    .remedy("`cloud-sync sync --force` pushes each row's present state instead"))
}
