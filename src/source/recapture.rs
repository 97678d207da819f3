//! Captures rows anew: repair goes the same road as any change.
//!
//! The row is locked, then its image is written to the outbox, so that it has a true position: a concurrent update comes
//! either before, and is in the image, or after, and has a higher position. Rows are taken a few hundred at a time, in
//! short transactions. A replicator that sleeps is woken, as it is by the triggers.

use tokio_postgres::Client;

use super::describe::Table;
use super::{image, quote_name, wake};
use crate::catalogue::Entity;
use crate::change::Position;
use crate::error::{Error, Result};

/// Rows a transaction.
pub const CHUNK: usize = 500;

/// What was captured anew.
#[derive(Debug, Clone, Default)]
pub struct Recaptured {
    /// Each row's key, as the outbox has it, and its position.
    pub rows: Vec<(String, Position)>,
    /// The transaction that did it: a checkpoint whose `lo` sees it has accepted all of them.
    pub transaction: u64,
}

impl Recaptured {
    /// Of rows of key, position and transaction.
    fn of(rows: &[tokio_postgres::Row]) -> Self {
        Self {
            transaction: rows.first().map_or(0, |row| row.get::<_, i64>(2) as u64),
            rows: rows
                .iter()
                .map(|row| (row.get(0), Position(row.get(1))))
                .collect(),
        }
    }
}

/// The condition that two rows have the same key.
fn same_key(entity: &Entity, one: &str, other: &str) -> String {
    let pairs: Vec<_> = entity
        .key
        .iter()
        .map(|column| format!("{one}.{0} = {other}.{0}", quote_name(column)))
        .collect();
    pairs.join(" and ")
}

/// Captures the rows with these keys anew; keys whose rows are gone are left out.
///
/// `keys` are JSON objects of the key columns, at most [`CHUNK`] of them; `number` is the entity's number in the outbox.
///
/// # Errors
/// The source's.
pub async fn rows(
    client: &Client,
    entity: &Entity,
    table: &Table,
    number: i16,
    keys: &[String],
) -> Result<Recaptured> {
    let same = same_key(entity, "t", "k");
    let sql = format!(
        "select {key}, cloud_sync.put($1, 'u', {key}, {image}), pg_current_xact_id()::text::bigint \
         from (select t.* from {table} t join json_populate_recordset(null::{table}, $2::text::json) k on {same} \
               for share of t) n where {filter}",
        key = image::key(entity, "n"),
        image = image::image(entity, table, "n"),
        table = table.sql_name,
        filter = image::filter(entity),
    );
    let list = format!("[{}]", keys.join(","));
    let rows = client
        .query(&sql, &[&number, &list])
        .await
        .map_err(|error| Error::postgres(format!("capture rows of {} anew", entity.name), error))?;
    captured(client, &rows).await
}

/// Captures the deletion of rows anew that are no longer there, for a delete which the cloud had refused, and for rows
/// that the cloud has and the site has not.
///
/// # Errors
/// The source's.
pub async fn deletes(
    client: &Client,
    entity: &Entity,
    table: &Table,
    number: i16,
    keys: &[String],
) -> Result<Recaptured> {
    // The key's JSON is written as the triggers write it: out of typed columns.
    let same = same_key(entity, "t", "n");
    let sql = format!(
        "select {key}, cloud_sync.put($1, 'd', {key}, null), pg_current_xact_id()::text::bigint \
         from json_populate_recordset(null::{table}, $2::text::json) n \
         where not exists (select from {table} t where {same})",
        key = image::key(entity, "n"),
        table = table.sql_name,
    );
    let list = format!("[{}]", keys.join(","));
    let rows = client
        .query(&sql, &[&number, &list])
        .await
        .map_err(|error| Error::postgres(format!("capture deletions of {} anew", entity.name), error))?;
    captured(client, &rows).await
}

async fn captured(client: &Client, rows: &[tokio_postgres::Row]) -> Result<Recaptured> {
    if !rows.is_empty() {
        wake::call(client).await?;
    }
    Ok(Recaptured::of(rows))
}
