//! When each file that rows name is compared with what is recorded of it: at the start, every
//! `media.rescan`, and when somebody asks. It goes page by page, so that uploads go on and memory is
//! bounded.

use std::time::Duration;

use tokio::time::Instant;

/// Files in a page.
pub(super) const PAGE: usize = 1_000;

/// Up to so many files, a rescan comes every minute if the configuration leaves it to us; with more, less
/// often in proportion.
const FILES_A_MINUTE: u64 = 10_000;

/// The longest time between two rescans that we choose.
const LONGEST: Duration = Duration::from_secs(600);

/// The pause after a page of a rescan that nobody waits for, as a multiple of what the page took.
const PAUSE: u32 = 20;

/// The time between two rescans that are asked for by lost events.
const SHORTEST: Duration = Duration::from_secs(5);

/// The rescans' schedule, and how far the present one is.
#[derive(Debug)]
pub(super) struct Rescan {
    /// What the configuration says; `None` if it leaves it to us.
    every: Option<Duration>,
    /// The last path that was looked at in the present rescan; `None` between two.
    after: Option<String>,
    /// When the next page is due, or the next rescan begins.
    next_at: Instant,
    began: Instant,
    /// Files in the present rescan so far.
    files: u64,
    /// Whether somebody waits for it: no pauses.
    is_urgent: bool,
    /// The request that it answers.
    request: u64,
}

impl Rescan {
    /// The first one is due at once.
    pub(super) fn new(every: Option<Duration>) -> Self {
        let now = Instant::now();
        Self {
            every,
            after: None,
            next_at: now,
            began: now,
            files: 0,
            is_urgent: true,
            request: 0,
        }
    }

    /// The request that it answers.
    pub(super) fn request(&self) -> u64 {
        self.request
    }

    /// When the next page is to be looked at.
    pub(super) fn next_at(&self) -> Instant {
        self.next_at
    }

    /// Begins again at once, for the request of this number.
    pub(super) fn begin_now(&mut self, request: u64) {
        self.after = None;
        self.next_at = Instant::now();
        self.is_urgent = true;
        self.request = request;
    }

    /// Begins again soon, since events were lost.
    pub(super) fn begin_soon(&mut self) {
        let soon = (self.began + SHORTEST).max(Instant::now());
        // One that is in progress may have passed what was lost.
        self.after = None;
        self.next_at = self.next_at.min(soon).max(Instant::now());
        self.is_urgent = true;
    }

    /// The path after which the next page begins; empty for the first one of a rescan.
    pub(super) fn page_begins(&mut self) -> String {
        if self.after.is_none() {
            self.began = Instant::now();
            self.files = 0;
        }
        self.after.clone().unwrap_or_default()
    }

    /// Notes that a page was looked at: its last path, if there may be more behind it; its files; and how long
    /// it took. Returns the request that is answered if the rescan has ended.
    pub(super) fn page_done(&mut self, last: Option<String>, files: usize, took: Duration) -> Option<u64> {
        self.files += files as u64;
        let now = Instant::now();
        let is_over = last.is_none();
        self.after = last;
        if !is_over {
            self.next_at = now
                + if self.is_urgent {
                    Duration::ZERO
                } else {
                    took * PAUSE
                };
            return None;
        }
        self.is_urgent = false;
        self.next_at = now.max(self.began + self.interval());
        Some(self.request)
    }

    /// The time from the begin of one rescan to the next.
    pub(super) fn interval(&self) -> Duration {
        self.every.unwrap_or_else(|| {
            let minutes = self.files.div_ceil(FILES_A_MINUTE).max(1);
            Duration::from_secs(60 * minutes).min(LONGEST)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn a_rescan_comes_every_minute_or_less_often_the_more_files_there_are() {
        for (pages, minutes) in [(0, 1), (10, 1), (25, 3), (5_000, 10)] {
            let mut rescan = Rescan::new(None);
            let began = Instant::now();
            for nth in 0..pages {
                let after = rescan.page_begins();
                assert_eq!(after.is_empty(), nth == 0);
                assert_eq!(rescan.page_done(Some(nth.to_string()), PAGE, MS), None);
                assert_eq!(rescan.next_at(), Instant::now(), "the first one makes no pauses");
            }
            rescan.page_begins();
            assert_eq!(rescan.page_done(None, 0, MS), Some(0));
            assert_eq!(
                rescan.next_at(),
                began + Duration::from_secs(60 * minutes),
                "{pages}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_rescan_that_nobody_waits_for_makes_pauses_and_one_that_is_asked_for_begins_at_once() {
        let mut rescan = Rescan::new(Some(Duration::from_secs(300)));
        rescan.page_begins();
        assert_eq!(rescan.page_done(None, 5, MS), Some(0));
        assert_eq!(rescan.next_at(), Instant::now() + Duration::from_secs(300));
        tokio::time::advance(Duration::from_secs(300)).await;
        rescan.page_begins();
        rescan.page_done(Some("m".into()), PAGE, 10 * MS);
        assert_eq!(rescan.next_at(), Instant::now() + 200 * MS);
        assert_eq!(rescan.page_begins(), "m");
        rescan.begin_now(3);
        assert_eq!(rescan.next_at(), Instant::now());
        assert_eq!(rescan.page_begins(), "");
        assert_eq!(rescan.page_done(None, 5, MS), Some(3));
        // Lost events cannot make it begin over and over.
        rescan.begin_soon();
        assert_eq!(rescan.next_at(), Instant::now() + SHORTEST);
    }
}
