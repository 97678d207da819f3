//! How fast files may go: a weekly timetable of limits in the site's local time, the token bucket that keeps to
//! it, and the bytes that may leave on a day and in a month ([`TrafficBudget`]).
//!
//! Rows are never held back; what they send counts, so that files leave that room to them. A limit follows
//! the wall clock: where daylight saving repeats or skips an hour, the limit of the time that a clock on the
//! wall shows holds.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::civil::{Date, DateTime};
use jiff::{SignedDuration, Zoned};
use tokio::sync::watch;

use super::traffic::{BudgetStatus, Forecast, Traffic, TrafficBudget};
use crate::weekly_times::WeeklySpan;

/// The longest wait until a limit is looked at again: so soon does a change take effect.
const RECHECK: Duration = Duration::from_millis(500);

/// So much time's worth of bytes may go at once.
const BURST: Duration = Duration::from_millis(200);

/// A limit in bytes a second; 0 means that no file goes, `None` that there is no limit.
pub type BandwidthLimit = Option<u64>;

/// A weekly timetable of limits: the first entry that holds counts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BandwidthPlan {
    entries: Vec<PlanEntry>,
    otherwise: BandwidthLimit,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct PlanEntry {
    span: WeeklySpan,
    limit: BandwidthLimit,
}

impl BandwidthPlan {
    fn is_ever_off(&self) -> bool {
        self.otherwise == Some(0) || self.entries.iter().any(|entry| entry.limit == Some(0))
    }

    /// The limit at this local time.
    pub fn limit_at(&self, now: DateTime) -> BandwidthLimit {
        let entry = self.entries.iter().find(|entry| entry.span.holds_at(now));
        entry.map_or(self.otherwise, |entry| entry.limit)
    }
}

impl FromStr for BandwidthPlan {
    type Err = String;

    /// Reads `unlimited`, `1MiB/s`, or entries with days, times and limits, separated by semicolons:
    /// `mon-fri 07:00-18:00 1MiB/s; else unlimited`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut plan = Self::default();
        let entries: Vec<&str> = text
            .split(';')
            .map(str::trim)
            .filter(|entry| !entry.is_empty())
            .collect();
        let (last, before) = entries.split_last().ok_or("must not be empty")?;
        let words = |entry: &str| entry.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        for entry in before {
            plan.entries.push(plan_entry(&words(entry))?);
        }
        match words(last).as_slice() {
            [only] => plan.otherwise = limit(only)?,
            [first, only] if first == "else" => plan.otherwise = limit(only)?,
            words => plan.entries.push(plan_entry(words)?),
        }
        Ok(plan)
    }
}

impl fmt::Display for BandwidthPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |limit: BandwidthLimit| match limit {
            None => "unlimited".to_owned(),
            Some(bytes) => format!("{bytes}B/s"),
        };
        for entry in &self.entries {
            write!(f, "{} {}; ", entry.span, show(entry.limit))?;
        }
        f.write_str(&show(self.otherwise))
    }
}

fn plan_entry(words: &[String]) -> Result<PlanEntry, String> {
    let Some((limited, span)) = words
        .split_last()
        .filter(|(_, span)| (1..=2).contains(&span.len()))
    else {
        return Err(format!(
            "has {:?}, which is not as in \"mon-fri 07:00-18:00 1MiB/s; else unlimited\"",
            words.join(" ")
        ));
    };
    Ok(PlanEntry {
        span: span.join(" ").parse()?,
        limit: limit(limited)?,
    })
}

fn limit(text: &str) -> Result<BandwidthLimit, String> {
    match text {
        "unlimited" => Ok(None),
        "off" | "0" => Ok(Some(0)),
        text => {
            let size = text
                .strip_suffix("/s")
                .and_then(|size| crate::config::parse_size(size).ok());
            size.map(Some)
                .ok_or_else(|| format!("has the limit {text:?}; a limit is unlimited, off, or as in 500kB/s"))
        }
    }
}

/// The bucket of all that leaves: rows take from it without waiting, files wait. While an operator has paused
/// files, none goes.
#[derive(Debug)]
pub struct Bandwidth {
    bucket: Mutex<Bucket>,
    clock: fn() -> DateTime,
    paused: watch::Sender<bool>,
}

#[derive(Debug)]
struct Bucket {
    plan: BandwidthPlan,
    budget: TrafficBudget,
    traffic: Traffic,
    /// The limit that holds now, and when it was looked up.
    limit: BandwidthLimit,
    looked_up: Option<Instant>,
    /// Bytes that may go now; negative if more went.
    room: f64,
    filled_at: Instant,
}

impl Default for Bandwidth {
    fn default() -> Self {
        Self {
            bucket: Mutex::new(Bucket {
                plan: BandwidthPlan::default(),
                budget: TrafficBudget::default(),
                traffic: Traffic::default(),
                limit: None,
                looked_up: None,
                room: 0.0,
                filled_at: Instant::now(),
            }),
            clock: || Zoned::now().datetime(),
            paused: watch::Sender::new(false),
        }
    }
}

impl Bandwidth {
    /// Takes another plan and another budget from now on.
    pub fn set_plan(&self, plan: BandwidthPlan, budget: TrafficBudget) {
        let mut bucket = self.bucket();
        (bucket.plan, bucket.budget) = (plan, budget);
        bucket.looked_up = None;
    }

    /// Lets no file go while they are paused.
    pub fn set_paused(&self, is_paused: bool) {
        self.paused
            .send_if_modified(|now| std::mem::replace(now, is_paused) != is_paused);
    }

    fn is_paused(&self) -> bool {
        *self.paused.borrow()
    }

    /// The limit that the plan sets now.
    pub fn limit(&self) -> BandwidthLimit {
        self.bucket().look_up(self.clock)
    }

    /// The budget and what has left of it; `None` if there is none.
    pub fn budget(&self) -> Option<BudgetStatus> {
        let mut bucket = self.bucket();
        bucket.look_up(self.clock);
        let budget = bucket.budget;
        budget.is_set().then(|| bucket.traffic.status(budget))
    }

    /// Whether no byte of a file may go now: what is on its way is given up.
    pub fn is_off(&self) -> bool {
        self.is_paused() || self.limit() == Some(0)
    }

    /// Whether no upload may begin now: also where a budget is used up. What is on its way then ends, if it
    /// could not go on later.
    pub fn is_closed(&self) -> bool {
        self.is_off() || self.budget_is_used_up()
    }

    fn budget_is_used_up(&self) -> bool {
        self.budget().is_some_and(|budget| budget.used_up().is_some())
    }

    /// Waits until a budget is used up.
    pub(super) async fn budget_used_up(&self) {
        while !self.budget_is_used_up() {
            tokio::time::sleep(RECHECK).await;
        }
    }

    /// How many bytes of files go in a second, as in the last minutes; `None` if none went of late.
    pub fn rate(&self) -> Option<f64> {
        self.bucket().traffic.rate(Instant::now())
    }

    /// How long it takes until so many bytes of files are sent, at the rate of the last minutes, by the plan and
    /// the budget; `None` if that cannot be told.
    pub fn time_for(&self, bytes: u64) -> Option<SignedDuration> {
        if self.is_paused() {
            return None;
        }
        let mut bucket = self.bucket();
        bucket.look_up(self.clock);
        let forecast = Forecast {
            rate: bucket.traffic.rate(Instant::now())?,
            limit_at: &|at| bucket.plan.limit_at(at),
            budget: bucket.budget,
            used: bucket.traffic.status(bucket.budget),
        };
        forecast.time_for(bytes, (self.clock)())
    }

    /// The site's local date.
    pub(super) fn today(&self) -> Date {
        (self.clock)().date()
    }

    /// Takes over what the database has of today and of this month.
    pub(super) fn recorded_before(&self, day_bytes: u64, month_bytes: u64) {
        let mut bucket = self.bucket();
        bucket.look_up(self.clock);
        bucket.traffic.recorded_before(day_bytes, month_bytes);
    }

    /// What left and is not in the database, if there is a budget.
    pub(super) fn unrecorded(&self) -> BTreeMap<Date, u64> {
        let bucket = self.bucket();
        match bucket.budget.is_set() {
            true => bucket.traffic.unrecorded(),
            false => BTreeMap::new(),
        }
    }

    /// The database has this now.
    pub(super) fn note_recorded(&self, recorded: &BTreeMap<Date, u64>) {
        self.bucket().traffic.note_recorded(recorded);
    }

    /// Waits until uploads may begin if they may not now (`is_closed`), or may not any more if they may.
    pub(super) async fn turned(&self, is_closed: bool) {
        let mut paused = self.paused.subscribe();
        while self.is_closed() == is_closed {
            let follows_plan = !self.is_paused() && self.bucket().is_ever_closed();
            tokio::select! {
                // The sender lives as long as this does.
                _ = paused.changed() => {}
                () = tokio::time::sleep(RECHECK * 2), if follows_plan => {}
            }
        }
    }

    /// Notes bytes of rows that went.
    pub fn note_rows(&self, bytes: u64) {
        let mut bucket = self.bucket();
        if bucket.look_up(self.clock).is_some() {
            bucket.room -= bytes as f64;
        }
        bucket.traffic.note(bytes);
    }

    /// Takes so many bytes for a file, and returns how long to wait before they go. Called with 0 after that
    /// wait, it returns what is still to be waited for: the limit may have changed.
    pub fn take(&self, bytes: usize) -> Duration {
        if self.is_paused() {
            return RECHECK;
        }
        let mut bucket = self.bucket();
        if bucket.look_up(self.clock) == Some(0) {
            return RECHECK;
        }
        let now = Instant::now();
        bucket.traffic.note(bytes as u64);
        bucket.traffic.note_file(bytes as u64, now);
        let Some(limit) = bucket.limit.map(|limit| limit as f64) else {
            return Duration::ZERO;
        };
        let filled = now.duration_since(bucket.filled_at).as_secs_f64() * limit;
        bucket.room = (bucket.room + filled).min(BURST.as_secs_f64() * limit);
        bucket.filled_at = now;
        bucket.room -= bytes as f64;
        if bucket.room >= 0.0 {
            return Duration::ZERO;
        }
        Duration::from_secs_f64(-bucket.room / limit).min(RECHECK)
    }

    fn bucket(&self) -> MutexGuard<'_, Bucket> {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bucket {
    fn is_ever_closed(&self) -> bool {
        self.plan.is_ever_off() || self.budget.is_set()
    }

    fn look_up(&mut self, clock: fn() -> DateTime) -> BandwidthLimit {
        if self.looked_up.is_none_or(|at| at.elapsed() >= RECHECK) {
            let now = clock();
            self.traffic.set_today(now.date());
            let limit = self.plan.limit_at(now);
            if limit != self.limit {
                // What was owed under another limit is forgotten.
                (self.room, self.filled_at) = (0.0, Instant::now());
            }
            self.limit = limit;
            self.looked_up = Some(Instant::now());
        }
        self.limit
    }
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;
    use jiff::{Timestamp, ToSpan};

    use super::*;

    fn plan(text: &str) -> BandwidthPlan {
        text.parse().unwrap()
    }

    #[test]
    fn a_plan_is_read_and_holds_by_day_and_time() {
        let at = |plan: &BandwidthPlan, time: &str| plan.limit_at(time.parse().unwrap());
        assert_eq!(at(&plan("unlimited"), "2026-11-30T12:00"), None);
        assert_eq!(at(&plan("1MiB/s"), "2026-11-30T12:00"), Some(1 << 20));
        // 2026-11-30 is a Monday.
        let week =
            plan("Mon-Fri 07:00-18:00 1MiB/s; sat,sun 22:00-06:00 off; 12:00-24:00 500kB/s; else unlimited");
        for (time, limit) in [
            ("2026-11-30T06:59", None),
            ("2026-11-30T07:00", Some(1 << 20)),
            ("2026-11-30T17:59", Some(1 << 20)),
            ("2026-11-30T18:00", Some(500_000)),
            ("2026-12-05T12:00", Some(500_000)),
            ("2026-12-05T22:00", Some(0)),
            ("2026-12-06T05:59", Some(0)),
            ("2026-12-07T05:59", Some(0)),
            ("2026-12-07T06:00", None),
            ("2026-12-05T06:00", None),
        ] {
            assert_eq!(at(&week, time), limit, "{time}");
        }
        assert_eq!(plan(&week.to_string()), week);
        assert_eq!(
            at(&plan("fri-mon 00:00-24:00 off; else 1kB/s"), "2026-12-01T00:00"),
            Some(1_000)
        );
    }

    #[test]
    fn a_plan_that_is_none_is_refused_with_the_word() {
        for (text, word) in [
            ("", "empty"),
            ("fast", "fast"),
            ("1MiB", "1MiB"),
            ("mon-fri 1MiB/s; else unlimited", "mon-fri"),
            ("mun 07:00-08:00 1MiB/s", "mun"),
            ("07:00-25:00 1MiB/s", "25:00"),
            ("07:60-08:00 1MiB/s", "07:60"),
            ("mon 07:00-08:00 1MiB/s slowly", "slowly"),
        ] {
            let why = text.parse::<BandwidthPlan>().unwrap_err();
            assert!(why.contains(word), "{text:?}: {why}");
        }
    }

    #[test]
    fn the_wall_clock_counts_where_daylight_saving_begins_and_ends() {
        let plan = plan("01:00-03:00 1kB/s; else unlimited");
        let zone = TimeZone::get("Europe/Berlin").unwrap();
        // Minutes with a limit in 48 hours: two nights of two hours; in spring one of them has one hour, in
        // autumn one has three.
        for (begin, minutes) in [
            ("2026-03-28T12:00:00Z", 120 + 60),
            ("2026-10-24T12:00:00Z", 120 + 180),
            ("2026-06-10T12:00:00Z", 120 + 120),
        ] {
            let begin: Timestamp = begin.parse().unwrap();
            let limited = (0..48 * 60).filter(|&minute| {
                let now = begin.checked_add((minute as i64).minutes()).unwrap();
                plan.limit_at(zone.to_datetime(now)).is_some()
            });
            assert_eq!(limited.count(), minutes, "{begin}");
        }
    }

    #[test]
    fn files_wait_for_the_limit_and_rows_take_their_room() {
        let bandwidth = Bandwidth::default();
        assert_eq!(bandwidth.take(1 << 30), Duration::ZERO);
        bandwidth.set_plan(plan("100kB/s"), TrafficBudget::default());
        let began = Instant::now();
        let mut sent = 0;
        while began.elapsed() < Duration::from_millis(1_000) {
            let mut wait = bandwidth.take(5_000);
            while !wait.is_zero() {
                std::thread::sleep(wait);
                wait = bandwidth.take(0);
            }
            sent += 5_000;
        }
        let rate = f64::from(sent) / began.elapsed().as_secs_f64();
        assert!((50_000.0..135_000.0).contains(&rate), "{rate}");
        // Rows do not wait, and files wait for them.
        bandwidth.note_rows(40_000);
        assert!(bandwidth.take(0) > Duration::from_millis(100));
        // Another plan holds at once.
        bandwidth.set_plan(plan("unlimited"), TrafficBudget::default());
        assert_eq!(bandwidth.take(1 << 30), Duration::ZERO);
        bandwidth.set_plan(plan("off"), TrafficBudget::default());
        assert!(bandwidth.is_off());
        assert_eq!(bandwidth.take(1), RECHECK);
    }

    #[test]
    fn files_wait_when_a_budget_is_used_up_and_rows_go_on() {
        let bandwidth = Bandwidth::default();
        let budget = |text: &str| bandwidth.set_plan(plan("unlimited"), text.parse().unwrap());
        bandwidth.note_rows(600);
        assert_eq!(bandwidth.budget(), None);
        assert!(bandwidth.unrecorded().is_empty());
        // What left before there was a budget counts too.
        budget("1kB/day");
        assert_eq!(bandwidth.take(300), Duration::ZERO);
        assert!(!bandwidth.is_closed());
        bandwidth.note_rows(100);
        assert!(bandwidth.is_closed() && !bandwidth.is_off());
        // What is on its way may end.
        assert_eq!(bandwidth.take(100), Duration::ZERO);
        assert_eq!(bandwidth.budget().map(|budget| budget.day_bytes), Some(1_100));
        let today = BTreeMap::from([(bandwidth.today(), 1_100)]);
        assert_eq!(bandwidth.unrecorded(), today);
        bandwidth.note_recorded(&today);
        assert!(bandwidth.unrecorded().is_empty());
        budget("2kB/day");
        assert!(!bandwidth.is_closed());
    }

    #[tokio::test]
    async fn a_pause_holds_whatever_the_plan_says_and_its_end_is_heard() {
        let bandwidth = Bandwidth::default();
        bandwidth.set_paused(true);
        bandwidth.turned(false).await;
        assert!(bandwidth.is_off());
        assert_eq!((bandwidth.limit(), bandwidth.take(1)), (None, RECHECK));
        let resume = async { bandwidth.set_paused(false) };
        tokio::join!(bandwidth.turned(true), resume);
        assert_eq!(bandwidth.take(1 << 30), Duration::ZERO);
    }
}
