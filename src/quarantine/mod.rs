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

use serde::Serialize;
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use crate::batch::{Batch, Fate};
use crate::catalogue::{Catalogue, EntityIndex};
use crate::change::{Op, Position};
use crate::error::{Error, Result};
use crate::source::install::AttachedEntity;
use crate::source::touch;
use crate::wire::json::pick;

pub use again::add;
pub(crate) use again::{by_hand, due, expected, first_images, put_off};
use again::{put_forward, release_by_hand};

/// A refused change.
#[derive(Debug, Clone, Serialize)]
pub struct QuarantineEntry {
    /// The entity's name.
    pub entity: String,
    /// The row's key, a JSON object.
    pub key: String,
    /// The position of the row's last touch.
    pub position: i64,
    /// `u` upsert, `d` delete, `t` truncate, `r` cannot be read.
    pub op: String,
    /// The HTTP status or the receiver's code; 0 for a row that cannot be read, 1 for one that was set aside
    /// by hand, 2 for such a one that is sent again.
    pub code: i32,
    /// The cloud's words.
    pub error: String,
    /// How often it was refused.
    pub attempts: i32,
    /// When it was first refused, ISO 8601.
    pub first_refused_at: String,
    /// When it was last refused, ISO 8601.
    pub refused_at: String,
    /// The row's image as it was refused; only where one entry is shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
}

const COLUMNS: &str = "entity, key, position, op::text, code, error, attempts, \
    to_json(first_refused_at)#>>'{}', to_json(refused_at)#>>'{}'";

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

fn failed(action: &'static str) -> impl Fn(tokio_postgres::Error) -> Error {
    move |error| Error::postgres(format!("{action} the quarantine"), error)
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
    let mut columns = EntryColumns::default();
    for (change, code, error) in batch.refused() {
        columns.entity.push(catalogue[change.entity].name.as_str());
        columns.key.push(&change.key);
        columns.position.push(change.position.0);
        columns.op.push(if code == UNREADABLE {
            'r'
        } else {
            op_letter(change.op)
        } as i8);
        columns.image.push(change.row.as_deref());
        columns.code.push(i32::from(code));
        columns.error.push(error);
        // What may pass has had its further tries.
        let settled_at_once = code == UNREADABLE || i32::from(code) == BY_HAND || may_pass(code);
        columns.provisional.push(provisional && !settled_at_once);
        columns
            .waits
            .push(may_pass(code).then_some(FIRST_WAIT.as_secs_f64()));
        settled.occupied.push(change.entity);
    }
    settled.occupied.sort_unstable();
    settled.occupied.dedup();
    if columns.entity.is_empty() {
        return Ok(settled);
    }
    // A second refusal is no longer provisional.
    let rows = client
        .query(
            "with mine as materialized (select cloud_sync.hold_term($9)) \
             insert into cloud_sync.quarantine as q (entity, key, position, op, image, code, error, provisional, next_attempt) \
             select n.entity, n.key, n.position, n.op, n.image, n.code, n.error, n.provisional, now() + n.wait * interval '1 s' \
             from mine, (select distinct on (entity, key) * from unnest($1::text[], $2::text[], $3::bigint[], \
             $4::\"char\"[], $5::text[], $6::int[], $7::text[], $8::boolean[], $10::float8[]) \
             u (entity, key, position, op, image, code, error, provisional, wait) order by entity, key, position desc) n \
             on conflict (entity, md5(key)) do update set position = excluded.position, op = excluded.op, \
             image = excluded.image, code = excluded.code, error = excluded.error, provisional = false, \
             attempts = case when q.provisional then q.attempts else q.attempts + 1 end, refused_at = now(), \
             next_attempt = least(now() + (excluded.next_attempt - now()) * 2 ^ least(q.attempts, 20), now() + interval '1 hour') \
             returning entity, key, provisional",
            &[
                &columns.entity,
                &columns.key,
                &columns.position,
                &columns.op,
                &columns.image,
                &columns.code,
                &columns.error,
                &columns.provisional,
                &term,
                &columns.waits,
            ],
        )
        .await
        .map_err(failed("write to"))?;
    let again = rows.iter().filter(|row| row.get(2));
    settled.again = again
        .filter_map(|row| Some((catalogue.find(row.get(0))?, row.get(1))))
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
    let rows = client
        .query_typed(
            "select e.name from unnest($1) e (name) \
             where exists (select from cloud_sync.quarantine q where q.entity = e.name)",
            &[(&names, Type::TEXT_ARRAY)],
        )
        .await
        .map_err(failed("look into"))?;
    Ok(rows.iter().filter_map(|row| catalogue.find(row.get(0))).collect())
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
    let (mut entities, mut keys, mut images) = (Vec::new(), Vec::new(), Vec::new());
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
            client
                .execute(
                    "with mine as materialized (select cloud_sync.hold_term($2)) \
                     delete from cloud_sync.quarantine using mine where entity = $1",
                    &[&entity, &term],
                )
                .await
                .map_err(failed("clear"))?;
        }
        entities.push(entity);
        keys.push(&*change.key);
        images.push(change.row.as_deref());
    }
    if keys.is_empty() {
        return Ok(0);
    }
    let released = client
        .query(
            "with mine as materialized (select cloud_sync.hold_term($3)) \
             delete from cloud_sync.quarantine q using mine, unnest($1::text[], $2::text[], $4::text[]) a (entity, key, image) \
             where q.entity = a.entity and md5(q.key) = md5(a.key) and q.key = a.key \
             returning coalesce(q.next_attempt is not null and q.image = a.image, false)",
            &[&entities, &keys, &term, &images],
        )
        .await
        .map_err(failed("clear"))?;
    Ok(released.iter().filter(|row| row.get(0)).count() as i64)
}

#[derive(Default)]
struct EntryColumns<'a> {
    entity: Vec<&'a str>,
    key: Vec<&'a str>,
    position: Vec<i64>,
    op: Vec<i8>,
    image: Vec<Option<&'a str>>,
    code: Vec<i32>,
    error: Vec<&'a str>,
    provisional: Vec<bool>,
    /// Seconds until the row is touched again by itself.
    waits: Vec<Option<f64>>,
}

/// Lists the entries, the oldest first: of one entity or of all.
///
/// # Errors
/// The source's.
pub async fn list(client: &Client, entity: Option<&str>) -> Result<Vec<QuarantineEntry>> {
    oldest(client, entity, u32::MAX).await
}

/// Lists the oldest entries, so many at most: of one entity or of all.
///
/// # Errors
/// The source's.
pub async fn oldest(client: &Client, entity: Option<&str>, limit: u32) -> Result<Vec<QuarantineEntry>> {
    let rows = client
        .query(
            &format!(
                "select {COLUMNS} from cloud_sync.quarantine where ($1::text is null or entity = $1) and not provisional \
                 order by first_refused_at, entity, key limit $2"
            ),
            &[&entity, &i64::from(limit)],
        )
        .await
        .map_err(failed("list"))?;
    Ok(rows.iter().map(|row| entry(row, None)).collect())
}

/// How many entries there are: of one entity or of all.
///
/// # Errors
/// The source's.
pub async fn count(client: &Client, entity: Option<&str>) -> Result<u64> {
    let row = client
        .query_one(
            "select count(*) from cloud_sync.quarantine where ($1::text is null or entity = $1) and not provisional",
            &[&entity],
        )
        .await
        .map_err(failed("count"))?;
    Ok(row.get::<_, i64>(0) as u64)
}

/// How many entries each entity has that has some.
///
/// # Errors
/// The source's.
pub async fn counts(client: &Client) -> Result<Vec<(String, u64)>> {
    let rows = client
        .query(
            "select entity, count(*) from cloud_sync.quarantine where not provisional group by entity order by entity",
            &[],
        )
        .await
        .map_err(failed("count"))?;
    Ok(rows
        .iter()
        .map(|row| (row.get(0), row.get::<_, i64>(1) as u64))
        .collect())
}

/// The next entries after an entity and key, in the order of the entities and of their keys' hashes, so many
/// at most: to go through all of them with bounded memory, whatever becomes of them meanwhile.
///
/// # Errors
/// The source's.
pub async fn page(client: &Client, after: Option<(&str, &str)>, limit: u32) -> Result<Vec<QuarantineEntry>> {
    let (entity, key) = after.unwrap_or_default();
    let rows = client
        .query(
            &format!(
                "select {COLUMNS} from cloud_sync.quarantine where (entity, md5(key)) > ($1, md5($2)) \
                 and not provisional order by entity, md5(key) limit $3"
            ),
            &[&entity, &key, &i64::from(limit)],
        )
        .await
        .map_err(failed("list"))?;
    Ok(rows.iter().map(|row| entry(row, None)).collect())
}

/// The entries with these positions: mostly one each, as a touch is one row's.
///
/// # Errors
/// The source's.
pub async fn at(client: &Client, positions: &[Position]) -> Result<Vec<QuarantineEntry>> {
    let positions: Vec<i64> = positions.iter().map(|position| position.0).collect();
    let rows = client
        .query(
            &format!(
                "select {COLUMNS} from cloud_sync.quarantine where position = any($1) and not provisional \
                 order by entity, key"
            ),
            &[&positions],
        )
        .await
        .map_err(failed("read"))?;
    Ok(rows.iter().map(|row| entry(row, None)).collect())
}

/// The entries with this position, with their images: mostly one.
///
/// # Errors
/// The source's.
pub async fn show(client: &Client, position: Position) -> Result<Vec<QuarantineEntry>> {
    let rows = client
        .query(
            &format!(
                "select {COLUMNS}, image from cloud_sync.quarantine where position = $1 and not provisional \
                 order by entity, key limit 100"
            ),
            &[&position.0],
        )
        .await
        .map_err(failed("read"))?;
    Ok(rows.iter().map(|row| entry(row, row.get(9))).collect())
}

fn entry(row: &tokio_postgres::Row, image: Option<String>) -> QuarantineEntry {
    QuarantineEntry {
        entity: row.get(0),
        key: row.get(1),
        position: row.get(2),
        op: row.get(3),
        code: row.get(4),
        error: row.get(5),
        attempts: row.get(6),
        first_refused_at: row.get(7),
        refused_at: row.get(8),
        image,
    }
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
    let rows = client
        .query(
            "select q.key, q.code, q.error from unnest($2::text[]) a (key) \
             join cloud_sync.quarantine q on q.entity = $1 and md5(q.key) = md5(a.key) and q.key = a.key \
             where not q.provisional and q.refused_at >= to_timestamp($3::bigint / 1e6)",
            &[&entity, &keys, &since],
        )
        .await
        .map_err(failed("look into"))?;
    let rows = rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2))));
    Ok(QuarantinedRows {
        provisional: false,
        rows: rows.collect(),
    })
}

/// Looks for these rows of an entity.
///
/// # Errors
/// The source's.
pub(crate) async fn refused(client: &Client, entity: &str, keys: &[String]) -> Result<QuarantinedRows> {
    let rows = client
        .query(
            "select q.key, q.code, q.error, q.provisional from unnest($2::text[]) a (key) \
             join cloud_sync.quarantine q on q.entity = $1 and md5(q.key) = md5(a.key) and q.key = a.key",
            &[&entity, &keys],
        )
        .await
        .map_err(failed("look into"))?;
    Ok(QuarantinedRows {
        provisional: rows.iter().any(|row| row.get(3)),
        rows: rows
            .iter()
            .map(|row| (row.get(0), (row.get(1), row.get(2))))
            .collect(),
    })
}

/// Gives the entries up: the cloud stays without these changes. Answers how many.
///
/// # Errors
/// The source's.
pub async fn discard(client: &Client, entries: &[QuarantineEntry]) -> Result<u64> {
    let entities: Vec<_> = entries.iter().map(|entry| entry.entity.as_str()).collect();
    let keys: Vec<_> = entries.iter().map(|entry| entry.key.as_str()).collect();
    client
        .execute(
            "delete from cloud_sync.quarantine q using unnest($1::text[], $2::text[]) a (entity, key) \
             where q.entity = a.entity and md5(q.key) = md5(a.key) and q.key = a.key",
            &[&entities, &keys],
        )
        .await
        .map_err(failed("discard from"))
}

/// Gives all entries up. Answers how many.
///
/// # Errors
/// The source's.
pub async fn discard_all(client: &Client) -> Result<u64> {
    client
        .execute("delete from cloud_sync.quarantine", &[])
        .await
        .map_err(failed("discard from"))
}

/// The letter by which the table of the quarantine names an op.
fn op_letter(op: Op) -> char {
    match op {
        Op::Upsert => 'u',
        Op::Delete => 'd',
        Op::Truncate => 't',
    }
}
