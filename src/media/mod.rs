//! The upload lane: each file that a row names is uploaded once, and the row gets its URL.
//!
//! What always holds: a row never waits for a file. A file counts as uploaded when the cloud has confirmed
//! its content hash (a server without hashes: when it has accepted the file). Then, in one transaction, the
//! URL is recorded and the rows that name the file are touched again, so that the URL is sent as any change
//! is. A file that grows, is empty or is missing is tried again, and is never sent in part.
//!
//! Data flow: [`urls`] adds to each row that is sent the URLs that are known, and notes which rows name which
//! files; [`file_records`](crate::source::file_records) keeps that in the site's database; [`watch`] sees
//! files appear and change; [`file_lane`] gives the files that are due to [`upload_pool`], which uploads each
//! by [`file_upload`], and [`upload_journal`] records the outcomes. Of a large file in parts
//! [`upload_progress`] notes how far it has come, so that it goes on from there after an interruption.
//! [`bandwidth`] says how fast and whether files go, and [`traffic`] counts what left.
//!
//! On failure: a file that fails is tried again less and less often. An unreachable cloud or database ends
//! the round; the next round begins with what the database says is due.

mod bandwidth;
pub mod file_lane;
mod file_lane_signals;
mod file_outcome;
mod file_upload;
mod open_writers;
mod paths;
mod readiness;
mod rescan;
mod root;
mod traffic;
mod upload_journal;
mod upload_pool;
mod upload_progress;
mod upload_times;
mod url_end;
mod urls;
mod watch;

pub use bandwidth::{Bandwidth, BandwidthLimit, BandwidthPlan};
pub use file_lane_signals::FileLaneSignals;
pub(crate) use paths::recorded;
pub use root::MediaRoot;
pub use traffic::{BudgetStatus, TrafficBudget};
pub use urls::{FileReferences, attach_urls, note_references};
pub use watch::silent_file_system;
