//! Draws many files on all processors.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use tokio::task::JoinHandle;

use super::people::seed_for;
use super::pictures::portrait;
use super::slips::{Leave, PassSlip};
use super::video::{Facts, Recording};
use crate::error::{Error, Kind, Result};

/// A file to draw; its path lies below the media root.
pub(super) enum Picture {
    /// One of a person's photos.
    Portrait { path: String, person: u64, shot: u64 },
    /// A scanned leave slip.
    Leave(Leave),
    /// A scanned pass slip.
    Pass(PassSlip),
    /// A recording of at least so many bytes.
    Video {
        path: String,
        camera: i64,
        start: Timestamp,
        bytes: u64,
    },
}

/// A recording that was made.
pub(super) struct Shot {
    pub(super) path: String,
    pub(super) camera: i64,
    pub(super) start: Timestamp,
    pub(super) facts: Facts,
}

/// How much was drawn.
pub(super) struct Drawn {
    pub(super) files: u64,
    pub(super) bytes: u64,
}

struct Work {
    root: PathBuf,
    seed: u64,
    pictures: Vec<Picture>,
    next: AtomicUsize,
    closed: AtomicBool,
    bytes: AtomicU64,
    shots: Mutex<Vec<Shot>>,
}

/// The threads that draw. Where it is dropped, each ends after the file in its hands.
pub(super) struct Studio {
    work: Arc<Work>,
    hands: Vec<JoinHandle<Result<()>>>,
}

impl Studio {
    /// Makes the folders and starts to draw the pictures, in their order.
    pub(super) fn open(root: &Path, seed: u64, pictures: Vec<Picture>) -> Result<Self> {
        for picture in &pictures {
            let path = root.join(picture.path());
            let folder = path.parent().unwrap_or(root);
            std::fs::create_dir_all(folder)
                .map_err(|error| Error::local(format!("make the folder {}", folder.display()), error))?;
        }
        let work = Arc::new(Work {
            root: root.to_owned(),
            seed,
            pictures,
            next: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            bytes: AtomicU64::new(0),
            shots: Mutex::new(Vec::new()),
        });
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let hands = (0..processors)
            .map(|_| {
                let work = Arc::clone(&work);
                tokio::task::spawn_blocking(move || work.draw())
            })
            .collect();
        Ok(Self { work, hands })
    }

    /// Waits until every file is there; answers the recordings in the order of their start.
    pub(super) async fn close(mut self) -> Result<(Vec<Shot>, Drawn)> {
        for hand in std::mem::take(&mut self.hands) {
            hand.await
                .map_err(|error| Error::new(Kind::Local, "draw the sample files", error.to_string()))??;
        }
        let mut shots = std::mem::take(&mut *self.work.shots.lock().unwrap_or_else(PoisonError::into_inner));
        shots.sort_unstable_by_key(|shot| shot.start);
        let drawn = Drawn {
            files: self.work.pictures.len() as u64,
            bytes: self.work.bytes.load(Ordering::Relaxed),
        };
        Ok((shots, drawn))
    }
}

impl Drop for Studio {
    fn drop(&mut self) {
        self.work.closed.store(true, Ordering::Relaxed);
    }
}

impl Work {
    /// Draws pictures until there is none left.
    fn draw(&self) -> Result<()> {
        while !self.closed.load(Ordering::Relaxed) {
            let Some(picture) = self.pictures.get(self.next.fetch_add(1, Ordering::Relaxed)) else {
                break;
            };
            let path = self.root.join(picture.path());
            let bytes = match picture {
                Picture::Portrait { person, shot, .. } => save(&path, &portrait(*person, *shot)?)?,
                Picture::Leave(leave) => save(&path, &leave.scan(self.seed)?)?,
                Picture::Pass(pass) => save(&path, &pass.scan(self.seed)?)?,
                Picture::Video {
                    path: name,
                    camera,
                    start,
                    bytes,
                } => {
                    let seed = seed_for(self.seed, "recording", start.as_second());
                    let mut recording = Recording::create(&path, *camera, *start, seed)?;
                    while recording.bytes() < *bytes {
                        recording.append()?;
                    }
                    let facts = recording.finish()?;
                    self.shots
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(Shot {
                            path: name.clone(),
                            camera: *camera,
                            start: *start,
                            facts,
                        });
                    facts.bytes as u64
                }
            };
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Picture {
    fn path(&self) -> String {
        match self {
            Self::Portrait { path, .. } | Self::Video { path, .. } => path.clone(),
            Self::Leave(leave) => leave.path(),
            Self::Pass(pass) => pass.path(),
        }
    }
}

fn save(path: &Path, bytes: &[u8]) -> Result<u64> {
    std::fs::write(path, bytes).map_err(|error| Error::local(format!("write {}", path.display()), error))?;
    Ok(bytes.len() as u64)
}
