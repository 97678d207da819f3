//! The checkpoint: how far the cloud has durably accepted. The local sled store keeps it.
//!
//! What always holds: a checkpoint is committed only after the cloud has accepted everything before it, so it
//! is never ahead of the cloud; a commit returns only after the bytes are on the disk; a checkpoint belongs
//! to one outbox.
//!
//! On failure: losing the store costs a replay from the mirror in the source database, never a change. A
//! store that cannot be read is moved aside under another name, and an error is logged.

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
    /// The outbox's own random id, made when it was created or declared new.
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

/// Orders states of a row by when they were read: of two states, the later one has the higher version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Version {
    /// The outbox's epoch.
    pub epoch: i64,
    /// The drain's term: see [`crate::source::term`].
    pub term: i64,
    /// The batch's number in its term, from 1.
    pub batch: i64,
}

/// How far the cloud has accepted: all touches that `lo` sees; and of the touches that `hi` sees and `lo`
/// does not, those up to `position`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Which outbox it belongs to.
    pub identity: Identity,
    /// The term of the drain that wrote it.
    pub term: i64,
    /// The term's nonce.
    pub nonce: String,
    /// Rises with each commit: of two checkpoints of a term, the later one has the higher serial.
    pub serial: u64,
    /// The snapshot of which the cloud has accepted everything.
    pub lo: Snapshot,
    /// The window that is being delivered, if there is one.
    pub window: Option<Window>,
    /// All touches of transactions from `lo`'s `xmax` on have positions above this one. Stored as `floor`.
    #[serde(rename = "floor")]
    pub low_water: Position,
    /// For each transaction that `lo` shows in progress, a position below all of its touches. Stored as
    /// `floors`.
    #[serde(rename = "floors")]
    pub low_water_by_transaction: BTreeMap<u64, Position>,
    /// The last batch that the cloud has accepted, if it numbers batches. A cloud that reports less has been
    /// restored to an earlier state.
    pub accepted: Option<Version>,
    /// The incarnation of the source server that its snapshots come from.
    pub incarnation: String,
    /// The source server's timeline: a promotion changes it.
    pub timeline: String,
    /// Term and serial of the last mirror that is known to be in the site's database. A lower mirror means
    /// that the database was restored to an earlier state.
    pub mirrored: (i64, u64),
}

/// A window that is being delivered: the touches that `hi` sees and the checkpoint's `lo` does not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Its upper snapshot.
    pub hi: Snapshot,
    /// The cloud has accepted all of its changes up to this position.
    pub position: Position,
    /// The `low_water` of the checkpoint at the window's end. Stored as `next_floor`.
    #[serde(rename = "next_floor")]
    pub next_low_water: Position,
}

impl Checkpoint {
    /// The checkpoint before the first change of an outbox.
    pub fn beginning(identity: Identity) -> Self {
        Self {
            identity,
            term: 0,
            nonce: String::new(),
            serial: 0,
            lo: Snapshot::beginning(),
            window: None,
            low_water: Position(0),
            low_water_by_transaction: BTreeMap::new(),
            accepted: None,
            incarnation: String::new(),
            timeline: String::new(),
            mirrored: (0, 0),
        }
    }

    /// Assigns the checkpoint to this term.
    pub fn begin_term(&mut self, term: i64, nonce: String) {
        (self.term, self.nonce) = (term, nonce);
        self.mirrored = self.order();
    }

    /// The checkpoint as JSON.
    ///
    /// # Errors
    /// None at present.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|error| {
            Error::new(Kind::Local, "write the checkpoint's mirror", error.to_string()).caused_by(error)
        })
    }

    /// Opens the window up to `hi`. `last` is the value of the position sequence, read before `hi` was taken.
    pub fn open_window(&mut self, hi: Snapshot, last: Position) {
        let late = self
            .lo
            .in_progress
            .iter()
            .filter(|&&xid| hi.sees(xid))
            .filter_map(|xid| self.low_water_by_transaction.get(xid))
            .min();
        let position = late.map_or(self.low_water, |&late| late.min(self.low_water));
        self.window = Some(Window {
            hi,
            position,
            next_low_water: last,
        });
    }

    /// Ends the window: the cloud has accepted everything that its `hi` sees.
    pub fn close_window(&mut self) {
        let Some(Window {
            hi, next_low_water, ..
        }) = self.window.take()
        else {
            return;
        };
        self.low_water_by_transaction = hi
            .in_progress
            .iter()
            .map(|xid| {
                let low_water = if *xid >= self.lo.xmax {
                    self.low_water
                } else {
                    self.low_water_by_transaction
                        .get(xid)
                        .copied()
                        .unwrap_or_default()
                };
                (*xid, low_water)
            })
            .collect();
        self.low_water = next_low_water;
        self.lo = hi;
    }

    /// Orders the checkpoints of an outbox: of two checkpoints, the later one has the higher value.
    pub fn order(&self) -> (i64, u64) {
        (self.term, self.serial)
    }

    /// A position such that `lo` sees every touch below it.
    pub fn low_bound(&self) -> Position {
        self.low_water_by_transaction
            .values()
            .copied()
            .min()
            .map_or(self.low_water, |low| low.min(self.low_water))
    }
}

/// Stores the checkpoint on this machine.
pub trait Store: Send + Sync {
    /// Returns the checkpoint, if there is one.
    ///
    /// # Errors
    /// The store's.
    fn load(&self) -> Result<Option<Checkpoint>>;

    /// Stores the checkpoint. It is on the disk when this returns.
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
        checkpoint.open_window(snapshot("10:12:10"), Position(100));
        checkpoint.close_window();
        assert_eq!(checkpoint.low_water_by_transaction[&10], Position(0));
        assert_eq!(checkpoint.low_water, Position(100));
        // 10 is still in progress, 13 begins: the window needs nothing below 100.
        checkpoint.open_window(snapshot("10:15:10,13"), Position(200));
        assert_eq!(checkpoint.window.as_ref().unwrap().position, Position(100));
        checkpoint.close_window();
        assert_eq!(checkpoint.low_water_by_transaction[&13], Position(100));
        assert_eq!(checkpoint.low_bound(), Position(0));
        // 10 has ended: its changes may lie anywhere above 0.
        checkpoint.open_window(snapshot("13:16:13"), Position(300));
        assert_eq!(checkpoint.window.as_ref().unwrap().position, Position(0));
        checkpoint.close_window();
        assert_eq!(
            (checkpoint.low_bound(), checkpoint.low_water),
            (Position(100), Position(300))
        );
    }
}
