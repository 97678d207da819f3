//! Accepts HTTP connections and serves them until shutdown. Requests that are open then have some time to
//! end.
//!
//! A connection is unauthenticated until a request on it has shown a valid key ([`RemoteClient::trust`]). An
//! unauthenticated connection must send its first request soon. When the limit of connections is reached, a
//! new connection replaces the oldest unauthenticated one. So a client that opens many connections and sends
//! nothing, or sends slowly, cannot keep out a client that has a key.

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

/// A connection's first request must arrive within this time.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// A later request's head must arrive within this time; an idle connection is kept as long. It is longer than
/// clients keep idle connections (90 s), so that the server does not close one that a client is about to use.
const HEAD_TIMEOUT: Duration = Duration::from_secs(120);

/// How many bytes a connection buffers of a request that is not processed yet, mainly its head, unless its server
/// says otherwise.
const READ_BUFFER: usize = 128 * 1024;

/// How often the log says that the limit of connections is reached.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

/// How a server treats its connections.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConnectionLimits {
    /// Connections at a time. More wait in the listener's queue.
    pub(crate) connections: usize,
    /// How long open requests may take to end when the server stops.
    pub(crate) drain: Duration,
    /// Bytes that a connection buffers of a request that is not processed yet.
    pub(crate) read_buffer: usize,
}

impl ConnectionLimits {
    /// At most `connections`, and at most half of the files that the process may open: it needs the other
    /// half itself.
    pub(crate) fn new(connections: usize, drain: Duration) -> Self {
        let connections = open_files().map_or(connections, |files| connections.min(files / 2).max(1));
        Self {
            connections,
            drain,
            read_buffer: READ_BUFFER,
        }
    }
}

/// How many files the process may open.
fn open_files() -> Option<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The client of a request's connection. It is in the request's extensions.
#[derive(Debug, Clone)]
pub(crate) struct RemoteClient {
    /// The client's address.
    pub(crate) address: SocketAddr,
    slot: Arc<ConnectionSlot>,
}

impl RemoteClient {
    /// Whether a request on the connection has shown a valid key.
    pub(crate) fn is_trusted(&self) -> bool {
        self.slot.trusted.get().is_some()
    }

    /// Records that a request has shown a valid key. If connections are shared out among sites, `share` is
    /// the permit that the connection keeps as long as it lives.
    pub(crate) fn trust(&self, share: Option<OwnedSemaphorePermit>) {
        // Another request on the connection may have set it before.
        let _ = self.slot.trusted.set(share);
    }
}

/// A connection's state.
#[derive(Debug, Default)]
struct ConnectionSlot {
    has_requested: AtomicBool,
    /// Set when a request has shown a valid key.
    trusted: OnceLock<Option<OwnedSemaphorePermit>>,
    evicted: CancellationToken,
}

/// Serves until `shutdown`, then waits for open requests.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    limits: ConnectionLimits,
    shutdown: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(limits.connections));
    let mut unauthenticated: VecDeque<Weak<ConnectionSlot>> = VecDeque::new();
    let mut connections = JoinSet::new();
    let mut last_warning: Option<Instant> = None;
    loop {
        let (stream, address) = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // The process is out of file descriptors, or the peer has gone: other connections may
                    // still be served.
                    tracing::warn!(%error, "a connection was not accepted");
                    evict_longest_unauthenticated(&mut unauthenticated);
                    tokio::select! {
                        () = shutdown.cancelled() => break,
                        () = tokio::time::sleep(Duration::from_millis(100)) => continue,
                    }
                }
            },
        };
        if slots.available_permits() == 0 {
            if last_warning.is_none_or(|at| at.elapsed() > WARN_INTERVAL) {
                last_warning = Some(Instant::now());
                tracing::warn!(
                    connections = limits.connections,
                    "the limit of connections is reached: unauthenticated ones are closed"
                );
            }
            evict_longest_unauthenticated(&mut unauthenticated);
        }
        let permit = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            permit = Arc::clone(&slots).acquire_owned() => permit,
        };
        let slot = Arc::new(ConnectionSlot::default());
        if unauthenticated.len() > 2 * limits.connections {
            unauthenticated.retain(|slot| slot.upgrade().is_some_and(|slot| slot.trusted.get().is_none()));
        }
        unauthenticated.push_back(Arc::downgrade(&slot));
        let served = serve_connection(
            stream,
            router.clone(),
            RemoteClient { address, slot },
            limits.read_buffer,
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
        tracing::warn!(
            left = connections.len(),
            "connections did not end in time and are closed"
        );
        connections.shutdown().await;
    }
}

/// Closes the oldest unauthenticated connection.
fn evict_longest_unauthenticated(unauthenticated: &mut VecDeque<Weak<ConnectionSlot>>) {
    while let Some(slot) = unauthenticated.pop_front() {
        if let Some(slot) = slot.upgrade()
            && slot.trusted.get().is_none()
        {
            slot.evicted.cancel();
            return;
        }
    }
}

async fn serve_connection(
    stream: TcpStream,
    router: Router,
    client: RemoteClient,
    read_buffer: usize,
    shutdown: CancellationToken,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection's TCP_NODELAY cannot be set");
    }
    let slot = Arc::clone(&client.slot);
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        client.slot.has_requested.store(true, Ordering::Relaxed);
        request.extensions_mut().insert(client.clone());
        router.clone().oneshot(request)
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(read_buffer)
        .serve_connection(TokioIo::new(stream), service);
    let mut served = std::pin::pin!(served);
    let no_first_request = async {
        tokio::time::sleep(FIRST_REQUEST_TIMEOUT).await;
        if slot.has_requested.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    };
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = slot.evicted.cancelled() => return,
        () = no_first_request => return,
        () = shutdown.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection was interrupted");
    }
}
