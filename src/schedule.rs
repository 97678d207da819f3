//! When the next sync is due: in plain words ([`words`]) or as a cron expression, in a time zone.
//!
//! [`run_schedule`] reads the clock at least every 30 seconds. So a clock that is set forward delays a sync
//! by at most 30 seconds, and a clock that is set backward does not postpone it. However many due times were
//! missed, also while the program did not run, the sync runs once. Where daylight saving skips an hour, what
//! is due in it runs when it is over; where it repeats an hour, what is due once a day runs once: see croner.

mod words;

use std::str::FromStr;
use std::time::Duration;

use croner::Cron;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Zoned};
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};

/// The longest time between two reads of the clock.
const CLOCK_CHECK: Duration = Duration::from_secs(30);

/// The times at which a sync is due.
#[derive(Debug, Clone)]
pub struct Schedule {
    cron: Cron,
    /// `None` is the zone of the clock.
    zone: Option<TimeZone>,
    /// How much later it is due: many sites with one schedule do not come all at once.
    delay: SignedDuration,
}

impl Schedule {
    /// Makes a schedule from plain words, or from a cron expression: minute, hour, day, month, weekday, and
    /// optionally seconds before them.
    ///
    /// # Errors
    /// A configuration error if the text is neither.
    pub fn new(text: &str) -> Result<Self> {
        let cron = parse(text).map_err(|why| {
            Error::config(format!("use the schedule {text:?}"), format!("it {why}")).remedy(
                "write words as in \"daily at 02:00\", or five fields as in \"0 * * * *\" for each full hour",
            )
        })?;
        Ok(Self {
            cron,
            zone: None,
            delay: SignedDuration::ZERO,
        })
    }

    /// The same in this time zone.
    pub fn in_zone(mut self, zone: TimeZone) -> Self {
        self.zone = Some(zone);
        self
    }

    /// The same, so much later each time.
    pub fn delayed_by(mut self, delay: Duration) -> Self {
        self.delay = SignedDuration::try_from(delay).unwrap_or_default();
        self
    }

    /// The first due time after `now`; `None` if there is none. It is in the zone of `now`, whatever the
    /// schedule's is.
    pub fn next_after(&self, now: &Zoned) -> Option<Zoned> {
        let zone = self.zone.clone().unwrap_or_else(|| now.time_zone().clone());
        let before = now.timestamp().checked_sub(self.delay).ok()?.to_zoned(zone);
        let next = self.cron.find_next_occurrence(&before, false).ok()?;
        let due = next.timestamp().checked_add(self.delay).ok()?;
        Some(due.to_zoned(now.time_zone().clone()))
    }
}

/// Parses plain words or a cron expression. An error is the rest of a sentence about the text.
pub(crate) fn parse(text: &str) -> std::result::Result<Cron, String> {
    let cron = words::cron_of(text)?.unwrap_or_else(|| text.to_owned());
    Cron::from_str(&cron).map_err(|error| {
        format!(
            "is neither words as in \"daily at 02:00\" nor a cron expression as in \"0 * * * *\" ({error})"
        )
    })
}

/// Calls `due` at each due time of the schedule, until shutdown; at once if one was missed since `last`, when
/// it ran last. `clock` returns the wall clock's time, as [`Zoned::now`] does. `due` itself must observe
/// shutdown: it is not interrupted.
pub async fn run_schedule<F: Future<Output = ()>>(
    schedule: &Schedule,
    last: Option<Zoned>,
    clock: impl Fn() -> Zoned,
    shutdown: &CancellationToken,
    mut due: impl FnMut() -> F,
) {
    let now = clock();
    // A time that lies ahead is of a clock that was wrong.
    let last = last.filter(|last| *last < now).unwrap_or(now);
    let mut next = schedule.next_after(&last);
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
        for text in ["", "sometimes", "every 5 hours", "61 * * * *", "* * *"] {
            assert_eq!(Schedule::new(text).unwrap_err().exit_code(), 2, "{text}");
        }
    }

    /// The due times of a schedule within some days, in its zone.
    fn due_times(text: &str, zone: &str, from: &str, days: i64) -> Vec<String> {
        let schedule = Schedule::new(text).unwrap().in_zone(TimeZone::get(zone).unwrap());
        let mut now = format!("{from}T00:00:00+00:00[UTC]").parse::<Zoned>().unwrap();
        let end = now.checked_add(jiff::Span::new().days(days)).unwrap();
        let mut times = Vec::new();
        while let Some(next) = schedule.next_after(&now).filter(|next| *next < end) {
            let local = next.with_time_zone(TimeZone::get(zone).unwrap());
            times.push(local.strftime("%d %H:%M%:z").to_string());
            now = next;
        }
        times
    }

    #[test]
    fn daylight_saving_neither_skips_nor_doubles_a_day() {
        // Berlin: 2026-03-29 has no 02:00 to 03:00; 2026-10-25 has it twice. Manila has none of it.
        for (text, zone, from, days, times) in [
            (
                "daily at 02:30",
                "Europe/Berlin",
                "2026-03-28",
                3,
                &["28 02:30+01:00", "29 03:00+02:00", "30 02:30+02:00"][..],
            ),
            (
                "daily at 02:30",
                "Europe/Berlin",
                "2026-10-24",
                3,
                &["24 02:30+02:00", "25 02:30+02:00", "26 02:30+01:00"],
            ),
            (
                "daily at 18:30",
                "Europe/Berlin",
                "2026-03-28",
                2,
                &["28 18:30+01:00", "29 18:30+02:00"],
            ),
            (
                "weekdays at 02:00",
                "Asia/Manila",
                "2026-10-22",
                5,
                &["23 02:00+08:00", "26 02:00+08:00", "27 02:00+08:00"],
            ),
            (
                "every 12 hours",
                "Europe/Berlin",
                "2026-10-24",
                2,
                &[
                    "24 12:00+02:00",
                    "25 00:00+02:00",
                    "25 12:00+01:00",
                    "26 00:00+01:00",
                ],
            ),
        ] {
            assert_eq!(due_times(text, zone, from, days), times, "{text} from {from}");
        }
        // An hourly one runs each hour that passes, also where the clock on the wall repeats or skips one.
        let spring = due_times("hourly", "Europe/Berlin", "2026-03-28", 2);
        let autumn = due_times("hourly", "Europe/Berlin", "2026-10-24", 2);
        assert_eq!((spring.len(), autumn.len()), (47, 47), "{spring:?} {autumn:?}");
    }

    #[test]
    fn a_delay_comes_on_top_of_each_due_time() {
        let schedule = Schedule::new("hourly")
            .unwrap()
            .delayed_by(Duration::from_secs(90));
        let next = |now| {
            schedule
                .next_after(&zoned(now))
                .unwrap()
                .strftime("%H:%M:%S")
                .to_string()
        };
        assert_eq!(next("2026-11-22T08:00:00Z[UTC]"), "08:01:30");
        assert_eq!(next("2026-11-22T08:01:30Z[UTC]"), "09:01:30");
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
            None,
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
    async fn what_was_missed_while_nothing_ran_is_run_once() {
        for (last, seen_at) in [
            // Two were missed.
            (Some("2026-11-22T05:30:00Z[UTC]"), ["08:10", "09:00"]),
            // None was.
            (Some("2026-11-22T08:00:30Z[UTC]"), ["09:00", "10:00"]),
            (None, ["09:00", "10:00"]),
            // The clock was wrong then.
            (Some("2027-11-22T05:30:00Z[UTC]"), ["09:00", "10:00"]),
        ] {
            let wall = Wall::new("2026-11-22T08:10:00Z");
            let shutdown = CancellationToken::new();
            let mut seen = Vec::new();
            let schedule = Schedule::new("hourly").unwrap();
            run_schedule(
                &schedule,
                last.map(zoned),
                || wall.now(),
                &shutdown,
                || {
                    seen.push(wall.now().strftime("%H:%M").to_string());
                    if seen.len() == 2 {
                        shutdown.cancel();
                    }
                    std::future::ready(())
                },
            )
            .await;
            assert_eq!(seen, seen_at, "{last:?}");
        }
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
        run_schedule(&schedule, None, clock, &shutdown, || {
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
        run_schedule(&schedule, None, clock, &shutdown, || {
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
            run_schedule(&schedule, None, Zoned::now, &shutdown, || std::future::ready(())),
            stop
        );
    }
}
