//! Files that are being uploaded: many small ones at a time, and one large one.
//!
//! Large files are uploaded one after another: several at a time over a slow link that drops would all be
//! interrupted before their end. Small ones do not wait for them. An outcome is kept until it is taken and
//! recorded; until then its file is busy, and is not given again. After the first sign that the cloud is
//! unreachable no upload starts, and those that have started end.

use std::collections::{HashSet, VecDeque};
use std::pin::pin;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;

use super::file_upload::{FileFate, FileOutcome, FileUploader, ReadyFile};
use crate::error::{Error, Result};
use crate::source::file_records::PendingFile;

/// Small files that are uploaded at a time.
const SMALL_AT_ONCE: usize = 12;

/// A file of so many bytes is large.
const LARGE: i64 = 8 * 1024 * 1024;

/// Files that are busy at a time, at most.
const BUSY: usize = 1024;

/// What became of one file and whether it was a large one; or why the cloud takes no file now.
type UploadOutcome = (bool, Result<FileOutcome>);

/// See the module.
pub(super) struct UploadPool<'a> {
    uploader: FileUploader<'a>,
    small: VecDeque<ReadyFile>,
    large: VecDeque<ReadyFile>,
    uploading: FuturesUnordered<BoxFuture<'a, UploadOutcome>>,
    /// Whether one of them is large.
    is_large_uploading: bool,
    outcomes: Vec<FileOutcome>,
    busy: HashSet<String>,
    error: Option<Error>,
}

impl<'a> UploadPool<'a> {
    pub(super) fn new(uploader: FileUploader<'a>) -> Self {
        Self {
            uploader,
            small: VecDeque::new(),
            large: VecDeque::new(),
            uploading: FuturesUnordered::new(),
            is_large_uploading: false,
            outcomes: Vec::new(),
            busy: HashSet::new(),
            error: None,
        }
    }

    /// How many more files it takes now.
    pub(super) fn room(&self) -> usize {
        if self.error.is_some() || self.small.len() > SMALL_AT_ONCE {
            return 0;
        }
        BUSY.saturating_sub(self.busy.len()).min(BUSY / 4)
    }

    /// The files that must not be given again now.
    pub(super) fn busy(&self) -> Vec<&str> {
        self.busy.iter().map(String::as_str).collect()
    }

    pub(super) fn is_busy(&self, path: &str) -> bool {
        self.busy.contains(path)
    }

    /// Starts or queues the uploads of these files; one that cannot be uploaded now gets its outcome at once.
    pub(super) fn give(&mut self, files: Vec<PendingFile>) {
        for pending in files {
            self.busy.insert(pending.path.clone());
            match self.uploader.prepare(&pending) {
                Ok((file, stamp)) => {
                    let queue = if stamp.size >= LARGE {
                        &mut self.large
                    } else {
                        &mut self.small
                    };
                    queue.push_back(ReadyFile { pending, file, stamp });
                }
                Err(deferral) => self.outcomes.push(FileOutcome {
                    path: pending.path,
                    fate: FileFate::Deferred(deferral),
                }),
            }
        }
        self.start_uploads();
    }

    /// Takes the outcomes. Their files stay busy until [`UploadPool::release`].
    pub(super) fn take_outcomes(&mut self) -> Vec<FileOutcome> {
        std::mem::take(&mut self.outcomes)
    }

    /// The outcomes are recorded: their files are no longer busy.
    pub(super) fn release(&mut self, outcomes: &[FileOutcome]) {
        for outcome in outcomes {
            self.busy.remove(&outcome.path);
        }
    }

    /// Why no upload starts any more, once none is left and each outcome was taken.
    pub(super) fn take_error(&mut self) -> Option<Error> {
        if self.uploading.is_empty() && self.outcomes.is_empty() {
            self.error.take()
        } else {
            None
        }
    }

    /// Waits until an upload ends; for ever if there is none.
    pub(super) async fn next(&mut self) {
        let Some((is_large, outcome)) = self.uploading.next().await else {
            return std::future::pending().await;
        };
        if is_large {
            self.is_large_uploading = false;
        }
        match outcome {
            Ok(outcome) => self.outcomes.push(outcome),
            Err(error) => {
                self.error.get_or_insert(error);
            }
        }
        self.start_uploads();
    }

    /// Does other work while uploads go on.
    pub(super) async fn while_uploading<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = self.next() => {}
            }
        }
    }

    fn start_uploads(&mut self) {
        if self.error.is_some() {
            return;
        }
        if !self.is_large_uploading
            && let Some(ready) = self.large.pop_front()
        {
            self.is_large_uploading = true;
            self.start_upload(ready, true);
        }
        while self.uploading.len() - usize::from(self.is_large_uploading) < SMALL_AT_ONCE
            && let Some(ready) = self.small.pop_front()
        {
            self.start_upload(ready, false);
        }
    }

    fn start_upload(&self, ready: ReadyFile, is_large: bool) {
        let uploader = self.uploader.clone();
        self.uploading
            .push(Box::pin(async move { (is_large, uploader.upload(ready).await) }));
    }
}
