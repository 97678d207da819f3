//! The checkpoint in a sled store: a folder of this machine with one owner.
//!
//! sled keeps a snapshot of its log beside it, in `snap.<lsn>`, which it can derive again. A process that is
//! killed while it opens the store leaves `snap.<lsn>.generating`, which sled takes for the newest snapshot
//! from then on, and refuses (spacejam/sled#1527, #1533). So half snapshots are removed before the store is
//! opened, and all of them where it does not open; only where that does not help either is the store set
//! aside. Its log never shrinks: a store that has grown above [`LARGEST`] is written anew from its
//! checkpoint.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::{Checkpoint, Store};
use crate::abort;
use crate::error::{Error, Kind, Result};

const KEY: &[u8] = b"checkpoint";
const CACHE_BYTES: u64 = 16 * 1024 * 1024;

/// Bytes on the disk from which on a store is written anew: opening one costs time and memory like its size.
const LARGEST: u64 = 64 * 1024 * 1024;

/// More than what the database takes at a time, a segment of 512 KiB.
const PROBE_BYTES: usize = 1024 * 1024;

/// The sled store in a folder, with one owner.
///
/// A database that has failed once answers nothing but that failure from then on, so it is closed then and
/// opened anew by the next call.
#[derive(Debug)]
pub struct SledStore {
    open: Mutex<Option<Database>>,
    path: PathBuf,
    largest: u64,
    _lock: File,
}

/// The open database.
#[derive(Debug)]
struct Database {
    db: sled::Db,
    data: File,
}

impl SledStore {
    /// Opens the store in the folder `path`, or makes it. Where its bytes cannot be read it is set aside, and
    /// the second value says under which name. Where the folder takes no bytes, that is the cause, and
    /// nothing is set aside.
    ///
    /// # Errors
    /// The folder cannot be written, the disk is full, or another process owns the store.
    pub fn open(path: &Path) -> Result<(Self, Option<PathBuf>)> {
        Self::open_up_to(path, LARGEST)
    }

    /// The same, of at most about `largest` bytes on the disk.
    fn open_up_to(path: &Path, largest: u64) -> Result<(Self, Option<PathBuf>)> {
        let operation = format!("open the checkpoint store {}", path.display());
        let parent = path.parent().unwrap_or(Path::new("."));
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let writable = |error| {
            Error::local(&operation, error)
                .remedy("make the folder writable for cloud-sync, or set store.path to one that is")
        };
        for folder in [parent, path] {
            if folder.exists() && !folder.is_dir() {
                return Err(Error::new(
                    Kind::Store,
                    operation,
                    format!("{} is there already, and is no folder", folder.display()),
                )
                .remedy("move it away, or set store.path to another folder"));
            }
            std::fs::create_dir_all(folder).map_err(writable)?;
        }
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(parent.join(format!("{name}.lock")))
            .map_err(writable)?;
        if let Err(std::fs::TryLockError::WouldBlock) = lock.try_lock() {
            return Err(
                Error::new(Kind::Store, operation, "another cloud-sync process uses it")
                    .remedy("stop that process, or set store.path to another folder"),
            );
        }
        let mut aside = None;
        let opened = match opened(path) {
            Ok(opened) => opened,
            Err(cause) => {
                takes_bytes(path).map_err(writable)?;
                let now = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%S%3f");
                let other = parent.join(format!("{name}.broken-{now}"));
                tracing::error!(store = %path.display(), set_aside = %other.display(), cause, "the checkpoint store cannot be read: it is set aside");
                std::fs::rename(path, &other).map_err(writable)?;
                aside = Some(other);
                readable(path).map_err(|cause| Error::new(Kind::Store, &operation, cause))?
            }
        };
        let store = Self {
            open: Mutex::new(Some(opened)),
            path: path.to_owned(),
            largest,
            _lock: lock,
        };
        store.shrink();
        Ok((store, aside))
    }

    /// Bytes that it takes on the disk; 0 while it cannot be read.
    pub fn bytes(&self) -> u64 {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.as_ref()
            .map_or(0, |database| database.db.size_on_disk().unwrap_or_default())
    }

    /// Writes a store that has grown too large anew: beside it, and then in its place in one step. Where that
    /// fails the store stays as it is, which costs space only.
    fn shrink(&self) {
        let bytes = self.bytes();
        if bytes <= self.largest {
            return;
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(database) = open.take() else { return };
        let anew = self.path.with_extension("anew");
        let written = calmly(|| {
            let checkpoint = database.db.get(KEY).map_err(|error| error.to_string())?;
            drop(database);
            write_anew(checkpoint.as_deref(), &anew, &self.path).map_err(|error| error.to_string())
        });
        match written {
            Ok(()) => tracing::info!(bytes, "the checkpoint store had grown: it is written anew"),
            Err(cause) => tracing::warn!(bytes, cause, "the checkpoint store cannot be written anew"),
        }
        // Where it does not open now, the next call says why.
        *open = opened(&self.path).ok();
    }

    fn error(&self, action: &str, cause: impl std::fmt::Display) -> Error {
        // What the machine says is plainer than what the database makes of it.
        let cause = match takes_bytes(&self.path) {
            Err(error) => error.to_string(),
            Ok(()) => cause.to_string(),
        };
        Error::new(
            Kind::Store,
            format!("{action} the checkpoint in {}", self.path.display()),
            cause,
        )
        .remedy("free space on that disk, or make the folder writable; it then goes on by itself")
    }

    /// Runs `work` on the database. One that fails is closed.
    fn on_database<T>(
        &self,
        action: &str,
        work: impl FnOnce(&Database) -> std::result::Result<T, String>,
    ) -> Result<T> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let database = match open.take() {
            Some(database) => database,
            None => opened(&self.path).map_err(|cause| self.error(action, cause))?,
        };
        let done = calmly(|| work(&database));
        match done {
            Ok(_) => *open = Some(database),
            // sled may panic once more while it is closed.
            Err(_) => drop(calmly(|| {
                drop(database);
                Ok(())
            })),
        }
        done.map_err(|cause| self.error(action, cause))
    }
}

/// Whether the folder's disk takes some bytes.
fn takes_bytes(folder: &Path) -> std::io::Result<()> {
    let mut probe = tempfile::NamedTempFile::new_in(folder)?;
    probe.write_all(&vec![0; PROBE_BYTES])?;
    probe.as_file().sync_all()
}

/// Runs what sled may answer by a panic.
fn calmly<T>(work: impl FnOnce() -> std::result::Result<T, String>) -> std::result::Result<T, String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err("its bytes are broken".to_owned()))
}

/// Opens the database without what a killed process may have left, and without its snapshots where these are
/// what does not open. The log behind them holds a checkpoint then, or is broken too.
fn opened(path: &Path) -> std::result::Result<Database, String> {
    let remove = |suffix| remove_snapshots(path, suffix).map_err(|error| error.to_string());
    remove(".generating")?;
    readable(path).or_else(|cause| {
        // Nothing does on a full disk.
        takes_bytes(path).map_err(|error| error.to_string())?;
        if remove("")? == 0 {
            return Err(cause);
        }
        tracing::warn!(store = %path.display(), cause, "the checkpoint store does not open: its snapshots are derived again");
        let database = readable(path)?;
        let held = calmly(|| database.db.contains_key(KEY).map_err(|error| error.to_string()))?;
        if held { Ok(database) } else { Err(cause) }
    })
}

/// Removes sled's snapshots whose names end so; returns how many there were.
fn remove_snapshots(path: &Path, suffix: &str) -> std::io::Result<usize> {
    let mut removed = 0;
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(suffix) {
            std::fs::remove_file(entry.path())?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Makes a store of this checkpoint in the folder `anew`, and puts it in the place of the one in `path`.
fn write_anew(checkpoint: Option<&[u8]>, anew: &Path, path: &Path) -> std::io::Result<()> {
    let gone = |folder: &Path| match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    // A process that was killed here may have left one.
    gone(anew)?;
    let database = readable(anew).map_err(std::io::Error::other)?;
    if let Some(checkpoint) = checkpoint {
        database.put(checkpoint).map_err(std::io::Error::other)?;
    }
    drop(database);
    File::open(anew)?.sync_all()?;
    renameat_with(CWD, anew, CWD, path, RenameFlags::EXCHANGE)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()?;
    gone(anew)
}

impl Database {
    /// Keeps these bytes; they are on the disk when this returns.
    fn put(&self, checkpoint: &[u8]) -> std::result::Result<(), String> {
        let failed = |error: sled::Error| error.to_string();
        self.db.insert(KEY, checkpoint).map_err(failed)?;
        abort::point("amid a commit");
        // sled's flush calls sync_file_range, which does not reach the disk: the data file is synced after
        // it.
        self.db.flush().map_err(failed)?;
        self.data.sync_data().map_err(|error| error.to_string())
    }
}

/// Opens the database and reads the checkpoint once. sled answers some broken bytes by a panic.
fn readable(path: &Path) -> std::result::Result<Database, String> {
    calmly(|| {
        let db = sled::Config::new()
            .path(path)
            .cache_capacity(CACHE_BYTES)
            // Each commit flushes.
            .flush_every_ms(None)
            .open()
            .map_err(|error| error.to_string())?;
        decode(db.get(KEY).map_err(|error| error.to_string())?.as_deref())?;
        let data = File::open(path.join("db")).map_err(|error| error.to_string())?;
        Ok(Database { db, data })
    })
}

/// A stored checkpoint is its JSON behind the first eight bytes of the JSON's blake3 hash.
fn decode(bytes: Option<&[u8]>) -> std::result::Result<Option<Checkpoint>, String> {
    let Some(bytes) = bytes else { return Ok(None) };
    let (sum, body) = bytes
        .split_at_checked(8)
        .ok_or("the stored checkpoint is too short")?;
    if blake3::hash(body).as_bytes()[..8] != *sum {
        return Err("the stored checkpoint's checksum is wrong".to_owned());
    }
    serde_json::from_slice(body)
        .map(Some)
        .map_err(|error| error.to_string())
}

impl Store for SledStore {
    fn load(&self) -> Result<Option<Checkpoint>> {
        self.on_database("read", |database| {
            decode(
                database
                    .db
                    .get(KEY)
                    .map_err(|error| error.to_string())?
                    .as_deref(),
            )
        })
    }

    fn commit(&self, checkpoint: &Checkpoint) -> Result<()> {
        let body = serde_json::to_vec(checkpoint).map_err(|error| self.error("write", error))?;
        let mut bytes = blake3::hash(&body).as_bytes()[..8].to_vec();
        bytes.extend_from_slice(&body);
        self.on_database("write", |database| database.put(&bytes))?;
        self.shrink();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::tests::identity;

    fn checkpoint(serial: u64) -> Checkpoint {
        Checkpoint {
            serial,
            ..Checkpoint::beginning(identity())
        }
    }

    #[test]
    fn the_store_keeps_what_was_committed_and_has_one_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let mut checkpoint = Checkpoint::beginning(identity());
        checkpoint.serial = 7;
        {
            let (store, aside) = SledStore::open(&path).unwrap();
            assert!(aside.is_none());
            store.commit(&checkpoint).unwrap();
            let second = SledStore::open(&path).unwrap_err();
            assert!(second.to_string().contains("another cloud-sync"), "{second}");
        }
        let (store, _) = SledStore::open(&path).unwrap();
        assert_eq!(store.load().unwrap(), Some(checkpoint));
    }

    #[test]
    fn a_broken_store_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        {
            let (store, _) = SledStore::open(&path).unwrap();
            store.commit(&Checkpoint::beginning(identity())).unwrap();
        }
        for entry in std::fs::read_dir(&path).unwrap() {
            let file = entry.unwrap().path();
            if file.is_file() {
                let length = std::fs::metadata(&file).unwrap().len() as usize;
                std::fs::write(&file, vec![0xa5; length.max(64)]).unwrap();
            }
        }
        let (store, aside) = SledStore::open(&path).unwrap();
        assert!(aside.is_some_and(|other| other.exists()));
        assert_eq!(store.load().unwrap(), None);
    }

    #[test]
    fn what_a_kill_or_a_fault_leaves_of_snapshots_costs_no_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        SledStore::open(&path).unwrap().0.commit(&checkpoint(7)).unwrap();
        let half = "snap.00000000FFFFFFFF.generating";
        let plants: [&[(&str, &[u8])]; 4] = [
            &[(half, b"")],
            &[(half, b"\xa5 neither a snapshot nor its checksum")],
            &[(
                "snap.00000000FFFFFFFF",
                b"\xa5 neither a snapshot nor its checksum",
            )],
            &[("snap.00000000FFFFFFFE", b""), (half, b"\xa5")],
        ];
        for (plant, serial) in plants.into_iter().zip(8..) {
            for (name, bytes) in plant {
                std::fs::write(path.join(name), bytes).unwrap();
            }
            let (store, aside) = SledStore::open(&path).unwrap();
            assert_eq!(aside, None, "{plant:?}");
            assert_eq!(store.load().unwrap(), Some(checkpoint(serial - 1)), "{plant:?}");
            store.commit(&checkpoint(serial)).unwrap();
        }
    }

    #[test]
    fn a_store_that_has_grown_is_written_anew_from_its_checkpoint() {
        const LARGEST: u64 = 3 << 20;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let grow = |store: &SledStore| {
            let mut bytes = vec![0; 300_000];
            for nth in 0_u32.. {
                bytes[..4].copy_from_slice(&nth.to_be_bytes());
                store
                    .on_database("write", |database| {
                        database
                            .db
                            .insert(nth.to_be_bytes(), &bytes[..])
                            .map_err(|error| error.to_string())?;
                        database.db.flush().map_err(|error| error.to_string())
                    })
                    .unwrap();
                if store.bytes() > LARGEST {
                    return;
                }
            }
        };
        // When one that runs, and one that is opened, is larger than it may be
        let (store, _) = SledStore::open_up_to(&path, LARGEST).unwrap();
        for serial in 1..4 {
            grow(&store);
            store.commit(&checkpoint(serial)).unwrap();
            // Then it is small again, and takes commits.
            assert!(store.bytes() <= LARGEST, "{}", store.bytes());
            assert_eq!(store.load().unwrap(), Some(checkpoint(serial)));
        }
        grow(&store);
        drop(store);
        let (store, aside) = SledStore::open_up_to(&path, LARGEST).unwrap();
        assert_eq!(aside, None);
        assert!(store.bytes() <= LARGEST, "{}", store.bytes());
        assert_eq!(store.load().unwrap(), Some(checkpoint(3)));
        assert!(!path.with_extension("anew").exists());
    }
}
