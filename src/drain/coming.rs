//! What is delivered next: it is taken in, and sent ahead, while the batch before it waits for its answer.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use tokio::sync::Notify;

use super::{Portion, Pulse};
use crate::abort;
use crate::deliver::{Ahead, Cloud, Numbering, Origin};
use crate::error::Result;

/// The portions that come, and the request by which the next one went ahead.
pub(super) struct Coming {
    portions: BoxStream<'static, Result<Portion>>,
    next: Option<Result<Portion>>,
    ahead: Option<Ahead>,
    cloud: Cloud,
    origin: Origin,
    pulse: Arc<Pulse>,
}

impl Coming {
    pub(super) fn new(
        portions: impl Stream<Item = Result<Portion>> + Send + 'static,
        cloud: Cloud,
        origin: Origin,
        pulse: Arc<Pulse>,
    ) -> Self {
        Self {
            portions: portions.fuse().boxed(),
            next: None,
            ahead: None,
            cloud,
            origin,
            pulse,
        }
    }

    /// The next portion, and its request where it went ahead; none at the end. A dropped future loses nothing.
    pub(super) async fn next(&mut self) -> Option<Result<(Portion, Option<Ahead>)>> {
        let next = match self.next.take() {
            Some(next) => next,
            None => self.portions.next().await?,
        };
        let ahead = self.ahead.take();
        Some(next.map(|portion| (portion, ahead)))
    }

    /// Takes the next portion in and sends it ahead, to be driven while the one before it is delivered. A dropped future
    /// loses nothing.
    ///
    /// What went ahead is given up when an attempt at the delivery has `failed`: the cloud may take one request after the
    /// other, and none that waits for its turn may stand before the next attempt.
    pub(super) async fn look_ahead(&mut self, numbering: Option<&Numbering>, failed: &Notify) -> Infallible {
        self.next = self.portions.next().await;
        if let Some(Ok(next)) = &self.next
            && let Some(numbering) = numbering
            && self.pulse.capabilities().is_some_and(|cloud| cloud.changes)
        {
            let send_ahead = async {
                self.ahead = self.cloud.send_ahead(&self.origin, numbering, &next.batch).await;
                abort::point("after a send ahead");
                pending().await
            };
            tokio::select! {
                biased;
                () = failed.notified() => {}
                () = send_ahead => {}
            }
            self.ahead = None;
        }
        pending().await
    }
}
