//! A change, which is what is sent of a touched row; and what says where in the outbox a change lies:
//! [`Position`], [`Epoch`], [`Snapshot`].

use std::fmt;
use std::str::FromStr;

use crate::catalogue::EntityIndex;

use serde::{Deserialize, Serialize};

pub use crate::wire::Op;

/// A touch's number in the outbox: one sequence, starting at 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Position(pub i64);

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which outbox the positions belong to. It starts at 1 and rises when an operator declares the outbox a new
/// one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub i64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a change is a delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cause {
    /// The row is not there. A change that is no delete has this cause too.
    #[default]
    Gone,
    /// The row has another key now, and no setting keeps it in the cloud under the old key.
    Moved,
    /// The row does not meet the entity's `where` condition.
    Unmet,
    /// The delete comes before the row's upsert: the table finds the row by this key, but writes the key
    /// differently; or the row belongs to another entity of its table now.
    ReadsOtherwise,
}

/// One change on its way to the cloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The number of its row's last touch in the outbox.
    pub position: Position,
    /// The index of its entity in the catalogue.
    pub entity: EntityIndex,
    /// What the cloud has to do.
    pub op: Op,
    /// Why it is a delete.
    pub cause: Cause,
    /// When its row was first touched, of the touches that were merged into the change, in microseconds since
    /// 1970.
    pub captured_at: i64,
    /// The key as a JSON object; empty for a truncate.
    pub key: Box<str>,
    /// The row as a JSON object, unparsed; `None` for a delete or a truncate.
    pub row: Option<Box<str>>,
}

impl Change {
    /// How many bytes of text it holds, for the bounds of a batch.
    pub fn bytes(&self) -> usize {
        self.key.len() + self.row.as_ref().map_or(0, |row| row.len()) + 64
    }
}

/// The files that a file column of a row names.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct NamedFile {
    /// The paths in order, as the column writes them.
    pub(crate) paths: Vec<Option<String>>,
    /// Whether the column holds a list.
    pub(crate) list: bool,
}

/// A PostgreSQL transaction snapshot, `xmin:xmax:xip,…`: which transactions had committed when it was
/// taken.
///
/// Source: PostgreSQL manual, "Transaction ID and Snapshot Information Functions".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Snapshot {
    /// The lowest transaction that was still in progress; all below had ended.
    pub xmin: u64,
    /// One past the highest transaction that had ended; all from here on had not begun.
    pub xmax: u64,
    /// The transactions between the two that were in progress.
    pub in_progress: Vec<u64>,
}

impl Snapshot {
    /// The snapshot in which nothing is visible: all of the outbox lies after it.
    pub fn beginning() -> Self {
        Self {
            xmin: 3,
            xmax: 3,
            in_progress: Vec::new(),
        }
    }

    /// Whether the transaction had committed or rolled back when the snapshot was taken.
    pub fn sees(&self, xid: u64) -> bool {
        xid < self.xmax && !self.in_progress.contains(&xid)
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.xmin, self.xmax)?;
        for (index, xid) in self.in_progress.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            write!(f, "{xid}")?;
        }
        Ok(())
    }
}

/// Text that is not a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a transaction snapshot of the form xmin:xmax:xip,…")]
pub struct NotASnapshot(String);

impl FromStr for Snapshot {
    type Err = NotASnapshot;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let mut parts = text.split(':');
            let xmin = parts.next()?.parse().ok()?;
            let xmax = parts.next()?.parse().ok()?;
            let list = parts.next()?;
            if parts.next().is_some() || xmin > xmax {
                return None;
            }
            let in_progress = if list.is_empty() {
                Vec::new()
            } else {
                list.split(',')
                    .map(|xid| xid.parse().ok())
                    .collect::<Option<_>>()?
            };
            Some(Self {
                xmin,
                xmax,
                in_progress,
            })
        };
        parse().ok_or_else(|| NotASnapshot(text.to_owned()))
    }
}

impl TryFrom<String> for Snapshot {
    type Error = NotASnapshot;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Snapshot> for String {
    fn from(snapshot: Snapshot) -> Self {
        snapshot.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshot_reads_and_writes_what_postgres_writes() {
        for text in ["10:20:10,14,15", "10:10:", "744:750:744"] {
            assert_eq!(text.parse::<Snapshot>().unwrap().to_string(), text);
        }
        for text in ["", "10", "20:10:", "a:b:", "1:2:x", "1:2:3:4"] {
            assert!(text.parse::<Snapshot>().is_err(), "{text}");
        }
    }

    #[test]
    fn snapshot_sees_what_had_ended() {
        let snapshot: Snapshot = "10:20:10,14".parse().unwrap();
        assert!(snapshot.sees(9) && snapshot.sees(11) && snapshot.sees(19));
        assert!(!snapshot.sees(10) && !snapshot.sees(14) && !snapshot.sees(20));
    }
}
