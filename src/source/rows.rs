//! Reads the present state of touched rows: those of one entity by one statement, whose snapshot PostgreSQL
//! takes once it has the table's lock.
//!
//! A snapshot from before the lock would be wrong: a table that was rewritten while the statement waited for
//! the lock looks empty to it, and rows that exist would be deleted in the cloud. So each statement is a
//! transaction of its own, in READ COMMITTED, and comes after the one that read the touches: it sees every
//! transaction whose touches were read.
//!
//! On failure the error decides: the session is lost, the table has changed its columns, the entity cannot be
//! read now, or some key or row cannot be read. In the last case the keys are halved until the one that fails
//! is alone.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row, RowStream, Statement};

use super::condition;
use super::describe::SourceTable;
use super::projection::{ImageBuffer, PresentRow, Projection};
use super::text_parameter::TextParameter;
use super::{pages, quote_name};
use crate::catalogue::Entity;
use crate::error::Error;
use crate::sql_template::{fill, statement};

/// The key of a touch, as the outbox has it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum TouchKey {
    /// One integer.
    Number(i64),
    /// The texts of the key's columns.
    Texts(Box<[Option<Box<str>>]>),
}

/// What is known of a touched row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RowState {
    /// The touch's key as a JSON object, as the site writes it now; `None` if it is the key in the row's own
    /// image.
    pub(crate) key: Option<Box<str>>,
    /// The row that the table finds by this key; `None` if there is none.
    pub(crate) row: Option<PresentRow>,
}

/// Why rows of an entity were not read.
#[derive(Debug)]
pub(crate) enum RowReadFailure {
    /// The session cannot be used any more, or the server cannot now.
    Session(Error),
    /// The table is not as it was described: the error that says so.
    Reshaped(String),
    /// The entity cannot be read now: its table is locked, or this role may not read it.
    Entity(Error),
    /// A key or a row cannot be read.
    Row(String),
}

impl RowReadFailure {
    /// Source: PostgreSQL manual, appendix A, "PostgreSQL Error Codes".
    fn of(entity: &Entity, error: tokio_postgres::Error) -> Self {
        let Some(database) = error.as_db_error() else {
            return Self::Session(Error::postgres(reading(entity), error));
        };
        let state = database.code().code();
        match state {
            "0A000" | "42703" | "42P01" | "42804" | "42883" | "42704" | "3F000" | "26000" => {
                Self::Reshaped(Error::postgres(reading(entity), error).to_string())
            }
            "55P03" => Self::Entity(Error::postgres(reading(entity), error).remedy(
                "another session holds a lock on its table: pg_locks says which, pg_terminate_backend(its \
                 pid) ends it",
            )),
            "42501" | "42P17" => Self::Entity(Error::postgres(reading(entity), error)),
            _ => match state.get(..2).unwrap_or_default() {
                // PostgreSQL returns XX000 for a row of more than a gigabyte; 53200 for one that does not fit
                // into memory.
                "22" | "54" | "XX" | "38" | "P0" | "23" => Self::Row(format!("{state}: {}", words(state))),
                // The statement is ambiguous now: somebody has created a cast.
                "42" => Self::Entity(Error::postgres(reading(entity), error)),
                _ if state == "53200" => Self::Row(format!("{state}: {}", words(state))),
                _ => Self::Session(Error::postgres(reading(entity), error)),
            },
        }
    }
}

fn reading(entity: &Entity) -> String {
    format!("read rows of {}", entity.name)
}

/// What a state of an error means, without any value of a row.
fn words(state: &str) -> &'static str {
    match state {
        "22012" => "the entity's condition divides by zero",
        "22021" => "a text has bytes that are not valid in the database's encoding",
        "53200" | "54000" | "XX000" => "the row is too large to be read, or damaged",
        _ => match state.get(..2).unwrap_or_default() {
            "22" => "a value cannot be read, or the entity's condition fails for it",
            _ => "the row cannot be read",
        },
    }
}

/// The statements that find rows by integers.
struct IntegerKeyStatements {
    each: Statement,
    range: Statement,
}

/// At least so many keys that are close together are read as one range of the key's index: PostgreSQL then
/// searches once, not for each key.
const RANGE: usize = 64;

/// Reads rows of one entity by their keys, on the session that it was prepared on.
pub(crate) struct RowReader {
    entity: Entity,
    projection: Projection,
    /// If the key is one integer, whose number in a touch is the key's own JSON.
    numbers: Option<IntegerKeyStatements>,
    by_text: Statement,
    keys: usize,
    /// The oids of its partitions, if it is partitioned.
    partitions: Option<HashSet<u32>>,
}

impl RowReader {
    /// Prepares the statements.
    pub(crate) async fn prepare(
        client: &Client,
        entity: &Entity,
        table: &SourceTable,
    ) -> Result<Self, RowReadFailure> {
        let stop = |error| RowReadFailure::of(entity, error);
        // A condition that does not fit the table concerns this entity alone.
        let condition = condition::used(client, entity, table)
            .await
            .map_err(stop)?
            .map_err(RowReadFailure::Entity)?;
        let projection = Projection::new(entity, table, condition);
        let by_text = client.prepare(&by_text(table, &projection)).await.map_err(stop)?;
        let numbers = if table.number_key().is_some() {
            let (each, range) = (by_number(table, &projection), by_range(table, &projection));
            let (each, range) =
                tokio::try_join!(client.prepare(&each), client.prepare(&range)).map_err(stop)?;
            Some(IntegerKeyStatements { each, range })
        } else {
            None
        };
        let partitions = if table.partitioned {
            let leaves = pages::leaves(client, table)
                .await
                .map_err(RowReadFailure::Session)?;
            Some(leaves.iter().map(|leaf| leaf.oid).collect())
        } else {
            None
        };
        Ok(Self {
            entity: entity.clone(),
            numbers,
            by_text,
            partitions,
            keys: table.key.len(),
            projection,
        })
    }

    /// The states of the rows with these keys, in the order of the keys; `None` for those that were not read
    /// before the budget was used up.
    pub(crate) async fn read(
        &self,
        client: &Client,
        keys: &[TouchKey],
        budget: &ByteBudget,
    ) -> Result<Vec<Option<RowState>>, RowReadFailure> {
        let mut states = vec![None; keys.len()];
        // Touches of one entity may have both forms, if the key's type has changed.
        let (numbers, texts): (Vec<usize>, Vec<usize>) = (0..keys.len())
            .partition(|&key_index| self.numbers.is_some() && matches!(keys[key_index], TouchKey::Number(_)));
        for key_indexes in [numbers, texts] {
            if !key_indexes.is_empty() {
                self.part(client, keys, key_indexes, budget, &mut states).await?;
            }
        }
        Ok(states)
    }

    fn part<'a>(
        &'a self,
        client: &'a Client,
        keys: &'a [TouchKey],
        key_indexes: Vec<usize>,
        budget: &'a ByteBudget,
        states: &'a mut [Option<RowState>],
    ) -> BoxFuture<'a, Result<(), RowReadFailure>> {
        async move {
            let mut read = Vec::with_capacity(key_indexes.len());
            match self
                .statement(client, keys, &key_indexes, budget, &mut read)
                .await
            {
                Ok(()) => {}
                Err(RowReadFailure::Row(error)) => match key_indexes.as_slice() {
                    [only] => read = vec![(0, self.alone(client, &keys[*only], error).await?)],
                    _ => {
                        let (first, second) = key_indexes.split_at(key_indexes.len() / 2);
                        for half in [first, second] {
                            self.part(client, keys, half.to_vec(), budget, states).await?;
                        }
                        return Ok(());
                    }
                },
                Err(stop) => return Err(stop),
            }
            for (key_index, state) in read {
                states[key_indexes[key_index]] = Some(state);
            }
            Ok(())
        }
        .boxed()
    }

    /// The state of a row whose statement fails. A key that is not of the key's type belongs to no row.
    async fn alone(
        &self,
        client: &Client,
        key: &TouchKey,
        error: String,
    ) -> Result<RowState, RowReadFailure> {
        let texts = texts(key, self.keys);
        let checks: Vec<_> = self
            .projection
            .key_types()
            .zip(1..)
            .map(|(sql_type, number)| format!("${number}::{sql_type} is null"))
            .collect();
        let values: Vec<_> = texts.iter().cloned().map(TextParameter).collect();
        let parameters: Vec<&(dyn ToSql + Sync)> =
            values.iter().map(|value| value as &(dyn ToSql + Sync)).collect();
        let castable = client
            .query_one(&format!("select {}", checks.join(" or ")), &parameters)
            .await;
        let row = match castable.map_err(|error| RowReadFailure::of(&self.entity, error)) {
            Ok(_) => Some(PresentRow::Unreadable(error)),
            Err(RowReadFailure::Row(_)) => None,
            Err(stop) => return Err(stop),
        };
        let key = match key {
            TouchKey::Number(number) if self.numbers.is_some() => self.projection.number_key(*number),
            _ => self.projection.text_key(&texts),
        };
        Ok(RowState { key: Some(key), row })
    }

    /// Runs one statement. It appends what it has read to `read`, with the key's index among `key_indexes`.
    async fn statement(
        &self,
        client: &Client,
        keys: &[TouchKey],
        key_indexes: &[usize],
        budget: &ByteBudget,
        read: &mut Vec<(usize, RowState)>,
    ) -> Result<(), RowReadFailure> {
        budget.statements.fetch_add(1, Ordering::Relaxed);
        let number = |&key_index: &usize| match &keys[key_index] {
            TouchKey::Number(number) => Some(*number),
            TouchKey::Texts(_) => None,
        };
        let numbers: Option<Vec<i64>> = key_indexes.iter().map(number).collect();
        match self.numbers.as_ref().zip(numbers) {
            Some((by, numbers)) => match close_together(&numbers) {
                Some(range) => self.of_range(client, by, &numbers, range, budget, read).await,
                None => self.of_numbers(client, by, &numbers, budget, read).await,
            },
            None => {
                let texts: Vec<_> = key_indexes
                    .iter()
                    .map(|&key_index| texts(&keys[key_index], self.keys))
                    .collect();
                self.of_texts(client, &texts, budget, read).await
            }
        }
    }

    /// The rows with keys in this range; rows that were not requested are skipped.
    async fn of_range(
        &self,
        client: &Client,
        by: &IntegerKeyStatements,
        numbers: &[i64],
        (least, most): (i64, i64),
        budget: &ByteBudget,
        read: &mut Vec<(usize, RowState)>,
    ) -> Result<(), RowReadFailure> {
        let stop = |error| RowReadFailure::of(&self.entity, error);
        let offset = |number: i64| usize::try_from(number.wrapping_sub(least)).unwrap_or(usize::MAX);
        let mut asked: Vec<Option<usize>> = vec![None; offset(most) + 1];
        for (key_index, &number) in numbers.iter().enumerate() {
            asked[offset(number)] = Some(key_index);
        }
        let rows = client.query_raw(&by.range, [least, most]).await.map_err(stop)?;
        let find = |row: &Row| asked.get_mut(offset(row.get(0)))?.take();
        let key = |key_index: usize, _: &Row, present: Option<&PresentRow>| {
            self.key_of_number(numbers[key_index], present)
        };
        if self.come(rows, 2, budget, read, find, key).await? {
            for key_index in asked.into_iter().flatten() {
                let key = self.key_of_number(numbers[key_index], None);
                read.push((key_index, budget.taken(key, None)));
            }
        }
        Ok(())
    }

    async fn of_numbers(
        &self,
        client: &Client,
        by: &IntegerKeyStatements,
        numbers: &[i64],
        budget: &ByteBudget,
        read: &mut Vec<(usize, RowState)>,
    ) -> Result<(), RowReadFailure> {
        let stop = |error| RowReadFailure::of(&self.entity, error);
        let rows = client.query_raw(&by.each, [numbers]).await.map_err(stop)?;
        let find = |row: &Row| requested_row_index(row, numbers.len());
        let key = |key_index: usize, _: &Row, present: Option<&PresentRow>| {
            self.key_of_number(numbers[key_index], present)
        };
        self.come(rows, 2, budget, read, find, key).await.map(|_| ())
    }

    async fn of_texts(
        &self,
        client: &Client,
        keys: &[Vec<Option<String>>],
        budget: &ByteBudget,
        read: &mut Vec<(usize, RowState)>,
    ) -> Result<(), RowReadFailure> {
        let stop = |error| RowReadFailure::of(&self.entity, error);
        let columns = (0..self.keys)
            .map(|column| TextParameter::list(keys.iter().map(|texts| texts.get(column)?.as_deref())));
        let rows = client.query_raw(&self.by_text, columns).await.map_err(stop)?;
        let find = |row: &Row| requested_row_index(row, keys.len());
        let key = |key_index: usize, row: &Row, present: Option<&PresentRow>| {
            let key = self.projection.key(row, 2);
            let key = key.unwrap_or_else(|| self.projection.text_key(&keys[key_index]));
            let own = match present {
                Some(PresentRow::Row(image)) => image.key == key,
                Some(PresentRow::Unmet(of_row)) => *of_row == key,
                _ => false,
            };
            (!own).then_some(key)
        };
        self.come(rows, 2 + self.keys, budget, read, find, key)
            .await
            .map(|_| ())
    }

    /// Takes the rows as they arrive: `find` returns the index of the key that a row was found by, `key` that
    /// key's JSON if it is not the row's own. The row itself begins at column `first`. Returns whether all
    /// rows were taken: what arrives after the budget was used up is discarded.
    async fn come(
        &self,
        rows: RowStream,
        first: usize,
        budget: &ByteBudget,
        read: &mut Vec<(usize, RowState)>,
        mut find: impl FnMut(&Row) -> Option<usize>,
        key: impl Fn(usize, &Row, Option<&PresentRow>) -> Option<Box<str>>,
    ) -> Result<bool, RowReadFailure> {
        futures::pin_mut!(rows);
        let mut scratch = ImageBuffer::default();
        while let Some(row) = rows.next().await {
            let row = row.map_err(|error| RowReadFailure::of(&self.entity, error))?;
            if budget.is_used_up() {
                return Ok(false);
            }
            let Some(key_index) = find(&row) else { continue };
            let present = self
                .is_there(&row)?
                .then(|| self.projection.present(&row, first, &mut scratch));
            let key = key(key_index, &row, present.as_ref());
            read.push((key_index, budget.taken(key, present)));
        }
        Ok(true)
    }

    /// The JSON of an integer key, if it is not in the row's own image.
    fn key_of_number(&self, number: i64, present: Option<&PresentRow>) -> Option<Box<str>> {
        let needed = matches!(present, None | Some(PresentRow::Unreadable(_)));
        needed.then(|| self.projection.number_key(number))
    }

    /// Whether the row exists. A row in a partition that is newer than the table's description is read again
    /// once the partition is noted: if the partition were removed before that, nothing would show that the
    /// row went with it.
    fn is_there(&self, row: &Row) -> Result<bool, RowReadFailure> {
        let Some(table) = row.get::<_, Option<u32>>(1) else {
            return Ok(false);
        };
        match &self.partitions {
            Some(partitions) if !partitions.contains(&table) => Err(RowReadFailure::Reshaped(format!(
                "{}: its table has a new partition",
                reading(&self.entity)
            ))),
            _ => Ok(true),
        }
    }
}

/// The least and the greatest of these keys, if reading all between them reads little else.
fn close_together(numbers: &[i64]) -> Option<(i64, i64)> {
    let (least, most) = (*numbers.iter().min()?, *numbers.iter().max()?);
    let span = usize::try_from(most.checked_sub(least)?).ok()?;
    (numbers.len() >= RANGE && span <= numbers.len() + numbers.len() / 4).then_some((least, most))
}

/// The index of a row's key among so many; the row counts from 1.
fn requested_row_index(row: &Row, keys: usize) -> Option<usize> {
    let key_index = usize::try_from(row.get::<_, i64>(0) - 1).ok()?;
    (key_index < keys).then_some(key_index)
}

/// The texts of a key's columns.
fn texts(key: &TouchKey, columns: usize) -> Vec<Option<String>> {
    let mut texts = match key {
        TouchKey::Number(number) => vec![Some(number.to_string())],
        TouchKey::Texts(texts) => texts
            .iter()
            .map(|text| text.as_deref().map(str::to_owned))
            .collect(),
    };
    texts.resize(columns, None);
    texts
}

/// $1 the keys. Returns a key's number, the oid of its row's table (null if there is no row), and the row.
fn by_number(table: &SourceTable, projection: &Projection) -> String {
    let values = [
        ("list", &*projection.list(true)),
        ("table", &table.sql_name),
        ("key", &quote_name(&table.key[0].name)),
        ("equals", &table.key[0].equals),
    ];
    fill(statement!("rows", "by_number"), &values)
}

/// $1 the least key, $2 the greatest. Returns each row's key, the oid of its table, and the row.
fn by_range(table: &SourceTable, projection: &Projection) -> String {
    let values = [
        ("key", &*quote_name(&table.key[0].name)),
        ("list", &projection.list(false)),
        ("table", &table.sql_name),
    ];
    fill(statement!("rows", "by_range"), &values)
}

/// $1, $2, … the texts of each key column. Returns a key's number, the oid of its row's table (null if there
/// is no row), the key, and the row.
fn by_text(table: &SourceTable, projection: &Projection) -> String {
    let names: Vec<_> = (0..table.key.len())
        .map(|key_index| format!("cs_key{key_index}"))
        .collect();
    // There are no arrays of arrays. In a select list, a value of a composite type stays one value.
    let (arrays, values): (Vec<_>, Vec<_>) = names
        .iter()
        .zip(1..)
        .zip(projection.key_types())
        .map(|((name, number), sql_type)| match sql_type.ends_with("[]") {
            true => (
                format!("pg_catalog.unnest(${number}::pg_catalog.text[]) {name}"),
                format!("(k.{name})::{sql_type}"),
            ),
            false => (
                format!("pg_catalog.unnest(${number}::{sql_type}[]) {name}"),
                format!("k.{name}"),
            ),
        })
        .unzip();
    let same: Vec<_> = table
        .key
        .iter()
        .zip(&values)
        .map(|(key, value)| format!("t.{} {} {value}", quote_name(&key.name), key.equals))
        .collect();
    let values = [
        ("keys", &*projection.key_list(&values)),
        ("list", &projection.list(true)),
        ("arrays", &arrays.join(", ")),
        ("table", &table.sql_name),
        ("same", &same.join(" and ")),
    ];
    fill(statement!("rows", "by_text"), &values)
}

/// The bytes that a batch may still take. At most one row exceeds it.
#[derive(Debug)]
pub(crate) struct ByteBudget {
    bytes: usize,
    used: AtomicUsize,
    statements: AtomicUsize,
}

impl ByteBudget {
    pub(crate) fn new(bytes: usize) -> Self {
        Self {
            bytes,
            used: AtomicUsize::new(0),
            statements: AtomicUsize::new(0),
        }
    }

    fn is_used_up(&self) -> bool {
        self.used.load(Ordering::Relaxed) >= self.bytes
    }

    /// The state, after its bytes were added to those used.
    fn taken(&self, key: Option<Box<str>>, row: Option<PresentRow>) -> RowState {
        let of_key = key.as_ref().map_or(0, |key| key.len());
        let of_row = match &row {
            Some(PresentRow::Row(image)) => image.key.len() + image.row.len(),
            Some(PresentRow::Unmet(key)) => key.len(),
            _ => 0,
        };
        self.used.fetch_add(of_key + of_row + 64, Ordering::Relaxed);
        RowState { key, row }
    }

    /// Statements that have read rows.
    pub(crate) fn statements(&self) -> usize {
        self.statements.load(Ordering::Relaxed)
    }

    /// Bytes that are used.
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// The texts of a key of several columns, from the text of their array; `None` if it is no such text.
///
/// Source: PostgreSQL manual, "Arrays", "Array Input and Output Syntax".
pub(crate) fn split_array(text: &str) -> Option<Box<[Option<Box<str>>]>> {
    let inside = text.strip_prefix('{')?.strip_suffix('}')?;
    let mut elements = Vec::new();
    let mut letters = inside.chars().peekable();
    loop {
        let mut element = String::new();
        let quoted = letters.next_if_eq(&'"').is_some();
        loop {
            match letters.next() {
                Some('\\') => element.push(letters.next()?),
                Some('"') if quoted => break,
                Some(letter) if quoted || letter != ',' => element.push(letter),
                Some(_) => {
                    elements.push((element != "NULL").then(|| element.into()));
                    element = String::new();
                    break;
                }
                None if quoted => return None,
                None => {
                    elements.push((element != "NULL").then(|| element.into()));
                    return Some(elements.into());
                }
            }
        }
        if quoted {
            elements.push(Some(element.into()));
            match letters.next() {
                Some(',') => {}
                None => return Some(elements.into()),
                Some(_) => return None,
            }
        }
    }
}

/// The text of an array of the texts.
pub(crate) fn join_array(texts: &[Option<String>]) -> String {
    let element = |text: &Option<String>| match text {
        Some(text) => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
        None => "NULL".to_owned(),
    };
    format!("{{{}}}", texts.iter().map(element).collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_of_texts_are_read_as_postgresql_writes_them() {
        let split = |text: &str| {
            split_array(text).map(|texts| {
                texts
                    .iter()
                    .map(|text| text.as_deref().map(str::to_owned))
                    .collect::<Vec<_>>()
            })
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(split("{1,a}").unwrap(), [some("1"), some("a")]);
        assert_eq!(
            split(r#"{"a,b","","x \"y\" \\",NULL,"NULL"}"#).unwrap(),
            [some("a,b"), some(""), some("x \"y\" \\"), None, some("NULL")]
        );
        for texts in [vec![some("a"), None], vec![some("{\"},\\"), some("")]] {
            assert_eq!(split(&join_array(&texts)).unwrap(), texts);
        }
        for text in ["", "{", "1", "{\"a}", "{\"a\"b}"] {
            assert_eq!(split(text), None, "{text}");
        }
    }
}
