//! Entries of the quarantine, as the site's database keeps them. What goes there and what becomes of it is
//! [`crate::quarantine`]'s to decide.

use serde::Serialize;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};

use super::quote_text;
use crate::error::{Error, Result};
use crate::sql_template::{fill, statement};

/// A refused change.
#[derive(Debug, Clone, Serialize)]
pub struct QuarantineEntry {
    /// The entity's name.
    pub entity: String,
    /// The row's key, a JSON object.
    pub key: String,
    /// The position of the row's last touch.
    pub position: i64,
    /// `u` upsert, `d` delete, `t` truncate, `r` cannot be read.
    pub op: String,
    /// The HTTP status or the receiver's code; 0 for a row that cannot be read, 1 for one that was set aside
    /// by hand, 2 for such a one that is sent again.
    pub code: i32,
    /// The cloud's words.
    pub error: String,
    /// How often it was refused.
    pub attempts: i32,
    /// When it was first refused, ISO 8601.
    pub first_refused_at: String,
    /// When it was last refused, ISO 8601.
    pub refused_at: String,
    /// The row's image as it was refused; only if one entry is shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
}

impl QuarantineEntry {
    /// From a row of the statements' columns.
    fn of_row(row: &Row, image: Option<String>) -> Self {
        Self {
            entity: row.get(0),
            key: row.get(1),
            position: row.get(2),
            op: row.get(3),
            code: row.get(4),
            error: row.get(5),
            attempts: row.get(6),
            first_refused_at: row.get(7),
            refused_at: row.get(8),
            image,
        }
    }
}

/// Refused changes, a list for each column.
#[derive(Debug, Default)]
pub(crate) struct RefusedChanges<'a> {
    pub(crate) entities: Vec<&'a str>,
    pub(crate) keys: Vec<&'a str>,
    pub(crate) positions: Vec<i64>,
    pub(crate) ops: Vec<i8>,
    pub(crate) images: Vec<Option<&'a str>>,
    pub(crate) codes: Vec<i32>,
    pub(crate) errors: Vec<&'a str>,
    pub(crate) provisional: Vec<bool>,
    /// Seconds until the row is touched again; `None` if somebody must decide.
    pub(crate) waits: Vec<Option<f64>>,
}

/// Changes that supersede entries of their rows, a list for each column.
#[derive(Debug, Default)]
pub(crate) struct SupersedingChanges<'a> {
    pub(crate) entities: Vec<&'a str>,
    pub(crate) keys: Vec<&'a str>,
    pub(crate) images: Vec<Option<&'a str>>,
}

/// How many entries are to be touched again, or were set aside by hand.
#[derive(Debug)]
pub(crate) struct DueCounts {
    /// Seconds until the next one that is not due yet.
    pub(crate) next: Option<f64>,
    pub(crate) all: i64,
    pub(crate) by_hand: i64,
}

fn failed(action: &'static str) -> impl Fn(tokio_postgres::Error) -> Error {
    move |error| Error::postgres(format!("{action} the quarantine"), error)
}

/// The rows of a table with an entity and a key, as two lists.
fn columns(rows: &[(String, String)]) -> (Vec<&str>, Vec<&str>) {
    rows.iter().map(|(entity, key)| (&**entity, &**key)).unzip()
}

/// A statement that returns entries.
fn of_entries(statement: &str) -> String {
    fill(statement, &[("columns", statement!("quarantine", "columns"))])
}

/// Which of these entities have entries.
///
/// # Errors
/// The source's.
pub(crate) async fn occupied(client: &Client, entities: &[&str]) -> Result<Vec<String>> {
    let rows = client
        .query_typed(
            statement!("quarantine", "occupied"),
            &[(&entities, Type::TEXT_ARRAY)],
        )
        .await
        .map_err(failed("look into"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Keeps refused changes while the term is this one. Returns the rows whose refusal is provisional, by entity
/// and key.
///
/// # Errors
/// The source's, and that another drain has begun a term.
pub(crate) async fn refuse(
    client: &Client,
    term: i64,
    changes: &RefusedChanges<'_>,
) -> Result<Vec<(String, String)>> {
    let rows = client
        .query(
            statement!("quarantine", "refuse"),
            &[
                &changes.entities,
                &changes.keys,
                &changes.positions,
                &changes.ops,
                &changes.images,
                &changes.codes,
                &changes.errors,
                &changes.provisional,
                &term,
                &changes.waits,
            ],
        )
        .await
        .map_err(failed("write to"))?;
    let provisional = rows.iter().filter(|row| row.get(2));
    Ok(provisional.map(|row| (row.get(0), row.get(1))).collect())
}

/// Takes all entries of an entity away, while the term is this one.
///
/// # Errors
/// The source's, and that another drain has begun a term.
pub(crate) async fn clear_entity(client: &Client, term: i64, entity: &str) -> Result<()> {
    client
        .execute(statement!("quarantine", "clear_entity"), &[&entity, &term])
        .await
        .map_err(failed("clear"))?;
    Ok(())
}

/// Takes the entries away that these changes supersede, while the term is this one. Returns how many rows the
/// cloud has accepted as they were when they failed.
///
/// # Errors
/// The source's, and that another drain has begun a term.
pub(crate) async fn release(client: &Client, term: i64, changes: &SupersedingChanges<'_>) -> Result<i64> {
    let released = client
        .query(
            statement!("quarantine", "release"),
            &[&changes.entities, &changes.keys, &term, &changes.images],
        )
        .await
        .map_err(failed("clear"))?;
    Ok(released.iter().filter(|row| row.get(0)).count() as i64)
}

/// The oldest entries, at most `limit`: of one entity or of all.
///
/// # Errors
/// The source's.
pub async fn oldest(client: &Client, entity: Option<&str>, limit: u32) -> Result<Vec<QuarantineEntry>> {
    let rows = client
        .query(
            &of_entries(statement!("quarantine", "oldest")),
            &[&entity, &i64::from(limit)],
        )
        .await
        .map_err(failed("list"))?;
    Ok(rows
        .iter()
        .map(|row| QuarantineEntry::of_row(row, None))
        .collect())
}

/// How many entries there are: of one entity or of all.
///
/// # Errors
/// The source's.
pub async fn count(client: &Client, entity: Option<&str>) -> Result<u64> {
    let row = client
        .query_one(statement!("quarantine", "count"), &[&entity])
        .await
        .map_err(failed("count"))?;
    Ok(row.get::<_, i64>(0) as u64)
}

/// How many entries each entity has that has some.
///
/// # Errors
/// The source's.
pub async fn counts(client: &Client) -> Result<Vec<(String, u64)>> {
    let rows = client
        .query(statement!("quarantine", "counts"), &[])
        .await
        .map_err(failed("count"))?;
    Ok(rows
        .iter()
        .map(|row| (row.get(0), row.get::<_, i64>(1) as u64))
        .collect())
}

/// The next entries after an entity and key, in the order of the entities and of their keys' hashes, at most
/// `limit`.
///
/// # Errors
/// The source's.
pub(crate) async fn page(
    client: &Client,
    (entity, key): (&str, &str),
    limit: u32,
) -> Result<Vec<QuarantineEntry>> {
    let rows = client
        .query(
            &of_entries(statement!("quarantine", "page")),
            &[&entity, &key, &i64::from(limit)],
        )
        .await
        .map_err(failed("list"))?;
    Ok(rows
        .iter()
        .map(|row| QuarantineEntry::of_row(row, None))
        .collect())
}

/// The entries with these positions.
///
/// # Errors
/// The source's.
pub(crate) async fn at_positions(client: &Client, positions: &[i64]) -> Result<Vec<QuarantineEntry>> {
    let rows = client
        .query(
            &of_entries(statement!("quarantine", "at_positions")),
            &[&positions],
        )
        .await
        .map_err(failed("read"))?;
    Ok(rows
        .iter()
        .map(|row| QuarantineEntry::of_row(row, None))
        .collect())
}

/// The entries with this position, with their images.
///
/// # Errors
/// The source's.
pub(crate) async fn show(client: &Client, position: i64) -> Result<Vec<QuarantineEntry>> {
    let rows = client
        .query(&of_entries(statement!("quarantine", "show")), &[&position])
        .await
        .map_err(failed("read"))?;
    Ok(rows
        .iter()
        .map(|row| QuarantineEntry::of_row(row, row.get(9)))
        .collect())
}

/// The entry of one row, the one that a server has refused once included.
///
/// # Errors
/// The source's.
pub(crate) async fn of_row(client: &Client, entity: &str, key: &str) -> Result<Option<QuarantineEntry>> {
    let row = client
        .query_opt(&of_entries(statement!("quarantine", "of_row")), &[&entity, &key])
        .await
        .map_err(failed("read"))?;
    Ok(row.map(|row| QuarantineEntry::of_row(&row, None)))
}

/// Key, code and the cloud's words of these rows of an entity, if they were refused since that time, in
/// microseconds since 1970. Provisional entries do not count.
///
/// # Errors
/// The source's.
pub(crate) async fn refused_since(
    client: &Client,
    entity: &str,
    keys: &[String],
    since: i64,
) -> Result<Vec<(String, i32, String)>> {
    let rows = client
        .query(
            statement!("quarantine", "refused_since"),
            &[&entity, &keys, &since],
        )
        .await
        .map_err(failed("look into"))?;
    Ok(rows
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2)))
        .collect())
}

/// Key, code, the cloud's words, and whether it is provisional, of the entries of these rows of an entity.
///
/// # Errors
/// The source's.
pub(crate) async fn refused(
    client: &Client,
    entity: &str,
    keys: &[String],
) -> Result<Vec<(String, i32, String, bool)>> {
    let rows = client
        .query(statement!("quarantine", "refused"), &[&entity, &keys])
        .await
        .map_err(failed("look into"))?;
    Ok(rows
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2), row.get(3)))
        .collect())
}

/// Deletes entries: the cloud stays without these changes. Returns how many.
///
/// # Errors
/// The source's.
pub async fn discard(client: &Client, entries: &[QuarantineEntry]) -> Result<u64> {
    let entities: Vec<_> = entries.iter().map(|entry| entry.entity.as_str()).collect();
    let keys: Vec<_> = entries.iter().map(|entry| entry.key.as_str()).collect();
    client
        .execute(statement!("quarantine", "discard"), &[&entities, &keys])
        .await
        .map_err(failed("discard from"))
}

/// Deletes all entries: the cloud stays without these changes. Returns how many.
///
/// # Errors
/// The source's.
pub async fn discard_all(client: &Client) -> Result<u64> {
    client
        .execute(statement!("quarantine", "discard_all"), &[])
        .await
        .map_err(failed("discard from"))
}

/// Counts rows that are to be touched again, or that were set aside by hand, which have the code `by_hand`.
///
/// # Errors
/// The source's.
pub(crate) async fn due_counts(client: &Client, by_hand: i32) -> Result<DueCounts> {
    let row = client
        .query_one(statement!("quarantine", "due_counts"), &[&by_hand])
        .await
        .map_err(failed("look into"))?;
    Ok(DueCounts {
        next: row.get(0),
        all: row.get(1),
        by_hand: row.get(2),
    })
}

/// Rows whose time has come, at most `limit`, by entity and key.
///
/// # Errors
/// The source's.
pub(crate) async fn due(client: &Client, limit: i64) -> Result<Vec<(String, String)>> {
    let rows = client
        .query(statement!("quarantine", "due"), &[&limit])
        .await
        .map_err(failed("look into"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Puts rows off for an hour whose time has come, by entity and key.
///
/// # Errors
/// The source's.
pub(crate) async fn put_off(client: &Client, rows: &[(String, String)]) -> Result<()> {
    let (entities, keys) = columns(rows);
    client
        .execute(statement!("quarantine", "put_off"), &[&entities, &keys])
        .await
        .map_err(failed("write to"))?;
    Ok(())
}

/// Makes the next rows due that wait for their time, at most `limit`. Returns how many.
///
/// # Errors
/// The source's.
pub(crate) async fn put_forward(client: &Client, limit: i64) -> Result<u64> {
    client
        .execute(statement!("quarantine", "put_forward"), &[&limit])
        .await
        .map_err(failed("write to"))
}

/// Which of these rows, by entity and key, wait for their time or have the code `by_hand`: their indexes, and
/// whether they have that code.
///
/// # Errors
/// The source's.
pub(crate) async fn expected(
    client: &Client,
    rows: &[(&str, &str)],
    by_hand: i32,
) -> Result<Vec<(usize, bool)>> {
    let (entities, keys): (Vec<&str>, Vec<&str>) = rows.iter().copied().unzip();
    let found = client
        .query(
            statement!("quarantine", "expected"),
            &[&entities, &keys, &by_hand],
        )
        .await
        .map_err(failed("look into"))?;
    Ok(found
        .iter()
        .map(|row| (row.get::<_, i64>(0) as usize - 1, row.get(1)))
        .collect())
}

/// Sets a row aside by hand, under this code.
///
/// # Errors
/// The source's.
pub(crate) async fn set_aside(client: &Client, entity: &str, key: &str, code: i32) -> Result<()> {
    client
        .execute(statement!("quarantine", "set_aside"), &[&entity, &key, &code])
        .await
        .map_err(failed("write to"))?;
    Ok(())
}

/// Gives rows that have the code `by_hand` the code `released`.
///
/// # Errors
/// The source's.
pub(crate) async fn release_by_hand(
    client: &Client,
    entities: &[&str],
    keys: &[&str],
    (by_hand, released): (i32, i32),
) -> Result<()> {
    client
        .execute(
            statement!("quarantine", "release_by_hand"),
            &[&entities, &keys, &by_hand, &released],
        )
        .await
        .map_err(failed("write to"))?;
    Ok(())
}

/// Entity and image of those of these rows that were refused once: what they lack may be brought to the cloud
/// before they are tried again.
///
/// # Errors
/// The source's.
pub(crate) async fn first_images(
    client: &Client,
    rows: &[(String, String)],
) -> Result<Vec<(String, String)>> {
    let (entities, keys) = columns(rows);
    let rows = client
        .query(statement!("quarantine", "first_images"), &[&entities, &keys])
        .await
        .map_err(failed("look into"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Keys, after `after` and in order, of refused rows of an entity whose `references`, a column and the values
/// of parents each, name one of these parents. At most `limit`.
///
/// # Errors
/// The source's.
pub(crate) async fn orphans(
    client: &Client,
    entity: &str,
    after: &str,
    references: &[(&str, &Vec<String>)],
    limit: usize,
) -> Result<Vec<String>> {
    let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![&entity, &after];
    let (mut arrays, mut names, mut same) = (Vec::new(), Vec::new(), Vec::new());
    for (index, (column, values)) in references.iter().enumerate() {
        parameters.push(*values);
        arrays.push(format!("${}::text[]", index + 3));
        names.push(format!("v{index}"));
        same.push(format!("q.image::json->>{} = p.v{index}", quote_text(column)));
    }
    let sql = fill(
        statement!("quarantine", "orphans"),
        &[
            ("arrays", &arrays.join(", ")),
            ("names", &names.join(", ")),
            ("same", &same.join(" and ")),
            ("limit", &limit.to_string()),
        ],
    );
    let rows = client.query(&sql, &parameters).await.map_err(|error| {
        Error::postgres(format!("look for rows of {entity} that wait for a parent"), error)
    })?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
