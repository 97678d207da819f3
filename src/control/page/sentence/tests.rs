//! A table of what the sentence says of each status.

use super::*;
use crate::control::status::{CaptureProblem, GrowthStatus, LastSync};

fn now() -> Timestamp {
    "2026-11-26T14:00:00Z".parse().unwrap()
}

fn before(seconds: i64) -> Option<Timestamp> {
    Some(Timestamp::from_second(now().as_second() - seconds).unwrap())
}

/// All is in the cloud, and a sync has proved it.
fn well() -> StatusReport {
    let mut status = StatusReport::unknown(ReplicatorState::Replicating);
    status.running_since = before(86_400);
    status.state_since = before(86_400);
    status.source.reachable = Some(true);
    status.cloud.reachable = Some(true);
    status.lag = Some(LagStatus::default());
    status.last_accepted_at = before(3);
    status.quarantine = Some(0);
    status.last_sync = Some(LastSync {
        finished_at: before(600).unwrap(),
        success: true,
        summary: [].into_iter().collect(),
        errors: Vec::new(),
    });
    status
}

fn pause(seconds: i64) -> Option<Pause> {
    let (since, by) = (before(seconds)?, "anna".to_owned());
    Some(Pause { since, by })
}

/// The cloud is away since some seconds, and some changes wait.
fn away(seconds: i64, changes: u64) -> StatusReport {
    let mut status = well();
    status.state = ReplicatorState::BackingOff;
    status.state_since = before(seconds);
    status.cloud.reachable = Some(false);
    status.reason = Some("cannot reach the cloud: connection refused".into());
    status.lag = Some(LagStatus {
        changes,
        age_seconds: seconds as f64,
    });
    status
}

fn waiting(changes: u64, age_seconds: f64) -> StatusReport {
    let mut status = well();
    status.lag = Some(LagStatus { changes, age_seconds });
    status
}

fn with(mut status: StatusReport, change: impl FnOnce(&mut StatusReport)) -> StatusReport {
    change(&mut status);
    status
}

fn problem(broken: bool) -> CaptureProblem {
    CaptureProblem {
        entity: "rooms".into(),
        broken,
        reason: "cannot capture rooms: a trigger is gone; run `cloud-sync init`".into(),
    }
}

#[test]
fn the_sentence_is_the_worst_that_is_true() {
    let unsynced = |status: &mut StatusReport| status.last_sync = None;
    let failed_sync = |status: &mut StatusReport| {
        if let Some(sync) = &mut status.last_sync {
            sync.success = false;
            sync.errors = vec!["Failed to sync cameras: Connection timeout".into()];
        }
    };
    let table: Vec<(StatusReport, Level, &str)> = vec![
        (well(), Level::Good, "Everything is in the cloud."),
        (
            with(well(), unsynced),
            Level::Good,
            "Every captured change is in the cloud.",
        ),
        (
            with(well(), |status| status.capture = vec![problem(false)]),
            Level::Moving,
            "Every captured change is in the cloud; rooms is still to be compared.",
        ),
        (
            waiting(12, 2.0),
            Level::Moving,
            "Changes reach the cloud as they are made.",
        ),
        (waiting(1, 20.0), Level::Moving, "1 change is on its way."),
        (
            waiting(4210, 40.0),
            Level::Moving,
            "4,210 changes are on their way.",
        ),
        (
            with(waiting(4210, 900.0), |status| status.last_accepted_at = before(1)),
            Level::Moving,
            "4,210 changes are on their way.",
        ),
        (
            with(waiting(7, 200.0), |status| status.last_accepted_at = before(180)),
            Level::Act,
            "7 changes wait, and none was accepted for 3 minutes.",
        ),
        (
            with(well(), |status| status.files.waiting = 1),
            Level::Moving,
            "Rows are up to date. 1 file waits or is being sent.",
        ),
        (
            with(well(), |status| {
                status.files.waiting = 3;
                status.files.bandwidth_limit = Some(0);
            }),
            Level::Moving,
            "Rows are up to date. 3 files wait by the plan of files.bandwidth.",
        ),
        (
            with(well(), |status| status.files.missing = 1),
            Level::Act,
            "1 file is not in the media folder.",
        ),
        (
            with(well(), |status| {
                (status.files.missing, status.files.missing_seconds) = (1, Some(20.0));
            }),
            Level::Moving,
            "Rows are up to date. 1 file is not in the media folder yet.",
        ),
        (
            with(well(), |status| {
                (status.files.missing, status.files.missing_seconds) = (2, Some(400.0));
                status.files.waiting = 1;
            }),
            Level::Act,
            "2 files are not in the media folder.",
        ),
        (
            with(well(), |status| {
                (status.files.missing, status.files.missing_seconds) = (2, Some(20.0));
                status.files.waiting = 3;
            }),
            Level::Moving,
            "Rows are up to date. 3 files wait or are being sent. 2 files are not in the media folder yet.",
        ),
        (
            with(waiting(12, 2.0), |status| {
                (status.files.missing, status.files.failed) = (2, 1);
            }),
            Level::Act,
            "Changes reach the cloud as they are made. 2 files are not in the media folder, 1 file could not \
             be sent.",
        ),
        (
            with(well(), |status| status.quarantine = Some(1)),
            Level::Act,
            "1 row is in quarantine: the cloud lacks its present state.",
        ),
        (
            with(well(), |status| {
                status.quarantine = Some(3);
                status.files.missing = 5;
            }),
            Level::Act,
            "3 rows are in quarantine: the cloud lacks their present state.",
        ),
        (
            with(well(), failed_sync),
            Level::Act,
            "The last sync had 1 error.",
        ),
        (
            with(well(), |status| {
                status.quarantine = Some(3);
                status.capture = vec![problem(true)];
            }),
            Level::Act,
            "Changes of rooms may wait or be missed.",
        ),
        (
            with(well(), |status| {
                status.capture = vec![problem(true), problem(true)]
            }),
            Level::Act,
            "Changes of rooms and 1 other entity may wait or be missed.",
        ),
        (
            with(well(), |status| status.lag = None),
            Level::Moving,
            "What waits is not known yet.",
        ),
        (
            away(720, 4210),
            Level::Waiting,
            "The cloud has not been reachable for 12 minutes. 4,210 changes are safe here and wait.",
        ),
        (
            away(3, 1),
            Level::Waiting,
            "The cloud has not been reachable for less than a minute. 1 change is safe here and waits.",
        ),
        (
            away(90, 0),
            Level::Waiting,
            "The cloud has not been reachable for 1 minute. No change waits.",
        ),
        (
            with(away(10_800, 0), |status| status.files.waiting = 2),
            Level::Act,
            "The cloud has not been reachable for 3 hours. No change waits, but 2 files do.",
        ),
        (
            with(away(10_800, 5), |status| {
                status.outbox_growth = Some(GrowthStatus {
                    full_in_seconds: Some(86_400.0),
                    ..GrowthStatus::default()
                });
            }),
            Level::Act,
            "The cloud has not been reachable for 3 hours. 5 changes are safe here and wait.",
        ),
        (
            with(away(60, 310), |status| status.state = ReplicatorState::KeyRefused),
            Level::Act,
            "The cloud refuses our key. 310 changes are safe here and wait.",
        ),
        (
            with(away(60, 2), |status| status.state = ReplicatorState::Stopped),
            Level::Act,
            "cloud-sync has stopped. 2 changes are safe here and wait.",
        ),
        (
            with(away(180, 0), |status| {
                status.source.reachable = Some(false);
                status.cloud.reachable = None;
                status.lag = None;
            }),
            Level::Act,
            "The site's database has not been reachable for 3 minutes.",
        ),
        (
            with(well(), |status| {
                status.source.reachable = Some(false);
                status.lag = None;
            }),
            Level::Act,
            "The site's database is not reachable.",
        ),
        (
            with(well(), |status| status.state = ReplicatorState::Starting),
            Level::Moving,
            "cloud-sync is starting.",
        ),
        (
            with(waiting(4210, 720.0), |status| {
                status.state = ReplicatorState::Paused;
                status.paused.all = pause(720);
            }),
            Level::Act,
            "Replication has been paused for 12 minutes. 4,210 changes are safe here and wait.",
        ),
        (
            with(away(720, 5), |status| status.paused.all = pause(90)),
            Level::Act,
            "Replication has been paused for 1 minute. 5 changes are safe here and wait.",
        ),
        (
            with(waiting(4210, 720.0), |status| {
                (status.last_accepted_at, status.state_since) = (before(720), before(1));
            }),
            Level::Moving,
            "4,210 changes are on their way.",
        ),
        (
            with(well(), |status| status.paused.files = pause(20)),
            Level::Act,
            "Files have been paused for less than a minute.",
        ),
        (
            with(waiting(12, 2.0), |status| {
                status.paused.entities = [("rooms".to_owned(), pause(7_200).unwrap())].into();
            }),
            Level::Act,
            "Changes reach the cloud as they are made. rooms has been paused for 2 hours.",
        ),
        (
            with(well(), |status| {
                status.paused.entities = ["cameras", "rooms"]
                    .map(|name| (name.to_owned(), pause(60).unwrap()))
                    .into();
                status.paused.files = pause(60);
            }),
            Level::Act,
            "cameras and 1 other entity are paused. Files are paused too.",
        ),
        (
            with(well(), |status| {
                status.paused.files = pause(60);
                status.quarantine = Some(1);
            }),
            Level::Act,
            "1 row is in quarantine: the cloud lacks its present state.",
        ),
        (
            with(well(), |status| status.state = ReplicatorState::Standby),
            Level::Good,
            "Another cloud-sync replicates this site; this one stands by.",
        ),
    ];
    for (status, level, headline) in table {
        let said = sentence(&status, now());
        assert_eq!(
            (said.level, said.headline.as_str()),
            (level, headline),
            "{status:#?}"
        );
        assert_eq!(said.todo.is_some(), level == Level::Act, "{headline}");
    }
}

#[test]
fn the_reason_and_the_remedy_are_told() {
    let said = sentence(&away(720, 1), now());
    assert_eq!(
        said.detail.as_deref(),
        Some("Cannot reach the cloud: connection refused.")
    );
    let refused = with(away(720, 1), |status| status.state = ReplicatorState::KeyRefused);
    let todo = sentence(&refused, now()).todo.unwrap();
    assert!(todo.text.contains("cloud.key"), "{todo:?}");
    let full = with(away(720, 1), |status| {
        status.outbox_growth = Some(GrowthStatus {
            full_in_seconds: Some(7_200.0),
            ..GrowthStatus::default()
        });
    });
    let todo = sentence(&full, now()).todo.unwrap();
    assert!(todo.text.contains("full in 2 hours"), "{todo:?}");
}

#[test]
fn nothing_bad_is_ever_called_good() {
    let spoil: [fn(&mut StatusReport); 12] = [
        |status| status.paused.all = pause(9),
        |status| status.paused.files = pause(9),
        |status| status.paused.entities = [("rooms".to_owned(), pause(9).unwrap())].into(),
        |status| status.quarantine = Some(1),
        |status| status.files.missing = 1,
        |status| status.files.failed = 1,
        |status| status.files.waiting = 1,
        |status| {
            status.lag = Some(LagStatus {
                changes: 1,
                age_seconds: 0.1,
            })
        },
        |status| status.lag = None,
        |status| status.capture = vec![problem(true)],
        |status| status.capture = vec![problem(false)],
        |status| status.last_sync.as_mut().unwrap().success = false,
    ];
    for (index, spoil) in spoil.into_iter().enumerate() {
        for state in [
            ReplicatorState::Replicating,
            ReplicatorState::BackingOff,
            ReplicatorState::KeyRefused,
            ReplicatorState::Stopped,
            ReplicatorState::Starting,
        ] {
            let mut status = well();
            status.state = state;
            spoil(&mut status);
            let said = sentence(&status, now());
            assert_ne!(said.level, Level::Good, "{index} {state:?}: {said:?}");
            assert!(
                !said.headline.contains("Everything"),
                "{index} {state:?}: {said:?}"
            );
        }
    }
}
