//! What became of a file that was due: it was uploaded, it is there already, or it is tried again later.

use std::time::Duration;

use crate::deliver::{Failure, UploadReceipt};
use crate::error::Error;
use crate::retry::Waits;
use crate::source::file_records::{FileStamp, NO_VIDEOS, PendingFile};
use crate::source::file_state::FileState;

/// What became of a file.
pub(super) struct FileOutcome {
    pub(super) path: String,
    pub(super) fate: FileFate,
}

impl FileOutcome {
    /// The outcome of a file that cannot be uploaded now.
    pub(super) fn not_ready(pending: PendingFile, deferral: Deferral) -> Self {
        let fate = match pending.to_confirm {
            // The cloud cannot be asked whether it still has it, and it cannot be sent again.
            Some(recorded) if deferral.is_never_sent() => FileFate::Kept {
                hash: recorded.hash,
                url: recorded.url,
                has_changed: false,
            },
            _ => FileFate::Deferred(deferral),
        };
        Self {
            path: pending.path,
            fate,
        }
    }

    /// Whether an upload of the file in parts is over.
    pub(super) fn ends_upload(&self) -> bool {
        match &self.fate {
            FileFate::Uploaded(..) | FileFate::Unchanged(_) => true,
            FileFate::Deferred(deferral) => deferral.ends_upload,
            FileFate::Kept { .. } | FileFate::Gone { .. } => false,
        }
    }

    /// Whether the cloud has the file.
    pub(super) fn is_uploaded(&self) -> bool {
        matches!(
            self.fate,
            FileFate::Uploaded(..) | FileFate::Unchanged(_) | FileFate::Kept { .. }
        )
    }
}

/// See [`FileOutcome`].
pub(super) enum FileFate {
    /// The cloud has it, and it still looks as it did.
    Uploaded(FileStamp, UploadReceipt),
    /// It looks otherwise, and has the content that the cloud has.
    Unchanged(FileStamp),
    /// The cloud still has what is recorded, at this URL.
    Kept {
        hash: String,
        url: String,
        /// Whether the file looks otherwise now.
        has_changed: bool,
    },
    /// The cloud does not have what is recorded: it is uploaded again.
    Gone { hash: String },
    /// It is tried again later, or is refused.
    Deferred(Deferral),
}

/// Why a file is not uploaded now, and when to look again.
pub(super) struct Deferral {
    pub(super) state: FileState,
    pub(super) why: String,
    pub(super) seconds: f64,
    /// Whether it counts as an attempt.
    pub(super) counts: bool,
    /// Its size, if it was found.
    pub(super) size: Option<i64>,
    /// Whether its upload in parts is over: the next one begins again.
    pub(super) ends_upload: bool,
}

impl Deferral {
    pub(super) fn new(state: FileState, why: impl Into<String>, seconds: f64, counts: bool) -> Self {
        Self {
            state,
            why: why.into(),
            seconds,
            counts,
            size: None,
            ends_upload: false,
        }
    }

    /// Whether it cannot be sent as long as nobody changes it, or the settings.
    fn is_never_sent(&self) -> bool {
        matches!(self.state, FileState::Missing | FileState::Refused) || self.why == NO_VIDEOS
    }

    /// It is not ready.
    pub(super) fn waiting(why: impl Into<String>, seconds: f64) -> Self {
        Self::new(FileState::Waiting, why, seconds, false)
    }

    /// It waits for a place among the large files.
    pub(super) fn behind_large_files(size: i64) -> Self {
        Self::waiting("other large files go first", 0.0).with_size(size)
    }

    /// What the cloud has of it is of no use any more.
    pub(super) fn ending_upload(mut self) -> Self {
        self.ends_upload = true;
        self
    }

    pub(super) fn with_size(mut self, size: i64) -> Self {
        self.size = Some(size);
        self
    }

    /// It was tried, and is tried again.
    pub(super) fn again(why: impl Into<String>, seconds: f64) -> Self {
        Self::new(FileState::Waiting, why, seconds, true)
    }

    /// The cloud takes others, and not this one: it is tried again after the shortest wait, then after twice that.
    pub(super) fn failing(why: impl Into<String>, waits: Waits, attempts: i32) -> Self {
        Self::new(FileState::Failing, why, doubled(waits, attempts), true)
    }

    /// The same, where it is not the cloud that refuses it.
    pub(super) fn after(why: impl Into<String>, waits: Waits, attempts: i32) -> Self {
        Self::again(why, doubled(waits, attempts))
    }
}

/// The shortest wait, doubled by each attempt up to the longest; in seconds.
fn doubled(waits: Waits, attempts: i32) -> f64 {
    let doubled = waits.least.as_secs_f64() * 2_f64.powi(attempts.clamp(0, 20));
    doubled.min(waits.most.as_secs_f64())
}

/// Why the cloud takes no file now.
pub(super) struct UploadStop {
    pub(super) error: Error,
    /// How long it asks to wait.
    pub(super) retry_after: Option<Duration>,
    /// Whether it may well take rows.
    pub(super) is_about_files: bool,
}

impl From<Failure> for UploadStop {
    fn from(failure: Failure) -> Self {
        Self {
            retry_after: failure.retry_after(),
            is_about_files: failure.retry_after().is_some(),
            error: failure.into(),
        }
    }
}
