//! Sleeps until a captured change commits.
//!
//! Protocol: the replicator says that it may sleep, takes the wake lock, then looks once more; only then it waits. A trigger
//! that reads that it may and finds the lock taken notifies. The lock ends with the session, whatever was said. A writer
//! that looked before the lock was taken will not notify: if it has committed, the look after the lock sees its rows; if not, its transaction is among those that the look's snapshot shows in progress, and as
//! long as one of these is, the wait is short. A slow jittered poll covers whatever else a lost wake-up would miss.
//!
//! Whatever writes to the outbox by another road than the triggers keeps the same protocol: see [`call`].
//!
//! Where the server allows prepared transactions, triggers never notify, as a transaction that has notified cannot be
//! prepared; all waits are then short.

use std::time::Duration;

use rand::RngExt;
use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};

use super::capture::WAKE_LOCK;
use super::connect::Session;
use crate::change::Snapshot;
use crate::error::{Error, Result};

/// The longest wait while nothing was silent when the replicator lay down.
const SLOW_POLL: Duration = Duration::from_secs(5);

/// The bounds of the wait while a transaction runs that may have written without notifying.
const SHORT: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(250));

/// The longest wait where triggers do not notify.
const UNNOTIFIED: Duration = Duration::from_millis(25);

/// Notifies a replicator that sleeps, at the commit of the client's transaction. For who has written to the outbox itself:
/// without it, what was written would wait for the slow poll.
///
/// # Errors
/// The source's.
pub(super) async fn call(client: &Client) -> Result<()> {
    let wake_lock: [(&(dyn ToSql + Sync), Type); 1] = [(&WAKE_LOCK, Type::INT8)];
    client
        .execute_typed(
            "select case when pg_try_advisory_lock_shared($1) then pg_advisory_unlock_shared($1)::text \
                         when current_setting('max_prepared_transactions') = '0' then pg_notify('cloud_sync', '')::text end",
            &wake_lock,
        )
        .await
        .map_err(|error| Error::postgres("wake the drain", error))?;
    Ok(())
}

/// Whether the replicator sleeps, and how long it may.
#[derive(Debug, Default)]
pub struct Wake {
    asleep: bool,
    unnotified: bool,
    silent: Vec<u64>,
    short: Option<Duration>,
}

impl Wake {
    /// Listens for notifications. Once a session.
    ///
    /// # Errors
    /// The source's.
    pub async fn listen(session: &Session) -> Result<Self> {
        let failed = |error| Error::postgres("listen for changes", error);
        session
            .client()
            .batch_execute("listen cloud_sync")
            .await
            .map_err(failed)?;
        let row = session
            .client()
            .query_one("select current_setting('max_prepared_transactions') <> '0'", &[])
            .await
            .map_err(failed)?;
        Ok(Self {
            unnotified: row.get(0),
            ..Self::default()
        })
    }

    /// Takes the wake lock, so that writers notify from now on. Answers whether it was taken just now: the caller must
    /// then look once more, and tell [`Wake::looked`] what it saw, before it waits.
    ///
    /// # Errors
    /// The source's.
    pub async fn lie_down(&mut self, session: &Session) -> Result<bool> {
        if self.asleep {
            return Ok(false);
        }
        let wake_lock: [(&(dyn ToSql + Sync), Type); 1] = [(&WAKE_LOCK, Type::INT8)];
        let client = session.client();
        futures::try_join!(
            client.execute_typed("select cloud_sync.asleep(true)", &[]),
            client.execute_typed("select pg_advisory_lock($1)", &wake_lock),
        )
        .map_err(|error| Error::postgres("take the wake lock", error))?;
        self.asleep = true;
        self.silent.clear();
        self.short = None;
        Ok(true)
    }

    /// Notes the snapshot of a look that found nothing.
    pub fn looked(&mut self, snapshot: &Snapshot, first: bool) {
        if first {
            self.silent = snapshot.in_progress.clone();
        } else {
            self.silent.retain(|&xid| !snapshot.sees(xid));
        }
        if self.silent.is_empty() {
            self.short = None;
        } else {
            let next = self.short.map_or(SHORT.0, |wait| (wait * 2).min(SHORT.1));
            self.short = Some(next);
        }
    }

    /// Waits for a notification, or as long as may pass without one.
    pub async fn wait(&self, session: &Session) {
        let mut wait = self
            .short
            .unwrap_or_else(|| SLOW_POLL.mul_f64(rand::rng().random_range(0.8..1.2)));
        if self.unnotified {
            wait = wait.min(UNNOTIFIED);
        }
        tokio::select! {
            () = session.notified() => {}
            () = session.closed() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }

    /// Gives the wake lock back: writers stop notifying.
    ///
    /// # Errors
    /// The source's.
    pub async fn get_up(&mut self, session: &Session) -> Result<()> {
        if self.asleep {
            self.asleep = false;
            let wake_lock: [(&(dyn ToSql + Sync), Type); 1] = [(&WAKE_LOCK, Type::INT8)];
            let client = session.client();
            futures::try_join!(
                client.execute_typed("select cloud_sync.asleep(false)", &[]),
                client.execute_typed("select pg_advisory_unlock($1)", &wake_lock),
            )
            .map_err(|error| Error::postgres("give the wake lock back", error))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_short_while_a_silent_writer_runs() {
        let mut wake = Wake::default();
        wake.looked(&"10:12:10".parse().unwrap(), true);
        assert_eq!(wake.short, Some(SHORT.0));
        wake.looked(&"10:15:10,13".parse().unwrap(), false);
        assert_eq!(wake.short, Some(SHORT.0 * 2));
        // 10 has ended; 13 began after the lock was taken, and notifies.
        wake.looked(&"13:15:13".parse().unwrap(), false);
        assert_eq!(wake.short, None);
    }
}
