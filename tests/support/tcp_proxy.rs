//! A TCP proxy between the replicator and its cloud, which troubles what passes, open connections included.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::locked;
use super::postgres::free_port;

/// What a line carries at once, in bytes.
const PACKET: usize = 4 * 1024;

/// What happens to connections, from the moment that it is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Nothing.
    None,
    /// Nobody listens, and open connections are cut.
    Refuse,
    /// Each connection is cut once this many further bytes of requests have passed.
    CutRequest(usize),
    /// Each connection is cut once this many further bytes of answers have passed: the request was heard.
    CutAnswer(usize),
    /// Nothing passes either way, and nothing is closed.
    Stall,
    /// Requests pass and answers wait.
    HoldAnswers,
    /// At most so many bytes pass at once, each time after a pause, either way.
    Slow(usize, Duration),
    /// A line: so many bytes of requests a second pass, of all connections together.
    Line(u64),
}

/// The proxy; it ends when it is dropped.
pub(crate) struct TcpProxy {
    address: SocketAddr,
    trouble: watch::Sender<Trouble>,
    target: watch::Sender<SocketAddr>,
    struck: Arc<AtomicU64>,
    passed: Arc<AtomicU64>,
    _stop: DropGuard,
}

impl TcpProxy {
    /// Listens on a port of its own, and passes on to `target`.
    pub(crate) async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", free_port())).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (trouble, troubled) = watch::channel(Trouble::None);
        let (target, targeted) = watch::channel(target);
        let stop = CancellationToken::new();
        let (struck, passed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let route = ProxyRoute {
            trouble: troubled,
            struck: struck.clone(),
            passed: passed.clone(),
            line_is_free: Arc::new(Mutex::new(Instant::now())),
            stop: stop.clone(),
        };
        tokio::spawn(listen(listener, address, targeted, route));
        Self {
            address,
            trouble,
            target,
            struck,
            passed,
            _stop: stop.drop_guard(),
        }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The API's base URL through it.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/api", self.address)
    }

    /// Sets the trouble, for open connections and for new ones.
    pub(crate) fn set(&self, trouble: Trouble) {
        self.trouble.send_replace(trouble);
    }

    /// Passes new connections on to another address.
    pub(crate) fn retarget(&self, target: SocketAddr) {
        self.target.send_replace(target);
    }

    /// Bytes of requests that have passed.
    pub(crate) fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }

    /// How many connections were cut or stalled so far.
    pub(crate) fn struck(&self) -> u64 {
        self.struck.load(Ordering::Relaxed)
    }
}

#[derive(Clone)]
struct ProxyRoute {
    trouble: watch::Receiver<Trouble>,
    struck: Arc<AtomicU64>,
    passed: Arc<AtomicU64>,
    /// When the line has sent all that it was given.
    line_is_free: Arc<Mutex<Instant>>,
    stop: CancellationToken,
}

impl ProxyRoute {
    /// Waits until so many bytes have passed a line of so many bytes a second.
    async fn wait_for_line(&self, bytes: usize, rate: u64) {
        let passed = {
            let mut free = locked(&self.line_is_free);
            *free = (*free).max(Instant::now()) + Duration::from_secs_f64(bytes as f64 / rate as f64);
            *free
        };
        tokio::time::sleep_until(passed).await;
    }

    /// Counts, and has the sender's socket reset when it is dropped; the other side's is closed, after what
    /// passed.
    fn strike(&self, sender: &OwnedReadHalf) {
        let _ = sender.as_ref().set_zero_linger();
        self.struck.fetch_add(1, Ordering::Relaxed);
    }
}

async fn listen(
    listener: TcpListener,
    address: SocketAddr,
    target: watch::Receiver<SocketAddr>,
    mut route: ProxyRoute,
) {
    let mut listener = Some(listener);
    let stop = route.stop.clone();
    loop {
        if *route.trouble.borrow_and_update() == Trouble::Refuse {
            listener = None;
        } else if listener.is_none() {
            // The port may be taken for a moment by a connection that goes out.
            listener = TcpListener::bind(address).await.ok();
        }
        let accepted = async {
            match &listener {
                Some(listener) => listener.accept().await.ok(),
                None if *route.trouble.borrow() == Trouble::Refuse => std::future::pending().await,
                None => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    None
                }
            }
        };
        let mut changes = route.trouble.clone();
        tokio::select! {
            accepted = accepted => if let Some((stream, _)) = accepted {
                tokio::spawn(pass(stream, *target.borrow(), route.clone()));
            },
            changed = changes.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return,
        }
    }
}

/// Passes one connection on, until either side ends it or trouble does.
async fn pass(here: TcpStream, target: SocketAddr, route: ProxyRoute) {
    let Ok(there) = TcpStream::connect(target).await else {
        return;
    };
    let _ = (here.set_nodelay(true), there.set_nodelay(true));
    let ((read_here, write_here), (read_there, write_there)) = (here.into_split(), there.into_split());
    tokio::select! {
        () = pump(read_here, write_there, true, route.clone()) => {}
        () = pump(read_there, write_here, false, route.clone()) => {}
        () = route.stop.cancelled() => {}
    }
}

/// Passes one direction on; ends when the connection is to be closed.
async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, requests: bool, mut route: ProxyRoute) {
    let mut buffer = vec![0; 64 * 1024];
    'changed: loop {
        let trouble = *route.trouble.borrow_and_update();
        let (mut left, mut at_once, mut pause) = (None, buffer.len(), Duration::ZERO);
        match trouble {
            Trouble::None => {}
            Trouble::Refuse => {
                if requests {
                    route.strike(&from);
                }
                return;
            }
            Trouble::CutRequest(bytes) if requests => left = Some(bytes),
            Trouble::CutAnswer(bytes) if !requests => left = Some(bytes),
            Trouble::CutRequest(_) | Trouble::CutAnswer(_) => {}
            Trouble::HoldAnswers if requests => {}
            Trouble::Stall | Trouble::HoldAnswers => {
                if requests {
                    route.struck.fetch_add(1, Ordering::Relaxed);
                }
                if route.trouble.changed().await.is_err() {
                    return;
                }
                continue 'changed;
            }
            Trouble::Slow(bytes, each) => (at_once, pause) = (bytes.clamp(1, buffer.len()), each),
            Trouble::Line(_) => at_once = PACKET,
        }
        loop {
            let read = tokio::select! {
                biased;
                changed = route.trouble.changed() => match changed {
                    Ok(()) => continue 'changed,
                    Err(_) => return,
                },
                read = from.read(&mut buffer[..at_once]) => read,
            };
            let Ok(read @ 1..) = read else {
                // The other direction may still have an answer: HTTP has none after the client is gone.
                return;
            };
            match trouble {
                Trouble::Line(rate) if requests => route.wait_for_line(read, rate).await,
                _ => tokio::time::sleep(pause).await,
            }
            let passes = left.map_or(read, |left: usize| left.min(read));
            if requests {
                route.passed.fetch_add(passes as u64, Ordering::Relaxed);
            }
            if to.write_all(&buffer[..passes]).await.is_err() {
                return;
            }
            if let Some(left) = &mut left {
                *left -= passes;
                if *left == 0 {
                    route.strike(&from);
                    return;
                }
            }
        }
    }
}
