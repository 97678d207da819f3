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

use super::file_outcome::{Deferral, FileFate, FileOutcome, UploadStop};
use super::file_upload::{FileUploader, ReadyFile, UploadTask};
use crate::error::{Error, Kind};
use crate::source::file_records::{DueLimits, PendingFile};
use crate::source::file_state::FileState;

/// Small files that are uploaded at a time.
const SMALL_AT_ONCE: usize = 12;

/// A file of so many bytes is large.
const LARGE: i64 = 8 * 1024 * 1024;

/// Files that are busy at a time, at most; and large ones among them.
const BUSY: usize = 1024;
const BUSY_LARGE: usize = 16;

/// So many files that fail one after another, and none that is taken: the cloud takes no file now.
const FAILING_IN_A_ROW: u32 = 8;

/// What became of one file and whether it was a large one; or why the cloud takes no file now.
type UploadOutcome = (bool, Result<FileOutcome, UploadStop>);

/// See the module.
pub(super) struct UploadPool<'a> {
    uploader: FileUploader<'a>,
    small: VecDeque<UploadTask>,
    large: VecDeque<ReadyFile>,
    uploading: FuturesUnordered<BoxFuture<'a, UploadOutcome>>,
    /// Whether one of them is large.
    is_large_uploading: bool,
    outcomes: Vec<FileOutcome>,
    busy: HashSet<String>,
    stop: Option<UploadStop>,
    /// Files that failed since the last one that was taken.
    failing: u32,
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
            stop: None,
            failing: 0,
        }
    }

    /// How many more files it takes now; `None` if none.
    pub(super) fn room(&self) -> Option<DueLimits> {
        let small = BUSY.saturating_sub(self.busy.len()).min(BUSY / 4);
        if self.stop.is_some() || self.small.len() > SMALL_AT_ONCE || small == 0 {
            return None;
        }
        Some(DueLimits {
            small: small as i64,
            large: BUSY_LARGE.saturating_sub(self.large.len()) as i64,
            large_from: LARGE,
        })
    }

    /// The size from which a file is large, if it takes no large one now.
    pub(super) fn no_large_from(&self) -> Option<i64> {
        (self.large.len() >= BUSY_LARGE).then_some(LARGE)
    }

    /// Whether the cloud can be asked for a content.
    pub(super) fn asks_by_content(&self) -> bool {
        self.uploader.capabilities.content_hash
    }

    /// Whether the cloud can be asked if it still has a file, and for its URL.
    pub(super) fn can_ask(&self) -> bool {
        self.uploader.can_ask()
    }

    /// Whether the file goes in parts.
    pub(super) fn goes_in_parts(&self, ready: &ReadyFile) -> bool {
        self.uploader.goes_in_parts(&ready.stamp)
    }

    /// The files that must not be given again now.
    pub(super) fn busy(&self) -> Vec<String> {
        self.busy.iter().cloned().collect()
    }

    pub(super) fn is_busy(&self, path: &str) -> bool {
        self.busy.contains(path)
    }

    /// Looks at files that are due: those that can be uploaded now are returned, with how they look. Those
    /// that the cloud is asked for are queued; the others get their outcome at once.
    pub(super) fn look_at(&mut self, files: Vec<PendingFile>) -> Vec<ReadyFile> {
        let mut ready = Vec::with_capacity(files.len());
        for mut pending in files {
            self.busy.insert(pending.path.clone());
            if let Some(recorded) = self.uploader.to_ask(&mut pending) {
                self.small.push_back(UploadTask::Ask(pending, recorded));
                continue;
            }
            match self.uploader.prepare(&pending) {
                Ok(stamp) => ready.push(ReadyFile {
                    pending,
                    stamp,
                    may_be_there: false,
                    begun: None,
                }),
                Err(deferral) => self.outcomes.push(FileOutcome::not_ready(pending, deferral)),
            }
        }
        ready
    }

    /// Starts or queues the uploads of these files.
    pub(super) fn give(&mut self, files: Vec<ReadyFile>) {
        for ready in files {
            if ready.stamp.size < LARGE {
                self.small.push_back(UploadTask::Upload(ready));
            } else if self.large.len() < BUSY_LARGE {
                self.large.push_back(ready);
            } else {
                // Its size was not known. Now it is, and it is asked for when there is room.
                self.outcomes.push(FileOutcome {
                    path: ready.pending.path,
                    fate: FileFate::Deferred(Deferral::behind_large_files(ready.stamp.size)),
                });
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
    pub(super) fn take_stop(&mut self) -> Option<UploadStop> {
        if self.uploading.is_empty() && self.outcomes.is_empty() {
            self.stop.take()
        } else {
            None
        }
    }

    /// Gives up what is on its way and what is queued: it is due again. Outcomes must have been recorded.
    pub(super) fn give_up(&mut self) {
        self.uploading.clear();
        self.is_large_uploading = false;
        self.small.clear();
        self.large.clear();
        self.stop = None;
        self.busy.clear();
    }

    /// Gives up what is queued: it is due again.
    pub(super) fn give_up_queued(&mut self) {
        let small = self.small.drain(..).map(|task| match task {
            UploadTask::Ask(pending, _) => pending,
            UploadTask::Upload(ready) => ready.pending,
        });
        let large = self.large.drain(..).map(|ready| ready.pending);
        for pending in small.chain(large) {
            self.busy.remove(&pending.path);
        }
    }

    /// Whether an upload has ended whose outcome was not taken.
    pub(super) fn has_news(&self) -> bool {
        !self.outcomes.is_empty() || self.stop.is_some() && self.uploading.is_empty()
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
            Ok(outcome) => {
                self.note_failing(&outcome);
                self.outcomes.push(outcome);
            }
            Err(stop) => {
                self.stop.get_or_insert(stop);
            }
        }
        self.start_uploads();
    }

    /// Counts files that the cloud fails to take one after another.
    fn note_failing(&mut self, outcome: &FileOutcome) {
        match &outcome.fate {
            FileFate::Deferred(deferral) if deferral.state == FileState::Failing => self.failing += 1,
            FileFate::Deferred(_) => {}
            FileFate::Uploaded(..) => self.failing = 0,
            // These say nothing of whether it takes a file.
            FileFate::Unchanged(_) | FileFate::Kept { .. } | FileFate::Gone { .. } => {}
        }
        if self.failing >= FAILING_IN_A_ROW {
            self.failing = 0;
            self.stop.get_or_insert_with(|| UploadStop {
                error: Error::new(
                    Kind::CloudUnreachable,
                    "upload files",
                    format!("the cloud failed to take {FAILING_IN_A_ROW} files one after another"),
                )
                .remedy(
                    "look at the cloud's own logs; `cloud-sync files list --state failing` has the files",
                ),
                retry_after: None,
                is_about_files: true,
            });
        }
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
        if self.stop.is_some() {
            return;
        }
        if !self.is_large_uploading
            && let Some(ready) = self.large.pop_front()
        {
            self.is_large_uploading = true;
            self.start_upload(UploadTask::Upload(ready), true);
        }
        while self.uploading.len() - usize::from(self.is_large_uploading) < SMALL_AT_ONCE
            && let Some(task) = self.small.pop_front()
        {
            self.start_upload(task, false);
        }
    }

    fn start_upload(&self, task: UploadTask, is_large: bool) {
        let uploader = self.uploader.clone();
        self.uploading.push(Box::pin(
            async move { (is_large, uploader.carry_out(task).await) },
        ));
    }
}
