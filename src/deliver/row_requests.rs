//! The requests of one delivery to a server without `changes`: many at once, over kept connections.
//!
//! As soon as one is answered the next one starts. A request whose failure is transient is tried a few times,
//! for a few seconds; a longer outage, or a server that asks for a longer wait, is the caller's affair. After
//! the first failure nothing new starts, and the requests that have begun are finished. Only if the server
//! answers 5xx, which may be the fault of one row, the others go on as long as it does not do so to most.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use reqwest::RequestBuilder;
use tokio::time::Instant;

use super::Cloud;
use super::failure::{CloudResult, Failure};
use super::http::HttpAnswer;
use super::refusal_words::without_row;
use super::reply::{CloudReply, Verdict};
use crate::batch::{Batch, ChangeIndex, Fate};
use crate::retry::{Backoff, waits};

/// How often a request is tried in one delivery.
const ATTEMPTS: u32 = 4;

/// How long one delivery tries a request; a longer wait is the caller's.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many more requests than are accepted may fail of one entity's in a delivery, if the server's
/// application itself refuses them.
const MORE_REFUSALS: usize = 50;

/// What came of one request: the fates that it decided, and what stopped it.
pub(super) type RequestOutcome = (Vec<(ChangeIndex, Fate)>, CloudResult<()>);

/// Sends the requests of one delivery.
pub(super) struct RowRequests<'c> {
    cloud: &'c Cloud,
    pub(super) gate: RequestGate,
}

impl<'c> RowRequests<'c> {
    pub(super) fn new(cloud: &'c Cloud) -> Self {
        Self {
            cloud,
            gate: RequestGate::default(),
        }
    }

    /// Starts the jobs in order, as many at once as may be in flight, and marks the fates as they come.
    pub(super) async fn run<J, F: Future<Output = RequestOutcome>>(
        &self,
        batch: &mut Batch,
        jobs: impl IntoIterator<Item = J>,
        start: impl Fn(&Batch, J) -> F,
    ) -> CloudResult<()> {
        let mut jobs = jobs.into_iter();
        let mut running = FuturesUnordered::new();
        let mut first_failure = None;
        let (mut accepted, mut failed) = (0, 0);
        loop {
            while !self.gate.is_closed() && running.len() < self.cloud.inner.in_flight {
                let Some(job) = jobs.next() else { break };
                running.push(start(batch, job));
            }
            let Some((fates, end)) = running.next().await else {
                break;
            };
            accepted += usize::from(end.is_ok());
            for (change_index, fate) in fates {
                batch.set_fate(change_index, fate);
            }
            if let Err(failure) = end {
                failed += 1;
                // If the application itself refuses row by row, a few more requests show which rows.
                let more = if failure.is_from_application() {
                    MORE_REFUSALS
                } else {
                    0
                };
                if !failure.is_transient() || !failure.may_be_a_rows_fault() || failed > accepted + more {
                    self.gate.close();
                }
                first_failure.get_or_insert(failure);
            }
        }
        first_failure.map_or(Ok(()), Err)
    }

    /// The same for jobs of the batch's own changes; those whose requests got no answer are noted in the
    /// batch.
    pub(super) async fn run_changes<J, F: Future<Output = RequestOutcome>>(
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
            batch.note_failing(
                &changes,
                failed.status,
                &error,
                failed.is_from_application,
                accepted_before,
            );
        }
        for number in self.gate.take_unanswered() {
            let change = &batch[ChangeIndex(number)];
            let (entity, key) = (change.entity, change.key.clone());
            batch.note_unanswered(entity, key);
        }
        end
    }

    /// One request, tried again while its failure is transient. `numbers` are those that the caller knows its
    /// rows by: if an attempt gets no answer, they are in [`RequestGate::take_unanswered`]; if the failure
    /// may be the fault of one row, in [`RequestGate::take_failed`].
    pub(super) async fn attempt(
        &self,
        operation: &str,
        bytes: usize,
        numbers: &[usize],
        request: impl Fn() -> RequestBuilder,
    ) -> CloudResult<HttpAnswer> {
        let mut backoff = Backoff::of(waits::ROW_REQUEST);
        let begun = Instant::now();
        loop {
            self.gate.wait().await;
            let failure = match self.cloud.inner.http.call(operation, request(), bytes).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            if failure.was_interrupted() {
                self.gate.record_unanswered(numbers);
            }
            let wait = backoff.next(failure.retry_after());
            // What the server's application has said, it will say again in a moment.
            if !failure.is_transient()
                || failure.is_from_application()
                || backoff.failures() >= ATTEMPTS
                || begun.elapsed() + wait > PATIENCE
                || self.gate.is_closed()
            {
                self.gate.record_failed(numbers, &failure);
                return Err(failure);
            }
            if failure.retry_after().is_some() {
                self.gate.hold(wait);
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// Fails if a 2xx says that the rows with these numbers were not accepted; they are in
    /// [`RequestGate::take_failed`] then. `row` is the row that was sent, if it was one.
    pub(super) fn check_accepted(
        &self,
        operation: &str,
        reply: &CloudReply,
        numbers: &[usize],
        row: Option<&str>,
    ) -> CloudResult<()> {
        let failure = match reply.verdict(operation, row) {
            Ok(Verdict::Accepted) => return Ok(()),
            Ok(Verdict::Failed(words)) => {
                let words = self.cloud.inner.http.clean(&words);
                Failure::failed(operation, reply.status.as_u16(), words)
            }
            Err(failure) => failure,
        };
        self.gate.record_failed(numbers, &failure);
        Err(failure)
    }
}

/// What the requests of one delivery know of each other: that one has failed, and when the server wants the
/// next one.
#[derive(Default)]
pub(super) struct RequestGate {
    closed: AtomicBool,
    not_before: Mutex<Option<Instant>>,
    /// The numbers of the rows whose requests got no answer.
    unanswered: Mutex<Vec<usize>>,
    failed: Mutex<Vec<FailedRequest>>,
}

/// A request that failed in a way that may be the fault of one of its rows.
pub(super) struct FailedRequest {
    numbers: Vec<usize>,
    status: u16,
    error: String,
    /// The server's own words.
    words: Option<String>,
    /// Whether they are its application's.
    is_from_application: bool,
}

impl RequestGate {
    /// No request starts or is tried again from now on.
    fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    /// Lets requests start again after rows of one entity have failed: those of others may not.
    pub(super) fn reopen(&self) {
        self.closed.store(false, Ordering::Relaxed);
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    fn record_unanswered(&self, numbers: &[usize]) {
        lock(&self.unanswered).extend_from_slice(numbers);
    }

    pub(super) fn take_unanswered(&self) -> Vec<usize> {
        std::mem::take(&mut *lock(&self.unanswered))
    }

    /// Notes the failure, if it may be the fault of a row.
    pub(super) fn record_failed(&self, numbers: &[usize], failure: &Failure) {
        let Some(status) = failure.status().filter(|_| failure.may_be_a_rows_fault()) else {
            return;
        };
        let failed = FailedRequest {
            numbers: numbers.to_vec(),
            status,
            error: failure.error().cause().to_owned(),
            words: failure.words().map(str::to_owned),
            is_from_application: failure.is_from_application(),
        };
        lock(&self.failed).push(failed);
    }

    pub(super) fn take_failed(&self) -> Vec<FailedRequest> {
        std::mem::take(&mut *lock(&self.failed))
    }

    /// Keeps all requests back for a while, as the server asked one of them to wait.
    fn hold(&self, wait: Duration) {
        let until = Instant::now() + wait;
        let mut not_before = lock(&self.not_before);
        *not_before = Some(not_before.map_or(until, |earlier| earlier.max(until)));
    }

    /// Waits while requests are kept back.
    async fn wait(&self) {
        let until = *lock(&self.not_before);
        if let Some(until) = until {
            tokio::time::sleep_until(until).await;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
