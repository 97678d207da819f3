//! The lag over the last hour, day and week, in bounded memory: the highest of each minute, of each ten
//! minutes and of each hour. It begins with the process.

use std::collections::VecDeque;

/// How often the lag is noted, in seconds.
pub(super) const EVERY: u64 = 10;

/// How much time is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum LagRange {
    /// The last hour.
    #[default]
    Hour,
    /// The last day.
    Day,
    /// The last week.
    Week,
}

impl LagRange {
    pub(super) const ALL: [Self; 3] = [Self::Hour, Self::Day, Self::Week];

    /// Its name in URLs.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Week => "week",
        }
    }

    /// The range of this name.
    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|range| range.name() == name)
    }

    /// Seconds of one slot.
    pub(super) fn slot(self) -> u64 {
        match self {
            Self::Hour => 60,
            Self::Day => 600,
            Self::Week => 3600,
        }
    }

    /// Slots in the range.
    pub(super) fn slots(self) -> u64 {
        match self {
            Self::Hour => 60,
            Self::Day => 144,
            Self::Week => 168,
        }
    }
}

/// The highest lags, by time.
#[derive(Debug, Default)]
pub(super) struct LagHistory([Slots; 3]);

/// The slots of a range: the number of the slot since 1970, and its highest lag in seconds. A slot without
/// a note is not there.
#[derive(Debug, Default)]
struct Slots(VecDeque<(u64, f64)>);

impl LagHistory {
    /// Notes the lag at a time, both in seconds; the time is since 1970.
    pub(super) fn note(&mut self, at: u64, lag: f64) {
        for (range, slots) in LagRange::ALL.into_iter().zip(&mut self.0) {
            slots.note(at / range.slot(), range.slots(), lag);
        }
    }

    /// The highest lag of each slot of the range that ends now, the oldest first; `None` where it is not
    /// known.
    pub(super) fn lags(&self, range: LagRange, now: u64) -> Vec<Option<f64>> {
        let index = LagRange::ALL.iter().position(|other| *other == range);
        let slots = &self.0[index.unwrap_or_default()].0;
        let last = now / range.slot();
        let mut lags = vec![None; range.slots() as usize];
        for (slot, lag) in slots {
            if let Some(age) = last.checked_sub(*slot).filter(|age| *age < range.slots()) {
                let index = range.slots() - 1 - age;
                lags[index as usize] = Some(*lag);
            }
        }
        lags
    }
}

impl Slots {
    fn note(&mut self, slot: u64, kept: u64, lag: f64) {
        match self.0.back_mut() {
            Some((last, highest)) if *last == slot => *highest = highest.max(lag),
            // The clock was put back: what lies ahead of it is not of the past.
            Some((last, _)) if *last > slot => {
                self.0.retain(|(other, _)| *other < slot);
                self.0.push_back((slot, lag));
            }
            _ => self.0.push_back((slot, lag)),
        }
        while self.0.front().is_some_and(|(first, _)| first + kept <= slot) {
            self.0.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_slot_has_its_highest_lag_and_old_ones_go() {
        let mut history = LagHistory::default();
        let start = 1_700_000_400;
        for (second, lag) in [(0, 1.0), (10, 5.0), (20, 2.0), (180, 7.0)] {
            history.note(start + second, lag);
        }
        let hour = history.lags(LagRange::Hour, start + 180);
        assert_eq!(hour.len(), 60);
        assert_eq!(hour[56..], [Some(5.0), None, None, Some(7.0)]);
        let day = history.lags(LagRange::Day, start + 180);
        assert_eq!(day[143], Some(7.0));
        assert!(
            history
                .lags(LagRange::Hour, start + 7200)
                .iter()
                .all(Option::is_none)
        );
        assert_eq!(history.lags(LagRange::Day, start + 7200)[131], Some(7.0));
    }

    #[test]
    fn a_year_takes_no_more_memory_than_a_week() {
        let mut history = LagHistory::default();
        for at in (0..366 * 86_400).step_by(60) {
            history.note(at, 1.0);
        }
        let kept: Vec<usize> = history.0.iter().map(|slots| slots.0.len()).collect();
        assert_eq!(kept, [60, 144, 168]);
    }

    #[test]
    fn a_clock_that_was_put_back_loses_nothing_but_what_lies_ahead() {
        let mut history = LagHistory::default();
        history.note(60_000, 1.0);
        history.note(60_300, 2.0);
        history.note(60_060, 3.0);
        let lags = history.lags(LagRange::Hour, 60_060);
        assert_eq!(lags[58..], [Some(1.0), Some(3.0)]);
    }
}
