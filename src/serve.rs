//! Accepts HTTP connections and serves them until it is told to stop; what is under way then may end in time.
//!
//! A connection is a stranger's until a request on it has shown a valid key ([`RemoteClient::trust`]). A stranger must bring its
//! first request soon. When every place is taken, the stranger that has been there longest gives its place to the
//! newcomer, so that whoever opens connections and says nothing, or says it slowly, keeps nobody out who has a key.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// A connection's first request must have come within this time.
const FIRST: Duration = Duration::from_secs(10);

/// A later request's head must have come within this time; it is also how long an idle connection is kept. Longer than
/// clients keep theirs (90 s), so that it is not the server that closes one that is about to be used.
const HEAD: Duration = Duration::from_secs(120);

/// What a connection may hold of a request that is not taken yet, its head above all.
const BUFFER: usize = 128 * 1024;

/// How often a full house is said in the log.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// How a server treats its connections.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConnectionLimits {
    /// Connections at once. More wait in the listener's queue.
    pub(crate) places: usize,
    /// What is under way when the server stops has this long.
    pub(crate) drain: Duration,
}

impl ConnectionLimits {
    /// So many connections, but half of the files that the process may have open at most: the others are needed too.
    pub(crate) fn new(places: usize, drain: Duration) -> Self {
        let places = open_files().map_or(places, |files| places.min(files / 2).max(1));
        Self { places, drain }
    }
}

/// How many files the process may have open.
fn open_files() -> Option<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Who is at the other end of a request's connection. It stands in the request's extensions.
#[derive(Debug, Clone)]
pub(crate) struct RemoteClient {
    /// Where it calls from.
    pub(crate) address: SocketAddr,
    seat: Arc<ConnectionSlot>,
}

impl RemoteClient {
    /// Whether it is no stranger any more.
    pub(crate) fn is_trusted(&self) -> bool {
        self.seat.trusted.get().is_some()
    }

    /// It has shown a valid key. Where places are shared out, `place` is the one that it keeps as long as its connection lives.
    pub(crate) fn trust(&self, place: Option<OwnedSemaphorePermit>) {
        // Another request on the connection may have been faster.
        let _ = self.seat.trusted.set(place);
    }
}

/// A connection's place.
#[derive(Debug, Default)]
struct ConnectionSlot {
    asked: AtomicBool,
    /// Set when it has shown a key.
    trusted: OnceLock<Option<OwnedSemaphorePermit>>,
    leave: CancellationToken,
}

/// Serves until `shutdown`, then waits for what is under way.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    limits: ConnectionLimits,
    shutdown: CancellationToken,
) {
    let room = Arc::new(Semaphore::new(limits.places));
    let mut strangers: VecDeque<Weak<ConnectionSlot>> = VecDeque::new();
    let mut connections = JoinSet::new();
    let mut said: Option<Instant> = None;
    loop {
        let (stream, address) = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, or the peer has gone: others may still be served.
                    tracing::warn!(%error, "a connection was not accepted");
                    make_room(&mut strangers);
                    tokio::select! {
                        () = shutdown.cancelled() => break,
                        () = tokio::time::sleep(Duration::from_millis(100)) => continue,
                    }
                }
            },
        };
        if room.available_permits() == 0 {
            if said.is_none_or(|at| at.elapsed() > SAY_EVERY) {
                said = Some(Instant::now());
                tracing::warn!(
                    places = limits.places,
                    "all places for connections are taken: strangers give theirs up"
                );
            }
            make_room(&mut strangers);
        }
        let permit = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            permit = Arc::clone(&room).acquire_owned() => permit,
        };
        let seat = Arc::new(ConnectionSlot::default());
        if strangers.len() > 2 * limits.places {
            strangers.retain(|seat| seat.upgrade().is_some_and(|seat| seat.trusted.get().is_none()));
        }
        strangers.push_back(Arc::downgrade(&seat));
        let served = connection(
            stream,
            router.clone(),
            RemoteClient { address, seat },
            shutdown.clone(),
        );
        connections.spawn(async move {
            served.await;
            drop(permit);
        });
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(limits.drain, drained).await.is_err() {
        tracing::warn!(left = connections.len(), "connections are cut at the end");
        connections.shutdown().await;
    }
}

/// Sends the stranger away that has been there longest.
fn make_room(strangers: &mut VecDeque<Weak<ConnectionSlot>>) {
    while let Some(seat) = strangers.pop_front() {
        if let Some(seat) = seat.upgrade()
            && seat.trusted.get().is_none()
        {
            seat.leave.cancel();
            return;
        }
    }
}

async fn connection(stream: TcpStream, router: Router, caller: RemoteClient, shutdown: CancellationToken) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection sends with delay");
    }
    let seat = Arc::clone(&caller.seat);
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        caller.seat.asked.store(true, Ordering::Relaxed);
        request.extensions_mut().insert(caller.clone());
        router.clone().oneshot(request)
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    let mut served = std::pin::pin!(served);
    let silent = async {
        tokio::time::sleep(FIRST).await;
        if seat.asked.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    };
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = seat.leave.cancelled() => return,
        () = silent => return,
        () = shutdown.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke off");
    }
}
