//! When to retry, and how often to log a failure that repeats.
//!
//! All of it is arithmetic: nothing here sleeps or sends. A loop that retries asks [`Backoff`] how long to
//! wait, within the bounds that [`waits`] has for it, and gives each failure to [`FailureLog`], which limits
//! the rate of log lines. Rows in quarantine have longer waits: see [`crate::quarantine`].

use std::time::{Duration, Instant};

use jiff::Timestamp;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::error::{Error, Kind};

/// The longest wait that a server's `Retry-After` can ask for.
pub const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// The shortest and the longest wait of something that is tried again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Waits {
    pub(crate) least: Duration,
    pub(crate) most: Duration,
}

/// How long each thing that is tried again waits: the one table.
pub(crate) mod waits {
    use super::{Duration, Waits};

    const fn between(least_ms: u64, most_s: u64) -> Waits {
        Waits {
            least: Duration::from_millis(least_ms),
            most: Duration::from_secs(most_s),
        }
    }

    /// A batch, and the question who the cloud is, while the cloud is away.
    pub(crate) const CLOUD: Waits = between(100, 30);
    /// One row's request, within the delivery of its batch.
    pub(crate) const ROW_REQUEST: Waits = between(50, 1);
    /// A schema that the cloud refused.
    pub(crate) const REFUSED_SCHEMA: Waits = between(500, 30);
    /// The drain as a whole, after a failure of the site's database.
    pub(crate) const DRAIN: Waits = between(100, 10);
    /// The drain as a whole, when what waits has to go under a new term.
    pub(crate) const NEW_TERM: Waits = between(10, 10);
    /// The file lane as a whole, after a failure of the site's database, or while the cloud takes no file.
    pub(crate) const FILE_LANE: Waits = between(200, 30);
    /// An entity that cannot be read: how soon it is looked at again.
    pub(crate) const PARKED_ENTITY: Waits = between(500, 30);
    /// The comparison that closes a gap, while the gap stays; at first as often as capture is looked at.
    pub(crate) const GAP_REPAIR_MOST: Duration = Duration::from_secs(600);
    /// A file that the cloud fails to take while it takes others (5xx). Doubles, without jitter.
    pub(crate) const FAILING_FILE: Waits = between(10_000, 3600);
    /// A file on whose way to an object storage the line broke, which works again. Doubles, without jitter.
    pub(crate) const FILE_OF_BROKEN_LINE: Waits = between(1_000, 30);
    /// A file that the cloud refuses (4xx). Doubles, without jitter.
    pub(crate) const REFUSED_FILE: Waits = between(600_000, 3600);
}

/// Exponential back-off with full jitter: the `n`th wait is a random time between `least` and `least * 2^n`,
/// and at most `most`.
///
/// Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015; the lower bound is ours.
#[derive(Debug)]
pub struct Backoff {
    least: Duration,
    most: Duration,
    failures: u32,
    rng: SmallRng,
}

impl Backoff {
    /// Waits within these bounds.
    pub(crate) fn of(waits: Waits) -> Self {
        Self::within(waits.least, waits.most)
    }

    /// Waits between `least` and `most`.
    pub fn within(least: Duration, most: Duration) -> Self {
        Self {
            least,
            most: most.max(least),
            failures: 0,
            rng: SmallRng::seed_from_u64(rand::random()),
        }
    }

    /// Makes the waits depend on the seed alone: the same seed gives the same waits.
    #[must_use]
    pub fn seeded(mut self, seed: u64) -> Self {
        self.rng = SmallRng::seed_from_u64(seed);
        self
    }

    /// How long to wait after one more failure.
    ///
    /// The wait that the server asks for is kept in full (up to [`LONGEST_RETRY_AFTER`]). A little jitter is
    /// added, so that clients that were refused together do not return together.
    #[allow(
        clippy::should_implement_trait,
        reason = "not an iterator: each step takes the server's `Retry-After`"
    )]
    pub fn next(&mut self, retry_after: Option<Duration>) -> Duration {
        self.failures = self.failures.saturating_add(1);
        match retry_after {
            Some(asked) => asked.min(LONGEST_RETRY_AFTER) + self.between(Duration::ZERO, self.least),
            None => {
                let factor = 1_u32.checked_shl(self.failures).unwrap_or(u32::MAX);
                let ceiling = self.least.saturating_mul(factor).min(self.most);
                self.between(self.least, ceiling)
            }
        }
    }

    /// How many failures there were since the start or the last [`Backoff::reset`].
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Starts from the shortest wait again, after a success.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    fn between(&mut self, low: Duration, high: Duration) -> Duration {
        self.rng.random_range(low..=high.max(low))
    }
}

/// How long a `Retry-After` header asks to wait: seconds, or an HTTP date relative to `now`. A date in the
/// past means no wait. Returns `None` for any other text.
///
/// Source: RFC 9110, section 10.2.3.
pub fn retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(value).ok()?.timestamp();
    Some(Duration::try_from(date.duration_since(now)).unwrap_or(Duration::ZERO))
}

/// Keeps a failure that repeats from filling the log: it logs the first failure of each kind, then one a
/// minute, and the recovery once.
#[derive(Debug)]
pub struct FailureLog {
    lane: &'static str,
    every: Duration,
    last_logged: Vec<(Kind, Instant)>,
    suppressed: u64,
    failures: u64,
    since: Option<Instant>,
}

impl FailureLog {
    /// Makes the failure log of one lane of work. The log lines carry the lane's name (for instance
    /// `delivery`).
    pub fn new(lane: &'static str) -> Self {
        Self {
            lane,
            every: Duration::from_secs(60),
            last_logged: Vec::new(),
            suppressed: 0,
            failures: 0,
            since: None,
        }
    }

    /// Records a failure. Returns whether it was logged.
    pub fn failed(&mut self, error: &Error) -> bool {
        self.failed_at(error, Instant::now())
    }

    fn failed_at(&mut self, error: &Error, now: Instant) -> bool {
        self.since.get_or_insert(now);
        self.failures += 1;
        let due = match self
            .last_logged
            .iter_mut()
            .find(|(kind, _)| *kind == error.kind())
        {
            Some((_, last)) if now.duration_since(*last) < self.every => false,
            Some((_, last)) => {
                *last = now;
                true
            }
            None => {
                self.last_logged.push((error.kind(), now));
                true
            }
        };
        if due {
            tracing::warn!(
                lane = self.lane,
                failures = self.failures,
                suppressed = self.suppressed,
                "{error}"
            );
            self.suppressed = 0;
        } else {
            self.suppressed += 1;
        }
        due
    }

    /// Records a success. Returns how long the lane had been failing, once after each series of failures.
    pub fn recovered(&mut self) -> Option<Duration> {
        self.recovered_at(Instant::now())
    }

    fn recovered_at(&mut self, now: Instant) -> Option<Duration> {
        let outage = now.duration_since(self.since.take()?);
        tracing::info!(
            lane = self.lane,
            failures = self.failures,
            seconds = outage.as_secs(),
            "works again"
        );
        self.last_logged.clear();
        self.suppressed = 0;
        self.failures = 0;
        Some(outage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_within_their_bounds_and_start_again() {
        let mut backoff = Backoff::within(Duration::from_millis(200), Duration::from_secs(60)).seeded(7);
        let (least, most) = (Duration::from_millis(200), Duration::from_secs(60));
        for attempt in 1..=200_u32 {
            let wait = backoff.next(None);
            let ceiling = least
                .saturating_mul(1_u32.checked_shl(attempt).unwrap_or(u32::MAX))
                .min(most);
            assert!(wait >= least && wait <= ceiling, "{attempt}: {wait:?}");
        }
        backoff.reset();
        assert!(backoff.next(None) <= Duration::from_millis(400));
        assert_eq!(backoff.failures(), 1);
    }

    #[test]
    fn waits_are_jittered_and_the_same_for_the_same_seed() {
        let waits = |seed| {
            let mut backoff =
                Backoff::within(Duration::from_millis(200), Duration::from_secs(60)).seeded(seed);
            (0..8).map(|_| backoff.next(None)).collect::<Vec<_>>()
        };
        assert_eq!(waits(1), waits(1));
        assert_ne!(waits(1), waits(2));
    }

    #[test]
    fn what_the_server_asks_for_is_waited_for_but_not_for_ever() {
        let mut backoff = Backoff::within(Duration::from_millis(200), Duration::from_secs(60)).seeded(3);
        let asked = Duration::from_secs(90);
        let wait = backoff.next(Some(asked));
        assert!(
            wait >= asked && wait <= asked + Duration::from_millis(200),
            "{wait:?}"
        );
        assert!(backoff.next(Some(Duration::MAX)) <= LONGEST_RETRY_AFTER + Duration::from_millis(200));
    }

    #[test]
    fn retry_after_reads_seconds_and_dates() {
        let now: Timestamp = "1994-11-06T08:49:00Z".parse().unwrap();
        for (value, expected) in [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(37)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("soon", None),
            ("-5", None),
            ("", None),
        ] {
            assert_eq!(
                retry_after(value, now),
                expected.map(Duration::from_secs),
                "{value}"
            );
        }
    }

    #[test]
    fn a_repeated_failure_is_logged_once_a_minute_and_its_end_once() {
        let away = Error::new(Kind::CloudUnreachable, "push rooms to the cloud", "it is away");
        let refused = Error::new(Kind::CloudAuth, "push rooms to the cloud", "the key is refused");
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut failure_log = FailureLog::new("delivery");
        assert_eq!(failure_log.recovered_at(at(0)), None);
        assert!(failure_log.failed_at(&away, at(0)));
        for second in 1..60 {
            assert!(!failure_log.failed_at(&away, at(second)));
        }
        assert!(failure_log.failed_at(&refused, at(59)), "another kind is news");
        assert!(failure_log.failed_at(&away, at(60)));
        assert_eq!(failure_log.recovered_at(at(60)), Some(Duration::from_secs(60)));
        assert_eq!(failure_log.recovered_at(at(60)), None);
        assert!(failure_log.failed_at(&away, at(61)));
    }
}
