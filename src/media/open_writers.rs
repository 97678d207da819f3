//! Which files a program of this machine has open for writing, as far as `/proc` shows it.
//!
//! It shows the programs of the same user; to root, all of them. What another machine has open on a network
//! file system is never seen. So it is a hint: a file that a program has open is not sent yet, and whether a
//! file was changed amid its upload is seen by its stamp.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What was seen counts for so long.
const KEPT: Duration = Duration::from_secs(1);

/// A file that is open for writing.
struct OpenForWriting {
    inode: u64,
    /// The link below `/proc` that leads to it.
    link: PathBuf,
}

/// See the module.
#[derive(Default)]
pub(super) struct OpenWriters {
    seen: Mutex<Option<(Instant, Vec<OpenForWriting>)>>,
}

impl OpenWriters {
    /// Whether a program has the file open for writing.
    pub(super) fn has(&self, device: u64, inode: u64) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.as_ref().is_none_or(|(at, _)| at.elapsed() > KEPT) {
            *seen = Some((Instant::now(), look()));
        }
        // Another file system may have the number too.
        let is_it = |open: &&OpenForWriting| {
            std::fs::metadata(&open.link).is_ok_and(|about| about.dev() == device && about.ino() == inode)
        };
        seen.iter()
            .flat_map(|(_, open)| open)
            .filter(|open| open.inode == inode)
            .any(|open| is_it(&open))
    }
}

/// Every file that is open for writing. A program that ends in the meantime is left out.
fn look() -> Vec<OpenForWriting> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = processes.filter(|entry| {
        let name = entry.file_name();
        name.as_encoded_bytes().iter().all(u8::is_ascii_digit)
    });
    let mut found = Vec::new();
    for process in processes {
        let process = process.path();
        let Ok(infos) = std::fs::read_dir(process.join("fdinfo")) else {
            continue;
        };
        for info in infos.flatten() {
            let Ok(text) = std::fs::read_to_string(info.path()) else {
                continue;
            };
            if let Some(inode) = written_inode(&text) {
                found.push(OpenForWriting {
                    inode,
                    link: process.join("fd").join(info.file_name()),
                });
            }
        }
    }
    found
}

/// The inode of an open file from its `fdinfo`, if the file is open for writing. Kernels before 5.14 do not
/// say it.
///
/// Source: proc_pid_fdinfo(5).
fn written_inode(fdinfo: &str) -> Option<u64> {
    let field = |name: &str| {
        let line = fdinfo.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim())
    };
    let flags = u32::from_str_radix(field("flags:")?, 8).ok()?;
    if flags & 0o3 == 0 {
        return None;
    }
    field("ino:")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_seen_while_it_is_open_for_writing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let about = file.as_file().metadata().unwrap();
        assert!(OpenWriters::default().has(about.dev(), about.ino()));
        let reader = file.reopen().unwrap();
        let path = file.into_temp_path();
        let _reading = std::fs::File::open(&path).unwrap();
        drop(reader);
        assert!(!OpenWriters::default().has(about.dev(), about.ino()));
    }

    #[test]
    fn a_descriptor_for_reading_is_none_for_writing() {
        let of = |flags: &str| written_inode(&format!("pos:\t0\nflags:\t{flags}\nmnt_id:\t27\nino:\t95\n"));
        assert_eq!(of("0100001"), Some(95));
        assert_eq!(of("0102002"), Some(95));
        assert_eq!(of("0100000"), None);
        assert_eq!(written_inode("pos:\t0\nflags:\t0100001\n"), None);
        assert_eq!(written_inode(""), None);
    }
}
