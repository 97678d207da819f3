//! Uploads in one request, `POST /upload/{directory}`, and the question whether the cloud already has a
//! content.
//!
//! A file is read once and hashed as it is read ([`super::file_stream`]); a few pieces of it are in memory at
//! most. If the file turns out shorter or longer than it was at the start, the request is aborted before its
//! last piece is sent, so that the cloud never takes half a file for a whole one.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, stream};
use reqwest::header::LOCATION;
use reqwest::multipart::{Form, Part};
use reqwest::{Body, Method};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::failure::{CloudResult, Failure};
use super::file_stream::{self, FileStream};
use super::http::{HttpAnswer, HttpClient, encode_into, time_for};
use super::refused;
use super::reply::Verdict;
use super::transport_error::transport_failure;
use crate::abort;
use crate::error::{Error, Kind};
use crate::wire::paths::{self, HASH_PREFIX};
use crate::wire::{Capability, FILE_PART, UploadAnswer};

/// How many bytes the kernel may still have to send after the last piece was handed over.
pub(super) const SOCKET_BUFFER: u64 = 4 * 1024 * 1024;

/// Called before each piece with its number of bytes; returns how long to wait first. After that wait it is
/// called with 0, until nothing is left to wait for: a limit may change. For a bandwidth limit, and for
/// progress.
pub type UploadThrottle = Arc<dyn Fn(usize) -> Duration + Send + Sync>;

/// A file to upload.
#[derive(Clone)]
pub struct UploadFile {
    /// The opened file. It is read from its beginning.
    pub file: Arc<File>,
    /// The file name that the cloud gets.
    pub name: String,
    /// Slows the upload down.
    pub pace: Option<UploadThrottle>,
}

impl UploadFile {
    /// The file at `path`, under its own name, as fast as it goes.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        Ok(Self {
            name: name.unwrap_or_else(|| "file".to_owned()),
            ..Self::of(Arc::new(File::open(path)?))
        })
    }

    /// An opened file, under the name `file`, as fast as it goes.
    pub fn of(file: Arc<File>) -> Self {
        Self {
            file,
            name: "file".to_owned(),
            pace: None,
        }
    }
}

/// The form of an upload, for servers that want another one than the contract's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadForm {
    /// The name of the file's part.
    pub field: String,
    /// Further fields, by name.
    pub fields: Vec<(String, String)>,
}

impl Default for UploadForm {
    fn default() -> Self {
        Self {
            field: FILE_PART.to_owned(),
            fields: Vec::new(),
        }
    }
}

/// A file that the cloud has taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadReceipt {
    /// Its URL there.
    pub url: String,
    /// Its path there, if the cloud says so.
    pub path: Option<String>,
    /// The hash of what was sent.
    pub hash: blake3::Hash,
    /// How many bytes were sent.
    pub bytes: u64,
    /// Whether the cloud answered with the same hash. A baseline server answers without one.
    pub confirmed: bool,
}

pub(super) async fn upload(
    http: &HttpClient,
    form: &UploadForm,
    directory: &str,
    file: UploadFile,
) -> CloudResult<UploadReceipt> {
    let operation = format!("upload {} to {directory}", file.name);
    let media = |error: &io::Error| Failure::new(Kind::Media, &operation, error.to_string());
    let FileStream {
        bytes,
        pieces,
        mut hash,
    } = file_stream::open_stream(file.file.clone())
        .await
        .map_err(|error| Error::local(operation.as_str(), io::Error::other(error)))?
        .map_err(|error| media(&error))?;

    let progress = Arc::new(LastProgress::new());
    let body = Body::wrap_stream(paced(pieces, file.pace.clone(), Arc::clone(&progress)));
    let kind = mime_guess::from_path(&file.name).first_or_octet_stream();
    let part = Part::stream_with_length(body, bytes)
        .file_name(header_safe(&file.name))
        .mime_str(kind.essence_str())
        .map_err(|error| transport_failure(&operation, error))?;
    // The file is the last field: some servers read the other fields before it.
    let mut fields = Form::new();
    for (name, value) in &form.fields {
        fields = fields.text(name.clone(), value.clone());
    }
    let request = http
        .request(Method::POST, &paths::upload_to(&encoded(directory)))
        .multipart(fields.part(form.field.clone(), part));
    let exchange = async {
        let response = http.send(&operation, request).await?;
        let answer = http.answer(&operation, response).await;
        abort::point("after an upload");
        answer
    };
    let limit = http.timeout() + time_for(bytes.min(SOCKET_BUFFER));
    let answer = tokio::select! {
        answer = exchange => answer,
        () = progress.stalled(limit) => Err(http.timed_out(&operation, limit)),
    };

    let sent = if matches!(answer, Ok(HttpAnswer::Accepted(_))) {
        // A server may answer before it has read the whole file, and go on reading.
        tokio::select! {
            hash = &mut hash => hash.ok(),
            () = progress.stalled(limit) => None,
        }
    } else {
        hash.try_recv().ok()
    };
    let hash = match sent {
        Some(Err(error)) => return Err(media(&error)),
        Some(Ok(hash)) => Some(hash),
        None => None,
    };
    let reply = match answer? {
        HttpAnswer::Accepted(reply) => reply,
        HttpAnswer::Refused { status, words, .. } => return Err(refused(&operation, status, &words)),
    };
    if let Verdict::Failed(words) = reply.verdict(&operation, None)? {
        return Err(Failure::failed(
            &operation,
            reply.status.as_u16(),
            http.clean(&words),
        ));
    }
    let answered = reply.json::<UploadAnswer>(&operation)?.unwrapped();
    let Some(hash) = hash else {
        return Err(Failure::protocol(
            &operation,
            "the cloud answered before it had the whole file",
            "look at the cloud's own logs",
        )
        .with_status(reply.status.as_u16()));
    };
    let path = answered.path.filter(|path| !path.is_empty());
    let Some(url) = answered
        .url
        .filter(|url| !url.is_empty())
        .or_else(|| path.clone())
    else {
        return Err(Failure::protocol(
            &operation,
            "the cloud answered without a URL",
            "look at the cloud's own logs",
        )
        .with_status(reply.status.as_u16()));
    };
    let cloud_hash = answered
        .hash
        .as_deref()
        .and_then(|text| text.strip_prefix(HASH_PREFIX));
    if cloud_hash.is_some_and(|cloud_hash| !cloud_hash.eq_ignore_ascii_case(&hash.to_hex())) {
        let cause = "the cloud has a content that differs from what was sent";
        return Err(Failure::new(Kind::Media, &operation, cause));
    }
    Ok(UploadReceipt {
        url,
        path,
        hash,
        bytes,
        confirmed: cloud_hash.is_some(),
    })
}

pub(super) async fn find(
    http: &HttpClient,
    directory: &str,
    hash: &blake3::Hash,
) -> CloudResult<Option<String>> {
    let operation = format!("ask the cloud for a file's content in {directory}");
    let path = paths::content_in(&encoded(directory), &hash.to_hex());
    match http
        .call(&operation, http.request(Method::HEAD, &path), 0)
        .await?
    {
        HttpAnswer::Accepted(reply) => match reply.headers.get(LOCATION).and_then(|url| url.to_str().ok()) {
            Some(url) => Ok(Some(url.to_owned())),
            None => Err(Failure::protocol(
                &operation,
                "the cloud answered without a Location",
                "check the cloud's server",
            )),
        },
        HttpAnswer::Refused { status: 404, .. } => Ok(None),
        HttpAnswer::Refused { status: 405, .. } => {
            Err(Failure::capability(&operation, Capability::ContentHash, 405))
        }
        HttpAnswer::Refused { status, words, .. } => Err(refused(&operation, status, &words)),
    }
}

/// A file name as it may stand in a part's header.
fn header_safe(name: &str) -> String {
    let safe = |letter: char| if letter.is_control() { '_' } else { letter };
    name.chars().map(safe).collect()
}

/// A directory as one segment of a path.
fn encoded(directory: &str) -> String {
    let mut segment = String::new();
    encode_into(&mut segment, directory);
    segment
}

/// The pieces, each after the wait that `pace` asks for.
pub(super) fn paced(
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    pace: Option<UploadThrottle>,
    progress: Arc<LastProgress>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::unfold(
        (pieces, pace, progress),
        |(mut pieces, pace, progress)| async move {
            let piece = pieces.recv().await?;
            if let (Ok(piece), Some(pace)) = (&piece, &pace) {
                let mut wait = pace(piece.len());
                while !wait.is_zero() {
                    progress.record(wait);
                    tokio::time::sleep(wait).await;
                    wait = pace(0);
                }
            }
            progress.record(Duration::ZERO);
            abort::point("amid an upload");
            Some((piece, (pieces, pace, progress)))
        },
    )
}

/// When the request last made progress: a long upload may take any time, but it may not stall.
pub(super) struct LastProgress {
    begun: Instant,
    last: AtomicU64,
}

impl LastProgress {
    pub(super) fn new() -> Self {
        Self {
            begun: Instant::now(),
            last: AtomicU64::new(0),
        }
    }

    /// Notes progress that comes after `wait`.
    pub(super) fn record(&self, wait: Duration) {
        let at = (self.begun.elapsed() + wait).as_millis();
        self.last
            .store(u64::try_from(at).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Returns when there was no progress for `limit`.
    pub(super) async fn stalled(&self, limit: Duration) {
        loop {
            let due = self.begun + Duration::from_millis(self.last.load(Ordering::Relaxed)) + limit;
            if Instant::now() >= due {
                return;
            }
            tokio::time::sleep_until(due).await;
        }
    }
}
