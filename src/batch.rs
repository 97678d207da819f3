//! A batch: consecutive changes of one window, bounded by rows and bytes, with the fate of each. Its age needs no bound:
//! a batch never waits to be filled, it takes what is there when the one before it is on its way.
//!
//! Consecutive changes of one row collapse to the last one: [`Batch::collapse`] leaves each row at most once between
//! two truncates of its entity, in the order of positions. Which changes the cloud has accepted or refused is kept
//! with the batch, so that a delivery that broke off half-way goes on with what is still pending.

use std::collections::HashMap;

use crate::change::{Change, Op, Position};
use crate::latency::Answered;

/// What became of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// Not answered yet.
    Pending,
    /// The cloud has accepted it, durably as far as it says.
    Accepted,
    /// The cloud has refused it for good.
    Refused {
        /// The HTTP status, or the receiver's code for it.
        code: u16,
        /// The cloud's words, cut to a readable length.
        error: String,
    },
    /// The server has no call for it: a delete or a truncate on a baseline server. It is counted, not sent.
    Unsupported,
    /// It was not sent, since the catalogue says that the cloud keeps such rows.
    Kept,
}

/// Changes in the order of their positions, and what became of each.
#[derive(Debug, Default)]
pub struct Batch {
    changes: Vec<Change>,
    fates: Vec<Fate>,
    collapsed: usize,
    untold: Vec<usize>,
    answered: Option<Answered>,
}

impl Batch {
    /// A batch of changes in the order of their positions, all pending, not yet collapsed.
    pub fn new(changes: Vec<Change>) -> Self {
        let fates = vec![Fate::Pending; changes.len()];
        Self {
            changes,
            fates,
            collapsed: 0,
            untold: Vec::new(),
            answered: None,
        }
    }

    /// Takes out each change that a later change of the same row supersedes, and each that a later truncate of its
    /// entity supersedes. What is left keeps its order. A change whose fate is settled supersedes nothing: a delete that
    /// is not sent must not take the update before it with it.
    pub fn collapse(&mut self) {
        let mut last: HashMap<(usize, &str), usize> = HashMap::with_capacity(self.changes.len());
        let mut keep = vec![true; self.changes.len()];
        for (nth, change) in self.changes.iter().enumerate() {
            if self.fates[nth] != Fate::Pending {
                continue;
            }
            if change.op == Op::Truncate {
                last.retain(|&(entity, _), &mut earlier| {
                    if entity == change.entity {
                        keep[earlier] = false;
                    }
                    entity != change.entity
                });
            } else if let Some(earlier) = last.insert((change.entity, &change.key), nth) {
                keep[earlier] = false;
            }
        }
        let before = self.changes.len();
        let mut keeps = keep.iter();
        self.changes.retain(|_| *keeps.next().unwrap_or(&true));
        let mut keeps = keep.iter();
        self.fates.retain(|_| *keeps.next().unwrap_or(&true));
        self.collapsed += before - self.changes.len();
    }

    /// The changes, in the order of their positions.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// The changes, to add to their rows what the cloud shall see beside the site's own columns.
    pub fn changes_mut(&mut self) -> &mut [Change] {
        &mut self.changes
    }

    /// What became of the `nth` change.
    pub fn fate(&self, nth: usize) -> &Fate {
        &self.fates[nth]
    }

    /// Notes what became of the `nth` change.
    pub fn set_fate(&mut self, nth: usize, fate: Fate) {
        self.fates[nth] = fate;
    }

    /// Notes that the `nth` change was refused since the cloud does not know its entity or one of its columns.
    pub fn note_untold(&mut self, nth: usize) {
        self.untold.push(nth);
    }

    /// Whether changes were refused for what the cloud was not told.
    pub fn has_untold(&self) -> bool {
        !self.untold.is_empty()
    }

    /// Makes the changes pending again that were refused for what the cloud was not told; answers their places.
    pub fn revive_untold(&mut self) -> Vec<usize> {
        let places = std::mem::take(&mut self.untold);
        for &nth in &places {
            self.fates[nth] = Fate::Pending;
        }
        places
    }

    /// Leaves them refused.
    pub fn forget_untold(&mut self) {
        self.untold.clear();
    }

    /// Notes how long the cloud took to answer a request with some of the changes.
    pub fn note_answer(&mut self, answer: Answered) {
        self.answered = Some(self.answered.unwrap_or_default().and(answer));
    }

    /// All the answers together; none where nothing was answered.
    pub fn answered(&self) -> Option<Answered> {
        self.answered
    }

    /// When the oldest change was captured, in microseconds since 1970; none without a change.
    pub fn oldest(&self) -> Option<i64> {
        self.changes.iter().map(|change| change.captured_at).min()
    }

    /// The places of the changes that have no answer yet, in order.
    pub fn pending(&self) -> Vec<usize> {
        (0..self.changes.len())
            .filter(|&nth| self.fates[nth] == Fate::Pending)
            .collect()
    }

    /// The refused changes, each with its code and the cloud's words.
    pub fn refused(&self) -> impl Iterator<Item = (&Change, u16, &str)> {
        self.changes
            .iter()
            .zip(&self.fates)
            .filter_map(|(change, fate)| match fate {
                Fate::Refused { code, error } => Some((change, *code, error.as_str())),
                _ => None,
            })
    }

    /// How many changes have the fate.
    pub fn count(&self, fate: &Fate) -> usize {
        self.fates.iter().filter(|&other| other == fate).count()
    }

    /// How many changes were superseded within the batch.
    pub fn collapsed(&self) -> usize {
        self.collapsed
    }

    /// How many changes there are to deliver.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Whether there is nothing to deliver.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Bytes of text in it.
    pub fn bytes(&self) -> usize {
        self.changes.iter().map(Change::bytes).sum()
    }

    /// The last change's position.
    pub fn last_position(&self) -> Option<Position> {
        self.changes.last().map(|change| change.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(position: i64, entity: usize, op: Op, key: &str) -> Change {
        Change {
            position: Position(position),
            entity,
            op,
            captured_at: 0,
            key: key.into(),
            row: (op == Op::Upsert).then(|| format!("{{\"at\":{position}}}").into()),
        }
    }

    fn positions(batch: &Batch) -> Vec<i64> {
        batch.changes().iter().map(|c| c.position.0).collect()
    }

    #[test]
    fn the_last_change_of_a_row_is_left() {
        let mut batch = Batch::new(vec![
            change(1, 0, Op::Upsert, "a"),
            change(2, 1, Op::Upsert, "a"),
            change(3, 0, Op::Upsert, "b"),
            change(4, 0, Op::Delete, "a"),
        ]);
        batch.collapse();
        assert_eq!(positions(&batch), [2, 3, 4]);
        assert_eq!(batch.collapsed(), 1);
    }

    #[test]
    fn a_truncate_supersedes_what_stood_before_it_in_its_entity_only() {
        let mut batch = Batch::new(vec![
            change(1, 0, Op::Upsert, "a"),
            change(2, 1, Op::Upsert, "a"),
            change(3, 0, Op::Truncate, ""),
            change(4, 0, Op::Upsert, "a"),
        ]);
        batch.collapse();
        assert_eq!(positions(&batch), [2, 3, 4]);
    }

    #[test]
    fn a_delete_that_is_not_sent_supersedes_nothing() {
        let mut batch = Batch::new(vec![change(1, 0, Op::Upsert, "a"), change(2, 0, Op::Delete, "a")]);
        batch.set_fate(1, Fate::Kept);
        batch.collapse();
        assert_eq!(positions(&batch), [1, 2]);
    }

    #[test]
    fn pending_are_those_without_an_answer() {
        let mut batch = Batch::new(vec![change(1, 0, Op::Upsert, "a"), change(2, 0, Op::Upsert, "b")]);
        batch.set_fate(0, Fate::Accepted);
        assert_eq!(batch.pending(), [1]);
    }
}
