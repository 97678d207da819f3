//! Backfill: pushes the rows that stood before capture, within each entity's window, once.
//!
//! It goes on where it broke off, since how far each entity has come is kept in the source database. To a server that
//! orders by position the rows go directly, at position 0, while changes stream beside them: there they fill gaps and lose
//! against any change. To any other server, which would take an older image for a newer one, they are captured anew.

use std::time::Duration;

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::report::PerEntity;
use super::{Observer, Reconcile, short};
use crate::abort;
use crate::batch::{Batch, Fate};
use crate::drain::wire_schema;
use crate::error::{Class, Result};
use crate::existence::Held;
use crate::media;
use crate::quarantine;
use crate::retry::Backoff;
use crate::source::backfill::{self as read, Progress, Read};
use crate::source::recapture;

/// Rows and bytes of one page.
const PAGE_ROWS: usize = 5_000;
const PAGE_BYTES: usize = 4 * 1024 * 1024;

/// Which rows of each entity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// Those within the entity's own window.
    Window,
    /// Those of the last days, where the entity has a window.
    Days(u32),
    /// All.
    All,
}

/// What a backfill did.
#[derive(Debug, Serialize)]
pub struct BackfillReport {
    /// Whether there was no error.
    pub success: bool,
    /// Rows pushed by this run and the earlier ones that it went on from, by entity.
    pub pushed: PerEntity<u64>,
    /// Rows that the cloud held already, by entity.
    pub held: PerEntity<u64>,
    /// What went wrong: `Failed to backfill cameras: …`.
    pub errors: Vec<String>,
}

impl Reconcile {
    /// Backfills the entities at `places`, parents first. `restart` forgets how far earlier runs came.
    pub async fn backfill(
        &self,
        places: &[usize],
        span: Span,
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
        for &place in places {
            let entity = &self.catalogue.entities()[place];
            let days = match (span, &entity.window) {
                (Span::Window, Some(window)) => Some(window.days),
                (Span::Days(days), Some(_)) => Some(days),
                _ => None,
            };
            let failed =
                |error: crate::error::Error| format!("Failed to backfill {}: {}", entity.name, short(&error));
            match self.backfill_one(place, days, restart, observer, shutdown).await {
                Ok(done) => {
                    *report.pushed.at(place) = done.pushed;
                    *report.held.at(place) = done.held;
                    if done.refused > 0 {
                        report.errors.push(format!(
                            "Failed to backfill {}: {} rows were refused and are in quarantine",
                            entity.name, done.refused
                        ));
                    }
                }
                Err(error) => report.errors.push(failed(error)),
            }
            observer.end(&entity.name);
            if shutdown.is_cancelled() {
                report
                    .errors
                    .push("stopped; run the same backfill again, and it goes on where it stopped".into());
                break;
            }
        }
        report.success = report.errors.is_empty();
        report
    }

    async fn backfill_one(
        &self,
        place: usize,
        days: Option<u32>,
        restart: bool,
        observer: &dyn Observer,
        shutdown: &CancellationToken,
    ) -> Result<Done> {
        let (entity, table) = (&self.catalogue.entities()[place], &self.tables[place]);
        let client = self.session.client();
        self.must_fit(place).await?;
        let mut progress = if restart {
            Progress::default()
        } else {
            read::progress(client, entity, days).await?
        };
        let mut done = Done {
            pushed: progress.pushed,
            ..Done::default()
        };
        let total = read::count(client, entity, table, days).await?;
        observer.begin(&entity.name, total);
        if progress.finished {
            observer.advance(total, 0);
            return Ok(done);
        }
        observer.advance(progress.pushed.min(total), 0);
        if self.capabilities.schema {
            self.cloud.put_schema(&wire_schema(entity, table)).await?;
        }
        let held = Held::learn(&self.cloud, place, days.map(|days| days + 1), None).await?;
        let mut rows = PAGE_ROWS / 10;
        while !shutdown.is_cancelled() {
            let after = progress.after.as_deref();
            let page = read::rows(client, place, entity, table, days, after, rows, Read::Rows).await?;
            let looked = page.len();
            let bytes: usize = page.iter().map(crate::change::Change::bytes).sum();
            if let Some(last) = page.last() {
                progress.after = Some(last.key.to_string());
            }
            let lacking: Vec<_> = page
                .into_iter()
                .filter(|change| !held.contains(&change.key))
                .collect();
            done.held += (looked - lacking.len()) as u64;
            let count = lacking.len() as u64;
            if self.capabilities.changes {
                let mut batch = Batch::new(lacking);
                media::attach_urls(client, &self.media_root, &self.catalogue, &mut batch).await?;
                self.persist(&mut batch, shutdown).await?;
                if !batch.pending().is_empty() {
                    break;
                }
                quarantine::settle(client, &self.catalogue, &batch).await?;
                self.note_files(&batch).await?;
                done.refused += batch.refused().count() as u64;
                done.pushed += batch.count(&Fate::Accepted) as u64;
            } else {
                let keys: Vec<String> = lacking.iter().map(|change| change.key.to_string()).collect();
                let mut transaction = 0;
                for chunk in keys.chunks(recapture::CHUNK) {
                    let captured =
                        recapture::rows(client, entity, table, self.attached[place].id, chunk).await?;
                    transaction = transaction.max(captured.transaction);
                }
                if transaction > 0
                    && let Err(reason) = self.pulse.settled(transaction, self.patience).await
                {
                    return Err(crate::error::Error::new(
                        crate::error::Kind::CloudUnreachable,
                        format!("backfill {}", entity.name),
                        reason,
                    ));
                }
                done.pushed += count;
            }
            abort::point("amid a backfill");
            progress.pushed = done.pushed;
            progress.finished = looked < rows;
            read::keep(client, entity, days, &progress).await?;
            abort::point("after a page of a backfill");
            observer.advance(looked as u64, count);
            if progress.finished {
                break;
            }
            // The next page is as long as its bytes allow, going by this one.
            rows = (PAGE_BYTES / (bytes / looked.max(1)).max(1)).clamp(1, PAGE_ROWS);
        }
        Ok(done)
    }

    /// Notes the files that the page's rows name. A row whose file was uploaded meanwhile is captured anew.
    async fn note_files(&self, batch: &Batch) -> Result<()> {
        let client = self.session.client();
        let found = media::note_references(client, &self.media_root, &self.catalogue, batch).await?;
        for (place, key) in found.outdated {
            let (entity, table) = (&self.catalogue.entities()[place], &self.tables[place]);
            recapture::rows(client, entity, table, self.attached[place].id, &[key]).await?;
        }
        if found.wanted {
            self.pulse.files_wanted.notify_one();
        }
        Ok(())
    }

    /// Delivers a page, through the cloud's absences up to this pass's patience.
    async fn persist(&self, batch: &mut Batch, shutdown: &CancellationToken) -> Result<()> {
        let mut backoff = Backoff::within(Duration::from_millis(200), Duration::from_secs(10));
        let mut waited = Duration::ZERO;
        while !batch.pending().is_empty() {
            let Err(failure) = self.cloud.deliver(self.capabilities, &self.origin, batch).await else {
                return Ok(());
            };
            let wait = backoff.next(failure.retry_after());
            waited += wait;
            if failure.error().class() != Class::Retry || waited > self.patience {
                return Err(failure.into());
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = shutdown.cancelled() => return Ok(()),
            }
        }
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Done {
    pushed: u64,
    held: u64,
    refused: u64,
}
