//! A file in parts of equal size.
//!
//! Where the storage gives an upload a number (S3, Google Cloud Storage), it goes on after an interruption: the
//! caller notes the number and the names of the parts that are there, up to the first that is not. Elsewhere it
//! begins again.
//!
//! One part at a time goes over a slow line, so that an interruption costs one of them at most; a few over a
//! fast one.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{MultipartUpload, PutMultipartOptions, PutPayload};
use tokio::time::Instant;

use super::{ObjectStorage, changed, failed, pace, read, within};
use crate::deliver::failure::{CloudResult, Failure};
use crate::deliver::resumable::{BegunUpload, ResumableUpload};

/// The least size of a part: S3 takes no smaller one but the last.
const PART: u64 = 5 * 1024 * 1024;

/// The most parts of an upload, with room to the 10,000 that S3 allows.
const PARTS: u64 = 9_000;

/// Parts that are on their way at a time: at first, and on a fast line.
const AT_FIRST: usize = 2;
const ON_A_FAST_LINE: usize = 3;

/// A part that takes less has a fast line, one that takes longer a slow one.
const QUICK: Duration = Duration::from_millis(500);
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
    if took < QUICK {
        ON_A_FAST_LINE
    } else if took > SLOW {
        1
    } else {
        AT_FIRST
    }
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
        let is_usable = key == *self.key && noted.offset == self.offset(noted.parts.len());
        is_usable.then(|| noted.clone())
    }

    /// Where the part of this number begins, or the end of the file.
    fn offset(&self, part: usize) -> u64 {
        (part as u64).saturating_mul(part_size(self.size)).min(self.size)
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
        // What an earlier attempt has sent is not read again: the file looks as it did then.
        let mut hasher = begun.parts.is_empty().then(blake3::Hasher::new);
        let (mut next, mut limit) = (begun.parts.len(), AT_FIRST);
        let mut sending = FuturesUnordered::new();
        let mut ahead = BTreeMap::new();
        while begun.offset < self.size {
            if self.offset(next) < self.size && sending.len() < limit {
                let (part, offset) = (next, self.offset(next));
                let length = self.offset(part + 1) - offset;
                let room = self.storage.room(length).await;
                let content = read(self.operation, file.file.clone(), offset, length).await?;
                if let Some(hasher) = &mut hasher {
                    hasher.update(&content);
                }
                pace(file, content.len()).await;
                let payload = PutPayload::from_bytes(content);
                let number = &number;
                sending.push(async move {
                    let started = Instant::now();
                    let sent = self.store.put_part(self.key, number, part, payload);
                    let sent = within(self.operation, length, sent).await;
                    drop(room);
                    (part, started.elapsed(), sent)
                });
                next += 1;
                continue;
            }
            let Some((part, took, sent)) = sending.next().await else {
                break;
            };
            match sent? {
                Ok(PartId { content_id }) => ahead.insert(part, content_id),
                Err(error) if self.is_unknown(&error, &begun) => return Ok(false),
                Err(error) => return Err(failed(self.operation, error)),
            };
            limit = at_once(took);
            let before = begun.parts.len();
            while let Some(name) = ahead.remove(&begun.parts.len()) {
                begun.parts.push(name);
            }
            if begun.parts.len() > before {
                begun.offset = self.offset(begun.parts.len());
                note(&begun);
            }
        }
        if hasher.is_some_and(|hasher| hasher.finalize() != *hash) {
            return Err(changed(self.operation));
        }
        self.complete(&number, begun.parts).await
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

    async fn complete(&self, number: &String, parts: Vec<String>) -> CloudResult<bool> {
        let parts = parts
            .into_iter()
            .map(|content_id| PartId { content_id })
            .collect();
        let complete = self.store.complete_multipart(self.key, number, parts);
        match within(self.operation, 0, complete).await? {
            Ok(_) => Ok(true),
            // Its answer to an earlier request may have been lost.
            Err(object_store::Error::NotFound { .. }) => {
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
    let mut parts = within(operation, 0, begun)
        .await?
        .map_err(|error| failed(operation, error))?;
    let sent = match send_each_part(storage, operation, parts.as_mut(), upload, size).await {
        Ok(()) => {
            let completed = within(operation, 0, parts.complete()).await;
            completed.and_then(|done| done.map(drop).map_err(|error| failed(operation, error)))
        }
        Err(failure) => Err(failure),
    };
    if sent.is_err() {
        // What cannot be removed now is removed by a rule of the bucket.
        let _ = within(operation, 0, parts.abort()).await;
    }
    sent
}

async fn send_each_part(
    storage: &ObjectStorage,
    operation: &str,
    parts: &mut dyn MultipartUpload,
    upload: &ResumableUpload<'_>,
    size: u64,
) -> CloudResult<()> {
    let file = &upload.file;
    let part_size = part_size(size);
    let mut hasher = blake3::Hasher::new();
    let mut sending = FuturesUnordered::new();
    let mut offset = 0;
    while offset < size || !sending.is_empty() {
        if offset < size && sending.len() < AT_FIRST {
            let length = part_size.min(size - offset);
            let room = storage.room(length).await;
            let content = read(operation, file.file.clone(), offset, length).await?;
            hasher.update(&content);
            pace(file, content.len()).await;
            let part = parts.put_part(PutPayload::from_bytes(content));
            sending.push(async move {
                let sent = within(operation, length, part).await;
                drop(room);
                sent?.map_err(|error| failed(operation, error))
            });
            offset += length;
            continue;
        }
        if let Some(sent) = sending.next().await {
            sent?;
        }
    }
    if hasher.finalize() == upload.hash {
        Ok(())
    } else {
        Err(changed(operation))
    }
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
        let taken = [QUICK / 2, QUICK, SLOW, SLOW * 2].map(at_once);
        assert_eq!(taken, [ON_A_FAST_LINE, AT_FIRST, AT_FIRST, 1]);
    }
}
