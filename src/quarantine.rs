//! Changes that the cloud refused for good, kept durably in the source database until someone decides.
//!
//! One entry a row: the last refused change of it. A later change of the row that the cloud accepts supersedes the entry
//! and takes it away. `retry` captures the row anew, so that it travels the same road as any change and can never
//! overwrite a newer one; the entry stays until the cloud has accepted.

use std::collections::HashSet;

use serde::Serialize;
use tokio_postgres::Client;

use crate::batch::{Batch, Fate};
use crate::catalogue::Catalogue;
use crate::change::Position;
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
    /// `u` or `d`.
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

/// The quarantine as the drain keeps it: which rows are in it is remembered, so that an accepted batch costs nothing
/// while it is empty.
#[derive(Debug, Default)]
pub struct Quarantine {
    rows: HashSet<(usize, Box<str>)>,
}

impl Quarantine {
    /// Reads which rows are in quarantine.
    ///
    /// # Errors
    /// The source's.
    pub async fn open(client: &Client, catalogue: &Catalogue) -> Result<Self> {
        let rows = client
            .query("select entity, key from cloud_sync.quarantine", &[])
            .await
            .map_err(failed("read"))?;
        Ok(Self {
            rows: rows
                .iter()
                .filter_map(|row| Some((catalogue.find(row.get(0))?, row.get::<_, &str>(1).into())))
                .collect(),
        })
    }

    /// How many rows are in quarantine.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Keeps the batch's refused changes, and takes away the entries that its accepted ones supersede. Must succeed
    /// before the batch's checkpoint is committed.
    ///
    /// # Errors
    /// The source's.
    pub async fn settle(&mut self, client: &Client, catalogue: &Catalogue, batch: &Batch) -> Result<()> {
        self.release(client, catalogue, batch).await?;
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
            self.rows.insert((change.entity, change.key.clone()));
        }
        if columns.entity.is_empty() {
            return Ok(());
        }
        client
            .execute(
                "insert into cloud_sync.quarantine as q (entity, key, position, op, image, code, error) \
                 select * from unnest($1::text[], $2::text[], $3::bigint[], $4::\"char\"[], $5::text[], $6::int[], $7::text[]) \
                 on conflict (entity, key) do update set position = excluded.position, op = excluded.op, \
                 image = excluded.image, code = excluded.code, error = excluded.error, \
                 attempts = q.attempts + 1, refused_at = now()",
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
        Ok(())
    }

    async fn release(&mut self, client: &Client, catalogue: &Catalogue, batch: &Batch) -> Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let (mut entities, mut keys, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for (nth, change) in batch.changes().iter().enumerate() {
            let place = (change.entity, change.key.clone());
            let settled = matches!(batch.fate(nth), Fate::Accepted | Fate::Kept | Fate::Unsupported);
            if settled && self.rows.contains(&place) {
                entities.push(catalogue.entities()[change.entity].name.as_str());
                keys.push(&*change.key);
                places.push(place.clone());
            }
        }
        if places.is_empty() {
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
        for place in places {
            self.rows.remove(&place);
        }
        Ok(())
    }
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
    let rows = client
        .query(
            &format!(
                "select {COLUMNS} from cloud_sync.quarantine where $1::text is null or entity = $1 \
                 order by first_refused_at, entity, key"
            ),
            &[&entity],
        )
        .await
        .map_err(failed("list"))?;
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

/// Captures the entries' rows anew, so that they are delivered again. Answers how many; entries whose rows are gone, and
/// which nothing is left to deliver for, are taken away.
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
            .filter(|entry| entry.entity == entity.name)
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
