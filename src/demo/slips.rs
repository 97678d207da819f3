//! Leave and pass slips: the values of the row, and the path and picture of the scanned form.

use jiff::ToSpan;
use jiff::civil::{Date, Time};
use rand::RngExt;

use super::people::{DECISIONS, LEAVE_REASONS, PASS_REASONS, pick, rng_for};
use super::pictures;

/// A leave for some days.
pub(super) struct Leave {
    number: i64,
    /// The faculty who asks for it.
    pub(super) faculty: i64,
    /// The reason.
    pub(super) reason: &'static str,
    /// `Sick`, `Personal` and so on.
    pub(super) kind: &'static str,
    /// `Approved`, `Pending` or `Denied`.
    pub(super) status: &'static str,
    /// First day.
    pub(super) start: Date,
    /// Last day.
    pub(super) end: Date,
}

impl Leave {
    /// The leave with this number: one of the first `faculties` asked for it on this day.
    pub(super) fn new(seed: u64, number: i64, faculties: i64, requested: Date) -> Self {
        let mut rng = rng_for(seed, "leave", number);
        let (reason, kind) = pick(&LEAVE_REASONS, &mut rng);
        let start = requested.saturating_add(rng.random_range(0..10).days());
        Self {
            number,
            faculty: rng.random_range(1..=faculties),
            reason,
            kind,
            status: pick(&DECISIONS, &mut rng),
            start,
            end: start.saturating_add(rng.random_range(0..6).days()),
        }
    }

    /// The path of its scan below the media root.
    pub(super) fn path(&self) -> String {
        format!("leave_slips/leave_{:06}.jpg", self.number)
    }

    /// The picture of the scanned form.
    pub(super) fn scan(&self) -> &'static [u8] {
        pictures::leave_slip(self.number)
    }
}

/// A pass to leave the campus for some hours.
pub(super) struct PassSlip {
    number: i64,
    /// The faculty who asks for it.
    pub(super) faculty: i64,
    /// The reason.
    pub(super) reason: &'static str,
    /// `Approved`, `Pending` or `Denied`.
    pub(super) status: &'static str,
    /// The day.
    pub(super) date: Date,
    /// When the faculty leaves the campus.
    pub(super) time_out: Time,
    /// When the faculty is back.
    pub(super) time_in: Time,
}

impl PassSlip {
    /// The pass with this number, for this day and one of the first `faculties`.
    pub(super) fn new(seed: u64, number: i64, faculties: i64, date: Date) -> Self {
        let mut rng = rng_for(seed, "pass", number);
        let (hour, minute) = (rng.random_range(8..15), rng.random_range(0..12) * 5);
        Self {
            number,
            faculty: rng.random_range(1..=faculties),
            reason: pick(&PASS_REASONS, &mut rng),
            status: pick(&DECISIONS, &mut rng),
            date,
            time_out: jiff::civil::time(hour, minute, 0, 0),
            time_in: jiff::civil::time(hour + rng.random_range(1..4), minute, 0, 0),
        }
    }

    /// The path of its scan below the media root.
    pub(super) fn path(&self) -> String {
        format!("pass_slips/pass_{:06}.jpg", self.number)
    }

    /// The picture of the scanned form.
    pub(super) fn scan(&self) -> &'static [u8] {
        pictures::pass_slip(self.number)
    }
}
