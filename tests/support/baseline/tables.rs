//! The rows of a server: what it does to a row that comes, why it refuses one, and in which words.

#![allow(dead_code, reason = "each program uses a part of it")]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use cloud_sync::catalogue::Entity;
use serde_json::Value;

use super::quirks::Quirks;

/// Why a row is refused by a rule of the test's own, or `None`: path, row.
pub(crate) type Judge = Arc<dyn Fn(&str, &Value) -> Option<String> + Send + Sync>;

/// What the server wants of rows, in addition to its quirks.
#[derive(Default)]
pub(super) struct Rules {
    /// Path and column of a child, path and column of its parent.
    pub(super) references: Vec<[String; 4]>,
    /// Path and column of unique values.
    pub(super) uniques: Vec<[String; 2]>,
    /// Path, column, and the most letters of its texts.
    pub(super) lengths: Vec<(String, String, usize)>,
    pub(super) judges: Vec<Judge>,
}

/// Why a row is refused.
pub(super) enum Refused {
    Key,
    /// Another row of the batch, in a batch that is refused whole, or a rule of the test's own.
    Words(String),
    Parent {
        column: String,
        parent: String,
        referred: String,
    },
    Taken {
        column: String,
    },
    TooLong {
        column: String,
    },
    Offset {
        column: String,
    },
    /// The key is there, and the server does not upsert.
    Exists,
}

impl Refused {
    /// The status by the contract.
    pub(super) fn status(&self) -> u16 {
        if matches!(self, Self::Parent { .. }) {
            409
        } else {
            422
        }
    }

    /// The column that is at fault.
    pub(super) fn column(&self) -> &str {
        match self {
            Self::Parent { column, .. }
            | Self::Taken { column }
            | Self::TooLong { column }
            | Self::Offset { column } => column,
            Self::Key | Self::Words(_) | Self::Exists => "row",
        }
    }

    /// Plain words, without the row's values.
    pub(super) fn words(&self) -> String {
        match self {
            Self::Key => "the row has no key".to_owned(),
            Self::Words(words) => words.clone(),
            Self::Parent { .. } => "its parent is not there".to_owned(),
            Self::Taken { .. } => "the value has already been taken".to_owned(),
            Self::TooLong { .. } => "the value is too long".to_owned(),
            Self::Offset { .. } => "the value is not a valid datetime".to_owned(),
            Self::Exists => "the key is there already".to_owned(),
        }
    }

    /// The words of a Laravel server that tells its database's error: they hold the values of the row as it
    /// was to be stored.
    pub(super) fn sql_words(&self, table: &str, row: &Value) -> String {
        let value = |column: &str| match &row[column] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let cause = match self {
            Self::Words(words) => return words.clone(),
            Self::Key => {
                "SQLSTATE[HY000]: General error: 1364 Field 'id' doesn't have a default value".to_owned()
            }
            Self::Parent {
                column,
                parent,
                referred,
            } => format!(
                "SQLSTATE[23000]: Integrity constraint violation: 1452 Cannot add or update a child row: a \
                 foreign key constraint fails (`school`.`{table}`, CONSTRAINT `{table}_{column}_foreign` \
                 FOREIGN KEY (`{column}`) REFERENCES `{parent}` (`{referred}`))"
            ),
            Self::Taken { column } => format!(
                "SQLSTATE[23000]: Integrity constraint violation: 1062 Duplicate entry '{}' for key \
                 '{table}_{column}_unique'",
                value(column)
            ),
            Self::TooLong { column } => format!(
                "SQLSTATE[22001]: String data, right truncated: 1406 Data too long for column '{column}' \
                 at row 1"
            ),
            Self::Offset { column } => format!(
                "SQLSTATE[22007]: Invalid datetime format: 1292 Incorrect datetime value: '{}' for column \
                 '{column}' at row 1",
                value(column)
            ),
            Self::Exists => "SQLSTATE[23000]: Integrity constraint violation: 1062 Duplicate entry for key \
                             'PRIMARY'"
                .to_owned(),
        };
        let (mut names, mut values) = (String::new(), String::new());
        for column in row.as_object().into_iter().flat_map(|row| row.keys()) {
            let comma = if names.is_empty() { "" } else { ", " };
            let _ = write!(names, "{comma}`{column}`");
            let _ = write!(values, "{comma}{}", value(column));
        }
        format!("{cause} (Connection: mysql, SQL: insert into `{table}` ({names}) values ({values}))")
    }
}

/// What came that need not have come.
#[derive(Debug, Clone, Default)]
pub(crate) struct Waste {
    /// The bytes of the requests' bodies, by path: `rooms`, `bulk/rooms`, `upload/slips`.
    pub(crate) received: BTreeMap<String, u64>,
    /// Rows that came, each as often as it came.
    pub(crate) rows: usize,
    /// Rows, and their bytes, that came as they had come last, and had been accepted.
    pub(crate) again: usize,
    pub(crate) again_bytes: u64,
    /// Rows, and their bytes, that came as they had come last, and had been refused.
    pub(crate) retried: usize,
    pub(crate) retried_bytes: u64,
    /// Files, and their bytes, that had come to the same directory with the same name and content.
    pub(crate) files_again: usize,
    pub(crate) files_again_bytes: u64,
}

impl Waste {
    /// The bytes of all bodies.
    pub(crate) fn total(&self) -> u64 {
        self.received.values().sum()
    }

    /// The part of all bytes that had been accepted before, in percent.
    pub(crate) fn percent(&self) -> f64 {
        let again = self.again_bytes + self.files_again_bytes;
        100.0 * again as f64 / self.total().max(1) as f64
    }
}

/// The tables, and what came so far.
#[derive(Default)]
pub(super) struct Tables {
    rows: HashMap<String, BTreeMap<String, Value>>,
    /// By path and key: the hash of what came last, and whether it was accepted.
    came: HashMap<(String, String), (u64, bool)>,
    pub(super) waste: Waste,
}

/// What a request that stores rows needs to know.
pub(super) struct Context<'a> {
    pub(super) quirks: &'a Quirks,
    pub(super) rules: &'a Rules,
    pub(super) entities: &'a HashMap<String, Entity>,
    pub(super) path: &'a str,
}

impl Tables {
    /// The rows of a path, in the order of their keys' texts.
    pub(super) fn of<'t>(&'t self, quirks: &'t Quirks, path: &'t str) -> impl Iterator<Item = &'t Value> {
        let (table, kind) = quirks.table(path);
        let rows = self.rows.get(table).into_iter().flat_map(BTreeMap::values);
        rows.filter(move |row| kind.is_none_or(|(column, value)| row[column] == value))
    }

    /// The row of a table with this key.
    pub(super) fn get(&self, table: &str, key: &str) -> Option<&Value> {
        self.rows.get(table)?.get(key)
    }

    pub(super) fn insert(&mut self, table: &str, key: String, row: Value) {
        self.rows.entry(table.to_owned()).or_default().insert(key, row);
    }

    pub(super) fn remove(&mut self, table: &str, key: &str) -> Option<Value> {
        self.rows.get_mut(table)?.remove(key)
    }

    /// Counts the body of a request.
    pub(super) fn note_bytes(&mut self, path: &str, bytes: usize) {
        *self.waste.received.entry(path.to_owned()).or_default() += bytes as u64;
    }

    /// Stores one row, and returns it as it is now.
    pub(super) fn store(&mut self, context: &Context<'_>, row: &Value) -> Result<Value, Refused> {
        let stored = self.checked(context, row, &[]).map(|(key, row)| {
            let (table, _) = context.quirks.table(context.path);
            self.insert(table, key, row.clone());
            row
        });
        self.note(context, row, stored.is_ok());
        stored
    }

    /// Stores all rows, or none of them.
    pub(super) fn store_all(&mut self, context: &Context<'_>, rows: &[Value]) -> Result<usize, Refused> {
        let checked: Result<Vec<_>, _> = rows.iter().map(|row| self.checked(context, row, rows)).collect();
        for row in rows {
            self.note(context, row, checked.is_ok());
        }
        let (table, _) = context.quirks.table(context.path);
        for (key, row) in checked? {
            self.insert(table, key, row);
        }
        Ok(rows.len())
    }

    /// The key of a row, and the row as it is to be stored; `batch` are rows that are stored with it.
    fn checked(
        &self,
        context: &Context<'_>,
        row: &Value,
        batch: &[Value],
    ) -> Result<(String, Value), Refused> {
        let Context {
            quirks,
            rules,
            entities,
            path,
        } = context;
        let row = cleaned(quirks, path, row);
        let key = key_of(&row, &entities[*path].key).ok_or(Refused::Key)?;
        let (table, kind) = quirks.table(path);
        let there = self.get(table, &key);
        if there.is_some() && !quirks.upserts {
            return Err(Refused::Exists);
        }
        if let Some(words) = rules.judges.iter().find_map(|judge| judge(path, &row)) {
            return Err(Refused::Words(words));
        }
        for (of, column, most) in &rules.lengths {
            let is_long = || {
                row[column]
                    .as_str()
                    .is_some_and(|text| text.chars().count() > *most)
            };
            if of == path && is_long() {
                let column = column.clone();
                return Err(Refused::TooLong { column });
            }
        }
        let with_offset = |(column, value): (&String, &Value)| {
            let is_so = value.as_str().is_some_and(has_offset);
            is_so.then(|| Refused::Offset {
                column: column.clone(),
            })
        };
        let columns = row.as_object().into_iter().flatten();
        match columns.filter(|_| quirks.refuses_offsets).find_map(with_offset) {
            Some(refused) => return Err(refused),
            None => self.check_others(context, &key, &row, batch)?,
        }
        let mut after = row;
        if let (true, Some(Value::Object(before)), Value::Object(columns)) =
            (quirks.merges, there, &mut after)
        {
            for (column, value) in before {
                columns.entry(column).or_insert_with(|| value.clone());
            }
        }
        if let Some((column, value)) = kind {
            after[column] = value.into();
        }
        Ok((key, after))
    }

    /// Checks a row against others: its parents, and the holders of its unique values.
    fn check_others(
        &self,
        context: &Context<'_>,
        key: &str,
        row: &Value,
        batch: &[Value],
    ) -> Result<(), Refused> {
        let Context {
            quirks,
            rules,
            entities,
            path,
        } = context;
        for [child, column, parent, referred] in &rules.references {
            if child != path || row[column].is_null() {
                continue;
            }
            let with_it = |row_beside: &Value| parent == child && row_beside[referred] == row[column];
            let by_key = entities[parent].key.as_slice() == [referred.clone()];
            let is_there = if by_key {
                self.get(quirks.table(parent).0, &text(&row[column])).is_some()
            } else {
                self.of(quirks, parent)
                    .any(|there| there[referred] == row[column])
            };
            if !is_there && !batch.iter().any(with_it) {
                return Err(Refused::Parent {
                    column: column.clone(),
                    parent: quirks.table(parent).0.to_owned(),
                    referred: referred.clone(),
                });
            }
        }
        let columns = &entities[*path].key;
        for [of, column] in &rules.uniques {
            if of != path || row[column].is_null() {
                continue;
            }
            let others: Vec<(String, &Value)> = batch
                .iter()
                .filter_map(|row| Some((key_of(row, columns)?, row)))
                .filter(|(other, _)| other != key)
                .collect();
            let replaced: HashSet<&str> = others.iter().map(|(other, _)| other.as_str()).collect();
            let rows = self.rows.get(quirks.table(path).0).into_iter().flatten();
            let mut stay = rows.filter(|(other, _)| *other != key && !replaced.contains(other.as_str()));
            let is_same = |other: &Value| other[column] == row[column];
            if stay.any(|(_, other)| is_same(other)) || others.iter().any(|(_, other)| is_same(other)) {
                let column = column.clone();
                return Err(Refused::Taken { column });
            }
        }
        Ok(())
    }

    /// Counts a row that came.
    fn note(&mut self, context: &Context<'_>, row: &Value, accepted: bool) {
        let waste = &mut self.waste;
        waste.rows += 1;
        let Some(key) = key_of(row, &context.entities[context.path].key) else {
            return;
        };
        let text = row.to_string();
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let hash = hasher.finish();
        let last = self.came.insert((context.path.to_owned(), key), (hash, accepted));
        match last.filter(|(last, _)| *last == hash) {
            Some((_, true)) => {
                waste.again += 1;
                waste.again_bytes += text.len() as u64;
            }
            Some((_, false)) => {
                waste.retried += 1;
                waste.retried_bytes += text.len() as u64;
            }
            None => {}
        }
    }
}

/// A row as the server takes it.
pub(super) fn cleaned(quirks: &Quirks, path: &str, row: &Value) -> Value {
    let mut row = row.clone();
    if let Value::Object(columns) = &mut row {
        if let Some((_, known)) = quirks.columns.iter().find(|(of, _)| *of == path) {
            columns.retain(|column, _| known.contains(&column.as_str()));
        }
        for value in columns.values_mut() {
            clean(quirks, value);
        }
    }
    row
}

fn clean(quirks: &Quirks, value: &mut Value) {
    match value {
        Value::String(text) => {
            if quirks.trims {
                *text = text.trim().to_owned();
            }
            if quirks.empty_is_null && text.is_empty() {
                *value = Value::Null;
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| clean(quirks, value)),
        Value::Object(members) => members.values_mut().for_each(|value| clean(quirks, value)),
        _ => {}
    }
}

/// Whether a text is a date and time with an offset.
fn has_offset(text: &str) -> bool {
    text.len() > 10 && text.parse::<jiff::Timestamp>().is_ok()
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The key's values as plain text, joined by commas.
pub(super) fn key_of(row: &Value, columns: &[String]) -> Option<String> {
    let value = |column: &String| row.get(column).filter(|value| !value.is_null()).map(text);
    let values: Option<Vec<String>> = columns.iter().map(value).collect();
    Some(values?.join(","))
}
