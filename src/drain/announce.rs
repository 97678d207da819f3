//! Sends schemas to the cloud, and parks the entities whose schema it refuses: all others go on.
//!
//! The touches of such an entity are kept in the site's database before the checkpoint can pass them: the sender keeps those of
//! batches that were read already, the reader those that come later. With each greeting the cloud gets the schema again, as the
//! table is then. When it takes it, the reader touches what was kept again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::time::Instant;

use super::schema::RefusedSchemas;
use super::sender::Sender;
use super::table_schemas::TableSchemas;
use super::wire_schema;
use crate::batch::{Batch, Fate};
use crate::catalogue::Catalogue;
use crate::change::{Cause, Change, Op};
use crate::deliver::{Capabilities, Failure, TableSchema};
use crate::error::{Kind, Result};
use crate::source::outbox::{self, KeptTouch, TouchOp};
use crate::source::{describe, drift, touch};

/// What the cloud was told of the entities' columns.
pub(super) struct AnnouncedSchemas {
    catalogue: Arc<Catalogue>,
    /// By the entities' places.
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

    /// Notes what the cloud was told of an entity; none where it has to be told again.
    pub(super) fn note(&self, place: usize, schema: Option<TableSchema>) {
        self.told()[place] = schema;
    }

    /// Has it told of all entities again.
    pub(super) fn forget(&self) {
        self.told().fill(None);
    }

    fn told(&self) -> MutexGuard<'_, Vec<Option<TableSchema>>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The columns of the batch's entities that the cloud was not told yet, by the entities' places. Those that it refuses are asked
    /// about at a greeting only.
    pub(super) fn untold(&self, batch: &Batch, shapes: &TableSchemas) -> Vec<(usize, TableSchema)> {
        let told = self.told();
        let mut seen = vec![false; told.len()];
        for change in batch.changes() {
            seen[change.entity] = true;
        }
        let refused = self.refused.borrow();
        let mut untold = Vec::new();
        for (place, _) in seen.iter().enumerate().filter(|(_, seen)| **seen) {
            let (entity, table) = (&self.catalogue.entities()[place], &shapes.tables[place]);
            if !table.fits(entity) || refused.contains_key(&place) {
                // The cloud goes by what it was told before.
                continue;
            }
            let schema = wire_schema(entity, table);
            if told[place].as_ref() != Some(&schema) {
                untold.push((place, schema));
            }
        }
        untold
    }

    /// Whether the cloud was told all that the batch needs, and refuses none of it.
    pub(super) fn knows(&self, batch: &Batch, shapes: &TableSchemas) -> bool {
        let refused = |refused: &RefusedSchemas| {
            !refused.is_empty()
                && batch
                    .changes()
                    .iter()
                    .any(|change| refused.contains_key(&change.entity))
        };
        !refused(&self.refused.borrow()) && self.untold(batch, shapes).is_empty()
    }
}

impl Sender {
    /// Sends the schemas that the batch needs, and parks what it has of entities whose schema the cloud refuses.
    pub(super) async fn tell(
        &mut self,
        batch: &mut Batch,
        shapes: &TableSchemas,
    ) -> std::result::Result<(), Failure> {
        let mut all_taken = true;
        for (place, schema) in self.announced.untold(batch, shapes) {
            all_taken &= self.put_schema(place, schema).await?;
        }
        if !all_taken {
            self.greet_sooner();
        }
        self.park_refused(batch, shapes).await?;
        Ok(())
    }

    /// Sends the refused schemas again, as the tables are now, and sets the time of the next greeting by those that stay refused.
    pub(super) async fn tell_refused(&mut self, cloud: Capabilities) -> std::result::Result<(), Failure> {
        let refused = self.announced.refused.borrow().clone();
        for (place, before) in &refused {
            let entity = &self.catalogue.entities()[*place];
            let table = describe::stands(self.session.client(), entity).await?.table;
            // Without the call, or with a table that does not fit, the cloud goes by what it was told before.
            let taken = !cloud.schema
                || !table.fits(entity)
                || self.put_schema(*place, wire_schema(entity, &table)).await?;
            if taken {
                self.announced.refused.send_modify(|refused| {
                    refused.remove(place);
                });
                continue;
            }
            let why = self
                .announced
                .refused
                .borrow()
                .get(place)
                .filter(|why| *why != before)
                .cloned();
            if let Some((why, shapes)) = why.zip(self.shapes.clone()) {
                outbox::park(
                    self.session.client(),
                    &self.fence,
                    shapes.numbers[*place],
                    &why,
                    &[],
                )
                .await?;
            }
        }
        if self.announced.refused.borrow().is_empty() {
            self.refused_backoff.reset();
        } else {
            self.greet_sooner();
        }
        Ok(())
    }

    /// Sets the time of the next greeting, so that refused schemas are soon sent again.
    fn greet_sooner(&mut self) {
        let again = Instant::now() + self.refused_backoff.next(None);
        self.greet_at = self.greet_at.min(again);
    }

    /// Sends one schema. Returns false where the cloud refuses it: the entity counts as refused from then on.
    async fn put_schema(&mut self, place: usize, schema: TableSchema) -> std::result::Result<bool, Failure> {
        let Err(failure) = self.cloud.put_schema(&self.origin, &schema).await else {
            self.announced.note(place, Some(schema));
            return Ok(true);
        };
        let refuses = match failure.lost_capability() {
            // It may have no such call any more, or none for this path.
            Some(_) => self.cloud.hello(&self.origin).await?.capabilities.schema,
            None => failure.error().kind() == Kind::CloudRefused,
        };
        if !refuses {
            return Err(failure);
        }
        self.announced.note(place, None);
        let why = failure.error().to_string();
        let entity = &self.catalogue.entities()[place].name;
        self.announced.refused.send_if_modified(|refused| {
            let changed = refused.get(&place) != Some(&why);
            if changed {
                tracing::error!(entity, "its changes are kept: {why}");
                refused.insert(place, why);
            }
            changed
        });
        Ok(false)
    }

    /// Keeps the touches of what the batch has of entities whose schema is refused.
    async fn park_refused(&self, batch: &mut Batch, shapes: &TableSchemas) -> Result<()> {
        let refused = self.announced.refused.borrow().clone();
        for (place, why) in refused {
            let mut pending = batch.pending();
            pending.retain(|&nth| batch.changes()[nth].entity == place);
            if pending.is_empty() {
                continue;
            }
            let entity = &self.catalogue.entities()[place];
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
                .filter_map(|&nth| kept(&batch.changes()[nth]))
                .collect();
            let number = shapes.numbers[place];
            if touches.len() < pending.len() {
                drift::mark(self.session.client(), number, "rows were kept without their key").await?;
            }
            outbox::park(self.session.client(), &self.fence, number, &why, &touches).await?;
            for nth in pending {
                batch.set_fate(nth, Fate::Parked);
            }
        }
        Ok(())
    }
}
