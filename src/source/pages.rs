//! Reads whole tables, page by page of the server's files: for comparisons and backfills.
//!
//! This needs no order of keys. A row that moves to another page while the table is read was written, and its
//! touch brings it to the cloud whether or not it is read here.

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::condition;
use super::describe::SourceTable;
use super::projection::{ImageBuffer, PresentRow, Projection};
use super::quote_name;
use crate::catalogue::Entity;
use crate::error::{Error, Result};
use crate::sql_template::{fill, statement};

/// At most so many rows and bytes should be read at once.
const ROWS: usize = 5_000;
const BYTES: usize = 4 * 1024 * 1024;

/// At most so many pages are read at once.
const PAGES: u64 = 1_024;

/// A table with rows of its own: the entity's, or one of its partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafTable {
    /// Its oid.
    pub oid: u32,
    /// Its file: a rewrite of the table gives it another one, with other pages.
    pub filenode: u32,
    /// How many pages it has.
    pub pages: u64,
    sql_name: String,
}

/// What is read of each row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnsToRead {
    /// The key alone.
    Keys,
    /// The whole row.
    Rows,
}

/// A row that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundRow {
    /// Its key, a JSON object.
    pub key: Box<str>,
    /// The row, a JSON object; `None` if only the key was read, and if the row has no JSON.
    pub row: Option<Box<str>>,
    /// Whether it meets the entity's condition.
    pub met: bool,
}

/// Reads an entity's rows.
pub struct RowPages<'a> {
    client: &'a Client,
    entity: &'a Entity,
    projection: Projection,
    within: String,
    read: ColumnsToRead,
    /// Pages of the next read.
    step: u64,
}

/// The tables that hold the entity's rows, in the order of their oids.
///
/// # Errors
/// The source's.
pub async fn leaves(client: &Client, table: &SourceTable) -> Result<Vec<LeafTable>> {
    let rows = client
        .query_typed(statement!("pages", "leaves"), &[(&table.oid, Type::OID)])
        .await
        .map_err(|error| Error::postgres(format!("list the partitions of {}", table.sql_name), error))?;
    Ok(rows
        .iter()
        .map(|row| LeafTable {
            oid: row.get(0),
            filenode: row.get(1),
            pages: row.get::<_, i64>(2) as u64,
            sql_name: row.get(3),
        })
        .collect())
}

/// How many rows the entity has within `days` of its retention; `None` means all.
///
/// # Errors
/// The source's.
pub async fn count(client: &Client, entity: &Entity, table: &SourceTable, days: Option<u32>) -> Result<u64> {
    let values = [("table", &*table.sql_name), ("within", &within(entity, days))];
    let sql = fill(statement!("pages", "count"), &values);
    let row = client
        .query_one(&sql, &[])
        .await
        .map_err(|error| Error::postgres(format!("count the rows of {}", entity.name), error))?;
    Ok(row.get::<_, i64>(0) as u64)
}

/// The SQL condition that a row of `t` lies within `days` of the entity's retention.
fn within(entity: &Entity, days: Option<u32>) -> String {
    match (&entity.retention, days) {
        (Some(window), Some(days)) => younger(&window.column, days),
        _ => "true".to_owned(),
    }
}

/// The same for a row that the cloud counts too, by its own column. It counts a day less there: the two sides
/// may not agree on where the last day ends.
fn within_both(entity: &Entity, days: Option<u32>) -> String {
    let own = within(entity, days);
    let by = entity
        .retention
        .as_ref()
        .and_then(|window| window.cloud_days_by.as_ref());
    match (by, days) {
        (Some(column), Some(days)) => format!("{own} and {}", younger(column, days.saturating_sub(1))),
        _ => own,
    }
}

fn younger(column: &str, days: u32) -> String {
    let values = [("column", &*quote_name(column)), ("days", &days.to_string())];
    fill(statement!("pages", "younger"), &values)
}

impl<'a> RowPages<'a> {
    /// Reads rows within `days` of the entity's retention; `None` means all.
    ///
    /// # Errors
    /// The source's; a configuration error if the entity's condition does not fit the table.
    pub async fn open(
        client: &'a Client,
        entity: &'a Entity,
        table: &SourceTable,
        days: Option<u32>,
        read: ColumnsToRead,
    ) -> Result<Self> {
        let condition = condition::used(client, entity, table)
            .await
            .map_err(|error| Error::postgres(format!("use where of entity {}", entity.name), error))??;
        Ok(Self {
            client,
            entity,
            projection: Projection::new(entity, table, condition),
            within: within(entity, days),
            read,
            step: 1,
        })
    }

    /// The same, of rows that the cloud's list of `days` has too.
    ///
    /// # Errors
    /// As [`RowPages::open`].
    pub async fn open_listed(
        client: &'a Client,
        entity: &'a Entity,
        table: &SourceTable,
        days: Option<u32>,
        read: ColumnsToRead,
    ) -> Result<Self> {
        let mut pages = Self::open(client, entity, table, days, read).await?;
        pages.within = within_both(entity, days);
        Ok(pages)
    }

    /// The rows of some pages of the leaf from this one on, and the page to continue at; `None` at the leaf's
    /// end.
    ///
    /// # Errors
    /// The source's.
    pub async fn next(&mut self, leaf: &LeafTable, from: u64) -> Result<Option<(Vec<FoundRow>, u64)>> {
        if from >= leaf.pages {
            return Ok(None);
        }
        let upto = (from + self.step).min(leaf.pages);
        let keys: Vec<String> = self
            .entity
            .key
            .iter()
            .map(|name| format!("t.{}", quote_name(name)))
            .collect();
        let list = match self.read {
            ColumnsToRead::Rows => self.projection.list(false),
            ColumnsToRead::Keys => format!("{}, {}", self.projection.met(), self.projection.key_list(&keys)),
        };
        let sql = fill(
            statement!("pages", "page"),
            &[
                ("list", &list),
                ("table", &leaf.sql_name),
                ("from", &from.to_string()),
                ("upto", &upto.to_string()),
                ("within", &self.within),
            ],
        );
        let rows = self
            .client
            .query_typed(&sql, &[])
            .await
            .map_err(|error| Error::postgres(format!("read the rows of {}", self.entity.name), error))?;
        let mut found = Vec::with_capacity(rows.len());
        let mut bytes = 0;
        let mut scratch = ImageBuffer::default();
        for row in &rows {
            let found_row = match self.read {
                ColumnsToRead::Keys => self.projection.key(row, 1).map(|key| FoundRow {
                    key,
                    row: None,
                    met: row.get::<_, Option<bool>>(0) == Some(true),
                }),
                ColumnsToRead::Rows => match self.projection.present(row, 0, &mut scratch) {
                    PresentRow::Row(image) => Some(FoundRow {
                        key: image.key,
                        row: Some(image.row),
                        met: true,
                    }),
                    PresentRow::Unmet(key) => Some(FoundRow {
                        key,
                        row: None,
                        met: false,
                    }),
                    // If the cloud lacks it, the drain sets it aside by its key.
                    PresentRow::Unreadable(_) => self.projection.image_key(row, 0).map(|key| FoundRow {
                        key,
                        row: None,
                        met: true,
                    }),
                },
            };
            if let Some(found_row) = found_row {
                bytes += found_row
                    .row
                    .as_ref()
                    .map_or(found_row.key.len(), |row| row.len());
                found.push(found_row);
            }
        }
        let small = rows.len() * 2 <= ROWS && bytes * 2 <= BYTES;
        let large = rows.len() > ROWS || bytes > BYTES;
        self.step = match (small, large) {
            (true, _) => (self.step * 2).min(PAGES),
            (_, true) => (self.step / 2).max(1),
            _ => self.step,
        };
        Ok(Some((found, upto)))
    }
}
