//! Sync and backfill: compare the site with its cloud, and push what the cloud lacks.
//!
//! A repair is delivered like any change: a row that the cloud lacks, or has in another state, is touched
//! again in the outbox, and the drain delivers its present state. Touches are paced: after [`PACE`] touches
//! the pass waits until these are delivered, so that live changes do not queue behind them.
//!
//! On failure: an entity that fails is reported, and the pass continues with the next one.

pub mod backfill;
pub mod report;
mod touched;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;

use crate::abort;
use crate::batch::Batch;
use crate::catalogue::server::Unconfirmed;
use crate::catalogue::{Catalogue, Deletes, Entity, EntityIndex};
use crate::change::{Cause, Change, Op, Position};
use crate::deliver::{Capabilities, ChangeOrigin, Cloud};
use crate::drain::{AcceptedKeyRecorder, ReplicationState, wire_schema};
use crate::error::{Error, Kind, Result};
use crate::existence::{self, CloudRows};
use crate::media::{self, MediaRoot};
use crate::quarantine;
use crate::source::connect::Session;
use crate::source::describe::{self, SourceTable};
use crate::source::drift;
use crate::source::install::AttachedEntity;
use crate::source::pages::{self, ColumnsToRead, FoundRow, RowPages};
use crate::source::sent;
use crate::source::site_session::SiteSession;
use crate::wire::json::pick;
use report::SyncReport;
use touched::TouchedRows;

/// How many pushed rows of an entity are looked for in the cloud's list afterwards, at most.
const SAMPLE: usize = 1_000;

/// How many touched rows may wait for their delivery.
const PACE: usize = 20_000;

/// Receives the progress of a long pass.
pub trait Observer: Send + Sync {
    /// An entity begins; it has `rows` rows to compare.
    fn begin(&self, entity: &str, rows: u64);
    /// Since the last call, `compared` rows were compared and `pushed` of them pushed.
    fn advance(&self, compared: u64, pushed: u64);
    /// The entity has ended.
    fn end(&self, entity: &str);
}

/// An observer that ignores everything.
#[derive(Debug, Clone, Copy)]
pub struct NoObserver;

impl Observer for NoObserver {
    fn begin(&self, _entity: &str, _rows: u64) {}
    fn advance(&self, _compared: u64, _pushed: u64) {}
    fn end(&self, _entity: &str) {}
}

/// A pass that compares a site with its cloud. A drain must run at the same time, to deliver what the pass
/// touches.
pub struct Reconcile {
    session: Session,
    catalogue: Arc<Catalogue>,
    tables: Vec<SourceTable>,
    attached: Vec<AttachedEntity>,
    cloud: Cloud,
    capabilities: Capabilities,
    origin: ChangeOrigin,
    state: Arc<ReplicationState>,
    media_root: MediaRoot,
    patience: Duration,
    /// When the pass began, in the source's time, in microseconds since 1970.
    began: i64,
}

impl Reconcile {
    /// Connects to the source, and asks the cloud for its capabilities. `patience` is how long the drain may
    /// fail before the pass gives up an entity.
    ///
    /// # Errors
    /// The source's or the cloud's.
    pub async fn open(
        database_url: &SecretString,
        source_id: Option<&str>,
        catalogue: Arc<Catalogue>,
        cloud: Cloud,
        state: Arc<ReplicationState>,
        media_root: MediaRoot,
        patience: Duration,
    ) -> Result<Self> {
        let SiteSession {
            session,
            identity,
            tables,
            attached,
        } = SiteSession::open(database_url, "sync", source_id, &catalogue).await?;
        let origin = ChangeOrigin::from(&identity);
        let capabilities = cloud.handshake(&origin).await?.capabilities;
        let began = session
            .client()
            .query_one("select (extract(epoch from now()) * 1e6)::bigint", &[])
            .await
            .map_err(|error| Error::postgres("read the source's time", error))?
            .get(0);
        Ok(Self {
            session,
            catalogue,
            tables,
            attached,
            cloud,
            capabilities,
            origin,
            state,
            media_root,
            patience,
            began,
        })
    }

    /// Compares the entities at `entity_indexes` with the cloud, in push order, and pushes what it lacks.
    ///
    /// If the cloud lists contents, a row that differs is pushed too, and a row that the site does not have
    /// is deleted if deletes propagate. If the cloud lists only keys, a row with a listed key counts as held;
    /// `force` pushes it nevertheless. The report has every row of these entities that the cloud accepted
    /// since `recording` began, including rows that waited before the pass.
    pub async fn sync(
        &self,
        entity_indexes: &[EntityIndex],
        force: bool,
        recording: &AcceptedKeyRecorder,
        observer: &dyn Observer,
    ) -> SyncReport {
        let mut report = SyncReport::new(&self.catalogue);
        self.state.wake_now();
        if let Err(error) = self.let_drain().await {
            tracing::debug!(%error, "the sync does not wait for the changes that are in the outbox");
        }
        for &entity_index in entity_indexes {
            let entity = &self.catalogue[entity_index];
            if let Err(error) = self
                .sync_and_close_gap(entity_index, force, observer, &mut report)
                .await
            {
                report.fail(&entity.name, report_text(&error));
            }
            observer.end(&entity.name);
        }
        let mut seen = HashSet::new();
        let mut accepted = recording.take();
        accepted.sort_by_key(|(entity_index, _)| *entity_index);
        for accepted in accepted {
            let (entity_index, key) = &accepted;
            if entity_indexes.contains(entity_index) && !seen.contains(&accepted) {
                if let Err(error) = report.add(*entity_index, key) {
                    report.error(error);
                }
                seen.insert(accepted);
            }
        }
        report
    }

    /// Syncs one entity. If its content was compared, or all of it was pushed, this closes the entity's gap:
    /// what the cloud lacked is in the outbox now.
    async fn sync_and_close_gap(
        &self,
        entity_index: EntityIndex,
        force: bool,
        observer: &dyn Observer,
        report: &mut SyncReport,
    ) -> Result<()> {
        let (entity, table) = (&self.catalogue[entity_index], &self.tables[entity_index.0]);
        let client = self.session.client();
        self.check_key_fits(entity_index).await?;
        let gap = drift::closable(client, entity, table).await?;
        let pass = EntityPass {
            // Changes that capture missed may be of any age.
            days: match (&gap, &entity.retention) {
                (None, Some(window)) => Some(window.days),
                _ => None,
            },
            force: force || (gap.is_some() && !self.capabilities.changes),
        };
        let complete = self.compare_entity(entity_index, pass, observer, report).await?;
        match gap {
            Some(gap) if complete && (pass.force || self.capabilities.changes) => {
                drift::close(client, entity, &gap).await
            }
            _ => Ok(()),
        }
    }

    /// Returns an error if the entity's rows cannot be read by their keys.
    async fn check_key_fits(&self, entity_index: EntityIndex) -> Result<()> {
        let entity = &self.catalogue[entity_index];
        if self.tables[entity_index.0].fits(entity) {
            return Ok(());
        }
        let described = describe::described_table(self.session.client(), entity).await?;
        Err(described.unfit.unwrap_or_else(|| {
            Error::config(format!("read {}", entity.name), "its table has just changed").remedy("try again")
        }))
    }

    /// Compares one entity. Returns whether all of it was compared: if the drain makes no progress, the rest
    /// is skipped.
    async fn compare_entity(
        &self,
        entity_index: EntityIndex,
        pass: EntityPass,
        observer: &dyn Observer,
        report: &mut SyncReport,
    ) -> Result<bool> {
        let entity = &self.catalogue[entity_index];
        let table = &self.tables[entity_index.0];
        let client = self.session.client();
        observer.begin(
            &entity.name,
            pages::count(client, entity, table, pass.days).await?,
        );
        if self.capabilities.schema {
            // The cloud has no list of an entity before its schema was sent.
            self.cloud
                .put_schema(&self.origin, &wire_schema(entity, table))
                .await?;
        }
        if !self.capabilities.changes
            && self.capabilities.delete
            && entity.filter.is_some()
            && entity.trust_list
        {
            self.note_held(entity_index).await?;
        }
        let columns = self.compared_columns(entity, table);
        let mut known = self
            .learn_known_rows(entity_index, pass.days, columns.as_deref())
            .await?;
        let mut touched = TouchedRows::new(self, entity_index);
        let read = if columns.is_some() {
            ColumnsToRead::Rows
        } else {
            ColumnsToRead::Keys
        };
        let mut pages = match columns {
            Some(_) => RowPages::open(client, entity, table, pass.days, read).await?,
            None => RowPages::open_listed(client, entity, table, pass.days, read).await?,
        };
        let mut sample = Vec::new();
        for leaf in pages::leaves(client, table).await? {
            let mut from = 0;
            while let Some((rows, next)) = pages.next(&leaf, from).await? {
                from = next;
                let count_read = rows.len();
                let keys = self
                    .keys_to_touch(entity_index, rows, columns.as_deref(), pass.force, &mut known)
                    .await?;
                let keys = self.without_refused(entity_index, keys, report).await?;
                let count = keys.len();
                sample.extend(keys.iter().take(SAMPLE - sample.len().min(SAMPLE)).cloned());
                touched.add(keys).await?;
                if count > 0 {
                    abort::point("amid a sync");
                }
                observer.advance(count_read as u64, count as u64);
                if touched.waiting() > PACE && !touched.settle_reporting(report).await? {
                    return Ok(false);
                }
            }
        }
        // Only if the list holds this site's rows alone, as the receiver's does.
        if let KnownCloudRows::Listed(held) = &known
            && columns.is_some()
            && entity.deletes() == Deletes::Propagate
            && !held.is_empty()
        {
            self.touch_extra(entity_index, pass.days, held, &mut touched)
                .await?;
        }
        abort::point("after a sync's capture");
        // Even if the drain fails now, all differences are in the outbox.
        let drain_works = touched.settle_reporting(report).await?;
        // A row that waits for its file was not accepted.
        let mut files = entity.files.iter();
        let holds = files.any(|file| file.until_uploaded == Some(Unconfirmed::Hold));
        if drain_works && columns.is_none() && entity.trust_list && !holds && !sample.is_empty() {
            self.check_pushed_are_listed(entity_index, pass.days, &sample, report)
                .await?;
        }
        Ok(true)
    }

    /// Finds out which rows of the entity the cloud has, as far as they are to be compared.
    async fn learn_known_rows(
        &self,
        entity_index: EntityIndex,
        days: Option<u32>,
        columns: Option<&[String]>,
    ) -> Result<KnownCloudRows> {
        if self.capabilities.changes || self.catalogue[entity_index].trust_list {
            return Ok(KnownCloudRows::Listed(
                CloudRows::learn(&self.cloud, entity_index, days, columns).await?,
            ));
        }
        Ok(KnownCloudRows::Remembered)
    }

    /// Reports rows that the cloud has just accepted but does not list: each sync would push them again.
    async fn check_pushed_are_listed(
        &self,
        entity_index: EntityIndex,
        days: Option<u32>,
        pushed: &[String],
        report: &mut SyncReport,
    ) -> Result<()> {
        let entity = &self.catalogue[entity_index];
        let client = self.session.client();
        let refused = quarantine::refused(client, &entity.name, pushed).await?;
        let held = CloudRows::learn(&self.cloud, entity_index, days, None).await?;
        let unlisted: HashSet<&str> = pushed
            .iter()
            .filter(|key| !refused.rows.contains_key(*key))
            .filter(|key| !held.contains(&self.cloud.cloud_key_of(entity_index, key)))
            .map(String::as_str)
            .collect();
        // Some of them may have been deleted on the site since.
        let unlisted = self.still_there(entity_index, days, unlisted).await?;
        let Some(first) = unlisted.first() else {
            return Ok(());
        };
        report.fail(
            &entity.name,
            format!(
                "the cloud does not list {} of {} rows that it has just accepted, as {first}: each sync \
                 pushes them again. It may write the key in another form (1.0, or rounded beyond 2^53), \
                 leave rows out of its list, or count its days by another column (retention.cloud_days_by). \
                 If its list cannot be corrected, set trust_list = false",
                unlisted.len(),
                pushed.len(),
            ),
        );
        Ok(())
    }

    /// Returns those of these keys that are rows of the entity now.
    async fn still_there(
        &self,
        entity_index: EntityIndex,
        days: Option<u32>,
        keys: HashSet<&str>,
    ) -> Result<Vec<String>> {
        let mut found = Vec::new();
        if keys.is_empty() {
            return Ok(found);
        }
        let (entity, table) = (&self.catalogue[entity_index], &self.tables[entity_index.0]);
        let client = self.session.client();
        let mut pages = RowPages::open_listed(client, entity, table, days, ColumnsToRead::Keys).await?;
        for leaf in pages::leaves(client, table).await? {
            let mut from = 0;
            while let Some((rows, next)) = pages.next(&leaf, from).await? {
                from = next;
                let here = rows.iter().filter(|row| row.met && keys.contains(&*row.key));
                found.extend(here.map(|row| row.key.to_string()));
            }
        }
        Ok(found)
    }

    /// Records which of the site's rows the cloud holds, whatever their age. When a row no longer meets the
    /// entity's condition, the drain deletes it from a server without `changes` only if the record has it.
    /// Without this call the record lacks rows that were sent before this site was replicated.
    async fn note_held(&self, entity_index: EntityIndex) -> Result<()> {
        let (entity, table) = (&self.catalogue[entity_index], &self.tables[entity_index.0]);
        let client = self.session.client();
        let held = CloudRows::learn(&self.cloud, entity_index, None, None).await?;
        if held.is_empty() {
            return Ok(());
        }
        let mut pages = RowPages::open(client, entity, table, None, ColumnsToRead::Keys).await?;
        for leaf in pages::leaves(client, table).await? {
            let mut from = 0;
            while let Some((rows, next)) = pages.next(&leaf, from).await? {
                from = next;
                let keys: Vec<&str> = rows
                    .iter()
                    .map(|row| &*row.key)
                    .filter(|key| held.contains(&self.cloud.cloud_key_of(entity_index, key)))
                    .collect();
                sent::note(client, None, self.attached[entity_index.0].id, &keys).await?;
            }
        }
        Ok(())
    }

    /// The columns whose content is compared; `None` if the server lists only keys. Excluded columns are
    /// among them: the site's row has no value there, so a cloud that still holds one differs.
    fn compared_columns(&self, entity: &Entity, table: &SourceTable) -> Option<Vec<String>> {
        self.capabilities.changes.then(|| {
            let sent = wire_schema(entity, table)
                .declaration
                .columns
                .into_iter()
                .map(|column| column.name);
            let left_out = table.columns.iter().map(|column| &column.name);
            let left_out = left_out.filter(|column| entity.leaves_out(column)).cloned();
            let mut columns: Vec<String> = sent
                .chain(left_out)
                .chain(entity.exclude.iter().cloned())
                .collect();
            columns.sort_unstable();
            columns.dedup();
            columns
        })
    }

    /// Returns the keys of those rows that are to be touched, because the cloud lacks them, holds them in
    /// another state, or should not hold them. Removes the rows from `known`.
    async fn keys_to_touch(
        &self,
        entity_index: EntityIndex,
        rows: Vec<FoundRow>,
        columns: Option<&[String]>,
        force: bool,
        known: &mut KnownCloudRows,
    ) -> Result<Vec<String>> {
        let met: Vec<bool> = rows.iter().map(|row| row.met).collect();
        let changes = rows.into_iter().map(|row| Change {
            position: Position(0),
            entity: entity_index,
            op: Op::Upsert,
            cause: Cause::Gone,
            captured_at: 0,
            key: row.key,
            row: row.row,
        });
        let mut page = Batch::new(changes.collect());
        if columns.is_some() {
            let client = self.session.client();
            media::attach_urls(client, &self.media_root, &self.catalogue, &mut page).await?;
        }
        let remembered = match known {
            KnownCloudRows::Listed(_) => HashSet::new(),
            KnownCloudRows::Remembered => {
                let keys: Vec<&str> = page.changes().iter().map(|change| &*change.key).collect();
                sent::known(self.session.client(), self.attached[entity_index.0].id, &keys).await?
            }
        };
        let mut keys = Vec::new();
        for (change, met) in page.changes().iter().zip(met) {
            let cloud_content = match known {
                KnownCloudRows::Listed(held) => {
                    held.remove(&self.cloud.cloud_key_of(entity_index, &change.key))
                }
                KnownCloudRows::Remembered => remembered.contains(&*change.key).then_some(None),
            };
            let same = match (met, columns, &change.row) {
                (false, ..) => cloud_content.is_none(),
                (true, Some(columns), Some(row)) => {
                    cloud_content.flatten() == Some(existence::digest(row, columns)?)
                }
                (true, ..) => cloud_content.is_some() && !force,
            };
            if !same {
                keys.push(change.key.to_string());
            }
        }
        Ok(keys)
    }

    /// Touches the `extra` rows: the cloud holds them, and the comparison did not meet them on the site. If
    /// such a row is on the site after all, it is only sent again.
    async fn touch_extra(
        &self,
        entity_index: EntityIndex,
        days: Option<u32>,
        extra: &CloudRows,
        touched: &mut TouchedRows<'_>,
    ) -> Result<()> {
        let key = &self.catalogue[entity_index].key;
        let mut keys = Vec::new();
        self.cloud
            .list(entity_index, days, |row| {
                if extra.contains(row.get()) {
                    keys.push(key_object(row.get(), key)?);
                }
                Ok(())
            })
            .await?;
        touched.add(keys).await
    }
}

/// The rows that the cloud has of an entity.
enum KnownCloudRows {
    /// The rows that it lists.
    Listed(CloudRows),
    /// The rows that this site has recorded as sent, because the list cannot be trusted.
    Remembered,
}

/// How one entity is compared.
#[derive(Debug, Clone, Copy)]
struct EntityPass {
    /// The days of its retention; `None` means all rows.
    days: Option<u32>,
    /// Whether a row that the cloud holds is pushed nevertheless, if the cloud lists only keys.
    force: bool,
}

/// Returns the key of a row as a JSON object.
fn key_object(row: &str, key: &[String]) -> Result<String> {
    let broken = || {
        Error::new(
            Kind::CloudProtocol,
            "read a row's key",
            "the row lacks a key column",
        )
    };
    let values = pick(row, key).map_err(|_| broken())?;
    let mut pairs = Vec::with_capacity(key.len());
    for (name, value) in key.iter().zip(values) {
        let name = serde_json::to_string(name).map_err(|_| broken())?;
        pairs.push(format!("{name}:{}", value.ok_or_else(broken)?));
    }
    Ok(format!("{{{}}}", pairs.join(",")))
}

/// The text of an error in the report: only the cause if the cloud failed, else the whole error.
fn report_text(error: &Error) -> String {
    match error.kind() {
        Kind::CloudUnreachable | Kind::CloudAuth => error.cause().to_owned(),
        _ => error.to_string(),
    }
}
