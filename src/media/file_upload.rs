//! One file: whether it can be uploaded now, and its upload.
//!
//! A file that may still be written, that is empty or that is missing is not sent: it is looked at again
//! later. After an upload the file must look as it did before, else it is uploaded again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::paths::{self, OpenRefusal};
use super::watch::MediaWatch;
use crate::deliver::{Capabilities, ChangeOrigin, Cloud, Failure, UploadFile, UploadReceipt};
use crate::error::{Kind, Result};
use crate::metrics::Metrics;
use crate::source::file_records::{FileStamp, NO_VIDEOS, PendingFile, SETTLING};

/// How often a missing file is looked for although nothing was seen.
const MISSING_EVERY: f64 = 60.0;

/// How many seconds a file waits after the first failure (5xx) and after the first refusal (4xx); and at
/// most.
const FAILING_FIRST: f64 = 10.0;
const REFUSED_FIRST: f64 = 600.0;
const FAILING_LAST: f64 = 3600.0;

/// File name endings of videos.
const VIDEOS: [&str; 10] = [
    "mp4", "m4v", "mov", "avi", "mkv", "webm", "mpg", "mpeg", "ts", "flv",
];

/// What became of a file.
pub(super) struct FileOutcome {
    pub(super) path: String,
    pub(super) fate: FileFate,
}

/// See [`FileOutcome`].
pub(super) enum FileFate {
    /// The cloud has it, and it still looks as it did.
    Uploaded(FileStamp, UploadReceipt),
    /// It is tried again later, or is refused.
    Deferred(Deferral),
}

/// Why a file is not uploaded now, and when to look again.
pub(super) struct Deferral {
    pub(super) state: &'static str,
    pub(super) why: String,
    pub(super) seconds: f64,
    /// Whether it counts as an attempt.
    pub(super) counts: bool,
}

impl Deferral {
    /// It is not ready.
    fn waiting(why: &str, seconds: f64) -> Self {
        Self {
            state: "waiting",
            why: why.to_owned(),
            seconds,
            counts: false,
        }
    }

    /// It was tried, and is tried again.
    fn again(why: &str, seconds: f64) -> Self {
        Self {
            counts: true,
            ..Self::waiting(why, seconds)
        }
    }

    /// The cloud is reachable and does not take it: it is tried again after `first` seconds, then after twice
    /// that.
    fn failing(why: String, first: f64, attempts: i32) -> Self {
        let doubled = first * 2_f64.powi(attempts.clamp(0, 20));
        Self {
            state: "failing",
            why,
            seconds: doubled.min(FAILING_LAST),
            counts: true,
        }
    }

    fn missing(why: String) -> Self {
        Self {
            state: "missing",
            why,
            seconds: MISSING_EVERY,
            counts: true,
        }
    }

    fn refused(why: String) -> Self {
        Self {
            state: "refused",
            why,
            seconds: 0.0,
            counts: true,
        }
    }
}

/// What an upload needs.
#[derive(Clone)]
pub(super) struct FileUploader<'a> {
    pub(super) cloud: &'a Cloud,
    /// The media root.
    pub(super) root: &'a Path,
    /// How long a file must have been left alone.
    pub(super) settle: Duration,
    /// Whether videos are uploaded.
    pub(super) videos: bool,
    pub(super) metrics: &'a Metrics,
    pub(super) watch: &'a MediaWatch,
    pub(super) capabilities: Capabilities,
    pub(super) origin: Arc<ChangeOrigin>,
}

/// A file that can be uploaded now, as it looks.
pub(super) struct ReadyFile {
    pub(super) pending: PendingFile,
    pub(super) file: PathBuf,
    pub(super) stamp: FileStamp,
}

impl FileUploader<'_> {
    /// Where the file is and how it looks, if it can be uploaded now; else when to look again, and why.
    pub(super) fn prepare(
        &self,
        pending: &PendingFile,
    ) -> std::result::Result<(PathBuf, FileStamp), Deferral> {
        let found = self.find(&pending.path).and_then(|file| match file_stamp(&file) {
            Ok(stamp) => Ok((file, stamp)),
            Err(error) => Err(Deferral::missing(error.to_string())),
        });
        if let Err(deferral) = &found
            && deferral.state == "missing"
            && pending.attempts == 0
        {
            tracing::warn!(
                path = pending.path,
                "a row names a file that is not in the media root"
            );
            self.metrics.files.missing.inc();
        }
        found
    }

    /// Uploads one file.
    ///
    /// # Errors
    /// The cloud takes no file now: this one is still pending.
    pub(super) async fn upload(self, ready: ReadyFile) -> Result<FileOutcome> {
        let ReadyFile { pending, file, stamp } = ready;
        let mut upload = UploadFile::new(&file);
        if let Some(name) = &pending.sent_as {
            upload.name.clone_from(name);
        }
        let answer = self.cloud.upload(&pending.directory, upload).await;
        let fate = match answer {
            Ok(receipt) if file_stamp(&file).ok() != Some(stamp) || receipt.bytes != stamp.size as u64 => {
                FileFate::Deferred(Deferral::again("it changed while it was uploaded", 1.0))
            }
            // The reference server returns the hash of what it has; a server without hashes is believed.
            Ok(receipt) if self.capabilities.changes && !receipt.confirmed => {
                FileFate::Deferred(Deferral::again("the cloud did not confirm its content", 30.0))
            }
            Ok(receipt) => FileFate::Uploaded(stamp, receipt),
            Err(failure) => match failure.error().kind() {
                Kind::Media => FileFate::Deferred(Deferral::again(failure.error().cause(), 2.0)),
                Kind::CloudRefused => {
                    self.metrics.files.failed.inc();
                    tracing::warn!(path = pending.path, "{}", failure.error());
                    let why = failure.error().cause().to_owned();
                    FileFate::Deferred(Deferral::failing(why, REFUSED_FIRST, pending.attempts))
                }
                _ => match self.is_about_the_file(&failure).await {
                    true => {
                        self.metrics.files.failed.inc();
                        let cause = failure.error().cause();
                        let why = match failure.words() {
                            Some(words) => format!("{cause}: {words}"),
                            None => cause.to_owned(),
                        };
                        tracing::warn!(path = pending.path, "{}", failure.error());
                        FileFate::Deferred(Deferral::failing(why, FAILING_FIRST, pending.attempts))
                    }
                    // The cloud is unreachable: the lane waits.
                    false => return Err(failure.into()),
                },
            },
        };
        Ok(FileOutcome {
            path: pending.path,
            fate,
        })
    }

    /// Whether a failure is about the file: the cloud is reachable, and takes the key.
    async fn is_about_the_file(&self, failure: &Failure) -> bool {
        failure.may_be_a_rows_fault() && self.cloud.handshake(&self.origin).await.is_ok()
    }

    /// Where the file is, if it can be uploaded now.
    fn find(&self, path: &str) -> std::result::Result<PathBuf, Deferral> {
        let path = paths::below(self.root, path).map_err(|why| Deferral::refused(why.into()))?;
        let extension = Path::new(&path)
            .extension()
            .map(|extension| extension.to_string_lossy().to_lowercase());
        if !self.videos && extension.is_some_and(|extension| VIDEOS.contains(&extension.as_str())) {
            return Err(Deferral::waiting(NO_VIDEOS, 3600.0));
        }
        let file = paths::locate(self.root, &path).map_err(|why| match why {
            OpenRefusal::Missing => Deferral::missing("the file is not there".into()),
            OpenRefusal::Outside => Deferral::refused("a link leads outside the media root".into()),
            OpenRefusal::Unreadable(error) => Deferral::missing(error.to_string()),
        })?;
        let metadata = file
            .metadata()
            .map_err(|error| Deferral::waiting(&error.to_string(), 5.0))?;
        if !metadata.is_file() {
            return Err(Deferral::refused("it is not a regular file".into()));
        }
        if metadata.len() == 0 {
            return Err(Deferral::waiting("the file is empty", 30.0));
        }
        let age = metadata
            .modified()
            .ok()
            .and_then(|modified| SystemTime::now().duration_since(modified).ok());
        // A time in the future tells nothing: then only the watch knows.
        if let Some(age) = age
            && age < self.settle
        {
            let seconds = (self.settle - age).as_secs_f64() + 0.01;
            return Err(Deferral::waiting(SETTLING, seconds));
        }
        if self.watch.is_written(&path) {
            return Err(Deferral::waiting("the file is being written", 1.0));
        }
        Ok(file)
    }
}

/// How the file looks now.
pub(super) fn file_stamp(file: &Path) -> std::io::Result<FileStamp> {
    let metadata = file.metadata()?;
    let modified = metadata
        .modified()?
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Ok(FileStamp {
        size: metadata.len() as i64,
        modified_us: modified.as_micros() as i64,
    })
}
