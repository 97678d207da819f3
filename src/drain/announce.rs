//! Sends schemas to the cloud, and parks the entities whose schema it refuses: all others go on.
//!
//! The touches of such an entity are kept in the site's database before the checkpoint can pass them: the
//! sender keeps those of batches that were read already, the reader those that come later. With each
//! handshake, and some seconds after a refusal, the cloud gets the schema again, as the table is then. When
//! it takes it, the reader touches what was kept again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::time::Instant;

use super::described_tables::DescribedTables;
use super::send::Sender;
use super::wire_schema;
use super::wire_schema::RefusedSchemas;
use crate::batch::{Batch, Fate};
use crate::catalogue::{Catalogue, EntityIndex};
use crate::change::{Cause, Change, Op};
use crate::deliver::{Capabilities, Failure, TableSchema};
use crate::error::{Kind, Result};
use crate::source::outbox::TouchOp;
use crate::source::parked_touches::{self, KeptTouch};
use crate::source::{describe, drift, touch};

/// The schemas that the cloud has been sent.
pub(super) struct AnnouncedSchemas {
    catalogue: Arc<Catalogue>,
    /// By entity.
    told: Mutex<Vec<Option<TableSchema>>>,
    /// The entities whose schema it refuses.
    pub(super) refused: watch::Sender<RefusedSchemas>,
}

impl AnnouncedSchemas {
    pub(super) fn new(catalogue: Arc<Catalogue>, refused: watch::Sender<RefusedSchemas>) -> Self {
        let told = Mutex::new(vec![None; catalogue.entities().len()]);
        Self {
            catalogue,
            told,
            refused,
        }
    }

    /// Notes the schema that the cloud was sent of an entity; `None` if it must be sent again.
    pub(super) fn note(&self, entity_index: EntityIndex, schema: Option<TableSchema>) {
        self.told()[entity_index.0] = schema;
    }

    /// All schemas must be sent again.
    pub(super) fn forget(&self) {
        self.told().fill(None);
    }

    fn told(&self) -> MutexGuard<'_, Vec<Option<TableSchema>>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The schemas of the batch's entities that the cloud was not sent yet. Those that it refuses are sent
    /// again by [`Sender::announce_refused`].
    pub(super) fn untold(&self, batch: &Batch, schemas: &DescribedTables) -> Vec<(EntityIndex, TableSchema)> {
        let told = self.told();
        let mut seen = vec![false; told.len()];
        for change in batch.changes() {
            seen[change.entity.0] = true;
        }
        let refused = self.refused.borrow();
        let mut untold = Vec::new();
        for (entity_index, entity) in self.catalogue.indexed().filter(|(index, _)| seen[index.0]) {
            let table = &schemas.tables[entity_index.0];
            if !table.fits(entity) || refused.contains_key(&entity_index) {
                // The schema that the cloud was sent before still counts.
                continue;
            }
            let schema = wire_schema(entity, table);
            if told[entity_index.0].as_ref() != Some(&schema) {
                untold.push((entity_index, schema));
            }
        }
        untold
    }

    /// Whether the cloud was sent all schemas that the batch needs, and refuses none of them.
    pub(super) fn knows(&self, batch: &Batch, schemas: &DescribedTables) -> bool {
        let refused = |refused: &RefusedSchemas| {
            !refused.is_empty()
                && batch
                    .changes()
                    .iter()
                    .any(|change| refused.contains_key(&change.entity))
        };
        !refused(&self.refused.borrow()) && self.untold(batch, schemas).is_empty()
    }
}

impl Sender {
    /// Sends the schemas that the batch needs, and parks what it has of entities whose schema the cloud
    /// refuses.
    pub(super) async fn announce(
        &mut self,
        batch: &mut Batch,
        schemas: &DescribedTables,
    ) -> std::result::Result<(), Failure> {
        let mut all_taken = true;
        for (entity_index, schema) in self.announced.untold(batch, schemas) {
            all_taken &= self.put_schema(entity_index, schema).await?;
        }
        if !all_taken {
            self.announce_again_soon();
        }
        self.park_refused(batch, schemas).await?;
        Ok(())
    }

    /// Sends the refused schemas again, as the tables are now, and sets when those that stay refused are sent
    /// once more.
    pub(super) async fn announce_refused(&mut self, cloud: Capabilities) -> std::result::Result<(), Failure> {
        let refused = self.announced.refused.borrow().clone();
        for (entity_index, before) in &refused {
            let entity = &self.catalogue[*entity_index];
            let table = describe::described_table(self.session.client(), entity)
                .await?
                .table;
            // Without the call, or if the table does not fit, the schema that the cloud was sent before still
            // counts.
            let taken = !cloud.schema
                || !table.fits(entity)
                || self
                    .put_schema(*entity_index, wire_schema(entity, &table))
                    .await?;
            if taken {
                self.announced.refused.send_modify(|refused| {
                    refused.remove(entity_index);
                });
                continue;
            }
            let why = self
                .announced
                .refused
                .borrow()
                .get(entity_index)
                .filter(|why| *why != before)
                .cloned();
            if let Some((why, schemas)) = why.zip(self.schemas.clone()) {
                parked_touches::park(
                    self.session.client(),
                    &self.fence,
                    schemas.numbers[entity_index.0],
                    &why,
                    &[],
                )
                .await?;
            }
        }
        if self.announced.refused.borrow().is_empty() {
            self.refused_backoff.reset();
            self.refused_at = None;
        } else {
            self.announce_again_soon();
        }
        Ok(())
    }

    /// Sets when refused schemas are sent again.
    fn announce_again_soon(&mut self) {
        self.refused_at = Some(Instant::now() + self.refused_backoff.next(None));
    }

    /// Sends one schema. Returns false if the cloud refuses it: the entity counts as refused from then on.
    async fn put_schema(
        &mut self,
        entity_index: EntityIndex,
        schema: TableSchema,
    ) -> std::result::Result<bool, Failure> {
        let Err(failure) = self.cloud.put_schema(&self.origin, &schema).await else {
            self.announced.note(entity_index, Some(schema));
            return Ok(true);
        };
        let refuses = match failure.lost_capability() {
            // It may have no such call any more, or none for this path.
            Some(_) => self.cloud.handshake(&self.origin).await?.capabilities.schema,
            None => failure.error().kind() == Kind::CloudRefused,
        };
        if !refuses {
            return Err(failure);
        }
        self.announced.note(entity_index, None);
        let why = failure.error().to_string();
        let entity = &self.catalogue[entity_index].name;
        self.announced.refused.send_if_modified(|refused| {
            let changed = refused.get(&entity_index) != Some(&why);
            if changed {
                tracing::error!(entity, "its changes are kept: {why}");
                refused.insert(entity_index, why);
            }
            changed
        });
        Ok(false)
    }

    /// Keeps the touches of what the batch has of entities whose schema is refused.
    async fn park_refused(&self, batch: &mut Batch, schemas: &DescribedTables) -> Result<()> {
        let refused = self.announced.refused.borrow().clone();
        for (entity_index, why) in refused {
            let mut pending = batch.pending();
            pending.retain(|&change_index| batch[change_index].entity == entity_index);
            if pending.is_empty() {
                continue;
            }
            let entity = &self.catalogue[entity_index];
            let kept = |change: &Change| {
                let (op, (number, key)) = match (change.op, change.cause) {
                    (Op::Truncate, _) => (TouchOp::Truncated, (None, None)),
                    (_, Cause::Moved) => (TouchOp::Moved, touch::parts(entity, &change.key)?),
                    _ => (TouchOp::Written, touch::parts(entity, &change.key)?),
                };
                Some(KeptTouch { op, number, key })
            };
            let touches: Vec<_> = pending
                .iter()
                .filter_map(|&change_index| kept(&batch[change_index]))
                .collect();
            let number = schemas.numbers[entity_index.0];
            if touches.len() < pending.len() {
                drift::mark(self.session.client(), number, "rows were kept without their key").await?;
            }
            parked_touches::park(self.session.client(), &self.fence, number, &why, &touches).await?;
            for change_index in pending {
                batch.set_fate(change_index, Fate::Parked);
            }
        }
        Ok(())
    }
}
