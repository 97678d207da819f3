//! Changes that the cloud refused for good, kept durably in the source database until someone decides.
//!
//! One entry a row: the last refused change of it. A later change of the row that the cloud accepts supersedes the entry
//! and takes it away. `retry` captures the row anew, so that it travels the same road as any change and can never
//! overwrite a newer one; the entry stays until the cloud has accepted. What was refused for want of a parent row is
//! retried by itself when the parent is accepted: [`orphans`].

pub mod orphans;

use serde::Serialize;
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use crate::batch::{Batch, Fate};
use crate::catalogue::Catalogue;
use crate::change::{Op, Position};
use crate::error::{Error, Result};
use crate::source::describe::Table;
use crate::source::install::Attached;
use crate::source::recapture;

/// A refused change.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    /// The entity's name.
    pub entity: String,
    /// The row's key, a JSON object.
    pub key: String,
    /// The change's position; 0 for a backfilled row.
    pub position: i64,
    /// `u`, `d` or `t`.
    pub op: String,
    /// The HTTP status or the receiver's code.
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

fn failed(action: &'static str) -> impl Fn(tokio_postgres::Error) -> Error {
    move |error| Error::postgres(format!("{action} the quarantine"), error)
}

/// Keeps the batch's refused changes, and takes away the entries that its accepted ones supersede. Must succeed before the
/// batch's checkpoint is committed. Answers which entities have entries, by their places in the catalogue.
///
/// Nothing is remembered from batch to batch: others write here too, and the quarantine may be larger than memory.
///
/// # Errors
/// The source's.
pub async fn settle(client: &Client, catalogue: &Catalogue, batch: &Batch) -> Result<Vec<usize>> {
    let mut occupied = occupied(client, catalogue).await?;
    if !occupied.is_empty() {
        release(client, catalogue, batch, &occupied).await?;
    }
    let mut columns = Columns::default();
    for (change, code, error) in batch.refused() {
        columns
            .entity
            .push(catalogue.entities()[change.entity].name.as_str());
        columns.key.push(&change.key);
        columns.position.push(change.position.0);
        columns.op.push(change.op.letter() as i8);
        columns.image.push(change.row.as_deref());
        columns.code.push(i32::from(code));
        columns.error.push(error);
        occupied.push(change.entity);
    }
    occupied.sort_unstable();
    occupied.dedup();
    if columns.entity.is_empty() {
        return Ok(occupied);
    }
    // A backfilled row, at position 0, says less than a change that was refused.
    client
        .execute(
            "insert into cloud_sync.quarantine as q (entity, key, position, op, image, code, error) \
             select distinct on (entity, key) * from unnest($1::text[], $2::text[], $3::bigint[], $4::\"char\"[], \
             $5::text[], $6::int[], $7::text[]) n (entity, key, position, op, image, code, error) \
             order by entity, key, position desc \
             on conflict (entity, key) do update set position = excluded.position, op = excluded.op, \
             image = excluded.image, code = excluded.code, error = excluded.error, \
             attempts = q.attempts + 1, refused_at = now() where excluded.position > 0 or q.position = 0",
            &[
                &columns.entity,
                &columns.key,
                &columns.position,
                &columns.op,
                &columns.image,
                &columns.code,
                &columns.error,
            ],
        )
        .await
        .map_err(failed("write to"))?;
    Ok(occupied)
}

/// Which entities have entries.
async fn occupied(client: &Client, catalogue: &Catalogue) -> Result<Vec<usize>> {
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
async fn release(client: &Client, catalogue: &Catalogue, batch: &Batch, occupied: &[usize]) -> Result<()> {
    let (mut entities, mut keys) = (Vec::new(), Vec::new());
    for (nth, change) in batch.changes().iter().enumerate() {
        let settled = matches!(batch.fate(nth), Fate::Accepted | Fate::Kept | Fate::Unsupported);
        if !settled || !occupied.contains(&change.entity) {
            continue;
        }
        let entity = catalogue.entities()[change.entity].name.as_str();
        if change.op == Op::Truncate && *batch.fate(nth) == Fate::Accepted {
            client
                .execute("delete from cloud_sync.quarantine where entity = $1", &[&entity])
                .await
                .map_err(failed("clear"))?;
        }
        entities.push(entity);
        keys.push(&*change.key);
    }
    if keys.is_empty() {
        return Ok(());
    }
    client
        .execute(
            "delete from cloud_sync.quarantine q using unnest($1::text[], $2::text[]) a (entity, key) \
             where q.entity = a.entity and q.key = a.key",
            &[&entities, &keys],
        )
        .await
        .map_err(failed("clear"))?;
    Ok(())
}

#[derive(Default)]
struct Columns<'a> {
    entity: Vec<&'a str>,
    key: Vec<&'a str>,
    position: Vec<i64>,
    op: Vec<i8>,
    image: Vec<Option<&'a str>>,
    code: Vec<i32>,
    error: Vec<&'a str>,
}

/// Lists the entries, the oldest first: of one entity or of all.
///
/// # Errors
/// The source's.
pub async fn list(client: &Client, entity: Option<&str>) -> Result<Vec<Entry>> {
    oldest(client, entity, u32::MAX).await
}

/// Lists the oldest entries, so many at most: of one entity or of all.
///
/// # Errors
/// The source's.
pub async fn oldest(client: &Client, entity: Option<&str>, limit: u32) -> Result<Vec<Entry>> {
    let rows = client
        .query(
            &format!(
                "select {COLUMNS} from cloud_sync.quarantine where $1::text is null or entity = $1 \
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
            "select count(*) from cloud_sync.quarantine where $1::text is null or entity = $1",
            &[&entity],
        )
        .await
        .map_err(failed("count"))?;
    Ok(row.get::<_, i64>(0) as u64)
}

/// The next entries after an entity and key, in the order of both, so many at most: to go through all of them with
/// bounded memory, whatever becomes of them meanwhile.
///
/// # Errors
/// The source's.
pub async fn page(client: &Client, after: Option<(&str, &str)>, limit: u32) -> Result<Vec<Entry>> {
    let (entity, key) = after.unwrap_or_default();
    let rows = client
        .query(
            &format!(
                "select {COLUMNS} from cloud_sync.quarantine where (entity, key) > ($1, $2) \
                 order by entity, key limit $3"
            ),
            &[&entity, &key, &i64::from(limit)],
        )
        .await
        .map_err(failed("list"))?;
    Ok(rows.iter().map(|row| entry(row, None)).collect())
}

/// The entries with these positions; at position 0 those of a backfill.
///
/// # Errors
/// The source's.
pub async fn at(client: &Client, positions: &[Position]) -> Result<Vec<Entry>> {
    let positions: Vec<i64> = positions.iter().map(|position| position.0).collect();
    let rows = client
        .query(
            &format!(
                "select {COLUMNS} from cloud_sync.quarantine where position = any($1) order by entity, key"
            ),
            &[&positions],
        )
        .await
        .map_err(failed("read"))?;
    Ok(rows.iter().map(|row| entry(row, None)).collect())
}

/// The entries with this position, with their images: one, or at position 0 those of a backfill.
///
/// # Errors
/// The source's.
pub async fn show(client: &Client, position: Position) -> Result<Vec<Entry>> {
    let rows = client
        .query(
            &format!(
                "select {COLUMNS}, image from cloud_sync.quarantine where position = $1 order by entity, key limit 100"
            ),
            &[&position.0],
        )
        .await
        .map_err(failed("read"))?;
    Ok(rows.iter().map(|row| entry(row, row.get(9))).collect())
}

fn entry(row: &tokio_postgres::Row, image: Option<String>) -> Entry {
    Entry {
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

/// Captures the entries' rows anew, so that they are delivered again. Answers how many. A refused truncate is passed over:
/// captured now, it would delete rows that came after it.
///
/// # Errors
/// The source's.
pub async fn retry(
    client: &Client,
    catalogue: &Catalogue,
    tables: &[Table],
    attached: &[Attached],
    entries: &[Entry],
) -> Result<usize> {
    let mut captured = 0;
    for (place, entity) in catalogue.entities().iter().enumerate() {
        let keys: Vec<String> = entries
            .iter()
            .filter(|entry| entry.entity == entity.name && entry.op != "t")
            .map(|entry| entry.key.clone())
            .collect();
        let (table, number) = (&tables[place], attached[place].id);
        for chunk in keys.chunks(recapture::CHUNK) {
            captured += recapture::rows(client, entity, table, number, chunk)
                .await?
                .rows
                .len();
            captured += recapture::deletes(client, entity, table, number, chunk)
                .await?
                .rows
                .len();
        }
    }
    Ok(captured)
}

/// Gives the entries up: the cloud stays without these changes. Answers how many.
///
/// # Errors
/// The source's.
pub async fn discard(client: &Client, entries: &[Entry]) -> Result<u64> {
    let entities: Vec<_> = entries.iter().map(|entry| entry.entity.as_str()).collect();
    let keys: Vec<_> = entries.iter().map(|entry| entry.key.as_str()).collect();
    client
        .execute(
            "delete from cloud_sync.quarantine q using unnest($1::text[], $2::text[]) a (entity, key) \
             where q.entity = a.entity and q.key = a.key",
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
