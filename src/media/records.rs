//! What is known of each file that a row names, in the source database: the state outlives the local store, and every
//! command sees it.

use tokio_postgres::Client;

use crate::error::{Error, Result};

fn failed(action: &'static str) -> impl Fn(tokio_postgres::Error) -> Error {
    move |error| Error::postgres(format!("{action} the state of media files"), error)
}

/// A file to upload.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Below the media root.
    pub path: String,
    /// The upload directory.
    pub directory: String,
    /// Failed attempts so far.
    pub attempts: i32,
}

/// What a file looked like when it was uploaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Bytes.
    pub size: i64,
    /// Microseconds since 1970.
    pub modified_us: i64,
}

/// How many files are in which state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Waiting for their upload.
    pub waiting: u64,
    /// Named by a row and not there.
    pub missing: u64,
    /// Uploaded.
    pub uploaded: u64,
    /// Refused by the cloud, or not to be opened.
    pub refused: u64,
    /// Bytes uploaded.
    pub bytes: u64,
}

/// Files whose turn has come, at most `limit`.
pub(super) async fn due(client: &Client, limit: i64) -> Result<Vec<Wanted>> {
    let rows = client
        .query(
            "select path, directory, attempts from cloud_sync.media \
             where state in ('waiting', 'missing') and next_attempt <= now() order by next_attempt limit $1",
            &[&limit],
        )
        .await
        .map_err(failed("read"))?;
    Ok(rows
        .iter()
        .map(|row| Wanted {
            path: row.get(0),
            directory: row.get(1),
            attempts: row.get(2),
        })
        .collect())
}

/// Seconds until the next file's turn; none where none waits.
pub(super) async fn next_due(client: &Client) -> Result<Option<f64>> {
    let row = client
        .query_one(
            "select extract(epoch from min(next_attempt) - now())::float8 from cloud_sync.media \
             where state in ('waiting', 'missing')",
            &[],
        )
        .await
        .map_err(failed("read"))?;
    Ok(row.get(0))
}

/// Puts a file off: its state, why, and when it is tried again.
pub(super) async fn put_off(
    client: &Client,
    path: &str,
    state: &str,
    error: &str,
    seconds: f64,
    counts: bool,
) -> Result<()> {
    client
        .execute(
            "update cloud_sync.media set state = $2, error = $3, attempts = attempts + $5, \
             next_attempt = now() + make_interval(secs => $4) where path = $1",
            &[&path, &state, &error, &seconds, &i32::from(counts)],
        )
        .await
        .map_err(failed("write"))?;
    Ok(())
}

/// Writes an upload down. In the caller's transaction.
pub(super) async fn uploaded(client: &Client, path: &str, look: Look, hash: &str, url: &str) -> Result<()> {
    client
        .execute(
            "update cloud_sync.media set state = 'uploaded', size = $2, modified_us = $3, hash = $4, url = $5, \
             error = null, attempts = 0, uploaded_at = now() where path = $1",
            &[&path, &look.size, &look.modified_us, &hash, &url],
        )
        .await
        .map_err(failed("write"))?;
    Ok(())
}

/// The rows that name the file, as entity and key.
pub(super) async fn references(client: &Client, path: &str) -> Result<Vec<(String, String)>> {
    let rows = client
        .query(
            "select entity, key from cloud_sync.media_ref where path = $1",
            &[&path],
        )
        .await
        .map_err(failed("read"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Which of the paths are known, with their state and the look of their upload.
pub(super) async fn known(client: &Client, paths: &[String]) -> Result<Vec<(String, String, Option<Look>)>> {
    let rows = client
        .query(
            "select path, state, size, modified_us from cloud_sync.media where path = any($1)",
            &[&paths],
        )
        .await
        .map_err(failed("read"))?;
    Ok(rows.iter().map(known_row).collect())
}

/// The uploaded files after `after`, in the order of their paths.
pub(super) async fn uploaded_after(
    client: &Client,
    after: &str,
    limit: i64,
) -> Result<Vec<(String, String, Option<Look>)>> {
    let rows = client
        .query(
            "select path, state, size, modified_us from cloud_sync.media \
             where path > $1 and state = 'uploaded' order by path limit $2",
            &[&after, &limit],
        )
        .await
        .map_err(failed("read"))?;
    Ok(rows.iter().map(known_row).collect())
}

fn known_row(row: &tokio_postgres::Row) -> (String, String, Option<Look>) {
    let look = match (row.get(2), row.get(3)) {
        (Some(size), Some(modified_us)) => Some(Look { size, modified_us }),
        _ => None,
    };
    (row.get(0), row.get(1), look)
}

/// Gives files their turn after `seconds`, whatever their state was: they appeared or changed.
pub(super) async fn call(client: &Client, paths: &[String], seconds: f64) -> Result<()> {
    client
        .execute(
            "update cloud_sync.media set state = 'waiting', attempts = 0, \
             next_attempt = now() + make_interval(secs => $2) where path = any($1)",
            &[&paths, &seconds],
        )
        .await
        .map_err(failed("write"))?;
    Ok(())
}

/// Gives every file that is not uploaded its turn now: at start, and when someone asks for a sync.
///
/// # Errors
/// The source's.
pub async fn call_all(client: &Client, refused_too: bool) -> Result<()> {
    client
        .execute(
            "update cloud_sync.media set state = 'waiting', next_attempt = now() \
             where state in ('waiting', 'missing') or ($1 and state = 'refused')",
            &[&refused_too],
        )
        .await
        .map_err(failed("write"))?;
    Ok(())
}

/// How many files are in which state.
///
/// # Errors
/// The source's.
pub async fn counts(client: &Client) -> Result<Counts> {
    let rows = client
        .query(
            "select state, count(*), coalesce(sum(size), 0)::bigint from cloud_sync.media group by state",
            &[],
        )
        .await
        .map_err(failed("count"))?;
    let mut counts = Counts::default();
    for row in &rows {
        let number = row.get::<_, i64>(1) as u64;
        match row.get(0) {
            "waiting" => counts.waiting = number,
            "missing" => counts.missing = number,
            "uploaded" => {
                counts.uploaded = number;
                counts.bytes = row.get::<_, i64>(2) as u64;
            }
            _ => counts.refused = number,
        }
    }
    Ok(counts)
}

/// Files that are not uploaded and why, at most `limit`.
///
/// # Errors
/// The source's.
pub async fn troubles(client: &Client, limit: i64) -> Result<Vec<(String, String, Option<String>)>> {
    let rows = client
        .query(
            "select path, state, error from cloud_sync.media where state <> 'uploaded' order by path limit $1",
            &[&limit],
        )
        .await
        .map_err(failed("read"))?;
    Ok(rows
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2)))
        .collect())
}
