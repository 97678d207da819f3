//! Sleeps until a captured change commits.
//!
//! Protocol: the replicator records until when it sleeps and wants to be notified, then looks once more; only
//! then it waits, and renews the time while it waits. A trigger that reads a time which has not passed
//! notifies. So a replicator that was killed costs writers nothing once the time is over. A writer that
//! looked before the time was set will not notify: if it has committed, the look after it sees its touches;
//! if not, its transaction is among those that the look's snapshot shows in progress, and as long as one of
//! these is, the wait is short. A slow jittered poll covers whatever else a lost wake-up would miss.
//!
//! Where the server allows prepared transactions, triggers never notify, as a transaction that has notified
//! cannot be prepared; all waits are then short.

use std::time::Duration;

use rand::RngExt;
use tokio::time::Instant;

use super::connect::Session;
use crate::change::Snapshot;
use crate::error::{Error, Result};
use crate::sql_template::statement;

/// How long writers notify when nobody renews it.
const SLEEP: Duration = Duration::from_secs(60);

/// The longest wait if no writer was silent when the replicator began to sleep.
const SLOW_POLL: Duration = Duration::from_secs(5);

/// The bounds of the wait while a transaction runs that may have written without notifying.
const SHORT: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(250));

/// The longest wait if triggers do not notify.
const UNNOTIFIED: Duration = Duration::from_millis(25);

/// Whether the replicator sleeps, and how long it may.
#[derive(Debug, Default)]
pub struct SleepState {
    /// When the time until which writers notify is to be renewed; `None` while they do not.
    renew_at: Option<Instant>,
    unnotified: bool,
    silent: Vec<u64>,
    short: Option<Duration>,
}

impl SleepState {
    /// Listens for notifications. Once a session.
    ///
    /// # Errors
    /// The source's.
    pub async fn listen(session: &Session) -> Result<Self> {
        let failed = |error| Error::postgres("listen for changes", error);
        session
            .client()
            .batch_execute(statement!("wake", "listen"))
            .await
            .map_err(failed)?;
        let row = session
            .client()
            .query_one(statement!("wake", "can_prepare_transactions"), &[])
            .await
            .map_err(failed)?;
        Ok(Self {
            unnotified: row.get(0),
            ..Self::default()
        })
    }

    /// Lets writers notify from now on. Returns whether they did not before: the caller must then look once
    /// more, and pass what it saw to [`SleepState::looked`], before it waits.
    ///
    /// # Errors
    /// The source's.
    pub async fn arm(&mut self, session: &Session) -> Result<bool> {
        if self.unnotified || self.renew_at.is_some_and(|at| Instant::now() < at) {
            return Ok(false);
        }
        let was_asleep = self.renew_at.is_some();
        session
            .client()
            .execute_typed(
                statement!("wake", "arm"),
                &[(&(SLEEP.as_secs() as i64), tokio_postgres::types::Type::INT8)],
            )
            .await
            .map_err(|error| Error::postgres("let writers notify", error))?;
        self.renew_at = Some(Instant::now() + SLEEP / 2);
        if was_asleep {
            return Ok(false);
        }
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

    /// Writers notify no more.
    ///
    /// # Errors
    /// The source's.
    pub async fn disarm(&mut self, session: &Session) -> Result<()> {
        if self.renew_at.take().is_some() {
            session
                .client()
                .execute_typed(statement!("wake", "disarm"), &[])
                .await
                .map_err(|error| Error::postgres("let writers notify no more", error))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_short_while_a_silent_writer_runs() {
        let mut wake = SleepState::default();
        wake.looked(&"10:12:10".parse().unwrap(), true);
        assert_eq!(wake.short, Some(SHORT.0));
        wake.looked(&"10:15:10,13".parse().unwrap(), false);
        assert_eq!(wake.short, Some(SHORT.0 * 2));
        // 10 has ended; 13 began after the time was set, and notifies.
        wake.looked(&"13:15:13".parse().unwrap(), false);
        assert_eq!(wake.short, None);
    }
}
