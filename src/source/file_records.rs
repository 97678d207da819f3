//! The state of each file that a row names, in the site's database: it survives the loss of the local store,
//! and every command sees it.

use std::collections::HashMap;

use tokio_postgres::Client;

use crate::error::{Error, Result};
use crate::sql_template::statement;

fn failed(action: &'static str) -> impl Fn(tokio_postgres::Error) -> Error {
    move |error| Error::postgres(format!("{action} the state of media files"), error)
}

/// Why a file waits that may still be written.
pub(crate) const SETTLING: &str = "the file was written a moment ago";

/// Why a video waits if videos are not uploaded.
pub(crate) const NO_VIDEOS: &str = "videos are not uploaded (files.upload_videos = false)";

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

/// Where the cloud has a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileAddress {
    pub(crate) url: String,
    /// The path on the server, if it returned one.
    pub(crate) path: Option<String>,
}

/// The addresses of those of the files that have one, by their paths.
pub(crate) async fn addresses(client: &Client, paths: &[String]) -> Result<HashMap<String, FileAddress>> {
    read_addresses(client, statement!("files", "urls"), paths).await
}

/// The same, after every transaction that is recording one of these files has ended.
pub(crate) async fn settled_addresses(
    client: &Client,
    paths: &[String],
) -> Result<HashMap<String, FileAddress>> {
    read_addresses(client, statement!("files", "settled_urls"), paths).await
}

async fn read_addresses(
    client: &Client,
    statement: &str,
    paths: &[String],
) -> Result<HashMap<String, FileAddress>> {
    if paths.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = client
        .query(statement, &[&paths])
        .await
        .map_err(|error| Error::postgres("read the URLs of media files", error))?;
    Ok(rows
        .iter()
        .filter_map(|row| {
            let address = FileAddress {
                url: row.get::<_, Option<String>>(1)?,
                path: row.get(2),
            };
            Some((row.get(0), address))
        })
        .collect())
}

/// Files that rows name, a list for each column.
#[derive(Debug, Default)]
pub(crate) struct NamedFiles<'a> {
    /// Below the media root.
    pub(crate) paths: Vec<String>,
    /// The upload directories.
    pub(crate) directories: Vec<&'a str>,
    /// The rows, by entity and key.
    pub(crate) entities: Vec<&'a str>,
    pub(crate) keys: Vec<&'a str>,
}

/// Notes files that rows name. Returns whether one of them is new.
pub(crate) async fn note_named(client: &Client, files: &NamedFiles<'_>) -> Result<bool> {
    let row = client
        .query_one(
            statement!("files", "note_named"),
            &[&files.paths, &files.directories, &files.entities, &files.keys],
        )
        .await
        .map_err(|error| Error::postgres("note the files that rows name", error))?;
    Ok(row.get::<_, i64>(0) > 0)
}

/// Notes which rows name which files.
pub(crate) async fn note_references(client: &Client, files: &NamedFiles<'_>) -> Result<()> {
    client
        .execute(
            statement!("files", "note_references"),
            &[&files.paths, &files.entities, &files.keys],
        )
        .await
        .map_err(|error| Error::postgres("note the rows that name files", error))?;
    Ok(())
}

/// Files that are due, at most `limit`, without those that are `busy`.
pub(crate) async fn due(client: &Client, busy: &[&str], limit: i64) -> Result<Vec<PendingFile>> {
    let rows = client
        .query(statement!("files", "due"), &[&busy, &limit])
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
pub(crate) async fn next_due(client: &Client, busy: &[&str]) -> Result<Option<f64>> {
    let row = client
        .query_one(statement!("files", "next_due"), &[&busy])
        .await
        .map_err(failed("read"))?;
    Ok(row.get(0))
}

/// Locks the files' records in the order of their paths, as everyone does who locks several. In the caller's
/// transaction.
pub(crate) async fn lock(client: &Client, paths: &[&str]) -> Result<()> {
    client
        .execute(statement!("files", "lock"), &[&paths])
        .await
        .map_err(failed("lock"))?;
    Ok(())
}

/// A file that is tried again later, or is refused.
#[derive(Debug)]
pub(crate) struct DeferredFile<'a> {
    pub(crate) path: &'a str,
    pub(crate) state: &'static str,
    pub(crate) why: &'a str,
    /// When it is tried again.
    pub(crate) seconds: f64,
    /// Whether it counts as an attempt.
    pub(crate) counts: bool,
}

/// Records states, reasons, and when the files are tried again. In the caller's transaction.
pub(crate) async fn defer(client: &Client, files: &[DeferredFile<'_>]) -> Result<()> {
    client
        .execute(
            statement!("files", "defer"),
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
pub(crate) struct UploadedFile<'a> {
    pub(crate) path: &'a str,
    pub(crate) stamp: FileStamp,
    /// In hexadecimal.
    pub(crate) hash: String,
    pub(crate) url: &'a str,
    /// The path on the server, if it returned one.
    pub(crate) remote_path: Option<&'a str>,
}

/// Records uploads. In the caller's transaction.
pub(crate) async fn record_uploads(client: &Client, files: &[UploadedFile<'_>]) -> Result<()> {
    client
        .execute(
            statement!("files", "record_uploads"),
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
pub(crate) async fn part_clashing(client: &Client, paths: &[&str]) -> Result<Vec<String>> {
    let rows = client
        .query(statement!("files", "part_clashing"), &[&paths])
        .await
        .map_err(failed("compare"))?;
    let clashing: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    if !clashing.is_empty() {
        client
            .execute(statement!("files", "upload_again"), &[&clashing])
            .await
            .map_err(failed("write"))?;
    }
    Ok(clashing)
}

/// The rows that name the files, each once: entity and key.
pub(crate) async fn references(client: &Client, paths: &[&str]) -> Result<Vec<(String, String)>> {
    let rows = client
        .query(statement!("files", "references"), &[&paths])
        .await
        .map_err(failed("read"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Those of the paths that are known, each with its state and its stamp at its upload.
pub(crate) async fn known(
    client: &Client,
    paths: &[String],
) -> Result<Vec<(String, String, Option<FileStamp>)>> {
    let rows = client
        .query(statement!("files", "known"), &[&paths])
        .await
        .map_err(failed("read"))?;
    Ok(rows.iter().map(known_row).collect())
}

/// The uploaded files after `after`, in the order of their paths.
pub(crate) async fn uploaded_after(
    client: &Client,
    after: &str,
    limit: i64,
) -> Result<Vec<(String, String, Option<FileStamp>)>> {
    let rows = client
        .query(statement!("files", "uploaded_after"), &[&after, &limit])
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
pub(crate) async fn make_due(client: &Client, paths: &[String], seconds: f64) -> Result<()> {
    client
        .execute(statement!("files", "make_due"), &[&paths, &seconds])
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
        .execute(statement!("files", "make_all_due"), &[&refused_too])
        .await
        .map_err(failed("write"))?;
    Ok(())
}

/// Makes every uploaded file due: another cloud has none of them.
pub(crate) async fn upload_all_again(client: &Client) -> Result<()> {
    client
        .execute(statement!("files", "upload_all_again"), &[])
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
        .query(statement!("files", "counts"), &[&SETTLING])
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
            statement!("files", "not_taken"),
            &[&limit, &[NO_VIDEOS, SETTLING].as_slice()],
        )
        .await
        .map_err(failed("read"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}
