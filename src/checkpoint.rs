//! The checkpoint: how far the cloud has durably accepted, kept in the local sled store.
//!
//! Invariants: a checkpoint is committed only after the cloud has accepted all that lies before it, so it is never ahead
//! of the cloud; a commit returns only after the bytes are on the disk; a checkpoint belongs to one outbox. Losing the
//! store costs a replay from the mirror in the source database, never a change: a store that cannot be read is set aside
//! under another name and said so.

mod sled_store;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::change::{Epoch, Position, Snapshot};
use crate::error::{Error, Kind, Result};

pub use sled_store::SledStore;

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

#[cfg(test)]
mod tests {
    use super::*;

    /// An outbox's identity.
    pub(super) fn identity() -> Identity {
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
}
