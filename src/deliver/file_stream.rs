//! A file in pieces: read and hashed on a thread of its own, while the piece before is sent.
//!
//! Buffers are used again: the buffer of a piece comes back when the connection is done with it. So a large
//! file needs no fresh memory for each of its pieces, and no zeroing of it. There are as many buffers as
//! there are pieces in memory: those that wait here ([`READ_AHEAD`]), one that is being read, and those that
//! the connection holds.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::mpsc as buffers;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

/// How many bytes are read, hashed and handed on at once. Copies of so many on their way to the socket stay
/// in a core's cache.
const PIECE: usize = 256 * 1024;

/// How many pieces are read before they are sent.
const READ_AHEAD: usize = 2;

/// A file on its way.
pub(super) struct FileStream {
    /// Its length at the start. The pieces are as long together, or end with an error.
    pub(super) bytes: u64,
    pub(super) pieces: mpsc::Receiver<io::Result<Bytes>>,
    /// Its hash, or why it could not be read to its end. It comes before the last piece is handed on.
    pub(super) hash: oneshot::Receiver<io::Result<blake3::Hash>>,
}

/// Begins to read the file. The outer error says that the reading thread ended.
pub(super) async fn open_stream(
    file: Arc<File>,
) -> Result<io::Result<FileStream>, oneshot::error::RecvError> {
    let (open_sender, opened) = oneshot::channel();
    let (piece_sender, pieces) = mpsc::channel(READ_AHEAD);
    let (hash_sender, hash) = oneshot::channel();
    tokio::task::spawn_blocking(move || match length_of(&file) {
        Ok(bytes) => {
            if open_sender.send(Ok(bytes)).is_ok() {
                stream_file(
                    &mut FileStreamReader::new(file.clone(), 0, bytes, Some(blake3::Hasher::new())),
                    &piece_sender,
                    hash_sender,
                );
            }
        }
        // Nobody listens any more if the upload was dropped.
        Err(error) => drop(open_sender.send(Err(error))),
    });
    let bytes = opened.await?;
    Ok(bytes.map(|bytes| FileStream { bytes, pieces, hash }))
}

/// Begins to read `length` bytes from `start` on, without their hash.
pub(super) fn open_part(file: Arc<File>, start: u64, length: u64) -> mpsc::Receiver<io::Result<Bytes>> {
    let (piece_sender, pieces) = mpsc::channel(READ_AHEAD);
    tokio::task::spawn_blocking(move || {
        let mut reader = FileStreamReader::new(file, start, length, None);
        while reader.left > 0 {
            let piece = reader.next().map(|(piece, _)| piece);
            let is_error = piece.is_err();
            if piece_sender.blocking_send(piece).is_err() || is_error {
                return;
            }
        }
    });
    pieces
}

/// The length of the file.
fn length_of(file: &File) -> io::Result<u64> {
    let about = file.metadata()?;
    if !about.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not a regular file",
        ));
    }
    Ok(about.len())
}

/// Hands the pieces on, and the hash before the last one.
fn stream_file(
    reader: &mut FileStreamReader,
    pieces: &mpsc::Sender<io::Result<Bytes>>,
    hash_sender: oneshot::Sender<io::Result<blake3::Hash>>,
) {
    loop {
        match reader.next() {
            Ok((piece, None)) => {
                if pieces.blocking_send(Ok(piece)).is_err() {
                    return;
                }
            }
            Ok((piece, Some(hash))) => {
                // Nobody listens any more if the request has ended.
                let _ = hash_sender.send(Ok(hash));
                let _ = pieces.blocking_send(Ok(piece));
                return;
            }
            Err(error) => {
                let cut = io::Error::new(error.kind(), "the file could not be read to its end");
                let _ = hash_sender.send(Err(error));
                let _ = pieces.blocking_send(Err(cut));
                return;
            }
        }
    }
}

/// Reads exactly `left` more bytes. It leaves the file's own position alone: the thread of an interrupted
/// request may read a last piece while the next request begins.
struct FileStreamReader {
    file: Arc<File>,
    position: u64,
    left: u64,
    /// `Some` if the file is read to its end.
    hasher: Option<blake3::Hasher>,
    returned: buffers::Receiver<Vec<u8>>,
    return_to: buffers::Sender<Vec<u8>>,
}

impl FileStreamReader {
    fn new(file: Arc<File>, position: u64, left: u64, hasher: Option<blake3::Hasher>) -> Self {
        let (return_to, returned) = buffers::channel();
        Self {
            file,
            position,
            left,
            hasher,
            returned,
            return_to,
        }
    }

    /// The next piece; with the hash if it is the last one.
    fn next(&mut self) -> io::Result<(Bytes, Option<blake3::Hash>)> {
        let most = usize::try_from(self.left).map_or(PIECE, |left| left.min(PIECE));
        let mut buffer = self.returned.try_recv().unwrap_or_default();
        buffer.resize(buffer.len().max(most), 0);
        let mut length = 0;
        while length < most {
            let at = self.position + length as u64;
            match read_at(&self.file, &mut buffer[length..most], at) {
                Ok(0) => return Err(io::Error::other("it became shorter while it was sent")),
                Ok(read) => length += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.position += length as u64;
        self.left -= length as u64;
        let mut hash = None;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..length]);
            if self.left == 0 {
                if read_at(&self.file, &mut [0], self.position)? > 0 {
                    return Err(io::Error::other("it became longer while it was sent"));
                }
                hash = Some(hasher.finalize());
            }
        }
        let piece = Bytes::from_owner(PooledBuffer {
            buffer,
            length,
            return_to: self.return_to.clone(),
        });
        Ok((piece, hash))
    }
}

#[cfg(unix)]
fn read_at(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, buffer, at)
}

#[cfg(windows)]
fn read_at(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, buffer, at)
}

/// A buffer on its way, with the piece at its beginning.
struct PooledBuffer {
    buffer: Vec<u8>,
    length: usize,
    return_to: buffers::Sender<Vec<u8>>,
}

impl AsRef<[u8]> for PooledBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

impl Drop for PooledBuffer {
    fn drop(&mut self) {
        // Nobody takes it if the file is at its end.
        let _ = self.return_to.send(std::mem::take(&mut self.buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_returned_buffer_is_used_again_and_shows_no_more_than_its_piece() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let content: Vec<u8> = (0..5 * PIECE + 10).map(|at| (at * 31 % 251) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let file = Arc::new(File::open(&path).unwrap());
        let bytes = length_of(&file).unwrap();
        let mut reader = FileStreamReader::new(file, 0, bytes, Some(blake3::Hasher::new()));
        let (first, second) = (reader.next().unwrap().0, reader.next().unwrap().0);
        let buffers = [first.as_ptr(), second.as_ptr()];
        let mut read = [&first[..], &second[..]].concat();
        drop((first, second));
        let hash = loop {
            let (piece, hash) = reader.next().unwrap();
            assert!(buffers.contains(&piece.as_ptr()), "no third buffer");
            read.extend_from_slice(&piece);
            if let Some(hash) = hash {
                break hash;
            }
        };
        assert!(read == content);
        assert_eq!(hash, blake3::hash(&content));
    }
}
