//! The quarantine: rows that the cloud refused for good, or that cannot be read. The source database keeps
//! them durably until an operator decides.
//!
//! A row has at most one entry: its last refusal. When the cloud accepts a later change of the row, the entry
//! is removed. A row whose requests fail with 5xx or a firewall's 403 is not refused: it is retried without
//! an operator, at growing intervals ([`due`]). [`retry`] touches the row again, so that its present state is
//! delivered like any change; the entry stays until the cloud has accepted the row. A row that was refused
//! because its parent is missing is touched again when the cloud accepts the parent: [`orphans`].
//!
//! A server without `changes` may refuse a row because an earlier request for another row arrived late. So a
//! first refusal there is *provisional*: it is kept, but the row counts as quarantined only when it is
//! refused again after the rest of its window.

mod by_hand;
mod due_rows;
pub mod orphans;

use std::collections::HashMap;
use std::time::Duration;

use tokio_postgres::Client;

use crate::batch::{Batch, Fate};
use crate::catalogue::{Catalogue, EntityIndex};
use crate::change::{Op, Position};
use crate::error::Result;
use crate::source::install::AttachedEntity;
use crate::source::quarantine::{self as entries, RefusedChanges, SupersedingChanges};
use crate::source::touch;
use crate::wire::json::pick;

pub(crate) use crate::source::quarantine::first_images;
pub use crate::source::quarantine::{QuarantineEntry, count, counts, discard, discard_all, oldest};
pub(crate) use by_hand::no_such_entry;
pub use by_hand::{discard_at, retry_at};
pub use due_rows::add;
use due_rows::{bring_forward, release_by_hand};
pub(crate) use due_rows::{due, otherwise_quarantined, postpone, set_aside_fate};

/// The code of a row that cannot be read.
const UNREADABLE: u16 = 0;

/// The code of a row that an operator has set aside: it is not sent.
const BY_HAND: i32 = 1;

/// The code of such a row that is to be sent again.
const RELEASED: i32 = 2;

/// How long a row waits in quarantine before its first retry. The wait doubles with each retry, up to an
/// hour.
pub const FIRST_WAIT: Duration = Duration::from_secs(10);

/// How many waiting rows become due at once for each failed row that the cloud accepts unchanged.
const BROUGHT_FORWARD: i64 = 20;

/// Whether a row that was answered with this code may be accepted later, although nobody changes the row.
pub fn may_be_accepted_later(code: u16) -> bool {
    matches!(code, 200..=299 | 403 | 500..)
}

/// What [`record_fates`] did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SettledEntries {
    /// The entities that have entries.
    pub occupied: Vec<EntityIndex>,
    /// Entities and keys of rows whose refusal is provisional: the caller touches them again.
    pub retouch: Vec<(EntityIndex, String)>,
    /// Whether the cloud has accepted a failed row unchanged. Then other rows have become due.
    pub mended: bool,
}

/// Stores the batch's refused changes, and removes the entries that its accepted changes supersede, if `term`
/// is still the drain's term. It must succeed before the batch's checkpoint is committed. If first refusals
/// are `provisional`, the caller touches these rows again.
///
/// Nothing is cached from batch to batch: others write to the quarantine too, and it may be larger than
/// memory.
///
/// # Errors
/// The source's; another drain has begun a term.
pub async fn record_fates(
    client: &Client,
    term: i64,
    catalogue: &Catalogue,
    batch: &Batch,
    provisional: bool,
) -> Result<SettledEntries> {
    let mut outcome = SettledEntries {
        occupied: occupied(client, catalogue).await?,
        ..SettledEntries::default()
    };
    if !outcome.occupied.is_empty() {
        let unchanged_accepted = remove_superseded(client, term, catalogue, batch, &outcome.occupied).await?;
        bring_forward(client, unchanged_accepted * BROUGHT_FORWARD).await?;
        outcome.mended = unchanged_accepted > 0;
    }
    let mut refused = RefusedChanges::default();
    for (change, code, error) in batch.refused() {
        refused.entities.push(catalogue[change.entity].name.as_str());
        refused.keys.push(&change.key);
        refused.positions.push(change.position.0);
        refused.ops.push(if code == UNREADABLE {
            'r'
        } else {
            op_letter(change.op)
        } as i8);
        refused.images.push(change.row.as_deref());
        refused.codes.push(i32::from(code));
        refused.errors.push(error);
        // A row that may be accepted later has had its retries.
        let is_final = code == UNREADABLE || i32::from(code) == BY_HAND || may_be_accepted_later(code);
        refused.provisional.push(provisional && !is_final);
        refused
            .waits
            .push(may_be_accepted_later(code).then_some(FIRST_WAIT.as_secs_f64()));
        outcome.occupied.push(change.entity);
    }
    outcome.occupied.sort_unstable();
    outcome.occupied.dedup();
    if refused.entities.is_empty() {
        return Ok(outcome);
    }
    let provisional = entries::refuse(client, term, &refused).await?;
    outcome.retouch = provisional
        .into_iter()
        .filter_map(|(entity, key)| Some((catalogue.find(&entity)?, key)))
        .collect();
    Ok(outcome)
}

/// Which entities have entries.
async fn occupied(client: &Client, catalogue: &Catalogue) -> Result<Vec<EntityIndex>> {
    let names: Vec<&str> = catalogue
        .entities()
        .iter()
        .map(|entity| entity.name.as_str())
        .collect();
    let occupied = entries::occupied(client, &names).await?;
    Ok(occupied.iter().filter_map(|name| catalogue.find(name)).collect())
}

/// Removes the entries that the batch's settled changes supersede: each change its row's entry, a truncate
/// all entries of its entity. Returns how many rows the cloud has accepted unchanged after they failed: the
/// fault was the cloud's, so it may accept others now.
async fn remove_superseded(
    client: &Client,
    term: i64,
    catalogue: &Catalogue,
    batch: &Batch,
    occupied: &[EntityIndex],
) -> Result<i64> {
    let mut superseding = SupersedingChanges::default();
    for (change_index, change) in batch.indexed() {
        let settled = matches!(
            batch.fate(change_index),
            Fate::Accepted | Fate::Kept | Fate::Unsupported
        );
        if !settled || !occupied.contains(&change.entity) {
            continue;
        }
        let entity = catalogue[change.entity].name.as_str();
        if change.op == Op::Truncate && *batch.fate(change_index) == Fate::Accepted {
            entries::clear_entity(client, term, entity).await?;
        }
        superseding.entities.push(entity);
        superseding.keys.push(&change.key);
        superseding.images.push(change.row.as_deref());
    }
    if superseding.keys.is_empty() {
        return Ok(0);
    }
    entries::release(client, term, &superseding).await
}

/// Lists the entries of one entity or of all, the oldest first.
///
/// # Errors
/// The source's.
pub async fn list(client: &Client, entity: Option<&str>) -> Result<Vec<QuarantineEntry>> {
    oldest(client, entity, u32::MAX).await
}

/// Returns at most `limit` entries after an entity and key, in the order of entities and of their keys'
/// hashes. So a caller can go through all of them with bounded memory, although entries come and go.
///
/// # Errors
/// The source's.
pub async fn page(client: &Client, after: Option<(&str, &str)>, limit: u32) -> Result<Vec<QuarantineEntry>> {
    entries::page(client, after.unwrap_or_default(), limit).await
}

/// Returns the entries with these positions: usually one each, because a touch belongs to one row.
///
/// # Errors
/// The source's.
pub async fn at_positions(client: &Client, positions: &[Position]) -> Result<Vec<QuarantineEntry>> {
    let positions: Vec<i64> = positions.iter().map(|position| position.0).collect();
    entries::at_positions(client, &positions).await
}

/// Returns the entries with this position, with their images: usually one.
///
/// # Errors
/// The source's.
pub async fn show(client: &Client, position: Position) -> Result<Vec<QuarantineEntry>> {
    entries::show(client, position.0).await
}

/// Touches the entries' rows again, so that their present states are delivered. Returns how many. It skips a
/// refused truncate: if it were sent now, it would delete rows that came after it.
///
/// # Errors
/// The source's.
pub async fn retry(
    client: &Client,
    catalogue: &Catalogue,
    attached: &[AttachedEntity],
    entries: &[QuarantineEntry],
) -> Result<usize> {
    let mut touched = 0;
    release_by_hand(client, entries).await?;
    for (entity, attached) in catalogue.entities().iter().zip(attached) {
        let of_entity = entries
            .iter()
            .filter(|entry| entry.entity == entity.name && entry.op != "t");
        // The entry may be older than the entity's present key columns: then its key identifies no row.
        let (keys, stale): (Vec<&str>, Vec<&str>) = of_entity
            .map(|entry| entry.key.as_str())
            .partition(|key| pick(key, &entity.key).is_ok_and(|values| values.iter().all(Option::is_some)));
        if !stale.is_empty() {
            tracing::warn!(
                entity = entity.name,
                rows = stale.len(),
                "quarantined rows are not retried: their keys have other columns than the entity's; discard \
                 them"
            );
        }
        touch::keys(client, entity, attached.id, &keys).await?;
        touched += keys.len();
    }
    Ok(touched)
}

/// Those of some rows that are in quarantine, provisional entries included.
#[derive(Debug, Default)]
pub(crate) struct QuarantinedRows {
    /// The code and the cloud's error message, by key.
    pub(crate) rows: HashMap<String, (i32, String)>,
    /// Whether some of them are provisional: those are still to be retried.
    pub(crate) provisional: bool,
}

/// Finds which of these rows of an entity were refused since a time, in microseconds since 1970.
///
/// # Errors
/// The source's.
pub(crate) async fn refused_since(
    client: &Client,
    entity: &str,
    keys: &[String],
    since: i64,
) -> Result<QuarantinedRows> {
    let rows = entries::refused_since(client, entity, keys, since).await?;
    Ok(QuarantinedRows {
        provisional: false,
        rows: rows
            .into_iter()
            .map(|(key, code, error)| (key, (code, error)))
            .collect(),
    })
}

/// Finds which of these rows of an entity are in quarantine.
///
/// # Errors
/// The source's.
pub(crate) async fn refused(client: &Client, entity: &str, keys: &[String]) -> Result<QuarantinedRows> {
    let rows = entries::refused(client, entity, keys).await?;
    Ok(QuarantinedRows {
        provisional: rows.iter().any(|(.., provisional)| *provisional),
        rows: rows
            .into_iter()
            .map(|(key, code, error, _)| (key, (code, error)))
            .collect(),
    })
}

/// The letter by which the table of the quarantine names an op.
fn op_letter(op: Op) -> char {
    match op {
        Op::Upsert => 'u',
        Op::Delete => 'd',
        Op::Truncate => 't',
    }
}
