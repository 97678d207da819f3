//! When the next sync is due: a cron expression in local time.
//!
//! [`run_schedule`] reads the clock at least every 30 seconds. So a clock that is set forward delays a sync
//! by at most 30 seconds, and a clock that is set backward does not postpone it. However many due times were
//! missed, the sync runs once. An hour that a daylight saving change repeats or skips counts as cron counts
//! it: see croner.

use std::str::FromStr;
use std::time::Duration;

use croner::Cron;
use jiff::Zoned;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};

/// The longest time between two reads of the clock.
const CLOCK_CHECK: Duration = Duration::from_secs(30);

/// The times at which a sync is due.
#[derive(Debug, Clone)]
pub struct Schedule(Cron);

impl Schedule {
    /// Makes a schedule from a cron expression: minute, hour, day, month, weekday, and optionally seconds
    /// before them.
    ///
    /// # Errors
    /// A configuration error if the text is no cron expression.
    pub fn new(text: &str) -> Result<Self> {
        Cron::from_str(text).map(Self).map_err(|error| {
            Error::config(format!("use the schedule {text:?}"), error.to_string())
                .remedy("write five fields, as in \"0 * * * *\" for each full hour")
        })
    }

    /// The first due time after `now`, in its time zone; `None` if there is none.
    pub fn next_after(&self, now: &Zoned) -> Option<Zoned> {
        self.0.find_next_occurrence(now, false).ok()
    }
}

/// Calls `due` at each due time of the schedule, until shutdown. `clock` returns the wall clock's time, as
/// [`Zoned::now`] does. `due` itself must observe shutdown: it is not interrupted.
pub async fn run_schedule<F: Future<Output = ()>>(
    schedule: &Schedule,
    clock: impl Fn() -> Zoned,
    shutdown: &CancellationToken,
    mut due: impl FnMut() -> F,
) {
    let mut next = schedule.next_after(&clock());
    while !shutdown.is_cancelled() {
        let now = clock();
        if next.as_ref().is_some_and(|next| *next <= now) {
            due().await;
            next = schedule.next_after(&clock());
            continue;
        }
        // Only a clock that was set backward makes this earlier than the due time that was computed before.
        let next_from_now = schedule.next_after(&now);
        if next_from_now < next || next.is_none() {
            next = next_from_now;
        }
        let wait = next.as_ref().map_or(CLOCK_CHECK, |next| {
            Duration::try_from(next.timestamp().duration_since(now.timestamp()))
                .map_or(CLOCK_CHECK, |wait| wait.min(CLOCK_CHECK))
        });
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use jiff::{SignedDuration, Timestamp, tz::TimeZone};
    use tokio::time::Instant;

    use super::*;

    fn zoned(text: &str) -> Zoned {
        text.parse().unwrap()
    }

    #[test]
    fn next_is_in_local_time_and_strictly_later() {
        let hourly = Schedule::new("0 * * * *").unwrap();
        let next = |now| hourly.next_after(&zoned(now)).unwrap();
        assert_eq!(
            next("2026-11-22T08:00:00+08:00[Asia/Manila]"),
            zoned("2026-11-22T09:00:00+08:00[Asia/Manila]")
        );
        let nightly = Schedule::new("30 2 * * *").unwrap();
        let over_midnight = nightly.next_after(&zoned("2026-11-22T20:00:00+08:00[Asia/Manila]"));
        assert_eq!(
            over_midnight.unwrap(),
            zoned("2026-11-23T02:30:00+08:00[Asia/Manila]")
        );
    }

    #[test]
    fn wrong_expressions_are_refused() {
        for text in ["", "hourly", "61 * * * *", "* * *"] {
            assert_eq!(Schedule::new(text).unwrap_err().exit_code(), 2, "{text}");
        }
    }

    /// A wall clock that follows tokio's paused time and can be set.
    struct Wall {
        began: Instant,
        at: Timestamp,
        set_by: AtomicI64,
    }

    impl Wall {
        fn new(text: &str) -> Self {
            Self {
                began: Instant::now(),
                at: text.parse().unwrap(),
                set_by: AtomicI64::new(0),
            }
        }

        fn now(&self) -> Zoned {
            let passed = SignedDuration::try_from(self.began.elapsed()).unwrap()
                + SignedDuration::from_secs(self.set_by.load(Ordering::Relaxed));
            (self.at + passed).to_zoned(TimeZone::UTC)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn runs_at_each_due_time_until_shutdown() {
        let wall = Wall::new("2026-11-22T08:58:30Z");
        let shutdown = CancellationToken::new();
        let mut seen = Vec::new();
        run_schedule(
            &Schedule::new("0 * * * *").unwrap(),
            || wall.now(),
            &shutdown,
            || {
                seen.push(wall.now().strftime("%H:%M:%S").to_string());
                if seen.len() == 3 {
                    shutdown.cancel();
                }
                std::future::ready(())
            },
        )
        .await;
        assert_eq!(seen, ["09:00:00", "10:00:00", "11:00:00"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_set_forward_runs_what_was_missed_once() {
        let wall = Wall::new("2026-11-22T08:01:00Z");
        let shutdown = CancellationToken::new();
        let mut seen = Vec::new();
        let schedule = Schedule::new("0 * * * *").unwrap();
        let clock = || {
            if wall.began.elapsed() >= Duration::from_secs(60) {
                wall.set_by.store(5 * 3600, Ordering::Relaxed);
            }
            wall.now()
        };
        run_schedule(&schedule, clock, &shutdown, || {
            seen.push(wall.now().strftime("%H:%M").to_string());
            if seen.len() == 2 {
                shutdown.cancel();
            }
            std::future::ready(())
        })
        .await;
        assert_eq!(seen, ["13:02", "14:00"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_set_backward_does_not_postpone_it() {
        let wall = Wall::new("2026-11-22T08:30:00Z");
        let shutdown = CancellationToken::new();
        let schedule = Schedule::new("0 * * * *").unwrap();
        let clock = || {
            if wall.began.elapsed() >= Duration::from_secs(60) {
                wall.set_by.store(-24 * 3600, Ordering::Relaxed);
            }
            wall.now()
        };
        run_schedule(&schedule, clock, &shutdown, || {
            shutdown.cancel();
            std::future::ready(())
        })
        .await;
        assert_eq!(wall.now().strftime("%d %H:%M").to_string(), "21 09:00");
    }

    #[tokio::test(start_paused = true)]
    async fn shutdown_is_heard_while_waiting() {
        let shutdown = CancellationToken::new();
        let schedule = Schedule::new("0 0 1 1 *").unwrap();
        let stop = async {
            tokio::time::sleep(Duration::from_secs(100)).await;
            shutdown.cancel();
        };
        tokio::join!(
            run_schedule(&schedule, Zoned::now, &shutdown, || std::future::ready(())),
            stop
        );
    }
}
