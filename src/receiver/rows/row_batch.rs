//! The values of many rows, by row and column, as slices of the request's body.

use std::borrow::Cow;
use std::ops::Range;

use crate::receiver::db::db_error::DbError;
use crate::receiver::rows::array_params::{ArrayParam, encode};
use crate::receiver::rows::json::{self, Members};
use crate::receiver::tables::schema::{EntityTable, TableColumn};

/// Rows and cells that go into one statement at most: each row costs memory here and in the server.
const ROWS: usize = 20_000;
const CELLS: usize = 1_000_000;

/// Why a change is rejected. No values in it.
#[derive(Debug)]
pub(crate) struct RejectReason {
    /// An SQLSTATE, or a word of ours.
    pub(crate) code: Cow<'static, str>,
    pub(crate) error: String,
}

impl RejectReason {
    pub(crate) fn new(code: &'static str, error: impl Into<String>) -> Self {
        Self {
            code: Cow::Borrowed(code),
            error: error.into(),
        }
    }
}

/// Rows with the values of some of a table's columns.
pub(crate) struct RowBatch<'a> {
    pub(crate) table: &'a EntityTable,
    columns: Vec<&'a TableColumn>,
    /// For each of the table's columns, its place in the grid.
    places: Vec<Option<usize>>,
    cells: Vec<Option<&'a str>>,
    rows: usize,
    /// The table's columns in the order of the last row's members: most rows have the same.
    order: Vec<usize>,
}

impl<'a> RowBatch<'a> {
    /// An empty grid of these of the table's columns.
    pub(crate) fn new(table: &'a EntityTable, columns: &[usize]) -> Self {
        let mut places = vec![None; table.columns.len()];
        for (place, &column) in columns.iter().enumerate() {
            places[column] = Some(place);
        }
        Self {
            table,
            columns: columns.iter().map(|&column| &table.columns[column]).collect(),
            places,
            cells: Vec::new(),
            rows: 0,
            order: Vec::new(),
        }
    }

    /// How many rows it shall hold at most.
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
    pub(crate) fn row(&self, row: usize) -> &[Option<&'a str>] {
        let width = self.columns.len();
        &self.cells[row * width..(row + 1) * width]
    }

    /// Takes all rows out.
    pub(crate) fn clear(&mut self) {
        self.cells.clear();
        self.rows = 0;
    }

    /// Adds a row, whose own key must be `key`. With `strict`, it must have no member that is not a column.
    pub(crate) fn push(&mut self, row: &'a str, key: &str, strict: bool) -> Result<(), RejectReason> {
        let start = self.cells.len();
        self.cells.resize(start + self.columns.len(), None);
        let read = self.read(row, start, strict).and_then(|()| {
            if self.key(start)? == key {
                Ok(())
            } else {
                Err(RejectReason::new(
                    "key-mismatch",
                    "the row's own key is not the change's",
                ))
            }
        });
        match read {
            Ok(()) => self.rows += 1,
            Err(_) => self.cells.truncate(start),
        }
        read
    }

    fn read(&mut self, row: &'a str, start: usize, strict: bool) -> Result<(), RejectReason> {
        let mut members = Members::of(row)
            .ok_or_else(|| RejectReason::new("not-an-object", "the row is not a JSON object"))?;
        for nth in 0.. {
            let remembered = self.order.get(nth).copied();
            let expected = remembered
                .and_then(|column| Some((column, members.expect(&self.table.columns[column].member)?)));
            let (column, value) = match expected {
                Some(found) => found,
                None => {
                    let Some((name, value)) = members.next() else {
                        break;
                    };
                    match self.table.column_index(&name) {
                        Some(column) => {
                            self.order.truncate(nth);
                            self.order.push(column);
                            (column, value)
                        }
                        None if strict => return Err(unknown_column(self.table, &name)),
                        None => continue,
                    }
                }
            };
            if let Some(place) = self.places[column] {
                self.cells[start + place] = Some(value);
            }
        }
        Ok(())
    }

    fn key(&self, start: usize) -> Result<Cow<'a, str>, RejectReason> {
        canonical(
            self.table,
            self.table
                .key
                .iter()
                .map(|&column| self.places[column].and_then(|place| self.cells[start + place])),
        )
    }

    /// A column's values of these rows, as JSON texts.
    pub(crate) fn column(
        &self,
        place: usize,
        rows: Range<usize>,
    ) -> impl Iterator<Item = Option<&'a str>> + Clone {
        rows.map(move |row| self.cells[row * self.columns.len() + place])
    }

    /// The arrays of all columns for these rows.
    ///
    /// # Errors
    /// A string of a column holds half a surrogate pair, which no text can. It is told as PostgreSQL would tell it.
    pub(crate) fn encode(&self, rows: &Range<usize>) -> Result<Vec<ArrayParam<'a>>, DbError> {
        self.columns
            .iter()
            .enumerate()
            .map(|(place, column)| {
                encode(column.of, self.column(place, rows.clone())).ok_or_else(|| DbError::Data {
                    sqlstate: "22P05".to_owned(),
                    column: Some(column.name.clone()),
                })
            })
            .collect()
    }

    /// The column that made a row not fit, where only one has a value in another form than the usual one.
    pub(crate) fn suspect(&self, row: usize) -> Option<String> {
        let mut odd = self.columns.iter().enumerate().filter(|(place, column)| {
            let usual = encode(column.of, self.column(*place, row..row + 1));
            let none = encode(column.of, std::iter::once(None));
            match (usual, none) {
                (Some(usual), Some(none)) => usual.element() != none.element(),
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
        "unknown-column",
        format!(
            "{} has no column {name} in the cloud; declare it with PUT /schema/{{path}} first",
            table.entity
        ),
    )
}

/// A change's key in a form that is the same for keys that differ in blanks, order of members and escapes only.
pub(crate) fn canonical_key<'a>(table: &EntityTable, key: &'a str) -> Result<Cow<'a, str>, RejectReason> {
    let members =
        Members::of(key).ok_or_else(|| RejectReason::new("key-missing", "the key is not a JSON object"))?;
    if let [only] = table.key[..] {
        let name = &table.columns[only].name;
        let value = members.filter(|(member, _)| member == name).last();
        return canonical(table, std::iter::once(value.map(|(_, value)| value)));
    }
    let members: Vec<_> = members.collect();
    canonical(
        table,
        table.key.iter().map(|&column| {
            let name = &table.columns[column].name;
            let value = members.iter().rev().find(|(member, _)| member == name);
            value.map(|(_, value)| *value)
        }),
    )
}

fn canonical<'a>(
    table: &EntityTable,
    values: impl Iterator<Item = Option<&'a str>>,
) -> Result<Cow<'a, str>, RejectReason> {
    let mut joined: Option<Cow<'a, str>> = None;
    for (nth, value) in values.enumerate() {
        let missing = || {
            let column = &table.columns[table.key[nth]].name;
            RejectReason::new(
                "key-missing",
                format!("the key column {column} is missing or null"),
            )
        };
        let value = value.filter(|value| *value != "null").ok_or_else(missing)?;
        let value = json::value_as_text(value).ok_or_else(missing)?;
        joined = Some(match joined {
            None if table.key.len() == 1 => value,
            before => {
                let mut all = before.unwrap_or_default().into_owned();
                // With its length before it, no value can pass for two.
                all.push_str(&value.len().to_string());
                all.push(':');
                all.push_str(&value);
                Cow::Owned(all)
            }
        });
    }
    joined.ok_or_else(|| RejectReason::new("key-missing", "the key is empty"))
}
