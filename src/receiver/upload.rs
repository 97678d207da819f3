//! `POST /upload/{directory}`: a file, streamed to a temporary one while it is hashed, then renamed into place.
//!
//! A file stands under its name only when it is whole and on disk. The name begins with the content's hash, so the
//! same content under the same name has one URL, and a name from outside is never a path.

use std::io::Write;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;

use axum::Json;
use axum::body::Body;
use axum::extract::multipart::{Field, MultipartError};
use axum::extract::{FromRequest, Multipart, Path, Request, State};
use axum::http::{StatusCode, header};
use bytes::Bytes;
use futures::StreamExt;
use serde_json::{Value, json};
use sqlx::Row;
use tempfile::NamedTempFile;
use tokio::sync::mpsc;

use super::Shared;
use super::answer::{Answer, Refusal};
use super::auth::Site;
use super::body::Pace;
use super::media::plain;

/// Where files lie until they are whole: below the files' root, so that a rename is enough.
pub(super) const INCOMING: &str = ".incoming";

/// What may lie between two pieces of a file: boundaries, the heads of parts, parts that are not the file.
const ASIDE: u64 = 1024 * 1024;

/// After so many bytes the reader of the parts must take what has come before it gets more.
const PIECE: u64 = 256 * 1024;

const STEM_BYTES: usize = 80;
const EXTENSION_BYTES: usize = 16;

/// A file that is whole and on disk, but not yet in its place.
struct Received {
    file: NamedTempFile,
    hash: blake3::Hash,
    size: u64,
}

/// `POST /upload/{directory}`, `multipart/form-data`, part `file`.
pub(super) async fn receive(
    State(shared): State<Arc<Shared>>,
    Site(site): Site,
    Path(directory): Path<String>,
    request: Request,
) -> Answer<Json<Value>> {
    if !plain(&directory) {
        return Err(Refusal::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "the directory is not one plain segment of letters, digits, _ and -",
        ));
    }
    let flow = Arc::new(Flow::default());
    let mut multipart = parts(request, Arc::clone(&flow)).await?;
    let field = loop {
        let field = multipart
            .next_field()
            .await
            .map_err(|error| flow.broken(&error))?;
        match field {
            Some(field) if field.name() == Some("file") => break field,
            // It is passed over, and counts as aside.
            Some(_) => {}
            None => return Err(Refusal::malformed("the body has no part named file")),
        }
    };
    let name = safe_name(field.file_name().unwrap_or_default());
    let received = stream(&shared, field, &flow).await?;
    let digest = received.hash.to_hex().to_string();
    let hash = format!("blake3:{digest}");
    let size = received.size;
    let stored = format!("{}-{name}", &digest[..16]);
    check_content(&shared, &site, &directory, &stored, &hash).await?;
    let target = shared.files.join(&*site).join(&directory).join(&stored);
    tokio::task::spawn_blocking(move || place(received.file, &target))
        .await
        .map_err(|error| Refusal::fault("store a file", &error))?
        .map_err(disk)?;
    sqlx::query(
        "insert into cloud_meta.files (site, directory, stored, hash, name, size) values ($1, $2, $3, $4, $5, $6) \
         on conflict (site, directory, stored) do nothing",
    )
    .bind(&*site)
    .bind(&directory)
    .bind(&stored)
    .bind(&hash)
    .bind(&name)
    .bind(i64::try_from(size).unwrap_or(i64::MAX))
    .execute(&shared.pool)
    .await?;
    Ok(Json(json!({
        "success": true,
        "url": format!("{}/media/{site}/{directory}/{stored}", shared.public_url),
        "path": format!("{directory}/{stored}"),
        "hash": hash,
        "size": size,
    })))
}

/// What has become of a body's bytes.
#[derive(Default)]
struct Flow {
    /// How many were given out as content of parts.
    taken: AtomicU64,
    /// Too many lie between two pieces of content.
    endless: AtomicBool,
}

impl Flow {
    /// What a body is answered whose parts cannot be read.
    fn broken(&self, error: &MultipartError) -> Refusal {
        if self.endless.load(Ordering::Relaxed) {
            return Refusal::too_large(format!(
                "the multipart body has more than {ASIDE} bytes that are not of the file"
            ));
        }
        let status = match error.status() {
            // It broke off: what is whole next time may pass.
            StatusCode::INTERNAL_SERVER_ERROR => StatusCode::REQUEST_TIMEOUT,
            status => status,
        };
        Refusal::new(status, "the multipart body is broken or ended before its end")
    }
}

/// Reads a body as `POST /upload` does, without storing anything: for each part the name that its file would have, and
/// its bytes.
///
/// # Errors
/// What the request would be answered.
pub async fn read_parts(content_type: &str, body: Bytes) -> std::result::Result<Vec<(String, u64)>, String> {
    let read = async {
        let request = axum::http::Request::builder()
            .header(header::CONTENT_TYPE, content_type)
            .body(Body::from(body))
            .map_err(|_| Refusal::malformed("the content type cannot be a header"))?;
        let flow = Arc::new(Flow::default());
        let mut multipart = parts(request, Arc::clone(&flow)).await?;
        let mut found = Vec::new();
        while let Some(mut field) = multipart
            .next_field()
            .await
            .map_err(|error| flow.broken(&error))?
        {
            let name = safe_name(field.file_name().unwrap_or_default());
            let mut size = 0;
            while let Some(chunk) = field.chunk().await.map_err(|error| flow.broken(&error))? {
                size += chunk.len() as u64;
                flow.taken.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            }
            found.push((name, size));
        }
        Ok(found)
    };
    read.await.map_err(|refusal: Refusal| refusal.words().to_owned())
}

/// The parts of a request's body. Their reader keeps in memory what it cannot give out yet, such as a part's head that does
/// not end: the body breaks off where that is more than [`ASIDE`].
async fn parts(request: Request, flow: Arc<Flow>) -> Answer<Multipart> {
    let (head, body) = request.into_parts();
    let mut body = body.into_data_stream();
    let (mut come, mut paused) = (0_u64, 0_u64);
    let bounded = futures::stream::poll_fn(move |context| {
        let kept = come.saturating_sub(flow.taken.load(Ordering::Relaxed));
        if kept > ASIDE {
            flow.endless.store(true, Ordering::Relaxed);
            return Poll::Ready(Some(Err(std::io::Error::other("endless"))));
        }
        if come - paused >= PIECE {
            paused = come;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        body.poll_next_unpin(context).map(|next| {
            next.map(|piece| {
                let piece = piece.map_err(std::io::Error::other)?;
                come += piece.len() as u64;
                Ok(piece)
            })
        })
    });
    Multipart::from_request(Request::from_parts(head, Body::from_stream(bounded)), &())
        .await
        .map_err(|_| Refusal::malformed("the body is not multipart/form-data"))
}

fn disk(error: std::io::Error) -> Refusal {
    if error.kind() == std::io::ErrorKind::StorageFull {
        tracing::error!("the disk of the files is full");
        return Refusal::new(StatusCode::INSUFFICIENT_STORAGE, "the disk is full");
    }
    Refusal::fault("store a file", &error)
}

/// Streams a part into a temporary file. Whatever breaks it off takes the file away.
async fn stream(shared: &Shared, mut field: Field<'_>, flow: &Flow) -> Answer<Received> {
    let incoming = shared.files.join(INCOMING);
    let (sender, chunks) = mpsc::channel::<Bytes>(16);
    let writer = tokio::task::spawn_blocking(move || write(&incoming, chunks));
    let mut size = 0_u64;
    let mut pace = Pace::begin();
    let mut end = Ok(());
    loop {
        let chunk = match field.chunk().await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break,
            Err(error) => {
                end = Err(flow.broken(&error));
                break;
            }
        };
        size += chunk.len() as u64;
        flow.taken.store(size, Ordering::Relaxed);
        if let Err(slow) = pace.came(chunk.len()) {
            end = Err(slow);
            break;
        }
        if size > shared.upload_limit {
            end = Err(Refusal::too_large(format!(
                "the file is larger than {} bytes",
                shared.upload_limit
            )));
            break;
        }
        if sender.send(chunk).await.is_err() {
            // The writer has ended, and says why below.
            break;
        }
    }
    drop(sender);
    let written = writer
        .await
        .map_err(|error| Refusal::fault("store a file", &error))?;
    end?;
    let received = written.map_err(disk)?;
    if received.size != size {
        return Err(Refusal::fault(
            "store a file",
            &"fewer bytes were written than came",
        ));
    }
    Ok(received)
}

fn write(incoming: &FilePath, mut chunks: mpsc::Receiver<Bytes>) -> std::io::Result<Received> {
    let mut file = NamedTempFile::new_in(incoming)?;
    let mut hasher = blake3::Hasher::new();
    let mut size = 0;
    while let Some(chunk) = chunks.blocking_recv() {
        hasher.update(&chunk);
        file.write_all(&chunk)?;
        size += chunk.len() as u64;
    }
    file.as_file().sync_all()?;
    Ok(Received {
        file,
        hash: hasher.finalize(),
        size,
    })
}

/// Refuses other content under the same name: the name has 64 bits of the hash only.
async fn check_content(shared: &Shared, site: &str, directory: &str, stored: &str, hash: &str) -> Answer<()> {
    let known =
        sqlx::query("select hash from cloud_meta.files where site = $1 and directory = $2 and stored = $3")
            .bind(site)
            .bind(directory)
            .bind(stored)
            .fetch_optional(&shared.pool)
            .await?;
    match known {
        Some(row) if row.try_get::<&str, _>("hash")? != hash => Err(Refusal::new(
            StatusCode::CONFLICT,
            "another file has this name and the same first part of its hash",
        )),
        _ => Ok(()),
    }
}

/// Renames a file into place, durably.
fn place(file: NamedTempFile, target: &FilePath) -> std::io::Result<()> {
    let directory: PathBuf = target.parent().map(FilePath::to_owned).unwrap_or_default();
    std::fs::create_dir_all(&directory)?;
    // The files' root is free of links; one below it would lead out of it.
    if directory.canonicalize()? != directory {
        return Err(std::io::Error::other(format!(
            "{} is a link, and nothing is stored or served through one",
            directory.display()
        )));
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        file.as_file()
            .set_permissions(std::fs::Permissions::from_mode(0o640))?;
    }
    file.persist(target).map_err(|error| error.error)?;
    std::fs::File::open(&directory)?.sync_all()
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
    use super::safe_name;

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
