//! `POST /upload/{directory}`: streams a file into a temporary one while hashing it, then renames it into
//! place.
//!
//! Always holds: a file has its name only when its content is whole and on disk. The name begins with the
//! content's hash, so the same content under the same name has one URL; a name from outside is never a path.

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Deserialize;
use tempfile::NamedTempFile;
use tokio::sync::mpsc;

use crate::receiver::Shared;
use crate::receiver::files::group_commit::{FinishedUpload, storage_error};
use crate::receiver::files::media::is_plain_name;
use crate::receiver::files::multipart::PartReader;
use crate::receiver::http::api_error::{ApiError, ApiResult};
use crate::receiver::http::auth::AuthenticatedSite;
use crate::receiver::http::body::MinRate;
use crate::wire::paths::HASH_PREFIX;
use crate::wire::{Capability, FILE_PART, UploadAnswer};

/// The folder of files that are not whole yet: below the files' root, so that a rename is enough.
pub(crate) const INCOMING: &str = ".incoming";

/// This many bytes are hashed and written at once.
const PIECE: usize = 256 * 1024;

/// This many pieces wait for the writer, at most.
const WAITING: usize = 4;

/// A large file is synced in steps of this many bytes while the next ones arrive.
const FLUSH: u64 = 32 * 1024 * 1024;

/// How long the end of a body may take after the file in it.
const REST: Duration = Duration::from_secs(1);

const STEM_BYTES: usize = 80;
const EXTENSION_BYTES: usize = 16;

/// A file that is whole and on disk, but does not have its name yet.
struct StoredUpload {
    file: NamedTempFile,
    hash: blake3::Hash,
    size: u64,
}

/// `POST /upload/{directory}`, `multipart/form-data`, part `file`.
pub(crate) async fn receive(
    State(shared): State<Arc<Shared>>,
    AuthenticatedSite(site, _): AuthenticatedSite,
    Path(directory): Path<String>,
    request: Request,
) -> ApiResult<Json<UploadAnswer>> {
    if !is_plain_name(&directory) {
        return Err(ApiError::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "the directory is not one plain segment of letters, digits, _ and -",
        ));
    }
    let (head, body) = request.into_parts();
    let mut parts = PartReader::of(&head.headers, body)?;
    let part = loop {
        match parts.next().await? {
            Some(part) if part.name.as_deref() == Some(FILE_PART) => break part,
            // It is skipped, and counts as overhead.
            Some(_) => {}
            None => return Err(ApiError::malformed("the body has no part named file")),
        }
    };
    let name = safe_name(&part.file_name.unwrap_or_default());
    let received = receive_file(&shared, &mut parts).await?;
    // The file is whole whatever follows it.
    let _ = tokio::time::timeout(REST, parts.finish()).await;
    let digest = received.hash.to_hex().to_string();
    let hash = format!("{HASH_PREFIX}{digest}");
    let size = received.size;
    let stored = format!("{}-{name}", &digest[..16]);
    shared
        .group_commit
        .store(FinishedUpload {
            file: received.file,
            site: site.to_string(),
            directory: directory.clone(),
            stored: stored.clone(),
            hash: hash.clone(),
            name,
            size,
        })
        .await?;
    Ok(Json(UploadAnswer {
        data: None,
        hash: Some(hash),
        path: Some(format!("{directory}/{stored}")),
        size,
        success: true,
        url: Some(format!("{}/media/{site}/{directory}/{stored}", shared.public_url)),
    }))
}

/// The query of [`find`].
#[derive(Debug, Deserialize)]
pub(crate) struct ContentQuery {
    /// `blake3:` and the hash in hexadecimal.
    hash: String,
}

/// `HEAD /upload/{directory}?hash=blake3:…`: the URL of this content, if the site has uploaded it to this
/// directory. What other sites have is not looked at.
pub(crate) async fn find(
    State(shared): State<Arc<Shared>>,
    AuthenticatedSite(site, _): AuthenticatedSite,
    Path(directory): Path<String>,
    Query(query): Query<ContentQuery>,
) -> ApiResult<Response> {
    shared.offers(Capability::ContentHash)?;
    let found = sqlx::query_scalar::<_, String>(
        "select stored from cloud_meta.files where site = $1 and directory = $2 and hash = $3 \
         order by created_at desc limit 1",
    )
    .bind(&*site)
    .bind(&directory)
    .bind(query.hash.to_ascii_lowercase())
    .fetch_optional(&shared.pool)
    .await?;
    let not_there = || ApiError::new(StatusCode::NOT_FOUND, "there is no such content");
    let stored = found.ok_or_else(not_there)?;
    let path = shared.files.join(&*site).join(&directory).join(&stored);
    // Somebody may have removed it.
    tokio::fs::metadata(&path).await.map_err(|_| not_there())?;
    let url = format!("{}/media/{site}/{directory}/{stored}", shared.public_url);
    Ok((StatusCode::OK, [(header::LOCATION, url)]).into_response())
}

/// Reads a body as `POST /upload` does, without storing anything: for each part the name that its file would
/// have, and its bytes.
///
/// # Errors
/// What the request would be answered.
pub async fn read_parts(content_type: &str, body: Bytes) -> std::result::Result<Vec<(String, u64)>, String> {
    let read = async {
        let kind = HeaderValue::from_str(content_type)
            .map_err(|_| ApiError::malformed("the content type cannot be a header"))?;
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, kind)]);
        let mut parts = PartReader::of(&headers, Body::from(body))?;
        let mut found = Vec::new();
        while let Some(part) = parts.next().await? {
            let name = safe_name(&part.file_name.unwrap_or_default());
            let mut size = 0;
            while let Some(piece) = parts.piece().await? {
                size += piece.len() as u64;
            }
            found.push((name, size));
        }
        Ok(found)
    };
    read.await.map_err(|refusal: ApiError| refusal.to_string())
}

/// Streams a part into a temporary file, which is removed if anything interrupts that.
async fn receive_file(shared: &Shared, parts: &mut PartReader) -> ApiResult<StoredUpload> {
    let incoming = shared.files.join(INCOMING);
    let (mut buffered, pieces, returned) = BufferedParts::new();
    let writer = tokio::task::spawn_blocking(move || write_file(&incoming, pieces, &returned));
    let mut size = 0_u64;
    let mut rate = MinRate::begin();
    let mut end = Ok(());
    loop {
        let chunk = match parts.piece().await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break,
            Err(refusal) => {
                end = Err(refusal);
                break;
            }
        };
        size += chunk.len() as u64;
        if let Err(too_slow) = rate.arrived(chunk.len()) {
            end = Err(too_slow);
            break;
        }
        if size > shared.upload_limit {
            end = Err(ApiError::too_large(format!(
                "the file is larger than {} bytes",
                shared.upload_limit
            )));
            break;
        }
        if buffered.add(&chunk).await.is_err() {
            // The writer has ended, and returns its error below.
            break;
        }
    }
    if end.is_ok() {
        // As above.
        let _ = buffered.send().await;
    }
    drop(buffered);
    let written = writer
        .await
        .map_err(|error| ApiError::fault("store a file", error))?;
    end?;
    let received = written.map_err(storage_error)?;
    if received.size != size {
        return Err(ApiError::fault(
            "store a file",
            "fewer bytes were written than arrived",
        ));
    }
    Ok(received)
}

/// Collects what arrives in buffers that the writer returns. So the connection fills the same buffer again
/// and again, the writer hashes and writes much at once, and a large file allocates no memory for each of its
/// pieces.
struct BufferedParts {
    buffer: Vec<u8>,
    pieces: mpsc::Sender<Vec<u8>>,
    returned: std_mpsc::Receiver<Vec<u8>>,
}

/// The writer has ended.
struct WriterEnded;

impl BufferedParts {
    fn new() -> (Self, mpsc::Receiver<Vec<u8>>, std_mpsc::Sender<Vec<u8>>) {
        let (pieces, to_write) = mpsc::channel(WAITING);
        let (give_back, returned) = std_mpsc::channel();
        let buffered = Self {
            buffer: Vec::new(),
            pieces,
            returned,
        };
        (buffered, to_write, give_back)
    }

    async fn add(&mut self, mut bytes: &[u8]) -> Result<(), WriterEnded> {
        while !bytes.is_empty() {
            let room = PIECE - self.buffer.len();
            let (now, later) = bytes.split_at(bytes.len().min(room));
            if self.buffer.capacity() - self.buffer.len() < now.len() {
                // A small file that arrived at once needs no more than its length.
                let more = if self.buffer.is_empty() { now.len() } else { room };
                self.buffer.reserve_exact(more);
            }
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == PIECE {
                self.send().await?;
            }
        }
        Ok(())
    }

    /// Hands on what was collected.
    async fn send(&mut self) -> Result<(), WriterEnded> {
        let next = self.returned.try_recv().unwrap_or_default();
        let full = std::mem::replace(&mut self.buffer, next);
        self.pieces.send(full).await.map_err(|_| WriterEnded)
    }
}

/// Writes and hashes the pieces, and syncs the file.
fn write_file(
    incoming: &FilePath,
    mut pieces: mpsc::Receiver<Vec<u8>>,
    give_back: &std_mpsc::Sender<Vec<u8>>,
) -> std::io::Result<StoredUpload> {
    let mut file = NamedTempFile::new_in(incoming)?;
    let mut hasher = blake3::Hasher::new();
    let (mut size, mut flushed) = (0_u64, 0);
    let mut flush: Option<JoinHandle<std::io::Result<()>>> = None;
    while let Some(mut piece) = pieces.blocking_recv() {
        hasher.update(&piece);
        file.write_all(&piece)?;
        size += piece.len() as u64;
        piece.clear();
        // Nobody listens once the whole body has arrived.
        let _ = give_back.send(piece);
        if size - flushed >= FLUSH && flush.as_ref().is_none_or(JoinHandle::is_finished) {
            join_flush(flush.take())?;
            let (file, from) = (file.as_file().try_clone()?, flushed);
            flushed = size;
            flush = Some(thread::spawn(move || {
                file.sync_data()?;
                drop_from_cache(&file, from..size);
                Ok(())
            }));
        }
    }
    // The disk reports an error only to the first who syncs.
    join_flush(flush)?;
    file.as_file().sync_all()?;
    Ok(StoredUpload {
        file,
        hash: hasher.finalize(),
        size,
    })
}

/// Drops what is on disk from the page cache, so that the next bytes reuse its memory, and a large file does
/// not displace what others read, above all the database. It is advice: nothing is lost if the system does
/// not follow it.
fn drop_from_cache(file: &File, bytes: Range<u64>) {
    #[cfg(target_os = "linux")]
    if let Some(length) = std::num::NonZeroU64::new(bytes.end - bytes.start) {
        let _ = rustix::fs::fadvise(file, bytes.start, Some(length), rustix::fs::Advice::DontNeed);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file, bytes);
}

fn join_flush(flush: Option<JoinHandle<std::io::Result<()>>>) -> std::io::Result<()> {
    match flush.map(JoinHandle::join) {
        None => Ok(()),
        Some(Ok(flushed)) => flushed,
        Some(Err(_)) => Err(std::io::Error::other("the sync of a file has panicked")),
    }
}

/// A file name made of the name that a client gives its file: letters, digits, `.`, `_` and `-`, not
/// beginning with a dot, cut to a readable length with its extension kept.
fn safe_name(name: &str) -> String {
    let base = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let clean: String = base
        .chars()
        .map(|letter| {
            if letter.is_ascii_alphanumeric() || matches!(letter, '.' | '_' | '-') {
                letter
            } else {
                '_'
            }
        })
        .collect();
    let clean = clean.trim_start_matches('.');
    let (stem, extension) = match clean.rsplit_once('.') {
        Some((stem, extension)) if !stem.is_empty() && extension.len() <= EXTENSION_BYTES => {
            (stem, extension)
        }
        _ => (clean, ""),
    };
    let stem = &stem[..stem.len().min(STEM_BYTES)];
    match (stem, extension) {
        ("", _) => "file".to_owned(),
        (stem, "") => stem.to_owned(),
        (stem, extension) => format!("{stem}.{extension}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_is_written_whole_through_few_buffers() {
        let folder = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..40 * PIECE + 1)
            .map(|offset| (offset * 31 % 251) as u8)
            .collect();
        for (size, chunk) in [
            (0, 1),
            (1, 1),
            (PIECE - 1, 1000),
            (PIECE, 3 * PIECE),
            (PIECE + 1, PIECE),
            (3 * PIECE, PIECE / 2),
            (40 * PIECE + 1, 100_003),
        ] {
            let content = &content[..size];
            let (mut buffered, pieces, returned) = BufferedParts::new();
            let incoming = folder.path().to_owned();
            let writer = tokio::task::spawn_blocking(move || write_file(&incoming, pieces, &returned));
            let mut buffers = std::collections::HashSet::new();
            for chunk in content.chunks(chunk) {
                assert!(buffered.add(chunk).await.is_ok());
                if buffered.buffer.capacity() == PIECE {
                    buffers.insert(buffered.buffer.as_ptr());
                }
            }
            assert!(buffered.send().await.is_ok());
            drop(buffered);
            let received = writer.await.unwrap().unwrap();
            assert_eq!(
                (received.size, received.hash),
                (size as u64, blake3::hash(content))
            );
            assert!(std::fs::read(received.file.path()).unwrap() == content);
            // Those that wait, one that is being filled, one that is being written, and one between the two.
            assert!(buffers.len() <= WAITING + 3, "{}", buffers.len());
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn names_from_outside_become_plain_names() {
        for (name, safe) in [
            ("slip.jpg", "slip.jpg"),
            ("../../etc/passwd", "passwd"),
            ("C:\\slips\\Pass Slip.JPG", "Pass_Slip.JPG"),
            (".htaccess", "htaccess"),
            ("..", "file"),
            ("", "file"),
            ("a\0b\n.png", "a_b_.png"),
            ("Ñandú.mp4", "_and_.mp4"),
        ] {
            assert_eq!(safe_name(name), safe, "{name:?}");
        }
        assert!(safe_name(&format!("{}.mp4", "x".repeat(500))).len() <= 100);
        assert!(safe_name(&format!("{}.mp4", "x".repeat(500))).ends_with(".mp4"));
    }
}
