//! What a server without `changes` needs besides its requests: it has no versions and remembers nothing.

use crate::catalogue::{Catalogue, EntityIndex};
use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::Client;

use super::described_tables::DescribedTables;
use super::send::Sender;
use crate::batch::{Batch, ChangeIndex, Fate};
use crate::change::{Cause, Op};
use crate::error::Result;
use crate::source::{sent, touch};

impl Sender {
    /// Notes which rows of entities with a condition go to the cloud, and leaves the deletes of those out
    /// that never went. The same for entities whose list is not trusted: a comparison uses these notes.
    pub(super) async fn settle_conditions(&self, batch: &mut Batch, schemas: &DescribedTables) -> Result<()> {
        let client = self.session.client();
        let mut upserts: BTreeMap<EntityIndex, Vec<&str>> = BTreeMap::new();
        let mut unmet: BTreeMap<EntityIndex, Vec<(ChangeIndex, &str)>> = BTreeMap::new();
        let pending = batch.pending();
        for &change_index in &pending {
            let change = &batch[change_index];
            if !is_noted(&self.catalogue, change.entity) {
                continue;
            }
            if change.op == Op::Upsert {
                upserts.entry(change.entity).or_default().push(&change.key);
            } else if change.cause == Cause::Unmet {
                unmet
                    .entry(change.entity)
                    .or_default()
                    .push((change_index, &change.key));
            }
        }
        for (entity, keys) in upserts {
            sent::note(client, Some(self.fence.term()), schemas.numbers[entity.0], &keys).await?;
        }
        let mut never = Vec::new();
        for (entity, rows) in unmet {
            let keys: Vec<&str> = rows.iter().map(|(_, key)| *key).collect();
            let known = sent::known(client, schemas.numbers[entity.0], &keys).await?;
            never.extend(
                rows.iter()
                    .filter(|(_, key)| !known.contains(key))
                    .map(|(change_index, _)| *change_index),
            );
        }
        for change_index in never {
            batch.set_fate(change_index, Fate::Kept);
        }
        self.settle_moves(batch, schemas).await
    }

    /// Sees to rows that moved to another entity of the same table: the two may be paths over one table of
    /// the cloud's too, and a delete under the old path must not take away what was sent under the new one.
    /// It goes before that, or is left out if the settings say that the new path replaces the row. If the
    /// row's new state is not in this batch, it is touched again before the delete goes.
    async fn settle_moves(&self, batch: &mut Batch, schemas: &DescribedTables) -> Result<()> {
        let oid = |entity: EntityIndex| schemas.tables[entity.0].oid;
        let siblings = |entity: EntityIndex| {
            let all = self.catalogue.indexed().map(|(index, _)| index);
            all.filter(move |&other| other != entity && oid(other) == oid(entity))
        };
        let pending = batch.pending();
        let mut sent: HashSet<(u32, &str)> = HashSet::new();
        let mut moved = Vec::new();
        for &change_index in &pending {
            let change = &batch[change_index];
            if siblings(change.entity).next().is_none() {
                continue;
            }
            if change.op == Op::Upsert {
                sent.insert((oid(change.entity), &change.key));
            } else if change.cause == Cause::Unmet {
                moved.push(change_index);
            }
        }
        let (here, elsewhere): (Vec<ChangeIndex>, Vec<ChangeIndex>) =
            moved.into_iter().partition(|&change_index| {
                let change = &batch[change_index];
                sent.contains(&(oid(change.entity), &change.key))
            });
        let mut again: BTreeMap<EntityIndex, Vec<&str>> = BTreeMap::new();
        for &change_index in &elsewhere {
            let change = &batch[change_index];
            for sibling in siblings(change.entity) {
                again.entry(sibling).or_default().push(&change.key);
            }
        }
        for (sibling, keys) in again {
            let entity = &self.catalogue[sibling];
            touch::keys(self.session.client(), entity, schemas.numbers[sibling.0], &keys).await?;
        }
        for change_index in here {
            if self.cloud.deletes_moved() {
                batch[change_index].cause = Cause::ReadsOtherwise;
            } else {
                batch.set_fate(change_index, Fate::Kept);
            }
        }
        for change_index in elsewhere {
            batch[change_index].cause = Cause::ReadsOtherwise;
        }
        Ok(())
    }

    /// How long a request may still arrive that got no answer.
    pub(super) fn life(&self) -> Duration {
        self.cloud.timeout() * 2
    }

    /// Notes the rows whose requests got no answer: such a request may arrive after what is sent later.
    pub(super) async fn note_unanswered(&mut self, batch: &mut Batch) -> Result<()> {
        let late = batch.take_unanswered();
        if late.is_empty() {
            return Ok(());
        }
        let rows: Vec<(&str, &str)> = late
            .iter()
            .map(|(entity, key)| (self.catalogue[*entity].name.as_str(), &**key))
            .collect();
        let life = self.life();
        sent::unanswered(self.session.client(), self.fence.term(), &rows, life).await?;
        self.retries.no_later_than(Instant::now() + life);
        Ok(())
    }
}

/// Whether the site's database notes which rows of the entity the cloud may have.
fn is_noted(catalogue: &Catalogue, entity_index: EntityIndex) -> bool {
    let entity = &catalogue[entity_index];
    entity.filter.is_some() || !entity.trust_list
}

/// Forgets the rows whose delete the cloud has accepted.
///
/// # Errors
/// The source's.
pub(super) async fn forget_deleted(
    client: &Client,
    term: i64,
    catalogue: &Catalogue,
    batch: &Batch,
    schemas: &DescribedTables,
) -> Result<()> {
    let mut deleted: BTreeMap<EntityIndex, Vec<&str>> = BTreeMap::new();
    for (change_index, change) in batch.indexed() {
        let is_gone_there = change.op == Op::Delete && *batch.fate(change_index) == Fate::Accepted;
        if is_noted(catalogue, change.entity) && is_gone_there {
            deleted.entry(change.entity).or_default().push(&change.key);
        }
    }
    for (entity_index, keys) in deleted {
        sent::forget(client, term, schemas.numbers[entity_index.0], &keys).await?;
    }
    Ok(())
}
