//! A batch: what is sent of the rows of consecutive touches, bounded by rows and bytes, with the fate of each
//! change. Its age needs no bound: a batch never waits to be filled, it takes what is there when the one
//! before it is on its way.
//!
//! Each row is in it at most once, in the order of last touches; truncates come before all else of their
//! entity. Which changes the cloud has accepted or refused is kept with the batch, so that a delivery that
//! broke off half-way goes on with what is still pending.

use std::collections::HashMap;
use std::ops::{Index, IndexMut};
use std::sync::Arc;

use crate::catalogue::EntityIndex;
use crate::change::{Change, Position};
use crate::latency::AnswerTimes;
use crate::media::NamedFile;

/// A change's index in its batch, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChangeIndex(pub usize);

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
    /// It was not sent, since its entity is parked: its touch is kept in the site's database.
    Parked,
    /// It was not sent, since the cloud does not have its file yet: it is touched again when it has.
    Held,
}

/// How many changes may go in one request, by how often these have failed; beyond that each goes alone.
const MAX_TOGETHER: [usize; 4] = [usize::MAX, 512, 64, 8];

/// A change whose requests fail in a way that may be the fault of its row: the server answers 5xx, or a
/// firewall 403.
#[derive(Debug, Clone)]
pub struct Failing {
    /// The last HTTP status.
    pub status: u16,
    /// What was last answered, without any value of the row.
    pub error: Arc<str>,
    /// In how many deliveries.
    pub times: u32,
    /// Whether the last request had no other change.
    pub alone: bool,
    /// Whether the server's application itself said last that it does not take the row.
    pub told: bool,
    /// Whether the row is in quarantine already for such a failure.
    pub known: bool,
    /// How many changes of the batch were accepted before its first failure.
    accepted_before: usize,
}

/// Changes in the order of their positions, and what became of each.
#[derive(Debug, Default)]
pub struct Batch {
    changes: Vec<Change>,
    fates: Vec<Fate>,
    collapsed: usize,
    untold: Vec<ChangeIndex>,
    unanswered: Vec<(EntityIndex, Box<str>)>,
    failing: HashMap<ChangeIndex, Failing>,
    named: HashMap<ChangeIndex, Vec<NamedFile>>,
    answered: Option<AnswerTimes>,
}

impl Batch {
    /// A batch of changes in the order of their positions, all pending.
    pub fn new(changes: Vec<Change>) -> Self {
        Self::merged(changes, 0)
    }

    /// The same, for which so many more touches were merged into one change of their row.
    pub fn merged(changes: Vec<Change>, collapsed: usize) -> Self {
        let fates = vec![Fate::Pending; changes.len()];
        Self {
            changes,
            fates,
            collapsed,
            untold: Vec::new(),
            unanswered: Vec::new(),
            failing: HashMap::new(),
            named: HashMap::new(),
            answered: None,
        }
    }

    /// The changes, in the order of their positions.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// The changes with their indexes.
    pub fn indexed(&self) -> impl ExactSizeIterator<Item = (ChangeIndex, &Change)> {
        let changes = self.changes.iter().enumerate();
        changes.map(|(index, change)| (ChangeIndex(index), change))
    }

    /// The changes, to add to their rows what the cloud shall see besides the site's own columns.
    pub fn changes_mut(&mut self) -> &mut [Change] {
        &mut self.changes
    }

    /// What became of the `change_index` change.
    pub fn fate(&self, change_index: ChangeIndex) -> &Fate {
        &self.fates[change_index.0]
    }

    /// Notes what became of the `change_index` change.
    pub fn set_fate(&mut self, change_index: ChangeIndex, fate: Fate) {
        self.fates[change_index.0] = fate;
    }

    /// Notes that the `change_index` change was refused since the cloud does not know its entity or one of its
    /// columns.
    pub fn note_untold(&mut self, change_index: ChangeIndex) {
        self.untold.push(change_index);
    }

    /// Whether changes were refused for what the cloud was not told.
    pub fn has_untold(&self) -> bool {
        !self.untold.is_empty()
    }

    /// Notes what the file columns of the `change_index` change name, where their values are no longer the site's own.
    pub(crate) fn note_named(&mut self, change_index: ChangeIndex, named: Vec<NamedFile>) {
        self.named.insert(change_index, named);
    }

    /// What was noted so.
    pub(crate) fn named(&self, change_index: ChangeIndex) -> Option<&[NamedFile]> {
        self.named.get(&change_index).map(Vec::as_slice)
    }

    /// Makes the changes pending again that were refused for what the cloud was not told; answers their
    /// places.
    pub fn revive_untold(&mut self) -> Vec<ChangeIndex> {
        let places = std::mem::take(&mut self.untold);
        for &change_index in &places {
            self.fates[change_index.0] = Fate::Pending;
        }
        places
    }

    /// Leaves them refused.
    pub fn forget_untold(&mut self) {
        self.untold.clear();
    }

    /// Notes that a request with this row of an entity got no answer: it may still arrive. The key is a JSON
    /// object of the key columns.
    pub fn note_unanswered(&mut self, entity: EntityIndex, key: Box<str>) {
        self.unanswered.push((entity, key));
    }

    /// The rows whose requests got no answer since the last call, by entity and key.
    pub fn take_unanswered(&mut self) -> Vec<(EntityIndex, Box<str>)> {
        std::mem::take(&mut self.unanswered)
    }

    /// Notes that a request with these changes failed in a way that may be the fault of one of them, and how
    /// many changes were accepted before it was sent.
    pub fn note_failing(
        &mut self,
        places: &[ChangeIndex],
        status: u16,
        error: &str,
        told: bool,
        accepted_before: usize,
    ) {
        let error: Arc<str> = error.into();
        for &change_index in places {
            let failing = self.failing.entry(change_index).or_insert_with(|| Failing {
                status,
                error: error.clone(),
                times: 0,
                alone: false,
                told,
                known: false,
                accepted_before,
            });
            failing.times += 1;
            (failing.status, failing.error, failing.told) = (status, error.clone(), told);
            failing.alone = places.len() == 1;
        }
    }

    /// Expects the change to fail, as its row is in quarantine for that: it goes alone, behind the others.
    pub fn expect_failing(&mut self, change_index: ChangeIndex) {
        let expected = Failing {
            status: 0,
            error: "".into(),
            times: MAX_TOGETHER.len() as u32,
            alone: false,
            told: false,
            known: true,
            accepted_before: 0,
        };
        self.failing.entry(change_index).or_insert(expected);
    }

    /// The pending changes that fail, and whether others were accepted since each began to.
    pub fn failing(&self) -> Vec<(ChangeIndex, Failing, bool)> {
        let accepted = self.count(&Fate::Accepted);
        let pending = self
            .failing
            .iter()
            .filter(|(change_index, _)| self.fates[change_index.0] == Fate::Pending);
        pending
            .map(|(&change_index, one)| (change_index, one.clone(), accepted > one.accepted_before))
            .collect()
    }

    /// In how many deliveries the change has failed so far.
    fn times_failed(&self, change_index: ChangeIndex) -> u32 {
        self.failing.get(&change_index).map_or(0, |failing| failing.times)
    }

    /// These changes in their order, but those that fail behind the others.
    pub fn failing_last(&self, places: &[ChangeIndex]) -> Vec<ChangeIndex> {
        let mut places = places.to_vec();
        if !self.failing.is_empty() {
            places.sort_by_key(|&change_index| self.times_failed(change_index));
        }
        places
    }

    /// Cuts a run of changes, so that those which fail go together with fewer and fewer others.
    pub fn cut_by_failures<'p>(&self, places: &'p [ChangeIndex]) -> Vec<&'p [ChangeIndex]> {
        if self.failing.is_empty() {
            return vec![places];
        }
        places
            .chunk_by(|&one, &other| self.times_failed(one) == self.times_failed(other))
            .flat_map(|run| {
                let most = MAX_TOGETHER.get(self.times_failed(run[0]) as usize);
                run.chunks(most.copied().unwrap_or(1))
            })
            .collect()
    }

    /// Notes how long the cloud took to answer a request with some of the changes.
    pub fn note_answer(&mut self, answer: AnswerTimes) {
        self.answered = Some(self.answered.unwrap_or_default().and(answer));
    }

    /// All the answers together; none where nothing was answered.
    pub fn answered(&self) -> Option<AnswerTimes> {
        self.answered
    }

    /// When the oldest change was captured, in microseconds since 1970; none without a change.
    pub fn oldest(&self) -> Option<i64> {
        self.changes.iter().map(|change| change.captured_at).min()
    }

    /// The indexes of the changes that have no answer yet, in order.
    pub fn pending(&self) -> Vec<ChangeIndex> {
        (0..self.changes.len())
            .map(ChangeIndex)
            .filter(|&change_index| self.fates[change_index.0] == Fate::Pending)
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

    /// How many touches were merged into another one's change.
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

impl Index<ChangeIndex> for Batch {
    type Output = Change;

    fn index(&self, index: ChangeIndex) -> &Change {
        &self.changes[index.0]
    }
}

impl IndexMut<ChangeIndex> for Batch {
    fn index_mut(&mut self, index: ChangeIndex) -> &mut Change {
        &mut self.changes[index.0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Cause, Op};

    #[test]
    fn pending_are_those_without_an_answer() {
        let change = |position, key: &str| Change {
            position: Position(position),
            entity: EntityIndex(0),
            op: Op::Upsert,
            cause: Cause::Gone,
            captured_at: 0,
            key: key.into(),
            row: Some("{}".into()),
        };
        let mut batch = Batch::new(vec![change(1, "a"), change(2, "b")]);
        batch.set_fate(ChangeIndex(0), Fate::Accepted);
        assert_eq!(batch.pending(), [ChangeIndex(1)]);
    }
}
