//! A batch that is to be applied, its answer, and its changes sorted by entity and row.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use crate::receiver::db::db_error::DbError;
use crate::receiver::rows::row_batch::{RejectReason, canonical_key};
use crate::receiver::rows::row_version::RowVersion;
use crate::receiver::tables::schema::EntityTable;
use crate::wire::{BatchHeaders, ChangeLine, ChangesAnswer, Op, RejectCode, RejectedChange};

/// One batch.
pub(crate) struct BatchToApply<'a> {
    pub(crate) site: &'a Arc<str>,
    pub(crate) headers: &'a BatchHeaders<'a>,
    /// The hash of the body's text.
    pub(crate) body_hash: [u8; 32],
    pub(crate) lines: &'a [ChangeLine<'a>],
}

impl BatchToApply<'_> {
    /// The version of its rows.
    pub(crate) fn row_version(&self) -> RowVersion {
        RowVersion {
            epoch: self.headers.epoch,
            version: self.headers.row_version(),
        }
    }
}

/// Counts a change as refused.
pub(crate) fn reject(answer: &mut ChangesAnswer, line: &ChangeLine<'_>, reason: RejectReason) {
    answer.rejected.push(RejectedChange {
        position: line.position,
        line: Some(line.number),
        code: reason.code,
        error: reason.error,
    });
}

/// The answer's text.
pub(crate) fn answer_text(answer: &ChangesAnswer) -> Result<String, DbError> {
    serde_json::to_string(answer).map_err(|error| DbError::Fault(Box::new(error)))
}

/// A change of a row: the row's canonical key, and the index of the line.
pub(crate) type KeyedLine<'a> = (Cow<'a, str>, usize);

/// An entity's changes in a batch.
pub(crate) struct EntityChanges<'a> {
    pub(crate) table: Arc<EntityTable>,
    /// Whether the table may have tombstones.
    pub(crate) has_tombstones: bool,
    /// The version of the entity's newest truncate.
    pub(crate) truncate_mark: Option<RowVersion>,
    /// Whether the batch truncates the entity.
    pub(crate) truncated: bool,
    /// The last change of each row.
    last: HashMap<Cow<'a, str>, usize>,
    /// The lines that a later change of the same row superseded, in their order, in case that change is
    /// rejected.
    superseded: HashMap<Cow<'a, str>, Vec<usize>>,
}

impl<'a> EntityChanges<'a> {
    pub(crate) fn new(
        table: Arc<EntityTable>,
        truncate_mark: Option<RowVersion>,
        has_tombstones: bool,
    ) -> Self {
        Self {
            table,
            has_tombstones,
            truncate_mark,
            truncated: false,
            last: HashMap::new(),
            superseded: HashMap::new(),
        }
    }

    /// Sorts in a line of this entity. Counts the change that it supersedes as skipped.
    pub(crate) fn add(
        &mut self,
        lines: &'a [ChangeLine<'a>],
        line_index: usize,
        answer: &mut ChangesAnswer,
    ) -> Result<(), RejectReason> {
        let line = &lines[line_index];
        match line.op {
            Some(Op::Truncate) => {
                answer.skipped += u64::from(self.truncated);
                self.truncated = true;
                return Ok(());
            }
            Some(Op::Upsert) if line.row.is_none() => {
                return Err(RejectReason::new(
                    RejectCode::RowMissing,
                    "an upsert must carry the row",
                ));
            }
            Some(Op::Upsert | Op::Delete) => {}
            None => {
                return Err(RejectReason::new(
                    RejectCode::UnknownOp,
                    "op is not upsert, delete or truncate",
                ));
            }
        }
        let key = line
            .key
            .ok_or_else(|| RejectReason::new(RejectCode::KeyMissing, "the change carries no key"))?;
        let key = canonical_key(&self.table, key)?;
        match self.last.entry(key) {
            Entry::Vacant(entry) => {
                entry.insert(line_index);
            }
            Entry::Occupied(mut entry) => {
                let before = entry.insert(line_index);
                self.superseded
                    .entry(entry.key().clone())
                    .or_default()
                    .push(before);
                answer.skipped += 1;
            }
        }
        Ok(())
    }

    /// Takes the last change of each row, in the order of the request, so that rows which arrived together
    /// are stored together.
    pub(crate) fn take_last(&mut self) -> Vec<KeyedLine<'a>> {
        let mut last: Vec<_> = self.last.drain().collect();
        last.sort_unstable_by_key(|(_, line_index)| *line_index);
        last
    }

    /// Takes the last change that a change of this row had superseded.
    pub(crate) fn take_superseded(&mut self, key: &str) -> Option<usize> {
        self.superseded.get_mut(key)?.pop()
    }
}
