//! The state of each file that a row names, in the site's database: it survives the loss of the local store,
//! and every command sees it.

use tokio_postgres::Client;

use crate::error::{Error, Result};

fn failed(action: &'static str) -> impl Fn(tokio_postgres::Error) -> Error {
    move |error| Error::postgres(format!("{action} the state of media files"), error)
}

/// Why a file waits that may still be written.
pub(super) const SETTLING: &str = "the file was written a moment ago";

/// Why a video waits if videos are not uploaded.
pub(super) const NO_VIDEOS: &str = "videos are not uploaded (files.upload_videos = false)";

/// A file to upload.
#[derive(Debug, Clone)]
pub struct PendingFile {
    /// Below the media root.
    pub path: String,
    /// The upload directory.
    pub directory: String,
    /// Failed attempts so far.
    pub attempts: i32,
    /// The name that it is uploaded under, if not its own.
    pub sent_as: Option<String>,
}

/// What a file looked like when it was uploaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStamp {
    /// Bytes.
    pub size: i64,
    /// Microseconds since 1970.
    pub modified_us: i64,
}

/// How many files are in which state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FileStateCounts {
    /// Waiting for their upload.
    pub waiting: u64,
    /// Those of them that are due now or in a moment; the others are empty, or are not to be uploaded.
    pub soon: u64,
    /// Refused by the cloud, or failing there while it takes others: tried again less and less often.
    pub failing: u64,
    /// Named by a row, and missing in the media root.
    pub missing: u64,
    /// Uploaded.
    pub uploaded: u64,
    /// Never opened: outside the media root, or no regular file.
    pub refused: u64,
    /// Bytes uploaded.
    pub bytes: u64,
}

/// Files that are due, at most `limit`, without those that are `busy`.
pub(super) async fn due(client: &Client, busy: &[&str], limit: i64) -> Result<Vec<PendingFile>> {
    let rows = client
        .query(
            "select path, directory, attempts, sent_as from cloud_sync.media \
             where state in ('waiting', 'failing', 'missing') and next_attempt <= now() and path <> all($1) \
             order by next_attempt limit $2",
            &[&busy, &limit],
        )
        .await
        .map_err(failed("read"))?;
    Ok(rows
        .iter()
        .map(|row| PendingFile {
            path: row.get(0),
            directory: row.get(1),
            attempts: row.get(2),
            sent_as: row.get(3),
        })
        .collect())
}

/// Seconds until the next file is due that is not `busy`; `None` if no file waits.
pub(super) async fn next_due(client: &Client, busy: &[&str]) -> Result<Option<f64>> {
    let row = client
        .query_one(
            "select extract(epoch from min(next_attempt) - now())::float8 from cloud_sync.media \
             where state in ('waiting', 'failing', 'missing') and path <> all($1)",
            &[&busy],
        )
        .await
        .map_err(failed("read"))?;
    Ok(row.get(0))
}

/// Locks the files' records in the order of their paths, as everyone does who locks several. In the caller's
/// transaction.
pub(super) async fn lock(client: &Client, paths: &[&str]) -> Result<()> {
    client
        .execute(
            "select from cloud_sync.media where path = any($1) order by path for no key update",
            &[&paths],
        )
        .await
        .map_err(failed("lock"))?;
    Ok(())
}

/// A file that is tried again later, or is refused.
#[derive(Debug)]
pub(super) struct DeferredFile<'a> {
    pub(super) path: &'a str,
    pub(super) state: &'static str,
    pub(super) why: &'a str,
    /// When it is tried again.
    pub(super) seconds: f64,
    /// Whether it counts as an attempt.
    pub(super) counts: bool,
}

/// Records states, reasons, and when the files are tried again. In the caller's transaction.
pub(super) async fn defer(client: &Client, files: &[DeferredFile<'_>]) -> Result<()> {
    client
        .execute(
            "update cloud_sync.media m set state = f.state, error = f.error, \
             attempts = m.attempts + f.counts::integer, \
             next_attempt = now() + make_interval(secs => f.seconds) \
             from unnest($1::text[], $2::text[], $3::text[], $4::float8[], $5::boolean[]) f (path, state, \
             error, seconds, counts) where m.path = f.path",
            &[
                &files.iter().map(|file| file.path).collect::<Vec<_>>(),
                &files.iter().map(|file| file.state).collect::<Vec<_>>(),
                &files.iter().map(|file| file.why).collect::<Vec<_>>(),
                &files.iter().map(|file| file.seconds).collect::<Vec<_>>(),
                &files.iter().map(|file| file.counts).collect::<Vec<_>>(),
            ],
        )
        .await
        .map_err(failed("write"))?;
    Ok(())
}

/// A file that is uploaded.
#[derive(Debug)]
pub(super) struct UploadedFile<'a> {
    pub(super) path: &'a str,
    pub(super) stamp: FileStamp,
    /// In hexadecimal.
    pub(super) hash: String,
    pub(super) url: &'a str,
    /// The path on the server, if it returned one.
    pub(super) remote_path: Option<&'a str>,
}

/// Records uploads. In the caller's transaction.
pub(super) async fn record_uploads(client: &Client, files: &[UploadedFile<'_>]) -> Result<()> {
    client
        .execute(
            "update cloud_sync.media m set state = 'uploaded', size = f.size, modified_us = f.modified_us, \
             hash = f.hash, \
             url = f.url, remote_path = f.remote_path, error = null, attempts = 0, uploaded_at = now() \
             from unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::text[]) \
             f (path, size, modified_us, hash, url, remote_path) \
             where m.path = f.path",
            &[
                &files.iter().map(|file| file.path).collect::<Vec<_>>(),
                &files.iter().map(|file| file.stamp.size).collect::<Vec<_>>(),
                &files
                    .iter()
                    .map(|file| file.stamp.modified_us)
                    .collect::<Vec<_>>(),
                &files.iter().map(|file| file.hash.as_str()).collect::<Vec<_>>(),
                &files.iter().map(|file| file.url).collect::<Vec<_>>(),
                &files.iter().map(|file| file.remote_path).collect::<Vec<_>>(),
            ],
        )
        .await
        .map_err(failed("write"))?;
    Ok(())
}

/// Makes files due again that share their URL with another file of other content: the server keeps one of
/// them. The newer ones are uploaded under names of their own. In the caller's transaction. Returns their
/// paths.
pub(super) async fn part_clashing(client: &Client, paths: &[&str]) -> Result<Vec<String>> {
    let rows = client
        .query(
            "with clash as ( \
                 select m.path as later, o.path as earlier from cloud_sync.media m \
                 join cloud_sync.media o on md5(o.url) = md5(m.url) and o.url = m.url and o.path <> m.path \
                 and o.hash <> m.hash \
                 where m.path = any($1) and m.state = 'uploaded' and o.state = 'uploaded' \
                 and (o.path <> all($1) or o.path < m.path)), \
             renamed as (update cloud_sync.media m set sent_as = left(md5(m.path), \
             8) || '-' || regexp_replace(m.path, '^.*/', '') \
                         where m.path in (select later from clash) and m.sent_as is null) \
             select path from (select later from clash union select earlier from clash) c (path)",
            &[&paths],
        )
        .await
        .map_err(failed("compare"))?;
    let clashing: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    if !clashing.is_empty() {
        client
            .execute(
                "update cloud_sync.media set state = 'waiting', url = null, remote_path = null, \
                 next_attempt = now(), \
                 error = 'the cloud gave it the address of another file' where path = any($1)",
                &[&clashing],
            )
            .await
            .map_err(failed("write"))?;
    }
    Ok(clashing)
}

/// The rows that name the files, each once: entity and key.
pub(super) async fn references(client: &Client, paths: &[&str]) -> Result<Vec<(String, String)>> {
    let rows = client
        .query(
            "select distinct entity, key from cloud_sync.media_ref where path = any($1)",
            &[&paths],
        )
        .await
        .map_err(failed("read"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Those of the paths that are known, each with its state and its stamp at its upload.
pub(super) async fn known(
    client: &Client,
    paths: &[String],
) -> Result<Vec<(String, String, Option<FileStamp>)>> {
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
) -> Result<Vec<(String, String, Option<FileStamp>)>> {
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

fn known_row(row: &tokio_postgres::Row) -> (String, String, Option<FileStamp>) {
    let stamp = match (row.get(2), row.get(3)) {
        (Some(size), Some(modified_us)) => Some(FileStamp { size, modified_us }),
        _ => None,
    };
    (row.get(0), row.get(1), stamp)
}

/// Makes files due in `seconds`, whatever their state is: they appeared or changed.
pub(super) async fn make_due(client: &Client, paths: &[String], seconds: f64) -> Result<()> {
    client
        .execute(
            "with seen as (select path from cloud_sync.media where path = any($1) \
             order by path for no key update) \
             update cloud_sync.media set state = 'waiting', attempts = 0, \
             next_attempt = now() + make_interval(secs => $2) where path in (select path from seen)",
            &[&paths, &seconds],
        )
        .await
        .map_err(failed("write"))?;
    Ok(())
}

/// Makes every file due that is not uploaded: at the start, and at a sync.
///
/// # Errors
/// The source's.
pub async fn make_all_due(client: &Client, refused_too: bool) -> Result<()> {
    client
        .execute(
            "with late as (select path from cloud_sync.media \
                           where state in ('waiting', 'failing', 'missing') or ($1 and state = 'refused') \
                           order by path for no key update) \
             update cloud_sync.media set state = 'waiting', next_attempt = now() where path in (select path \
             from late)",
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
pub async fn counts(client: &Client) -> Result<FileStateCounts> {
    let rows = client
        .query(
            "select state, count(*), coalesce(sum(size), 0)::bigint, \
                    count(*) filter (where next_attempt <= now() + interval '3 s' or error = $1) \
             from cloud_sync.media group by state",
            &[&SETTLING],
        )
        .await
        .map_err(failed("count"))?;
    let mut counts = FileStateCounts::default();
    for row in &rows {
        let number = row.get::<_, i64>(1) as u64;
        match row.get(0) {
            "waiting" => {
                counts.waiting = number;
                counts.soon = row.get::<_, i64>(3) as u64;
            }
            "failing" => counts.failing = number,
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

/// Files that the cloud does not take or that cannot be sent, at most `limit`, each with the reason; without
/// videos that are not to be uploaded.
///
/// # Errors
/// The source's.
pub async fn not_taken(client: &Client, limit: i64) -> Result<Vec<(String, String)>> {
    let rows = client
        .query(
            "select path, coalesce(error, 'refused') from cloud_sync.media \
             where state in ('failing', 'refused') \
             or (state = 'waiting' and error <> all($2) and next_attempt > now() + interval '3 s') \
             order by path limit $1",
            &[&limit, &[NO_VIDEOS, SETTLING].as_slice()],
        )
        .await
        .map_err(failed("read"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}
