//! What a person sees while rows are measured, and how long a row that nobody named may take.

use std::time::{Duration, Instant};

/// So that all rows take less than 15 minutes.
pub(crate) const ALLOWANCE: Allowance = Allowance {
    row: Duration::from_secs(75),
    all: Duration::from_secs(600),
};

/// How long it may take until no second or third run begins.
#[derive(Clone)]
pub(crate) struct Allowance {
    /// Since the row began.
    row: Duration,
    /// Since the program began.
    all: Duration,
}

/// What a person sees while it runs, on standard error.
pub(crate) struct Progress<'a> {
    pub(crate) name: &'a str,
    pub(crate) start: Instant,
    /// When this row began.
    pub(crate) row: Instant,
    pub(crate) runs: usize,
    pub(crate) allowance: Option<Allowance>,
}

impl Progress<'_> {
    pub(crate) fn say(&self, what: &str) {
        let seconds = self.start.elapsed().as_secs();
        eprintln!("[{seconds:4} s] {}: {what}", self.name);
    }

    /// The runs, from 0; none begins after the allowance is used up.
    pub(crate) fn runs(&self) -> impl Iterator<Item = usize> {
        (0..self.runs).take_while(|&run| {
            let used_up = self.allowance.as_ref().is_some_and(|allowance| {
                self.row.elapsed() > allowance.row || self.start.elapsed() > allowance.all
            });
            let used_up = run > 0 && used_up;
            if used_up {
                self.say(&format!("run {} is left out: it takes too long", run + 1));
            }
            !used_up
        })
    }

    /// `run` counts from 0.
    pub(crate) fn run(&self, run: usize, what: &str) {
        self.say(&format!("run {} of {}: {what}", run + 1, self.runs));
    }
}
