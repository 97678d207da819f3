//! A slow line: what passes, over all its connections together, has so many bits a second each way, and is
//! late.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use crate::Outcome;

/// What is read at once: about what a network packet carries.
const PIECE: usize = 1460;

/// How much of a line's time waits in the buffer before it, at most.
const BUFFER: Duration = Duration::from_millis(100);

/// The line, in a thread of its own. It ends when it is dropped.
pub(crate) struct Line {
    pub(crate) address: SocketAddr,
    target: watch::Sender<Option<SocketAddr>>,
    bytes: Arc<AtomicU64>,
    stop: Arc<Notify>,
}

/// One way of the line.
struct Way {
    bits_per_second: u64,
    delay: Duration,
    bytes: Arc<AtomicU64>,
    /// When it has sent all that it was given.
    free: Mutex<Instant>,
}

impl Line {
    /// A line of so many bits a second each way, on which a question and its answer take `round_trip`.
    pub(crate) fn start(bits_per_second: u64, round_trip: Duration) -> Outcome<Self> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (target, targeted) = watch::channel(None);
        let bytes = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(Notify::new());
        let [up, down] = [(); 2].map(|()| {
            Arc::new(Way {
                bits_per_second,
                delay: round_trip / 2,
                bytes: Arc::clone(&bytes),
                free: Mutex::new(Instant::now()),
            })
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let stopped = Arc::clone(&stop);
        std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = stopped.notified() => {}
                    ended = serve(listener, targeted, up, down) => if let Err(error) = ended {
                        eprintln!("the slow line broke: {error}");
                    }
                }
            });
        });
        Ok(Self {
            address,
            target,
            bytes,
            stop,
        })
    }

    /// Where it leads.
    pub(crate) fn lead_to(&self, target: SocketAddr) {
        self.target.send_replace(Some(target));
    }

    /// The bytes that have passed so far, both ways.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.stop.notify_one();
    }
}

async fn serve(
    listener: std::net::TcpListener,
    mut target: watch::Receiver<Option<SocketAddr>>,
    up: Arc<Way>,
    down: Arc<Way>,
) -> std::io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (near, _) = listener.accept().await?;
        let Ok(Some(target)) = target.wait_for(Option::is_some).await.map(|target| *target) else {
            return Ok(());
        };
        let (up, down) = (Arc::clone(&up), Arc::clone(&down));
        tokio::spawn(async move {
            let far = TcpStream::connect(target).await?;
            near.set_nodelay(true)?;
            far.set_nodelay(true)?;
            let (near_read, near_write) = near.into_split();
            let (far_read, far_write) = far.into_split();
            tokio::spawn(async move { up.pass(near_read, far_write).await });
            down.pass(far_read, near_write).await
        });
    }
}

impl Way {
    async fn pass(
        &self,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
    ) -> std::io::Result<()> {
        let mut late: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
        let mut piece = vec![0; PIECE];
        let (mut ended, mut room_at) = (false, Instant::now());
        while !ended || !late.is_empty() {
            let due = late.front().map(|(due, _)| *due);
            tokio::select! {
                () = sleep_until(due.unwrap_or(room_at)), if due.is_some() => {
                    if let Some((_, bytes)) = late.pop_front() {
                        to.write_all(&bytes).await?;
                    }
                }
                read = async {
                    sleep_until(room_at).await;
                    from.read(&mut piece).await
                }, if !ended => {
                    let read = read?;
                    ended = read == 0;
                    let sent = self.send(read);
                    late.push_back((sent + self.delay, piece[..read].to_vec()));
                    room_at = sent.checked_sub(BUFFER).unwrap_or(sent);
                }
            }
        }
        to.shutdown().await
    }

    /// When so many bytes have been sent that come now.
    fn send(&self, bytes: usize) -> Instant {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let takes = Duration::from_nanos(bytes as u64 * 8 * 1_000_000_000 / self.bits_per_second);
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        *free = (*free).max(Instant::now()) + takes;
        *free
    }
}
