//! Decides which messages are due. A pure state machine: time is what the caller says it is.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{AlertKind, AlertMessage};

/// The time between two problems of a kind that are told.
const ONCE_IN: SignedDuration = SignedDuration::from_hours(1);

/// What is seen of a kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sight {
    /// It is not known now, and what was known holds.
    Unknown,
    /// There is no such problem.
    Fine,
    /// There is one, in words.
    Problem(String),
}

/// What is seen of each kind; a kind that is not there is fine.
pub(crate) type Sights = BTreeMap<AlertKind, Sight>;

/// What was told, and what is about to be. It can be written down, so that a restart tells nothing twice.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct AlertMonitor {
    kinds: BTreeMap<AlertKind, KindState>,
}

/// What is known of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct KindState {
    /// Since when there is a problem without a break; `None` if there is none now.
    problem_since: Option<Timestamp>,
    /// Since when there is none, after one that was told.
    fine_since: Option<Timestamp>,
    /// When the problem began that was told and is not over.
    told_since: Option<Timestamp>,
    /// When a problem was told last.
    told_at: Option<Timestamp>,
}

impl AlertMonitor {
    /// Whether a problem of the kind was told and is not over.
    pub(crate) fn is_told(&self, kind: AlertKind) -> bool {
        self.kinds
            .get(&kind)
            .is_some_and(|state| state.told_since.is_some())
    }

    /// Notes what is seen at this time, and returns what is to be told. A problem must last for `hold` before it
    /// is told, and be gone for as long before its end is.
    pub(crate) fn step(&mut self, now: Timestamp, hold: Duration, sights: &Sights) -> Vec<AlertMessage> {
        let hold = SignedDuration::try_from(hold).unwrap_or(ONCE_IN);
        let messages = AlertKind::ALL.into_iter().filter_map(|kind| {
            let sight = sights.get(&kind).unwrap_or(&Sight::Fine);
            let state = self.kinds.entry(kind).or_default();
            state.step(kind, now, hold * kind.patience(), sight)
        });
        messages.collect()
    }
}

impl KindState {
    fn step(
        &mut self,
        kind: AlertKind,
        now: Timestamp,
        hold: SignedDuration,
        sight: &Sight,
    ) -> Option<AlertMessage> {
        // A clock that was put back must not keep anything from being told.
        for time in [
            &mut self.problem_since,
            &mut self.fine_since,
            &mut self.told_since,
            &mut self.told_at,
        ] {
            *time = time.map(|time| time.min(now));
        }
        match sight {
            Sight::Unknown => None,
            Sight::Problem(text) => {
                self.fine_since = None;
                let since = *self.problem_since.get_or_insert(now);
                let may_tell = self
                    .told_at
                    .is_none_or(|told| now.duration_since(told) >= ONCE_IN);
                if self.told_since.is_some() || now.duration_since(since) < hold || !may_tell {
                    return None;
                }
                (self.told_since, self.told_at) = (Some(since), Some(now));
                Some(AlertMessage::problem(kind, since, text.clone()))
            }
            Sight::Fine => {
                self.problem_since = None;
                let began = self.told_since?;
                let fine_since = *self.fine_since.get_or_insert(now);
                if now.duration_since(fine_since) < hold {
                    return None;
                }
                (self.told_since, self.fine_since) = (None, None);
                Some(AlertMessage::resolved(kind, began, fine_since))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::super::message::AlertState;
    use super::*;

    const HOLD: Duration = Duration::from_secs(120);
    const TICK: i64 = 10;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn problem() -> Sight {
        Sight::Problem("it is so".to_owned())
    }

    /// What is told of a kind in so many seconds, with the second, while it is seen so.
    fn told(
        kind: AlertKind,
        seconds: i64,
        sight: impl Fn(i64) -> Sight,
    ) -> Vec<(i64, AlertKind, AlertState)> {
        let mut monitor = AlertMonitor::default();
        let mut told = Vec::new();
        for second in (0..seconds).step_by(TICK as usize) {
            let sights = [(kind, sight(second))].into();
            let messages = monitor.step(at(second), HOLD, &sights);
            told.extend(
                messages
                    .into_iter()
                    .map(|message| (second, message.kind, message.state)),
            );
        }
        told
    }

    #[test]
    fn each_kind_is_told_once_and_its_end_once() {
        for kind in AlertKind::ALL {
            let within = |second| match second {
                600..90_000 => problem(),
                _ => Sight::Fine,
            };
            let hold = 120 * i64::from(kind.patience());
            assert_eq!(
                told(kind, 200_000, within),
                [
                    (600 + hold, kind, AlertState::Problem),
                    (90_000 + hold, kind, AlertState::Resolved)
                ]
            );
        }
    }

    #[test]
    fn what_is_over_before_it_lasts_is_not_told() {
        let short = |second: i64| match second % 240 {
            0..110 => problem(),
            _ => Sight::Fine,
        };
        assert_eq!(told(AlertKind::Lag, 86_400, short), []);
    }

    #[test]
    fn a_problem_that_comes_and_goes_is_told_once_an_hour_and_each_end_belongs_to_one() {
        let flapping = |second: i64| match second % 600 {
            0..300 => problem(),
            _ => Sight::Fine,
        };
        let told = told(AlertKind::Quarantine, 86_400, flapping);
        let problems: Vec<i64> = told
            .iter()
            .filter(|(.., state)| *state == AlertState::Problem)
            .map(|(second, ..)| *second)
            .collect();
        assert!(
            problems.windows(2).all(|two| two[1] - two[0] >= 3_600),
            "{problems:?}"
        );
        assert!((12..=24).contains(&problems.len()), "{problems:?}");
        for two in told.chunks(2) {
            assert_eq!(two[0].2, AlertState::Problem);
            assert!(two.len() < 2 || two[1].2 == AlertState::Resolved);
        }
    }

    #[test]
    fn a_short_break_does_not_end_a_problem() {
        let broken = |second: i64| match second {
            1_000..1_100 => Sight::Fine,
            0..5_000 => problem(),
            _ => Sight::Fine,
        };
        let kind = AlertKind::FileMissing;
        assert_eq!(
            told(kind, 10_000, broken),
            [
                (120, kind, AlertState::Problem),
                (5_120, kind, AlertState::Resolved)
            ]
        );
    }

    #[test]
    fn what_is_not_known_changes_nothing() {
        let away = |second: i64| match second {
            0..300 | 9_000..10_000 => problem(),
            300..9_000 => Sight::Unknown,
            _ => Sight::Fine,
        };
        let kind = AlertKind::Drift;
        assert_eq!(
            told(kind, 20_000, away),
            [
                (120, kind, AlertState::Problem),
                (10_120, kind, AlertState::Resolved)
            ]
        );
    }

    #[test]
    fn a_restart_tells_nothing_twice_and_a_clock_that_was_put_back_keeps_nothing() {
        let mut monitor = AlertMonitor::default();
        let sights = [(AlertKind::Lag, problem())].into();
        monitor.step(at(0), HOLD, &sights);
        assert_eq!(monitor.step(at(200), HOLD, &sights).len(), 1);
        let text = serde_json::to_string(&monitor).unwrap();
        let mut monitor: AlertMonitor = serde_json::from_str(&text).unwrap();
        assert!(monitor.is_told(AlertKind::Lag));
        assert_eq!(monitor.step(at(400), HOLD, &sights), []);
        let fine = Sights::new();
        assert_eq!(monitor.step(at(-90_000), HOLD, &fine), []);
        assert_eq!(monitor.step(at(-89_800), HOLD, &fine).len(), 1);
    }

    /// A day in which everything blips: rows wait a moment in quarantine, capture is mended within a minute,
    /// files come late, the forecast jumps, the source is away for a moment.
    #[test]
    fn a_day_with_jitter_alarms_nobody() {
        for seed in 0..20 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut monitor = AlertMonitor::default();
            let mut until: BTreeMap<AlertKind, i64> = BTreeMap::new();
            let mut second = 0;
            while second < 86_400 {
                let mut sights = Sights::new();
                for kind in AlertKind::ALL {
                    if random.random_range(0..30) == 0
                        && until.get(&kind).is_none_or(|end| *end + 60 < second)
                    {
                        until.insert(kind, second + random.random_range(1..100));
                    }
                    let sight = match until.get(&kind) {
                        Some(end) if second < *end && random.random_range(0..10) == 0 => Sight::Unknown,
                        Some(end) if second < *end => problem(),
                        // It is seen at least once that it is over.
                        Some(end) if second < *end + 60 => Sight::Fine,
                        _ if random.random_range(0..50) == 0 => Sight::Unknown,
                        _ => Sight::Fine,
                    };
                    sights.insert(kind, sight);
                }
                assert_eq!(
                    monitor.step(at(second), HOLD, &sights),
                    [],
                    "seed {seed}, second {second}"
                );
                // The task is woken early and late.
                second += random.random_range(5..25);
            }
        }
    }
}
