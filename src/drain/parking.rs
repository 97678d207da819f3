//! Entities that cannot be read, or whose schema the cloud refuses: their touches are kept in the site's
//! database, and they are tried again by themselves.
//!
//! What is kept is durable before the checkpoint can pass it. All other entities go on.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use super::reader::{OutboxReader, ParkedEntity};
use crate::catalogue::EntityIndex;
use crate::change::Position;
use crate::error::{Error, Result};
use crate::retry::waits;
use crate::source::outbox::{OutboxPage, TouchOp};
use crate::source::parked_touches::{self, KeptTouch};
use crate::source::rows::{ByteBudget, RowReadFailure, TouchKey, join_array};
use crate::source::{drift, outbox};

/// How long a look at a parked entity waits for a lock.
const PROBE_LOCK: &str = "20ms";

impl OutboxReader {
    /// Parks entities, each with the reason; after `wait` it is tried whether they can be read.
    pub(super) fn park_entities(&mut self, entities: Vec<(EntityIndex, String)>, wait: Duration) {
        for (entity_index, why) in entities {
            tracing::error!(
                entity = self.catalogue[entity_index].name,
                "it cannot be read now, and its changes are kept: {why}"
            );
            self.rows.remove(&entity_index);
            self.parked.entry(entity_index).or_insert_with(|| ParkedEntity {
                why,
                probe_at: Instant::now() + wait,
                wait,
            });
        }
    }

    /// Keeps the page's touches of parked entities, before the checkpoint can pass them.
    pub(super) async fn keep_parked(&self, page: &OutboxPage, upto: Position) -> Result<()> {
        for (&entity_index, parked) in &self.parked {
            let touches: Vec<_> = page
                .touches
                .iter()
                .filter(|touch| touch.entity == entity_index && touch.position <= upto)
                .map(|touch| {
                    let (number, key) = match &touch.key {
                        Some(TouchKey::Number(number)) => (Some(*number), None),
                        Some(TouchKey::Texts(texts)) => (None, as_written(texts)),
                        None => (None, None),
                    };
                    KeptTouch {
                        op: touch.op,
                        number,
                        key,
                    }
                })
                .collect();
            if !touches.is_empty() {
                let number = self.schemas.numbers[entity_index.0];
                parked_touches::park(self.session.client(), &self.fence, number, &parked.why, &touches)
                    .await?;
            }
        }
        Ok(())
    }

    /// Notes that rows were touched and it is not known which: a comparison finds them. It is durable before
    /// the checkpoint can pass the touch.
    pub(super) async fn mark_gaps(&self, page: &OutboxPage, upto: Position) -> Result<()> {
        let mut gaps = BTreeMap::new();
        let read = || page.touches.iter().filter(|touch| touch.position <= upto);
        // A truncate of the whole table is one of each partition, too. What it has left has touches in this
        // page.
        let truncated: HashSet<EntityIndex> = read()
            .filter(|touch| touch.op == TouchOp::Truncated)
            .map(|touch| touch.entity)
            .collect();
        for touch in read() {
            if self.parked.contains_key(&touch.entity) {
                continue;
            }
            let columns = self.catalogue[touch.entity].key.len();
            if touch.op == TouchOp::Unknown && truncated.contains(&touch.entity) {
                continue;
            }
            if touch.op == TouchOp::Unknown {
                gaps.insert(
                    touch.entity,
                    "a partition was truncated: it is not known which rows it had",
                );
            } else if touch.op != TouchOp::Truncated
                && touch.key.clone().and_then(|key| key.split(columns)).is_none()
            {
                gaps.insert(
                    touch.entity,
                    "rows were touched without their key: a key column was dropped or renamed, or is null",
                );
            }
        }
        for (&number, _) in page.foreign.iter().filter(|&(_, &first)| first <= upto) {
            tracing::warn!(
                number,
                "rows of an entity that the catalogue no longer has were written: they are compared should it come back"
            );
            drift::mark(
                self.session.client(),
                number,
                "it was not in the catalogue while its rows changed",
            )
            .await?;
        }
        for (entity_index, why) in gaps {
            tracing::error!(entity = self.catalogue[entity_index].name, "{why}");
            drift::mark(self.session.client(), self.schemas.numbers[entity_index.0], why).await?;
        }
        Ok(())
    }

    /// When the next parked entity is tried. Those whose schema the cloud refuses wait for the cloud, those
    /// that are paused for an operator.
    pub(super) fn next_probe(&self) -> Option<Instant> {
        let refused = self.refused.borrow();
        let waits = self.parked.iter().filter(|(entity_index, _)| {
            !refused.contains_key(entity_index) && !self.paused.contains(entity_index)
        });
        waits.map(|(_, parked)| parked.probe_at).min()
    }

    /// Sets how long the session waits for a lock.
    async fn wait_for_locks(&self, time: &str) -> Result<()> {
        let sql = format!("set lock_timeout = '{time}'");
        let set = self.session.client().batch_execute(&sql).await;
        set.map_err(|error| Error::postgres("set how long to wait for a lock", error))
    }

    /// Tries whether parked entities can be read, each after its time, and touches the rows of those that can
    /// again.
    pub(super) async fn probe_parked(&mut self) -> Result<()> {
        let now = Instant::now();
        let due: Vec<EntityIndex> = {
            let refused = self.refused.borrow_and_update();
            for (&entity_index, why) in refused.iter() {
                let parked = self
                    .parked
                    .entry(entity_index)
                    .or_insert_with(|| ParkedEntity::now(why.clone()));
                parked.why.clone_from(why);
            }
            let due = |(entity_index, parked): &(&EntityIndex, &ParkedEntity)| {
                parked.probe_at <= now
                    && !refused.contains_key(entity_index)
                    && !self.paused.contains(entity_index)
            };
            self.parked
                .iter()
                .filter(due)
                .map(|(&entity_index, _)| entity_index)
                .collect()
        };
        if due.is_empty() {
            return Ok(());
        }
        self.reshape().await?;
        for entity_index in due {
            // It may still be locked: the others wait for this look.
            self.wait_for_locks(PROBE_LOCK).await?;
            let readable = match self.prepare_row_reader(entity_index).await {
                Ok(()) => {
                    let room = ByteBudget::new(usize::MAX);
                    // If the form of a key is wrong, a later read finds the row.
                    let none = [TouchKey::Number(0)];
                    match self.rows[&entity_index]
                        .read(self.session.client(), &none, &room)
                        .await
                    {
                        Ok(_) if self.schemas.tables[entity_index.0].stale_collation.is_none() => Ok(()),
                        Ok(_) => Err("its index may be stale".to_owned()),
                        Err(RowReadFailure::Session(error)) => return Err(error),
                        Err(RowReadFailure::Entity(error)) => Err(error.to_string()),
                        Err(RowReadFailure::Row(error) | RowReadFailure::Reshaped(error)) => Err(error),
                    }
                }
                Err(RowReadFailure::Session(error)) => return Err(error),
                Err(RowReadFailure::Entity(error)) => Err(error.to_string()),
                Err(RowReadFailure::Row(error) | RowReadFailure::Reshaped(error)) => Err(error),
            };
            self.wait_for_locks(outbox::LOCK).await?;
            if let Err(why) = readable {
                self.stay_parked(entity_index, why).await?;
                continue;
            }
            parked_touches::unpark(
                self.session.client(),
                &self.fence,
                self.schemas.numbers[entity_index.0],
            )
            .await?;
            self.parked.remove(&entity_index);
            tracing::info!(
                entity = self.catalogue[entity_index].name,
                "it is no longer parked: what was kept is sent"
            );
        }
        Ok(())
    }

    /// Sets when a parked entity is tried again that still cannot be read, and notes the reason if it is
    /// another one.
    async fn stay_parked(&mut self, entity_index: EntityIndex, why: String) -> Result<()> {
        self.rows.remove(&entity_index);
        let Some(parked) = self.parked.get_mut(&entity_index) else {
            return Ok(());
        };
        parked.wait = (parked.wait * 2).min(waits::PARKED_ENTITY.most);
        parked.probe_at = Instant::now() + parked.wait;
        if parked.why == why {
            return Ok(());
        }
        parked.why.clone_from(&why);
        let number = self.schemas.numbers[entity_index.0];
        parked_touches::park(self.session.client(), &self.fence, number, &why, &[]).await
    }
}

/// The key's text as the outbox has it.
fn as_written(texts: &[Option<Box<str>>]) -> Option<String> {
    match texts {
        [only] => only.as_deref().map(str::to_owned),
        several => {
            let several: Vec<_> = several
                .iter()
                .map(|text| text.as_deref().map(str::to_owned))
                .collect();
            Some(join_array(&several))
        }
    }
}
