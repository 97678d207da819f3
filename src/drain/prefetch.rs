//! What is delivered next: it is taken in, and sent, while the batch before it waits for its answer.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt};

use super::announce::AnnouncedSchemas;
use super::{BatchInFlight, ReplicationState};
use crate::abort;
use crate::deliver::{ChangeOrigin, Cloud, InFlight, Numbering};
use crate::error::Result;

/// The portions that come, and the requests of those that are in flight.
pub(super) struct Prefetch {
    portions: BoxStream<'static, Result<BatchInFlight>>,
    /// What was taken in, in order.
    taken: VecDeque<PrefetchedBatch>,
    /// Above so many bytes no more is taken in.
    bytes: usize,
    cloud: Cloud,
    origin: ChangeOrigin,
    announced: Arc<AnnouncedSchemas>,
    pulse: Arc<ReplicationState>,
}

/// A portion that was taken in.
struct PrefetchedBatch {
    portion: Result<BatchInFlight>,
    sent: Option<EarlyRequest>,
}

/// What went before the batch before it was answered.
pub(super) struct EarlyRequest {
    /// The batch's number.
    pub(super) number: i64,
    /// The body's hash.
    pub(super) hash: blake3::Hash,
    /// None where it was given up.
    pub(super) request: Option<InFlight>,
}

impl Prefetch {
    pub(super) fn new(
        portions: impl Stream<Item = Result<BatchInFlight>> + Send + 'static,
        bytes: usize,
        cloud: Cloud,
        origin: ChangeOrigin,
        announced: Arc<AnnouncedSchemas>,
        pulse: Arc<ReplicationState>,
    ) -> Self {
        Self {
            portions: portions.fuse().boxed(),
            taken: VecDeque::new(),
            bytes,
            cloud,
            origin,
            announced,
            pulse,
        }
    }

    /// The next portion, and what went of it; none at the end. A dropped future loses nothing.
    pub(super) async fn next(&mut self) -> Option<Result<(BatchInFlight, Option<EarlyRequest>)>> {
        if self.taken.is_empty() {
            self.take_in().await?;
        }
        let PrefetchedBatch { portion, sent } = self.taken.pop_front()?;
        Some(portion.map(|portion| (portion, sent)))
    }

    /// Takes one more in; none at the end.
    async fn take_in(&mut self) -> Option<()> {
        let portion = self.portions.next().await?;
        self.taken.push_back(PrefetchedBatch { portion, sent: None });
        Some(())
    }

    /// Takes in what is next, to be driven while the portion before it is delivered, and sends it where the cloud takes batches in
    /// order. A dropped future loses nothing.
    ///
    /// What is in flight is given up as soon as nothing may go behind the first portion any more: the attempt to deliver it has
    /// failed, and what comes next must not stand before the next attempt.
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
                never = self.send_behind(numbering, first) => match never {},
            }
            for sent in self.taken.iter_mut().filter_map(|taken| taken.sent.as_mut()) {
                sent.request = None;
            }
        }
    }

    /// Sends what was taken in, and what comes, behind the batch of this number, as long as that is worth it.
    async fn send_behind(&mut self, numbering: &Numbering, first: i64) -> Infallible {
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
        let bytes =
            |taken: &PrefetchedBatch| taken.portion.as_ref().map_or(0, |portion| portion.batch.bytes());
        let waiting: usize = self.taken.iter().map(bytes).sum();
        self.taken.len() + 1 < self.cloud.depth() && waiting < self.bytes
    }

    /// Sends one. Returns false where it has to wait until those before it are answered.
    async fn send(&mut self, numbering: &Numbering, number: i64, nth: usize) -> bool {
        let taken = &mut self.taken[nth];
        let Ok(portion) = &taken.portion else { return false };
        let knows = self
            .pulse
            .capabilities()
            .is_some_and(|cloud| !cloud.schema || self.announced.knows(&portion.batch, &portion.shapes));
        if !knows {
            return false;
        }
        let before = taken.sent.as_ref().map(|sent| sent.hash);
        let sent = self
            .cloud
            .send_behind(&self.origin, numbering, number, &portion.batch, before)
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
