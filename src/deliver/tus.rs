//! Resumable uploads: tus 1.0.0 at `/files`.
//!
//! A file is sent in parts. After each part, and after an interruption, the server's offset says what it has;
//! the next part begins there. The caller gets the upload's address and offset, to continue after a
//! restart. The server knows the hash of the whole content from the beginning, and makes the file visible
//! only with that content: so parts have no checksums of their own, and what has arrived of an interrupted
//! part counts.
//!
//! Always holds: the key goes only to addresses on the cloud's own origin and below its base path; a few
//! pieces of the file are in memory at most.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, LOCATION};
use reqwest::{Body, Method, RequestBuilder};
use tokio::time::Instant;
use url::Url;

use super::failure::{CloudResult, Failure};
use super::file_stream;
use super::files::{LastProgress, SOCKET_BUFFER, UploadReceipt, paced};
use super::http::{HttpAnswer, HttpClient, host, time_for};
use super::refused;
use super::reply::CloudReply;
use super::resumable::{BegunUpload, ResumableUpload};
use crate::abort;
use crate::error::Kind;
use crate::retry::{Backoff, waits};
use crate::wire::paths::{self, HASH_PREFIX};
use crate::wire::{Capability, tus};

/// The first part, before the speed is known.
const FIRST_PART: u64 = 4 * 1024 * 1024;

/// The smallest and the largest part.
const SMALLEST_PART: u64 = 1024 * 1024;
const LARGEST_PART: u64 = 512 * 1024 * 1024;

/// Requests in a row that bring no byte further: then the failure is the caller's.
const TRIES: u32 = 4;

/// How often one call begins the upload again, as the server has lost it.
const CREATIONS: u32 = 3;

/// How often the server is asked where a file is that it has whole.
const STORING_TRIES: u32 = 6;

pub(super) async fn upload(http: &HttpClient, upload: ResumableUpload<'_>) -> CloudResult<UploadReceipt> {
    let operation = format!("upload {} to {}", upload.file.name, upload.directory);
    let size = match upload.file.file.metadata() {
        Ok(about) if about.is_file() => about.len(),
        Ok(_) => {
            return Err(Failure::new(Kind::Media, &operation, "it is not a regular file"));
        }
        Err(error) => return Err(Failure::new(Kind::Media, &operation, error.to_string())),
    };
    let sending = Sending {
        http,
        operation: &operation,
        upload: &upload,
        size,
    };
    sending.run().await
}

/// `DELETE` at the address of an upload, if it is this cloud's.
pub(super) async fn end(http: &HttpClient, address: &str) -> CloudResult<()> {
    let operation = "end an upload";
    let own = match address.parse() {
        Ok(url) => http.below_base(operation, &url)?,
        Err(_) => None,
    };
    let Some(own) = own else { return Ok(()) };
    let request = http
        .request_at(Method::DELETE, own)
        .header(tus::TUS_RESUMABLE, tus::VERSION);
    match http.call(operation, request, 0).await? {
        HttpAnswer::Accepted(_) => Ok(()),
        HttpAnswer::Refused {
            status: 404 | 410, ..
        } => Ok(()),
        HttpAnswer::Refused { status, words, .. } => Err(refused(operation, status, &words)),
    }
}

/// The call of one upload.
struct Sending<'a> {
    http: &'a HttpClient,
    operation: &'a str,
    upload: &'a ResumableUpload<'a>,
    size: u64,
}

/// What the server says about an upload.
enum ServerState {
    /// It has so many bytes; and where the whole file is, if it says so.
    Known(u64, Option<StoredAddress>),
    /// It does not know the upload any more.
    Gone,
    /// Another request writes it.
    Locked,
}

/// Where a whole file is.
struct StoredAddress {
    url: String,
    path: Option<String>,
    hash: Option<String>,
}

/// What became of a part.
enum PartEnd {
    /// What the server has now.
    Answered(ServerState),
    /// The connection broke, or another request was in the way: the server knows what it has.
    Interrupted(Failure),
    /// The server, or a proxy before it, takes no part of this size.
    TooLarge(Failure),
}

impl Sending<'_> {
    async fn run(&self) -> CloudResult<UploadReceipt> {
        let (mut address, mut state) = match self.stored_address() {
            Some(address) => {
                let state = self.ask_patiently(&address).await?;
                (address, state)
            }
            None => self.create().await?,
        };
        let mut creations = 1;
        let mut parts = PartSizes::new(self.upload.part_time);
        let (mut backoff, mut tries) = (Backoff::of(waits::ROW_REQUEST), 0);
        // A whole file whose address is not said may be just being stored, if no answer to its last part came.
        let mut was_asked = self.upload.state.is_some();
        loop {
            let (offset, file) = match state {
                ServerState::Known(offset, file) if offset <= self.size => (offset, file),
                ServerState::Known(..) => return Err(self.protocol("the cloud has more bytes than the file")),
                ServerState::Gone if creations < CREATIONS => {
                    creations += 1;
                    was_asked = false;
                    (address, state) = self.create().await?;
                    continue;
                }
                ServerState::Gone => return Err(self.protocol("the cloud loses the upload again and again")),
                ServerState::Locked => {
                    return Err(Failure::unreachable(
                        self.operation,
                        "another request writes the upload",
                        "it is tried again",
                    ));
                }
            };
            (self.upload.note)(&BegunUpload {
                address: address.to_string(),
                offset,
                parts: Vec::new(),
            });
            if offset == self.size {
                return self.receipt(&address, file, was_asked).await;
            }
            was_asked = false;
            let length = parts.next().min(self.size - offset);
            let began = Instant::now();
            state = match self.send_part(&address, offset, length).await? {
                PartEnd::Answered(state) => {
                    if let ServerState::Known(now, _) = state {
                        // An answer without progress must not be asked for for ever.
                        tries = if now > offset { 0 } else { tries + 1 };
                        parts.sent(now.saturating_sub(offset), began.elapsed());
                    }
                    state
                }
                PartEnd::TooLarge(failure) if length <= SMALLEST_PART => return Err(failure),
                PartEnd::TooLarge(_) => {
                    parts.too_large(length);
                    self.ask_patiently(&address).await?
                }
                PartEnd::Interrupted(failure) => {
                    tries += 1;
                    parts.interrupted(length);
                    tracing::debug!(%failure, offset, "a part of a file was interrupted");
                    if tries >= TRIES {
                        return Err(failure);
                    }
                    tokio::time::sleep(backoff.next(failure.retry_after())).await;
                    was_asked = true;
                    let state = self.ask_patiently(&address).await?;
                    if let ServerState::Known(now, _) = state
                        && now > offset
                    {
                        tries = 0;
                        backoff.reset();
                    }
                    state
                }
            };
            if tries >= TRIES {
                return Err(self.protocol("the cloud accepts parts of the file and has none of them"));
            }
        }
    }

    fn protocol(&self, cause: &str) -> Failure {
        Failure::protocol(self.operation, cause, "look at the cloud's own logs")
    }

    /// The address that was noted, if it is this cloud's.
    fn stored_address(&self) -> Option<Url> {
        let url = self.upload.state.as_ref()?.address.parse().ok()?;
        self.http.below_base(self.operation, &url).ok()?
    }

    /// A request of the protocol.
    fn speak(&self, request: RequestBuilder) -> RequestBuilder {
        request.header(tus::TUS_RESUMABLE, tus::VERSION)
    }

    /// Begins the upload.
    async fn create(&self) -> CloudResult<(Url, ServerState)> {
        let hash = format!("{HASH_PREFIX}{}", self.upload.hash.to_hex());
        let metadata = tus::encode_metadata([
            (tus::FILENAME, self.upload.file.name.as_str()),
            (tus::DIRECTORY, self.upload.directory),
            (tus::HASH, &hash),
        ]);
        let request = self
            .speak(self.http.request(Method::POST, paths::FILES))
            .header(tus::UPLOAD_LENGTH, self.size)
            .header(tus::UPLOAD_METADATA, metadata);
        let limit = self.http.timeout();
        let exchange = async {
            let response = self.http.send(self.operation, request).await?;
            let from = response.url().clone();
            let answer = self.http.answer(self.operation, response).await?;
            Ok((from, answer))
        };
        let answered = tokio::time::timeout(limit, exchange)
            .await
            .unwrap_or_else(|_| Err(self.http.timed_out(self.operation, limit)));
        let (from, reply) = match answered? {
            (from, HttpAnswer::Accepted(reply)) => (from, reply),
            (_, HttpAnswer::Refused { status, .. }) if matches!(status, 404 | 405) => {
                return Err(Failure::capability(self.operation, Capability::Tus, status));
            }
            (_, HttpAnswer::Refused { status, words, .. }) => {
                return Err(refused(self.operation, status, &words));
            }
        };
        let location = reply.headers.get(LOCATION).and_then(|value| value.to_str().ok());
        let address = location.and_then(|location| from.join(location).ok());
        let Some(address) = address.filter(|address| address.path() != from.path()) else {
            return Err(self.protocol("the cloud answered without the address of the upload"));
        };
        let Some(address) = self.http.below_base(self.operation, &address)? else {
            return Err(Failure::protocol(
                self.operation,
                format!(
                    "the upload is not below the cloud's own address but at {}",
                    host(&address)
                ),
                "the key goes to no other server: correct the address that the cloud gives",
            ));
        };
        // A server without the extension of uploads at creation says nothing of the offset.
        let offset = number(&reply.headers, tus::UPLOAD_OFFSET).unwrap_or(0);
        Ok((address, ServerState::Known(offset, file_address(&reply.headers))))
    }

    /// Asks what the server has, a few times while the connection is interrupted or another request is in
    /// the way.
    async fn ask_patiently(&self, address: &Url) -> CloudResult<ServerState> {
        let mut backoff = Backoff::of(waits::FILE_LANE);
        let mut tries = 0;
        loop {
            tries += 1;
            match self.ask(address).await {
                Ok(ServerState::Locked) if tries < TRIES => {}
                Err(failure)
                    if tries < TRIES && failure.was_interrupted() && failure.retry_after().is_none() => {}
                answered => return answered,
            }
            tokio::time::sleep(backoff.next(None)).await;
        }
    }

    /// Asks what the server has.
    async fn ask(&self, address: &Url) -> CloudResult<ServerState> {
        let request = self.speak(self.http.request_at(Method::HEAD, address.clone()));
        match self.http.call(self.operation, request, 0).await? {
            HttpAnswer::Accepted(reply) => self.state_of(&reply),
            HttpAnswer::Refused { status, words, .. } => self.refused_state(status, &words),
        }
    }

    fn state_of(&self, reply: &CloudReply) -> CloudResult<ServerState> {
        let Some(offset) = number(&reply.headers, tus::UPLOAD_OFFSET) else {
            return Err(self.protocol("the cloud answered without Upload-Offset"));
        };
        Ok(ServerState::Known(offset, file_address(&reply.headers)))
    }

    fn refused_state(&self, status: u16, words: &str) -> CloudResult<ServerState> {
        match status {
            404 | 410 => Ok(ServerState::Gone),
            423 => Ok(ServerState::Locked),
            tus::CHECKSUM_MISMATCH => {
                let cause = "the cloud has a content that differs from what was sent";
                Err(Failure::new(Kind::Media, self.operation, cause))
            }
            _ => Err(refused(self.operation, status, words)),
        }
    }

    /// Sends a part.
    async fn send_part(&self, address: &Url, offset: u64, length: u64) -> CloudResult<PartEnd> {
        let file = &self.upload.file;
        let pieces = file_stream::open_part(Arc::clone(&file.file), offset, length);
        let progress = Arc::new(LastProgress::new());
        let read_error = Arc::new(Mutex::new(None));
        let body = keep_error(
            paced(pieces, file.pace.clone(), Arc::clone(&progress)),
            Arc::clone(&read_error),
        );
        let request = self
            .speak(self.http.request_at(Method::PATCH, address.clone()))
            .header(tus::UPLOAD_OFFSET, offset)
            .header(CONTENT_TYPE, tus::PART_TYPE)
            .header(CONTENT_LENGTH, length)
            .body(Body::wrap_stream(body));
        let limit = self.http.timeout() + time_for(length.min(SOCKET_BUFFER));
        let answer = tokio::select! {
            answer = self.http.exchange(self.operation, request) => answer,
            () = progress.stalled(limit) => Err(self.http.timed_out(self.operation, limit)),
        };
        if offset + length == self.size {
            abort::point("after an upload");
        }
        let unreadable = read_error.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(error) = unreadable {
            return Err(Failure::new(Kind::Media, self.operation, error));
        }
        match answer {
            Ok(HttpAnswer::Accepted(reply)) => self.state_of(&reply).map(PartEnd::Answered),
            // The offset is another one, or another request writes: it knows which.
            Ok(HttpAnswer::Refused { status, words, .. }) if matches!(status, 409 | 423) => {
                let failure = refused(self.operation, status, &words);
                Ok(PartEnd::Interrupted(failure))
            }
            Ok(HttpAnswer::Refused {
                status: 413, words, ..
            }) => {
                let failure = refused(self.operation, 413, &words);
                Ok(PartEnd::TooLarge(failure))
            }
            Ok(HttpAnswer::Refused { status, words, .. }) => {
                self.refused_state(status, &words).map(PartEnd::Answered)
            }
            Err(failure) if failure.was_interrupted() || failure.status() == Some(408) => {
                Ok(PartEnd::Interrupted(failure))
            }
            Err(failure) => Err(failure),
        }
    }

    /// The receipt of a file that the server has whole.
    async fn receipt(
        &self,
        address: &Url,
        mut file: Option<StoredAddress>,
        may_be_storing: bool,
    ) -> CloudResult<UploadReceipt> {
        let mut backoff = Backoff::of(waits::FILE_LANE);
        for _ in 0..STORING_TRIES {
            if file.is_some() || !may_be_storing {
                break;
            }
            tokio::time::sleep(backoff.next(None)).await;
            file = match self.ask_patiently(address).await? {
                ServerState::Known(_, file) => file,
                ServerState::Gone | ServerState::Locked => None,
            };
        }
        // Another server than the reference one has the file at the upload's address, and says no hash.
        let file = file.unwrap_or_else(|| StoredAddress {
            url: address.to_string(),
            path: None,
            hash: None,
        });
        let hash = file
            .hash
            .as_deref()
            .and_then(|hash| hash.strip_prefix(HASH_PREFIX));
        if hash.is_some_and(|hash| !hash.eq_ignore_ascii_case(&self.upload.hash.to_hex())) {
            let cause = "the cloud has a content that differs from what was sent";
            return Err(Failure::new(Kind::Media, self.operation, cause));
        }
        Ok(UploadReceipt {
            confirmed: hash.is_some(),
            url: file.url,
            path: file.path,
            hash: self.upload.hash,
            bytes: self.size,
        })
    }
}

/// The stream; what error it ends with is also kept for the caller.
fn keep_error(
    pieces: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    error: Arc<Mutex<Option<String>>>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    pieces.inspect(move |piece| {
        if let Err(cause) = piece {
            *error.lock().unwrap_or_else(PoisonError::into_inner) = Some(cause.to_string());
        }
    })
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

fn file_address(headers: &HeaderMap) -> Option<StoredAddress> {
    let text =
        |name: &str| Some(headers.get(name)?.to_str().ok()?.to_owned()).filter(|text| !text.is_empty());
    Some(StoredAddress {
        url: text(tus::CONTENT_LOCATION)?,
        path: text(tus::UPLOAD_PATH),
        hash: text(tus::UPLOAD_HASH),
    })
}

/// How large the parts are: as many bytes as go in the time that a part should take.
struct PartSizes {
    part_time: Duration,
    next: u64,
    most: u64,
}

impl PartSizes {
    fn new(part_time: Duration) -> Self {
        Self {
            part_time,
            next: FIRST_PART,
            most: LARGEST_PART,
        }
    }

    fn next(&self) -> u64 {
        self.next
    }

    fn sent(&mut self, bytes: u64, took: Duration) {
        let rate = bytes as f64 / took.as_secs_f64().max(0.001);
        let next = (rate * self.part_time.as_secs_f64()) as u64;
        self.next = next.clamp(SMALLEST_PART, self.most);
    }

    /// A part of so many bytes is not taken: none is as long again.
    fn too_large(&mut self, bytes: u64) {
        self.most = (bytes / 2).max(SMALLEST_PART);
        self.next = self.most;
    }

    /// A part of so many bytes was interrupted: a shorter one may get through.
    fn interrupted(&mut self, bytes: u64) {
        self.next = (bytes / 2).clamp(SMALLEST_PART, self.most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deliver::PART_TIME;

    #[test]
    fn parts_follow_the_speed() {
        let mut parts = PartSizes::new(PART_TIME);
        assert_eq!(parts.next(), FIRST_PART);
        parts.sent(FIRST_PART, Duration::from_secs(4));
        assert_eq!(parts.next(), 10 * 1024 * 1024);
        parts.interrupted(parts.next());
        assert_eq!(parts.next(), 5 * 1024 * 1024);
        parts.sent(1024, Duration::from_secs(60));
        assert_eq!(parts.next(), SMALLEST_PART);
        parts.sent(LARGEST_PART, Duration::ZERO);
        assert_eq!(parts.next(), LARGEST_PART);
        parts.too_large(parts.next());
        parts.sent(LARGEST_PART, Duration::ZERO);
        assert_eq!(parts.next(), LARGEST_PART / 2);
    }
}
