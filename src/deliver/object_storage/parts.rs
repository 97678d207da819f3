//! A file in parts of equal size.
//!
//! Where the storage gives an upload a number (S3, Google Cloud Storage), it goes on after an interruption: the
//! caller notes the number and the names of the parts that are there, up to the first that is not. Elsewhere it
//! begins again.
//!
//! One part at a time goes over a slow line, so that an interruption costs one of them at most; two over a fast
//! one. Invariant: whoever waits for room in memory holds up no part that has room.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, Fuse, FusedFuture};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt, TryFutureExt};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{PutMultipartOptions, PutPayload};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::{ObjectStorage, PartBuffer, changed, failed, pace, read, within};
use crate::deliver::failure::{CloudResult, Failure};
use crate::deliver::files::UploadFile;
use crate::deliver::resumable::{BegunUpload, ResumableUpload};

/// The least size of a part: S3 takes no smaller one but the last.
const PART: u64 = 5 * 1024 * 1024;

/// The most parts of an upload, with room to the 10,000 that S3 allows.
const PARTS: u64 = 9_000;

/// Parts that are on their way at a time, unless the line is slow.
const AT_ONCE: usize = 2;

/// A part that takes longer has a slow line.
const SLOW: Duration = Duration::from_secs(2);

/// How often one call begins the upload again, as the storage has lost it.
const CREATIONS: u32 = 3;

/// What stands in an address between the key and the upload's number.
const NUMBER: &str = "?uploadId=";

/// An upload that goes on after an interruption.
pub(super) struct UploadInParts<'a> {
    pub(super) storage: &'a ObjectStorage,
    pub(super) store: &'a dyn MultipartStore,
    pub(super) operation: &'a str,
    pub(super) key: &'a Path,
    pub(super) upload: &'a ResumableUpload<'a>,
    /// Of the file, in bytes.
    pub(super) size: u64,
}

/// The key and the number in the address of an upload below `url`.
pub(super) fn in_address(url: &str, address: &str) -> Option<(Path, String)> {
    let (key, number) = address
        .strip_prefix(url)?
        .strip_prefix('/')?
        .rsplit_once(NUMBER)?;
    Some((Path::parse(key).ok()?, number.to_owned()))
}

/// How many parts go at a time after one has taken so long.
fn at_once(took: Duration) -> usize {
    if took > SLOW { 1 } else { AT_ONCE }
}

impl UploadInParts<'_> {
    /// Sends what is not there, from where an earlier attempt has come.
    pub(super) async fn send(&self) -> CloudResult<()> {
        let mut begun = self.noted();
        for _ in 0..CREATIONS {
            let upload = match begun.take() {
                Some(noted) => noted,
                None => self.create().await?,
            };
            if self.send_rest(upload).await? {
                return Ok(());
            }
        }
        Err(Failure::protocol(
            self.operation,
            "the storage loses the upload again and again",
            "look at its own logs, and at rules of the bucket that remove unfinished uploads",
        ))
    }

    /// What was noted, if it is of this key and of parts as large as they are now.
    fn noted(&self) -> Option<BegunUpload> {
        let noted = self.upload.state.as_ref()?;
        let (key, _) = in_address(&self.storage.url, &noted.address)?;
        let is_usable = key == *self.key && noted.offset == part_offset(noted.parts.len(), self.size);
        is_usable.then(|| noted.clone())
    }

    async fn create(&self) -> CloudResult<BegunUpload> {
        let options = PutMultipartOptions {
            attributes: self.storage.attributes(&self.upload.file.name),
            ..PutMultipartOptions::default()
        };
        let created = self.store.create_multipart_opts(self.key, options);
        let number = within(self.operation, 0, created)
            .await?
            .map_err(|error| failed(self.operation, error))?;
        Ok(BegunUpload {
            address: format!("{}/{}{NUMBER}{number}", self.storage.url, self.key),
            offset: 0,
            parts: Vec::new(),
        })
    }

    /// Sends the parts that are not there, and has the storage put all together. False if the storage does not
    /// know the upload.
    async fn send_rest(&self, mut begun: BegunUpload) -> CloudResult<bool> {
        let Some((_, number)) = in_address(&self.storage.url, &begun.address) else {
            return Ok(false);
        };
        let ResumableUpload { file, hash, note, .. } = self.upload;
        note(&begun);
        let parts = FileParts {
            storage: self.storage,
            operation: self.operation,
            file,
            size: self.size,
        };
        let first = begun.parts.len();
        let put = |part, payload| {
            let sent = self.store.put_part(self.key, &number, part, payload);
            sent.map_ok(|PartId { content_id }| content_id).boxed()
        };
        let arrived = |name| {
            begun.parts.push(name);
            begun.offset = parts.offset(begun.parts.len());
            note(&begun);
        };
        let sent = parts.send_from(first, put, arrived).await;
        match sent {
            // What an earlier attempt has sent is not read again: the file looks as it did then.
            Ok(sent) if first == 0 && sent != *hash => Err(changed(self.operation)),
            Ok(_) => self.complete(&number, begun).await,
            Err(PartFailure::Refused(error)) if self.is_unknown(&error, &begun) => Ok(false),
            Err(failure) => Err(failure.of(self.operation)),
        }
    }

    /// Whether a refusal says that the storage does not know the upload. Some have the words for it that they
    /// have for a wrong key: of an upload that an earlier attempt began, which has got no further, these count
    /// too.
    fn is_unknown(&self, error: &object_store::Error, begun: &BegunUpload) -> bool {
        use object_store::Error as Storage;
        match error {
            Storage::NotFound { .. } => true,
            Storage::PermissionDenied { .. } => self.upload.state.as_ref() == Some(begun),
            _ => false,
        }
    }

    async fn complete(&self, number: &String, begun: BegunUpload) -> CloudResult<bool> {
        let names = begun.parts.iter().cloned();
        let parts = names.map(|content_id| PartId { content_id }).collect();
        let complete = self.store.complete_multipart(self.key, number, parts);
        match within(self.operation, 0, complete).await? {
            Ok(_) => Ok(true),
            // Its answer to an earlier request may have been lost.
            Err(error) if self.is_unknown(&error, &begun) => {
                self.storage.has(self.operation, self.key, self.size).await
            }
            Err(error) => Err(failed(self.operation, error)),
        }
    }
}

/// Sends a file in parts into a storage that gives uploads no number. Parts of an attempt that failed are
/// removed, or expire.
pub(super) async fn send_at_once(
    storage: &ObjectStorage,
    operation: &str,
    key: &Path,
    upload: &ResumableUpload<'_>,
    size: u64,
) -> CloudResult<()> {
    let options = PutMultipartOptions {
        attributes: storage.attributes(&upload.file.name),
        ..PutMultipartOptions::default()
    };
    let begun = storage.store.put_multipart_opts(key, options);
    let mut begun = within(operation, 0, begun)
        .await?
        .map_err(|error| failed(operation, error))?;
    let parts = FileParts {
        storage,
        operation,
        file: &upload.file,
        size,
    };
    let put = |_, payload| begun.put_part(payload).map_ok(|()| String::new()).boxed();
    let sent = match parts.send_from(0, put, |_| {}).await {
        Ok(sent) if sent != upload.hash => Err(changed(operation)),
        Ok(_) => {
            let completed = within(operation, 0, begun.complete()).await;
            completed.and_then(|done| done.map(drop).map_err(|error| failed(operation, error)))
        }
        Err(failure) => Err(failure.of(operation)),
    };
    if sent.is_err() {
        // What cannot be removed now is removed by a rule of the bucket.
        let _ = within(operation, 0, begun.abort()).await;
    }
    sent
}

/// The parts of a file.
struct FileParts<'a> {
    storage: &'a ObjectStorage,
    operation: &'a str,
    file: &'a UploadFile,
    /// In bytes.
    size: u64,
}

/// A part, read, with its room in memory.
struct ReadPart {
    number: usize,
    content: Bytes,
    room: Option<OwnedSemaphorePermit>,
}

/// Why a part did not arrive.
enum PartFailure {
    /// The storage's answer.
    Refused(object_store::Error),
    /// The file's, or the network's.
    Other(Failure),
}

impl PartFailure {
    fn of(self, operation: &str) -> Failure {
        match self {
            Self::Refused(error) => failed(operation, error),
            Self::Other(failure) => failure,
        }
    }
}

impl FileParts<'_> {
    /// Where the part of this number begins, or the end of the file.
    fn offset(&self, part: usize) -> u64 {
        part_offset(part, self.size)
    }

    /// Reads a part once there is room for it, and waits as long as the file's throttle asks.
    async fn read(&self, number: usize) -> CloudResult<ReadPart> {
        let offset = self.offset(number);
        let length = self.offset(number + 1) - offset;
        let room = self.storage.room(length).await;
        let buffer = PartBuffer::new(length, &self.storage.free_buffers);
        let content = read(self.operation, self.file.file.clone(), offset, buffer).await?;
        pace(self.file, content.len()).await;
        Ok(ReadPart {
            number,
            content,
            room,
        })
    }

    /// Sends the parts from this one on by `put`, a few at a time; `arrived` hears what the storage calls each
    /// of them, in order. Returns the hash of what was sent.
    ///
    /// While a part waits for room, those before it go on: they have the room.
    async fn send_from<'a>(
        &self,
        first: usize,
        mut put: impl FnMut(usize, PutPayload) -> BoxFuture<'a, object_store::Result<String>>,
        mut arrived: impl FnMut(String),
    ) -> Result<blake3::Hash, PartFailure> {
        let mut hasher = blake3::Hasher::new();
        let (mut to_read, mut to_arrive, mut at_a_time) = (first, first, AT_ONCE);
        let mut reading = Fuse::terminated();
        let mut sending = FuturesUnordered::new();
        let mut early = BTreeMap::new();
        while self.offset(to_arrive) < self.size {
            if reading.is_terminated() && self.offset(to_read) < self.size && sending.len() < at_a_time {
                reading = self.read(to_read).boxed().fuse();
                to_read += 1;
            }
            tokio::select! {
                part = &mut reading => {
                    let ReadPart { number, content, room } = part.map_err(PartFailure::Other)?;
                    hasher.update(&content);
                    let length = content.len() as u64;
                    let sent = put(number, PutPayload::from_bytes(content));
                    sending.push(async move {
                        let started = Instant::now();
                        let sent = within(self.operation, length, sent).await;
                        drop(room);
                        (number, started.elapsed(), sent)
                    });
                }
                Some((number, took, sent)) = sending.next() => {
                    let name = sent.map_err(PartFailure::Other)?.map_err(PartFailure::Refused)?;
                    at_a_time = at_once(took);
                    early.insert(number, name);
                    while let Some(name) = early.remove(&to_arrive) {
                        to_arrive += 1;
                        arrived(name);
                    }
                }
            }
        }
        Ok(hasher.finalize())
    }
}

fn part_offset(part: usize, size: u64) -> u64 {
    (part as u64).saturating_mul(part_size(size)).min(size)
}

/// The size of each part but the last.
fn part_size(size: u64) -> u64 {
    let mib = 1024 * 1024;
    PART.max(size.div_ceil(PARTS).div_ceil(mib) * mib)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_equal_sizes_and_are_few_enough() {
        assert_eq!(part_size(PART + 1), PART);
        assert_eq!(part_size(40 << 30), PART);
        let huge = 5_u64 << 40;
        assert!(huge.div_ceil(part_size(huge)) <= PARTS);
        assert_eq!(part_size(huge) % (1 << 20), 0);
    }

    #[test]
    fn an_address_has_the_key_and_the_number() {
        let address = "https://files.example/media/college/slips/ab.jpg?uploadId=n?1";
        let found = in_address("https://files.example", address).unwrap();
        assert_eq!(
            (found.0.as_ref(), found.1.as_str()),
            ("media/college/slips/ab.jpg", "n?1")
        );
        assert_eq!(in_address("https://other.example", address), None);
        assert_eq!(
            in_address("https://files.example", "https://files.example/files/1"),
            None
        );
    }

    #[test]
    fn a_slow_line_has_one_part_at_a_time() {
        assert_eq!([SLOW / 2, SLOW, SLOW * 2].map(at_once), [AT_ONCE, AT_ONCE, 1]);
    }
}
