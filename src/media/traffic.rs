//! What leaves the site: how many bytes on a day and in a month, against what may leave then, and how fast files
//! went in the last minutes.
//!
//! Days and months are those of the site's local date. What left is kept in the site's database while there is a
//! budget ([`crate::source::traffic`]): a restart and another replicator go on counting.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use jiff::civil::{Date, DateTime};
use jiff::{SignedDuration, ToSpan};
use serde::{Deserialize, Serialize};

/// The rate of files is that of so much time.
const RATE_OVER: Duration = Duration::from_secs(600);

/// The time that one entry of the rate holds.
const RATE_STEP: Duration = Duration::from_secs(5);

/// After so much time without a byte the rate begins anew.
const RATE_GAP: Duration = Duration::from_secs(60);

/// A forecast looks no further ahead.
const HORIZON: Duration = Duration::from_secs(62 * 24 * 3600);

/// The steps of a forecast.
const STEP: Duration = Duration::from_secs(300);

/// How many bytes may leave the site on a day and in a month; `None` where there is no limit. Rows count and are
/// never held back; files wait for the next day or month.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TrafficBudget {
    /// Bytes of a day.
    pub day: Option<u64>,
    /// Bytes of a month.
    pub month: Option<u64>,
}

impl TrafficBudget {
    /// Whether there is one.
    pub fn is_set(&self) -> bool {
        self.day.is_some() || self.month.is_some()
    }

    /// How many more bytes may leave after these.
    fn room(&self, day_bytes: u64, month_bytes: u64) -> Option<u64> {
        let left = |limit: Option<u64>, used: u64| limit.map(|limit| limit.saturating_sub(used));
        let (day, month) = (left(self.day, day_bytes), left(self.month, month_bytes));
        day.into_iter().chain(month).min()
    }
}

impl FromStr for TrafficBudget {
    type Err = String;

    /// Reads `unlimited`, `2GiB/day`, or `2GiB/day; 40GiB/month`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut budget = Self::default();
        if text.trim() == "unlimited" {
            return Ok(budget);
        }
        for part in text.split(';').map(str::trim).filter(|part| !part.is_empty()) {
            let wrong = || format!("has {part:?}, which is not as in 2GiB/day or 40GiB/month");
            let (size, period) = part.split_once('/').ok_or_else(wrong)?;
            let bytes = crate::config::parse_size(size.trim()).map_err(|_| wrong())?;
            let limit = match period.trim() {
                "day" => &mut budget.day,
                "month" => &mut budget.month,
                _ => return Err(wrong()),
            };
            if limit.replace(bytes).is_some() {
                return Err(format!("has two limits of a {}", period.trim()));
            }
        }
        if budget.is_set() {
            Ok(budget)
        } else {
            Err("must be unlimited, or as in \"2GiB/day; 40GiB/month\"".to_owned())
        }
    }
}

impl fmt::Display for TrafficBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.day, self.month) {
            (None, None) => f.write_str("unlimited"),
            (Some(day), None) => write!(f, "{day}B/day"),
            (None, Some(month)) => write!(f, "{month}B/month"),
            (Some(day), Some(month)) => write!(f, "{day}B/day; {month}B/month"),
        }
    }
}

/// What a budget allows, and what has left of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BudgetStatus {
    /// How many bytes may leave today; null if there is no such limit.
    pub day_limit: Option<u64>,
    /// How many bytes have left today.
    pub day_bytes: u64,
    /// How many bytes may leave this month; null if there is no such limit.
    pub month_limit: Option<u64>,
    /// How many bytes have left this month.
    pub month_bytes: u64,
}

impl BudgetStatus {
    /// Whether today's bytes are used up.
    pub fn day_is_used_up(&self) -> bool {
        self.day_limit.is_some_and(|limit| self.day_bytes >= limit)
    }

    /// Whether this month's bytes are used up.
    pub fn month_is_used_up(&self) -> bool {
        self.month_limit.is_some_and(|limit| self.month_bytes >= limit)
    }

    /// In words, if no file goes until the next day or month.
    pub fn used_up(&self) -> Option<&'static str> {
        if self.month_is_used_up() {
            Some("the bytes of this month are used up (files.budget); files go on next month")
        } else if self.day_is_used_up() {
            Some("the bytes of today are used up (files.budget); files go on tomorrow")
        } else {
            None
        }
    }
}

/// What has left, by day.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    today: Date,
    /// Of today, and of this month: what the database has, and what it does not have yet.
    day_bytes: u64,
    month_bytes: u64,
    /// What the database does not have yet.
    unrecorded: BTreeMap<Date, u64>,
    /// Bytes of files by the time at which they began to leave.
    recent: VecDeque<(Instant, u64)>,
}

impl Traffic {
    /// It is this day.
    pub(super) fn set_today(&mut self, today: Date) {
        if today == self.today {
            return;
        }
        self.day_bytes = 0;
        if today.first_of_month() != self.today.first_of_month() {
            self.month_bytes = 0;
        }
        self.today = today;
    }

    /// Counts bytes that leave today.
    pub(super) fn note(&mut self, bytes: u64) {
        if bytes > 0 {
            self.day_bytes += bytes;
            self.month_bytes += bytes;
            *self.unrecorded.entry(self.today).or_default() += bytes;
        }
    }

    /// Counts bytes of a file, for the rate.
    pub(super) fn note_file(&mut self, bytes: u64, now: Instant) {
        if bytes == 0 {
            return;
        }
        match self.recent.back_mut() {
            Some((at, sum)) if now.duration_since(*at) < RATE_STEP => *sum += bytes,
            newest => {
                if newest.is_some_and(|(at, _)| now.duration_since(*at) > RATE_GAP) {
                    self.recent.clear();
                }
                self.recent.push_back((now, bytes));
            }
        }
        while self
            .recent
            .front()
            .is_some_and(|(at, _)| now.duration_since(*at) > RATE_OVER)
        {
            self.recent.pop_front();
        }
    }

    /// Bytes of files a second, in the last minutes in which some went; `None` if none went of late.
    pub(super) fn rate(&self, now: Instant) -> Option<f64> {
        let (first, _) = self.recent.front()?;
        let (last, _) = self.recent.back()?;
        let seconds = now.duration_since(*first).as_secs_f64();
        let is_old = now.duration_since(*last) > RATE_GAP;
        if is_old || seconds < RATE_STEP.as_secs_f64() {
            return None;
        }
        let bytes: u64 = self.recent.iter().map(|(_, bytes)| bytes).sum();
        Some(bytes as f64 / seconds)
    }

    /// Takes over what the database has of today and of this month.
    pub(super) fn recorded_before(&mut self, day_bytes: u64, month_bytes: u64) {
        let of_month = self.today.first_of_month();
        let unrecorded = |from: Date| self.unrecorded.range(from..).map(|(_, bytes)| bytes).sum::<u64>();
        self.day_bytes = day_bytes + unrecorded(self.today);
        self.month_bytes = month_bytes + unrecorded(of_month);
    }

    /// What the database does not have yet.
    pub(super) fn unrecorded(&self) -> BTreeMap<Date, u64> {
        self.unrecorded.clone()
    }

    /// The database has this now.
    pub(super) fn note_recorded(&mut self, recorded: &BTreeMap<Date, u64>) {
        for (day, bytes) in recorded {
            if let Some(left) = self.unrecorded.get_mut(day) {
                *left = left.saturating_sub(*bytes);
            }
        }
        self.unrecorded.retain(|_, bytes| *bytes > 0);
    }

    pub(super) fn status(&self, budget: TrafficBudget) -> BudgetStatus {
        BudgetStatus {
            day_limit: budget.day,
            day_bytes: self.day_bytes,
            month_limit: budget.month,
            month_bytes: self.month_bytes,
        }
    }
}

/// What a forecast is made of.
pub(super) struct Forecast<'a> {
    /// Bytes a second while nothing limits them.
    pub(super) rate: f64,
    /// The limit that a plan sets at a time, in bytes a second.
    pub(super) limit_at: &'a dyn Fn(DateTime) -> Option<u64>,
    pub(super) budget: TrafficBudget,
    pub(super) used: BudgetStatus,
}

impl Forecast<'_> {
    /// How long it takes from `now` on until so many bytes have left; `None` if that is more than two months.
    pub(super) fn time_for(&self, bytes: u64, now: DateTime) -> Option<SignedDuration> {
        let mut left = bytes as f64;
        let (mut day_bytes, mut month_bytes) = (self.used.day_bytes, self.used.month_bytes);
        let (mut at, mut passed) = (now, Duration::ZERO);
        while passed < HORIZON {
            let limit = (self.limit_at)(at).map_or(f64::INFINITY, |limit| limit as f64);
            let rate = self.rate.min(limit);
            let room = self.budget.room(day_bytes, month_bytes);
            let goes = (rate * STEP.as_secs_f64()).min(room.map_or(f64::INFINITY, |room| room as f64));
            if goes >= left && rate > 0.0 {
                let last = Duration::from_secs_f64(left / rate);
                return SignedDuration::try_from(passed + last).ok();
            }
            left -= goes;
            day_bytes += goes as u64;
            month_bytes += goes as u64;
            let next = at.checked_add((STEP.as_secs() as i64).seconds()).ok()?;
            if next.date() != at.date() {
                day_bytes = 0;
                if next.date().first_of_month() != at.date().first_of_month() {
                    month_bytes = 0;
                }
            }
            (at, passed) = (next, passed + STEP);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_budget_is_read_and_what_is_none_is_refused() {
        let budget: TrafficBudget = "2GiB/day; 40GiB/month".parse().unwrap();
        assert_eq!((budget.day, budget.month), (Some(2 * GIB), Some(40 * GIB)));
        assert_eq!(budget.to_string().parse(), Ok(budget));
        assert_eq!("unlimited".parse(), Ok(TrafficBudget::default()));
        for (text, word) in [
            ("", "unlimited"),
            ("2GiB", "2GiB"),
            ("2GiB/week", "week"),
            ("much/day", "much"),
            ("1GiB/day; 2GiB/day", "two limits of a day"),
        ] {
            let why = text.parse::<TrafficBudget>().unwrap_err();
            assert!(why.contains(word), "{text:?}: {why}");
        }
    }

    #[test]
    fn what_left_counts_for_its_day_and_its_month() {
        let budget: TrafficBudget = "100B/day; 150B/month".parse().unwrap();
        let mut traffic = Traffic::default();
        let used = |traffic: &Traffic| {
            let status = traffic.status(budget);
            (status.day_bytes, status.month_bytes, status.used_up().is_some())
        };
        let day = |text: &str| text.parse::<Date>().unwrap();
        traffic.set_today(day("2026-11-29"));
        traffic.note(90);
        assert_eq!(used(&traffic), (90, 90, false));
        traffic.note(20);
        assert_eq!(used(&traffic), (110, 110, true));
        traffic.set_today(day("2026-11-30"));
        assert_eq!(used(&traffic), (0, 110, false));
        traffic.note(40);
        assert_eq!(used(&traffic), (40, 150, true));
        // What is recorded meanwhile is not counted twice.
        let noted = traffic.unrecorded();
        traffic.note(1);
        traffic.note_recorded(&noted);
        assert_eq!(traffic.unrecorded(), BTreeMap::from([(day("2026-11-30"), 1)]));
        traffic.recorded_before(1_000, 2_000);
        assert_eq!(used(&traffic), (1_001, 2_001, true));
        traffic.set_today(day("2026-12-01"));
        assert_eq!(used(&traffic), (0, 0, false));
    }

    #[test]
    fn the_rate_is_that_of_the_last_minutes_and_begins_anew_after_a_pause() {
        let began = Instant::now();
        let at = |seconds: u64| began + Duration::from_secs(seconds);
        let mut traffic = Traffic::default();
        assert_eq!(traffic.rate(at(0)), None);
        for second in 0..1_200 {
            // Faster in the second half: the first is forgotten.
            traffic.note_file(if second < 600 { 1_000 } else { 5_000 }, at(second));
        }
        let rate = traffic.rate(at(1_200)).unwrap();
        assert!((4_900.0..5_100.0).contains(&rate), "{rate}");
        assert_eq!(traffic.rate(at(1_300)), None);
        for second in 5_000..5_010 {
            traffic.note_file(100, at(second));
        }
        let rate = traffic.rate(at(5_010)).unwrap();
        assert!((99.0..101.0).contains(&rate), "{rate}");
    }

    #[test]
    fn a_forecast_keeps_to_the_plan_and_to_the_budget() {
        let now: DateTime = "2026-11-30T20:00".parse().unwrap();
        let time_for = |bytes, budget: &str, limit_at: &dyn Fn(DateTime) -> Option<u64>| {
            let forecast = Forecast {
                rate: 1_000.0,
                limit_at,
                budget: budget.parse().unwrap(),
                used: BudgetStatus::default(),
            };
            forecast.time_for(bytes, now).map(|time| time.as_secs())
        };
        let free = |_| None;
        assert_eq!(time_for(100_000, "unlimited", &free), Some(100));
        assert_eq!(time_for(7_200_000, "unlimited", &free), Some(7_200));
        // Off until 22:00, then at half the speed.
        let night = |now: DateTime| Some(if now.hour() < 22 { 0 } else { 500 });
        assert_eq!(time_for(100_000, "unlimited", &night), Some(7_200 + 200));
        // One day's bytes today, the rest after midnight.
        assert_eq!(time_for(1_500_000, "1MB/day", &free), Some(4 * 3_600 + 500));
        // The month ends at midnight too.
        assert_eq!(time_for(1_500_000, "1MB/month", &free), Some(4 * 3_600 + 500));
        assert_eq!(time_for(1_000_000_000, "1MB/month", &free), None);
        assert_eq!(time_for(1, "unlimited", &|_| Some(0)), None);
    }
}
