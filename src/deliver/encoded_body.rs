//! The body of a `POST /changes`: changes as NDJSON, compressed where that pays.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use reqwest::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use reqwest::{Method, RequestBuilder};

use super::in_flight::BodySize;
use super::{ChangeOrigin, Cloud, Numbering};
use crate::batch::{Batch, ChangeIndex};
use crate::catalogue::Catalogue;
use crate::change::Change;
use crate::wire::paths::CHANGES;
use crate::wire::{BatchHeaders, ChangeLine, NDJSON};

/// A shorter text is not compressed: that would save nothing worth the work.
const WORTH_COMPRESSING: usize = 4 * 1024;

/// A longer text is compressed on a thread of its own.
const LONG_WORK: usize = 256 * 1024;

/// A request's body.
pub(super) struct EncodedBody {
    body: Bytes,
    pub(super) size: BodySize,
    /// Of the text.
    pub(super) hash: blake3::Hash,
}

impl EncodedBody {
    /// The body with these changes of the batch.
    pub(super) async fn of(cloud: &Cloud, batch: &Batch, changes: &[ChangeIndex]) -> Self {
        let changes = changes.iter().map(|&change_index| &batch[change_index]);
        let text = Bytes::from(encode(cloud.catalogue(), changes));
        let text_bytes = text.len();
        let hash = blake3::hash(&text);
        let compressed = if cloud.inner.compress.load(Ordering::Relaxed) {
            compress(text.clone()).await
        } else {
            None
        };
        let is_compressed = compressed.is_some();
        let body = compressed.unwrap_or(text);
        let size = BodySize {
            text: text_bytes,
            bytes: body.len(),
            is_compressed,
        };
        Self { body, size, hash }
    }

    /// The request that sends it as the batch with this number.
    pub(super) fn request(
        &self,
        cloud: &Cloud,
        origin: &ChangeOrigin,
        numbering: &Numbering,
        number: i64,
    ) -> RequestBuilder {
        let headers = BatchHeaders {
            source: &origin.source_id,
            epoch: origin.epoch.0,
            term: numbering.term,
            batch: number,
            nonce: &numbering.nonce,
            previous_nonce: numbering.previous_nonce.as_deref().filter(|_| number == 1),
            database: Some(&origin.database),
        };
        let mut request = cloud.inner.http.request(Method::POST, CHANGES);
        for (name, value) in headers.fields() {
            request = request.header(name, value.as_bytes());
        }
        request = request
            .header(CONTENT_TYPE, NDJSON)
            .header(CONTENT_LENGTH, self.size.bytes);
        if self.size.is_compressed {
            request = request.header(CONTENT_ENCODING, "zstd");
        }
        request.body(cloud.inner.uplink.body(self.body.clone()))
    }
}

/// The changes as NDJSON, their keys and rows unparsed.
fn encode<'a>(catalogue: &Catalogue, changes: impl Iterator<Item = &'a Change> + Clone) -> Vec<u8> {
    let entity = |change: &Change| catalogue[change.entity].name.as_str();
    let bytes = changes
        .clone()
        .map(|change| {
            let row = change.row.as_ref().map_or(0, |row| row.len());
            change.key.len() + row + entity(change).len() + ChangeLine::OVERHEAD
        })
        .sum();
    let mut text = Vec::with_capacity(bytes);
    for change in changes {
        let line = ChangeLine {
            position: change.position.0,
            entity: entity(change).into(),
            op: Some(change.op),
            key: Some(&*change.key).filter(|key| !key.is_empty()),
            row: change.row.as_deref(),
            number: 0,
        };
        line.write_to(&mut text);
    }
    text
}

/// The text compressed; `None` if that does not pay.
async fn compress(text: Bytes) -> Option<Bytes> {
    if text.len() < WORTH_COMPRESSING {
        return None;
    }
    let bytes = text.len();
    let work = move || zstd::bulk::compress(&text, 1).ok();
    let compressed = if bytes < LONG_WORK {
        work()
    } else {
        tokio::task::spawn_blocking(work).await.ok()?
    }?;
    (compressed.len() < bytes / 10 * 9).then(|| Bytes::from(compressed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::EntityIndex;
    use crate::change::{Cause, Op, Position};

    #[test]
    fn the_buffer_is_reserved_once() {
        let change = Change {
            position: Position(i64::MAX),
            entity: EntityIndex(0),
            op: Op::Upsert,
            cause: Cause::Gone,
            captured_at: 0,
            key: "{\"room_id\":1}".into(),
            row: Some("{\"room_id\":1,\"room_no\":\"A1\"}".into()),
        };
        let changes = vec![change; 100];
        let text = encode(&Catalogue::builtin(), changes.iter());
        let spare = text.capacity() - text.len();
        assert!(spare < 100 * 40, "{} of {}", text.len(), text.capacity());
    }
}
