//! The operator API: how people and programs on the site see the replicator and steer it.
//!
//! [`ControlServer`] answers over HTTP and knows the replicator only as an [`Operator`]. Everything below `/api/` needs the
//! bearer token ([`token`]). `/healthz` and `/readyz` are open; `/metrics` is open where the server listens on loopback
//! and needs the token elsewhere. [`client::ControlClient`] is the command line's side of it.
//!
//! | call | answer |
//! |---|---|
//! | `POST /api/cloud-sync/sync-now` | runs a sync, and answers its [`SyncReport`] when it has ended |
//! | `GET /api/cloud-sync/status` | a [`StatusReport`] |
//! | `GET /healthz` | 200 while it makes progress or has nothing to do; 503 with the reason where it stands still |
//! | `GET /readyz` | 200 when it replicates; 503 with the reason before and where it stands still |
//! | `GET /metrics` | the metrics as OpenMetrics text |
//!
//! An error below `/api/` is answered as `{"success": false, "errors": ["…"], "exit_code": N}`, with the exit code that
//! the command line ends with for it.

pub mod client;

mod server;
mod single_flight;
pub mod status;
pub mod token;

use std::future::Future;

use serde::{Deserialize, Serialize};

use crate::error::Result;

pub use self::server::ControlServer;
pub(crate) use self::server::ServerToken;
pub use self::status::StatusReport;
pub use crate::reconcile::report;
pub use crate::reconcile::report::SyncReport;

/// What the operator API needs of a replicator.
pub trait Operator: Send + Sync + 'static {
    /// How it stands.
    fn status(&self) -> impl Future<Output = Result<StatusReport>> + Send;

    /// Runs a sync. Never called while an earlier call has not ended: the server lets equal requests share one run and
    /// different ones wait for their turn.
    fn sync_now(&self, request: SyncRequest) -> impl Future<Output = Result<SyncReport>> + Send;

    /// Whether it makes progress. Called often: it answers from what is known.
    fn health(&self) -> Health;

    /// The metrics as OpenMetrics text.
    fn metrics(&self) -> String;
}

/// What a sync shall do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SyncRequest {
    /// Trust nothing that is remembered about the cloud.
    pub force: bool,
    /// The entities, by name; none means all.
    pub entities: Vec<String>,
}

/// Whether a replicator makes progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It has not replicated yet, for this reason: healthy, not ready.
    Starting(String),
    /// It makes progress, or there is nothing to do.
    Well,
    /// The same, and a person has something to decide on, which holds nothing up.
    Noted(String),
    /// It stands still while changes wait, for this reason.
    Still(String),
}
