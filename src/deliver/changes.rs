//! `POST /changes`: a whole batch in one request, in its order, on servers that have the capability.
//!
//! The server answers after its own commit, takes batches in the order of their numbers, and answers one that it has as it did
//! before; so a request without an answer is sent again as it was. What it rejects is named line by line. Where its answer is
//! about the whole request, which is not taken then, the batch is bisected, first half first, until the changes at fault
//! stand alone. Where a request fails again and again by 5xx or 403, its changes go in smaller and smaller requests, behind the
//! others, until it shows whose fault it is ([`Batch::failing`]).

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use futures::future::Either;
use reqwest::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use reqwest::{Method, RequestBuilder};

use super::failure::{CloudResult, Failure};
use super::http::HttpAnswer;
use super::in_flight::{BodySize, InFlight};
use super::{ChangeOrigin, Cloud, Numbering, split_by_bytes};
use crate::abort;
use crate::batch::{Batch, ChangeIndex, Fate};
use crate::catalogue::Catalogue;
use crate::change::{Cause, Change, Op};
use crate::error::{Error, Kind};
use crate::wire::paths;
use crate::wire::{
    BatchHeaders, Capability, ChangeLine, ChangesAnswer, ErrorCode, NDJSON, RejectedChange, TurnCode,
};

/// Below this, a compressed body saves nothing worth the work.
const WORTH_COMPRESSING: usize = 4 * 1024;

/// Above this, compression runs beside the event loop.
const LONG_WORK: usize = 256 * 1024;

const REMEDY: &str = "the cloud's server breaks the contract of POST /changes; nothing of this request counts as \
                      accepted";

/// Sends what is pending; by the request that is in flight with it, where that serves. Behind one request that is all of it others may go.
pub(super) async fn deliver(
    cloud: &Cloud,
    origin: &ChangeOrigin,
    numbering: &mut Numbering,
    batch: &mut Batch,
    mut in_flight: Option<InFlight>,
) -> CloudResult<()> {
    let mut pending = batch.pending();
    if pending.is_empty() {
        return Ok(());
    }
    let operation = cloud.operation(batch, &pending);
    // What fails goes behind the rest, except where one change must come before another one.
    let is_bound = |change: &Change| change.op == Op::Truncate || change.cause == Cause::ReadsOtherwise;
    if !batch.changes().iter().any(is_bound) {
        pending = batch.failing_last(&pending);
    }
    // The next piece is the last one.
    let bytes = |change_index: ChangeIndex| batch[change_index].bytes();
    let mut pieces: Vec<&[ChangeIndex]> = split_by_bytes(&pending, cloud.request_bytes(), bytes)
        .into_iter()
        .flat_map(|piece| batch.cut_by_failures(piece))
        .collect();
    pieces.reverse();
    while let Some(piece) = pieces.pop() {
        // The first batch of a term goes alone: the cloud does not know the term yet. So does one that takes several requests.
        let pipeline = numbering.pipeline.clone();
        let pipeline = pipeline.filter(|_| piece.len() == pending.len() && numbering.next > 1);
        let _open = pipeline.as_ref().map(|pipeline| pipeline.open(numbering.next));
        let in_flight = in_flight.take().filter(|in_flight| in_flight.places == piece);
        let sent = send(cloud, origin, numbering, &operation, batch, piece, in_flight).await;
        if let Err(failure) = &sent
            && failure.may_be_a_rows_fault()
        {
            let accepted = batch.count(&Fate::Accepted);
            let status = failure.status().unwrap_or(500);
            batch.note_failing(piece, status, failure.error().cause(), false, accepted);
        }
        match sent? {
            SendOutcome::Answered(rejections) => {
                numbering.accepted();
                abort::point("after the answer");
                for &change_index in piece {
                    batch.set_fate(change_index, Fate::Accepted);
                }
                for rejection in rejections {
                    if rejection.untold {
                        batch.note_untold(rejection.change_index);
                    }
                    batch.set_fate(rejection.change_index, rejection.fate);
                }
            }
            SendOutcome::Refused { status, words } if piece.len() == 1 => {
                batch.set_fate(
                    piece[0],
                    Fate::Refused {
                        code: status,
                        error: words,
                    },
                );
            }
            sent @ (SendOutcome::Refused { .. } | SendOutcome::Unclear) => {
                if matches!(sent, SendOutcome::Unclear) {
                    numbering.accepted();
                    if numbering.was_followed() {
                        return Err(Failure::new_term(
                            &operation,
                            "some of its changes have to go again",
                        ));
                    }
                }
                let (first, second) = piece.split_at(piece.len() / 2);
                pieces.push(second);
                pieces.push(first);
            }
        }
    }
    Ok(())
}

/// One rejected change.
struct Rejection {
    change_index: ChangeIndex,
    fate: Fate,
    /// It was rejected for what the cloud was not told of: its entity or one of its columns.
    untold: bool,
}

enum SendOutcome {
    /// All are accepted but these.
    Answered(Vec<Rejection>),
    /// The whole request was refused.
    Refused { status: u16, words: String },
    /// Something was rejected, and the answer does not say which.
    Unclear,
}

async fn send(
    cloud: &Cloud,
    origin: &ChangeOrigin,
    numbering: &mut Numbering,
    operation: &str,
    batch: &mut Batch,
    piece: &[ChangeIndex],
    mut in_flight: Option<InFlight>,
) -> CloudResult<SendOutcome> {
    let link = &cloud.inner.link;
    loop {
        let alone = in_flight.is_none();
        let (size, begun, exchange) = if let Some(in_flight) = in_flight.take() {
            let (size, begun) = (in_flight.size, in_flight.begun);
            (size, begun, Either::Left(in_flight.finish(operation)))
        } else {
            let packed = EncodedBody::of(cloud, batch, piece).await;
            if !numbering.admits(packed.hash) {
                return Err(Failure::new_term(
                    operation,
                    "other changes went under this batch's number, and their answer never came",
                ));
            }
            let request = packed.request(cloud, origin, numbering, numbering.next);
            let exchange = Either::Right(link.exchange(operation, request));
            (packed.size, tokio::time::Instant::now(), exchange)
        };
        abort::point("before a send");
        let sent = Instant::now();
        let answer = link.within(operation, size.bytes, exchange).await;
        let took = sent.elapsed();
        cloud.went(size.text, &answer);
        match answer? {
            HttpAnswer::Accepted(reply) => {
                let answered = reply.answered(took);
                batch.note_answer(answered);
                cloud.answered(begun, alone, answered.applied);
                let answer: ChangesAnswer = reply.json(operation)?;
                return read_answer(operation, batch, piece, answer, |words| link.clean(words));
            }
            HttpAnswer::Refused { status: 415, .. } if size.squeezed => {
                cloud.inner.compress.store(false, Ordering::Relaxed);
            }
            HttpAnswer::Refused { status, .. } if matches!(status, 404 | 405) => {
                return Err(Failure::capability(operation, Capability::Changes, status));
            }
            HttpAnswer::Refused { status, words, code } => {
                if status == 409
                    && let Some(ErrorCode::Turn(code)) = code
                {
                    return Err(out_of_turn(operation, code, words));
                }
                if status == 413 {
                    cloud.too_long(size.text);
                }
                if numbering.is_followed() {
                    // Those behind it may come when something else was taken under its number.
                    return Err(Failure::new_term(
                        operation,
                        format!("the cloud answered {status}: {words}"),
                    ));
                }
                numbering.refused();
                return Ok(SendOutcome::Refused { status, words });
            }
        }
    }
}

/// The error of a cloud that does not take a batch under its number.
fn out_of_turn(operation: &str, code: TurnCode, words: String) -> Failure {
    match code {
        TurnCode::UnknownTerm => Error::new(Kind::Identity, operation, words)
            .remedy(
                "another machine sends to the cloud as this source: a copy of it, or this one before it was put back to an older \
                 state. Stop the copy; if this is the site's database now, run `cloud-sync init --new-epoch`",
            )
            .into(),
        TurnCode::StaleEpoch => Error::new(Kind::Identity, operation, words)
            .remedy("a newer outbox took this one's place: if this is the site's database now, run `cloud-sync init --new-epoch`")
            .into(),
        TurnCode::OutOfTurn | TurnCode::StaleTerm | TurnCode::DifferentBatch => Failure::new_term(operation, words),
    }
}

/// Begins to send what is pending under this number, where that is one request and the same as before; none otherwise.
pub(super) async fn begin(
    cloud: &Cloud,
    origin: &ChangeOrigin,
    numbering: &Numbering,
    number: i64,
    batch: &Batch,
    sent: Option<blake3::Hash>,
) -> Option<(InFlight, blake3::Hash)> {
    let pipeline = numbering.pipeline.as_ref()?;
    let pending = batch.pending();
    let bytes = |change_index: ChangeIndex| batch[change_index].bytes();
    if split_by_bytes(&pending, cloud.request_bytes(), bytes).len() != 1 {
        return None;
    }
    let packed = EncodedBody::of(cloud, batch, &pending).await;
    if sent.is_some_and(|sent| sent != packed.hash) {
        return None;
    }
    cloud.inner.uplink.clear().await;
    let request = packed.request(cloud, origin, numbering, number);
    let operation = cloud.operation(batch, &pending);
    let cloud = cloud.clone();
    pipeline.goes(number);
    let exchange = async move { cloud.inner.link.exchange(&operation, request).await };
    Some((InFlight::begin(pending, packed.size, exchange), packed.hash))
}

/// A request's body.
struct EncodedBody {
    body: Bytes,
    size: BodySize,
    /// Of the text.
    hash: blake3::Hash,
}

impl EncodedBody {
    async fn of(cloud: &Cloud, batch: &Batch, places: &[ChangeIndex]) -> Self {
        let changes = places.iter().map(|&change_index| &batch[change_index]);
        let text = Bytes::from(encode(cloud.catalogue(), changes));
        let length = text.len();
        let hash = blake3::hash(&text);
        let squeezed = if cloud.inner.compress.load(Ordering::Relaxed) {
            squeeze(text.clone()).await
        } else {
            None
        };
        let is_squeezed = squeezed.is_some();
        let body = squeezed.unwrap_or(text);
        let size = BodySize {
            text: length,
            bytes: body.len(),
            squeezed: is_squeezed,
        };
        Self { body, size, hash }
    }

    fn request(
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
        let mut request = cloud.inner.link.request(Method::POST, paths::CHANGES);
        for (name, value) in headers.fields() {
            request = request.header(name, value.as_bytes());
        }
        request = request
            .header(CONTENT_TYPE, NDJSON)
            .header(CONTENT_LENGTH, self.size.bytes);
        if self.size.squeezed {
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
            change.key.len()
                + change.row.as_ref().map_or(0, |row| row.len())
                + entity(change).len()
                + ChangeLine::OVERHEAD
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

/// The text compressed, where that pays.
async fn squeeze(text: Bytes) -> Option<Bytes> {
    if text.len() < WORTH_COMPRESSING {
        return None;
    }
    let bytes = text.len();
    let work = move || zstd::bulk::compress(&text, 1).ok();
    let squeezed = if bytes < LONG_WORK {
        work()
    } else {
        tokio::task::spawn_blocking(work).await.ok()?
    }?;
    (squeezed.len() < bytes / 10 * 9).then(|| Bytes::from(squeezed))
}

/// The fate of a rejected change: an HTTP status where the code is one, else 422 with the code before the words.
fn fate_of(rejected: &RejectedChange, clean: impl Fn(&str) -> String) -> Fate {
    let (code, error) = (rejected.code.as_str(), rejected.error.as_str());
    match code.parse() {
        Ok(status @ 400..=599) => Fate::Refused {
            code: status,
            error: clean(error),
        },
        _ if code.is_empty() => Fate::Refused {
            code: 422,
            error: clean(error),
        },
        _ => Fate::Refused {
            code: 422,
            error: clean(&format!("{code}: {error}")),
        },
    }
}

/// Checks the answer against what was sent, and finds the rejected changes.
fn read_answer(
    operation: &str,
    batch: &Batch,
    piece: &[ChangeIndex],
    answer: ChangesAnswer,
    clean: impl Fn(&str) -> String,
) -> CloudResult<SendOutcome> {
    let wrong = |cause: String| Failure::protocol(operation, cause, REMEDY);
    let ChangesAnswer {
        applied,
        skipped,
        rejected,
    } = answer;
    let answered = applied
        .saturating_add(skipped)
        .saturating_add(rejected.len() as u64);
    if answered != piece.len() as u64 {
        return Err(wrong(format!(
            "{} changes were sent and {answered} answered",
            piece.len()
        )));
    }
    let position = |change_index: ChangeIndex| batch[change_index].position.0;
    // Which change has a position, none where several have it.
    let mut of_position = HashMap::new();
    if !rejected.is_empty() {
        for &change_index in piece {
            let known = of_position.entry(position(change_index));
            known.and_modify(|one| *one = None).or_insert(Some(change_index));
        }
    }
    let mut rejections = Vec::with_capacity(rejected.len());
    for one in &rejected {
        let change_index = match one.line {
            Some(line) => {
                let change_index = line.checked_sub(1).and_then(|line| piece.get(line)).copied();
                change_index.filter(|&change_index| position(change_index) == one.position)
            }
            None => match of_position.get(&one.position) {
                Some(None) => return Ok(SendOutcome::Unclear),
                Some(change_index) => *change_index,
                None => None,
            },
        };
        let Some(change_index) = change_index else {
            let cause = format!("it rejected position {}, which was not sent there", one.position);
            return Err(wrong(cause));
        };
        rejections.push(Rejection {
            change_index,
            fate: fate_of(one, &clean),
            untold: one.code.needs_schema(),
        });
    }
    rejections.sort_by_key(|one| one.change_index);
    if rejections
        .windows(2)
        .any(|pair| pair[0].change_index == pair[1].change_index)
    {
        return Err(wrong("it rejected one change twice".to_owned()));
    }
    Ok(SendOutcome::Answered(rejections))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::EntityIndex;
    use crate::change::Position;

    fn change(position: i64, op: Op) -> Change {
        Change {
            position: Position(position),
            entity: EntityIndex(0),
            op,
            cause: Cause::Gone,
            captured_at: 0,
            key: if op == Op::Truncate {
                ""
            } else {
                "{\"room_id\" : 1}"
            }
            .into(),
            row: (op == Op::Upsert).then(|| "{\"room_id\":1,\n\"x\":\r\n{\"y\" :\"a\\n\"}}".into()),
        }
    }

    #[test]
    fn the_buffer_is_reserved_once() {
        let changes = vec![change(i64::MAX, Op::Upsert); 100];
        let text = encode(&Catalogue::builtin(), changes.iter());
        assert!(
            text.capacity() - text.len() < 100 * 40,
            "{} of {}",
            text.len(),
            text.capacity()
        );
    }

    fn judge(positions: &[i64], answer: &str) -> Result<Option<Vec<(ChangeIndex, Fate)>>, Failure> {
        let batch = Batch::new(
            positions
                .iter()
                .map(|&position| change(position, Op::Upsert))
                .collect(),
        );
        let piece = batch.pending();
        let answer = serde_json::from_str(answer).unwrap();
        Ok(
            match read_answer("push rooms to the cloud", &batch, &piece, answer, str::to_owned)? {
                SendOutcome::Answered(rejections) => Some(
                    rejections
                        .into_iter()
                        .map(|one| (one.change_index, one.fate))
                        .collect(),
                ),
                _ => None,
            },
        )
    }

    #[test]
    fn rejections_are_attributed_by_position_or_line() {
        let refused = |code, error: &str| Fate::Refused {
            code,
            error: error.to_owned(),
        };
        let answer = r#"{"applied":1,"skipped":0,"rejected":[{"position":8,"code":"409","error":"taken"}]}"#;
        assert_eq!(
            judge(&[7, 8], answer).unwrap(),
            Some(vec![(ChangeIndex(1), refused(409, "taken"))])
        );
        let answer =
            r#"{"applied":1,"skipped":0,"rejected":[{"position":0,"line":2,"code":"23502","error":"null"}]}"#;
        assert_eq!(
            judge(&[0, 0], answer).unwrap(),
            Some(vec![(ChangeIndex(1), refused(422, "23502: null"))])
        );
        let answer = r#"{"applied":1,"skipped":0,"rejected":[{"position":0,"code":"x","error":"null"}]}"#;
        assert_eq!(judge(&[0, 0], answer).unwrap(), None, "to be bisected");
        assert_eq!(
            judge(&[0, 9], answer).unwrap(),
            Some(vec![(ChangeIndex(0), refused(422, "x: null"))])
        );
    }

    #[test]
    fn answers_that_do_not_add_up_are_not_believed() {
        for answer in [
            r#"{"applied":1,"skipped":0,"rejected":[]}"#,
            r#"{"applied":2,"skipped":1,"rejected":[]}"#,
            r#"{"applied":1,"skipped":0,"rejected":[{"position":5,"code":"x","error":""}]}"#,
            r#"{"applied":1,"skipped":0,"rejected":[{"position":1,"line":2,"code":"x","error":""}]}"#,
            r#"{"applied":1,"skipped":0,"rejected":[{"position":1,"line":0,"code":"x","error":""}]}"#,
            r#"{"applied":0,"skipped":0,"rejected":[{"position":1,"code":"x","error":""},{"position":1,"code":"x","error":""}]}"#,
        ] {
            let failure = judge(&[1, 2], answer).expect_err(answer);
            assert_eq!(failure.error().kind(), crate::error::Kind::CloudProtocol);
        }
    }
}
