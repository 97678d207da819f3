//! `POST /upload/{directory}`: streams a file into a temporary one while hashing it, then renames it into
//! place.
//!
//! Always holds: a file has its name only when its content is whole and on disk. The name begins with the
//! content's hash, so the same content under the same name has one URL; a name from outside is never a path.

use std::path::Path as FilePath;
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use jiff::Timestamp;
use serde::Deserialize;
use tempfile::NamedTempFile;
use tokio::sync::mpsc;

use crate::receiver::Shared;
use crate::receiver::files::file_writer::{BufferedParts, FileWriter, SyncAfter};
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
        url: Some(public_address(&shared, &site, &directory, &stored)),
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
    let found = stored_with(&shared, &site, &directory, &query.hash).await?;
    let not_there = || ApiError::new(StatusCode::NOT_FOUND, "there is no such content");
    let (stored, _) = found.ok_or_else(not_there)?;
    let url = public_address(&shared, &site, &directory, &stored);
    Ok((StatusCode::OK, [(header::LOCATION, url)]).into_response())
}

/// The stored name and the size of this content, if the site has uploaded it to this directory.
pub(crate) async fn stored_with(
    shared: &Shared,
    site: &str,
    directory: &str,
    hash: &str,
) -> ApiResult<Option<(String, u64)>> {
    let found = sqlx::query_scalar::<_, String>(
        "select stored from cloud_meta.files where site = $1 and directory = $2 and hash = $3 \
         order by created_at desc limit 1",
    )
    .bind(site)
    .bind(directory)
    .bind(hash.to_ascii_lowercase())
    .fetch_optional(&shared.pool)
    .await?;
    let Some(stored) = found else { return Ok(None) };
    let path = shared.files.join(site).join(directory).join(&stored);
    // Somebody may have removed it.
    let file = tokio::fs::metadata(&path).await;
    Ok(file.ok().map(|file| (stored, file.len())))
}

/// The public URL of a stored file; where URLs hold for a time only, one that does from now on.
pub(crate) fn public_address(shared: &Shared, site: &str, directory: &str, stored: &str) -> String {
    let path = format!("{site}/{directory}/{stored}");
    let address = format!("{}/media/{path}", shared.public_url);
    match &shared.url_signer {
        None => address,
        Some(signer) => format!("{address}?{}", signer.query(&path, Timestamp::now())),
    }
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

/// Writes and hashes the pieces, and syncs the file.
fn write_file(
    incoming: &FilePath,
    pieces: mpsc::Receiver<Vec<u8>>,
    give_back: &std_mpsc::Sender<Vec<u8>>,
) -> std::io::Result<StoredUpload> {
    let file = NamedTempFile::new_in(incoming)?;
    let mut hasher = blake3::Hasher::new();
    let size = FileWriter {
        file: file.as_file(),
        start: 0,
        sync_after: SyncAfter::BYTES,
    }
    .write(
        pieces,
        give_back,
        |piece| {
            hasher.update(piece);
        },
        |_| {},
    )?;
    Ok(StoredUpload {
        file,
        hash: hasher.finalize(),
        size,
    })
}

/// A file name made of the name that a client gives its file: letters, digits, `.`, `_` and `-`, not
/// beginning with a dot, cut to a readable length with its extension kept.
pub(crate) fn safe_name(name: &str) -> String {
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
    use crate::receiver::files::file_writer::{PIECE, WAITING};

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
                if buffered.capacity() == PIECE {
                    buffers.insert(buffered.address());
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
