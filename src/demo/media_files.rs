//! Writes the media files of a sample school: photos, scanned slips and recordings.

use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::pictures;
use super::recording::{Recording, RecordingFacts};
use crate::error::{Error, Kind, Result};

/// A file to write. Its path is relative to the media root.
pub(super) enum SampleFile {
    /// A copy of one of the program's pictures.
    Picture { path: String, picture: &'static [u8] },
    /// A recording of at least this many bytes.
    Recording {
        path: String,
        camera: i64,
        start: Timestamp,
        bytes: u64,
    },
}

/// A recording that was written.
pub(super) struct WrittenRecording {
    pub(super) path: String,
    pub(super) camera: i64,
    pub(super) start: Timestamp,
    pub(super) facts: RecordingFacts,
}

/// What was written.
#[derive(Default)]
pub(super) struct WrittenFiles {
    /// Sorted by the time when they started.
    pub(super) recordings: Vec<WrittenRecording>,
    /// Number of files: pictures and recordings.
    pub(super) files: u64,
    /// Bytes of all files.
    pub(super) bytes: u64,
}

/// Creates the folders and writes the files, on a thread that may block. If this is dropped, the thread still
/// writes the remaining files, which takes about a second.
pub(super) async fn write_files(root: &Path, seed: u64, files: Vec<SampleFile>) -> Result<WrittenFiles> {
    let root = root.to_owned();
    tokio::task::spawn_blocking(move || {
        let mut written = WrittenFiles::default();
        for file in files {
            written.add(&root, seed, file)?;
        }
        written
            .recordings
            .sort_unstable_by_key(|recording| recording.start);
        Ok(written)
    })
    .await
    .map_err(|error| Error::new(Kind::Local, "write the sample files", error.to_string()).caused_by(error))?
}

/// A comment that makes a file unique: its path and the school's seed.
pub(super) fn comment(path: &str, seed: u64) -> String {
    format!("{path}, seed {seed}")
}

impl WrittenFiles {
    fn add(&mut self, root: &Path, seed: u64, file: SampleFile) -> Result<()> {
        self.bytes += match file {
            SampleFile::Picture { path, picture } => {
                let target = target(root, &path)?;
                let bytes = pictures::with_comment(picture, &comment(&path, seed));
                std::fs::write(&target, &bytes)
                    .map_err(|error| Error::local(format!("write {}", target.display()), error))?;
                bytes.len() as u64
            }
            SampleFile::Recording {
                path,
                camera,
                start,
                bytes,
            } => {
                let mut recording = Recording::create(&target(root, &path)?, &comment(&path, seed))?;
                while recording.bytes() < bytes {
                    recording.append()?;
                }
                let facts = recording.finish()?;
                self.recordings.push(WrittenRecording {
                    path,
                    camera,
                    start,
                    facts,
                });
                facts.bytes as u64
            }
        };
        self.files += 1;
        Ok(())
    }
}

/// The path below the root. Creates its folder.
fn target(root: &Path, path: &str) -> Result<PathBuf> {
    let target = root.join(path);
    let folder = target.parent().unwrap_or(root);
    std::fs::create_dir_all(folder)
        .map_err(|error| Error::local(format!("create the folder {}", folder.display()), error))?;
    Ok(target)
}
