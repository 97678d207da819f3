//! Who drains the outbox: the one process whose session holds the leader's lock.
//!
//! The lock is one on view `cloud_sync.leader`, which is made for it: only a role that may write in schema
//! `cloud_sync` can take it. A transaction that does nothing else holds it, with no snapshot and no
//! transaction number, so that it holds up no vacuum; the server gives the lock back when the process or its
//! connection dies. Whoever holds it may drain; whoever notices that the session is gone stops draining at
//! once. That two drain for a moment is prevented by the term: see [`crate::source::term`].

use std::time::Duration;

use secrecy::SecretString;

use crate::error::Result;
use crate::source::connect::{Session, must_keep_sessions};
use crate::source::leader_lock;

/// How often a waiting replicator tries to take over.
pub(super) const TRY_EVERY: Duration = Duration::from_secs(2);

/// The leader's lock, held.
pub(super) struct Leader {
    session: Session,
}

impl Leader {
    /// Takes the lock. Returns `None` if another process holds it.
    pub(super) async fn try_take(url: &SecretString) -> Result<Option<Self>> {
        let session = Session::open(url, "leader").await?;
        if !leader_lock::try_lock(session.client()).await? {
            return Ok(None);
        }
        must_keep_sessions(url).await?;
        Ok(Some(Self { session }))
    }

    /// Waits until the session that holds the lock is lost.
    pub(super) async fn lost(&self) {
        self.session.closed().await;
    }

    /// Gives the lock back.
    pub(super) async fn release(self) {
        // Where this fails the connection is gone, and the lock with it.
        let _ = self.session.client().batch_execute("rollback").await;
    }
}
