//! Requests that are sent ahead: while the cloud works on a batch, the next one's changes go out already, all but the
//! last byte, which follows when their turn has come. So the uplink does not lie idle while the cloud applies a batch and
//! the site writes down that it did, and yet the cloud never has two batches that it could accept: no server acts on a
//! body that has not ended.
//!
//! On a slow uplink nothing is gained by sending two batches at once, and the first one would be late: what is sent ahead
//! begins when all that is under way has been handed to the network.
//!
//! Failure: what is sent ahead is never needed. If it broke off, was answered before its end, or waited too long for its
//! turn, the batch is sent in the ordinary way.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use reqwest::Body;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::Numbering;
use super::failure::Outcome;
use super::link::Answer;
use crate::error::Error;

/// Servers and proxies commonly give a body's next byte half a minute or a minute.
const PATIENCE: Duration = Duration::from_secs(10);

/// A body of so many bytes is in no other's way.
const SHORT: usize = 64 * 1024;

/// A request that the cloud gets but for its last byte. Dropped, it is given up.
pub struct Ahead {
    /// The changes in it, by their places in the batch.
    places: Vec<usize>,
    /// Term and number that it says.
    number: (i64, i64),
    pub(super) size: Size,
    pub(super) hash: blake3::Hash,
    begun: Instant,
    turn: oneshot::Sender<()>,
    answer: AbortOnDropHandle<Outcome<Answer>>,
}

impl Ahead {
    /// Begins to send: the body of `exchange` waits for `turn`.
    pub(super) fn begin(
        numbering: &Numbering,
        places: Vec<usize>,
        size: Size,
        hash: blake3::Hash,
        turn: oneshot::Sender<()>,
        exchange: impl Future<Output = Outcome<Answer>> + Send + 'static,
    ) -> Self {
        Self {
            places,
            number: (numbering.term, numbering.next),
            size,
            hash,
            begun: Instant::now(),
            turn,
            answer: AbortOnDropHandle::new(tokio::spawn(exchange)),
        }
    }

    /// Whether these changes can still go by this request, under the next number.
    pub(super) fn serves(&self, numbering: &Numbering, places: &[usize]) -> bool {
        self.number == (numbering.term, numbering.next)
            && self.places == places
            && !self.answer.is_finished()
            && self.begun.elapsed() < PATIENCE
    }

    /// Sends the last byte, and waits for the answer.
    pub(super) async fn finish(self, operation: &str) -> Outcome<Answer> {
        // Where nobody waits for its turn any more, the answer says why.
        let _ = self.turn.send(());
        self.answer
            .await
            .unwrap_or_else(|error| Err(Error::local(operation, io::Error::other(error)).into()))
    }
}

/// How large a request's body is.
#[derive(Clone, Copy)]
pub(super) struct Size {
    /// Bytes of its text.
    pub(super) text: usize,
    /// Bytes that are sent.
    pub(super) bytes: usize,
    /// Whether these are fewer, since it is compressed.
    pub(super) squeezed: bool,
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

    /// A body. Its last byte waits for `turn`, where there is one.
    pub(super) fn body(&self, bytes: Bytes, turn: Option<oneshot::Receiver<()>>) -> Body {
        if turn.is_none() && bytes.len() <= SHORT {
            return Body::from(bytes);
        }
        let mut all = bytes;
        let last = all.split_off(all.len().saturating_sub(1));
        let way = OnItsWay::new(self.0.clone());
        // Asked for the last byte, the connection has taken what comes before.
        let end = stream::once(async move {
            drop(way);
            match turn {
                Some(turn) => turn.await.map(|()| last),
                None => Ok(last),
            }
        });
        Body::wrap_stream(stream::iter([Ok(all)]).chain(end))
    }
}

/// A body that is not yet handed to the network whole.
struct OnItsWay(watch::Sender<usize>);

impl OnItsWay {
    fn new(bodies: watch::Sender<usize>) -> Self {
        bodies.send_modify(|bodies| *bodies += 1);
        Self(bodies)
    }
}

impl Drop for OnItsWay {
    fn drop(&mut self) {
        self.0.send_modify(|bodies| *bodies -= 1);
    }
}
