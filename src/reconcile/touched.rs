//! The rows of one entity that a pass has touched: written to the outbox, and waited for until the drain has
//! settled them.

use crate::catalogue::EntityIndex;
use std::time::Duration;

use super::Reconcile;
use super::report::SyncReport;
use crate::error::{Error, Kind, Result};
use crate::quarantine::{self, QuarantinedRows};
use crate::source::{outbox, parking, touch};

/// How often a provisional refusal is waited for.
const ROUNDS: usize = 3;

/// Rows that were touched and are not settled.
pub(super) struct TouchedRows<'a> {
    reconcile: &'a Reconcile,
    entity_index: EntityIndex,
    keys: Vec<String>,
    /// The last transaction that touched some of them.
    transaction: u64,
}

impl<'a> TouchedRows<'a> {
    pub(super) fn new(reconcile: &'a Reconcile, entity_index: EntityIndex) -> Self {
        Self {
            reconcile,
            entity_index,
            keys: Vec::new(),
            transaction: 0,
        }
    }

    /// Touches rows by their keys, JSON objects, whether or not they are there.
    pub(super) async fn add(&mut self, keys: Vec<String>) -> Result<()> {
        let reconcile = self.reconcile;
        let transaction = touch::keys(
            reconcile.session.client(),
            &reconcile.catalogue[self.entity_index],
            reconcile.attached[self.entity_index.0].id,
            &keys,
        )
        .await?;
        self.transaction = self.transaction.max(transaction);
        self.keys.extend(keys);
        Ok(())
    }

    /// How many rows were touched since the last [`TouchedRows::settle`].
    pub(super) fn waiting(&self) -> usize {
        self.keys.len()
    }

    /// Waits until the drain has settled what was touched. Returns what of it the cloud has refused.
    ///
    /// # Errors
    /// The source's, and that the entity is parked; [`Kind::CloudUnreachable`] where the drain was not well for the pass's
    /// patience.
    pub(super) async fn settle(&mut self) -> Result<QuarantinedRows> {
        let keys = std::mem::take(&mut self.keys);
        if keys.is_empty() {
            return Ok(QuarantinedRows::default());
        }
        let reconcile = self.reconcile;
        let entity = &reconcile.catalogue[self.entity_index];
        let waited = reconcile
            .state
            .settled(self.transaction, reconcile.patience)
            .await;
        waited.map_err(|reason| {
            let cause = format!("{reason} ({} rows wait in the outbox)", keys.len());
            Error::new(Kind::CloudUnreachable, format!("push {}", entity.name), cause)
        })?;
        self.must_flow().await?;
        let mut refused = quarantine::refused(reconcile.session.client(), &entity.name, &keys).await?;
        for _ in 0..ROUNDS {
            if !refused.provisional {
                break;
            }
            // The drain has touched them again before it settled the transaction.
            reconcile.let_drain().await?;
            refused = quarantine::refused(reconcile.session.client(), &entity.name, &keys).await?;
        }
        Ok(refused)
    }

    /// An error where the entity is parked: what was touched is settled then, and waits.
    async fn must_flow(&self) -> Result<()> {
        let reconcile = self.reconcile;
        let entity = &reconcile.catalogue[self.entity_index];
        let number = reconcile.attached[self.entity_index.0].id;
        match parking::reason(reconcile.session.client(), &entity.name, number).await? {
            None => Ok(()),
            Some(why) => Err(Error::new(
                Kind::Source,
                format!("push {}", entity.name),
                format!("its changes wait in the site's database: {why}"),
            )),
        }
    }

    /// As [`TouchedRows::settle`], with what was refused told to the report. Returns whether the drain gets on.
    pub(super) async fn settle_reporting(&mut self, report: &mut SyncReport) -> Result<bool> {
        let name = &self.reconcile.catalogue[self.entity_index].name;
        match self.settle().await {
            Ok(refused) => {
                tell(refused, name, report);
                Ok(true)
            }
            Err(error) if error.kind() == Kind::CloudUnreachable => {
                report.fail(name, error.cause());
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

/// Tells refused rows of an entity to the report.
fn tell(refused: QuarantinedRows, entity: &str, report: &mut SyncReport) {
    let mut rows: Vec<_> = refused.rows.into_iter().collect();
    rows.sort_unstable();
    for (key, (code, error)) in rows {
        // The cloud's own words may hold values of the row: they stay in the quarantine.
        let why = match code {
            0 => format!("row {key} cannot be read: {error}"),
            1 => format!("row {key} is set aside by hand: `cloud-sync quarantine retry` sends it"),
            code => format!("row {key} was refused by {code}: `cloud-sync quarantine list` tells why"),
        };
        report.fail(entity, why);
    }
}

impl Reconcile {
    /// Leaves rows out that were refused since the pass began, by the drain beside it, and tells them to the
    /// report: they have had their try.
    pub(super) async fn without_refused(
        &self,
        entity_index: EntityIndex,
        keys: Vec<String>,
        report: &mut SyncReport,
    ) -> Result<Vec<String>> {
        if keys.is_empty() {
            return Ok(keys);
        }
        let name = &self.catalogue[entity_index].name;
        let client = self.session.client();
        let refused = quarantine::refused_since(client, name, &keys, self.began).await?;
        let left = keys.into_iter().filter(|key| !refused.rows.contains_key(key));
        let left = left.collect();
        tell(refused, name, report);
        Ok(left)
    }

    /// Waits until what waits in the outbox now is delivered, or the drain is not well: a row on its way is
    /// no row that the cloud lacks, and would be sent twice.
    pub(super) async fn let_drain(&self) -> Result<()> {
        let failed = |error| Error::postgres("see what is on its way", error);
        let client = self.session.client();
        let row = client
            .query_one("select pg_current_xact_id()::text::bigint", &[])
            .await
            .map_err(failed)?;
        let now = row.get::<_, i64>(0) as u64;
        // A drain that found nothing more has no checkpoint that would see this transaction: then nothing
        // waits.
        let idle = async {
            let mut pause = Duration::from_millis(50);
            loop {
                if let Some(checkpoint) = self.state.checkpoint()
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
            _ = self.state.settled(now, self.patience) => Ok(()),
        }
    }
}
