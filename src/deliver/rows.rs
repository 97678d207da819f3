//! The calls of a server without `changes`: `POST /{path}`, `POST /bulk/{path}`, `DELETE /{path}/{key}`.
//!
//! Many requests are under way at once, over kept connections: as soon as one is answered the next one starts. A request
//! that fails in a way that passes is tried a few times, for a few seconds; a longer outage, or a server that asks for a
//! longer wait, is the caller's affair. After the first failure nothing new starts, and what is under way is finished. Only
//! where the server answers 5xx, which may be the fault of one row, the others go on as long as it does not do so to most.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Method, RequestBuilder};
use tokio::time::Instant;

use super::failure::{Failure, Outcome};
use super::fields::{key_line, segment};
use super::link::Answer;
use super::{Cloud, Done, split_by_bytes};
use crate::batch::{Batch, Fate};
use crate::error::Kind;
use crate::retry::Backoff;

/// How often a request is tried in one delivery.
const ATTEMPTS: u32 = 4;

/// How long one delivery tries a request; a longer wait is the caller's.
const PATIENCE: Duration = Duration::from_secs(5);

/// The bounds of one bulk request.
const BULK_ROWS: usize = 500;
const BULK_BYTES: usize = 1024 * 1024;

/// What came of one request: the fates it decided, and what stopped it.
type Answered = (Vec<(usize, Fate)>, Outcome<()>);

/// Sends the rows of one delivery.
pub(super) struct Sender<'c> {
    cloud: &'c Cloud,
    gate: Gate,
}

impl<'c> Sender<'c> {
    pub(super) fn new(cloud: &'c Cloud) -> Self {
        Self {
            cloud,
            gate: Gate::default(),
        }
    }

    /// Upserts rows of one entity, in any order.
    pub(super) async fn upsert(
        &self,
        bulk: bool,
        batch: &mut Batch,
        entity: usize,
        places: &[usize],
    ) -> Outcome<()> {
        let operation = self.cloud.pushing(entity);
        let path = &self.cloud.entity(entity).path;
        let places = batch.failing_last(places);
        let row = |batch: &Batch, nth: usize| {
            let row = batch.changes()[nth].row.as_deref().unwrap_or("{}");
            Bytes::copy_from_slice(row.as_bytes())
        };
        if !bulk {
            let start = |batch: &Batch, nth| self.post(&operation, path, nth, row(batch, nth));
            return self.run_changes(batch, places, start).await;
        }
        let limit = BULK_BYTES.min(self.cloud.request_bytes());
        let chunks: Vec<&[usize]> = split_by_bytes(&places, limit, |nth| batch.changes()[nth].bytes())
            .into_iter()
            .flat_map(|piece| piece.chunks(BULK_ROWS))
            .flat_map(|piece| batch.cut_by_failures(piece))
            .collect();
        let start = |batch: &Batch, chunk: &[usize]| {
            let rows = chunk.iter().map(|&nth| (nth, row(batch, nth))).collect();
            self.post_bulk(&operation, path, rows)
        };
        self.run_changes(batch, chunks, start).await
    }

    /// Deletes rows of one entity, in any order.
    pub(super) async fn delete(&self, batch: &mut Batch, entity: usize, places: &[usize]) -> Outcome<()> {
        let operation = self.cloud.pushing(entity);
        let entity = self.cloud.entity(entity);
        let start = |batch: &Batch, nth: usize| {
            let key = segment(&batch.changes()[nth].key, &entity.key);
            let operation = &operation;
            async move {
                match self.delete_one(operation, &entity.path, nth, key).await {
                    Ok(fate) => (vec![(nth, fate)], Ok(())),
                    Err(failure) => (Vec::new(), Err(failure)),
                }
            }
        };
        let places = batch.failing_last(places);
        self.run_changes(batch, places, start).await
    }

    /// Deletes every row that the cloud has of the truncated entity.
    pub(super) async fn truncate(&self, batch: &mut Batch, nth: usize) -> Outcome<()> {
        let place = batch.changes()[nth].entity;
        let operation = self.cloud.pushing(place);
        let entity = self.cloud.entity(place);
        // One text for all the keys, a line each: the key as a path segment, which is encoded and has no tab, a tab, and the
        // key as JSON.
        let mut keys = String::new();
        let mut odd = false;
        let listed = self.cloud.list(place, None, |row| {
            match segment(row.get(), &entity.key).zip(key_line(row.get(), &entity.key)) {
                Some((segment, key)) => {
                    for part in [&*segment, "\t", &*key, "\n"] {
                        keys.push_str(part);
                    }
                }
                None => odd = true,
            }
            Ok(())
        });
        match listed.await {
            Err(failure) if failure.error().kind() == Kind::CloudRefused => {
                batch.set_fate(
                    nth,
                    refusal(failure.status().unwrap_or(400), failure.error().cause()),
                );
                return Ok(());
            }
            other => other?,
        }
        if odd {
            batch.set_fate(
                nth,
                refusal(422, "the cloud has a row whose key has no form in a URL"),
            );
            return Ok(());
        }
        let start = |_: &Batch, (number, line): (usize, &str)| {
            let segment = line.split_once('\t').map(|(segment, _)| segment.to_owned());
            let operation = &operation;
            async move {
                match self.delete_one(operation, &entity.path, number, segment).await {
                    Ok(Fate::Accepted) => (Vec::new(), Ok(())),
                    Ok(fate) => (vec![(nth, fate)], Ok(())),
                    Err(failure) => (Vec::new(), Err(failure)),
                }
            }
        };
        let end = self.run(batch, keys.lines().enumerate(), start).await;
        self.gate.take_failed();
        let unanswered: HashSet<usize> = self.gate.take_unanswered().into_iter().collect();
        for (number, line) in keys.lines().enumerate() {
            if let Some((_, key)) = line.split_once('\t').filter(|_| unanswered.contains(&number)) {
                batch.note_unanswered(place, key.into());
            }
        }
        if end.is_err() {
            batch.set_fate(nth, Fate::Pending);
        } else if *batch.fate(nth) == Fate::Pending {
            batch.set_fate(nth, Fate::Accepted);
        }
        end
    }

    /// Starts the jobs in order, as many at once as may be in flight, and marks the fates as they come.
    async fn run<J, F: Future<Output = Answered>>(
        &self,
        batch: &mut Batch,
        jobs: impl IntoIterator<Item = J>,
        start: impl Fn(&Batch, J) -> F,
    ) -> Outcome<()> {
        let mut jobs = jobs.into_iter();
        let mut under_way = FuturesUnordered::new();
        let mut stopped = None;
        let (mut accepted, mut failed) = (0, 0);
        loop {
            while !self.gate.is_closed() && under_way.len() < self.cloud.inner.in_flight {
                let Some(job) = jobs.next() else { break };
                under_way.push(start(batch, job));
            }
            let Some((fates, end)) = under_way.next().await else {
                break;
            };
            accepted += usize::from(end.is_ok());
            for (nth, fate) in fates {
                batch.set_fate(nth, fate);
            }
            if let Err(failure) = end {
                failed += 1;
                if !failure.is_passing() || !failure.may_be_a_rows_fault() || failed > accepted {
                    self.gate.close();
                }
                stopped.get_or_insert(failure);
            }
        }
        stopped.map_or(Ok(()), Err)
    }

    /// The same for jobs of the batch's own changes; those whose requests got no answer are noted in the batch.
    async fn run_changes<J, F: Future<Output = Answered>>(
        &self,
        batch: &mut Batch,
        jobs: impl IntoIterator<Item = J>,
        start: impl Fn(&Batch, J) -> F,
    ) -> Outcome<()> {
        let accepted_before = batch.count(&Fate::Accepted);
        let end = self.run(batch, jobs, start).await;
        for failed in self.gate.take_failed() {
            batch.note_failing(&failed.numbers, failed.status, &failed.error, accepted_before);
        }
        for nth in self.gate.take_unanswered() {
            let change = &batch.changes()[nth];
            let (entity, key) = (change.entity, change.key.clone());
            batch.note_unanswered(entity, key);
        }
        end
    }

    async fn post(&self, operation: &str, path: &str, nth: usize, row: Bytes) -> Answered {
        let request = || {
            self.cloud
                .inner
                .link
                .request(Method::POST, path)
                .header(CONTENT_TYPE, "application/json")
                .body(row.clone())
        };
        match self.attempt(operation, row.len(), &[nth], request).await {
            Ok(Answer::Accepted(reply)) => match reply.not_a_page(operation) {
                Ok(()) => (vec![(nth, Fate::Accepted)], Ok(())),
                Err(failure) => (Vec::new(), Err(failure)),
            },
            Ok(Answer::Refused { status, words, .. }) => (vec![(nth, refusal(status, &words))], Ok(())),
            Err(failure) => (Vec::new(), Err(failure)),
        }
    }

    /// One bulk request, bisected where it is refused as a whole.
    async fn post_bulk(&self, operation: &str, path: &str, rows: Vec<(usize, Bytes)>) -> Answered {
        let path = format!("bulk/{path}");
        let mut fates = Vec::with_capacity(rows.len());
        let mut pieces = vec![rows.as_slice()];
        while let Some(piece) = pieces.pop() {
            let body = records(piece);
            let request = || {
                self.cloud
                    .inner
                    .link
                    .request(Method::POST, &path)
                    .header(CONTENT_TYPE, "application/json")
                    .body(body.clone())
            };
            let all: Vec<usize> = piece.iter().map(|(nth, _)| *nth).collect();
            let answer = self.attempt(operation, body.len(), &all, request).await;
            self.cloud.went(body.len(), &answer);
            let done = match answer {
                Ok(Answer::Accepted(reply)) => {
                    let done = reply
                        .json::<Done>(operation)
                        .and_then(|done| done.check(operation));
                    if done.is_ok() {
                        fates.extend(piece.iter().map(|&(nth, _)| (nth, Fate::Accepted)));
                    }
                    done
                }
                Ok(Answer::Refused { status, .. }) if matches!(status, 404 | 405) => {
                    Err(Failure::capability(operation, "bulk", status))
                }
                Ok(Answer::Refused { status, words, .. }) => {
                    if status == 413 {
                        self.cloud.too_long(body.len());
                    }
                    if let [(nth, _)] = piece {
                        fates.push((*nth, refusal(status, &words)));
                    } else {
                        let (first, second) = piece.split_at(piece.len() / 2);
                        pieces.push(second);
                        pieces.push(first);
                    }
                    Ok(())
                }
                Err(failure) => Err(failure),
            };
            if let Err(failure) = done {
                return (fates, Err(failure));
            }
        }
        (fates, Ok(()))
    }

    async fn delete_one(
        &self,
        operation: &str,
        path: &str,
        number: usize,
        key: Option<String>,
    ) -> Outcome<Fate> {
        let Some(key) = key else {
            return Ok(refusal(422, "its key has no form in a URL"));
        };
        let path = format!("{path}/{key}");
        let request = || self.cloud.inner.link.request(Method::DELETE, &path);
        match self.attempt(operation, 0, &[number], request).await? {
            Answer::Accepted(reply) => reply.not_a_page(operation).map(|()| Fate::Accepted),
            Answer::Refused { status: 404, .. } => Ok(Fate::Accepted),
            Answer::Refused { status: 405, .. } => Ok(Fate::Unsupported),
            Answer::Refused { status, words, .. } => Ok(refusal(status, &words)),
        }
    }

    /// One request, tried again while its failure passes soon. `numbers` are those that the caller knows its rows by: where a try
    /// gets no answer, they are in [`Gate::take_unanswered`]; where the failure may be the fault of one, in [`Gate::take_failed`].
    async fn attempt(
        &self,
        operation: &str,
        bytes: usize,
        numbers: &[usize],
        request: impl Fn() -> RequestBuilder,
    ) -> Outcome<Answer> {
        let mut backoff = Backoff::within(Duration::from_millis(50), Duration::from_secs(1));
        let begun = Instant::now();
        loop {
            self.gate.pass().await;
            let failure = match self.cloud.inner.link.call(operation, request(), bytes).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            if failure.was_under_way() {
                self.gate.unanswered(numbers);
            }
            let wait = backoff.next(failure.retry_after());
            if !failure.is_passing()
                || backoff.failures() >= ATTEMPTS
                || begun.elapsed() + wait > PATIENCE
                || self.gate.is_closed()
            {
                self.gate.failed(numbers, &failure);
                return Err(failure);
            }
            if failure.retry_after().is_some() {
                self.gate.hold(wait);
            }
            tokio::time::sleep(wait).await;
        }
    }
}

/// What the requests of one delivery know of each other: that one has failed, and when the server wants the next one.
#[derive(Default)]
struct Gate {
    closed: AtomicBool,
    not_before: Mutex<Option<Instant>>,
    /// The numbers of the rows whose requests got no answer.
    unanswered: Mutex<Vec<usize>>,
    failed: Mutex<Vec<Failed>>,
}

/// A request that failed in a way that may be the fault of one of its rows.
struct Failed {
    numbers: Vec<usize>,
    status: u16,
    error: String,
}

impl Gate {
    /// Nothing is tried again from now on.
    fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    fn unanswered(&self, numbers: &[usize]) {
        self.unanswered
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .extend_from_slice(numbers);
    }

    fn take_unanswered(&self) -> Vec<usize> {
        std::mem::take(
            &mut *self
                .unanswered
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner()),
        )
    }

    fn failed(&self, numbers: &[usize], failure: &Failure) {
        let Some(status) = failure.status().filter(|_| failure.may_be_a_rows_fault()) else {
            return;
        };
        let failed = Failed {
            numbers: numbers.to_vec(),
            status,
            error: failure.error().cause().to_owned(),
        };
        self.failed
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .push(failed);
    }

    fn take_failed(&self) -> Vec<Failed> {
        std::mem::take(
            &mut *self
                .failed
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner()),
        )
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Keeps all requests back for a while: the server asked one of them to.
    fn hold(&self, wait: Duration) {
        let until = Instant::now() + wait;
        let mut not_before = self
            .not_before
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        *not_before = Some(not_before.map_or(until, |earlier| earlier.max(until)));
    }

    async fn pass(&self) {
        let until = *self
            .not_before
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(until) = until {
            tokio::time::sleep_until(until).await;
        }
    }
}

fn refusal(code: u16, error: &str) -> Fate {
    Fate::Refused {
        code,
        error: error.to_owned(),
    }
}

/// `{"records":[…]}`, the rows unparsed.
fn records(rows: &[(usize, Bytes)]) -> Bytes {
    let bytes: usize = rows.iter().map(|(_, row)| row.len() + 1).sum();
    let mut body = BytesMut::with_capacity(bytes + 16);
    body.put_slice(b"{\"records\":[");
    for (at, (_, row)) in rows.iter().enumerate() {
        if at > 0 {
            body.put_u8(b',');
        }
        body.put_slice(row);
    }
    body.put_slice(b"]}");
    body.freeze()
}
