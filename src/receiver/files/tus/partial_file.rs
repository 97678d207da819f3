//! The file of an unfinished upload, and its lock.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// The file, locked until it is dropped. Whoever has it is the only one who changes the upload.
pub(super) struct PartialFile {
    pub(super) file: File,
    pub(super) path: PathBuf,
}

impl PartialFile {
    /// Locks the file, which is made if it does not exist; `None` if another request has it locked.
    pub(super) fn lock(path: &Path) -> io::Result<Option<Self>> {
        loop {
            let file = options().open(path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            // It may have been removed before the lock was taken: then the lock is on a file without a name.
            if is_at(&file, path)? {
                return Ok(Some(Self {
                    file,
                    path: path.to_owned(),
                }));
            }
        }
    }

    /// The same on a thread that may wait for the disk.
    pub(super) async fn lock_aside(path: PathBuf) -> io::Result<Option<Self>> {
        tokio::task::spawn_blocking(move || Self::lock(&path))
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)))
    }

    pub(super) fn remove(self) -> io::Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    options
}

/// Whether the path still leads to this file.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let there = match std::fs::symlink_metadata(path) {
        Ok(there) => there,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let here = file.metadata()?;
        Ok((here.dev(), here.ino()) == (there.dev(), there.ino()))
    }
    // An open file cannot be removed there.
    #[cfg(not(unix))]
    {
        let _ = (file, there);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_has_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("upload");
        let first = PartialFile::lock(&path).unwrap().unwrap();
        assert!(PartialFile::lock(&path).unwrap().is_none());
        first.remove().unwrap();
        assert!(PartialFile::lock(&path).unwrap().is_some());
    }
}
