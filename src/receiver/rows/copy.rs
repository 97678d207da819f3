//! Copies rows into an entity's table that are new to it: what most changes of a busy site are.
//!
//! COPY costs PostgreSQL two thirds of what `insert … on conflict` does, but looks at no row that stands. So only rows
//! take this way whose key lies above all that the table holds of the site in the request's range of keys, which one look
//! into the index tells; the site's lock keeps it true until the commit. Should a row stand there nevertheless, that is
//! a data error, and the request is applied again without this.

use std::sync::Arc;

use sqlx::postgres::PgCopyIn;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::receiver::db::pool::DbError;
use crate::receiver::rows::copy_format::CopyFormat;
use crate::receiver::rows::row_batch::{RejectReason, RowBatch};
use crate::receiver::rows::statement;
use crate::receiver::tables::schema::{EntityTable, TableColumn};

/// Fewer rows than this are not worth the way.
const WORTH: usize = 100;

/// Rows go out in pieces of about this many bytes.
const PIECE: usize = 64 * 1024;

/// What every binary copy begins with: a signature, flags, and the length of an extension.
///
/// Source: PostgreSQL manual, COPY, "Binary Format".
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// Why a row was not taken.
pub(crate) enum CopyRefusal {
    /// The row is not right.
    Row(RejectReason),
    /// The copy broke off.
    All(DbError),
}

/// A copy under way.
pub(crate) struct CopyIn<'c, 't> {
    copy: PgCopyIn<&'c mut PgConnection>,
    grid: RowBatch<'t>,
    forms: Vec<CopyFormat>,
    /// Keys above this are new; none where all are.
    highest: Option<i64>,
    /// What each row begins with: the number of fields, the site, the epoch and the version.
    opening: Vec<u8>,
    buffer: Vec<u8>,
    rows: u64,
}

impl<'c, 't> CopyIn<'c, 't> {
    /// Begins a copy where enough of these keys are new to the table, and its columns have a binary form here.
    pub(crate) async fn find(
        connection: &'c mut PgConnection,
        table: &'t EntityTable,
        site: &Arc<str>,
        (epoch, version): (i64, i64),
        keys: impl ExactSizeIterator<Item = &str> + Clone,
    ) -> Result<Option<Self>, DbError> {
        if keys.len() < WORTH || !leading(table).is_some_and(is_whole) {
            return Ok(None);
        }
        let Some(forms) = table
            .columns
            .iter()
            .map(|column| CopyFormat::of(column.of))
            .collect()
        else {
            return Ok(None);
        };
        let numbers = keys.filter_map(|key| number(table, key));
        let (Some(low), Some(high)) = (numbers.clone().min(), numbers.clone().max()) else {
            return Ok(None);
        };
        let highest: Option<i64> = sqlx::query_scalar(AssertSqlSafe(statement::highest(table)))
            .bind(&**site)
            .bind(low)
            .bind(high)
            .fetch_optional(&mut *connection)
            .await?;
        if numbers
            .filter(|number| highest.is_none_or(|highest| *number > highest))
            .count()
            < WORTH
        {
            return Ok(None);
        }
        let columns: Vec<usize> = (0..table.columns.len()).collect();
        let grid = RowBatch::new(table, &columns);
        let copy = connection
            .copy_in_raw(&statement::copy(table, grid.columns()))
            .await?;
        let fields = i16::try_from(columns.len() + 3).unwrap_or(i16::MAX);
        let mut opening = fields.to_be_bytes().to_vec();
        put(&mut opening, site.as_bytes());
        put(&mut opening, &epoch.to_be_bytes());
        put(&mut opening, &version.to_be_bytes());
        Ok(Some(Self {
            copy,
            grid,
            forms,
            highest,
            opening,
            buffer: HEADER.to_vec(),
            rows: 0,
        }))
    }

    /// Takes a row whose own key must be `key`. Answers whether it did: one that may stand, or has a value in another
    /// form than the usual one, has to go another way.
    pub(crate) async fn push(&mut self, key: &str, row: &'t str) -> Result<bool, CopyRefusal> {
        let table = self.grid.table;
        let is_new = |number| self.highest.is_none_or(|highest| number > highest);
        if !number(table, key).is_some_and(is_new) {
            return Ok(false);
        }
        self.grid.clear();
        self.grid.push(row, key, true).map_err(CopyRefusal::Row)?;
        let start = self.buffer.len();
        self.buffer.extend_from_slice(&self.opening);
        for (form, cell) in self.forms.iter().zip(self.grid.row(0)) {
            if !form.put(&mut self.buffer, *cell) {
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
        self.copy.send(self.buffer.as_slice()).await?;
        self.buffer.clear();
        Ok(())
    }

    /// Ends the copy. Answers how many rows it took.
    pub(crate) async fn finish(mut self) -> Result<u64, DbError> {
        self.buffer.extend_from_slice(&(-1_i16).to_be_bytes());
        self.send().await?;
        let rows = self.copy.finish().await?;
        if rows == self.rows {
            Ok(rows)
        } else {
            let cause = format!("{rows} rows of {} were copied", self.rows);
            Err(DbError::Fault(cause))
        }
    }
}

fn put(buffer: &mut Vec<u8>, field: &[u8]) {
    let length = i32::try_from(field.len()).unwrap_or(i32::MAX);
    buffer.extend_from_slice(&length.to_be_bytes());
    buffer.extend_from_slice(field);
}

fn leading(table: &EntityTable) -> Option<&TableColumn> {
    table.key.first().map(|&place| &table.columns[place])
}

fn is_whole(column: &TableColumn) -> bool {
    ["smallint", "integer", "bigint"]
        .iter()
        .any(|name| column.of.is(name))
}

/// The first value of a canonical key, as a number.
fn number(table: &EntityTable, key: &str) -> Option<i64> {
    if table.key.len() == 1 {
        return key.parse().ok();
    }
    let (length, values) = key.split_once(':')?;
    values.get(..length.parse().ok()?)?.parse().ok()
}
