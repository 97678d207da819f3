//! The wire contract between a site and its cloud, in one place: the client ([`crate::deliver`]) and the
//! reference server ([`crate::receiver`]) both compile against it.
//!
//! What always holds:
//! - It imports nothing else of the crate, so that every other module can use it.
//! - A shape that both sides know is one type, with `Serialize` and `Deserialize`. What the client reads it
//!   reads leniently, since other servers speak the contract too: a member that it does not need may be
//!   missing.
//! - Nothing here connects, logs or decides. An error says in words what is wrong with a text, and holds no
//!   row's value.
//!
//! | what | where |
//! |---|---|
//! | paths of the calls, and the paths that no entity may have | [`paths`] |
//! | capabilities and their names | [`Capability`], [`Capabilities`] |
//! | headers of a batch and of a schema | [`BatchHeaders`], [`headers`] |
//! | a line of `POST /changes`: written, and read without copies | [`ChangeLine`], [`ChangeLineReader`] |
//! | answers | [`ChangesAnswer`], [`SuccessAnswer`], [`BulkAnswer`], [`UploadAnswer`], [`ErrorBody`] |
//! | codes of answers | [`RejectCode`], [`TurnCode`], [`ErrorCode`] |
//! | `GET /sync-status` | [`SyncStatusAnswer`] |
//! | `PUT /schema/{path}` | [`SchemaDeclaration`] |
//! | resumable uploads, tus 1.0.0 | [`tus`] |
//! | `Server-Timing` | [`server_timing`] |
//! | bounds | [`limits`] |
//! | JSON text, without building values | `json` |
//! | PostgreSQL's values as JSON, and back | `column_values` |
//!
//! A batch is named by (epoch, term, batch): the life of the site's outbox, the term in it, and the batch's
//! number in the term, counted from 1. The version of all its rows is [`row_version`], within the epoch.

mod answers;
mod capability;
mod change_line;
mod codes;
pub(crate) mod column_values;
pub mod headers;
pub(crate) mod json;
pub mod limits;
pub mod paths;
mod schema;
pub mod server_timing;
mod sync_status;
pub mod tus;

pub use answers::{BulkAnswer, ChangesAnswer, ErrorBody, RejectedChange, SuccessAnswer, UploadAnswer};
pub use capability::{Capabilities, Capability};
pub use change_line::{ChangeLine, ChangeLineReader, LineError, Op, read_changes};
pub use codes::{ErrorCode, RejectCode, TurnCode};
pub use headers::{BatchHeaders, HeaderError};
pub use schema::{ColumnDeclaration, SchemaDeclaration};
pub use sync_status::{BatchId, SourceProgress, SourcesMember, SyncStatusAnswer};

/// The name of the part of `POST /upload/{directory}` that holds the file.
pub const FILE_PART: &str = "file";

/// The media type of the body of `POST /changes`.
pub const NDJSON: &str = "application/x-ndjson";

/// The media type of every other body.
pub const JSON: &str = "application/json";

/// The version of the rows of a batch, within its epoch: a later term's is higher, and within a term a later
/// batch's.
pub const fn row_version(term: i64, batch: i64) -> i64 {
    term * limits::BATCH_BOUND + batch
}

#[cfg(test)]
mod tests {
    use super::limits::{BATCH_BOUND, TERM_BOUND};
    use super::*;

    #[test]
    fn versions_go_up_with_the_term_then_with_the_batch() {
        assert!(row_version(1, 2) > row_version(1, 1));
        assert!(row_version(2, 1) > row_version(1, BATCH_BOUND - 1));
        assert!(row_version(TERM_BOUND - 1, BATCH_BOUND - 1) > 0);
    }
}
