//! Copies rows into an entity's table that are new to it: what most changes of a busy site are.
//!
//! COPY costs PostgreSQL two thirds of what `insert … on conflict` does, but it does not look for rows that
//! exist. So only rows are copied whose key is above all keys that the table holds of the site within the
//! request's range of keys. One look into the index tells that; the site's lock keeps it true until the
//! commit. If a row with an equal key exists nevertheless, that is a data error, and the request is applied
//! again without a copy.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::SinkExt;
use tokio_postgres::CopyInSink;
use tokio_postgres::types::Type;

use crate::receiver::db::apply_session::ApplySession;
use crate::receiver::db::db_error::DbError;
use crate::receiver::rows::copy_format::CopyFormat;
use crate::receiver::rows::row_batch::{RejectReason, RowBatch};
use crate::receiver::rows::row_version::RowVersion;
use crate::receiver::rows::statement;
use crate::receiver::tables::schema::{EntityTable, TableColumn};

/// Fewer new rows than this are not worth a copy.
const MIN_ROWS: usize = 100;

/// Rows go out in pieces of about this many bytes.
const PIECE: usize = 64 * 1024;

/// What every binary copy begins with: a signature, flags, and the length of an extension.
///
/// Source: PostgreSQL manual, COPY, "Binary Format".
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// Why a row was not copied.
pub(crate) enum CopyRefusal {
    /// The row does not fit the table.
    Row(RejectReason),
    /// The copy failed.
    All(DbError),
}

/// A copy in progress.
pub(crate) struct CopyIn<'t> {
    sink: Pin<Box<CopyInSink<Bytes>>>,
    /// The row that is being written.
    row: RowBatch<'t>,
    formats: Vec<CopyFormat>,
    /// Keys above this are new; all are if it is `None`.
    highest: Option<i64>,
    /// What each row begins with: the number of fields, the site, the epoch and the version.
    row_start: Vec<u8>,
    buffer: Vec<u8>,
    rows: u64,
}

impl<'t> CopyIn<'t> {
    /// Begins a copy if enough of these keys are new to the table, and its columns have a binary format here.
    pub(crate) async fn begin(
        session: &mut ApplySession,
        table: &'t EntityTable,
        site: &Arc<str>,
        row_version: RowVersion,
        keys: impl ExactSizeIterator<Item = &str> + Clone,
    ) -> Result<Option<Self>, DbError> {
        if keys.len() < MIN_ROWS || !first_key_column(table).is_some_and(is_whole_number) {
            return Ok(None);
        }
        let Some(formats) = table
            .columns
            .iter()
            .map(|column| CopyFormat::of(column.column_type))
            .collect()
        else {
            return Ok(None);
        };
        let numbers = keys.filter_map(|key| key_number(table, key));
        let (Some(low), Some(high)) = (numbers.clone().min(), numbers.clone().max()) else {
            return Ok(None);
        };
        let types = [Type::TEXT, Type::INT8, Type::INT8];
        let question = session.statement(&statement::highest(table), &types).await?;
        let site: &str = site;
        let found = session
            .client()
            .query_opt(&question, &[&site, &low, &high])
            .await?;
        let highest: Option<i64> = found.map(|row| row.try_get(0)).transpose()?;
        if numbers
            .filter(|number| highest.is_none_or(|highest| *number > highest))
            .count()
            < MIN_ROWS
        {
            return Ok(None);
        }
        let columns: Vec<usize> = (0..table.columns.len()).collect();
        let row = RowBatch::new(table, &columns);
        let copy = session
            .statement(&statement::copy(table, row.columns()), &[])
            .await?;
        let sink = session.client().copy_in(&copy).await?;
        let fields = i16::try_from(columns.len() + 3).unwrap_or(i16::MAX);
        let mut row_start = fields.to_be_bytes().to_vec();
        put_field(&mut row_start, site.as_bytes());
        put_field(&mut row_start, &row_version.epoch.to_be_bytes());
        put_field(&mut row_start, &row_version.version.to_be_bytes());
        let mut buffer = Vec::with_capacity(PIECE + PIECE / 4);
        buffer.extend_from_slice(HEADER);
        Ok(Some(Self {
            sink: Box::pin(sink),
            row,
            formats,
            highest,
            row_start,
            buffer,
            rows: 0,
        }))
    }

    /// Copies a row, whose own key must be `key`. Returns false if it must be written in another way: the row
    /// may exist, or has a value in an unusual form.
    pub(crate) async fn push(&mut self, key: &str, row: &'t str) -> Result<bool, CopyRefusal> {
        let table = self.row.table;
        let is_new = |number| self.highest.is_none_or(|highest| number > highest);
        if !key_number(table, key).is_some_and(is_new) {
            return Ok(false);
        }
        self.row.clear();
        self.row.push(row, key, true).map_err(CopyRefusal::Row)?;
        let start = self.buffer.len();
        self.buffer.extend_from_slice(&self.row_start);
        for (format, cell) in self.formats.iter().zip(self.row.row(0)) {
            if !format.append(&mut self.buffer, *cell) {
                self.buffer.truncate(start);
                return Ok(false);
            }
        }
        self.rows += 1;
        if self.buffer.len() >= PIECE {
            self.send().await.map_err(CopyRefusal::All)?;
        }
        Ok(true)
    }

    async fn send(&mut self) -> Result<(), DbError> {
        let piece = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE + PIECE / 4));
        self.sink.feed(Bytes::from(piece)).await?;
        Ok(())
    }

    /// Ends the copy. Returns how many rows it wrote.
    pub(crate) async fn finish(mut self) -> Result<u64, DbError> {
        self.buffer.extend_from_slice(&(-1_i16).to_be_bytes());
        self.send().await?;
        let rows = self.sink.as_mut().finish().await?;
        if rows == self.rows {
            Ok(rows)
        } else {
            Err(DbError::fault(format!(
                "{rows} rows of {} were copied",
                self.rows
            )))
        }
    }
}

fn put_field(buffer: &mut Vec<u8>, field: &[u8]) {
    let length = i32::try_from(field.len()).unwrap_or(i32::MAX);
    buffer.extend_from_slice(&length.to_be_bytes());
    buffer.extend_from_slice(field);
}

/// The first column of the key.
fn first_key_column(table: &EntityTable) -> Option<&TableColumn> {
    table
        .key
        .first()
        .map(|&column_index| &table.columns[column_index])
}

/// Whether a column holds whole numbers.
fn is_whole_number(column: &TableColumn) -> bool {
    ["smallint", "integer", "bigint"]
        .iter()
        .any(|name| column.column_type.is(name))
}

/// The first value of a canonical key, as a number.
fn key_number(table: &EntityTable, key: &str) -> Option<i64> {
    if table.key.len() == 1 {
        return key.parse().ok();
    }
    let (length, values) = key.split_once(':')?;
    values.get(..length.parse().ok()?)?.parse().ok()
}
