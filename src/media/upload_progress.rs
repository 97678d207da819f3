//! How far uploads in parts have come: collected here as parts arrive, and noted in the site's database at
//! the beginning of each upload, then at most once a second.
//!
//! What is not noted yet when the program ends costs nothing: the cloud knows how far an upload has come. It
//! must only be noted that there is one, and where.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::deliver::BegunUpload;
use crate::source::file_records::FileStamp;
use crate::source::upload_state::{UploadNote, UploadState};

/// The shortest time between two notes of an upload.
const NOTE_EVERY: Duration = Duration::from_secs(1);

/// How much of the rate the newest part decides.
const NEWEST: f64 = 0.4;

/// See the module.
#[derive(Default)]
pub(super) struct UploadProgress {
    uploads: Mutex<HashMap<String, ProgressOfUpload>>,
    news: Notify,
}

struct ProgressOfUpload {
    state: UploadState,
    /// When the offset was heard.
    heard_at: Instant,
    /// Bytes a second, once a part has arrived.
    rate: Option<f64>,
    /// Whether something of it is to be noted.
    is_news: bool,
    /// When it was noted last; `None` if it is a new one.
    noted_at: Option<Instant>,
}

impl ProgressOfUpload {
    /// When it is to be noted.
    fn due_at(&self) -> Option<Instant> {
        self.is_news
            .then(|| self.noted_at.map_or(self.heard_at, |at| at + NOTE_EVERY))
    }
}

impl UploadProgress {
    /// Notes where the upload of a file is.
    pub(super) fn heard(&self, path: &str, stamp: &FileStamp, hash: blake3::Hash, upload: &BegunUpload) {
        let now = Instant::now();
        let mut uploads = self.lock();
        if let Some(known) = uploads.get_mut(path)
            && known.state.upload.address == upload.address
        {
            let bytes = upload.offset.saturating_sub(known.state.upload.offset);
            let seconds = now.duration_since(known.heard_at).as_secs_f64();
            if bytes > 0 {
                let latest = bytes as f64 / seconds.max(0.001);
                known.rate = Some(
                    known
                        .rate
                        .map_or(latest, |rate| rate * (1.0 - NEWEST) + latest * NEWEST),
                );
            }
            known.state.upload.clone_from(upload);
            known.heard_at = now;
            known.is_news = true;
            drop(uploads);
            self.news.notify_one();
            return;
        }
        uploads.insert(
            path.to_owned(),
            ProgressOfUpload {
                state: UploadState {
                    upload: upload.clone(),
                    stamp: *stamp,
                    hash,
                },
                heard_at: now,
                rate: None,
                is_news: true,
                noted_at: None,
            },
        );
        drop(uploads);
        self.news.notify_one();
    }

    /// Forgets an upload that has ended. What the database has of it is forgotten with its outcome.
    pub(super) fn ended(&self, path: &str) {
        self.lock().remove(path);
    }

    /// Waits until something is to be noted.
    pub(super) async fn due(&self) {
        loop {
            let next = self.lock().values().filter_map(ProgressOfUpload::due_at).min();
            let due = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => return,
                () = self.news.notified() => {}
            }
        }
    }

    /// What is to be noted now.
    pub(super) fn notes(&self) -> Vec<UploadNote> {
        let now = Instant::now();
        let uploads = self.lock();
        let due = uploads
            .iter()
            .filter(|(_, upload)| upload.due_at().is_some_and(|at| at <= now));
        due.map(|(path, upload)| UploadNote {
            path: path.clone(),
            state: upload.state.clone(),
            rate: upload.rate.map(|rate| rate as i64),
        })
        .collect()
    }

    /// These notes are in the database.
    pub(super) fn noted(&self, notes: &[UploadNote]) {
        let mut uploads = self.lock();
        for note in notes {
            if let Some(upload) = uploads.get_mut(&note.path)
                && upload.state.upload.address == note.state.upload.address
            {
                upload.is_news = upload.state != note.state;
                upload.noted_at = Some(Instant::now());
            }
        }
    }

    /// The upload of a file that has begun and not ended, as this program knows it.
    pub(super) fn in_progress(&self, path: &str) -> Option<UploadState> {
        self.lock().get(path).map(|upload| upload.state.clone())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, ProgressOfUpload>> {
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_upload_is_noted_when_it_begins_and_then_once_a_second() {
        let progress = UploadProgress::default();
        let stamp = FileStamp {
            size: 100 << 20,
            modified_us: 1,
            changed_us: 2,
            inode: 3,
        };
        let heard = |offset| {
            let upload = BegunUpload {
                address: "http://cloud/files/1".into(),
                offset,
                parts: Vec::new(),
            };
            progress.heard("a.mp4", &stamp, blake3::hash(b"a"), &upload);
        };
        let noted = || {
            let notes = progress.notes();
            progress.noted(&notes);
            notes.first().map(|note| (note.state.upload.offset, note.rate))
        };
        heard(0);
        progress.due().await;
        assert_eq!(noted(), Some((0, None)));
        tokio::time::advance(Duration::from_millis(500)).await;
        heard(1 << 20);
        assert_eq!(noted(), None);
        progress.due().await;
        assert_eq!(noted(), Some((1 << 20, Some(2 << 20))));
        // What is the same is not noted again; what has ended is not noted.
        assert_eq!(noted(), None);
        tokio::time::advance(Duration::from_secs(2)).await;
        heard(2 << 20);
        progress.ended("a.mp4");
        assert_eq!(noted(), None);
        // Another upload of the file is noted at once.
        heard(0);
        assert_eq!(noted(), Some((0, None)));
    }
}
