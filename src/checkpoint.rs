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
    /// The server's `system_identifier`, the database, and the outbox's table.
    pub system_id: String,
    /// The epoch of its positions.
    pub epoch: Epoch,
}

impl Identity {
    /// Server and database, without the outbox's table.
    pub fn database(&self) -> String {
        let parts: Vec<&str> = self.system_id.split('/').take(2).collect();
        parts.join("/")
    }
}

/// Orders states of a row by when they were read: the later of two has the higher one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Version {
    /// Of the outbox.
    pub epoch: i64,
    /// Of the drain: see [`crate::source::term`].
    pub term: i64,
    /// The batch's number in its term, from 1.
    pub batch: i64,
}

/// How far the cloud has accepted: all touches that `lo` sees, and of those that `hi` sees beside them, the ones up to
/// `position`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Whose outbox.
    pub identity: Identity,
    /// The term of the drain that wrote it.
    pub term: i64,
    /// The term's nonce.
    pub nonce: String,
    /// Rises with each commit: the later of two checkpoints of a term has the higher one.
    pub serial: u64,
    /// The snapshot in which everything is accepted.
    pub lo: Snapshot,
    /// The window under way, if one is.
    pub window: Option<Window>,
    /// Touches of transactions from `lo`'s `xmax` on lie above this position.
    pub floor: Position,
    /// For each transaction that `lo` shows in progress, a position below all of its touches.
    pub floors: BTreeMap<u64, Position>,
    /// The last batch that a cloud which numbers batches has accepted: one that has less has gone back.
    pub accepted: Option<Version>,
    /// The incarnation of the server that its snapshots are from.
    pub incarnation: String,
    /// The server's timeline: a promotion changes it.
    pub timeline: String,
    /// Term and serial of the last mirror that is known to be in the site's database. A mirror below it means that the
    /// database has gone back.
    pub mirrored: (i64, u64),
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
            nonce: String::new(),
            serial: 0,
            lo: Snapshot::beginning(),
            window: None,
            floor: Position(0),
            floors: BTreeMap::new(),
            accepted: None,
            incarnation: String::new(),
            timeline: String::new(),
            mirrored: (0, 0),
        }
    }

    /// Belongs to this term from now on.
    pub fn begin_term(&mut self, term: i64, nonce: String) {
        (self.term, self.nonce) = (term, nonce);
        self.mirrored = self.place();
    }

    /// As JSON.
    ///
    /// # Errors
    /// None at present.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string(self)
            .map_err(|error| Error::new(Kind::Local, "write the checkpoint's mirror", error.to_string()))
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
    pub fn place(&self) -> (i64, u64) {
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
