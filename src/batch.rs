//! A batch: the changes of consecutive touches that are delivered together, bounded by rows and bytes, and
//! the fate of each change. Its age needs no bound: a batch never waits until it is full, it takes the
//! touches that are there when it is read.
//!
//! What always holds: each row is in a batch at most once, in the order of last touches; a truncate comes
//! before all other changes of its entity. The batch keeps which changes the cloud has accepted or refused,
//! so that an interrupted delivery continues with the pending changes only.

use std::collections::HashMap;
use std::ops::{Index, IndexMut};
use std::sync::Arc;

use crate::catalogue::EntityIndex;
use crate::change::{Change, NamedFile, Position};
use crate::latency::AnswerTimes;

/// A change's index in its batch, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChangeIndex(pub usize);

/// What became of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// The cloud has not answered yet.
    Pending,
    /// The cloud says that it has stored the change durably.
    Accepted,
    /// The cloud has refused it for good.
    Refused {
        /// The HTTP status, or the receiver's code.
        code: u16,
        /// The cloud's error message, cut to a readable length.
        error: String,
    },
    /// The server has no call for it: a delete or a truncate on a baseline server. It is counted and not
    /// sent.
    Unsupported,
    /// It was not sent, because the catalogue says that the cloud keeps such rows.
    Kept,
    /// It was not sent, because its entity is parked: its touch is kept in the site's database.
    Parked,
    /// It was not sent, because the cloud does not have its file yet. The upload lane touches the row again
    /// when the file is there.
    Held,
}

/// How many changes may go in one request, by how often these changes have failed. After that each goes
/// alone.
const MAX_TOGETHER: [usize; 4] = [usize::MAX, 512, 64, 8];

/// A change whose requests fail in a way that its row may have caused: the server answers 5xx, or a firewall
/// answers 403.
#[derive(Debug, Clone)]
pub struct Failing {
    /// The last HTTP status.
    pub status: u16,
    /// The last error message, without any value of the row.
    pub error: Arc<str>,
    /// In how many deliveries it has failed.
    pub times: u32,
    /// Whether the last request carried no other change.
    pub alone: bool,
    /// Whether the last refusal came from the server's application itself.
    pub refused_by_app: bool,
    /// Whether the row is already in quarantine for such a failure.
    pub quarantined: bool,
    /// How many changes of the batch were accepted before this one failed for the first time.
    accepted_before: usize,
}

/// Changes in the order of their positions, and the fate of each.
#[derive(Debug, Default)]
pub struct Batch {
    changes: Vec<Change>,
    fates: Vec<Fate>,
    collapsed: usize,
    undeclared: Vec<ChangeIndex>,
    unanswered: Vec<(EntityIndex, Box<str>)>,
    failing: HashMap<ChangeIndex, Failing>,
    named_files: HashMap<ChangeIndex, Vec<NamedFile>>,
    answer_times: Option<AnswerTimes>,
}

impl Batch {
    /// Makes a batch of changes in the order of their positions, all pending.
    pub fn new(changes: Vec<Change>) -> Self {
        Self::merged(changes, 0)
    }

    /// Makes a batch whose changes stand for `collapsed` more touches: several touches of a row are one
    /// change.
    pub fn merged(changes: Vec<Change>, collapsed: usize) -> Self {
        let fates = vec![Fate::Pending; changes.len()];
        Self {
            changes,
            fates,
            collapsed,
            undeclared: Vec::new(),
            unanswered: Vec::new(),
            failing: HashMap::new(),
            named_files: HashMap::new(),
            answer_times: None,
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

    /// The changes, to add values to their rows that the site's columns do not have, such as URLs of files.
    pub fn changes_mut(&mut self) -> &mut [Change] {
        &mut self.changes
    }

    /// The fate of the change at `change_index`.
    pub fn fate(&self, change_index: ChangeIndex) -> &Fate {
        &self.fates[change_index.0]
    }

    /// Sets the fate of the change at `change_index`.
    pub fn set_fate(&mut self, change_index: ChangeIndex, fate: Fate) {
        self.fates[change_index.0] = fate;
    }

    /// Notes that the cloud refused the change at `change_index` because no schema has declared its entity or
    /// one of its columns.
    pub fn note_undeclared(&mut self, change_index: ChangeIndex) {
        self.undeclared.push(change_index);
    }

    /// Whether changes were refused because of an undeclared entity or column.
    pub fn has_undeclared(&self) -> bool {
        !self.undeclared.is_empty()
    }

    /// Notes the files that the change at `change_index` names, if the values of its file columns were
    /// replaced.
    pub(crate) fn note_named_files(&mut self, change_index: ChangeIndex, files: Vec<NamedFile>) {
        self.named_files.insert(change_index, files);
    }

    /// The files that [`Batch::note_named_files`] noted for the change.
    pub(crate) fn named_files(&self, change_index: ChangeIndex) -> Option<&[NamedFile]> {
        self.named_files.get(&change_index).map(Vec::as_slice)
    }

    /// Makes the changes pending again that were refused because of an undeclared entity or column. Returns
    /// their indexes.
    pub fn revive_undeclared(&mut self) -> Vec<ChangeIndex> {
        let undeclared = std::mem::take(&mut self.undeclared);
        for &change_index in &undeclared {
            self.fates[change_index.0] = Fate::Pending;
        }
        undeclared
    }

    /// Leaves those changes refused.
    pub fn forget_undeclared(&mut self) {
        self.undeclared.clear();
    }

    /// Notes that a request with this row got no answer: it may still arrive. The key is a JSON object of the
    /// key columns.
    pub fn note_unanswered(&mut self, entity: EntityIndex, key: Box<str>) {
        self.unanswered.push((entity, key));
    }

    /// The rows whose requests got no answer since the last call, by entity and key.
    pub fn take_unanswered(&mut self) -> Vec<(EntityIndex, Box<str>)> {
        std::mem::take(&mut self.unanswered)
    }

    /// Notes that a request with these changes failed in a way that one of them may have caused.
    /// `accepted_before` is how many changes were accepted before the request was sent.
    pub fn note_failing(
        &mut self,
        change_indexes: &[ChangeIndex],
        status: u16,
        error: &str,
        refused_by_app: bool,
        accepted_before: usize,
    ) {
        let error: Arc<str> = error.into();
        for &change_index in change_indexes {
            let failing = self.failing.entry(change_index).or_insert_with(|| Failing {
                status,
                error: error.clone(),
                times: 0,
                alone: false,
                refused_by_app,
                quarantined: false,
                accepted_before,
            });
            failing.times += 1;
            (failing.status, failing.error, failing.refused_by_app) = (status, error.clone(), refused_by_app);
            failing.alone = change_indexes.len() == 1;
        }
    }

    /// Expects the change to fail, because its row is in quarantine for such a failure: it is sent alone,
    /// after the others.
    pub fn expect_failing(&mut self, change_index: ChangeIndex) {
        let expected = Failing {
            status: 0,
            error: "".into(),
            times: MAX_TOGETHER.len() as u32,
            alone: false,
            refused_by_app: false,
            quarantined: true,
            accepted_before: 0,
        };
        self.failing.entry(change_index).or_insert(expected);
    }

    /// The pending changes that fail, and for each whether other changes were accepted since its first
    /// failure.
    pub fn failing(&self) -> Vec<(ChangeIndex, Failing, bool)> {
        let accepted = self.count(&Fate::Accepted);
        let pending = self
            .failing
            .iter()
            .filter(|(change_index, _)| self.fates[change_index.0] == Fate::Pending);
        pending
            .map(|(&change_index, failing)| {
                (change_index, failing.clone(), accepted > failing.accepted_before)
            })
            .collect()
    }

    /// In how many deliveries the change has failed so far.
    fn times_failed(&self, change_index: ChangeIndex) -> u32 {
        self.failing.get(&change_index).map_or(0, |failing| failing.times)
    }

    /// Sorts the changes so that those which failed come last, and keeps their order otherwise.
    pub fn failing_last(&self, change_indexes: &[ChangeIndex]) -> Vec<ChangeIndex> {
        let mut sorted = change_indexes.to_vec();
        if !self.failing.is_empty() {
            sorted.sort_by_key(|&change_index| self.times_failed(change_index));
        }
        sorted
    }

    /// Cuts a run of changes into requests: the more often a change has failed, the fewer others go with it.
    pub fn cut_by_failures<'p>(&self, change_indexes: &'p [ChangeIndex]) -> Vec<&'p [ChangeIndex]> {
        if self.failing.is_empty() {
            return vec![change_indexes];
        }
        change_indexes
            .chunk_by(|&left, &right| self.times_failed(left) == self.times_failed(right))
            .flat_map(|run| {
                let most = MAX_TOGETHER.get(self.times_failed(run[0]) as usize);
                run.chunks(most.copied().unwrap_or(1))
            })
            .collect()
    }

    /// Notes how long the cloud took to answer a request with some of the changes.
    pub fn note_answer(&mut self, answer: AnswerTimes) {
        self.answer_times = Some(self.answer_times.unwrap_or_default().plus(answer));
    }

    /// The times of all answers together; `None` if there was no answer.
    pub fn answered(&self) -> Option<AnswerTimes> {
        self.answer_times
    }

    /// When the oldest change was captured, in microseconds since 1970; `None` if the batch is empty.
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

    /// The refused changes, each with its code and the cloud's error message.
    pub fn refused(&self) -> impl Iterator<Item = (&Change, u16, &str)> {
        self.changes
            .iter()
            .zip(&self.fates)
            .filter_map(|(change, fate)| match fate {
                Fate::Refused { code, error } => Some((change, *code, error.as_str())),
                _ => None,
            })
    }

    /// How many changes have this fate.
    pub fn count(&self, fate: &Fate) -> usize {
        self.fates.iter().filter(|&other| other == fate).count()
    }

    /// How many touches were merged into the change of a later touch.
    pub fn collapsed(&self) -> usize {
        self.collapsed
    }

    /// How many changes there are.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Whether there is no change.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Bytes of text in the changes.
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
