//! The last times when the drain did not replicate: since when, until when, and why. Bounded.

use std::collections::VecDeque;

use jiff::Timestamp;

use super::replication_state::{Condition, Peer};

/// How many are kept.
const KEPT: usize = 20;

/// A time when the drain did not replicate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incident {
    /// When it began.
    pub since: Timestamp,
    /// When it ended; `None` while it lasts.
    pub until: Option<Timestamp>,
    /// What kind it is.
    pub kind: IncidentKind,
    /// The last error, with its remedy.
    pub reason: String,
}

/// Why the drain did not replicate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IncidentKind {
    /// The source or the cloud was away.
    Away(Peer),
    /// The cloud refused the key.
    KeyRefused,
    /// It stopped for good.
    Stopped,
    /// Somebody paused it.
    Paused,
}

/// Since when the condition is of its kind, and the last incidents.
#[derive(Debug)]
pub(super) struct Incidents {
    since: Timestamp,
    started: bool,
    /// The oldest first.
    last: VecDeque<Incident>,
}

impl Incidents {
    /// Of a drain that begins.
    pub(super) fn new(now: Timestamp) -> Self {
        Self {
            since: now,
            started: false,
            last: VecDeque::new(),
        }
    }

    /// Notes the present condition.
    pub(super) fn note(&mut self, condition: &Condition, now: Timestamp) {
        let (kind, reason) = match condition {
            Condition::Starting => return,
            Condition::Replicating => {
                if let Some(open) = self.open() {
                    open.until = Some(now);
                    self.since = now;
                } else if !self.started {
                    self.since = now;
                }
                self.started = true;
                return;
            }
            Condition::BackingOff { away, reason } => (IncidentKind::Away(*away), reason),
            Condition::KeyRefused { reason } => (IncidentKind::KeyRefused, reason),
            Condition::Stopped { reason } => (IncidentKind::Stopped, reason),
            Condition::Paused { reason } => (IncidentKind::Paused, reason),
        };
        self.started = true;
        if let Some(open) = self.open() {
            if open.kind == kind {
                if open.reason != *reason {
                    open.reason.clone_from(reason);
                }
                return;
            }
            open.until = Some(now);
        }
        self.since = now;
        self.last.push_back(Incident {
            since: now,
            until: None,
            kind,
            reason: reason.clone(),
        });
        if self.last.len() > KEPT {
            self.last.pop_front();
        }
    }

    pub(super) fn since(&self) -> Timestamp {
        self.since
    }

    /// The newest first.
    pub(super) fn list(&self) -> Vec<Incident> {
        self.last.iter().rev().cloned().collect()
    }

    fn open(&mut self) -> Option<&mut Incident> {
        self.last.back_mut().filter(|incident| incident.until.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn away(away: Peer, reason: &str) -> Condition {
        Condition::BackingOff {
            away,
            reason: reason.to_owned(),
        }
    }

    #[test]
    fn an_incident_lasts_from_the_first_failure_to_the_first_success() {
        let mut incidents = Incidents::new(at(0));
        incidents.note(&Condition::Replicating, at(1));
        incidents.note(&Condition::Replicating, at(5));
        assert_eq!(incidents.since(), at(1));
        incidents.note(&away(Peer::Cloud, "refused"), at(10));
        incidents.note(&away(Peer::Cloud, "timed out"), at(20));
        assert_eq!(incidents.since(), at(10));
        incidents.note(&away(Peer::Source, "shutting down"), at(30));
        assert_eq!(incidents.since(), at(30));
        incidents.note(&Condition::Replicating, at(40));
        let list = incidents.list();
        assert_eq!(list.len(), 2);
        assert_eq!((list[1].since, list[1].until), (at(10), Some(at(30))));
        assert_eq!(list[1].reason, "timed out");
        assert_eq!((list[0].since, list[0].until), (at(30), Some(at(40))));
        assert_eq!(list[0].kind, IncidentKind::Away(Peer::Source));
    }

    #[test]
    fn their_number_is_bounded() {
        let mut incidents = Incidents::new(at(0));
        for second in 0..1000 {
            incidents.note(&away(Peer::Cloud, "x"), at(second * 2));
            incidents.note(&Condition::Replicating, at(second * 2 + 1));
        }
        assert_eq!(incidents.list().len(), KEPT);
        assert_eq!(incidents.list()[0].since, at(1998));
    }
}
