//! A part of an upload: from the request's body to the file, and the note how far the file is on disk.

use std::io::{self, Seek, SeekFrom};
use std::sync::Arc;

use axum::body::Body;
use axum::http::StatusCode;
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::watch;

use super::active::{ActiveGuard, HashState};
use super::finish::finish;
use super::partial_file::PartialFile;
use super::record::{UploadRecord, random_name};
use super::request::{PartChecksum, mismatch};
use crate::receiver::Shared;
use crate::receiver::files::file_writer::{BufferedParts, FileWriter, SyncAfter};
use crate::receiver::files::group_commit::storage_error;
use crate::receiver::http::api_error::{ApiError, ApiResult};
use crate::receiver::http::body::MinRate;

/// A part as it is announced.
pub(super) struct IncomingPart {
    pub(super) site: Arc<str>,
    pub(super) id: String,
    pub(super) offset: u64,
    pub(super) checksum: Option<PartChecksum>,
    /// The body's length, if the headers say it.
    pub(super) announced: Option<u64>,
    pub(super) body: Body,
}

/// Appends a part to an upload, and stores the file if it is whole then. A task of its own: it notes what has
/// arrived also if the request's connection, and with it the request's future, is gone.
///
/// # Errors
/// 404, 409 for another offset, 413, 423 while another request writes it, 460 for another checksum or hash.
/// What has arrived of a part without a checksum counts, whatever ended it.
pub(super) async fn append(shared: Arc<Shared>, part: IncomingPart) -> ApiResult<UploadRecord> {
    tokio::spawn(async move { append_here(&shared, part).await })
        .await
        .map_err(|error| ApiError::fault("store a part of a file", error))?
}

async fn append_here(shared: &Shared, part: IncomingPart) -> ApiResult<UploadRecord> {
    let IncomingPart {
        site,
        id,
        offset,
        checksum,
        announced,
        body,
    } = part;
    let (guard, mut record, partial) = match take(shared, &site, &id).await? {
        Taken::Complete(record) if offset == record.length => return Ok(record),
        Taken::Complete(record) => return Err(wrong_offset(record.length)),
        Taken::Unfinished(guard, record, partial) => (guard, record, partial),
    };
    let (partial, has) = on_disk(partial, record.received).await?;
    if offset != has {
        return Err(wrong_offset(has));
    }
    let room = record.length - has;
    if announced.is_some_and(|announced| announced > room) {
        return Err(too_long());
    }
    let writer_name = random_name();
    let hasher = match has {
        0 => Some(blake3::Hasher::new()),
        _ => shared
            .active_uploads
            .take_hasher(&id, record.writer.as_deref(), has),
    };
    if has != record.received {
        record
            .note(&shared.pool, has, &writer_name, shared.upload_expiry)
            .await?;
    }
    let at_start = checksum.is_some().then(|| hasher.clone()).flatten();
    let keep = |reached, hasher: Option<blake3::Hasher>, writer: Option<String>| {
        if let (Some(hasher), Some(writer)) = (hasher, writer) {
            let state = HashState {
                writer,
                offset: reached,
                hasher,
            };
            shared.active_uploads.keep_hasher(&id, state);
        }
    };
    let has_checksum = checksum.is_some();
    let writing = PartWriting {
        shared,
        guard: &guard,
        writer_name: &writer_name,
        start: has,
        room,
    };
    let (written, ended) = writing
        .write(&mut record, partial, body, hasher, checksum)
        .await?;
    if has_checksum {
        let matches = written.checksum.is_some_and(PartChecksum::matches);
        if ended.is_err() || !matches {
            keep(has, at_start, record.writer.clone());
            ended?;
            return Err(mismatch("the part does not have the checksum of its header"));
        }
    }
    if written.end != record.received {
        record
            .note(&shared.pool, written.end, &writer_name, shared.upload_expiry)
            .await?;
    }
    if ended.is_ok() && record.is_whole() {
        finish(shared, &mut record, written.partial, written.hasher).await?;
    } else {
        keep(written.end, written.hasher, record.writer.clone());
    }
    ended?;
    Ok(record)
}

/// An upload, taken to be changed.
pub(super) enum Taken {
    /// It is complete: there is nothing to change.
    Complete(UploadRecord),
    Unfinished(ActiveGuard, UploadRecord, PartialFile),
}

/// Takes the upload: until the guard and the file are dropped, no other request changes it.
///
/// # Errors
/// 404, and 423 while another request has it.
pub(super) async fn take(shared: &Shared, site: &str, id: &str) -> ApiResult<Taken> {
    let record = UploadRecord::find(&shared.pool, site, id).await?;
    if record.stored.is_some() {
        return Ok(Taken::Complete(record));
    }
    let locked = || ApiError::new(StatusCode::LOCKED, "another request writes this upload");
    let guard = shared.active_uploads.begin(id).ok_or_else(locked)?;
    let partial = PartialFile::lock_aside(record.path(shared))
        .await
        .map_err(storage_error)?
        .ok_or_else(locked)?;
    // It may have changed before it was locked.
    match UploadRecord::find(&shared.pool, site, id).await {
        Ok(record) if record.stored.is_some() => {
            partial.remove().map_err(storage_error)?;
            Ok(Taken::Complete(record))
        }
        Ok(record) => Ok(Taken::Unfinished(guard, record, partial)),
        Err(gone) => {
            partial.remove().map_err(storage_error)?;
            Err(gone)
        }
    }
}

/// Cuts off what was not noted. Returns how many bytes count, with the file at its end.
pub(super) async fn on_disk(partial: PartialFile, noted: u64) -> ApiResult<(PartialFile, u64)> {
    let cut = move || {
        let length = partial.file.metadata()?.len();
        if length > noted {
            partial.file.set_len(noted)?;
        }
        let has = length.min(noted);
        (&partial.file).seek(SeekFrom::Start(has))?;
        Ok((partial, has))
    };
    tokio::task::spawn_blocking(cut)
        .await
        .map_err(|error| ApiError::fault("store a part of a file", error))?
        .map_err(storage_error)
}

fn wrong_offset(has: u64) -> ApiError {
    ApiError::new(
        StatusCode::CONFLICT,
        format!("the upload has {has} bytes: the part does not begin there"),
    )
}

fn too_long() -> ApiError {
    ApiError::too_large("the part is longer than what is left of Upload-Length")
}

struct PartWriting<'a> {
    shared: &'a Shared,
    guard: &'a ActiveGuard,
    writer_name: &'a str,
    start: u64,
    room: u64,
}

/// What was written of a part.
struct WrittenPart {
    partial: PartialFile,
    /// The position up to which the file is on disk.
    end: u64,
    hasher: Option<blake3::Hasher>,
    checksum: Option<PartChecksum>,
}

impl PartWriting<'_> {
    /// Writes the body to the file's end. The second value is how the body ended.
    async fn write(
        self,
        record: &mut UploadRecord,
        partial: PartialFile,
        body: Body,
        mut hasher: Option<blake3::Hasher>,
        mut checksum: Option<PartChecksum>,
    ) -> ApiResult<(WrittenPart, ApiResult<()>)> {
        let start = self.start;
        // A part with a checksum counts as a whole.
        let note_steps = checksum.is_none();
        let (mut buffered, pieces, returned) = BufferedParts::new();
        let (synced, mut on_disk) = watch::channel(start);
        let writer = tokio::task::spawn_blocking(move || {
            let file_writer = FileWriter {
                file: &partial.file,
                start,
                sync_after: SyncAfter::BYTES_OR_TIME,
            };
            let seen = |piece: &[u8]| {
                if let Some(hasher) = &mut hasher {
                    hasher.update(piece);
                }
                if let Some(checksum) = &mut checksum {
                    checksum.update(piece);
                }
            };
            let end = file_writer.write(pieces, &returned, seen, move |end| {
                let _ = synced.send(end);
            })?;
            Ok::<_, io::Error>(WrittenPart {
                partial,
                end,
                hasher,
                checksum,
            })
        });
        let mut stream = body.into_data_stream();
        let mut body = PartBody {
            room: self.room,
            rate: MinRate::begin(),
        };
        let mut notes_end = !note_steps;
        let ended = loop {
            let chunk = tokio::select! {
                biased;
                () = self.guard.stop.cancelled() => {
                    break Err(ApiError::new(StatusCode::CONFLICT, "another request continues this upload"));
                }
                changed = on_disk.changed(), if !notes_end => {
                    let end = *on_disk.borrow_and_update();
                    notes_end = changed.is_err();
                    if end > record.received {
                        let noted = record.note(&self.shared.pool, end, self.writer_name, self.shared.upload_expiry);
                        if let Err(error) = noted.await {
                            break Err(error);
                        }
                    }
                    continue;
                }
                chunk = stream.next() => match chunk {
                    None => break Ok(()),
                    Some(Ok(chunk)) => chunk,
                    Some(Err(_)) => {
                        break Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body ended before its end"));
                    }
                },
            };
            if let Err(refusal) = body.accept(&chunk) {
                break Err(refusal);
            }
            if buffered.add(&chunk).await.is_err() {
                // The writer has ended, and returns its error below.
                break Ok(());
            }
        };
        // As above.
        let _ = buffered.send().await;
        drop(buffered);
        let written = writer
            .await
            .map_err(|error| ApiError::fault("store a part of a file", error))?
            .map_err(storage_error)?;
        Ok((written, ended))
    }
}

/// The limits of a part's body.
struct PartBody {
    room: u64,
    rate: MinRate,
}

impl PartBody {
    fn accept(&mut self, chunk: &Bytes) -> ApiResult<()> {
        self.rate.arrived(chunk.len())?;
        self.room = self.room.checked_sub(chunk.len() as u64).ok_or_else(too_long)?;
        Ok(())
    }
}
