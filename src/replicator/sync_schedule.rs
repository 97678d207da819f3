//! The scheduled syncs. When a sync of everything ended last is noted in the store's folder, so that one that was
//! missed while the program did not run is made up for, once.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::{Timestamp, Zoned, tz::TimeZone};
use rand::RngExt;
use tokio_util::sync::CancellationToken;

use super::{ReloadableConfig, Replicator};
use crate::config::{ScheduleSettings, Settings};
use crate::control::SyncRequest;
use crate::error::Result;
use crate::reconcile::NoObserver;
use crate::schedule::{self, Schedule};

/// The file's name in the store's folder.
const FILE: &str = "last-sync";

/// The schedule that the settings describe, with a delay of its own; `None` if nothing is scheduled.
pub(super) fn schedule(settings: &ScheduleSettings) -> Result<Option<Schedule>> {
    let Some(text) = &settings.sync else {
        return Ok(None);
    };
    let most = settings.jitter.as_millis().try_into().unwrap_or(u64::MAX);
    let delay = Duration::from_millis(rand::rng().random_range(0..=most));
    let schedule = Schedule::new(text)?.delayed_by(delay);
    Ok(Some(match &settings.time_zone {
        Some(zone) => schedule.in_zone(zone.clone()),
        None => schedule,
    }))
}

impl Replicator {
    pub(super) async fn follow_schedule(&self, live: &ReloadableConfig, stop: &CancellationToken) {
        let Some(schedule) = &live.schedule else { return };
        let last = last_sync(&live.settings);
        if last.is_none() {
            // What is missed from now on counts.
            note_last_sync(&live.settings);
        }
        schedule::run_schedule(schedule, last, Zoned::now, stop, || self.sync_as_scheduled(stop)).await;
    }

    async fn sync_as_scheduled(&self, stop: &CancellationToken) {
        if self.until_resumed(stop).await {
            return;
        }
        let all = SyncRequest::default();
        let synced = tokio::select! {
            () = stop.cancelled() => return,
            synced = self.sync_and_tell_files(&all, &NoObserver) => synced,
        };
        // One that failed is not made up for: the next one comes at its time.
        note_last_sync(&self.live().settings);
        match synced {
            Ok(report) if report.success() => tracing::info!("the scheduled sync is done"),
            Ok(report) => tracing::warn!(errors = report.errors().len(), "the scheduled sync had errors"),
            Err(error) => tracing::error!("the scheduled sync failed: {error}"),
        }
    }
}

/// When a scheduled sync ended last; `None` if that is not known.
fn last_sync(settings: &Settings) -> Option<Zoned> {
    let text = std::fs::read_to_string(path(settings)).ok()?;
    let at: Timestamp = text.trim().parse().ok()?;
    Some(at.to_zoned(TimeZone::system()))
}

/// Notes that a scheduled sync has ended, or that the schedule begins now.
fn note_last_sync(settings: &Settings) {
    let path = path(settings);
    if let Err(error) = write(&path) {
        tracing::warn!(path = %path.display(), %error, "when the sync ended is not noted: one that is missed is not made up for");
    }
}

fn path(settings: &Settings) -> PathBuf {
    settings.store.path.join(FILE)
}

fn write(path: &Path) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    writeln!(file, "{}", Timestamp::now())?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}
