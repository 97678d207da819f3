//! What the site's database knows of one row: what waits, what was refused, which files it names.

use std::time::SystemTime;

use jiff::Timestamp;
use serde_json::Value;
use tokio_postgres::{Client, Row};

use super::describe::SourceTable;
use super::projection::PresentRow;
use super::quarantine::{self, QuarantineEntry};
use super::rows::{ByteBudget, RowReadFailure, RowReader, TouchKey};
use super::{parked_touches, touch};
use crate::catalogue::Entity;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::sql_template::statement;

/// The state of a row at the site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RowAtSite {
    /// It is there.
    Present,
    /// It is there, and does not meet the entity's condition.
    Unmet,
    /// It cannot be read: PostgreSQL's words.
    Unreadable(String),
    /// There is none with this key.
    Absent,
}

/// The last touch of a row that waits.
#[derive(Debug, Clone)]
pub(crate) struct WaitingTouch {
    pub(crate) position: i64,
    pub(crate) captured_at: Timestamp,
    /// Touches that wait before it.
    pub(crate) before: u64,
}

/// A file that the row names.
#[derive(Debug, Clone)]
pub(crate) struct RowFile {
    pub(crate) path: String,
    pub(crate) state: String,
    pub(crate) reason: Option<String>,
}

/// The types whose values JSON writes without quotes.
const UNQUOTED_TYPES: [&str; 7] = [
    "smallint",
    "integer",
    "bigint",
    "numeric",
    "real",
    "double precision",
    "boolean",
];

/// Converts a key as the operator writes it to the quarantine's form: a JSON object of the key columns, in
/// their order.
///
/// # Errors
/// A configuration error that says how to write it.
pub(crate) fn row_key(entity: &Entity, table: &SourceTable, text: &str) -> Result<String> {
    let invalid_key = || {
        let example: Vec<String> = entity
            .key
            .iter()
            .map(|column| format!("\"{column}\": 42"))
            .collect();
        Error::config(
            format!("use the key {text} of {}", entity.name),
            format!("it is not a JSON object with {}", entity.key.join(", ")),
        )
        .remedy(format!("write it as in '{{{}}}'", example.join(", ")))
    };
    let value: Value = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(_) => Value::from(text),
    };
    let mut pairs = Vec::with_capacity(entity.key.len());
    for column in &entity.key {
        let part = match &value {
            Value::Object(fields) => fields
                .get(column)
                .filter(|part| !part.is_null())
                .ok_or_else(invalid_key)?,
            single if entity.key.len() == 1 => single,
            _ => return Err(invalid_key()),
        };
        let is_text = !table
            .column(column)
            .is_some_and(|column| UNQUOTED_TYPES.contains(&column.base_type.as_str()));
        let part = match part {
            Value::String(text) if !is_text => text.clone(),
            Value::Number(_) | Value::Bool(_) if is_text => Value::from(part.to_string()).to_string(),
            part => part.to_string(),
        };
        pairs.push(format!("{}:{part}", Value::from(column.as_str())));
    }
    Ok(format!("{{{}}}", pairs.join(",")))
}

/// Reads the row as the drain would.
///
/// # Errors
/// The source's; an error of the entity, if none of its rows can be read now.
pub(crate) async fn at_site(
    client: &Client,
    entity: &Entity,
    table: &SourceTable,
    key: &str,
) -> Result<RowAtSite> {
    let failed = |failure| match failure {
        RowReadFailure::Session(error) | RowReadFailure::Entity(error) => Err(error),
        RowReadFailure::Reshaped(words) => {
            Err(Error::config(format!("read {}", entity.name), words).remedy("try again"))
        }
        RowReadFailure::Row(words) => Ok(RowAtSite::Unreadable(words)),
    };
    let Some(touched) = touch_key(entity, table, key) else {
        return Ok(RowAtSite::Absent);
    };
    let read = async {
        let reader = RowReader::prepare(client, entity, table).await?;
        reader
            .read(client, &[touched], &ByteBudget::new(usize::MAX))
            .await
    };
    let state = match read.await {
        Ok(mut states) => states.pop().flatten(),
        Err(failure) => return failed(failure),
    };
    Ok(match state.and_then(|state| state.row) {
        Some(PresentRow::Row(_)) => RowAtSite::Present,
        Some(PresentRow::Unmet(_)) => RowAtSite::Unmet,
        Some(PresentRow::Unreadable(words)) => RowAtSite::Unreadable(words),
        None => RowAtSite::Absent,
    })
}

/// A key as a touch has it; `None` if it is no key of the entity.
fn touch_key(entity: &Entity, table: &SourceTable, key: &str) -> Option<TouchKey> {
    Some(match touch::parts(entity, key)? {
        (Some(number), _) if table.number_key().is_some() => TouchKey::Number(number),
        (Some(number), _) => TouchKey::Texts([Some(number.to_string().into())].into()),
        (None, Some(text)) if entity.key.len() == 1 => TouchKey::Texts([Some(text.into())].into()),
        (None, text) => TouchKey::Texts(super::rows::split_array(&text?)?),
    })
}

/// The time in a column.
fn time(row: &Row, column: usize) -> Timestamp {
    Timestamp::try_from(row.get::<_, SystemTime>(column)).unwrap_or_default()
}

/// How far the cloud has accepted.
#[derive(Debug, Clone)]
pub(crate) struct Accepted {
    /// The snapshot of which it has accepted everything.
    pub(crate) lo: String,
    /// The end of the window that is being delivered, if there is one.
    pub(crate) hi: Option<String>,
    /// The position that it has accepted in that window.
    pub(crate) position: i64,
    /// A position below which nothing lies that it has not accepted.
    pub(crate) low_bound: i64,
}

impl From<&Checkpoint> for Accepted {
    fn from(checkpoint: &Checkpoint) -> Self {
        let window = checkpoint.window.as_ref();
        Self {
            lo: checkpoint.lo.to_string(),
            hi: window.map(|window| window.hi.to_string()),
            position: window.map_or(0, |window| window.position.0),
            low_bound: checkpoint.low_bound().0,
        }
    }
}

/// The last touch of the row that the cloud has not accepted.
///
/// # Errors
/// The source's.
pub(crate) async fn waiting(
    client: &Client,
    entity: &Entity,
    number: i16,
    key: &str,
    accepted: &Accepted,
) -> Result<Option<WaitingTouch>> {
    let Some((integer, text)) = touch::parts(entity, key) else {
        return Ok(None);
    };
    // A key that looks like an integer is a text in touches of a key of another type.
    let text = text.or_else(|| integer.map(|integer| integer.to_string()));
    let hi = accepted.hi.as_ref().unwrap_or(&accepted.lo);
    let position = if accepted.hi.is_some() {
        accepted.position
    } else {
        0
    };
    let row = client
        .query_opt(
            statement!("why", "waiting"),
            &[
                &number,
                &integer,
                &text,
                &accepted.lo,
                hi,
                &position,
                &accepted.low_bound,
                &(entity.key.len() > 1),
            ],
        )
        .await
        .map_err(|error| Error::postgres("look for the row in the outbox", error))?;
    Ok(row.map(|row| WaitingTouch {
        position: row.get(0),
        captured_at: time(&row, 1),
        before: row.get::<_, i64>(2).max(0).cast_unsigned(),
    }))
}

/// Whether a touch of the row is kept since its entity is parked.
///
/// # Errors
/// The source's.
pub(crate) async fn is_kept(client: &Client, entity: &Entity, number: i16, key: &str) -> Result<bool> {
    let Some((integer, text)) = touch::parts(entity, key) else {
        return Ok(false);
    };
    // A key that looks like an integer is a text in touches of a key of another type.
    let text = text.or_else(|| integer.map(|integer| integer.to_string()));
    parked_touches::keeps(client, number, (integer, text.as_deref()), entity.key.len() > 1).await
}

/// The row's refusal that waits for a decision.
///
/// # Errors
/// The source's.
pub(crate) async fn refusal(client: &Client, entity: &str, key: &str) -> Result<Option<QuarantineEntry>> {
    quarantine::of_row(client, entity, key).await
}

/// When the row is sent again, if its last request got no answer.
///
/// # Errors
/// The source's.
pub(crate) async fn unanswered(client: &Client, entity: &str, key: &str) -> Result<Option<Timestamp>> {
    let row = client
        .query_opt(statement!("why", "unanswered"), &[&entity, &key])
        .await
        .map_err(|error| Error::postgres("look for the row's request", error))?;
    Ok(row.map(|row| time(&row, 0)))
}

/// The files that the row names.
///
/// # Errors
/// The source's.
pub(crate) async fn files(client: &Client, entity: &str, key: &str) -> Result<Vec<RowFile>> {
    let rows = client
        .query(statement!("why", "files"), &[&entity, &key])
        .await
        .map_err(|error| Error::postgres("look for the row's files", error))?;
    Ok(rows
        .iter()
        .map(|row| RowFile {
            path: row.get(0),
            state: row.get(1),
            reason: row.get(2),
        })
        .collect())
}

/// Whether a backfill of the entity was begun and has not ended.
///
/// # Errors
/// The source's.
pub(crate) async fn backfill_is_unfinished(client: &Client, entity: &str) -> Result<bool> {
    let row = client
        .query_opt(statement!("why", "backfilled"), &[&entity])
        .await
        .map_err(|error| Error::postgres("look at the entity's backfill", error))?;
    Ok(row.is_some_and(|row| !row.get::<_, bool>(0)))
}
