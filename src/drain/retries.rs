//! Touches rows again that were not sent for good: rows in quarantine whose requests failed, and rows whose
//! request got no answer.
//!
//! Invariant: a row is touched again only while the cloud answers, and never all of them at once: should they
//! fail again, each costs a request of its own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::described_tables::DescribedTables;
use super::handshake::Handshake;
use super::parents::Parents;
use crate::catalogue::Catalogue;
use crate::error::Result;
use crate::quarantine;
use crate::source::connect::Session;
use crate::source::{sent, touch};

/// Failing rows that are touched again at once.
const FAILING_CHUNK: i64 = 20;

/// The same after one of them was accepted unchanged.
const MENDED_CHUNK: i64 = 500;

/// Rows without an answer that are touched again at once.
const UNANSWERED_CHUNK: i64 = 5_000;

/// When more may be due than was touched.
const SOON: Duration = Duration::from_secs(1);

/// Rows that wait to be tried again.
pub(super) struct Retries {
    session: Arc<Session>,
    catalogue: Arc<Catalogue>,
    handshake: Arc<Handshake>,
    parents: Arc<Parents>,
    plan: Mutex<RetryPlan>,
    replanned: Notify,
}

struct RetryPlan {
    /// When rows are due next; `None` if nothing is known to wait.
    at: Option<Instant>,
    /// Whether a row that had failed was accepted unchanged, since rows were last touched again.
    mended: bool,
    counts: Option<QuarantineCounts>,
}

/// How many rows are in quarantine for another reason than a refusal.
#[derive(Debug, Clone, Copy)]
struct QuarantineCounts {
    /// Those whose requests failed, and those that an operator has put there.
    failing: i64,
    /// Those that an operator has put there.
    by_hand: i64,
}

impl Retries {
    pub(super) fn new(
        session: Arc<Session>,
        catalogue: Arc<Catalogue>,
        handshake: Arc<Handshake>,
        parents: Arc<Parents>,
    ) -> Self {
        Self {
            session,
            catalogue,
            handshake,
            parents,
            // What waits is not known yet.
            plan: Mutex::new(RetryPlan {
                at: Some(Instant::now()),
                mended: false,
                counts: None,
            }),
            replanned: Notify::new(),
        }
    }

    fn plan(&self) -> MutexGuard<'_, RetryPlan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has rows tried again at that time, or earlier.
    pub(super) fn no_later_than(&self, at: Instant) {
        let mut plan = self.plan();
        plan.at = Some(plan.at.map_or(at, |before| before.min(at)));
        drop(plan);
        self.replanned.notify_one();
    }

    /// Notes that the cloud has accepted a row unchanged that had failed: more are tried at once.
    pub(super) fn note_mended(&self) {
        self.plan().mended = true;
        self.no_later_than(Instant::now());
    }

    /// Notes that so many more rows go into quarantine because their requests failed.
    pub(super) fn note_failing(&self, rows: i64) {
        if let Some(counts) = &mut self.plan().counts {
            counts.failing += rows;
        }
        self.no_later_than(Instant::now() + quarantine::FIRST_WAIT);
    }

    /// Notes the tables as they are.
    pub(super) fn note_schemas(&self, schemas: &Arc<DescribedTables>) {
        self.parents.note_schemas(schemas);
    }

    /// Whether an operator has put rows in quarantine, or that is not known yet.
    pub(super) fn has_any_by_hand(&self) -> bool {
        self.plan().counts.is_none_or(|counts| counts.by_hand > 0)
    }

    /// How many rows are in quarantine for another reason than a refusal, as far as that is known.
    pub(super) fn known_failing(&self) -> i64 {
        self.plan().counts.map_or(0, |counts| counts.failing)
    }

    /// How many rows are in quarantine for another reason than a refusal.
    ///
    /// # Errors
    /// The source's.
    pub(super) async fn failing(&self) -> Result<i64> {
        if self.plan().counts.is_none() {
            let due = quarantine::due(self.session.client(), 0).await?;
            self.plan().counts.get_or_insert(QuarantineCounts {
                failing: due.total,
                by_hand: due.by_hand,
            });
        }
        Ok(self.known_failing())
    }

    /// Touches what is due, if it is time to look.
    ///
    /// # Errors
    /// The source's.
    pub(super) async fn retry_when_due(&self) -> Result<()> {
        if self.plan().at.is_some_and(|at| at <= Instant::now()) {
            self.retry_once().await?;
        }
        Ok(())
    }

    /// Touches what is due.
    ///
    /// # Errors
    /// The source's.
    pub(super) async fn retry_once(&self) -> Result<()> {
        let mended = {
            let mut plan = self.plan();
            plan.at = None;
            std::mem::take(&mut plan.mended)
        };
        self.touch_unanswered().await?;
        self.touch_failing(if mended { MENDED_CHUNK } else { FAILING_CHUNK })
            .await
    }

    /// Touches the rows whose requests can no longer arrive.
    async fn touch_unanswered(&self) -> Result<()> {
        let client = self.session.client();
        loop {
            let (rows, next) = sent::overdue(client, UNANSWERED_CHUNK).await?;
            touch::rows(client, &self.catalogue, &rows).await?;
            sent::answered(client, &rows).await?;
            if (rows.len() as i64) < UNANSWERED_CHUNK {
                self.due_in(next);
                return Ok(());
            }
        }
    }

    /// Touches failing rows whose time has come.
    async fn touch_failing(&self, chunk: i64) -> Result<()> {
        let client = self.session.client();
        let due = quarantine::due(client, chunk).await?;
        self.parents.send_lacking(&due.rows).await?;
        touch::rows(client, &self.catalogue, &due.rows).await?;
        quarantine::postpone(client, &due.rows).await?;
        self.plan().counts = Some(QuarantineCounts {
            failing: due.total,
            by_hand: due.by_hand,
        });
        if due.rows.len() as i64 == chunk {
            self.no_later_than(Instant::now() + SOON);
        } else {
            self.due_in(due.next);
        }
        Ok(())
    }

    fn due_in(&self, seconds: Option<f64>) {
        if let Some(seconds) = seconds {
            self.no_later_than(Instant::now() + Duration::from_secs_f64(seconds.clamp(0.1, 3600.0)));
        }
    }

    /// Touches what is due, at its time and with each answer of the cloud, until `stop`.
    ///
    /// # Errors
    /// The source's.
    pub(super) async fn run(&self, stop: &CancellationToken) -> Result<()> {
        let mut answers = self.handshake.answers();
        answers.mark_changed();
        loop {
            let at = self.plan().at;
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                // The handshake lives as long as this stage.
                _ = answers.changed() => {}
                () = tokio::time::sleep_until(at.unwrap_or_else(Instant::now)), if at.is_some() => {}
                () = self.replanned.notified() => continue,
            }
            if answers.borrow_and_update().is_some() {
                self.retry_once().await?;
            } else {
                // The cloud is away: its next answer comes first.
                self.plan().at = None;
            }
        }
    }
}
