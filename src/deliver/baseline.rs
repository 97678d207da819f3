//! Delivery to a server without `changes`: row by row or in bulk. Each row's own order is kept, and parents
//! come before children.
//!
//! - A batch is cut into steps. A step of rows holds each row once: its upserts go entity by entity in the
//!   catalogue's order, many at once within an entity, then its deletes in reverse order. Only the delete of
//!   a key that the table finds equal to the key of a row that is there comes before that row: for the cloud
//!   both may be one.
//! - A truncate is a step of its own.
//! - A step begins when all of the one before it is answered; so does an entity within a step.
//! - Failure: what is pending keeps everything after it from being sent.

use std::collections::{BTreeMap, HashSet};
use std::time::Instant;

use super::failure::{CloudResult, Failure};
use super::rows::RowSender;
use super::{Capabilities, Cloud};
use crate::batch::{Batch, ChangeIndex, Fate};
use crate::catalogue::EntityIndex;
use crate::change::{Cause, Op};
use crate::latency::AnswerTimes;

/// Marks the deletes and truncates that are not sent, since the server has no call for them.
pub(super) fn mark_unsupported(capabilities: Capabilities, batch: &mut Batch) {
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

/// Cuts what is pending into steps.
fn plan(batch: &Batch) -> Vec<SendOrder> {
    let mut steps = Vec::new();
    let mut rows = Vec::new();
    let mut seen = HashSet::new();
    for change_index in batch.pending() {
        let change = &batch[change_index];
        // A batch normally has each row once. If a row comes again, its order is kept.
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
    let is_early = |change_index: &ChangeIndex| batch[*change_index].cause == Cause::ReadsOtherwise;
    let (early, late): (Vec<_>, Vec<_>) = rows.iter().copied().partition(is_early);
    let upserts = by_entity(batch, rows, Op::Upsert);
    let deletes = by_entity(batch, &late, Op::Delete);
    for (&entity, changes) in &by_entity(batch, &early, Op::Delete) {
        sender.delete(batch, entity, changes).await?;
    }
    // A failure that may be the fault of one entity's rows does not stop the other entities. The first such
    // failure is the delivery's, once all entities were sent.
    let mut first_failure = None;
    for (&entity, changes) in &upserts {
        let mut sent = sender.upsert(capabilities.bulk, batch, entity, changes).await;
        if sent.is_ok() {
            sent = retry_refused(sender, capabilities, batch, entity, changes).await;
        }
        keep_failure_of_rows(sender, sent, &mut first_failure)?;
    }
    for (&entity, changes) in deletes.iter().rev() {
        let sent = sender.delete(batch, entity, changes).await;
        keep_failure_of_rows(sender, sent, &mut first_failure)?;
    }
    if let Some(failure) = first_failure {
        return Err(failure);
    }
    // An upsert may have been refused for a unique value of a row that is deleted only now.
    for (entity, changes) in &upserts {
        let is_refused =
            |change_index: &ChangeIndex| matches!(batch.fate(*change_index), Fate::Refused { .. });
        let refused: Vec<ChangeIndex> = changes.iter().copied().filter(is_refused).collect();
        if deletes.contains_key(entity) && !refused.is_empty() {
            for &change_index in &refused {
                batch.set_fate(change_index, Fate::Pending);
            }
            sender.upsert(capabilities.bulk, batch, *entity, &refused).await?;
        }
    }
    Ok(())
}

/// Keeps a failure that may be the fault of an entity's rows, and returns any other.
fn keep_failure_of_rows(
    sender: &RowSender<'_>,
    sent: CloudResult<()>,
    first_failure: &mut Option<Failure>,
) -> CloudResult<()> {
    match sent {
        Err(failure) if failure.is_from_application() => {
            first_failure.get_or_insert(failure);
            sender.requests.gate.reopen();
            Ok(())
        }
        other => other,
    }
}

/// Sends refused rows of an entity again, as long as the cloud takes any of them. Rows are sent at the same
/// time, and one may have been refused for what another one changed only a moment later: a parent in the same
/// table, or a unique value.
async fn retry_refused(
    sender: &RowSender<'_>,
    capabilities: Capabilities,
    batch: &mut Batch,
    entity: EntityIndex,
    changes: &[ChangeIndex],
) -> CloudResult<()> {
    let mut refused_before = changes.len();
    loop {
        let is_refused = |change_index: &ChangeIndex| {
            matches!(batch.fate(*change_index), Fate::Refused { code: 409 | 422, .. })
        };
        let refused: Vec<ChangeIndex> = changes.iter().copied().filter(is_refused).collect();
        if refused.is_empty() || refused.len() >= refused_before {
            return Ok(());
        }
        refused_before = refused.len();
        for &change_index in &refused {
            batch.set_fate(change_index, Fate::Pending);
        }
        sender.upsert(capabilities.bulk, batch, entity, &refused).await?;
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
