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
    /// How far its upload has come, if one in parts is under way.
    pub upload: Option<UploadStatus>,
}

/// How far an upload in parts has come, as it was noted last.
#[derive(Debug, Clone, Serialize)]
pub struct UploadStatus {
    /// Bytes that the cloud has.
    pub bytes_sent: i64,
    /// Bytes of the file.
    pub bytes_total: i64,
    /// From 0 to 100.
    pub percent: f64,
    /// Bytes a second, of late; `None` if it is not known, or nothing was noted of late.
    pub bytes_per_second: Option<i64>,
    /// Seconds that the rest takes at that rate.
    pub seconds_left: Option<f64>,
    /// Seconds since it was noted.
    pub noted_seconds_ago: f64,
}

/// What was noted longer ago than so many seconds tells no rate: the upload may rest.
const RECENT: f64 = 180.0;

impl UploadStatus {
    fn read(row: &tokio_postgres::Row) -> Self {
        let (bytes_sent, bytes_total): (i64, i64) = (row.get(10), row.get(11));
        let noted_seconds_ago: f64 = row.get(13);
        let rate: Option<i64> = row.get(12);
        let rate = rate.filter(|&rate| rate > 0 && noted_seconds_ago < RECENT);
        let left = (bytes_total - bytes_sent).max(0) as f64;
        Self {
            bytes_sent,
            bytes_total,
            percent: (bytes_sent as f64 / (bytes_total.max(1)) as f64 * 1000.0).round() / 10.0,
            bytes_per_second: rate,
            seconds_left: rate.map(|rate| (left / rate as f64).round()),
            noted_seconds_ago: noted_seconds_ago.round(),
        }
    }
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
                upload: row.get::<_, bool>(14).then(|| UploadStatus::read(row)),
            })
        })
        .collect()
}
