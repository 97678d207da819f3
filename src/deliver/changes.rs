//! `POST /changes`: a whole batch in one request, in its order, on servers that have the capability.
//!
//! The server answers after its own commit. It takes batches in the order of their numbers, and it answers a
//! batch that it has as it did before; so a request without an answer is sent again as it was. What it
//! rejects it names line by line.
//!
//! Failure: if the server refuses the whole request, nothing of it is taken, and the batch is bisected, first
//! half first, until the changes at fault are alone. If a request fails again and again by 5xx or 403, its
//! changes go in smaller and smaller requests, after the others, until it shows whose fault it is
//! ([`Batch::failing`]).

use std::sync::atomic::Ordering;

use futures::future::Either;
use tokio::time::Instant;

use super::changes_answer::{Rejection, read_rejections};
use super::encoded_body::EncodedBody;
use super::failure::{CloudResult, Failure};
use super::http::HttpAnswer;
use super::in_flight::InFlight;
use super::request_sizer::split_by_bytes;
use super::{ChangeOrigin, Cloud, Numbering};
use crate::abort;
use crate::batch::{Batch, ChangeIndex, Fate};
use crate::change::{Cause, Change, Op};
use crate::error::{Error, Kind};
use crate::wire::{Capability, ChangesAnswer, ErrorCode, TurnCode};

/// Sends what is pending, with the request that is already in flight if that has the same changes. If one
/// request has all of it, further batches may be sent while it is in flight.
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
    let operation = cloud.push_operation(batch, &pending);
    // What fails goes after the rest, except where one change must come before another one.
    let is_bound = |change: &Change| change.op == Op::Truncate || change.cause == Cause::ReadsOtherwise;
    if !batch.changes().iter().any(is_bound) {
        pending = batch.failing_last(&pending);
    }
    let bytes = |change_index: ChangeIndex| batch[change_index].bytes();
    let mut pieces: Vec<&[ChangeIndex]> = split_by_bytes(&pending, cloud.inner.sizer.limit(), bytes)
        .into_iter()
        .flat_map(|piece| batch.cut_by_failures(piece))
        .collect();
    // Pieces are taken from the end.
    pieces.reverse();
    while let Some(piece) = pieces.pop() {
        // The first batch of a term goes alone: the cloud does not know the term yet. So does one that takes
        // several requests.
        let pipeline = numbering.pipeline.clone();
        let pipeline = pipeline.filter(|_| piece.len() == pending.len() && numbering.next > 1);
        let _open = pipeline.as_ref().map(|pipeline| pipeline.open(numbering.next));
        let in_flight = in_flight.take().filter(|in_flight| in_flight.changes == piece);
        let outcome = send(cloud, origin, numbering, &operation, batch, piece, in_flight).await;
        if let Err(failure) = &outcome
            && failure.may_be_a_rows_fault()
        {
            let accepted = batch.count(&Fate::Accepted);
            let status = failure.status().unwrap_or(500);
            batch.note_failing(piece, status, failure.error().cause(), false, accepted);
        }
        match outcome? {
            SendOutcome::Answered(rejections) => {
                numbering.note_taken();
                abort::point("after the answer");
                for &change_index in piece {
                    batch.set_fate(change_index, Fate::Accepted);
                }
                for rejection in rejections {
                    if rejection.needs_schema {
                        batch.note_undeclared(rejection.change_index);
                    }
                    batch.set_fate(rejection.change_index, rejection.fate);
                }
            }
            SendOutcome::Refused { status, words } if piece.len() == 1 => {
                let refused = Fate::Refused {
                    code: status,
                    error: words,
                };
                batch.set_fate(piece[0], refused);
            }
            outcome @ (SendOutcome::Refused { .. } | SendOutcome::Unclear) => {
                if matches!(outcome, SendOutcome::Unclear) {
                    numbering.note_taken();
                    if numbering.sent_after_last_taken() {
                        return Err(Failure::new_term(
                            &operation,
                            "some of its changes have to be sent again",
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

enum SendOutcome {
    /// All are accepted but these.
    Answered(Vec<Rejection>),
    /// The whole request was refused.
    Refused { status: u16, words: String },
    /// Something was rejected, and the answer does not say which.
    Unclear,
}

/// Sends one request with these changes, or waits for the one that is in flight with them.
async fn send(
    cloud: &Cloud,
    origin: &ChangeOrigin,
    numbering: &mut Numbering,
    operation: &str,
    batch: &mut Batch,
    piece: &[ChangeIndex],
    mut in_flight: Option<InFlight>,
) -> CloudResult<SendOutcome> {
    let http = &cloud.inner.http;
    loop {
        let is_alone = in_flight.is_none();
        let (size, begun, exchange) = if let Some(in_flight) = in_flight.take() {
            let (size, begun) = (in_flight.size, in_flight.begun);
            (size, begun, Either::Left(in_flight.finish(operation)))
        } else {
            let body = EncodedBody::of(cloud, batch, piece).await;
            if !numbering.claim(body.hash) {
                return Err(Failure::new_term(
                    operation,
                    "other changes were sent under this batch's number and were never answered",
                ));
            }
            let request = body.request(cloud, origin, numbering, numbering.next);
            let exchange = Either::Right(http.exchange(operation, request));
            (body.size, Instant::now(), exchange)
        };
        abort::point("before a send");
        let waiting_since = std::time::Instant::now();
        let answer = http.within(operation, size.bytes, exchange).await;
        let took = waiting_since.elapsed();
        cloud.inner.sizer.record(size.text, &answer);
        match answer? {
            HttpAnswer::Accepted(reply) => {
                let times = reply.times(took);
                batch.note_answer(times);
                cloud.record_answer(begun, is_alone, times.applied);
                let answer: ChangesAnswer = reply.json(operation)?;
                let clean = |words: &str| http.clean(words);
                let rejections = read_rejections(operation, batch, piece, &answer, clean)?;
                return Ok(rejections.map_or(SendOutcome::Unclear, SendOutcome::Answered));
            }
            // It does not know zstd.
            HttpAnswer::Refused { status: 415, .. } if size.is_compressed => {
                cloud.inner.compress.store(false, Ordering::Relaxed);
            }
            HttpAnswer::Refused { status, .. } if matches!(status, 404 | 405) => {
                return Err(Failure::capability(operation, Capability::Changes, status));
            }
            HttpAnswer::Refused {
                status: 409,
                words,
                code: Some(ErrorCode::Turn(code)),
            } => return Err(not_taken(operation, code, words)),
            HttpAnswer::Refused { status, words, .. } => {
                if status == 413 {
                    cloud.inner.sizer.record_too_long(size.text);
                }
                if numbering.sent_after_next() {
                    // The batches that follow it may arrive when another one was taken under its number.
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

/// The failure if the cloud does not take a batch under its number.
fn not_taken(operation: &str, code: TurnCode, words: String) -> Failure {
    match code {
        TurnCode::UnknownTerm => Error::new(Kind::Identity, operation, words)
            .remedy(
                "another machine sends to the cloud as this source: a copy of it, or this one before it was \
                 put back to an older state. Stop the copy; if this is the site's database now, run \
                 `cloud-sync init --new-epoch`",
            )
            .into(),
        TurnCode::StaleEpoch => Error::new(Kind::Identity, operation, words)
            .remedy(
                "a newer outbox took this one's place: if this is the site's database now, run `cloud-sync \
                 init --new-epoch`",
            )
            .into(),
        TurnCode::OutOfTurn | TurnCode::StaleTerm | TurnCode::DifferentBatch => {
            Failure::new_term(operation, words)
        }
    }
}

/// Begins to send what is pending under this number. Returns the request and the hash of its text; `None` if
/// it takes more than one request, or if a text with another hash than `sent` was sent under the number
/// before.
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
    if split_by_bytes(&pending, cloud.inner.sizer.limit(), bytes).len() != 1 {
        return None;
    }
    let body = EncodedBody::of(cloud, batch, &pending).await;
    if sent.is_some_and(|sent| sent != body.hash) {
        return None;
    }
    cloud.inner.uplink.clear().await;
    let request = body.request(cloud, origin, numbering, number);
    let operation = cloud.push_operation(batch, &pending);
    let cloud = cloud.clone();
    pipeline.note_sent_early(number);
    let exchange = async move { cloud.inner.http.exchange(&operation, request).await };
    Some((InFlight::begin(pending, body.size, exchange), body.hash))
}
