//! What the page shows of the site's database besides the status.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use super::file_state::FileState;
use super::outbox::LagBounds;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::sql_template::statement;

/// A file as the page shows it.
#[derive(Debug, Clone)]
pub struct RecentFile {
    /// Where it is on its way.
    pub state: FileState,
    /// Below the media root, or as the row names it.
    pub path: String,
    /// Bytes, if it was ever found.
    pub size: Option<u64>,
    /// Why it is not uploaded.
    pub reason: Option<String>,
    /// Failed attempts since the last success.
    pub attempts: u32,
    /// Seconds until it is tried again; `None` if it is not tried by time.
    pub next_attempt_seconds: Option<f64>,
}

/// How many changes of each entity the cloud has not accepted, by the entity's name.
///
/// # Errors
/// The source's.
pub(crate) async fn waiting_by_entity(
    client: &Client,
    checkpoint: &Checkpoint,
) -> Result<BTreeMap<String, u64>> {
    let bounds = LagBounds::of(checkpoint);
    let rows = client
        .query(
            statement!("overview", "waiting_by_entity"),
            &[&bounds.lo, &bounds.hi, &bounds.position, &bounds.above],
        )
        .await
        .map_err(|error| Error::postgres("count the changes of each entity that wait", error))?;
    Ok(rows
        .iter()
        .map(|row| (row.get(0), row.get::<_, i64>(1).max(0) as u64))
        .collect())
}

/// The files that came last of each of these states, at most `limit` of each.
///
/// # Errors
/// The source's.
pub(crate) async fn last_files(client: &Client, states: &[FileState], limit: u32) -> Result<Vec<RecentFile>> {
    let names: Vec<&str> = states.iter().map(|state| state.name()).collect();
    let rows = client
        .query(statement!("overview", "last_files"), &[&names, &i64::from(limit)])
        .await
        .map_err(|error| Error::postgres("list the last media files", error))?;
    rows.iter()
        .map(|row| {
            Ok(RecentFile {
                state: FileState::read(row, 0)?,
                path: row.get(1),
                size: row.get::<_, Option<i64>>(2).map(i64::unsigned_abs),
                reason: row.get(3),
                attempts: row.get::<_, i32>(4).unsigned_abs(),
                next_attempt_seconds: row.get(5),
            })
        })
        .collect()
}

/// Seconds since a row named the file that is missing the longest; `None` if none is missing.
///
/// # Errors
/// The source's.
pub(crate) async fn longest_missing(client: &Client) -> Result<Option<f64>> {
    let row = client
        .query_one(statement!("overview", "longest_missing"), &[])
        .await
        .map_err(|error| Error::postgres("ask since when a media file is missing", error))?;
    Ok(row.get(0))
}
