//! Writes what arrives of a file: the connection fills buffers, a thread hashes and writes them, another one
//! syncs what is written while more arrives.
//!
//! Always holds: of one file at most [`WAITING`] and three more pieces are in memory.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::sync::mpsc as std_mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

/// This many bytes are hashed and written at once.
pub(crate) const PIECE: usize = 256 * 1024;

/// This many pieces wait for the writer, at most.
pub(crate) const WAITING: usize = 4;

/// A large file is synced in steps of this many bytes while the next ones arrive.
const FLUSH: u64 = 32 * 1024 * 1024;

/// Collects what arrives in buffers that the writer returns. So the connection fills the same buffer again
/// and again, the writer hashes and writes much at once, and a large file allocates no memory for each of its
/// pieces.
pub(crate) struct BufferedParts {
    buffer: Vec<u8>,
    pieces: mpsc::Sender<Vec<u8>>,
    returned: std_mpsc::Receiver<Vec<u8>>,
}

/// The writer has ended.
pub(crate) struct WriterEnded;

impl BufferedParts {
    pub(crate) fn new() -> (Self, mpsc::Receiver<Vec<u8>>, std_mpsc::Sender<Vec<u8>>) {
        let (pieces, to_write) = mpsc::channel(WAITING);
        let (give_back, returned) = std_mpsc::channel();
        let buffered = Self {
            buffer: Vec::new(),
            pieces,
            returned,
        };
        (buffered, to_write, give_back)
    }

    pub(crate) async fn add(&mut self, mut bytes: &[u8]) -> Result<(), WriterEnded> {
        while !bytes.is_empty() {
            let room = PIECE - self.buffer.len();
            let (now, later) = bytes.split_at(bytes.len().min(room));
            if self.buffer.capacity() - self.buffer.len() < now.len() {
                // A small file that arrived at once needs no more than its length.
                let more = if self.buffer.is_empty() { now.len() } else { room };
                self.buffer.reserve_exact(more);
            }
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == PIECE {
                self.send().await?;
            }
        }
        Ok(())
    }

    /// How much the buffer that is filled now can hold, and where it is.
    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.buffer.capacity()
    }

    #[cfg(test)]
    pub(crate) fn address(&self) -> *const u8 {
        self.buffer.as_ptr()
    }

    /// Hands on what was collected.
    pub(crate) async fn send(&mut self) -> Result<(), WriterEnded> {
        let next = self.returned.try_recv().unwrap_or_default();
        let full = std::mem::replace(&mut self.buffer, next);
        self.pieces.send(full).await.map_err(|_| WriterEnded)
    }
}

/// When what is written is synced.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SyncAfter {
    bytes: u64,
    time: Duration,
}

impl SyncAfter {
    /// By bytes only: an interrupted file is not kept.
    pub(crate) const BYTES: Self = Self {
        bytes: FLUSH,
        time: Duration::MAX,
    };

    /// Also by time: what is synced need not be sent again.
    pub(crate) const BYTES_OR_TIME: Self = Self {
        bytes: FLUSH,
        time: Duration::from_secs(2),
    };
}

/// The file that pieces are written to.
pub(crate) struct FileWriter<'a> {
    /// It is at its position `start`.
    pub(crate) file: &'a File,
    pub(crate) start: u64,
    pub(crate) sync_after: SyncAfter,
}

impl FileWriter<'_> {
    /// Writes the pieces and syncs the file. `seen` gets each piece, `synced` each position up to which the
    /// file is on disk. Returns the position of the end.
    pub(crate) fn write(
        self,
        mut pieces: mpsc::Receiver<Vec<u8>>,
        give_back: &std_mpsc::Sender<Vec<u8>>,
        mut seen: impl FnMut(&[u8]),
        synced: impl Fn(u64) + Clone + Send + 'static,
    ) -> io::Result<u64> {
        let mut file = self.file;
        let (mut end, mut flushed, mut flushed_at) = (self.start, self.start, Instant::now());
        let mut flush: Option<JoinHandle<io::Result<()>>> = None;
        while let Some(mut piece) = pieces.blocking_recv() {
            seen(&piece);
            file.write_all(&piece)?;
            end += piece.len() as u64;
            piece.clear();
            // Nobody listens once the whole body has arrived.
            let _ = give_back.send(piece);
            let is_due =
                end - flushed >= self.sync_after.bytes || flushed_at.elapsed() >= self.sync_after.time;
            if is_due && flush.as_ref().is_none_or(JoinHandle::is_finished) {
                join_flush(flush.take())?;
                let (file, from, synced) = (file.try_clone()?, flushed, synced.clone());
                (flushed, flushed_at) = (end, Instant::now());
                flush = Some(thread::spawn(move || {
                    file.sync_data()?;
                    synced(end);
                    drop_from_cache(&file, from..end);
                    Ok(())
                }));
            }
        }
        // The disk reports an error only to the first who syncs.
        join_flush(flush)?;
        file.sync_all()?;
        Ok(end)
    }
}

/// Drops what is on disk from the page cache, so that the next bytes reuse its memory, and a large file does
/// not displace what others read, above all the database. It is advice: nothing is lost if the system does
/// not follow it.
fn drop_from_cache(file: &File, bytes: Range<u64>) {
    #[cfg(target_os = "linux")]
    if let Some(length) = std::num::NonZeroU64::new(bytes.end - bytes.start) {
        let _ = rustix::fs::fadvise(file, bytes.start, Some(length), rustix::fs::Advice::DontNeed);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file, bytes);
}

fn join_flush(flush: Option<JoinHandle<std::io::Result<()>>>) -> std::io::Result<()> {
    match flush.map(JoinHandle::join) {
        None => Ok(()),
        Some(Ok(flushed)) => flushed,
        Some(Err(_)) => Err(std::io::Error::other("the sync of a file has panicked")),
    }
}
