//! One file: whether it can be uploaded now, and its upload.
//!
//! A file that may still be written, that is empty or that is missing is not sent: it is looked at again
//! later. What is on the disk when it is sent is the truth: it is opened then. After an upload the file must
//! look as it did before, else it is uploaded again. A large file goes in parts, from where an earlier
//! attempt has come, if it looks as it did then. A file that looks otherwise and has the content that the
//! cloud has already is not sent.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::{Timestamp, Zoned};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::file_lane_signals::FileLaneSignals;
use super::file_outcome::{Deferral, FileFate, FileOutcome, UploadStop};
use super::paths;
use super::readiness::{Readiness, Unfinished};
use super::root::{FoundFile, MediaRoot, OpenRefusal};
use super::upload_progress::UploadProgress;
use super::upload_times::{not_yet, until_not_now};
use super::url_end;
use super::watch::MediaWatch;
use crate::catalogue::Catalogue;
use crate::deliver::{
    BegunUpload, Capabilities, ChangeOrigin, Cloud, CloudResult, Failure, ObjectStorage, PART_TIME,
    ResumableUpload, UploadFile, UploadReceipt,
};
use crate::error::Kind;
use crate::metrics::Metrics;
use crate::retry::waits;
use crate::source::file_records::{FileStamp, NO_VIDEOS, NOT_NOW, PendingFile, RecordedContent, SETTLING};
use crate::source::file_state::FileState;
use crate::source::upload_state::UploadState;
use crate::wire::Capability;

/// How many seconds a file waits that cannot become finished without an event that tells of it; a rescan sees
/// it too.
const UNFINISHED_EVERY: f64 = 30.0;

/// How many seconds pass before a missing root is looked for again.
const ROOT_EVERY: f64 = 10.0;

/// A file of so many bytes goes in parts, where the cloud takes them: what has arrived is not sent again.
const IN_PARTS_FROM: i64 = 1024 * 1024;

/// So many attempts in a row may fail to bring an upload further.
const STUCK_AFTER: i32 = 2;

/// File name endings of videos.
const VIDEOS: [&str; 10] = [
    "mp4", "m4v", "mov", "avi", "mkv", "webm", "mpg", "mpeg", "ts", "flv",
];

/// What an upload needs.
#[derive(Clone)]
pub(super) struct FileUploader<'a> {
    pub(super) cloud: &'a Cloud,
    /// Where files go instead of through the cloud's API.
    pub(super) storage: Option<&'a ObjectStorage>,
    /// The media root.
    pub(super) root: &'a MediaRoot,
    pub(super) readiness: &'a Readiness,
    /// Whether videos are uploaded.
    pub(super) videos: bool,
    /// When files go.
    pub(super) catalogue: &'a Catalogue,
    pub(super) metrics: &'a Metrics,
    pub(super) state: &'a Arc<FileLaneSignals>,
    pub(super) watch: &'a MediaWatch,
    pub(super) capabilities: Capabilities,
    pub(super) origin: Arc<ChangeOrigin>,
    pub(super) progress: &'a UploadProgress,
}

/// A file that can be uploaded now, as it looks.
pub(super) struct ReadyFile {
    pub(super) pending: PendingFile,
    pub(super) stamp: FileStamp,
    /// Whether another file of its size is in the cloud: its content may be there too.
    pub(super) may_be_there: bool,
    /// Its upload that is in progress, of the file as it looked then.
    pub(super) begun: Option<UploadState>,
}

/// What is done about a file that is due.
pub(super) enum UploadTask {
    /// The cloud is asked whether it still has what is recorded.
    Ask(PendingFile, RecordedContent),
    Upload(ReadyFile),
}

impl FileUploader<'_> {
    /// Whether the cloud is asked for the file first; if so, what is recorded of it.
    pub(super) fn to_ask(&self, pending: &mut PendingFile) -> Option<RecordedContent> {
        pending.to_confirm.take_if(|_| self.can_ask())
    }

    /// What becomes of a due file. The error is the cloud's: it takes no file now.
    pub(super) async fn carry_out(self, task: UploadTask) -> Result<FileOutcome, UploadStop> {
        match task {
            UploadTask::Ask(pending, recorded) => self.ask(pending, recorded).await,
            UploadTask::Upload(ready) => self.upload(ready).await,
        }
    }

    /// How the file looks, if it can be uploaded now; else when to look again, and why.
    pub(super) fn prepare(&self, pending: &PendingFile) -> Result<FileStamp, Deferral> {
        let found = self.open(pending)?;
        let path = &pending.path;
        let relative = paths::below(&self.root.path, path);
        let is_written = self.watch.is_written(relative.as_deref().unwrap_or(path));
        let (why, seconds) = match self.readiness.unfinished(path, &found, is_written) {
            None => {
                let timing = self.catalogue.file_timing(&pending.directory);
                return not_yet(timing, &found.stamp, &Zoned::now()).map_or(Ok(found.stamp), Err);
            }
            Some(Unfinished::Open) => (OPEN, UNFINISHED_EVERY),
            Some(Unfinished::Changing(wait)) => (SETTLING, wait.as_secs_f64()),
        };
        Err(Deferral::waiting(why, seconds).with_size(found.stamp.size))
    }

    /// Uploads one file.
    ///
    /// # Errors
    /// The cloud takes no file now: this one is still pending.
    async fn upload(self, ready: ReadyFile) -> Result<FileOutcome, UploadStop> {
        let fate = match self.open(&ready.pending) {
            // It was looked at a while ago.
            Ok(found) if found.stamp != ready.stamp => FileFate::Deferred(Deferral::waiting(SETTLING, 0.1)),
            Ok(found) if self.readiness.is_open(&found) => {
                FileFate::Deferred(Deferral::waiting(OPEN, UNFINISHED_EVERY))
            }
            Ok(found) => {
                tokio::select! {
                    fate = self.upload_found(&ready, found) => fate?,
                    // What has arrived in parts stays.
                    () = until_not_now(self.catalogue.file_timing(&ready.pending.directory)) => {
                        FileFate::Deferred(Deferral::waiting(NOT_NOW, 0.0))
                    }
                    () = self.state.bandwidth.budget_used_up(), if self.goes_in_parts(&ready.stamp) => {
                        FileFate::Deferred(Deferral::waiting(USED_UP, 0.0))
                    }
                }
            }
            Err(deferral) => return Ok(FileOutcome::not_ready(ready.pending, deferral)),
        };
        Ok(FileOutcome {
            path: ready.pending.path,
            fate,
        })
    }

    async fn upload_found(&self, ready: &ReadyFile, found: FoundFile) -> Result<FileFate, UploadStop> {
        let ReadyFile { pending, stamp, .. } = ready;
        let file = Arc::new(found.file);
        let in_parts = self.goes_in_parts(stamp);
        let (begun, outdated) = match &ready.begun {
            Some(begun) if in_parts && begun.stamp == *stamp => (Some(begun), None),
            other => (None, other.as_ref()),
        };
        if let Some(outdated) = outdated {
            self.end_upload(&outdated.upload.address).await;
        }
        let confirmed = pending.confirmed.as_ref();
        let confirmed = confirmed.filter(|confirmed| confirmed.size == stamp.size);
        let may_be_there = (ready.may_be_there || in_parts) && begun.is_none();
        let may_be_there = may_be_there && self.storage.is_none() && self.capabilities.content_hash;
        let mut hash = begun.map(|begun| begun.hash);
        if hash.is_none() && (confirmed.is_some() || may_be_there || in_parts || self.storage.is_some()) {
            match hash_of(file.clone(), self.state.clone()).await {
                Ok(known) => hash = Some(known),
                Err(error) => return Ok(FileFate::Deferred(unreadable(&error, pending.attempts))),
            }
        }
        if let (Some(hash), Some(confirmed)) = (hash, confirmed)
            && confirmed.hash == *hash.to_hex()
        {
            return Ok(self.unless_changed(ready, FileFate::Unchanged(*stamp)));
        }
        let mut there = None;
        if let Some(hash) = hash.filter(|_| may_be_there) {
            there = self.find(&pending.directory, &hash).await;
        }
        let sent = match there {
            Some(receipt) => Ok(receipt),
            None => match self.send(ready, file, found.name, hash, begun).await {
                Some(sent) => sent,
                None => return Ok(FileFate::Deferred(Deferral::again(CHANGED, 1.0).ending_upload())),
            },
        };
        Ok(match sent {
            // The reference server returns the hash of what it has; a server without hashes is believed.
            Ok(receipt) if self.capabilities.changes && !receipt.confirmed => {
                FileFate::Deferred(Deferral::again("the cloud did not confirm its content", 30.0))
            }
            Ok(receipt) => self.unless_changed(ready, FileFate::Uploaded(*stamp, receipt)),
            Err(failure) => {
                let deferral = self.failed(pending, failure).await?;
                FileFate::Deferred(match self.is_stuck(pending, begun) {
                    true => deferral.ending_upload(),
                    false => deferral,
                })
            }
        })
    }

    /// The fate of a file that still looks as it did before; else it is uploaded again.
    fn unless_changed(&self, ready: &ReadyFile, fate: FileFate) -> FileFate {
        let ReadyFile { pending, stamp, .. } = ready;
        let bytes = match &fate {
            FileFate::Uploaded(_, receipt) => receipt.bytes,
            _ => 0,
        };
        // No byte is sent of a content that is there already.
        let is_part = bytes != 0 && bytes != stamp.size.cast_unsigned();
        if is_part || self.has_changed(pending, stamp) {
            return FileFate::Deferred(Deferral::again(CHANGED, 1.0).ending_upload());
        }
        if bytes == 0 && matches!(fate, FileFate::Uploaded(..)) {
            self.metrics.files.present.inc();
        }
        fate
    }

    /// The content with this hash, if the cloud says that it has it. Where it cannot say so, the file is
    /// sent.
    async fn find(&self, directory: &str, hash: &blake3::Hash) -> Option<UploadReceipt> {
        let found = self.cloud.find_content(directory, hash).await;
        let url = found.unwrap_or_else(|failure| {
            tracing::debug!(%failure, "the cloud does not say whether it has a content: the file is sent");
            None
        })?;
        Some(UploadReceipt {
            url,
            path: None,
            hash: *hash,
            bytes: 0,
            confirmed: true,
        })
    }

    /// Sends the file to the cloud, or into the object storage, where its content is not there already.
    /// `None` if it changed in the meantime.
    async fn send(
        &self,
        ready: &ReadyFile,
        file: Arc<File>,
        name: String,
        hash: Option<blake3::Hash>,
        begun: Option<&UploadState>,
    ) -> Option<CloudResult<UploadReceipt>> {
        let ReadyFile { pending, stamp, .. } = ready;
        let directory = &pending.directory;
        // A storage's key is made of the content: no name is in the way of another one.
        let sent_as = pending.sent_as.clone().filter(|_| self.storage.is_none());
        let upload = self.upload_file(file, sent_as.unwrap_or(name));
        if let Some(hash) = hash.filter(|_| self.storage.is_some() || self.goes_in_parts(stamp)) {
            match self.send_noting(ready, upload.clone(), hash, begun).await {
                // It had listed them, and does not have them.
                Some(Err(failure)) if failure.lost_capability() == Some(Capability::Tus) => {
                    tracing::debug!(%failure, "the file goes in one request");
                }
                sent => return sent,
            }
        }
        Some(self.cloud.upload(directory, upload).await)
    }

    /// Whether a file goes in parts: what has arrived is not sent again after an interruption.
    pub(super) fn goes_in_parts(&self, stamp: &FileStamp) -> bool {
        match self.storage {
            Some(storage) => storage.resumes(stamp.size.cast_unsigned()),
            None => self.capabilities.tus && stamp.size >= IN_PARTS_FROM,
        }
    }

    /// Sends the file from where `begun` has come. Where it is, is noted as it goes on. `None` if the file
    /// changed in the meantime: what has arrived is given up.
    async fn send_noting(
        &self,
        ready: &ReadyFile,
        file: UploadFile,
        hash: blake3::Hash,
        begun: Option<&UploadState>,
    ) -> Option<CloudResult<UploadReceipt>> {
        let ReadyFile { pending, stamp, .. } = ready;
        let (changed, address) = (Notify::new(), Mutex::new(None));
        let note = |upload: &BegunUpload| {
            self.progress.heard(&pending.path, stamp, hash, upload);
            *address.lock().unwrap_or_else(PoisonError::into_inner) = Some(upload.address.clone());
            if self.has_changed(pending, stamp) {
                changed.notify_one();
            }
        };
        let upload = ResumableUpload {
            directory: &pending.directory,
            file,
            hash,
            state: begun.map(|begun| begun.upload.clone()),
            part_time: PART_TIME,
            note: &note,
        };
        let sending = async {
            match self.storage {
                Some(storage) => {
                    let (source, size) = (&self.origin.source_id, stamp.size.cast_unsigned());
                    storage.upload(source, size, &upload).await
                }
                None => self.cloud.upload_resumable(upload).await,
            }
        };
        let sent = tokio::select! {
            biased;
            () = changed.notified() => None,
            sent = sending => Some(sent),
        };
        let address = address.into_inner().unwrap_or_else(PoisonError::into_inner);
        match &sent {
            // What has arrived stays: the next attempt goes on from there.
            Some(Err(failure)) if !ends_upload(failure) && !self.is_stuck(pending, begun) => {}
            Some(Ok(_)) => self.progress.ended(&pending.path),
            None | Some(Err(_)) => {
                self.progress.ended(&pending.path);
                if let Some(address) = address {
                    self.end_upload(&address).await;
                }
            }
        }
        sent
    }

    /// Whether attempt after attempt to go on with an upload brings it no further: something is wrong with it
    /// that no answer tells, and it begins again.
    fn is_stuck(&self, pending: &PendingFile, begun: Option<&UploadState>) -> bool {
        let now = self.progress.in_progress(&pending.path);
        pending.attempts >= STUCK_AFTER
            && begun.is_some_and(|begun| now.is_none_or(|now| now.upload == begun.upload))
    }

    /// Has the cloud give up an upload that is of no use any more. If it does not, the upload expires there.
    async fn end_upload(&self, address: &str) {
        let ended = match self.storage {
            Some(storage) => storage.end_upload(address).await,
            None => self.cloud.end_upload(address).await,
        };
        if let Err(failure) = ended {
            tracing::debug!(%failure, "an upload that is of no use is left to expire in the cloud");
        }
    }

    /// Whether the cloud can be asked if it has a content.
    pub(super) fn can_ask(&self) -> bool {
        self.storage.is_some() || self.capabilities.content_hash
    }

    /// Asks the cloud whether it still has what is recorded of a file.
    ///
    /// # Errors
    /// The cloud takes no file now: it is asked again.
    async fn ask(self, pending: PendingFile, recorded: RecordedContent) -> Result<FileOutcome, UploadStop> {
        let found = match (self.storage, blake3::Hash::from_hex(&recorded.hash)) {
            (_, Err(_)) => Ok(None),
            (Some(storage), Ok(hash)) => {
                let (source, size) = (&self.origin.source_id, recorded.stamp.size.cast_unsigned());
                storage
                    .find(source, &pending.directory, &pending.path, size, &hash)
                    .await
            }
            (None, Ok(hash)) => self.cloud.find_content(&pending.directory, &hash).await,
        };
        let url = match found {
            Ok(url) => url,
            Err(failure) if self.refuses_to_say(&failure).await => None,
            Err(failure) => return Err(self.stop(failure)),
        };
        let fate = match url {
            Some(url) => {
                self.metrics.files.present.inc();
                let now = self.root.open().and_then(|root| root.stamp(&pending.path));
                FileFate::Kept {
                    has_changed: now.is_ok_and(|now| recorded.stamp.differs(&now)),
                    hash: recorded.hash,
                    url: url_end::to_keep(recorded.url, url, Timestamp::now()),
                }
            }
            None => FileFate::Gone { hash: recorded.hash },
        };
        Ok(FileOutcome {
            path: pending.path,
            fate,
        })
    }

    /// Whether the cloud is there, and does not say if it has a content: then the file is sent.
    async fn refuses_to_say(&self, failure: &Failure) -> bool {
        let may_refuse = failure.retry_after().is_none() && !failure.was_interrupted();
        may_refuse && (failure.error().kind() == Kind::CloudRefused || self.is_reachable().await)
    }

    /// Whether files can be brought there, as far as a question tells.
    async fn is_reachable(&self) -> bool {
        match self.storage {
            Some(storage) => storage.check().await.is_ok(),
            None => self.cloud.handshake(&self.origin).await.is_ok(),
        }
    }

    /// Why no file goes now. If it is the object storage that takes none, rows go on.
    fn stop(&self, failure: Failure) -> UploadStop {
        let stop = UploadStop::from(failure);
        UploadStop {
            is_about_files: stop.is_about_files || self.storage.is_some(),
            ..stop
        }
    }

    /// A file to upload, as fast as files may go.
    fn upload_file(&self, file: Arc<File>, name: String) -> UploadFile {
        let progress = self.state.clone();
        UploadFile {
            name,
            pace: Some(Arc::new(move |bytes| {
                progress.note_progress(bytes as u64);
                progress.bandwidth.take(bytes)
            })),
            ..UploadFile::of(file)
        }
    }

    /// When a file is tried again whose upload failed.
    async fn failed(&self, pending: &PendingFile, failure: Failure) -> Result<Deferral, UploadStop> {
        let cause = failure.error().cause().to_owned();
        let deferral = match failure.error().kind() {
            Kind::Media => return Ok(Deferral::again(cause, 2.0).ending_upload()),
            Kind::CloudRefused => {
                Deferral::failing(cause, waits::REFUSED_FILE, pending.attempts).ending_upload()
            }
            _ if self.storage.is_some() && failure.was_interrupted() && self.is_reachable().await => {
                // What has arrived in parts stays.
                return Ok(Deferral::after(
                    cause,
                    waits::FILE_OF_BROKEN_LINE,
                    pending.attempts,
                ));
            }
            _ if self.is_about_the_file(&failure).await => {
                let why = match failure.words() {
                    Some(words) => format!("{cause}: {words}"),
                    None => cause,
                };
                let deferral = Deferral::failing(why, waits::FAILING_FILE, pending.attempts);
                match ends_upload(&failure) {
                    true => deferral.ending_upload(),
                    false => deferral,
                }
            }
            // The cloud is unreachable: the lane waits.
            _ => return Err(self.stop(failure)),
        };
        self.metrics.files.failed.inc();
        tracing::warn!(path = pending.path, "{}", failure.error());
        Ok(deferral)
    }

    /// Whether a failure is about the file: the cloud is reachable, and takes the key. An object storage has
    /// no status for what is wrong: whether it answers decides.
    async fn is_about_the_file(&self, failure: &Failure) -> bool {
        (failure.may_be_a_rows_fault() || self.storage.is_some()) && self.is_reachable().await
    }

    /// Whether the file that the row names looks otherwise than before.
    fn has_changed(&self, pending: &PendingFile, before: &FileStamp) -> bool {
        let now = self.root.open().and_then(|root| root.stamp(&pending.path));
        now.ok().as_ref() != Some(before)
    }

    /// Opens the file if it is there and can be sent; else says when to look again.
    fn open(&self, pending: &PendingFile) -> Result<FoundFile, Deferral> {
        let path = &pending.path;
        let extension = Path::new(path)
            .extension()
            .map(|extension| extension.to_string_lossy().to_lowercase());
        if !self.videos && extension.is_some_and(|extension| VIDEOS.contains(&extension.as_str())) {
            return Err(Deferral::waiting(NO_VIDEOS, 3600.0));
        }
        let found = self.root.open().and_then(|root| root.open(path));
        let found = found.map_err(|refusal| self.not_opened(pending, refusal))?;
        if found.stamp.size == 0 {
            return Err(Deferral::waiting("the file is empty", UNFINISHED_EVERY).with_size(0));
        }
        Ok(found)
    }

    fn not_opened(&self, pending: &PendingFile, refusal: OpenRefusal) -> Deferral {
        match refusal {
            OpenRefusal::NoRoot(error) => {
                Deferral::waiting(format!("the media root cannot be opened: {error}"), ROOT_EVERY)
            }
            OpenRefusal::Missing(why) => {
                if pending.attempts == 0 && pending.to_confirm.is_none() {
                    tracing::warn!(
                        path = pending.path,
                        "a row names a file that is not in the media root"
                    );
                    self.metrics.files.missing.inc();
                }
                Deferral::new(FileState::Missing, why, 0.0, true)
            }
            OpenRefusal::Refused(why) => {
                if pending.attempts == 0 {
                    tracing::warn!(
                        path = pending.path,
                        "a row names a file that is never sent: {why}"
                    );
                }
                Deferral::new(FileState::Refused, why, 0.0, true)
            }
            OpenRefusal::Unreadable(error) => {
                if pending.attempts == 0 {
                    tracing::warn!(
                        path = pending.path,
                        "a file that a row names cannot be read: {error}"
                    );
                    self.metrics.files.failed.inc();
                }
                unreadable(&error, pending.attempts)
            }
        }
    }
}

/// Insufficient Storage: what has arrived of an upload takes the room of other files.
const NO_SPACE: u16 = 507;

/// Whether an upload in parts is of no use after this failure: its content is another one, the cloud refuses
/// it, or has no space for it.
fn ends_upload(failure: &Failure) -> bool {
    matches!(failure.error().kind(), Kind::Media | Kind::CloudRefused) || failure.status() == Some(NO_SPACE)
}

/// Why a file waits of which a part has been sent.
const USED_UP: &str = "the rest goes on when files.budget has bytes again";

/// Why a file waits that is not finished.
const OPEN: &str = "a program has it open for writing";

/// Why a file is uploaded again that was written in the meantime.
const CHANGED: &str = "it changed while it was uploaded";

fn unreadable(error: &std::io::Error, attempts: i32) -> Deferral {
    let why = format!("it cannot be read by the user that cloud-sync runs as: {error}");
    Deferral::failing(why, waits::FAILING_FILE, attempts)
}

/// Bytes that are read at once for a hash.
const HASHED_AT_ONCE: usize = 1024 * 1024;

/// The hash of a file's content, read on a thread of its own. The thread ends soon if the hash is not waited
/// for any more.
async fn hash_of(file: Arc<File>, signals: Arc<FileLaneSignals>) -> std::io::Result<blake3::Hash> {
    let unwanted = CancellationToken::new();
    let _unwanted_on_drop = unwanted.clone().drop_guard();
    let read = tokio::task::spawn_blocking(move || {
        let (mut hasher, mut at) = (blake3::Hasher::new(), 0);
        let mut buffer = vec![0; HASHED_AT_ONCE];
        loop {
            if unwanted.is_cancelled() {
                return Err(std::io::Error::other("nobody waits for the hash"));
            }
            match file.read_at(&mut buffer, at) {
                Ok(0) => return Ok(hasher.finalize()),
                Ok(read) => {
                    hasher.update(&buffer[..read]);
                    at += read as u64;
                    signals.note_progress(read as u64);
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    });
    read.await
        .unwrap_or_else(|error| Err(std::io::Error::other(error)))
}
