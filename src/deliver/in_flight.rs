//! Several batches in flight at once, on a server that takes batches in the order of their numbers only.
//!
//! While the cloud works on a batch, the next ones are already on their way. So neither the uplink nor the
//! cloud is idle while the site gets the answer and records it, and yet the cloud never takes a batch before
//! the one that it follows.
//!
//! - How many are useful is measured: as many as the cloud could take while an answer is on its way
//!   ([`PipelineDepth`]).
//! - On a slow uplink nothing is gained by sending two batches at once, and the first one would be late. So a
//!   batch begins when all that is in flight has been handed to the network ([`Uplink`]).
//! - Two ends work together through the [`Pipeline`] of a term's numbers. Who delivers a batch opens it while
//!   the request is in flight (`changes`, through [`super::Cloud::deliver`]); who takes in what comes watches
//!   for that, sends the next batches, and gives them up when it is closed (the drain's `prefetch`).
//! - Failure: if a batch is not answered as usual, those that follow it are aborted, and are sent again after
//!   it, as they were. Once a batch was sent after a number, nothing else is ever sent under that number
//!   ([`Pipeline`]): what would need that needs a new term.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use reqwest::Body;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::failure::CloudResult;
use super::http::HttpAnswer;
use crate::batch::ChangeIndex;
use crate::error::Error;
use crate::wire::limits::MAX_IN_FLIGHT;

/// A body of at most so many bytes delays no other.
const SHORT_BODY: usize = 64 * 1024;

/// How many delays are kept.
const MAX_DELAYS: usize = 16;

/// A request that was sent before the one before it is answered. Dropping it aborts the request.
pub struct InFlight {
    /// The changes in it.
    pub(super) changes: Vec<ChangeIndex>,
    pub(super) size: BodySize,
    pub(super) begun: Instant,
    answer: AbortOnDropHandle<CloudResult<HttpAnswer>>,
}

impl InFlight {
    pub(super) fn begin(
        changes: Vec<ChangeIndex>,
        size: BodySize,
        exchange: impl Future<Output = CloudResult<HttpAnswer>> + Send + 'static,
    ) -> Self {
        Self {
            changes,
            size,
            begun: Instant::now(),
            answer: AbortOnDropHandle::new(tokio::spawn(exchange)),
        }
    }

    /// Waits for the answer.
    pub(super) async fn finish(self, operation: &str) -> CloudResult<HttpAnswer> {
        self.answer
            .await
            .unwrap_or_else(|error| Err(Error::local(operation, io::Error::other(error)).into()))
    }
}

/// How large a request's body is.
#[derive(Clone, Copy)]
pub(super) struct BodySize {
    /// Bytes of its text.
    pub(super) text: usize,
    /// Bytes that are sent.
    pub(super) bytes: usize,
    /// Whether these are fewer, since it is compressed.
    pub(super) is_compressed: bool,
}

/// Which batches of a term may be sent before the one before them is answered, and which were.
#[derive(Debug)]
pub(super) struct Pipeline {
    /// The number of the batch after which others may be sent now.
    open: watch::Sender<Option<i64>>,
    /// The highest number under which anything was sent early, before the one before it was answered.
    highest: AtomicI64,
}

impl Pipeline {
    pub(super) fn new() -> Self {
        Self {
            open: watch::Sender::new(None),
            highest: AtomicI64::new(0),
        }
    }

    /// Lets others be sent after this batch until the returned value is dropped.
    pub(super) fn open(&self, number: i64) -> OpenBatch<'_> {
        self.open.send_replace(Some(number));
        OpenBatch(self)
    }

    pub(super) fn watch(&self) -> watch::Receiver<Option<i64>> {
        self.open.subscribe()
    }

    /// Notes that something is sent early under this number.
    pub(super) fn note_sent_early(&self, number: i64) {
        self.highest.fetch_max(number, Ordering::Relaxed);
    }

    /// Whether anything was sent under a higher number than this one.
    pub(super) fn has_sent_after(&self, number: i64) -> bool {
        self.highest.load(Ordering::Relaxed) > number
    }
}

/// A batch's request is in flight, and others may be sent after it.
pub(super) struct OpenBatch<'a>(&'a Pipeline);

impl Drop for OpenBatch<'_> {
    fn drop(&mut self) {
        self.0.open.send_replace(None);
    }
}

/// How many batches should be in flight at once.
#[derive(Debug, Default)]
pub(super) struct PipelineDepth {
    /// Of the last requests that were sent alone: from sending to the answer, less the time that the server
    /// itself took.
    delays: VecDeque<Duration>,
    /// From one answer to the next while requests follow each other: a mean of the last few.
    interval: Option<Duration>,
    last: Option<Instant>,
}

impl PipelineDepth {
    /// Notes an answer that came now to a request that was sent at `begun`, and the time that the server
    /// itself took, as far as it says.
    pub(super) fn record_answer(&mut self, begun: Instant, is_alone: bool, applied: Option<Duration>) {
        let now = Instant::now();
        if is_alone {
            let delay = now - begun;
            self.delays
                .push_back(delay.saturating_sub(applied.unwrap_or_default()));
            if self.delays.len() > MAX_DELAYS {
                self.delays.pop_front();
            }
        } else if let Some(last) = self.last.filter(|last| *last > begun) {
            let latest = now - last;
            self.interval = Some(self.interval.map_or(latest, |mean| (mean * 3 + latest) / 4));
        }
        self.last = Some(now);
    }

    /// How many: at least 2, so that the server has the next batch when it has done one; and as many more as
    /// it could do while an answer and the next batch are on their way.
    pub(super) fn batches(&self) -> usize {
        let most = MAX_IN_FLIGHT as usize;
        let (Some(delay), Some(interval)) = (self.delays.iter().min(), self.interval) else {
            return 2;
        };
        let while_on_the_way = delay.as_secs_f64() / interval.as_secs_f64().max(1e-6);
        (1 + while_on_the_way.ceil() as usize).clamp(2, most)
    }
}

/// How many bodies of changes are not yet completely handed to the network.
#[derive(Clone)]
pub(super) struct Uplink(watch::Sender<usize>);

impl Uplink {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(0))
    }

    /// Waits until none is.
    pub(super) async fn clear(&self) {
        // The sender lives as long as this does.
        let _ = self.0.subscribe().wait_for(|bodies| *bodies == 0).await;
    }

    /// A body that counts until the connection has taken it.
    pub(super) fn body(&self, bytes: Bytes) -> Body {
        if bytes.len() <= SHORT_BODY {
            return Body::from(bytes);
        }
        let unsent = UnsentBody::new(self.0.clone());
        // When the connection asks for more, it has taken what came before.
        let end = stream::once(async move {
            drop(unsent);
            Ok::<_, io::Error>(Bytes::new())
        });
        Body::wrap_stream(stream::iter([Ok(bytes)]).chain(end))
    }
}

/// A body that is not yet completely handed to the network.
struct UnsentBody(watch::Sender<usize>);

impl UnsentBody {
    fn new(bodies: watch::Sender<usize>) -> Self {
        bodies.send_modify(|bodies| *bodies += 1);
        Self(bodies)
    }
}

impl Drop for UnsentBody {
    fn drop(&mut self) {
        self.0.send_modify(|bodies| *bodies -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn depth(delay: Duration, interval: Duration) -> usize {
        let depth = PipelineDepth {
            delays: VecDeque::from([delay * 3, delay]),
            interval: Some(interval),
            last: None,
        };
        depth.batches()
    }

    #[test]
    fn as_many_batches_are_in_flight_as_the_delay_asks_for() {
        assert_eq!(PipelineDepth::default().batches(), 2);
        // A server on the same machine, a slow uplink, and a fast one to the other side of the world.
        assert_eq!(depth(MS / 2, MS * 30), 2);
        assert_eq!(depth(MS * 100, MS * 160), 2);
        assert_eq!(depth(MS * 300, MS * 100), 4);
        assert_eq!(depth(MS * 600, MS * 30), 8);
        assert_eq!(depth(MS, Duration::ZERO), 8);
    }
}
