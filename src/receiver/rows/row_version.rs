//! The version of a row in the cloud.

/// What orders the states of a row by when the site read them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RowVersion {
    pub(crate) epoch: i64,
    /// The term and the batch in one number.
    pub(crate) version: i64,
}
