//! The operator API: people and programs on the site see the replicator's state here, and start syncs.
//!
//! [`ControlServer`] serves it over HTTP, and knows the replicator only as an [`Operator`]. Everything below
//! `/api/` needs a bearer token: the single one ([`token`]), or one with a name ([`named_tokens`]), which may be
//! read-only. `/healthz` and `/readyz` need none; `/metrics` needs it unless
//! the server listens on loopback. [`client::ControlClient`] is the command line's client.
//!
//! Below `/cloud-sync` is the page for people ([`page`]): they sign in with the token.
//!
//! | call | answer |
//! |---|---|
//! | `POST /api/cloud-sync/sync-now` | runs a sync, and returns its [`SyncReport`] when it has ended |
//! | `GET /api/cloud-sync/status` | a [`StatusReport`] |
//! | `GET /api/cloud-sync/why?entity=ENTITY&key=KEY` | a [`RowInquiry`]: why a row is not in the cloud |
//! | `POST /api/cloud-sync/pause` | pauses everything, or what its body names ([`PauseRequest`]); a [`PauseStatus`] |
//! | `POST /api/cloud-sync/resume` | ends such a pause; a [`PauseStatus`] |
//! | `GET /healthz` | 200 if it makes progress or has nothing to do; 503 with the reason if it is stuck |
//! | `GET /readyz` | 200 if it replicates; 503 with the reason before that, and if it is stuck |
//! | `GET /metrics` | the metrics as OpenMetrics text |
//!
//! An error below `/api/` has the body `{"success": false, "errors": ["…"], "exit_code": N}`. The exit code
//! is the one that the command line returns for the error.

pub mod client;

mod inquiry;
mod lag_history;
pub(crate) mod named_tokens;
mod overview;
mod page;
mod pausing;
pub(crate) mod problems;
mod server;
mod single_flight;
pub mod status;
mod throttle;
pub mod token;
pub(crate) mod words;

use std::future::Future;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::change::Position;
use crate::error::Result;
use crate::quarantine::QuarantineEntry;

pub use self::inquiry::{InquiryState, RowInquiry};
pub use self::overview::{Overview, SourceOverview};
pub(crate) use self::page::{page_url, sentence_of};
pub use self::pausing::{PauseRequest, PauseStatus};
pub use self::server::ControlServer;
pub(crate) use self::server::ServerToken;
pub use self::status::StatusReport;
pub use crate::reconcile::report;
pub use crate::reconcile::report::SyncReport;
pub use crate::source::pauses::{Pause, PauseScope, Pauses};

/// What the operator API needs of a replicator.
pub trait Operator: Send + Sync + 'static {
    /// Returns the replicator's status.
    fn status(&self) -> impl Future<Output = Result<StatusReport>> + Send;

    /// Runs a sync. The server never calls it while an earlier call runs: equal requests share one run,
    /// different ones wait for their turn.
    fn sync_now(&self, request: SyncRequest) -> impl Future<Output = Result<SyncReport>> + Send;

    /// Whether the replicator makes progress. It is called often, so it returns what is known without asking
    /// anybody.
    fn health(&self) -> Health;

    /// The metrics as OpenMetrics text.
    fn metrics(&self) -> String;

    /// What the page shows besides the status. It asks the source only if `ask_source`.
    fn overview(&self, ask_source: bool) -> impl Future<Output = Overview> + Send;

    /// The age of the oldest change that waits, or zero, without asking anybody; `None` if it is not known.
    fn lag_now(&self) -> Option<Duration>;

    /// A number that changes when something happens that the page shows. It is called often, and asks nobody.
    fn activity(&self) -> u64;

    /// Why a row of an entity is not in the cloud. `key` is the value of a key of one column, or a JSON object.
    fn why(&self, entity: &str, key: &str) -> impl Future<Output = Result<RowInquiry>> + Send;

    /// The entries in quarantine with this position: usually one.
    fn quarantined(&self, position: Position) -> impl Future<Output = Result<Vec<QuarantineEntry>>> + Send;

    /// Sends the rows in quarantine with this position again. Returns how many.
    fn retry(&self, position: Position) -> impl Future<Output = Result<u64>> + Send;

    /// Discards the entries in quarantine with this position. Returns how many.
    fn discard(&self, position: Position) -> impl Future<Output = Result<u64>> + Send;

    /// Pauses something; `by` says who wants it.
    fn pause(&self, scope: &PauseScope, by: &str) -> impl Future<Output = Result<PauseStatus>> + Send;

    /// Ends a pause; `by` says who wants it.
    fn resume(&self, scope: &PauseScope, by: &str) -> impl Future<Output = Result<PauseStatus>> + Send;
}

/// What a sync has to do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SyncRequest {
    /// Push rows that the cloud holds too, if it lists only their keys and not their contents.
    pub force: bool,
    /// The entities, by name; an empty list means all.
    pub entities: Vec<String>,
}

/// Whether a replicator makes progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It has not replicated yet, for this reason: it is healthy, but not ready.
    Starting(String),
    /// It makes progress, or has nothing to do.
    Well,
    /// It makes progress, and an operator has something to decide, which delays nothing.
    Noted(String),
    /// It is stuck while changes wait, for this reason.
    Still(String),
}
