//! The checkpoint: how far the cloud has durably accepted, kept in the local sled store.
//!
//! Invariants: a checkpoint is committed only after the cloud has accepted all that lies before it, so it is never ahead
//! of the cloud; a commit returns only after the bytes are on the disk; a checkpoint belongs to one outbox. Losing the
//! store costs a replay from the mirror in the source database, never a change: a store that cannot be read is set aside
//! under another name and said so.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::abort;
use crate::change::{Epoch, Position, Snapshot};
use crate::error::{Error, Kind, Result};

/// Which outbox a checkpoint belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The name that the site gave this source, or the outbox's id.
    pub source_id: String,
    /// The outbox's own id, drawn when it was created or declared new.
    pub outbox_id: String,
    /// The server's `system_identifier` and the database.
    pub system_id: String,
    /// The epoch of its positions.
    pub epoch: Epoch,
}

/// How far the cloud has accepted: all changes that `lo` sees, and of those that `hi` sees beside them, the ones up to
/// `position`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Whose outbox.
    pub identity: Identity,
    /// Rises whenever a store begins from the mirror: another store may have gone on from an earlier one meanwhile.
    #[serde(default)]
    pub term: u64,
    /// Rises with each commit: the later of two checkpoints of a term has the higher one.
    pub serial: u64,
    /// The snapshot in which everything is accepted.
    pub lo: Snapshot,
    /// The window under way, if one is.
    pub window: Option<Window>,
    /// Changes of transactions from `lo`'s `xmax` on lie above this position.
    pub floor: Position,
    /// For each transaction that `lo` shows in progress, a position below all of its changes.
    pub floors: BTreeMap<u64, Position>,
    /// The highest position that a cloud which orders by position has accepted in this epoch: one that knows less has lost
    /// something.
    #[serde(default)]
    pub accepted: Position,
    /// Whether the cloud has lost something that no sync has repaired yet.
    #[serde(default)]
    pub lossy: bool,
    /// The highest position that was read.
    #[serde(default)]
    pub highest: Position,
    /// The sum of [`mark`] over all changes that were read. Two checkpoints of one history differ by exactly the changes
    /// that lie between them: that is how a history which lost some of them is noticed.
    #[serde(default)]
    pub tally: u64,
    /// The run of the server that it was read from; none where an older version wrote it.
    #[serde(default)]
    pub run: Option<Run>,
}

/// One run of the source's server, from its start or its promotion to its end. Within it no transaction number is given
/// twice; from one run to the next those numbers may go back that were never on the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The timeline, which a promotion or a recovery to a point in time changes.
    pub timeline: String,
    /// When the server was started, in microseconds since 1970.
    pub started_at: i64,
}

/// A number that stands for one change, out of its position and the microsecond in which it was captured.
///
/// Source: the finalizer of SplitMix64 (Steele, Lea, Flood 2014).
pub fn mark(position: Position, captured_at: i64) -> u64 {
    let mut z = (position.0 as u64)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(captured_at as u64);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A window under way: what `hi` sees and the checkpoint's `lo` does not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Its upper snapshot.
    pub hi: Snapshot,
    /// All of its changes up to here are accepted.
    pub position: Position,
    /// The `floor` of the checkpoint that the window ends in.
    pub next_floor: Position,
}

impl Checkpoint {
    /// Before the first change of an outbox.
    pub fn beginning(identity: Identity) -> Self {
        Self {
            identity,
            term: 0,
            serial: 0,
            lo: Snapshot::beginning(),
            window: None,
            floor: Position(0),
            floors: BTreeMap::new(),
            accepted: Position(0),
            lossy: false,
            highest: Position(0),
            tally: 0,
            run: None,
        }
    }

    /// Opens the window up to `hi`. `last` is a sequence value that was read before the snapshot was taken.
    pub fn open(&mut self, hi: Snapshot, last: Position) {
        let late = self
            .lo
            .in_progress
            .iter()
            .filter(|&&xid| hi.sees(xid))
            .filter_map(|xid| self.floors.get(xid))
            .min();
        let position = late.map_or(self.floor, |&late| late.min(self.floor));
        self.window = Some(Window {
            hi,
            position,
            next_floor: last,
        });
    }

    /// Ends the window: everything that its `hi` sees is accepted.
    pub fn close(&mut self) {
        let Some(Window { hi, next_floor, .. }) = self.window.take() else {
            return;
        };
        self.floors = hi
            .in_progress
            .iter()
            .map(|xid| {
                let floor = if *xid >= self.lo.xmax {
                    self.floor
                } else {
                    self.floors.get(xid).copied().unwrap_or_default()
                };
                (*xid, floor)
            })
            .collect();
        self.floor = next_floor;
        self.lo = hi;
    }

    /// Its place among all checkpoints of its outbox: the later of two has the higher one.
    pub fn place(&self) -> (u64, u64) {
        (self.term, self.serial)
    }

    /// A position below which nothing lies that `lo` does not see.
    pub fn bound(&self) -> Position {
        self.floors
            .values()
            .copied()
            .min()
            .map_or(self.floor, |low| low.min(self.floor))
    }
}

/// Keeps the checkpoint on this machine.
pub trait Store: Send + Sync {
    /// The checkpoint, if there is one.
    ///
    /// # Errors
    /// The store's.
    fn load(&self) -> Result<Option<Checkpoint>>;

    /// Keeps the checkpoint; it is on the disk when this returns.
    ///
    /// # Errors
    /// The store's.
    fn commit(&self, checkpoint: &Checkpoint) -> Result<()>;
}

const KEY: &[u8] = b"checkpoint";
const CACHE_BYTES: u64 = 16 * 1024 * 1024;

/// More than what the database takes at a time, a segment of 512 KiB.
const PROBE_BYTES: usize = 1024 * 1024;

/// The sled store in a folder, with one owner.
///
/// A database that has failed once answers nothing but that failure from then on, so it is closed then and opened anew
/// by the next call.
#[derive(Debug)]
pub struct SledStore {
    open: Mutex<Option<Database>>,
    path: PathBuf,
    _lock: File,
}

/// The open database.
#[derive(Debug)]
struct Database {
    db: sled::Db,
    data: File,
}

impl SledStore {
    /// Opens the store in the folder `path`, or makes it. Where its bytes cannot be read it is set aside, and the second
    /// value says under which name. Where the folder takes no bytes, that is the cause, and nothing is set aside.
    ///
    /// # Errors
    /// The folder cannot be written, the disk is full, or another process owns the store.
    pub fn open(path: &Path) -> Result<(Self, Option<PathBuf>)> {
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
        let opened = match readable(path) {
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
        Ok((
            Self {
                open: Mutex::new(Some(opened)),
                path: path.to_owned(),
                _lock: lock,
            },
            aside,
        ))
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
            None => readable(&self.path).map_err(|cause| self.error(action, cause))?,
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

/// Opens the database and reads the checkpoint once. sled answers some broken bytes by a panic.
fn readable(path: &Path) -> std::result::Result<Database, String> {
    calmly(|| {
        let db = sled::Config::new()
            .path(path)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(Some(500))
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
        self.on_database("write", |database| {
            let failed = |error: sled::Error| error.to_string();
            database.db.insert(KEY, bytes).map_err(failed)?;
            abort::point("amid a commit");
            // sled's flush calls sync_file_range, which does not reach the disk: the data file is synced after it.
            database.db.flush().map_err(failed)?;
            database.data.sync_data().map_err(|error| error.to_string())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            source_id: "college".into(),
            outbox_id: "o".into(),
            system_id: "1/d".into(),
            epoch: Epoch(1),
        }
    }

    fn snapshot(text: &str) -> Snapshot {
        text.parse().unwrap()
    }

    #[test]
    fn a_late_transaction_is_read_from_below_its_first_change() {
        let mut checkpoint = Checkpoint::beginning(identity());
        checkpoint.open(snapshot("10:12:10"), Position(100));
        checkpoint.close();
        assert_eq!(checkpoint.floors[&10], Position(0));
        assert_eq!(checkpoint.floor, Position(100));
        // 10 is still in progress, 13 begins: the window needs nothing below 100.
        checkpoint.open(snapshot("10:15:10,13"), Position(200));
        assert_eq!(checkpoint.window.as_ref().unwrap().position, Position(100));
        checkpoint.close();
        assert_eq!(checkpoint.floors[&13], Position(100));
        assert_eq!(checkpoint.bound(), Position(0));
        // 10 has ended: its changes may lie anywhere above 0.
        checkpoint.open(snapshot("13:16:13"), Position(300));
        assert_eq!(checkpoint.window.as_ref().unwrap().position, Position(0));
        checkpoint.close();
        assert_eq!(
            (checkpoint.bound(), checkpoint.floor),
            (Position(100), Position(300))
        );
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
}
