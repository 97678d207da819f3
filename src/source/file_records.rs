//! The state of each file that a row names, in the site's database: it survives the loss of the local store,
//! and every command sees it.

use std::collections::{HashMap, HashSet};

use tokio_postgres::Client;

use super::file_state::FileState;
use crate::error::{Error, Result};
use crate::sql_template::statement;

pub(super) fn failed(action: &'static str) -> impl Fn(tokio_postgres::Error) -> Error {
    move |error| Error::postgres(format!("{action} the state of media files"), error)
}

/// Why a file waits that may still be written.
pub(crate) const SETTLING: &str = "the file was written a moment ago";

/// Why a video waits if videos are not uploaded.
pub(crate) const NO_VIDEOS: &str = "videos are not uploaded (files.upload_videos = false)";

/// Why a file waits until it is old enough.
pub(crate) const TOO_NEW: &str = "it goes when it is old enough (after of its file column)";

/// Why a file waits for a time of the week.
pub(crate) const NOT_NOW: &str = "it goes at other times (when of its file column)";

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
    /// What the cloud has of it, if it was uploaded before.
    pub confirmed: Option<ConfirmedContent>,
    /// What the cloud had of it, if it is to be asked whether it still has that.
    pub(crate) to_confirm: Option<RecordedContent>,
}

/// The content of a file that the cloud had.
#[derive(Debug, Clone)]
pub(crate) struct RecordedContent {
    /// BLAKE3, in hexadecimal.
    pub(crate) hash: String,
    pub(crate) url: String,
    /// How the file looked.
    pub(crate) stamp: KnownStamp,
}

/// The content of a file that the cloud has confirmed.
#[derive(Debug, Clone)]
pub struct ConfirmedContent {
    /// Bytes.
    pub size: i64,
    /// BLAKE3, in hexadecimal.
    pub hash: String,
}

/// What tells that a file was not written since: a file that is rewritten in place has another time of change,
/// also if its size and its time of modification were put back.
///
/// The device is not part of it: a file system that was mounted again may have another number, and would be
/// read again as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStamp {
    /// Bytes.
    pub size: i64,
    /// The time of modification, in microseconds since 1970; negative before.
    pub modified_us: i64,
    /// The time of change (`ctime`), likewise.
    pub changed_us: i64,
    /// The number of its inode.
    pub inode: i64,
}

/// What is recorded of a file, to compare with the file.
#[derive(Debug, Clone)]
pub(crate) struct KnownFile {
    pub(crate) path: String,
    pub(crate) state: FileState,
    /// How it looked at its upload; `None` if it was not uploaded.
    pub(crate) stamp: Option<KnownStamp>,
}

/// A recorded stamp: the time of change and the inode are not known of a file that an older program uploaded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KnownStamp {
    pub(crate) size: i64,
    modified_us: i64,
    changed_us: Option<i64>,
    inode: Option<i64>,
}

impl KnownStamp {
    /// Whether a file that looks like this now may have been written since.
    pub(crate) fn differs(&self, now: &FileStamp) -> bool {
        self.size != now.size
            || self.modified_us != now.modified_us
            || self.changed_us.is_some_and(|changed| changed != now.changed_us)
            || self.inode.is_some_and(|inode| inode != now.inode)
    }
}

/// How many files are in which state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileStateCounts {
    /// Waiting for their upload.
    pub waiting: u64,
    /// Those of them that are due now or in a moment; the others are empty, being written, or not to be
    /// uploaded.
    pub soon: u64,
    /// Not taken by the cloud while it takes others, or not readable: tried again less and less often.
    pub failing: u64,
    /// Named by a row, and missing in the media root.
    pub missing: u64,
    /// Uploaded.
    pub uploaded: u64,
    /// Never opened: outside the media root, or no regular file.
    pub refused: u64,
    /// Bytes uploaded.
    pub bytes: u64,
    /// Bytes still to be sent of files that wait or fail, without those that the settings hold back. A file that
    /// was not looked at yet counts as the others on average.
    pub bytes_to_send: u64,
    /// One that fails, is refused or is missing.
    pub example: Option<String>,
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

/// Rows of a delivered batch: what they named before and do not name now is forgotten.
#[derive(Debug, Default)]
pub(crate) struct NamingRows<'a> {
    /// By entity and key.
    pub(crate) entities: Vec<&'a str>,
    pub(crate) keys: Vec<&'a str>,
    /// Entities that were truncated.
    pub(crate) truncated: Vec<&'a str>,
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

/// Notes which rows name which files, and forgets what they no longer name: `rows` are those of a batch,
/// `files` what they name now.
pub(crate) async fn note_references(
    client: &Client,
    rows: &NamingRows<'_>,
    files: &NamedFiles<'_>,
) -> Result<()> {
    let failed = |error| Error::postgres("note the rows that name files", error);
    if !rows.truncated.is_empty() {
        client
            .execute(statement!("files", "forget_all_references"), &[&rows.truncated])
            .await
            .map_err(failed)?;
    }
    if !rows.keys.is_empty() {
        let forgotten = client
            .query(
                statement!("files", "note_references"),
                &[
                    &rows.entities,
                    &rows.keys,
                    &files.paths,
                    &files.entities,
                    &files.keys,
                ],
            )
            .await
            .map_err(failed)?;
        forget_unnamed_of(client, &forgotten).await?;
    }
    Ok(())
}

/// Forgets those of the files, which stand in the first column, that no row names any more.
async fn forget_unnamed_of(client: &Client, forgotten: &[tokio_postgres::Row]) -> Result<()> {
    if forgotten.is_empty() {
        return Ok(());
    }
    let paths: Vec<&str> = forgotten.iter().map(|row| row.get(0)).collect();
    client
        .execute(statement!("files", "forget_unnamed_of"), &[&paths])
        .await
        .map_err(failed("forget"))?;
    Ok(())
}

/// Forgets what rows name that are purged here and kept in the cloud, as far as it cannot be sent.
pub(crate) async fn forget_purged(client: &Client, entities: &[&str], keys: &[&str]) -> Result<()> {
    let forgotten = client
        .query(statement!("files", "forget_purged"), &[&entities, &keys])
        .await
        .map_err(failed("forget"))?;
    forget_unnamed_of(client, &forgotten).await
}

/// Forgets files that no row names. Returns how many.
pub(crate) async fn forget_unnamed(client: &Client) -> Result<u64> {
    client
        .execute(statement!("files", "forget_unnamed"), &[])
        .await
        .map_err(failed("forget"))
}

/// How many files are taken at a time, by their size.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DueLimits {
    /// Small files at most, and files of unknown size.
    pub(crate) small: i64,
    /// Large files at most.
    pub(crate) large: i64,
    /// A file of so many bytes is large.
    pub(crate) large_from: i64,
}

/// Files that are due, without those that are `busy`.
pub(crate) async fn due(client: &Client, busy: &[String], limits: DueLimits) -> Result<Vec<PendingFile>> {
    let rows = client
        .query(
            statement!("files", "due"),
            &[&busy, &limits.small, &limits.large, &limits.large_from],
        )
        .await
        .map_err(failed("read"))?;
    Ok(rows
        .iter()
        .map(|row| {
            let mut pending = PendingFile {
                path: row.get(0),
                directory: row.get(1),
                attempts: row.get(2),
                sent_as: row.get(3),
                confirmed: None,
                to_confirm: None,
            };
            if let (Some(size), Some(hash), Some(url)) = (row.get(4), row.get(5), row.get(6)) {
                let stamp = KnownStamp {
                    size,
                    modified_us: row.get::<_, Option<i64>>(7).unwrap_or_default(),
                    changed_us: row.get(8),
                    inode: row.get(9),
                };
                if row.get(10) {
                    pending.confirmed = Some(ConfirmedContent { size, hash });
                } else {
                    pending.to_confirm = Some(RecordedContent { hash, url, stamp });
                }
            }
            pending
        })
        .collect())
}

/// Seconds until the next file is due that is not `busy`; `None` if no file waits. Files of `no_large_from` or
/// more bytes are left out.
pub(crate) async fn next_due(
    client: &Client,
    busy: &[String],
    no_large_from: Option<i64>,
) -> Result<Option<f64>> {
    let row = client
        .query_one(statement!("files", "next_due"), &[&busy, &no_large_from])
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
    pub(crate) state: FileState,
    pub(crate) why: &'a str,
    /// When it is tried again.
    pub(crate) seconds: f64,
    /// Whether it counts as an attempt.
    pub(crate) counts: bool,
    /// Its size, if it was found.
    pub(crate) size: Option<i64>,
}

/// Records states, reasons, and when the files are tried again. In the caller's transaction.
pub(crate) async fn defer(client: &Client, files: &[DeferredFile<'_>]) -> Result<()> {
    client
        .execute(
            statement!("files", "defer"),
            &[
                &files.iter().map(|file| file.path).collect::<Vec<_>>(),
                &files.iter().map(|file| file.state.name()).collect::<Vec<_>>(),
                &files.iter().map(|file| file.why).collect::<Vec<_>>(),
                &files.iter().map(|file| file.seconds).collect::<Vec<_>>(),
                &files.iter().map(|file| file.counts).collect::<Vec<_>>(),
                &files.iter().map(|file| file.size).collect::<Vec<_>>(),
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
    /// When the URL is renewed, in seconds since 1970; `None` if it holds for ever.
    pub(crate) renew_at: Option<f64>,
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
                &files.iter().map(|file| file.stamp.changed_us).collect::<Vec<_>>(),
                &files.iter().map(|file| file.stamp.inode).collect::<Vec<_>>(),
                &files.iter().map(|file| file.hash.as_str()).collect::<Vec<_>>(),
                &files.iter().map(|file| file.url).collect::<Vec<_>>(),
                &files.iter().map(|file| file.remote_path).collect::<Vec<_>>(),
                &files.iter().map(|file| file.renew_at).collect::<Vec<_>>(),
            ],
        )
        .await
        .map_err(failed("write"))?;
    Ok(())
}

/// Records the stamps of files whose content is the one that was uploaded. In the caller's transaction.
pub(crate) async fn record_stamps(client: &Client, files: &[(&str, FileStamp)]) -> Result<()> {
    client
        .execute(
            statement!("files", "record_stamps"),
            &[
                &files.iter().map(|(path, _)| *path).collect::<Vec<_>>(),
                &files
                    .iter()
                    .map(|(_, stamp)| stamp.modified_us)
                    .collect::<Vec<_>>(),
                &files
                    .iter()
                    .map(|(_, stamp)| stamp.changed_us)
                    .collect::<Vec<_>>(),
                &files.iter().map(|(_, stamp)| stamp.inode).collect::<Vec<_>>(),
            ],
        )
        .await
        .map_err(failed("write"))?;
    Ok(())
}

/// Those of the files of which another one of the same size was uploaded to the same directory: the cloud may
/// have their content.
pub(crate) async fn of_known_size(
    client: &Client,
    paths: &[&str],
    directories: &[&str],
    sizes: &[i64],
) -> Result<HashSet<String>> {
    if paths.is_empty() {
        return Ok(HashSet::new());
    }
    let rows = client
        .query(
            statement!("files", "of_known_size"),
            &[&paths, &directories, &sizes],
        )
        .await
        .map_err(failed("read"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
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

/// Those of the paths that are known.
pub(crate) async fn known(client: &Client, paths: &[String]) -> Result<Vec<KnownFile>> {
    let rows = client
        .query(statement!("files", "known"), &[&paths])
        .await
        .map_err(failed("read"))?;
    rows.iter().map(known_file).collect()
}

/// The files after `after`, in the order of their paths.
pub(crate) async fn known_after(client: &Client, after: &str, limit: i64) -> Result<Vec<KnownFile>> {
    let rows = client
        .query(statement!("files", "known_after"), &[&after, &limit])
        .await
        .map_err(failed("read"))?;
    rows.iter().map(known_file).collect()
}

fn known_file(row: &tokio_postgres::Row) -> Result<KnownFile> {
    let stamp = match (row.get(2), row.get(3)) {
        (Some(size), Some(modified_us)) => Some(KnownStamp {
            size,
            modified_us,
            changed_us: row.get(4),
            inode: row.get(5),
        }),
        _ => None,
    };
    Ok(KnownFile {
        path: row.get(0),
        state: FileState::read(row, 1)?,
        stamp,
    })
}

/// Makes files due in `seconds`, whatever their state is: they appeared or changed.
pub(crate) async fn make_due(client: &Client, paths: &[String], seconds: f64) -> Result<()> {
    client
        .execute(statement!("files", "make_due"), &[&paths, &seconds])
        .await
        .map_err(failed("write"))?;
    Ok(())
}

/// Makes every file due that waits or fails, and with `refused_too` those that were refused: at the start, and at
/// a sync.
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

/// How many files are in which state.
///
/// # Errors
/// The source's.
pub async fn counts(client: &Client) -> Result<FileStateCounts> {
    let rows = client
        .query(
            statement!("files", "counts"),
            &[&SETTLING, &[NO_VIDEOS, TOO_NEW, NOT_NOW].as_slice()],
        )
        .await
        .map_err(failed("count"))?;
    let mut counts = FileStateCounts::default();
    let (mut known, mut of_unknown_size) = (0, 0);
    for row in &rows {
        let number = row.get::<_, i64>(1) as u64;
        let state = FileState::read(row, 0)?;
        let is_worse = match state {
            FileState::Failing => true,
            FileState::Refused | FileState::Missing => counts.example.is_none(),
            FileState::Waiting | FileState::Uploaded => false,
        };
        if is_worse {
            counts.example = row.get(4);
        }
        counts.bytes_to_send += row.get::<_, i64>(5) as u64;
        known += row.get::<_, i64>(6) as u64;
        of_unknown_size += row.get::<_, i64>(7) as u64;
        match state {
            FileState::Waiting => {
                counts.waiting = number;
                counts.soon = row.get::<_, i64>(3) as u64;
            }
            FileState::Failing => counts.failing = number,
            FileState::Missing => counts.missing = number,
            FileState::Uploaded => {
                counts.uploaded = number;
                counts.bytes = row.get::<_, i64>(2) as u64;
            }
            FileState::Refused => counts.refused = number,
        }
    }
    let on_average = match (known, counts.uploaded) {
        (0, 0) => 0,
        (0, uploaded) => counts.bytes / uploaded,
        (known, _) => counts.bytes_to_send / known,
    };
    counts.bytes_to_send += of_unknown_size * on_average;
    Ok(counts)
}

/// Files that are missing, that the cloud does not take or that cannot be sent, at most `limit`, each with the
/// reason; without those that the settings keep here.
///
/// # Errors
/// The source's.
pub async fn not_taken(client: &Client, limit: i64) -> Result<Vec<(String, String)>> {
    let rows = client
        .query(
            statement!("files", "not_taken"),
            &[&limit, &[NO_VIDEOS, SETTLING, TOO_NEW, NOT_NOW].as_slice()],
        )
        .await
        .map_err(failed("read"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}
