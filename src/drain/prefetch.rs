//! What is delivered next: it is taken in, and sent, while the batch before it waits for its answer.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt};

use super::DrainBatch;
use super::announce::AnnouncedSchemas;
use super::handshake::Handshake;
use crate::abort;
use crate::deliver::{ChangeOrigin, Cloud, InFlight, Numbering};
use crate::error::Result;

/// The batches that come, and the requests of those that are in flight.
pub(super) struct Prefetch {
    batches: BoxStream<'static, Result<DrainBatch>>,
    /// What was taken in, in order.
    taken: VecDeque<PrefetchedBatch>,
    /// Above so many bytes no more is taken in.
    bytes: usize,
    cloud: Cloud,
    origin: ChangeOrigin,
    announced: Arc<AnnouncedSchemas>,
    handshake: Arc<Handshake>,
}

/// A batch that was taken in.
struct PrefetchedBatch {
    read: Result<DrainBatch>,
    sent: Option<EarlyRequest>,
}

/// What went before the batch before it was answered.
pub(super) struct EarlyRequest {
    /// The batch's number.
    pub(super) number: i64,
    /// The body's hash.
    pub(super) hash: blake3::Hash,
    /// `None` if it was given up.
    pub(super) request: Option<InFlight>,
}

impl Prefetch {
    pub(super) fn new(
        batches: impl Stream<Item = Result<DrainBatch>> + Send + 'static,
        bytes: usize,
        cloud: Cloud,
        origin: ChangeOrigin,
        announced: Arc<AnnouncedSchemas>,
        handshake: Arc<Handshake>,
    ) -> Self {
        Self {
            batches: batches.fuse().boxed(),
            taken: VecDeque::new(),
            bytes,
            cloud,
            origin,
            announced,
            handshake,
        }
    }

    /// The next batch, and the request that was sent early for it; `None` at the end. A dropped future loses
    /// nothing.
    pub(super) async fn next(&mut self) -> Option<Result<(DrainBatch, Option<EarlyRequest>)>> {
        if self.taken.is_empty() {
            self.take_in().await?;
        }
        let PrefetchedBatch { read, sent } = self.taken.pop_front()?;
        Some(read.map(|read| (read, sent)))
    }

    /// Takes one more in; `None` at the end.
    async fn take_in(&mut self) -> Option<()> {
        let read = self.batches.next().await?;
        self.taken.push_back(PrefetchedBatch { read, sent: None });
        Some(())
    }

    /// Takes in what is next, to be driven while the batch before it is delivered, and sends it if the cloud
    /// takes batches in order. A dropped future loses nothing.
    ///
    /// What is in flight is given up as soon as nothing may go behind the first batch any more: the attempt
    /// to deliver it has failed, and what comes next must not stand before the next attempt.
    pub(super) async fn look_ahead(&mut self, numbering: Option<&Numbering>) -> Infallible {
        if self.taken.is_empty() {
            self.take_in().await;
        }
        let watched = numbering.and_then(|numbering| Some((numbering, numbering.watch()?)));
        let Some((numbering, mut open)) = watched else {
            return pending().await;
        };
        loop {
            let Ok(Some(first)) = open.wait_for(Option::is_some).await.map(|first| *first) else {
                return pending().await;
            };
            tokio::select! {
                biased;
                _ = open.wait_for(Option::is_none) => {}
                never = self.send_taken(numbering, first) => match never {},
            }
            for sent in self.taken.iter_mut().filter_map(|taken| taken.sent.as_mut()) {
                sent.request = None;
            }
        }
    }

    /// Sends what was taken in, and what comes, behind the batch of this number, as long as that is worth it.
    async fn send_taken(&mut self, numbering: &Numbering, first: i64) -> Infallible {
        let in_flight =
            |taken: &PrefetchedBatch| taken.sent.as_ref().is_some_and(|sent| sent.request.is_some());
        loop {
            if let Some(nth) = self.taken.iter().position(|taken| !in_flight(taken)) {
                let number = first + 1 + nth as i64;
                // It and the batch that is delivered count too.
                if nth + 2 > self.cloud.depth() || !self.send(numbering, number, nth).await {
                    return pending().await;
                }
                abort::point("after a batch behind another");
            } else if self.may_take_more() {
                if self.take_in().await.is_none() {
                    return pending().await;
                }
            } else {
                return pending().await;
            }
        }
    }

    fn may_take_more(&self) -> bool {
        let bytes = |taken: &PrefetchedBatch| taken.read.as_ref().map_or(0, |read| read.batch.bytes());
        let waiting: usize = self.taken.iter().map(bytes).sum();
        self.taken.len() + 1 < self.cloud.depth() && waiting < self.bytes
    }

    /// Sends one. Returns false if it has to wait until those before it are answered.
    async fn send(&mut self, numbering: &Numbering, number: i64, nth: usize) -> bool {
        let taken = &mut self.taken[nth];
        let Ok(read) = &taken.read else { return false };
        let knows = self.handshake.answer().is_some_and(|answer| {
            !answer.info.capabilities.schema || self.announced.knows(&read.batch, &read.schemas)
        });
        if !knows {
            return false;
        }
        let before = taken.sent.as_ref().map(|sent| sent.hash);
        let sent = self
            .cloud
            .send_behind(&self.origin, numbering, number, &read.batch, before)
            .await;
        let Some((request, hash)) = sent else { return false };
        taken.sent = Some(EarlyRequest {
            number,
            hash,
            request: Some(request),
        });
        true
    }
}
