//! The values of many rows, by row and column, as slices of the request's body.
//!
//! Always holds: each row has the key that its change has.

use std::borrow::Cow;
use std::ops::Range;

use crate::receiver::db::db_error::{DbError, describe};
use crate::receiver::rows::array_params::{ArrayParam, encode};
use crate::receiver::tables::schema::{EntityTable, TableColumn};
use crate::wire::RejectCode;
use crate::wire::json::{self, Members};

/// Rows and cells that go into one statement at most: each row costs memory here and in the server.
const ROWS: usize = 20_000;
const CELLS: usize = 1_000_000;

/// Why a change is rejected, without any value of its row.
#[derive(Debug, thiserror::Error)]
#[error("{error} ({})", code.as_str())]
pub(crate) struct RejectReason {
    pub(crate) code: RejectCode,
    pub(crate) error: String,
}

impl RejectReason {
    pub(crate) fn new(code: RejectCode, error: impl Into<String>) -> Self {
        Self {
            code,
            error: error.into(),
        }
    }

    /// The reason for a data error of PostgreSQL, and the column that it is about.
    pub(crate) fn of_sqlstate(sqlstate: String, column: Option<&str>) -> Self {
        Self {
            error: describe(&sqlstate, column),
            code: RejectCode::Other(Cow::Owned(sqlstate)),
        }
    }
}

/// Rows with the values of some of a table's columns.
pub(crate) struct RowBatch<'a> {
    pub(crate) table: &'a EntityTable,
    columns: Vec<&'a TableColumn>,
    /// For each of the table's columns, its index in `columns`.
    cell_index_of: Vec<Option<usize>>,
    cells: Vec<Option<&'a str>>,
    rows: usize,
    /// The table's columns in the order of the last row's members: most rows have the same order.
    member_order: Vec<usize>,
}

impl<'a> RowBatch<'a> {
    /// No rows yet, of these of the table's columns.
    pub(crate) fn new(table: &'a EntityTable, columns: &[usize]) -> Self {
        let mut cell_index_of = vec![None; table.columns.len()];
        for (cell_index, &column_index) in columns.iter().enumerate() {
            cell_index_of[column_index] = Some(cell_index);
        }
        Self {
            table,
            columns: columns
                .iter()
                .map(|&column_index| &table.columns[column_index])
                .collect(),
            cell_index_of,
            cells: Vec::new(),
            rows: 0,
            member_order: Vec::new(),
        }
    }

    /// How many rows it may hold.
    pub(crate) fn room(&self) -> usize {
        (CELLS / self.columns.len().max(1)).clamp(1, ROWS)
    }

    pub(crate) fn len(&self) -> usize {
        self.rows
    }

    pub(crate) fn columns(&self) -> &[&'a TableColumn] {
        &self.columns
    }

    /// The values of a row, as JSON texts.
    pub(crate) fn row(&self, row_index: usize) -> &[Option<&'a str>] {
        let width = self.columns.len();
        &self.cells[row_index * width..(row_index + 1) * width]
    }

    /// Removes all rows.
    pub(crate) fn clear(&mut self) {
        self.cells.clear();
        self.rows = 0;
    }

    /// Adds a row, whose own key must be `key`. With `strict`, it must have no member that is not a column.
    pub(crate) fn push(&mut self, row: &'a str, key: &str, strict: bool) -> Result<(), RejectReason> {
        let start = self.cells.len();
        self.cells.resize(start + self.columns.len(), None);
        let parsed = self.parse_row(row, start, strict).and_then(|()| {
            if self.key_at(start)? == key {
                Ok(())
            } else {
                Err(RejectReason::new(
                    RejectCode::KeyMismatch,
                    "the row's own key is not the change's",
                ))
            }
        });
        match parsed {
            Ok(()) => self.rows += 1,
            Err(_) => self.cells.truncate(start),
        }
        parsed
    }

    /// Puts a row's values into the cells from `start` on.
    fn parse_row(&mut self, row: &'a str, start: usize, strict: bool) -> Result<(), RejectReason> {
        let mut members = Members::of(row)
            .ok_or_else(|| RejectReason::new(RejectCode::NotAnObject, "the row is not a JSON object"))?;
        for member_index in 0.. {
            let remembered = self.member_order.get(member_index).copied();
            let expected = remembered.and_then(|column_index| {
                let member = &self.table.columns[column_index].member;
                Some((column_index, members.expect(member)?))
            });
            let (column_index, value) = match expected {
                Some(found) => found,
                None => {
                    let Some((name, value)) = members.next() else {
                        break;
                    };
                    match self.table.column_index(&name) {
                        Some(column_index) => {
                            self.member_order.truncate(member_index);
                            self.member_order.push(column_index);
                            (column_index, value)
                        }
                        None if strict => return Err(unknown_column(self.table, &name)),
                        None => continue,
                    }
                }
            };
            if let Some(cell_index) = self.cell_index_of[column_index] {
                self.cells[start + cell_index] = Some(value);
            }
        }
        Ok(())
    }

    /// The canonical key of the row whose cells begin at `start`.
    fn key_at(&self, start: usize) -> Result<Cow<'a, str>, RejectReason> {
        join_key(
            self.table,
            self.table.key.iter().map(|&column_index| {
                let cell_index = self.cell_index_of[column_index]?;
                self.cells[start + cell_index]
            }),
        )
    }

    /// A column's values of these rows, as JSON texts.
    pub(crate) fn column(
        &self,
        cell_index: usize,
        rows: Range<usize>,
    ) -> impl Iterator<Item = Option<&'a str>> + Clone {
        rows.map(move |row_index| self.cells[row_index * self.columns.len() + cell_index])
    }

    /// The arrays of all columns for these rows.
    ///
    /// # Errors A string of a column holds half of a surrogate pair, which no text can: the error that
    /// PostgreSQL would give.
    pub(crate) fn encode(&self, rows: &Range<usize>) -> Result<Vec<ArrayParam<'a>>, DbError> {
        self.columns
            .iter()
            .enumerate()
            .map(|(cell_index, column)| {
                let cells = self.column(cell_index, rows.clone());
                encode(column.column_type, cells).ok_or_else(|| DbError::Data {
                    sqlstate: "22P05".to_owned(),
                    column: Some(column.name.clone()),
                })
            })
            .collect()
    }

    /// The column that probably made a row not fit: the only one with a value in an unusual form, if there is
    /// only one.
    pub(crate) fn suspect(&self, row_index: usize) -> Option<String> {
        let mut odd = self.columns.iter().enumerate().filter(|(cell_index, column)| {
            let cells = self.column(*cell_index, row_index..row_index + 1);
            let given = encode(column.column_type, cells);
            let usual = encode(column.column_type, std::iter::once(None));
            match (given, usual) {
                (Some(given), Some(usual)) => given.element() != usual.element(),
                _ => true,
            }
        });
        let first = odd.next()?;
        odd.next().is_none().then(|| first.1.name.clone())
    }
}

/// The reason for a member that is not a column.
pub(crate) fn unknown_column(table: &EntityTable, name: &str) -> RejectReason {
    RejectReason::new(
        RejectCode::UnknownColumn,
        format!(
            "{} has no column {name} in the cloud; declare it with PUT /schema/{{path}} first",
            table.entity
        ),
    )
}

/// A change's key in a form that is the same for keys that differ only in blanks, order of members and
/// escapes.
pub(crate) fn canonical_key<'a>(table: &EntityTable, key: &'a str) -> Result<Cow<'a, str>, RejectReason> {
    let members = Members::of(key)
        .ok_or_else(|| RejectReason::new(RejectCode::KeyMissing, "the key is not a JSON object"))?;
    if let [only] = table.key[..] {
        let name = &table.columns[only].name;
        let value = members.filter(|(member, _)| member == name).last();
        return join_key(table, std::iter::once(value.map(|(_, value)| value)));
    }
    let members: Vec<_> = members.collect();
    join_key(
        table,
        table.key.iter().map(|&column_index| {
            let name = &table.columns[column_index].name;
            let value = members.iter().rev().find(|(member, _)| member == name);
            value.map(|(_, value)| *value)
        }),
    )
}

/// One text of the key's values.
fn join_key<'a>(
    table: &EntityTable,
    values: impl Iterator<Item = Option<&'a str>>,
) -> Result<Cow<'a, str>, RejectReason> {
    let mut joined: Option<Cow<'a, str>> = None;
    for (key_index, value) in values.enumerate() {
        let missing = || {
            let column = &table.columns[table.key[key_index]].name;
            RejectReason::new(
                RejectCode::KeyMissing,
                format!("the key column {column} is missing or null"),
            )
        };
        let value = value.filter(|value| *value != "null").ok_or_else(missing)?;
        let value = json::value_as_text(value).ok_or_else(missing)?;
        joined = Some(match joined {
            None if table.key.len() == 1 => value,
            before => {
                let mut all = before.unwrap_or_default().into_owned();
                // With its length before it, one value cannot be taken for two.
                all.push_str(&value.len().to_string());
                all.push(':');
                all.push_str(&value);
                Cow::Owned(all)
            }
        });
    }
    joined.ok_or_else(|| RejectReason::new(RejectCode::KeyMissing, "the key is empty"))
}
