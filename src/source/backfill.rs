//! Reads the rows that stood before capture, in the order of their keys, a few thousand at a time.
//!
//! How far each entity has come is kept in the source database, so that a backfill which broke off goes on there,
//! whichever process runs it.

use tokio_postgres::Client;

use super::describe::Table;
use super::{image, quote_name};
use crate::catalogue::Entity;
use crate::change::{Change, Op, Position};
use crate::error::{Error, Result};

/// How far an entity's backfill has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// The last pushed row's key as a JSON object.
    pub after: Option<String>,
    /// Rows pushed so far.
    pub pushed: u64,
    /// Whether it has ended.
    pub finished: bool,
}

/// Reads how far the entity's backfill has come. One for another number of days counts as none.
///
/// # Errors
/// The source's.
pub async fn progress(client: &Client, entity: &Entity, days: Option<u32>) -> Result<Progress> {
    let row = client
        .query_opt(
            "select after_key, pushed, finished_at is not null from cloud_sync.backfill \
             where entity = $1 and days is not distinct from $2",
            &[&entity.name, &days.map(|days| days as i32)],
        )
        .await
        .map_err(|error| Error::postgres(format!("read the backfill of {}", entity.name), error))?;
    Ok(row.map_or_else(Progress::default, |row| Progress {
        after: row.get(0),
        pushed: row.get::<_, i64>(1) as u64,
        finished: row.get(2),
    }))
}

/// Keeps how far the entity's backfill has come.
///
/// # Errors
/// The source's.
pub async fn keep(client: &Client, entity: &Entity, days: Option<u32>, progress: &Progress) -> Result<()> {
    client
        .execute(
            "insert into cloud_sync.backfill (entity, days, after_key, pushed, finished_at) \
             values ($1, $2, $3, $4, case when $5 then now() end) \
             on conflict (entity) do update set days = excluded.days, after_key = excluded.after_key, \
             pushed = excluded.pushed, finished_at = excluded.finished_at, \
             started_at = case when excluded.after_key is null then now() else cloud_sync.backfill.started_at end",
            &[
                &entity.name,
                &days.map(|days| days as i32),
                &progress.after,
                &(progress.pushed as i64),
                &progress.finished,
            ],
        )
        .await
        .map_err(|error| Error::postgres(format!("keep the backfill of {}", entity.name), error))?;
    Ok(())
}

/// How many rows the entity has within `days`.
///
/// # Errors
/// The source's.
pub async fn count(client: &Client, entity: &Entity, table: &Table, days: Option<u32>) -> Result<u64> {
    let sql = format!(
        "select count(*) from {} n where {} and {}",
        table.sql_name,
        image::filter(entity),
        image::within(entity, days, "n"),
    );
    let row = client
        .query_one(&sql, &[])
        .await
        .map_err(|error| Error::postgres(format!("count the rows of {}", entity.name), error))?;
    Ok(row.get::<_, i64>(0) as u64)
}

/// What to read of each row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// The key alone: changes without a row.
    Keys,
    /// The key and the image.
    Rows,
}

/// Reads up to `limit` rows within `days` after the key `after`, in the order of keys, as changes of position 0.
///
/// # Errors
/// The source's; a configuration error where an image is withheld.
#[expect(clippy::too_many_arguments, reason = "one query's parameters")]
pub async fn rows(
    client: &Client,
    place: usize,
    entity: &Entity,
    table: &Table,
    days: Option<u32>,
    after: Option<&str>,
    limit: usize,
    read: Read,
) -> Result<Vec<Change>> {
    let columns: Vec<_> = entity
        .key
        .iter()
        .map(|column| format!("n.{}", quote_name(column)))
        .collect();
    let list = columns.join(", ");
    let next = if after.is_some() {
        let values: Vec<_> = entity
            .key
            .iter()
            .map(|column| {
                let sql_type = table
                    .column(column)
                    .map_or("text", |column| column.sql_type.as_str());
                format!("($1::text::json->>{})::{sql_type}", super::quote_text(column))
            })
            .collect();
        format!("({list}) > ({})", values.join(", "))
    } else {
        "$1::text is null".to_owned()
    };
    let sql = format!(
        "select {key}, {image} from {table} n where {next} and {filter} and {within} order by {list} limit {limit}",
        key = image::key(entity, "n"),
        image = match read {
            Read::Rows => image::image(entity, table, "n"),
            Read::Keys => "null::text".to_owned(),
        },
        table = table.sql_name,
        filter = image::filter(entity),
        within = image::within(entity, days, "n"),
    );
    let rows = client
        .query(&sql, &[&after])
        .await
        .map_err(|error| Error::postgres(format!("read the rows of {}", entity.name), error))?;
    rows.iter()
        .map(|row| {
            let image: Option<&str> = row.get(1);
            if image.is_none() && read == Read::Rows {
                return Err(super::describe::withheld(entity));
            }
            Ok(Change {
                position: Position(0),
                entity: place,
                op: Op::Upsert,
                captured_at: 0,
                key: row.get::<_, &str>(0).into(),
                row: image.map(Into::into),
            })
        })
        .collect()
}
