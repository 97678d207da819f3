//! How long a change takes from capture to acceptance, and how long each step of the way takes.
//!
//! Each batch carries a [`Stopwatch`] through the drain. When the batch's checkpoint is committed, the times
//! of its steps are recorded. A step's time is its own work: the time between two steps, for instance while
//! the batch waits for the one before it or for an unreachable cloud, is in the total only.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A value for each step of a batch's way, and one for the whole way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PerStep<T> {
    /// From the capture of the batch's oldest change until the batch is read: the commit, the wake-up, the
    /// snapshot, and under load the batches before it. Zero if the two machines' clocks give a negative time.
    pub wake: T,
    /// The query of the batch, to its last row.
    pub read: T,
    /// From sending a request to its answer, without `apply`. Requests without an answer do not count.
    pub push: T,
    /// The server's own time until its commit, if it reports it in `Server-Timing`.
    pub apply: T,
    /// The commit of the checkpoint in the local store.
    pub commit: T,
    /// From the capture of the oldest change to the committed checkpoint.
    pub total: T,
}

impl<T> PerStep<T> {
    /// The steps in order with their names, without the total.
    pub fn named(&self) -> [(&'static str, &T); 5] {
        [
            ("wake", &self.wake),
            ("read", &self.read),
            ("push", &self.push),
            ("apply", &self.apply),
            ("commit", &self.commit),
        ]
    }

    /// Applies `make` to each value.
    pub fn map<U>(&self, make: impl Fn(&T) -> U) -> PerStep<U> {
        PerStep {
            wake: make(&self.wake),
            read: make(&self.read),
            push: make(&self.push),
            apply: make(&self.apply),
            commit: make(&self.commit),
            total: make(&self.total),
        }
    }
}

/// How long the answers to a batch's requests took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AnswerTimes {
    /// The time from sending each request to its answer, summed.
    pub took: Duration,
    /// How much of it the server reports as its own; `None` if it reports nothing.
    pub applied: Option<Duration>,
}

impl AnswerTimes {
    /// The sum of the two.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let applied = self.applied.into_iter().chain(other.applied);
        Self {
            took: self.took + other.took,
            applied: applied.reduce(|left, right| left + right),
        }
    }
}

/// Measures one batch from its read to its commit. It uses the monotonic clock, except for the wake-up.
#[derive(Debug, Clone, Copy)]
pub struct Stopwatch {
    began: Instant,
    began_at: SystemTime,
    steps: PerStep<Option<Duration>>,
}

impl Stopwatch {
    /// Starts when the batch's query begins.
    pub fn start() -> Self {
        Self {
            began: Instant::now(),
            began_at: SystemTime::now(),
            steps: PerStep::default(),
        }
    }

    /// Records that the batch is read. Its oldest change was captured at `oldest`, in microseconds since
    /// 1970; `None` if it is empty.
    #[must_use]
    pub fn read(mut self, oldest: Option<i64>) -> Self {
        self.steps.read = Some(self.began.elapsed());
        self.steps.wake = oldest.map(|micros| {
            let captured = UNIX_EPOCH + Duration::from_micros(micros.max(0) as u64);
            self.began_at.duration_since(captured).unwrap_or_default()
        });
        self
    }

    /// Records that the cloud has answered; `None` if nothing was sent.
    #[must_use]
    pub fn pushed(mut self, answered: Option<AnswerTimes>) -> Self {
        if let Some(AnswerTimes { took, applied }) = answered {
            self.steps.push = Some(took.saturating_sub(applied.unwrap_or_default()));
            self.steps.apply = applied;
        }
        self
    }

    /// Records that the checkpoint is committed, and how long that took. Returns the times of all steps.
    #[must_use]
    pub fn committed(mut self, took: Duration) -> PerStep<Option<Duration>> {
        self.steps.commit = Some(took);
        self.steps.total = self.steps.wake.map(|wake| wake + self.began.elapsed());
        self.steps
    }
}

/// Two percentiles of the recent times, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Half of them are at most this.
    pub p50_ms: f64,
    /// 99 of 100 are at most this.
    pub p99_ms: f64,
}

/// How many samples [`Latency`] keeps.
const SAMPLES: usize = 4096;

/// The last 4096 latencies, for percentiles of the present.
#[derive(Debug, Default)]
pub struct Latency(Mutex<LatencyRing>);

#[derive(Debug, Default)]
struct LatencyRing {
    samples: Vec<Duration>,
    next: usize,
}

impl Latency {
    /// Records a sample. If the ring is full, it replaces the oldest one.
    pub fn record(&self, latency: Duration) {
        let mut ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.samples.len() < SAMPLES {
            ring.samples.push(latency);
        } else {
            let next = ring.next;
            ring.samples[next] = latency;
        }
        ring.next = (ring.next + 1) % SAMPLES;
    }

    /// The smallest sample such that `percent` of all samples are at or below it (nearest rank); `None` if
    /// there is no sample.
    pub fn percentile(&self, percent: f64) -> Option<Duration> {
        let mut samples = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .samples
            .clone();
        if samples.is_empty() {
            return None;
        }
        let rank = (samples.len() as f64 * percent.clamp(0.0, 100.0) / 100.0).ceil() as usize;
        let (_, sample, _) = samples.select_nth_unstable(rank.max(1) - 1);
        Some(*sample)
    }

    /// The percentiles that are shown; `None` if there is no sample.
    pub fn percentiles(&self) -> Option<Percentiles> {
        let ms = |percent| Some(self.percentile(percent)?.as_secs_f64() * 1000.0);
        Some(Percentiles {
            p50_ms: ms(50.0)?,
            p99_ms: ms(99.0)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let latency = Latency::default();
        assert_eq!(latency.percentile(50.0), None);
        assert_eq!(latency.percentiles(), None);
        for ms in (1..=100).rev() {
            latency.record(Duration::from_millis(ms));
        }
        assert_eq!(latency.percentile(0.0), Some(MS));
        assert_eq!(latency.percentile(100.0), Some(100 * MS));
        assert_eq!(
            latency.percentiles(),
            Some(Percentiles {
                p50_ms: 50.0,
                p99_ms: 99.0
            })
        );
    }

    #[test]
    fn new_samples_replace_the_oldest() {
        let latency = Latency::default();
        for _ in 0..SAMPLES {
            latency.record(Duration::from_secs(9));
        }
        for _ in 0..SAMPLES {
            latency.record(Duration::from_secs(1));
        }
        assert_eq!(latency.percentile(100.0), Some(Duration::from_secs(1)));
    }

    #[test]
    fn what_the_server_took_is_no_part_of_the_push() {
        let with_apply = AnswerTimes {
            took: 10 * MS,
            applied: Some(4 * MS),
        };
        let without_apply = AnswerTimes {
            took: 5 * MS,
            applied: None,
        };
        let steps = Stopwatch::start().pushed(Some(with_apply.plus(without_apply).plus(with_apply)));
        let steps = steps.committed(2 * MS);
        assert_eq!((steps.push, steps.apply), (Some(17 * MS), Some(8 * MS)));
        assert_eq!(steps.commit, Some(2 * MS));
        let steps = Stopwatch::start().pushed(Some(without_apply)).committed(MS);
        assert_eq!((steps.push, steps.apply), (Some(5 * MS), None));
        let steps = Stopwatch::start().pushed(None).committed(MS);
        assert_eq!((steps.push, steps.apply), (None, None));
    }

    #[test]
    fn the_total_begins_with_the_oldest_capture_and_is_never_negative() {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as i64;
        let hour = 3_600_000_000;
        let steps = Stopwatch::start().read(Some(now() - hour)).committed(MS);
        assert!(steps.wake.unwrap() > Duration::from_secs(3500));
        assert!(steps.total.unwrap() >= steps.wake.unwrap() + steps.read.unwrap());
        // The clock of the source's machine is ahead.
        let steps = Stopwatch::start().read(Some(now() + hour)).committed(MS);
        assert_eq!(steps.wake, Some(Duration::ZERO));
        // The batch is empty.
        let steps = Stopwatch::start().read(None).committed(MS);
        assert_eq!((steps.wake, steps.total), (None, None));
    }
}
