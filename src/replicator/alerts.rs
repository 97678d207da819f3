//! Watches what needs somebody, and tells it by the channels of `[alerts]`.
//!
//! It asks nobody: what it sees is what the gauges, the drain and the drift monitor noted last. A replicator
//! that stands by sees nothing; the one that leads tells. What was told is noted in the store's folder once
//! everything was sent, so that a restart tells nothing twice.

use std::convert::Infallible;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::Replicator;
use crate::alerts::{AlertChannels, AlertKind, AlertMessage, AlertMonitor, ChannelReport, Sight, Sights};
use crate::config::Settings;
use crate::control::problems::{self, DISK_SOON};
use crate::control::status::{ReplicatorState, StatusReport};
use crate::error::{Error, Result};
use crate::supervise::pause_or_stop;

/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The file's name in the store's folder.
const FILE: &str = "alerts.json";

/// A disk that was told as soon full is so until it lasts for so much longer.
const DISK_MARGIN: f64 = 86_400.0;

impl Replicator {
    /// Watches and tells, until `stop`; then it does nothing more.
    pub(super) async fn watch_alerts(&self, stop: &CancellationToken) -> Infallible {
        let mut settings = self.live.subscribe();
        while !stop.is_cancelled() {
            let live = settings.borrow_and_update().clone();
            let ended = async {
                // The sender lives as long as the replicator.
                let _ = settings.changed().await;
            };
            tokio::select! {
                () = stop.cancelled() => break,
                () = ended => {}
                () = self.tell_problems(&live.settings, stop) => {}
            }
        }
        std::future::pending().await
    }

    /// Watches and tells with these settings; without end if there is nothing to tell by.
    async fn tell_problems(&self, settings: &Settings, stop: &CancellationToken) {
        // The settings were tried when they were read.
        let channels = AlertChannels::new(&settings.alerts).ok();
        let Some(mut channels) = channels.filter(|channels| !channels.is_empty()) else {
            return std::future::pending().await;
        };
        let memory = ToldAlerts(settings.store.path.join(FILE));
        let mut monitor = memory.read();
        let mut noted = monitor.clone();
        while !pause_or_stop(LOOK_EVERY, stop).await {
            let now = Timestamp::now();
            let status = self.known_status();
            let sights = sights(&status, self.lag_problem(), |kind| monitor.is_told(kind));
            let messages = monitor.step(now, settings.alerts.hold, &sights);
            for message in &messages {
                tracing::info!(kind = message.kind.name(), "alert: {}", message.text);
            }
            channels.queue(&messages);
            channels.send_waiting(&source_name(&status)).await;
            if monitor != noted && channels.have_sent_all() {
                memory.write(&monitor);
                noted = monitor.clone();
            }
        }
    }

    /// Why a change waits for too long, if one does; not known while somebody has paused everything, or while
    /// this replicator stands by.
    fn lag_problem(&self) -> Sight {
        if self.state.pauses().all.is_some() || self.standby().is_some() {
            return Sight::Unknown;
        }
        match self.overdue() {
            Some(reason) => Sight::Problem(problems::sentence_case(&reason)),
            None => Sight::Fine,
        }
    }
}

/// Sends a test by each channel of these settings.
///
/// # Errors
/// A configuration error: a channel cannot be used, or none is set.
pub(crate) async fn test_alerts(settings: &Settings) -> Result<Vec<ChannelReport>> {
    let channels = AlertChannels::new(&settings.alerts)?;
    if channels.is_empty() {
        return Err(Error::config(
            "send a test alert",
            "neither a webhook nor an e-mail address is set",
        )
        .remedy("set alerts.webhook, or alerts.email_to, alerts.email_from and alerts.smtp_url"));
    }
    let source = settings.source.source_id.as_deref().unwrap_or("cloud-sync");
    Ok(channels.send(source, &AlertMessage::test(Timestamp::now())).await)
}

/// The site's name in messages.
fn source_name(status: &StatusReport) -> String {
    status
        .source
        .id
        .clone()
        .unwrap_or_else(|| "cloud-sync".to_owned())
}

/// What is seen of each kind, by the same questions as the page's sentence. `is_told` says whether a problem of
/// a kind was told and is not over.
fn sights(status: &StatusReport, lag: Sight, is_told: impl Fn(AlertKind) -> bool) -> Sights {
    let mut sights = Sights::from([(AlertKind::Lag, lag)]);
    let key = match status.state {
        ReplicatorState::KeyRefused => Sight::Problem(problems::key_refused(status)),
        ReplicatorState::Replicating => Sight::Fine,
        _ => Sight::Unknown,
    };
    sights.insert(AlertKind::KeyRefused, key);
    // What only the source can tell.
    let knows = status.source.reachable == Some(true) && status.state != ReplicatorState::Standby;
    let seen = |problem: Option<String>| match problem {
        _ if !knows => Sight::Unknown,
        Some(text) => Sight::Problem(text),
        None => Sight::Fine,
    };
    sights.insert(AlertKind::Quarantine, seen(problems::quarantine(status)));
    sights.insert(AlertKind::Drift, seen(problems::broken_capture(status)));
    let margin = if is_told(AlertKind::Disk) {
        DISK_MARGIN
    } else {
        0.0
    };
    sights.insert(AlertKind::Disk, seen(problems::disk(status, DISK_SOON + margin)));
    sights.insert(AlertKind::FileMissing, seen(problems::missing_files(status)));
    sights.insert(AlertKind::FileFailing, seen(problems::failed_files(status)));
    sights
}

/// The file that remembers what was told.
struct ToldAlerts(PathBuf);

impl ToldAlerts {
    /// What was told; nothing if the file is not there, or cannot be read: then some may be told again.
    fn read(&self) -> AlertMonitor {
        let text = std::fs::read_to_string(&self.0).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    fn write(&self, monitor: &AlertMonitor) {
        if let Err(error) = self.try_write(monitor) {
            tracing::warn!(path = %self.0.display(), %error, "what was told is not noted: a restart may tell it again");
        }
    }

    fn try_write(&self, monitor: &AlertMonitor) -> std::io::Result<()> {
        let folder = self.0.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(&serde_json::to_vec(monitor)?)?;
        file.persist(&self.0).map_err(|error| error.error)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::status::{CaptureProblem, GrowthStatus, LagStatus};

    type ChangeOfStatus = Box<dyn Fn(&mut StatusReport)>;

    fn well() -> StatusReport {
        let mut status = StatusReport::unknown(ReplicatorState::Replicating);
        status.source.reachable = Some(true);
        status.quarantine = Some(0);
        status.lag = Some(LagStatus {
            changes: 5,
            age_seconds: 900.0,
        });
        status
    }

    fn seen(status: &StatusReport, is_told: bool) -> Vec<AlertKind> {
        let sights = sights(status, Sight::Fine, |_| is_told);
        let problems = sights
            .into_iter()
            .filter(|(_, sight)| matches!(sight, Sight::Problem(_)));
        problems.map(|(kind, _)| kind).collect()
    }

    #[test]
    fn each_kind_is_seen_in_the_status_and_nothing_in_one_that_is_well() {
        assert_eq!(seen(&well(), false), []);
        let disk_lasts = |days: f64| {
            move |status: &mut StatusReport| {
                status.outbox_growth = Some(GrowthStatus {
                    full_in_seconds: Some(days * 86_400.0),
                    ..GrowthStatus::default()
                });
            }
        };
        let broken = |broken| CaptureProblem {
            entity: "rooms".into(),
            broken,
            reason: "a trigger is gone".into(),
        };
        let table: Vec<(ChangeOfStatus, &[AlertKind])> = vec![
            (
                Box::new(|status| status.quarantine = Some(3)),
                &[AlertKind::Quarantine],
            ),
            (
                Box::new(move |status| status.capture = vec![broken(true)]),
                &[AlertKind::Drift],
            ),
            (Box::new(move |status| status.capture = vec![broken(false)]), &[]),
            (Box::new(disk_lasts(2.5)), &[AlertKind::Disk]),
            (Box::new(disk_lasts(3.5)), &[]),
            (
                Box::new(move |status| {
                    disk_lasts(0.5)(status);
                    // A burst that is delivered while it comes.
                    status.lag = None;
                }),
                &[],
            ),
            (
                Box::new(move |status| {
                    disk_lasts(0.02)(status);
                    status.lag = None;
                }),
                &[AlertKind::Disk],
            ),
            (
                Box::new(|status| status.files.failed = 1),
                &[AlertKind::FileFailing],
            ),
            (
                Box::new(|status| (status.files.missing, status.files.missing_seconds) = (1, Some(400.0))),
                &[AlertKind::FileMissing],
            ),
            (
                Box::new(|status| (status.files.missing, status.files.missing_seconds) = (1, Some(20.0))),
                &[],
            ),
            (
                Box::new(|status| status.state = ReplicatorState::KeyRefused),
                &[AlertKind::KeyRefused],
            ),
        ];
        for (change, kinds) in table {
            let mut status = well();
            change(&mut status);
            assert_eq!(seen(&status, false), kinds, "{status:#?}");
            // What only the source can tell is not known without it.
            status.source.reachable = Some(false);
            assert!(seen(&status, false).len() <= usize::from(status.state == ReplicatorState::KeyRefused));
        }
        let mut status = well();
        disk_lasts(3.5)(&mut status);
        assert_eq!(
            seen(&status, true),
            [AlertKind::Disk],
            "it needs a margin to be over"
        );
    }
}
