//! Rows that the cloud refused for good, or that cannot be read, kept durably in the source database until
//! someone decides.
//!
//! One entry a row: its last refusal. A later change of the row that the cloud accepts supersedes the entry
//! and takes it away. What failed rather than was refused, by 5xx or a firewall's 403, is touched again by
//! itself: [`due`].
//! `retry` touches the row again, so that its present state travels the same road as any change; the entry
//! stays until the cloud has accepted. What was refused for want of a parent row is retried by itself when
//! the parent is accepted: [`orphans`].
//!
//! A server without `changes` may refuse a row because an earlier request of another row arrived late. There
//! a first refusal is
//! *provisional*: it is kept, but the row counts as quarantined only when it is refused again behind the rest
//! of its window.

mod again;
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
pub use again::add;
pub(crate) use again::{by_hand, due, expected, put_off};
use again::{put_forward, release_by_hand};

/// The code of a row that cannot be read.
const UNREADABLE: u16 = 0;

/// The code of a row that an operator has set aside: it is not sent.
const BY_HAND: i32 = 1;

/// The code of such a row that is to be sent again.
const RELEASED: i32 = 2;

/// How long a row waits in quarantine for the first time before it is touched again by itself; then twice as
/// long each time, up to an hour.
pub const FIRST_WAIT: Duration = Duration::from_secs(10);

/// How many rows are put forward for each that the cloud accepts unchanged.
const PUT_FORWARD: i64 = 20;

/// Whether what was answered so may be accepted later, although nobody mends the row.
pub fn may_pass(code: u16) -> bool {
    matches!(code, 200..=299 | 403 | 500..)
}

/// What [`settle`] did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SettledEntries {
    /// The entities that have entries, by their places in the catalogue.
    pub occupied: Vec<EntityIndex>,
    /// Rows whose refusal is provisional, as place and key: they are to be touched again.
    pub again: Vec<(EntityIndex, String)>,
    /// Whether the cloud has accepted a row unchanged that had failed: others are put forward.
    pub mended: bool,
}

/// Keeps the batch's refused changes, and takes away the entries that its accepted ones supersede, while
/// `term` is the term of the drain. Must succeed before the batch's checkpoint is committed. Where a first
/// refusal is `provisional`, the caller touches these rows again.
///
/// Nothing is remembered from batch to batch: others write here too, and the quarantine may be larger than
/// memory.
///
/// # Errors
/// The source's, and that another drain has begun a term.
pub async fn settle(
    client: &Client,
    term: i64,
    catalogue: &Catalogue,
    batch: &Batch,
    provisional: bool,
) -> Result<SettledEntries> {
    let mut settled = SettledEntries {
        occupied: occupied(client, catalogue).await?,
        ..SettledEntries::default()
    };
    if !settled.occupied.is_empty() {
        let passed = release(client, term, catalogue, batch, &settled.occupied).await?;
        put_forward(client, passed * PUT_FORWARD).await?;
        settled.mended = passed > 0;
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
        // What may pass has had its further tries.
        let settled_at_once = code == UNREADABLE || i32::from(code) == BY_HAND || may_pass(code);
        refused.provisional.push(provisional && !settled_at_once);
        refused
            .waits
            .push(may_pass(code).then_some(FIRST_WAIT.as_secs_f64()));
        settled.occupied.push(change.entity);
    }
    settled.occupied.sort_unstable();
    settled.occupied.dedup();
    if refused.entities.is_empty() {
        return Ok(settled);
    }
    let provisional = entries::refuse(client, term, &refused).await?;
    settled.again = provisional
        .into_iter()
        .filter_map(|(entity, key)| Some((catalogue.find(&entity)?, key)))
        .collect();
    Ok(settled)
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

/// Takes away what the batch's settled changes supersede: each that of its row, a truncate all of its entity.
/// Returns how many rows the cloud has accepted as they were when they failed: it was at fault, and may take
/// others now.
async fn release(
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

/// Lists the entries, the oldest first: of one entity or of all.
///
/// # Errors
/// The source's.
pub async fn list(client: &Client, entity: Option<&str>) -> Result<Vec<QuarantineEntry>> {
    oldest(client, entity, u32::MAX).await
}

/// The next entries after an entity and key, in the order of the entities and of their keys' hashes, so many
/// at most: to go through all of them with bounded memory, whatever becomes of them meanwhile.
///
/// # Errors
/// The source's.
pub async fn page(client: &Client, after: Option<(&str, &str)>, limit: u32) -> Result<Vec<QuarantineEntry>> {
    entries::page(client, after.unwrap_or_default(), limit).await
}

/// The entries with these positions: mostly one each, as a touch is one row's.
///
/// # Errors
/// The source's.
pub async fn at(client: &Client, positions: &[Position]) -> Result<Vec<QuarantineEntry>> {
    let positions: Vec<i64> = positions.iter().map(|position| position.0).collect();
    entries::at_positions(client, &positions).await
}

/// The entries with this position, with their images: mostly one.
///
/// # Errors
/// The source's.
pub async fn show(client: &Client, position: Position) -> Result<Vec<QuarantineEntry>> {
    entries::show(client, position.0).await
}

/// Touches the entries' rows again, so that their present states are delivered. Returns how many. A refused
/// truncate is passed over: sent now, it would delete rows that came after it.
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
        // The key of an entry may be older than the entity's key columns: then it is no row's.
        let (keys, stale): (Vec<&str>, Vec<&str>) = of_entity
            .map(|entry| entry.key.as_str())
            .partition(|key| pick(key, &entity.key).is_ok_and(|values| values.iter().all(Option::is_some)));
        if !stale.is_empty() {
            tracing::warn!(
                entity = entity.name,
                rows = stale.len(),
                "quarantined rows are not tried again: their keys have other columns than the entity's; discard them"
            );
        }
        touch::keys(client, entity, attached.id, &keys).await?;
        touched += keys.len();
    }
    Ok(touched)
}

/// What is in quarantine of these rows, provisional entries too.
#[derive(Debug, Default)]
pub(crate) struct QuarantinedRows {
    /// By key, the code and the cloud's words.
    pub(crate) rows: HashMap<String, (i32, String)>,
    /// Whether some of them are provisional: they are still to be tried again.
    pub(crate) provisional: bool,
}

/// Which of these rows of an entity were refused since that time, in microseconds since 1970.
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

/// Looks for these rows of an entity.
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
