//! The calls of a server without `changes`: `POST /{path}`, `POST /bulk/{path}`, `DELETE /{path}/{key}`.
//!
//! Many requests are under way at once, over kept connections: as soon as one is answered the next one
//! starts. A request that fails in a way that passes is tried a few times, for a few seconds; a longer
//! outage, or a server that asks for a longer wait, is the caller's affair. After the first failure nothing
//! new starts, and what is under way is finished. Only where the server answers 5xx, which may be the fault
//! of one row, the others go on as long as it does not do so to most.

use std::collections::HashSet;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Method, RequestBuilder};
use tokio::time::Instant;

use super::failure::{CloudResult, Failure};
use super::fields::{key_line, segment};
use super::http::HttpAnswer;
use super::partial;
use super::reply::{BulkVerdict, CloudReply, Verdict};
use super::words::without_row;
use super::{Cloud, split_by_bytes};
use crate::batch::{Batch, ChangeIndex, Fate};
use crate::catalogue::{Entity, EntityIndex};
use crate::error::Kind;
use crate::retry::Backoff;
use crate::wire::{Capability, JSON};

/// How often a request is tried in one delivery.
const ATTEMPTS: u32 = 4;

/// How long one delivery tries a request; a longer wait is the caller's.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many more requests than are accepted may fail of one entity's in a delivery, where the server's
/// application says so itself.
const TOLD: usize = 50;

/// How long one bulk request may be, in bytes.
const BULK_BYTES: usize = 1024 * 1024;

/// What came of one request: the fates it decided, and what stopped it.
type RequestOutcome = (Vec<(ChangeIndex, Fate)>, CloudResult<()>);

/// Sends the rows of one delivery.
pub(super) struct RowSender<'c> {
    cloud: &'c Cloud,
    gate: RequestGate,
}

impl<'c> RowSender<'c> {
    pub(super) fn new(cloud: &'c Cloud) -> Self {
        Self {
            cloud,
            gate: RequestGate::default(),
        }
    }

    /// Lets requests go again after rows of one entity have failed: those of others may not.
    pub(super) fn reopen(&self) {
        self.gate.closed.store(false, Ordering::Relaxed);
    }

    /// Upserts rows of one entity, in any order.
    pub(super) async fn upsert(
        &self,
        bulk: bool,
        batch: &mut Batch,
        entity: EntityIndex,
        places: &[ChangeIndex],
    ) -> CloudResult<()> {
        let operation = self.cloud.pushing(entity);
        let places = batch.failing_last(places);
        if !bulk {
            let start = |batch: &Batch, change_index: ChangeIndex| {
                let row = self.body(batch, change_index);
                let operation = &operation;
                async move {
                    match row {
                        Ok(row) => self.post(operation, entity, change_index, row).await,
                        Err(unfit) => (vec![(change_index, unfit)], Ok(())),
                    }
                }
            };
            return self.run_changes(batch, places, start).await;
        }
        let limit = BULK_BYTES.min(self.cloud.request_bytes());
        let together = self.cloud.bulk_rows(entity).load(Ordering::Relaxed);
        let chunks: Vec<&[ChangeIndex]> =
            split_by_bytes(&places, limit, |change_index| batch[change_index].bytes())
                .into_iter()
                .flat_map(|piece| piece.chunks(together))
                .flat_map(|piece| batch.cut_by_failures(piece))
                .collect();
        let start = |batch: &Batch, chunk: &[ChangeIndex]| {
            let (mut rows, mut unfit) = (Vec::with_capacity(chunk.len()), Vec::new());
            for &change_index in chunk {
                match self.body(batch, change_index) {
                    Ok(row) => rows.push((change_index, row)),
                    Err(fate) => unfit.push((change_index, fate)),
                }
            }
            let operation = &operation;
            async move {
                let (mut fates, end) = self.post_bulk(operation, entity, rows).await;
                fates.append(&mut unfit);
                (fates, end)
            }
        };
        self.run_changes(batch, chunks, start).await
    }

    /// A change's row in the form that the server wants; where it has none, what becomes of it.
    fn body(&self, batch: &Batch, change_index: ChangeIndex) -> Result<Bytes, Fate> {
        let change = &batch[change_index];
        let row = change.row.as_deref().unwrap_or("{}");
        match self.cloud.form(change.entity) {
            None => Ok(Bytes::copy_from_slice(row.as_bytes())),
            Some(form) => form
                .shape(row)
                .map(Bytes::from)
                .map_err(|error| refusal(422, &error)),
        }
    }

    /// Deletes rows of one entity, in any order.
    pub(super) async fn delete(
        &self,
        batch: &mut Batch,
        entity: EntityIndex,
        places: &[ChangeIndex],
    ) -> CloudResult<()> {
        let operation = self.cloud.pushing(entity);
        let entity = self.cloud.entity(entity);
        let start = |batch: &Batch, change_index: ChangeIndex| {
            let change = &batch[change_index];
            let key = segment(
                &self.cloud.cloud_key_of(change.entity, &change.key),
                &entity.cloud_key(),
            );
            let operation = &operation;
            async move {
                match self.delete_one(operation, entity, change_index.0, key).await {
                    Ok(fate) => (vec![(change_index, fate)], Ok(())),
                    Err(failure) => (Vec::new(), Err(failure)),
                }
            }
        };
        let places = batch.failing_last(places);
        self.run_changes(batch, places, start).await
    }

    /// Deletes every row that the cloud has of the truncated entity.
    pub(super) async fn truncate(&self, batch: &mut Batch, change_index: ChangeIndex) -> CloudResult<()> {
        let place = batch[change_index].entity;
        let operation = self.cloud.pushing(place);
        let entity = self.cloud.entity(place);
        let cloud_key = entity.cloud_key();
        // One text for all the keys, a line each: the key as a path segment, which is encoded and has no tab,
        // a tab, and the key as JSON.
        let mut keys = String::new();
        let mut odd = false;
        let listed = self.cloud.list(place, None, |row| {
            match segment(row.get(), &cloud_key).zip(key_line(row.get(), &cloud_key, &entity.key)) {
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
                    change_index,
                    refusal(failure.status().unwrap_or(400), failure.error().cause()),
                );
                return Ok(());
            }
            other => drop(other?),
        }
        if odd {
            batch.set_fate(
                change_index,
                refusal(422, "the cloud has a row whose key has no form in a URL"),
            );
            return Ok(());
        }
        let start = |_: &Batch, (number, line): (usize, &str)| {
            let segment = line.split_once('\t').map(|(segment, _)| segment.to_owned());
            let operation = &operation;
            async move {
                match self.delete_one(operation, entity, number, segment).await {
                    Ok(Fate::Accepted) => (Vec::new(), Ok(())),
                    Ok(fate) => (vec![(change_index, fate)], Ok(())),
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
            batch.set_fate(change_index, Fate::Pending);
        } else if *batch.fate(change_index) == Fate::Pending {
            batch.set_fate(change_index, Fate::Accepted);
        }
        end
    }

    /// Starts the jobs in order, as many at once as may be in flight, and marks the fates as they come.
    async fn run<J, F: Future<Output = RequestOutcome>>(
        &self,
        batch: &mut Batch,
        jobs: impl IntoIterator<Item = J>,
        start: impl Fn(&Batch, J) -> F,
    ) -> CloudResult<()> {
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
            for (change_index, fate) in fates {
                batch.set_fate(change_index, fate);
            }
            if let Err(failure) = end {
                failed += 1;
                // Where the application itself refuses row by row, a few more show which ones.
                let most = accepted + if failure.is_told() { TOLD } else { 0 };
                if !failure.is_passing() || !failure.may_be_a_rows_fault() || failed > most {
                    self.gate.close();
                }
                stopped.get_or_insert(failure);
            }
        }
        stopped.map_or(Ok(()), Err)
    }

    /// The same for jobs of the batch's own changes; those whose requests got no answer are noted in the
    /// batch.
    async fn run_changes<J, F: Future<Output = RequestOutcome>>(
        &self,
        batch: &mut Batch,
        jobs: impl IntoIterator<Item = J>,
        start: impl Fn(&Batch, J) -> F,
    ) -> CloudResult<()> {
        let accepted_before = batch.count(&Fate::Accepted);
        let end = self.run(batch, jobs, start).await;
        for failed in self.gate.take_failed() {
            let mut error = failed.error;
            let changes: Vec<ChangeIndex> = failed.numbers.into_iter().map(ChangeIndex).collect();
            if let ([change_index], Some(words)) = (changes.as_slice(), &failed.words) {
                let row = batch[*change_index].row.as_deref().unwrap_or("{}");
                error = format!("{error}: {}", without_row(words, row));
            }
            batch.note_failing(&changes, failed.status, &error, failed.told, accepted_before);
        }
        for number in self.gate.take_unanswered() {
            let change = &batch[ChangeIndex(number)];
            let (entity, key) = (change.entity, change.key.clone());
            batch.note_unanswered(entity, key);
        }
        end
    }

    async fn post(
        &self,
        operation: &str,
        entity: EntityIndex,
        change_index: ChangeIndex,
        row: Bytes,
    ) -> RequestOutcome {
        let path = &self.cloud.entity(entity).path;
        let request = || {
            self.cloud
                .inner
                .link
                .request(Method::POST, path)
                .header(CONTENT_TYPE, JSON)
                .body(row.clone())
        };
        let text = std::str::from_utf8(&row).unwrap_or_default();
        let answer = match self
            .attempt(operation, row.len(), &[change_index.0], request)
            .await
        {
            Ok(HttpAnswer::Refused { status, words, .. }) => {
                return (
                    vec![(change_index, refusal(status, &without_row(&words, text)))],
                    Ok(()),
                );
            }
            Ok(HttpAnswer::Accepted(reply)) => {
                self.accepted(operation, &reply, &[change_index.0], Some(text))
            }
            Err(failure) => Err(failure),
        };
        match answer {
            Ok(()) => (vec![(change_index, Fate::Accepted)], Ok(())),
            Err(failure) => (Vec::new(), Err(failure)),
        }
    }

    /// Whether a 2xx says that the rows with these numbers were accepted; where it does not, they are in
    /// [`RequestGate::take_failed`].
    fn accepted(
        &self,
        operation: &str,
        reply: &CloudReply,
        numbers: &[usize],
        row: Option<&str>,
    ) -> CloudResult<()> {
        let failure = match reply.verdict(operation, row) {
            Ok(Verdict::Accepted) => return Ok(()),
            Ok(Verdict::Failed(words)) => {
                let words = self.cloud.inner.link.clean(&words);
                Failure::failed(operation, reply.status.as_u16(), words)
            }
            Err(failure) => failure,
        };
        self.gate.failed(numbers, &failure);
        Err(failure)
    }

    /// One bulk request, halved where it is refused as a whole or in part.
    async fn post_bulk(
        &self,
        operation: &str,
        entity: EntityIndex,
        rows: Vec<(ChangeIndex, Bytes)>,
    ) -> RequestOutcome {
        let path = self.cloud.entity(entity).bulk_path();
        let mut fates = Vec::with_capacity(rows.len());
        let mut pieces = vec![rows.as_slice()];
        let mut told = None;
        while let Some(piece) = pieces.pop() {
            if piece.is_empty() {
                continue;
            }
            let body = records(piece);
            let request = || {
                self.cloud
                    .inner
                    .link
                    .request(Method::POST, &path)
                    .header(CONTENT_TYPE, JSON)
                    .body(body.clone())
            };
            let all: Vec<usize> = piece.iter().map(|(change_index, _)| change_index.0).collect();
            let answer = self.attempt(operation, body.len(), &all, request).await;
            self.cloud.went(body.len(), &answer);
            let (status, words) = match answer {
                Ok(HttpAnswer::Accepted(reply)) => match reply.bulk_verdict(operation, piece.len()) {
                    Ok(BulkVerdict::All) => {
                        self.cloud.note_bulk(entity, true);
                        fates.extend(
                            piece
                                .iter()
                                .map(|&(change_index, _)| (change_index, Fate::Accepted)),
                        );
                        continue;
                    }
                    Ok(BulkVerdict::NotAll { errors, left_out }) => {
                        self.cloud.note_bulk(entity, false);
                        let key = self.cloud.entity(entity).cloud_key();
                        if let Some(refused) = partial::refused(piece, &key, &errors, left_out) {
                            let link = &self.cloud.inner.link;
                            fates.extend(piece.iter().enumerate().map(|(at, (change_index, row))| {
                                let Some(words) = refused.get(&at) else {
                                    return (*change_index, Fate::Accepted);
                                };
                                let text = std::str::from_utf8(row).unwrap_or_default();
                                (
                                    *change_index,
                                    refusal(reply.status.as_u16(), &without_row(&link.clean(words), text)),
                                )
                            }));
                            continue;
                        }
                        (reply.status.as_u16(), None)
                    }
                    Err(failure) => {
                        self.gate.failed(&all, &failure);
                        return (fates, Err(failure));
                    }
                },
                Ok(HttpAnswer::Refused { status, .. }) if matches!(status, 404 | 405) => {
                    return (
                        fates,
                        Err(Failure::capability(operation, Capability::Bulk, status)),
                    );
                }
                Ok(HttpAnswer::Refused { status, words, .. }) => {
                    if status == 413 {
                        self.cloud.too_long(body.len());
                    }
                    (status, Some(words))
                }
                Err(failure) => return (fates, Err(failure)),
            };
            match (piece, words) {
                ([(change_index, row)], Some(words)) => {
                    let text = std::str::from_utf8(row).unwrap_or_default();
                    fates.push((*change_index, refusal(status, &without_row(&words, text))));
                }
                // Its own call says whether this row was taken: how servers count rows in bulk differs.
                ([(change_index, row)], None) => {
                    let (mut fate, end) = self.post(operation, entity, *change_index, row.clone()).await;
                    fates.append(&mut fate);
                    match end {
                        // The other pieces have had nothing to do with it.
                        Err(failure) if failure.is_told() => drop(told.get_or_insert(failure)),
                        Err(failure) => return (fates, Err(failure)),
                        Ok(()) => {}
                    }
                }
                _ => {
                    let (first, second) = piece.split_at(piece.len() / 2);
                    pieces.push(second);
                    pieces.push(first);
                }
            }
        }
        (fates, told.map_or(Ok(()), Err))
    }

    async fn delete_one(
        &self,
        operation: &str,
        entity: &Entity,
        number: usize,
        key: Option<String>,
    ) -> CloudResult<Fate> {
        let Some(key) = key else {
            return Ok(refusal(422, "its key has no form in a URL"));
        };
        let path = entity.delete_path(&key);
        let request = || self.cloud.inner.link.request(Method::DELETE, &path);
        match self.attempt(operation, 0, &[number], request).await? {
            HttpAnswer::Accepted(reply) => self
                .accepted(operation, &reply, &[number], None)
                .map(|()| Fate::Accepted),
            HttpAnswer::Refused { status: 404, .. } => Ok(Fate::Accepted),
            HttpAnswer::Refused { status: 405, .. } => Ok(Fate::Unsupported),
            HttpAnswer::Refused { status, words, .. } => Ok(refusal(status, &words)),
        }
    }

    /// One request, tried again while its failure passes soon. `numbers` are those that the caller knows its
    /// rows by: where a try gets no answer, they are in [`RequestGate::take_unanswered`]; where the failure may be
    /// the fault of one, in [`RequestGate::take_failed`].
    async fn attempt(
        &self,
        operation: &str,
        bytes: usize,
        numbers: &[usize],
        request: impl Fn() -> RequestBuilder,
    ) -> CloudResult<HttpAnswer> {
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
            // What the server's application has said, it will say again in a moment.
            if !failure.is_passing()
                || failure.is_told()
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

/// What the requests of one delivery know of each other: that one has failed, and when the server wants the
/// next one.
#[derive(Default)]
struct RequestGate {
    closed: AtomicBool,
    not_before: Mutex<Option<Instant>>,
    /// The numbers of the rows whose requests got no answer.
    unanswered: Mutex<Vec<usize>>,
    failed: Mutex<Vec<FailedRequest>>,
}

/// A request that failed in a way that may be the fault of one of its rows.
struct FailedRequest {
    numbers: Vec<usize>,
    status: u16,
    error: String,
    /// The server's own words.
    words: Option<String>,
    /// Whether they are its application's.
    told: bool,
}

impl RequestGate {
    /// Nothing is tried again from now on.
    fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    fn unanswered(&self, numbers: &[usize]) {
        locked(&self.unanswered).extend_from_slice(numbers);
    }

    fn take_unanswered(&self) -> Vec<usize> {
        std::mem::take(&mut *locked(&self.unanswered))
    }

    fn failed(&self, numbers: &[usize], failure: &Failure) {
        let Some(status) = failure.status().filter(|_| failure.may_be_a_rows_fault()) else {
            return;
        };
        let failed = FailedRequest {
            numbers: numbers.to_vec(),
            status,
            error: failure.error().cause().to_owned(),
            words: failure.words().map(str::to_owned),
            told: failure.is_told(),
        };
        locked(&self.failed).push(failed);
    }

    fn take_failed(&self) -> Vec<FailedRequest> {
        std::mem::take(&mut *locked(&self.failed))
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Keeps all requests back for a while: the server asked one of them to.
    fn hold(&self, wait: Duration) {
        let until = Instant::now() + wait;
        let mut not_before = locked(&self.not_before);
        *not_before = Some(not_before.map_or(until, |earlier| earlier.max(until)));
    }

    async fn pass(&self) {
        let until = *locked(&self.not_before);
        if let Some(until) = until {
            tokio::time::sleep_until(until).await;
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refusal(code: u16, error: &str) -> Fate {
    Fate::Refused {
        code,
        error: error.to_owned(),
    }
}

/// `{"records":[…]}`, the rows unparsed.
fn records(rows: &[(ChangeIndex, Bytes)]) -> Bytes {
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
