//! The files that rows name, as they are shown to people.

use jiff::Timestamp;
use serde::Serialize;
use tokio_postgres::Client;

use super::file_records;
use super::file_state::FileState;
use crate::error::{Error, Result};
use crate::sql_template::statement;

/// A file as it is shown to people.
#[derive(Debug, Clone, Serialize)]
pub struct FileRecord {
    /// Below the media root, or as the row names it.
    pub path: String,
    /// The upload directory.
    pub directory: String,
    /// See [`FileState`].
    pub state: &'static str,
    /// Bytes, if it was ever found.
    pub size: Option<i64>,
    /// The hash of what the cloud has, in hexadecimal.
    pub hash: Option<String>,
    /// Its URL in the cloud.
    pub url: Option<String>,
    /// Why it is not uploaded.
    pub reason: Option<String>,
    /// Failed attempts since the last success.
    pub attempts: i32,
    /// Seconds until it is tried again; `None` if it is not tried by time.
    pub next_attempt_seconds: Option<f64>,
    /// When it was last uploaded.
    pub uploaded_at: Option<Timestamp>,
}

/// Files in these states whose paths come after `after`, in order, at most `limit`.
///
/// # Errors
/// The source's.
pub async fn list(client: &Client, states: &[FileState], after: &str, limit: i64) -> Result<Vec<FileRecord>> {
    read_list(client, states, after, limit, None).await
}

/// What is known of one file; `None` if no row names it.
///
/// # Errors
/// The source's.
pub async fn find(client: &Client, path: &str) -> Result<Option<FileRecord>> {
    let found = read_list(client, &FileState::ALL, "", 1, Some(path)).await?;
    Ok(found.into_iter().next())
}

/// The rows that name the file: entity and key.
///
/// # Errors
/// The source's.
pub async fn naming_rows(client: &Client, path: &str) -> Result<Vec<(String, String)>> {
    file_records::references(client, &[path]).await
}

async fn read_list(
    client: &Client,
    states: &[FileState],
    after: &str,
    limit: i64,
    path: Option<&str>,
) -> Result<Vec<FileRecord>> {
    let names: Vec<&str> = states.iter().map(|state| state.name()).collect();
    let rows = client
        .query(statement!("files", "list"), &[&names, &after, &limit, &path])
        .await
        .map_err(|error| Error::postgres("list media files", error))?;
    rows.iter()
        .map(|row| {
            let uploaded_at = row.get::<_, Option<f64>>(9);
            Ok(FileRecord {
                path: row.get(0),
                directory: row.get(1),
                state: FileState::read(row, 2)?.name(),
                size: row.get(3),
                hash: row.get(4),
                url: row.get(5),
                reason: row.get(6),
                attempts: row.get(7),
                next_attempt_seconds: row.get(8),
                uploaded_at: uploaded_at
                    .and_then(|at| Timestamp::from_microsecond((at * 1_000_000.0) as i64).ok()),
            })
        })
        .collect()
}
