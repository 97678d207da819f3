//! The checkpoint in a sled store: a folder on this machine that one process owns.
//!
//! sled keeps a snapshot of its log in `snap.<lsn>`, and can derive it from the log again. A process that is
//! killed while it opens the store leaves `snap.<lsn>.generating`. sled then takes that file for the newest
//! snapshot, and refuses to open it (spacejam/sled#1527, #1533). So [`SledStore::open`] first removes
//! unfinished snapshots. If the store does not open, it removes all snapshots. If the store still does not
//! open, it moves the store aside.
//!
//! sled's log never shrinks: a store that has grown above [`MAX_BYTES`] is replaced by a new one with the
//! same checkpoint.

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

/// The size on disk above which a store is replaced: opening a store costs time and memory in proportion to
/// its size.
const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// More than the database allocates at a time, which is a segment of 512 KiB.
const PROBE_BYTES: usize = 1024 * 1024;

/// The sled store in a folder, owned by this process.
///
/// After a failure, a sled database returns that failure for every call. So it is closed, and the next call
/// opens it again.
#[derive(Debug)]
pub struct SledStore {
    open: Mutex<Option<Database>>,
    path: PathBuf,
    max_bytes: u64,
    _lock: File,
}

/// The open database.
#[derive(Debug)]
struct Database {
    db: sled::Db,
    data: File,
}

impl SledStore {
    /// Opens the store in the folder `path`, or creates it. If its bytes cannot be read, the store is moved
    /// aside, and the second value is its new path. If the folder takes no bytes, that is the error, and
    /// nothing is moved.
    ///
    /// # Errors
    /// The folder cannot be written, the disk is full, or another process owns the store.
    pub fn open(path: &Path) -> Result<(Self, Option<PathBuf>)> {
        Self::open_with_limit(path, MAX_BYTES)
    }

    /// [`SledStore::open`] with a limit: above `max_bytes` on the disk the store is replaced.
    fn open_with_limit(path: &Path, max_bytes: u64) -> Result<(Self, Option<PathBuf>)> {
        let operation = format!("open the checkpoint store {}", path.display());
        let parent = path.parent().unwrap_or(Path::new("."));
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let folder_error = |error| {
            Error::local(&operation, error)
                .remedy("make the folder writable for cloud-sync, or set store.path to one that is")
        };
        for folder in [parent, path] {
            if folder.exists() && !folder.is_dir() {
                return Err(Error::new(
                    Kind::Store,
                    operation,
                    format!("{} already exists and is not a folder", folder.display()),
                )
                .remedy("move it away, or set store.path to another folder"));
            }
            std::fs::create_dir_all(folder).map_err(folder_error)?;
        }
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(parent.join(format!("{name}.lock")))
            .map_err(folder_error)?;
        if let Err(std::fs::TryLockError::WouldBlock) = lock.try_lock() {
            return Err(
                Error::new(Kind::Store, operation, "another cloud-sync process uses it")
                    .remedy("stop that process, or set store.path to another folder"),
            );
        }
        let mut set_aside = None;
        let database = match open_database(path) {
            Ok(database) => database,
            Err(cause) => {
                probe_write(path).map_err(folder_error)?;
                let now = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%S%3f");
                let broken = parent.join(format!("{name}.broken-{now}"));
                tracing::error!(store = %path.display(), set_aside = %broken.display(), cause, "the \
                    checkpoint store cannot be read: it is set aside");
                std::fs::rename(path, &broken).map_err(folder_error)?;
                set_aside = Some(broken);
                open_and_read(path).map_err(|cause| Error::new(Kind::Store, &operation, cause))?
            }
        };
        let store = Self {
            open: Mutex::new(Some(database)),
            path: path.to_owned(),
            max_bytes,
            _lock: lock,
        };
        store.shrink_if_large();
        Ok((store, set_aside))
    }

    /// The store's size on disk in bytes; 0 while it cannot be read.
    pub fn bytes(&self) -> u64 {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.as_ref()
            .map_or(0, |database| database.db.size_on_disk().unwrap_or_default())
    }

    /// Replaces a store that has grown too large: writes a new one next to it, and exchanges the two in one
    /// step. If that fails, the store stays as it is, which costs only space.
    fn shrink_if_large(&self) {
        let bytes = self.bytes();
        if bytes <= self.max_bytes {
            return;
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(database) = open.take() else { return };
        let replacement = self.path.with_extension("replacement");
        let written = catch_panic(|| {
            let checkpoint = database.db.get(KEY).map_err(|error| error.to_string())?;
            drop(database);
            write_replacement(checkpoint.as_deref(), &replacement, &self.path)
                .map_err(|error| error.to_string())
        });
        match written {
            Ok(()) => tracing::info!(
                bytes,
                "the checkpoint store had grown, and was replaced by a small \
                one"
            ),
            Err(cause) => tracing::warn!(
                bytes,
                cause,
                "the checkpoint store has grown, and cannot be \
                replaced by a small one"
            ),
        }
        // If it does not open now, the next call reports why.
        *open = open_database(&self.path).ok();
    }

    fn error(&self, action: &str, cause: impl std::fmt::Display) -> Error {
        // The operating system's error is clearer than the database's.
        let cause = match probe_write(&self.path) {
            Err(error) => error.to_string(),
            Ok(()) => cause.to_string(),
        };
        Error::new(
            Kind::Store,
            format!("{action} the checkpoint in {}", self.path.display()),
            cause,
        )
        .remedy(
            "free space on that disk, or make the folder writable; cloud-sync then continues without a \
            restart",
        )
    }

    /// Runs `work` on the database, and closes the database if `work` fails.
    fn with_database<T>(
        &self,
        action: &str,
        work: impl FnOnce(&Database) -> std::result::Result<T, String>,
    ) -> Result<T> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let database = match open.take() {
            Some(database) => database,
            None => open_database(&self.path).map_err(|cause| self.error(action, cause))?,
        };
        let result = catch_panic(|| work(&database));
        match result {
            Ok(_) => *open = Some(database),
            // sled may panic again while it is closed.
            Err(_) => drop(catch_panic(|| {
                drop(database);
                Ok(())
            })),
        }
        result.map_err(|cause| self.error(action, cause))
    }
}

/// Writes a file of some bytes to the folder, to see whether its disk takes them.
fn probe_write(folder: &Path) -> std::io::Result<()> {
    let mut probe = tempfile::NamedTempFile::new_in(folder)?;
    probe.write_all(&vec![0; PROBE_BYTES])?;
    probe.as_file().sync_all()
}

/// Runs `work` and returns a panic of sled as an error.
fn catch_panic<T>(work: impl FnOnce() -> std::result::Result<T, String>) -> std::result::Result<T, String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err("its bytes are broken".to_owned()))
}

/// Opens the database, after removing what a killed process may have left. If it does not open, opens it
/// without its snapshots; its log must hold a checkpoint then, else the log is broken too.
fn open_database(path: &Path) -> std::result::Result<Database, String> {
    let remove = |suffix| remove_snapshots(path, suffix).map_err(|error| error.to_string());
    remove(".generating")?;
    open_and_read(path).or_else(|cause| {
        // On a full disk nothing opens.
        probe_write(path).map_err(|error| error.to_string())?;
        if remove("")? == 0 {
            return Err(cause);
        }
        tracing::warn!(store = %path.display(), cause, "the checkpoint store does not open: its snapshots \
            are derived again");
        let database = open_and_read(path)?;
        let has_checkpoint =
            catch_panic(|| database.db.contains_key(KEY).map_err(|error| error.to_string()))?;
        if has_checkpoint { Ok(database) } else { Err(cause) }
    })
}

/// Removes sled's snapshots whose names end with `suffix`. Returns how many there were.
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

/// Makes a store with this checkpoint in the folder `replacement`, and exchanges it with the store in `path`.
fn write_replacement(checkpoint: Option<&[u8]>, replacement: &Path, path: &Path) -> std::io::Result<()> {
    let remove_folder = |folder: &Path| match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    // A process that was killed here may have left a folder.
    remove_folder(replacement)?;
    let database = open_and_read(replacement).map_err(std::io::Error::other)?;
    if let Some(checkpoint) = checkpoint {
        database.put(checkpoint).map_err(std::io::Error::other)?;
    }
    drop(database);
    File::open(replacement)?.sync_all()?;
    renameat_with(CWD, replacement, CWD, path, RenameFlags::EXCHANGE)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()?;
    remove_folder(replacement)
}

impl Database {
    /// Stores these bytes. They are on the disk when this returns.
    fn put(&self, checkpoint: &[u8]) -> std::result::Result<(), String> {
        let failed = |error: sled::Error| error.to_string();
        self.db.insert(KEY, checkpoint).map_err(failed)?;
        abort::point("amid a commit");
        // sled's flush calls sync_file_range, which does not reach the disk. So the data file is synced after
        // it.
        self.db.flush().map_err(failed)?;
        self.data.sync_data().map_err(|error| error.to_string())
    }
}

/// Opens the database and reads the checkpoint once. On some broken bytes sled panics.
fn open_and_read(path: &Path) -> std::result::Result<Database, String> {
    catch_panic(|| {
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

/// Decodes a stored checkpoint: the first eight bytes of the JSON's blake3 hash, then the JSON.
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
        self.with_database("read", |database| {
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
        self.with_database("write", |database| database.put(&bytes))?;
        self.shrink_if_large();
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
    fn a_broken_store_is_moved_aside() {
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
    fn a_store_that_has_grown_is_replaced_by_one_with_its_checkpoint() {
        const LIMIT: u64 = 3 << 20;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let grow = |store: &SledStore| {
            let mut bytes = vec![0; 300_000];
            for number in 0_u32.. {
                bytes[..4].copy_from_slice(&number.to_be_bytes());
                store
                    .with_database("write", |database| {
                        database
                            .db
                            .insert(number.to_be_bytes(), &bytes[..])
                            .map_err(|error| error.to_string())?;
                        database.db.flush().map_err(|error| error.to_string())
                    })
                    .unwrap();
                if store.bytes() > LIMIT {
                    return;
                }
            }
        };
        // When a store grows above the limit while it is open, and before it is opened,
        let (store, _) = SledStore::open_with_limit(&path, LIMIT).unwrap();
        for serial in 1..4 {
            grow(&store);
            store.commit(&checkpoint(serial)).unwrap();
            // then it is small again, and takes commits.
            assert!(store.bytes() <= LIMIT, "{}", store.bytes());
            assert_eq!(store.load().unwrap(), Some(checkpoint(serial)));
        }
        grow(&store);
        drop(store);
        let (store, aside) = SledStore::open_with_limit(&path, LIMIT).unwrap();
        assert_eq!(aside, None);
        assert!(store.bytes() <= LIMIT, "{}", store.bytes());
        assert_eq!(store.load().unwrap(), Some(checkpoint(3)));
        assert!(!path.with_extension("replacement").exists());
    }
}
