//! Live updates: each browser that shows the page gets the parts that changed, about once a second while
//! something changes (server-sent events).
//!
//! What always holds: the parts are rendered once for all browsers, and only while there is one. The number
//! of browsers is bounded. A browser that falls behind gets the whole page again. A stream ends with its
//! session, and when the program ends.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Extension, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::stream;
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, broadcast};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::session::SessionId;
use super::templates::{Parts, parts};
use super::{HandlerState, VIEW_AGE};
use crate::control::Operator;

/// Browsers at a time.
const MAX_LISTENERS: usize = 256;

/// How often it is looked whether something happened.
const TICK: Duration = Duration::from_secs(1);

/// How often the source is asked although nothing seems to happen: only it knows of changes that nobody can
/// deliver now.
const QUIET: Duration = Duration::from_secs(3);

/// The longest time between two looks while something happens.
const LONGEST_REST: Duration = Duration::from_secs(60);

/// How often a stream on which nothing is sent shows that it is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Updates that a slow browser may be behind.
const BEHIND: usize = 16;

/// Who listens.
pub(super) struct LiveUpdates {
    updates: broadcast::Sender<Bytes>,
    places: Arc<Semaphore>,
    wanted: Notify,
}

impl LiveUpdates {
    pub(super) fn new() -> Self {
        Self {
            updates: broadcast::Sender::new(BEHIND),
            places: Arc::new(Semaphore::new(MAX_LISTENERS)),
            wanted: Notify::new(),
        }
    }
}

/// What is sent to browsers.
#[derive(Serialize)]
struct Update<'a> {
    /// The server's time, in milliseconds since 1970.
    now: i64,
    parts: &'a Parts,
}

fn event(parts: &Parts) -> Bytes {
    let update = Update {
        now: Timestamp::now().as_millisecond(),
        parts,
    };
    // Texts as the values of a map are always JSON.
    let json = serde_json::to_string(&update).unwrap_or_default();
    Bytes::from(format!("data: {json}\n\n"))
}

/// Renders and sends the parts that changed, again and again, while somebody listens, until `shutdown`.
pub(super) async fn render_changes<O: Operator>(state: &HandlerState<O>, shutdown: &CancellationToken) {
    let live = &state.page.live;
    while !shutdown.is_cancelled() {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = live.wanted.notified() => {}
        }
        let mut rendered = Rendered::default();
        while live.updates.receiver_count() > 0 {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = rendered.render_once(state) => {}
            }
        }
    }
}

/// What the browsers that listen have been sent.
#[derive(Default)]
struct Rendered {
    parts: Parts,
    activity: Option<u64>,
    looked_at: Option<Instant>,
    not_before: Option<Instant>,
}

impl Rendered {
    /// After a tick, sends what has changed, if something has.
    async fn render_once<O: Operator>(&mut self, state: &HandlerState<O>) {
        tokio::time::sleep(TICK).await;
        let activity = Some(state.operator.activity());
        let is_quiet = activity == self.activity && self.looked_at.is_some_and(|at| at.elapsed() < QUIET);
        if is_quiet || self.not_before.is_some_and(|at| Instant::now() < at) {
            return;
        }
        let began = Instant::now();
        self.activity = activity;
        self.looked_at = Some(began);
        let view = state.view(Duration::ZERO).await;
        // Counting a long backlog is work: at most a tenth of the time is spent on it. A source that hangs is
        // asked again soon, since nothing else tells that it is back.
        let longest = if view.knows_source { LONGEST_REST } else { QUIET };
        self.not_before = Some(Instant::now() + (began.elapsed() * 9).min(longest));
        let parts = parts(&view);
        let changed: Parts = parts
            .iter()
            .filter(|(name, html)| self.parts.get(*name) != Some(html))
            .map(|(name, html)| (*name, html.clone()))
            .collect();
        if !changed.is_empty() {
            // Nobody may listen any more.
            let _ = state.page.live.updates.send(event(&changed));
        }
        self.parts = parts;
    }
}

/// The stream of one browser.
struct Listener<O> {
    state: Arc<HandlerState<O>>,
    session: SessionId,
    updates: broadcast::Receiver<Bytes>,
    /// What is sent first.
    first: Option<Bytes>,
    _place: OwnedSemaphorePermit,
}

pub(super) async fn events<O: Operator>(
    State(state): State<Arc<HandlerState<O>>>,
    Extension(session): Extension<SessionId>,
) -> Response {
    let live = &state.page.live;
    let Ok(place) = Arc::clone(&live.places).try_acquire_owned() else {
        let text = "Too many browsers show this page: this one is not updated.\n";
        return (
            StatusCode::SERVICE_UNAVAILABLE,
            [(header::RETRY_AFTER, "60")],
            text,
        )
            .into_response();
    };
    // First the subscription, then the view: nothing is missed in between.
    let updates = live.updates.subscribe();
    live.wanted.notify_one();
    let view = state.view(VIEW_AGE).await;
    let first = [Bytes::from_static(b"retry: 3000\n"), event(&parts(&view))].concat();
    let listener = Listener {
        session,
        updates,
        first: Some(Bytes::from(first)),
        _place: place,
        state,
    };
    let stream = stream::unfold(listener, |mut listener| async move {
        let sent = listener.next().await?;
        Some((Ok::<_, std::convert::Infallible>(sent), listener))
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        // A proxy that buffers would hold updates back.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, Body::from_stream(stream)).into_response()
}

impl<O: Operator> Listener<O> {
    /// What is sent next; `None` ends the stream.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        let received = tokio::select! {
            biased;
            () = self.state.page.ending.cancelled() => return None,
            received = self.updates.recv() => Some(received),
            () = tokio::time::sleep(KEEP_ALIVE) => None,
        };
        self.state.caller_of(&self.session)?;
        match received {
            None => Some(Bytes::from_static(b": still here\n\n")),
            Some(Ok(update)) => Some(update),
            Some(Err(RecvError::Lagged(_))) => Some(event(&parts(&*self.state.view(VIEW_AGE).await))),
            Some(Err(RecvError::Closed)) => None,
        }
    }
}
