//! Foreign keys among the catalogue's tables: what is sent again when a parent came, or is missing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::described_tables::DescribedTables;
use super::handshake::Handshake;
use crate::batch::Batch;
use crate::catalogue::{Catalogue, EntityIndex};
use crate::deliver::Cloud;
use crate::error::Result;
use crate::existence::CloudRows;
use crate::quarantine;
use crate::quarantine::orphans::Orphans;
use crate::source::connect::Session;
use crate::source::touch;

/// The foreign keys, and where to send again what they need.
pub(super) struct Parents {
    session: Arc<Session>,
    catalogue: Arc<Catalogue>,
    cloud: Cloud,
    handshake: Arc<Handshake>,
    known: Mutex<KnownKeys>,
}

#[derive(Default)]
struct KnownKeys {
    schemas: Option<Arc<DescribedTables>>,
    /// The foreign keys, and the schemas that they were read with.
    orphans: Option<(Arc<DescribedTables>, Arc<Orphans>)>,
}

impl Parents {
    pub(super) fn new(
        session: Arc<Session>,
        catalogue: Arc<Catalogue>,
        cloud: Cloud,
        handshake: Arc<Handshake>,
    ) -> Self {
        Self {
            session,
            catalogue,
            cloud,
            handshake,
            known: Mutex::default(),
        }
    }

    fn known(&self) -> MutexGuard<'_, KnownKeys> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the tables as they are.
    pub(super) fn note_schemas(&self, schemas: &Arc<DescribedTables>) {
        self.known().schemas = Some(schemas.clone());
    }

    /// Touches the rows in quarantine again whose parents are among the batch's accepted rows. `occupied` are
    /// the entities that have entries in quarantine.
    ///
    /// # Errors
    /// The source's.
    pub(super) async fn touch_children(
        &self,
        batch: &Batch,
        schemas: &Arc<DescribedTables>,
        occupied: &[EntityIndex],
    ) -> Result<()> {
        let orphans = self.orphans(schemas).await?;
        orphans
            .touch_children(
                self.session.client(),
                &self.catalogue,
                &schemas.numbers,
                batch,
                occupied,
            )
            .await?;
        Ok(())
    }

    /// Touches the parents that the cloud does not list, of rows (entity and key) that were refused for the
    /// first time. Only at a server without `changes`: it may have a foreign key where the site has one.
    ///
    /// # Errors
    /// The source's.
    pub(super) async fn send_lacking(&self, rows: &[(String, String)]) -> Result<()> {
        let answer = self.handshake.answer();
        let to_baseline = answer.is_some_and(|answer| !answer.info.capabilities.changes);
        let schemas = self.known().schemas.clone();
        let (true, Some(schemas)) = (to_baseline && !rows.is_empty(), schemas) else {
            return Ok(());
        };
        let client = self.session.client();
        let images = quarantine::first_images(client, rows).await?;
        if images.is_empty() {
            return Ok(());
        }
        let orphans = self.orphans(&schemas).await?;
        for (parent, keys) in orphans.parents(&self.catalogue, &images) {
            let entity = &self.catalogue[parent];
            let listed = match CloudRows::learn(&self.cloud, parent, None, None).await {
                Ok(listed) => listed,
                Err(failure) => {
                    tracing::debug!(entity = entity.name, %failure, "it is not known which parents the cloud lacks");
                    continue;
                }
            };
            let waiting = quarantine::refused(client, &entity.name, &keys).await?;
            let lacking: Vec<&String> = keys
                .iter()
                .filter(|key| !waiting.rows.contains_key(*key))
                .filter(|key| !listed.contains(&self.cloud.cloud_key_of(parent, key)))
                .collect();
            if !lacking.is_empty() {
                tracing::info!(
                    entity = entity.name,
                    rows = lacking.len(),
                    "the cloud lacks parents of refused rows: they are sent again"
                );
                touch::keys(client, entity, schemas.numbers[parent.0], &lacking).await?;
            }
        }
        Ok(())
    }

    /// The foreign keys of these tables.
    async fn orphans(&self, schemas: &Arc<DescribedTables>) -> Result<Arc<Orphans>> {
        let known = self.known().orphans.clone();
        if let Some((of, orphans)) = known
            && Arc::ptr_eq(&of, schemas)
        {
            return Ok(orphans);
        }
        let read = Arc::new(Orphans::read(self.session.client(), &schemas.tables).await?);
        self.known().orphans = Some((schemas.clone(), read.clone()));
        Ok(read)
    }
}
