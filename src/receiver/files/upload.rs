//! `POST /upload/{directory}`: a file, streamed to a temporary one while it is hashed, then renamed into place.
//!
//! A file stands under its name only when it is whole and on disk. The name begins with the content's hash, so the
//! same content under the same name has one URL, and a name from outside is never a path.

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::sync::mpsc as buffers;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use bytes::Bytes;
use tempfile::NamedTempFile;
use tokio::sync::mpsc;

use crate::receiver::Shared;
use crate::receiver::files::group_commit::{FinishedUpload, disk};
use crate::receiver::files::media::plain;
use crate::receiver::files::multipart::PartReader;
use crate::receiver::http::api_error::{ApiError, ApiResult};
use crate::receiver::http::auth::AuthenticatedSite;
use crate::receiver::http::body::MinRate;
use crate::wire::paths::HASH_PREFIX;
use crate::wire::{FILE_PART, UploadAnswer};

/// Where files lie until they are whole: below the files' root, so that a rename is enough.
pub(crate) const INCOMING: &str = ".incoming";

/// So many bytes are hashed and written at once.
const PIECE: usize = 256 * 1024;

/// So many pieces wait for the writer, at most.
const WAITING: usize = 4;

/// So many bytes of a large file go to the disk while the next ones come.
const FLUSH: u64 = 32 * 1024 * 1024;

/// How long the end of a body may take after the file in it.
const REST: Duration = Duration::from_secs(1);

const STEM_BYTES: usize = 80;
const EXTENSION_BYTES: usize = 16;

/// A file that is whole and on disk, but not yet in its place.
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
    if !plain(&directory) {
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
            // It is passed over, and counts as aside.
            Some(_) => {}
            None => return Err(ApiError::malformed("the body has no part named file")),
        }
    };
    let name = safe_name(&part.file_name.unwrap_or_default());
    let received = stream(&shared, &mut parts).await?;
    // The file is whole whatever comes after it.
    let _ = tokio::time::timeout(REST, parts.finish()).await;
    let digest = received.hash.to_hex().to_string();
    let hash = format!("{HASH_PREFIX}{digest}");
    let size = received.size;
    let stored = format!("{}-{name}", &digest[..16]);
    shared
        .shelf
        .put(FinishedUpload {
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

/// Reads a body as `POST /upload` does, without storing anything: for each part the name that its file would have, and
/// its bytes.
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
    read.await.map_err(|refusal: ApiError| refusal.words().to_owned())
}

/// Streams a part into a temporary file. Whatever breaks it off takes the file away.
async fn stream(shared: &Shared, parts: &mut PartReader) -> ApiResult<StoredUpload> {
    let incoming = shared.files.join(INCOMING);
    let (mut gathering, gathered, home) = BufferedParts::new();
    let writer = tokio::task::spawn_blocking(move || write(&incoming, gathered, &home));
    let mut size = 0_u64;
    let mut pace = MinRate::begin();
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
        if let Err(slow) = pace.came(chunk.len()) {
            end = Err(slow);
            break;
        }
        if size > shared.upload_limit {
            end = Err(ApiError::too_large(format!(
                "the file is larger than {} bytes",
                shared.upload_limit
            )));
            break;
        }
        if gathering.add(&chunk).await.is_err() {
            // The writer has ended, and says why below.
            break;
        }
    }
    if end.is_ok() {
        // As above.
        let _ = gathering.finish().await;
    }
    drop(gathering);
    let written = writer
        .await
        .map_err(|error| ApiError::fault("store a file", &error))?;
    end?;
    let received = written.map_err(|error| disk(&error))?;
    if received.size != size {
        return Err(ApiError::fault(
            "store a file",
            &"fewer bytes were written than came",
        ));
    }
    Ok(received)
}

/// Gathers what comes into buffers that the writer gives back. So the connection fills the same buffer again and again,
/// the writer hashes and writes much at once, and a large file costs no fresh memory for each of its pieces.
struct BufferedParts {
    buffer: Vec<u8>,
    pieces: mpsc::Sender<Vec<u8>>,
    back: buffers::Receiver<Vec<u8>>,
}

/// The writer has ended.
struct WriterEnded;

impl BufferedParts {
    fn new() -> (Self, mpsc::Receiver<Vec<u8>>, buffers::Sender<Vec<u8>>) {
        let (pieces, gathered) = mpsc::channel(WAITING);
        let (home, back) = buffers::channel();
        let gathering = Self {
            buffer: Vec::new(),
            pieces,
            back,
        };
        (gathering, gathered, home)
    }

    async fn add(&mut self, mut bytes: &[u8]) -> Result<(), WriterEnded> {
        while !bytes.is_empty() {
            let room = PIECE - self.buffer.len();
            let (now, later) = bytes.split_at(bytes.len().min(room));
            if self.buffer.capacity() - self.buffer.len() < now.len() {
                // A small file that came at once needs no more than its length.
                let more = if self.buffer.is_empty() { now.len() } else { room };
                self.buffer.reserve_exact(more);
            }
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == PIECE {
                self.finish().await?;
            }
        }
        Ok(())
    }

    /// Hands on what is gathered.
    async fn finish(&mut self) -> Result<(), WriterEnded> {
        let next = self.back.try_recv().unwrap_or_default();
        let full = std::mem::replace(&mut self.buffer, next);
        self.pieces.send(full).await.map_err(|_| WriterEnded)
    }
}

fn write(
    incoming: &FilePath,
    mut pieces: mpsc::Receiver<Vec<u8>>,
    home: &buffers::Sender<Vec<u8>>,
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
        // Nobody fills it again where all has come.
        let _ = home.send(piece);
        if size - flushed >= FLUSH && flush.as_ref().is_none_or(JoinHandle::is_finished) {
            join(flush.take())?;
            let (file, from) = (file.as_file().try_clone()?, flushed);
            flushed = size;
            flush = Some(thread::spawn(move || {
                file.sync_data()?;
                forget(&file, from..size);
                Ok(())
            }));
        }
    }
    // An error of the disk is told once, to whoever syncs first.
    join(flush)?;
    file.as_file().sync_all()?;
    Ok(StoredUpload {
        file,
        hash: hasher.finalize(),
        size,
    })
}

/// Takes what is on disk out of the page cache, so that the next bytes find warm memory, and a large file does not drive out
/// what others read: the database above all. It is advice: where it is not taken, nothing is lost.
fn forget(file: &File, bytes: Range<u64>) {
    #[cfg(target_os = "linux")]
    if let Some(length) = std::num::NonZeroU64::new(bytes.end - bytes.start) {
        let _ = rustix::fs::fadvise(file, bytes.start, Some(length), rustix::fs::Advice::DontNeed);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file, bytes);
}

fn join(flush: Option<JoinHandle<std::io::Result<()>>>) -> std::io::Result<()> {
    match flush.map(JoinHandle::join) {
        None => Ok(()),
        Some(Ok(flushed)) => flushed,
        Some(Err(_)) => Err(std::io::Error::other("the flush of a file has panicked")),
    }
}

/// A file name out of whatever a client calls its file: letters, digits, `.`, `_` and `-`, not beginning with a dot,
/// cut to a readable length with its extension kept.
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
    async fn what_is_gathered_is_written_whole_through_few_buffers() {
        let folder = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..40 * PIECE + 1).map(|at| (at * 31 % 251) as u8).collect();
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
            let (mut gathering, gathered, home) = BufferedParts::new();
            let incoming = folder.path().to_owned();
            let writer = tokio::task::spawn_blocking(move || write(&incoming, gathered, &home));
            let mut buffers = std::collections::HashSet::new();
            for chunk in content.chunks(chunk) {
                assert!(gathering.add(chunk).await.is_ok());
                if gathering.buffer.capacity() == PIECE {
                    buffers.insert(gathering.buffer.as_ptr());
                }
            }
            assert!(gathering.finish().await.is_ok());
            drop(gathering);
            let received = writer.await.unwrap().unwrap();
            assert_eq!(
                (received.size, received.hash),
                (size as u64, blake3::hash(content))
            );
            assert!(std::fs::read(received.file.path()).unwrap() == content);
            // Those that wait, one that is filled, one that is written, and one on its way between the two.
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
