//! The states of a media file.
//!
//! A new state also needs: a migration for the check constraint of `cloud_sync.media`; its place in the lists
//! of sql/source/files.sql; who sets it (media/file_outcome.rs) and who leaves it (media/upload_journal.rs);
//! how it is counted (source/file_records.rs, replicator/source_status.rs) and told (cli/files.rs,
//! docs/guide/files.md).

use crate::error::{Error, Kind, Result};

/// Where a file is on its way. The check constraint of `cloud_sync.media` and sql/source/files.sql name them too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileState {
    /// To be uploaded, at once or when its reason no longer holds.
    Waiting,
    /// The cloud takes others and not this one, or it cannot be read: tried again less and less often.
    Failing,
    /// Named by a row, and not below the media root.
    Missing,
    /// The cloud has confirmed it.
    Uploaded,
    /// Never opened: outside the media root, or no regular file.
    Refused,
}

impl FileState {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 5] = [
        Self::Waiting,
        Self::Failing,
        Self::Missing,
        Self::Refused,
        Self::Uploaded,
    ];

    /// Its name in the database and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Failing => "failing",
            Self::Missing => "missing",
            Self::Uploaded => "uploaded",
            Self::Refused => "refused",
        }
    }

    /// The state with this name; `None` if there is none.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }

    pub(super) fn read(row: &tokio_postgres::Row, column: usize) -> Result<Self> {
        let name: &str = row.get(column);
        Self::from_name(name).ok_or_else(|| {
            Error::new(
                Kind::Source,
                "read the state of media files",
                format!("{name:?} is no state of a file: a newer program has written it"),
            )
            .remedy("use the newer program")
        })
    }
}
