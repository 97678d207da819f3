//! Backfill: pushes the rows that were there before capture, within each entity's retention, once.
//!
//! It reads each table page by page and touches the rows that the cloud does not hold; the drain delivers
//! them among the other changes. The source database keeps the progress of each entity, so an interrupted
//! backfill continues where it was. A page counts as done when the drain has settled the rows that were
//! touched up to there.

use crate::catalogue::EntityIndex;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::report::PerEntity;
use super::touched::TouchedRows;
use super::{Observer, Reconcile, report_text};
use crate::abort;
use crate::drain::wire_schema;
use crate::error::Result;
use crate::source::backfill_progress::BackfillProgress;
use crate::source::pages::{self, ColumnsToRead, RowPages};

/// Rows that are touched before the progress is saved.
const AT_ONCE: usize = 5_000;

/// Which rows of each entity are pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowSpan {
    /// The rows within the entity's retention.
    Retention,
    /// The rows of the last days, if the entity has a retention.
    Days(u32),
    /// All rows.
    All,
}

/// What a backfill did.
#[derive(Debug, Serialize)]
pub struct BackfillReport {
    /// Whether there was no error.
    pub success: bool,
    /// Rows that this run and the earlier runs that it continued have pushed, by entity.
    pub pushed: PerEntity<u64>,
    /// Rows that the cloud already held, by entity.
    pub held: PerEntity<u64>,
    /// What went wrong: `Failed to backfill cameras: …`.
    pub errors: Vec<String>,
}

impl Reconcile {
    /// Backfills the entities at `entity_indexes`, parents first. `restart` ignores the progress of earlier
    /// runs.
    pub async fn backfill(
        &self,
        entity_indexes: &[EntityIndex],
        span: RowSpan,
        restart: bool,
        observer: &dyn Observer,
        shutdown: &CancellationToken,
    ) -> BackfillReport {
        let mut report = BackfillReport {
            success: true,
            pushed: PerEntity::new(&self.catalogue),
            held: PerEntity::new(&self.catalogue),
            errors: Vec::new(),
        };
        for &entity_index in entity_indexes {
            let entity = &self.catalogue[entity_index];
            let days = match (span, &entity.retention) {
                (RowSpan::Retention, Some(window)) => Some(window.days),
                (RowSpan::Days(days), Some(_)) => Some(days),
                _ => None,
            };
            let mut done = FinishedEntity::default();
            let ended = self
                .backfill_entity(entity_index, days, restart, observer, shutdown, &mut done)
                .await;
            *report.pushed.at(entity_index) = done.pushed;
            *report.held.at(entity_index) = done.held;
            if done.refused > 0 {
                report.errors.push(format!(
                    "Failed to backfill {}: {} rows were refused and are in quarantine",
                    entity.name, done.refused
                ));
            }
            if let Err(error) = ended {
                report.errors.push(format!(
                    "Failed to backfill {}: {}",
                    entity.name,
                    report_text(&error)
                ));
            }
            observer.end(&entity.name);
            if shutdown.is_cancelled() {
                report
                    .errors
                    .push("stopped; run the same backfill again, and it continues where it stopped".into());
                break;
            }
        }
        report.success = report.errors.is_empty();
        report
    }

    async fn backfill_entity(
        &self,
        entity_index: EntityIndex,
        days: Option<u32>,
        restart: bool,
        observer: &dyn Observer,
        shutdown: &CancellationToken,
        done: &mut FinishedEntity,
    ) -> Result<()> {
        let (entity, table) = (&self.catalogue[entity_index], &self.tables[entity_index.0]);
        let client = self.session.client();
        self.check_key_fits(entity_index).await?;
        let mut progress = if restart {
            BackfillProgress::default()
        } else {
            BackfillProgress::load(client, &entity.name, days).await?
        };
        done.pushed = progress.pushed;
        let total = pages::count(client, entity, table, days).await?;
        observer.begin(&entity.name, total);
        if progress.finished {
            observer.advance(total, 0);
            return Ok(());
        }
        observer.advance(progress.pushed.min(total), 0);
        if self.capabilities.schema {
            self.cloud
                .put_schema(&self.origin, &wire_schema(entity, table))
                .await?;
        }
        let mut known = self.learn_known_rows(entity_index, days, None).await?;
        let mut touched = TouchedRows::new(self, entity_index);
        let mut pages = RowPages::open(client, entity, table, days, ColumnsToRead::Keys).await?;
        for leaf in pages::leaves(client, table).await? {
            let Some(mut from) = progress.first_page(&leaf) else {
                continue;
            };
            while let Some((rows, next)) = pages.next(&leaf, from).await? {
                if shutdown.is_cancelled() {
                    return Ok(());
                }
                from = next;
                let count = rows.len();
                // A row that does not meet the entity's condition is skipped: a sync deletes it from the
                // cloud.
                let rows = rows.into_iter().filter(|row| row.met).collect();
                let missing = self
                    .keys_to_touch(entity_index, rows, None, false, &mut known)
                    .await?;
                done.held += (count - missing.len()) as u64;
                observer.advance(count as u64, missing.len() as u64);
                touched.add(missing).await?;
                progress.advance_to(&leaf, from);
                if touched.waiting() >= AT_ONCE {
                    self.settle_and_save(entity_index, days, &mut progress, &mut touched, done)
                        .await?;
                }
            }
        }
        progress.finished = true;
        self.settle_and_save(entity_index, days, &mut progress, &mut touched, done)
            .await
    }

    /// Waits until the touched rows are settled, then saves the entity's progress.
    async fn settle_and_save(
        &self,
        entity_index: EntityIndex,
        days: Option<u32>,
        progress: &mut BackfillProgress,
        touched: &mut TouchedRows<'_>,
        done: &mut FinishedEntity,
    ) -> Result<()> {
        let count = touched.waiting() as u64;
        let refused = touched.settle().await?.rows.len() as u64;
        done.refused += refused;
        done.pushed += count.saturating_sub(refused);
        progress.pushed = done.pushed;
        abort::point("amid a backfill");
        let entity = &self.catalogue[entity_index].name;
        progress.save(self.session.client(), entity, days).await?;
        abort::point("after a page of a backfill");
        Ok(())
    }
}

#[derive(Debug, Default)]
struct FinishedEntity {
    pushed: u64,
    held: u64,
    refused: u64,
}
