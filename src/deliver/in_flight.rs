//! Batches in flight: while the cloud works on a batch, those behind it are on their way already, on a server that takes
//! batches in the order of their numbers only. So neither the uplink nor the cloud lies idle while the site hears of a batch and
//! writes down that it was accepted, and yet the cloud never takes a batch before the one that it follows.
//!
//! How many are worth it is measured: as many as the cloud could take while an answer is on its way ([`PipelineDepth`]). On a slow uplink
//! nothing is gained by sending two batches at once, and the first one would be late: a batch begins when all that is under way
//! has been handed to the network ([`Uplink`]).
//!
//! Failure: when a batch is not answered as usual, those behind it are given up, and go again after it, as they were. Nothing
//! else ever goes under a number behind which a batch went ([`Pipeline`]): what asks for it asks for a new term.

use crate::batch::ChangeIndex;
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
use crate::error::Error;
use crate::wire::limits::MAX_IN_FLIGHT;

/// A body of so many bytes is in no other's way.
const SHORT: usize = 64 * 1024;

/// The delays that are kept.
const DELAYS: usize = 16;

/// A request that is under way before the one before it is answered. Dropped, it is given up.
pub struct InFlight {
    /// The changes in it, by their places in the batch.
    pub(super) places: Vec<ChangeIndex>,
    pub(super) size: BodySize,
    pub(super) begun: Instant,
    answer: AbortOnDropHandle<CloudResult<HttpAnswer>>,
}

impl InFlight {
    pub(super) fn begin(
        places: Vec<ChangeIndex>,
        size: BodySize,
        exchange: impl Future<Output = CloudResult<HttpAnswer>> + Send + 'static,
    ) -> Self {
        Self {
            places,
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
    pub(super) squeezed: bool,
}

/// The numbers of a term under which batches go before the one before them is answered.
#[derive(Debug)]
pub(super) struct Pipeline {
    /// The number of the batch behind which others may go now.
    open: watch::Sender<Option<i64>>,
    /// The highest number under which anything went.
    highest: AtomicI64,
}

impl Pipeline {
    pub(super) fn new() -> Self {
        Self {
            open: watch::Sender::new(None),
            highest: AtomicI64::new(0),
        }
    }

    /// Lets others go behind this batch until the answer is dropped.
    pub(super) fn open(&self, number: i64) -> OpenBatch<'_> {
        self.open.send_replace(Some(number));
        OpenBatch(self)
    }

    pub(super) fn watch(&self) -> watch::Receiver<Option<i64>> {
        self.open.subscribe()
    }

    /// Notes that something goes under this number.
    pub(super) fn goes(&self, number: i64) {
        self.highest.fetch_max(number, Ordering::Relaxed);
    }

    /// Whether anything went under a number behind this one.
    pub(super) fn went_behind(&self, number: i64) -> bool {
        self.highest.load(Ordering::Relaxed) > number
    }
}

/// A batch's request is under way, and others may go behind it.
pub(super) struct OpenBatch<'a>(&'a Pipeline);

impl Drop for OpenBatch<'_> {
    fn drop(&mut self) {
        self.0.open.send_replace(None);
    }
}

/// How many batches are worth being in flight at once.
#[derive(Debug, Default)]
pub(super) struct PipelineDepth {
    /// Of the last requests that went alone: from sending to the answer, less what the server itself took.
    delays: VecDeque<Duration>,
    /// From one answer to the next while requests follow each other: the mean of the last few.
    interval: Option<Duration>,
    last: Option<Instant>,
}

impl PipelineDepth {
    /// Notes an answer that came now to what was sent then, and what the server says that it took itself.
    pub(super) fn answered(&mut self, begun: Instant, alone: bool, applied: Option<Duration>) {
        let now = Instant::now();
        if alone {
            let delay = now - begun;
            self.delays
                .push_back(delay.saturating_sub(applied.unwrap_or_default()));
            if self.delays.len() > DELAYS {
                self.delays.pop_front();
            }
        } else if let Some(last) = self.last.filter(|last| *last > begun) {
            let latest = now - last;
            self.interval = Some(self.interval.map_or(latest, |mean| (mean * 3 + latest) / 4));
        }
        self.last = Some(now);
    }

    /// How many: 2 at least, so that the server finds the next batch when it has done one; and as many more as it could do while
    /// an answer and the next batch are on their way.
    pub(super) fn batches(&self) -> usize {
        let most = MAX_IN_FLIGHT as usize;
        let (Some(delay), Some(interval)) = (self.delays.iter().min(), self.interval) else {
            return 2;
        };
        let while_on_the_way = delay.as_secs_f64() / interval.as_secs_f64().max(1e-6);
        (1 + while_on_the_way.ceil() as usize).clamp(2, most)
    }
}

/// How many bodies of changes are not yet handed to the network whole.
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
        if bytes.len() <= SHORT {
            return Body::from(bytes);
        }
        let way = UnsentBody::new(self.0.clone());
        // Asked for more, the connection has taken what came before.
        let end = stream::once(async move {
            drop(way);
            Ok::<_, io::Error>(Bytes::new())
        });
        Body::wrap_stream(stream::iter([Ok(bytes)]).chain(end))
    }
}

/// A body that is not yet handed to the network whole.
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
