//! Reads the present state of touched rows: of one entity by one statement, whose snapshot PostgreSQL takes once it has the
//! table's lock.
//!
//! A snapshot from before the lock would be wrong: to it a table looks empty that was rewritten while the statement waited
//! for its lock, and rows that are there would be deleted in the cloud. So each statement is a transaction of its own, in
//! READ COMMITTED, and comes after the one that read the touches: it sees every transaction that has touched.
//!
//! A statement that fails is told apart by its error: the session is gone, the table has changed its form, the entity cannot
//! be read now, or some key or row cannot be read. In the last case the keys are halved until these stand alone.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::{BoxFuture, FutureExt};
use futures::{StreamExt, TryFutureExt};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};

use super::describe::Table;
use super::projection::{Present, Projection};
use super::quote_name;
use crate::catalogue::Entity;
use crate::error::Error;

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
pub(crate) struct State {
    /// The touch's key as a JSON object, as the site writes it now.
    pub(crate) key: Box<str>,
    /// The row that the table finds by this key; none where there is none.
    pub(crate) row: Option<Present>,
}

/// Why rows of an entity were not read.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The session cannot be used any more, or the server cannot now.
    Session(Error),
    /// The table is not as it was described.
    Reshaped,
    /// The entity cannot be read now: its table is locked, or this role may not read it.
    Entity(Error),
    /// A key or a row cannot be read.
    Row(String),
}

impl Stop {
    /// Source: PostgreSQL manual, appendix A, "PostgreSQL Error Codes".
    fn of(entity: &Entity, error: tokio_postgres::Error) -> Self {
        let Some(database) = error.as_db_error() else {
            return Self::Session(Error::postgres(reading(entity), error));
        };
        let state = database.code().code();
        match state {
            "0A000" | "42703" | "42P01" | "42804" | "42883" | "42704" | "3F000" | "26000" => Self::Reshaped,
            "42501" | "55P03" | "42P17" => Self::Entity(Error::postgres(reading(entity), error)),
            _ => match state.get(..2).unwrap_or_default() {
                // XX000 is what PostgreSQL says of a row of more than a gigabyte; 53200 of one that memory does not hold.
                "22" | "54" | "XX" | "38" | "P0" | "23" => Self::Row(format!("{state}: {}", words(state))),
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

/// Reads rows of one entity by their keys, on the session that it was prepared on.
pub(crate) struct RowReader {
    entity: Entity,
    projection: Projection,
    by_number: Option<Statement>,
    by_text: Statement,
    /// Whether the number of a touch is the key's own JSON.
    is_number: bool,
    keys: usize,
}

impl RowReader {
    /// Prepares the statements.
    pub(crate) async fn prepare(client: &Client, entity: &Entity, table: &Table) -> Result<Self, Stop> {
        let projection = Projection::new(entity, table);
        let stop = |error| Stop::of(entity, error);
        let by_text = client.prepare(&by_text(table, &projection)).await.map_err(stop)?;
        let is_number = table.number_key().is_some();
        let by_number = if is_number {
            Some(
                client
                    .prepare(&by_number(table, &projection))
                    .await
                    .map_err(stop)?,
            )
        } else {
            None
        };
        Ok(Self {
            entity: entity.clone(),
            by_number,
            by_text,
            is_number,
            keys: table.key.len(),
            projection,
        })
    }

    /// The states of the rows with these keys, by the keys' places; none of those that were not come to when `bytes`, the room
    /// that is left, was used up.
    pub(crate) async fn read(
        &self,
        client: &Client,
        keys: &[TouchKey],
        room: &Room,
    ) -> Result<Vec<Option<State>>, Stop> {
        let mut states = vec![None; keys.len()];
        // Touches of one entity may be of both forms, if the key's type has changed.
        let (numbers, texts): (Vec<usize>, Vec<usize>) = (0..keys.len())
            .partition(|&nth| self.by_number.is_some() && matches!(keys[nth], TouchKey::Number(_)));
        for places in [numbers, texts] {
            if !places.is_empty() {
                self.part(client, keys, places, room, &mut states).await?;
            }
        }
        Ok(states)
    }

    fn part<'a>(
        &'a self,
        client: &'a Client,
        keys: &'a [TouchKey],
        places: Vec<usize>,
        room: &'a Room,
        states: &'a mut [Option<State>],
    ) -> BoxFuture<'a, Result<(), Stop>> {
        async move {
            let mut read = Vec::with_capacity(places.len());
            match self.statement(client, keys, &places, room, &mut read).await {
                Ok(()) => {}
                Err(Stop::Row(error)) => match places.as_slice() {
                    [only] => read = vec![(0, self.alone(client, &keys[*only], error).await?)],
                    _ => {
                        let (first, second) = places.split_at(places.len() / 2);
                        for half in [first, second] {
                            self.part(client, keys, half.to_vec(), room, states).await?;
                        }
                        return Ok(());
                    }
                },
                Err(stop) => return Err(stop),
            }
            for (nth, state) in read {
                states[places[nth]] = Some(state);
            }
            Ok(())
        }
        .boxed()
    }

    /// The state of a row whose statement fails. A key that is none of the key's type is no row's.
    async fn alone(&self, client: &Client, key: &TouchKey, error: String) -> Result<State, Stop> {
        let texts = texts(key, self.keys);
        let checks: Vec<_> = self
            .projection
            .key_types()
            .zip(1..)
            .map(|(of, nth)| format!("(${nth}::pg_catalog.text)::{of} is null"))
            .collect();
        let parameters: Vec<&(dyn ToSql + Sync)> =
            texts.iter().map(|text| text as &(dyn ToSql + Sync)).collect();
        let castable = client
            .query_one(&format!("select {}", checks.join(" or ")), &parameters)
            .await;
        let row = match castable.map_err(|error| Stop::of(&self.entity, error)) {
            Ok(_) => Some(Present::Unreadable(error)),
            Err(Stop::Row(_)) => None,
            Err(stop) => return Err(stop),
        };
        let key = match key {
            TouchKey::Number(number) if self.is_number => self.projection.number_key(*number),
            _ => self.projection.text_key(&texts),
        };
        Ok(State { key, row })
    }

    /// Runs one statement. What it has read is in `read`, by place.
    async fn statement(
        &self,
        client: &Client,
        keys: &[TouchKey],
        places: &[usize],
        room: &Room,
        read: &mut Vec<(usize, State)>,
    ) -> Result<(), Stop> {
        let stop = |error| Stop::of(&self.entity, error);
        room.statements.fetch_add(1, Ordering::Relaxed);
        let number = |&nth: &usize| match &keys[nth] {
            TouchKey::Number(number) => Some(*number),
            TouchKey::Texts(_) => None,
        };
        let numbers: Option<Vec<i64>> = places.iter().map(number).collect();
        let by_number = self.by_number.as_ref().zip(numbers);
        let rows = match &by_number {
            Some((statement, numbers)) => client.query_raw(*statement, [numbers]).map_err(stop).await?,
            None => {
                let all: Vec<_> = places.iter().map(|&nth| texts(&keys[nth], self.keys)).collect();
                let columns: Vec<Vec<Option<&str>>> = (0..self.keys)
                    .map(|column| all.iter().map(|texts| texts.get(column)?.as_deref()).collect())
                    .collect();
                client.query_raw(&self.by_text, &columns).map_err(stop).await?
            }
        };
        futures::pin_mut!(rows);
        while let Some(row) = rows.next().await {
            let row = row.map_err(stop)?;
            // What still comes is passed over by the session.
            if room.is_used_up() {
                break;
            }
            let nth = usize::try_from(row.get::<_, i64>(0) - 1).unwrap_or(usize::MAX);
            let Some(&place) = places.get(nth) else { continue };
            let (key, first) = match &keys[place] {
                TouchKey::Number(number) if by_number.is_some() => (self.projection.number_key(*number), 2),
                key => {
                    let read = self.projection.key(&row, 2);
                    let texts = || self.projection.text_key(&texts(key, self.keys));
                    (read.unwrap_or_else(texts), 2 + self.keys)
                }
            };
            let there: bool = row.get(1);
            let present = there.then(|| self.projection.present(&row, first));
            room.take(match &present {
                Some(Present::Row(image)) => image.row.len() + key.len(),
                _ => key.len(),
            });
            read.push((nth, State { key, row: present }));
        }
        Ok(())
    }
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

/// $1 the keys. Returns a key's place, whether its row is there, and the row.
fn by_number(table: &Table, projection: &Projection) -> String {
    format!(
        "select k.cs_nth, t.tableoid is not null, {} from unnest($1::pg_catalog.int8[]) with ordinality k(cs_key, cs_nth) \
         left join {} t on t.{} {} k.cs_key",
        projection.list(true),
        table.sql_name,
        quote_name(&table.key[0].name),
        table.key[0].equals,
    )
}

/// $1, $2, … the texts of each key column. Returns a key's place, whether its row is there, the key, and the row.
fn by_text(table: &Table, projection: &Projection) -> String {
    let columns = 0..table.key.len();
    let arrays: Vec<_> = columns
        .clone()
        .map(|nth| format!("${}::pg_catalog.text[]", nth + 1))
        .collect();
    let names: Vec<_> = columns.map(|nth| format!("cs_key{nth}")).collect();
    let values: Vec<_> = names
        .iter()
        .zip(projection.key_types())
        .map(|(name, of)| format!("(k.{name})::{of}"))
        .collect();
    let same: Vec<_> = table
        .key
        .iter()
        .zip(&values)
        .map(|(key, value)| format!("t.{} {} {value}", quote_name(&key.name), key.equals))
        .collect();
    format!(
        "select k.cs_nth, t.tableoid is not null, {}, {} from unnest({}) with ordinality k({}, cs_nth) \
         left join {} t on {}",
        projection.key_list(&values),
        projection.list(true),
        arrays.join(", "),
        names.join(", "),
        table.sql_name,
        same.join(" and "),
    )
}

/// The bytes that a batch may still take. One row goes above it at most.
#[derive(Debug)]
pub(crate) struct Room {
    bytes: usize,
    used: AtomicUsize,
    statements: AtomicUsize,
}

impl Room {
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

    fn take(&self, bytes: usize) {
        self.used.fetch_add(bytes + 64, Ordering::Relaxed);
    }

    /// Statements that have read rows.
    pub(crate) fn statements(&self) -> usize {
        self.statements.load(Ordering::Relaxed)
    }

    /// Bytes that were taken.
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// The texts of a key of several columns, out of the text of their array; none where it is no such text.
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
