//! What is sent of a page of touches: the touches merged by key, and the changes that the states of their
//! rows make.

use std::collections::{HashMap, HashSet};

use tokio_postgres::types::PgLsn;

use super::described_tables::DescribedTables;
use crate::batch::{ChangeIndex, Fate};
use crate::catalogue::EntityIndex;
use crate::change::{Cause, Change, Op, Position};
use crate::source::outbox::{OutboxPage, Touch, TouchOp};
use crate::source::projection::PresentRow;
use crate::source::rows::{RowState, TouchKey};

/// The touches of one entity in a page, merged by key.
#[derive(Default)]
pub(super) struct MergedTouches {
    pub(super) keys: Vec<TouchKey>,
    /// For each key, what its touches say together.
    merged: Vec<Merged>,
    places: HashMap<TouchKey, usize>,
    /// Position and time of the last truncate.
    pub(super) truncate: Option<(Position, i64)>,
}

#[derive(Clone, Copy)]
struct Merged {
    first: Position,
    last: Position,
    captured_at: i64,
    /// Whether one of them is of a key that was changed.
    moved: bool,
    touches: usize,
}

/// What was read of a page.
pub(super) struct ReadPage {
    pub(super) changes: Vec<Change>,
    pub(super) fates: Vec<(ChangeIndex, Fate)>,
    pub(super) merged: usize,
    /// The position up to which all is read; `None` if that is the whole page.
    pub(super) cut: Option<Position>,
    pub(super) wal: Option<PgLsn>,
}

impl MergedTouches {
    pub(super) fn add(&mut self, touch: &Touch, key: TouchKey) {
        let moved = touch.op == TouchOp::Moved;
        match self.places.get(&key) {
            Some(&place) => {
                let merged = &mut self.merged[place];
                merged.last = touch.position;
                merged.moved |= moved;
                merged.touches += 1;
            }
            None => {
                self.places.insert(key.clone(), self.keys.len());
                self.keys.push(key);
                self.merged.push(Merged {
                    first: touch.position,
                    last: touch.position,
                    captured_at: touch.captured_at,
                    moved,
                    touches: 1,
                });
            }
        }
    }
}

/// The changes of a page. Each row's state is sent once, in the order of last touches; truncates come first,
/// as whatever survived one was touched after it. Where the bytes did not suffice, the page is cut before the
/// first touch whose row was not come to: nothing is known of it. `None` if that is the page's first touch.
pub(super) fn assemble(
    page: &OutboxPage,
    all: Vec<(EntityIndex, &MergedTouches, Vec<Option<RowState>>)>,
    schemas: &DescribedTables,
) -> Option<ReadPage> {
    let unknown = all
        .iter()
        .flat_map(|(_, of, states)| of.merged.iter().zip(states))
        .filter(|(_, state)| state.is_none())
        .map(|(merged, _)| merged.first)
        .min();
    // The last touch before the first unknown one.
    let cut = match unknown {
        Some(first) => {
            let before = page.touches.iter().map(|touch| touch.position);
            Some(before.take_while(|&position| position < first).last()?)
        }
        None => None,
    };
    let within = |position: Position| cut.is_none_or(|cut| position <= cut);
    let mut changes = Vec::new();
    let mut unreadable: HashMap<(EntityIndex, Box<str>), String> = HashMap::new();
    let mut merged_touches = 0;
    for (place, of, states) in all {
        let truncate = of.truncate.filter(|(position, _)| within(*position));
        if let Some((position, captured_at)) = truncate {
            changes.push(Change {
                position,
                entity: place,
                op: Op::Truncate,
                cause: Cause::Gone,
                captured_at,
                key: "".into(),
                row: None,
            });
        }
        let start = changes.len();
        for (merged, state) in of.merged.iter().zip(states) {
            let Some(state) = state.filter(|_| within(merged.first)) else {
                continue;
            };
            merged_touches += merged.touches - 1;
            let change = |op, cause, key: Box<str>, row: Option<Box<str>>| Change {
                position: cut.map_or(merged.last, |cut| merged.last.min(cut)),
                entity: place,
                op,
                cause,
                captured_at: merged.captured_at,
                key,
                row,
            };
            match state.row {
                // The truncate has taken it already.
                None if truncate.is_some() && !merged.moved => {}
                None => {
                    let cause = if merged.moved { Cause::Moved } else { Cause::Gone };
                    changes.push(change(Op::Delete, cause, state.key.unwrap_or_default(), None));
                }
                Some(PresentRow::Row(image)) => {
                    if let Some(before) = state.key.filter(|key| *key != image.key) {
                        changes.push(change(Op::Delete, Cause::ReadsOtherwise, before, None));
                    }
                    changes.push(change(Op::Upsert, Cause::Gone, image.key, Some(image.row)));
                }
                Some(PresentRow::Unmet(key)) => {
                    if let Some(before) = state.key.filter(|before| *before != key) {
                        changes.push(change(Op::Delete, Cause::ReadsOtherwise, before, None));
                    }
                    changes.push(change(Op::Delete, Cause::Unmet, key, None));
                }
                Some(PresentRow::Unreadable(error)) => {
                    let key = state.key.unwrap_or_default();
                    unreadable.insert((place, key.clone()), error);
                    changes.push(change(Op::Upsert, Cause::Gone, key, None));
                }
            }
        }
        if schemas.tables[place.0].number_key().is_none() {
            merge_equal(&mut changes, start);
        }
    }
    // Truncates first, then the order of last touches; a key's delete stays before what is sent under the key
    // that it reads as.
    changes.sort_by_key(|change| (change.op != Op::Truncate, change.position));
    let fates = changes
        .iter()
        .enumerate()
        .filter(|(_, change)| change.op == Op::Upsert && change.row.is_none())
        .map(|(nth, change)| {
            let error = unreadable
                .remove(&(change.entity, change.key.clone()))
                .unwrap_or_default();
            (ChangeIndex(nth), Fate::Refused { code: 0, error })
        })
        .collect();
    Some(ReadPage {
        changes,
        fates,
        merged: merged_touches,
        cut,
        wal: None,
    })
}

/// Leaves each row of one entity once: two touches may have had keys that are equal for the table. What is
/// there goes before what is not.
fn merge_equal(changes: &mut Vec<Change>, start: usize) {
    let mut kept: HashSet<Box<str>> = HashSet::new();
    let mut keep = vec![true; changes.len()];
    for upserts in [true, false] {
        for nth in (start..changes.len()).rev() {
            if (changes[nth].op == Op::Upsert) == upserts && !kept.insert(changes[nth].key.clone()) {
                keep[nth] = false;
            }
        }
    }
    let mut keeps = keep.iter();
    changes.retain(|_| *keeps.next().unwrap_or(&true));
}
