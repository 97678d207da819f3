//! Who drains the outbox: the one process whose session holds the leader's lock.
//!
//! The lock is an advisory one of the source database, so that it is given back by the server when the process or its
//! connection dies. Whoever holds it may drain; whoever notices that the session is gone stops draining at once. On a
//! server that orders by position, the moment in which two drain would be harmless.

use std::time::Duration;

use secrecy::SecretString;

use crate::error::{Error, Result};
use crate::source::connect::Session;
use crate::source::install::LEADER_LOCK;

/// How often a replicator that stands by tries to take over.
pub(super) const TRY_EVERY: Duration = Duration::from_secs(2);

/// The leader's lock, held.
pub(super) struct Leader {
    session: Session,
}

impl Leader {
    /// Takes the lock, if no one holds it.
    pub(super) async fn try_take(url: &SecretString) -> Result<Option<Self>> {
        let session = Session::open(url, "leader").await?;
        let row = session
            .client()
            .query_one("select pg_try_advisory_lock($1)", &[&LEADER_LOCK])
            .await
            .map_err(|error| Error::postgres("take the leader's lock", error))?;
        Ok(row.get::<_, bool>(0).then_some(Self { session }))
    }

    /// Waits until the session that holds the lock has broken off.
    pub(super) async fn lost(&self) {
        self.session.closed().await;
    }

    /// Gives the lock back.
    pub(super) async fn release(self) {
        // Where this fails the connection is gone, and the lock with it.
        let _ = self
            .session
            .client()
            .execute("select pg_advisory_unlock($1)", &[&LEADER_LOCK])
            .await;
    }
}
