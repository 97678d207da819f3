//! Delivery to a server without `changes`: row by row or in bulk, each row's order kept, parents before
//! children.
//!
//! A batch is cut into steps. A step of rows holds each row once: its upserts go entity by entity in
//! catalogue order, many at once within an entity, then its deletes in reverse order. Only the delete of a
//! key that the table finds equal to the key of a row that is there comes before that row: for the cloud both
//! may be one. A truncate is a step of its own. A step begins when all of the one before it is answered; so
//! does an entity within a step. What is pending keeps all after it from being sent.

use crate::catalogue::EntityIndex;
use std::collections::{BTreeMap, HashSet};
use std::time::Instant;

use super::failure::{CloudResult, Failure};
use super::rows::RowSender;
use super::{Capabilities, Cloud};
use crate::batch::{Batch, ChangeIndex, Fate};
use crate::change::{Cause, Op};
use crate::latency::AnswerTimes;

/// Marks the deletes and truncates that are not sent, since the server has no call for them.
pub(super) fn settle(capabilities: Capabilities, batch: &mut Batch) {
    for change_index in batch.pending() {
        let change = &batch[change_index];
        if change.op == Op::Upsert {
            continue;
        }
        if !capabilities.changes && !capabilities.delete {
            batch.set_fate(change_index, Fate::Unsupported);
        }
    }
}

/// Sends what is pending.
pub(super) async fn deliver(cloud: &Cloud, capabilities: Capabilities, batch: &mut Batch) -> CloudResult<()> {
    let sender = RowSender::new(cloud);
    for step in plan(batch) {
        let sent = Instant::now();
        match step {
            SendOrder::Rows(rows) => deliver_rows(&sender, capabilities, batch, &rows).await?,
            SendOrder::Truncate(change_index) => sender.truncate(batch, change_index).await?,
        }
        batch.note_answer(AnswerTimes {
            took: sent.elapsed(),
            applied: None,
        });
    }
    Ok(())
}

/// What is sent before anything after it.
enum SendOrder {
    /// Upserts and deletes, each row at most once, in the batch's order.
    Rows(Vec<ChangeIndex>),
    /// One truncate.
    Truncate(ChangeIndex),
}

fn plan(batch: &Batch) -> Vec<SendOrder> {
    let mut steps = Vec::new();
    let mut rows = Vec::new();
    let mut seen = HashSet::new();
    for change_index in batch.pending() {
        let change = &batch[change_index];
        // A collapsed batch has no row twice; one that is not collapsed keeps its order all the same.
        let again = change.op != Op::Truncate && !seen.insert((change.entity, &*change.key));
        if (again || change.op == Op::Truncate) && !rows.is_empty() {
            steps.push(SendOrder::Rows(std::mem::take(&mut rows)));
            seen.clear();
            seen.insert((change.entity, &change.key));
        }
        if change.op == Op::Truncate {
            steps.push(SendOrder::Truncate(change_index));
        } else {
            rows.push(change_index);
        }
    }
    if !rows.is_empty() {
        steps.push(SendOrder::Rows(rows));
    }
    steps
}

async fn deliver_rows(
    sender: &RowSender<'_>,
    capabilities: Capabilities,
    batch: &mut Batch,
    rows: &[ChangeIndex],
) -> CloudResult<()> {
    let (upserts, deletes) = (
        by_entity(batch, rows, Op::Upsert),
        by_entity(batch, &late(batch, rows), Op::Delete),
    );
    let otherwise = |change_index: &ChangeIndex| batch[*change_index].cause == Cause::ReadsOtherwise;
    let early: Vec<ChangeIndex> = rows.iter().copied().filter(otherwise).collect();
    for (&entity, places) in &by_entity(batch, &early, Op::Delete) {
        sender.delete(batch, entity, places).await?;
    }
    // What may be the fault of one entity's rows keeps those of others back no longer than that: the first
    // such failure is the delivery's, once all have had their turn.
    let mut failed = None;
    for (&entity, places) in &upserts {
        let mut sent = sender.upsert(capabilities.bulk, batch, entity, places).await;
        if sent.is_ok() {
            sent = upsert_again(sender, capabilities, batch, entity, places).await;
        }
        go_on(sender, sent, &mut failed)?;
    }
    for (&entity, places) in deletes.iter().rev() {
        let sent = sender.delete(batch, entity, places).await;
        go_on(sender, sent, &mut failed)?;
    }
    if let Some(failure) = failed {
        return Err(failure);
    }
    // An upsert may have been refused for a unique value that a row held which is deleted only now.
    for (entity, places) in &upserts {
        let refused = |change_index: &ChangeIndex| matches!(batch.fate(*change_index), Fate::Refused { .. });
        let again: Vec<ChangeIndex> = places.iter().copied().filter(refused).collect();
        if deletes.contains_key(entity) && !again.is_empty() {
            for &change_index in &again {
                batch.set_fate(change_index, Fate::Pending);
            }
            sender.upsert(capabilities.bulk, batch, *entity, &again).await?;
        }
    }
    Ok(())
}

/// Keeps a failure that may be the fault of an entity's rows, and fails with any other.
fn go_on(sender: &RowSender<'_>, sent: CloudResult<()>, failed: &mut Option<Failure>) -> CloudResult<()> {
    match sent {
        Err(failure) if failure.is_told() => {
            failed.get_or_insert(failure);
            sender.reopen();
            Ok(())
        }
        other => other,
    }
}

/// The changes whose turn is not before that of all others.
fn late(batch: &Batch, rows: &[ChangeIndex]) -> Vec<ChangeIndex> {
    let late = |change_index: &ChangeIndex| batch[*change_index].cause != Cause::ReadsOtherwise;
    rows.iter().copied().filter(late).collect()
}

/// Sends refused rows of an entity again, as long as that helps any of them: rows go side by side, and one
/// may have been refused for what another brought or gave up only a moment later, be it a parent in the same
/// table or a unique value.
async fn upsert_again(
    sender: &RowSender<'_>,
    capabilities: Capabilities,
    batch: &mut Batch,
    entity: EntityIndex,
    places: &[ChangeIndex],
) -> CloudResult<()> {
    let mut left = places.len();
    loop {
        let refused = |change_index: &ChangeIndex| {
            matches!(batch.fate(*change_index), Fate::Refused { code: 409 | 422, .. })
        };
        let again: Vec<ChangeIndex> = places.iter().copied().filter(refused).collect();
        if again.is_empty() || again.len() >= left {
            return Ok(());
        }
        left = again.len();
        for &change_index in &again {
            batch.set_fate(change_index, Fate::Pending);
        }
        sender.upsert(capabilities.bulk, batch, entity, &again).await?;
    }
}

fn by_entity(batch: &Batch, rows: &[ChangeIndex], op: Op) -> BTreeMap<EntityIndex, Vec<ChangeIndex>> {
    let mut entities: BTreeMap<EntityIndex, Vec<ChangeIndex>> = BTreeMap::new();
    for &change_index in rows {
        let change = &batch[change_index];
        if change.op == op {
            entities.entry(change.entity).or_default().push(change_index);
        }
    }
    entities
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Change, Position};

    #[test]
    fn steps_end_at_a_truncate_and_where_a_row_comes_again() {
        let change = |op, entity, key: &str| Change {
            position: Position(1),
            entity,
            op,
            cause: Cause::Gone,
            captured_at: 0,
            key: key.into(),
            row: None,
        };
        let mut batch = Batch::new(vec![
            change(Op::Upsert, EntityIndex(0), "a"),
            change(Op::Upsert, EntityIndex(1), "a"),
            change(Op::Delete, EntityIndex(0), "a"),
            change(Op::Upsert, EntityIndex(0), "b"),
            change(Op::Truncate, EntityIndex(1), ""),
            change(Op::Truncate, EntityIndex(0), ""),
            change(Op::Upsert, EntityIndex(0), "b"),
            change(Op::Upsert, EntityIndex(0), "c"),
            change(Op::Upsert, EntityIndex(0), "b"),
        ]);
        batch.set_fate(ChangeIndex(7), Fate::Accepted);
        let steps: Vec<Vec<usize>> = plan(&batch)
            .into_iter()
            .map(|step| match step {
                SendOrder::Rows(rows) => rows.iter().map(|change_index| change_index.0).collect(),
                SendOrder::Truncate(change_index) => vec![change_index.0],
            })
            .collect();
        assert_eq!(
            steps,
            [vec![0, 1], vec![2, 3], vec![4], vec![5], vec![6], vec![8]]
        );
    }
}
