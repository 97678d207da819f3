//! Syncs of a replicator that runs: one at a time, with its progress and its result for the status.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use super::{PATIENCE, Replicator, connect, reconcile};
use crate::config::Settings;
use crate::control::SyncRequest;
use crate::control::status::{LastSync, RunningSync};
use crate::drain::AcceptedKeyRecorder;
use crate::error::{Error, Result};
use crate::reconcile::Observer;
use crate::reconcile::report::SyncReport;
use crate::source::connect::Session;
use crate::source::{file_records, kept_files};

/// Files that are not in the cloud, told in a report at most.
const FILES_TOLD: i64 = 100;

impl Replicator {
    /// Compares with the cloud and pushes what it lacks, as the running drain's work.
    ///
    /// # Errors
    /// The source's or the cloud's before the first entity; later ones are in the report.
    pub async fn sync(&self, request: &SyncRequest, observer: &dyn Observer) -> Result<SyncReport> {
        self.sync_recorded(request, &self.state.record(), observer).await
    }

    /// The same, and tells the files that are not in the cloud.
    pub(super) async fn sync_and_tell_files(
        &self,
        request: &SyncRequest,
        observer: &dyn Observer,
    ) -> Result<SyncReport> {
        let mut report = self.sync(request, observer).await?;
        let live = self.live();
        if live
            .settings
            .catalogue
            .entities()
            .iter()
            .all(|entity| entity.files.is_empty())
        {
            return Ok(report);
        }
        let rescanned = async {
            while self.state.files.rescan_is_pending() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        // That a media root hangs is said elsewhere.
        let _ = tokio::time::timeout(PATIENCE, rescanned).await;
        tell_files(&live.settings, &mut report).await?;
        Ok(report)
    }

    /// The same as [`Replicator::sync`], with a report of what was accepted since `recording` began.
    pub(super) async fn sync_recorded(
        &self,
        request: &SyncRequest,
        recording: &AcceptedKeyRecorder,
        observer: &dyn Observer,
    ) -> Result<SyncReport> {
        let _one = self.syncing.lock().await;
        let live = self.live();
        let catalogue = &live.settings.catalogue;
        let pauses = self.state.pauses();
        pauses.must_flow("sync")?;
        // What is pushed of a paused entity would wait.
        let (paused, entity_indexes): (Vec<_>, Vec<_>) = catalogue
            .select(&request.entities)?
            .into_iter()
            .partition(|&entity_index| pauses.of_entity(&catalogue[entity_index].name).is_some());
        let observer = &self.sync_progress.begin(observer);
        let synced = async {
            let reconcile = reconcile(&live.settings, &live.cloud, &self.state).await?;
            let session = Session::open(live.settings.require_database_url()?, "files to look at").await?;
            file_records::make_all_due(session.client(), request.force).await?;
            if request.force {
                let entities = entity_indexes
                    .iter()
                    .map(|&entity| &live.settings.catalogue[entity]);
                let names: Vec<&str> = entities.map(|entity| entity.name.as_str()).collect();
                kept_files::ask_again(session.client(), Some(&names)).await?;
            }
            self.state.files.request_rescan();
            let mut report = reconcile
                .sync(&entity_indexes, request.force, recording, observer)
                .await;
            let is_asked_for = !request.entities.is_empty();
            for name in paused.iter().map(|&entity_index| &catalogue[entity_index].name) {
                match pauses.of_entity(name).filter(|_| is_asked_for) {
                    Some(pause) => report.fail(name, format!("it is {pause}")),
                    None => tracing::info!(entity = name, "it is paused, and so is not compared"),
                }
            }
            Ok(report)
        };
        let synced: Result<SyncReport> = tokio::select! {
            synced = synced => synced,
            () = self.stopping.cancelled() => Err(Error::local(
                "sync",
                std::io::Error::other("the replicator was asked to end"),
            )
            .remedy("ask again when it runs")),
        };
        let metrics = &self.state.metrics;
        let last = match &synced {
            Ok(report) => LastSync {
                finished_at: Timestamp::now(),
                success: report.success(),
                summary: report.summary(),
                errors: report.errors().to_vec(),
            },
            Err(error) => LastSync {
                finished_at: Timestamp::now(),
                success: false,
                summary: SyncReport::new(&live.settings.catalogue).summary(),
                errors: vec![error.to_string()],
            },
        };
        if last.success {
            metrics.syncs_done.inc();
        } else {
            metrics.syncs_failed.inc();
        }
        *self.last_sync.lock().unwrap_or_else(PoisonError::into_inner) = Some(last);
        synced
    }
}

/// Adds the files to a report that are missing, or that the cloud does not take.
pub(super) async fn tell_files(settings: &Settings, report: &mut SyncReport) -> Result<()> {
    let session = connect(settings, "files").await?;
    for (path, why) in file_records::not_taken(session.client(), FILES_TOLD).await? {
        report.error(format!("Failed to upload {path}: {why}"));
    }
    Ok(())
}

/// How far the running sync has come, and how many rows the last ones have compared.
#[derive(Debug, Default)]
pub(super) struct SyncProgress(Mutex<ProgressState>);

#[derive(Debug, Default)]
struct ProgressState {
    running: Option<RunningSync>,
    /// Rows of each entity that a sync was about to compare, by its name.
    compared: BTreeMap<String, u64>,
}

impl SyncProgress {
    /// Follows a sync that begins now, until what this returns is dropped.
    fn begin<'a>(&'a self, observer: &'a dyn Observer) -> FollowedSync<'a> {
        self.locked().running = Some(RunningSync {
            began_at: Timestamp::now(),
            entity: None,
            rows: 0,
            compared: 0,
            pushed: 0,
        });
        FollowedSync {
            progress: self,
            observer,
        }
    }

    /// The sync that runs now.
    pub(super) fn running(&self) -> Option<RunningSync> {
        self.locked().running.clone()
    }

    /// How many rows of each entity were within its retention when a sync last compared it, by its name.
    pub(super) fn compared(&self) -> BTreeMap<String, u64> {
        self.locked().compared.clone()
    }

    fn locked(&self) -> MutexGuard<'_, ProgressState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An observer that notes the progress, and tells another one.
struct FollowedSync<'a> {
    progress: &'a SyncProgress,
    observer: &'a dyn Observer,
}

impl Observer for FollowedSync<'_> {
    fn begin(&self, entity: &str, rows: u64) {
        let mut state = self.progress.locked();
        state.compared.insert(entity.to_owned(), rows);
        if let Some(running) = &mut state.running {
            (running.entity, running.rows, running.compared) = (Some(entity.to_owned()), rows, 0);
        }
        drop(state);
        self.observer.begin(entity, rows);
    }

    fn advance(&self, compared: u64, pushed: u64) {
        if let Some(running) = &mut self.progress.locked().running {
            running.compared += compared;
            running.pushed += pushed;
        }
        self.observer.advance(compared, pushed);
    }

    fn end(&self, entity: &str) {
        if let Some(running) = &mut self.progress.locked().running {
            running.entity = None;
        }
        self.observer.end(entity);
    }
}

impl Drop for FollowedSync<'_> {
    fn drop(&mut self) {
        self.progress.locked().running = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::NoObserver;

    #[test]
    fn progress_is_seen_while_a_sync_runs_and_not_after_it() {
        let progress = SyncProgress::default();
        let sync = progress.begin(&NoObserver);
        sync.begin("rooms", 10);
        sync.advance(4, 1);
        sync.end("rooms");
        sync.begin("cameras", 7);
        sync.advance(3, 2);
        let running = progress.running().unwrap();
        assert_eq!(running.entity.as_deref(), Some("cameras"));
        assert_eq!((running.rows, running.compared, running.pushed), (7, 3, 3));
        drop(sync);
        assert!(progress.running().is_none());
        assert_eq!(progress.compared().get("rooms"), Some(&10));
    }
}
