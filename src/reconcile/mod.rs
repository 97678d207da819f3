//! Sync and backfill: what the cloud lacks is found by comparing, and brought there.
//!
//! Repair goes the same road as any change: a row that the cloud lacks, or has in another state, is captured anew into the
//! outbox, and the drain delivers it. Only a backfill to a server that orders by position goes there directly, at
//! position 0, which fills gaps and loses against any change.
//!
//! An entity that fails is reported and the next one goes on.

pub mod backfill;
pub mod report;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;

use crate::abort;
use crate::batch::Batch;
use crate::catalogue::{Catalogue, Deletes, Entity};
use crate::deliver::{Capabilities, Cloud, Origin, pick};
use crate::drain::{Pulse, wire_schema};
use crate::error::{Error, Kind, Result};
use crate::existence::{self, Held};
use crate::media;
use crate::source::backfill::{self as read, Read};
use crate::source::connect::Session;
use crate::source::describe::{self, Table};
use crate::source::guard;
use crate::source::identity;
use crate::source::install::{self, Attached};
use crate::source::outbox;
use crate::source::recapture::{self, Recaptured};
use report::SyncReport;

/// Rows that are compared at once.
const PAGE: usize = 2_000;

/// Tells how far a long pass has come.
pub trait Observer: Send + Sync {
    /// An entity begins, with as many rows to look at.
    fn begin(&self, entity: &str, rows: u64);
    /// So many rows of it were looked at since the last call, so many of them pushed.
    fn advance(&self, looked: u64, pushed: u64);
    /// The entity has ended.
    fn end(&self, entity: &str);
}

/// Nobody watches.
#[derive(Debug, Clone, Copy)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn begin(&self, _entity: &str, _rows: u64) {}
    fn advance(&self, _looked: u64, _pushed: u64) {}
    fn end(&self, _entity: &str) {}
}

/// A comparing pass over a site and its cloud. The drain that delivers what it captures anew must run beside it.
pub struct Reconcile {
    session: Session,
    catalogue: Arc<Catalogue>,
    tables: Vec<Table>,
    attached: Vec<Attached>,
    cloud: Cloud,
    capabilities: Capabilities,
    origin: Origin,
    pulse: Arc<Pulse>,
    media_root: PathBuf,
    patience: Duration,
}

impl Reconcile {
    /// Connects with the source, and asks the cloud what it can do. `patience` is how long the drain may be unwell before
    /// an entity is given up.
    ///
    /// # Errors
    /// The source's or the cloud's.
    pub async fn open(
        database_url: &SecretString,
        source_id: Option<&str>,
        catalogue: Arc<Catalogue>,
        cloud: Cloud,
        pulse: Arc<Pulse>,
        media_root: PathBuf,
        patience: Duration,
    ) -> Result<Self> {
        let session = Session::open(database_url, "sync").await?;
        let identity = identity::read(session.client(), source_id).await?;
        let tables = describe::tables_as_they_stand(session.client(), &catalogue).await?;
        let attached = install::attached(session.client(), &catalogue, &tables).await?;
        let origin = Origin {
            source_id: identity.source_id,
            epoch: identity.epoch,
        };
        let capabilities = cloud.hello(&origin).await?.capabilities;
        Ok(Self {
            session,
            catalogue,
            tables,
            attached,
            cloud,
            capabilities,
            origin,
            pulse,
            media_root,
            patience,
        })
    }

    /// Compares the entities at `places` with the cloud, in push order, and pushes what it lacks.
    ///
    /// Where the cloud tells a row's content, a row that differs is pushed too, and a row that the site has not is deleted
    /// where deletes propagate. Where it tells only keys, a row with a known key counts as held; `force` pushes it all the
    /// same.
    pub async fn sync(&self, places: &[usize], force: bool, observer: &dyn Observer) -> SyncReport {
        let mut report = SyncReport::new(&self.catalogue);
        self.pulse.kick();
        if let Err(error) = self.let_drain().await {
            tracing::debug!(%error, "the sync does not wait for what is on its way");
        }
        for &place in places {
            let entity = &self.catalogue.entities()[place];
            if let Err(error) = self.sync_closing(place, force, observer, &mut report).await {
                report.fail(&entity.name, short(&error));
            }
            observer.end(&entity.name);
        }
        report
    }

    /// Waits until what waits in the outbox now is delivered, or the drain is not well: a row on its way is no row that the
    /// cloud lacks, and would be sent twice.
    async fn let_drain(&self) -> Result<()> {
        let failed = |error| Error::postgres("see what is on its way", error);
        let client = self.session.client();
        let row = client
            .query_one("select pg_current_xact_id()::text::bigint", &[])
            .await
            .map_err(failed)?;
        let now = row.get::<_, i64>(0) as u64;
        // A drain that found nothing more has no checkpoint that would see this transaction: then nothing waits.
        let idle = async {
            let mut pause = Duration::from_millis(50);
            loop {
                if let Some(checkpoint) = self.pulse.checkpoint()
                    && outbox::lag(&self.session, &checkpoint).await?.changes == 0
                {
                    return Ok(());
                }
                tokio::time::sleep(pause).await;
                pause = (2 * pause).min(Duration::from_secs(2));
            }
        };
        tokio::select! {
            idle = idle => idle,
            // Where it is not well, the comparison finds that out, entity by entity.
            _ = self.pulse.settled(now, self.patience) => Ok(()),
        }
    }

    /// Syncs one entity. Where its content was compared, or pushed without asking, that closes its gap: what the cloud lacked
    /// lies in the outbox now.
    async fn sync_closing(
        &self,
        place: usize,
        force: bool,
        observer: &dyn Observer,
        report: &mut SyncReport,
    ) -> Result<()> {
        let (entity, table) = (&self.catalogue.entities()[place], &self.tables[place]);
        let client = self.session.client();
        self.must_fit(place).await?;
        let gap = guard::closable(client, entity, table).await?;
        self.sync_one(place, force, observer, report).await?;
        match gap {
            Some(gap) if force || self.capabilities.changes => guard::close(client, entity, &gap).await,
            _ => Ok(()),
        }
    }

    /// An error where the rows of the entity cannot be read by their keys.
    async fn must_fit(&self, place: usize) -> Result<()> {
        let entity = &self.catalogue.entities()[place];
        if self.tables[place].fits(entity) {
            return Ok(());
        }
        let standing = describe::stands(self.session.client(), entity).await?;
        Err(standing.unfit.unwrap_or_else(|| {
            Error::config(format!("read {}", entity.name), "its table has just changed").remedy("try again")
        }))
    }

    async fn sync_one(
        &self,
        place: usize,
        force: bool,
        observer: &dyn Observer,
        report: &mut SyncReport,
    ) -> Result<()> {
        let entity = &self.catalogue.entities()[place];
        let table = &self.tables[place];
        let days = entity.window.as_ref().map(|window| window.days);
        let client = self.session.client();
        observer.begin(&entity.name, read::count(client, entity, table, days).await?);
        let columns = self.compared(entity, table);
        if self.capabilities.schema {
            // A table that the cloud was never told of has no list.
            self.cloud.put_schema(&wire_schema(entity, table)).await?;
        }
        // A day more than the site's window: a row at its edge must not count as missing by a moment.
        let held = Held::learn(&self.cloud, place, days.map(|days| days + 1), columns.as_deref()).await?;
        let mut pushed = Pushed::default();
        let mut ours = Held::keys(&entity.key);
        let mut after: Option<String> = None;
        loop {
            let what = if columns.is_some() { Read::Rows } else { Read::Keys };
            let page = read::rows(client, place, entity, table, days, after.as_deref(), PAGE, what).await?;
            let looked = page.len();
            let Some(last) = page.last() else { break };
            after = Some(last.key.to_string());
            let mut page = Batch::new(page);
            if columns.is_some() {
                media::attach_urls(client, &self.media_root, &self.catalogue, &mut page).await?;
            }
            let mut keys = Vec::new();
            for change in page.changes() {
                let same = match (&columns, &change.row) {
                    (Some(columns), Some(row)) => {
                        held.content(&change.key) == Some(existence::digest(row, columns)?)
                    }
                    _ => held.contains(&change.key) && !force,
                };
                if columns.is_some() {
                    ours.insert(&change.key)?;
                }
                if !same {
                    keys.push(change.key.to_string());
                }
            }
            for chunk in keys.chunks(recapture::CHUNK) {
                pushed.add(recapture::rows(client, entity, table, self.attached[place].id, chunk).await?);
                abort::point("amid a sync");
            }
            observer.advance(looked as u64, keys.len() as u64);
            if looked < PAGE {
                break;
            }
        }
        if columns.is_some() && entity.deletes() == Deletes::Propagate && entity.window.is_none() {
            self.delete_extra(place, &ours, held.len(), &mut pushed).await?;
        }
        abort::point("after a sync's capture");
        self.settle(place, pushed, report).await
    }

    /// The columns whose content is compared; none where the server tells keys only.
    fn compared(&self, entity: &Entity, table: &Table) -> Option<Vec<String>> {
        self.capabilities.changes.then(|| {
            let mut columns: Vec<String> = wire_schema(entity, table)
                .columns
                .into_iter()
                .map(|(name, _)| name)
                .collect();
            columns.sort_unstable();
            columns
        })
    }

    /// Deletes in the cloud what the site has not. Only where the list is this site's alone, as the receiver's is.
    async fn delete_extra(&self, place: usize, ours: &Held, held: usize, pushed: &mut Pushed) -> Result<()> {
        let entity = &self.catalogue.entities()[place];
        if held == 0 {
            return Ok(());
        }
        let mut extra = Vec::new();
        self.cloud
            .list(place, None, |row| {
                if !ours.contains(row.get()) {
                    extra.push(key_object(row.get(), &entity.key)?);
                }
                Ok(())
            })
            .await?;
        for chunk in extra.chunks(recapture::CHUNK) {
            pushed.add(
                recapture::deletes(
                    self.session.client(),
                    entity,
                    &self.tables[place],
                    self.attached[place].id,
                    chunk,
                )
                .await?,
            );
        }
        Ok(())
    }

    /// Waits until the drain has delivered what was captured anew, and reports each row as synced or refused.
    async fn settle(&self, place: usize, pushed: Pushed, report: &mut SyncReport) -> Result<()> {
        let entity = &self.catalogue.entities()[place];
        if pushed.keys.is_empty() {
            return Ok(());
        }
        if let Err(reason) = self.pulse.settled(pushed.transaction, self.patience).await {
            report.fail(
                &entity.name,
                format!("{reason} ({} rows wait in the outbox)", pushed.keys.len()),
            );
            return Ok(());
        }
        let refused = self
            .session
            .client()
            .query(
                "select key, code, error from cloud_sync.quarantine where entity = $1 and key = any($2)",
                &[&entity.name, &pushed.keys],
            )
            .await
            .map_err(|error| Error::postgres("read the quarantine", error))?;
        let refused: std::collections::HashMap<&str, (i32, &str)> = refused
            .iter()
            .map(|row| (row.get(0), (row.get(1), row.get(2))))
            .collect();
        for key in &pushed.keys {
            match refused.get(key.as_str()) {
                Some((code, error)) => {
                    report.fail(&entity.name, format!("row {key} was refused: {code} {error}"));
                }
                None => report.add(place, key)?,
            }
        }
        Ok(())
    }
}

/// What was captured anew of one entity.
#[derive(Default)]
struct Pushed {
    keys: Vec<String>,
    transaction: u64,
}

impl Pushed {
    fn add(&mut self, recaptured: Recaptured) {
        self.keys.extend(recaptured.rows.into_iter().map(|(key, _)| key));
        self.transaction = self.transaction.max(recaptured.transaction);
    }
}

/// The key of a row, as a JSON object.
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
        pairs.push(format!("{name}:{}", value.ok_or_else(broken)?.get()));
    }
    Ok(format!("{{{}}}", pairs.join(",")))
}

/// An error as the report tells it: the cause, and for the cloud's silence the words that people know.
fn short(error: &Error) -> String {
    match error.kind() {
        Kind::CloudUnreachable | Kind::CloudAuth => error.cause().to_owned(),
        _ => error.to_string(),
    }
}
