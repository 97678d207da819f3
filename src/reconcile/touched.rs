//! The rows of one entity that a pass has touched. The pass writes their touches to the outbox, and waits
//! until the drain has settled them.

use std::time::Duration;

use super::Reconcile;
use super::report::SyncReport;
use crate::catalogue::EntityIndex;
use crate::error::{Error, Kind, Result};
use crate::quarantine::{self, QuarantinedRows};
use crate::source::{outbox, parked_touches, touch};

/// How often the pass waits for a provisional refusal to be retried.
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

    /// Touches rows by their keys, JSON objects, whether or not the rows exist.
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

    /// Waits until the drain has settled the touched rows. Returns those that the cloud has refused.
    ///
    /// # Errors
    /// The source's; the entity is parked; [`Kind::CloudUnreachable`] if the drain failed for longer than the
    /// pass's patience.
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
        self.check_not_parked().await?;
        let mut refused = quarantine::refused(reconcile.session.client(), &entity.name, &keys).await?;
        for _ in 0..ROUNDS {
            if !refused.provisional {
                break;
            }
            // The drain touched them again before it settled the transaction.
            reconcile.let_drain().await?;
            refused = quarantine::refused(reconcile.session.client(), &entity.name, &keys).await?;
        }
        Ok(refused)
    }

    /// Returns an error if the entity is parked: then the touched rows count as settled, and wait.
    async fn check_not_parked(&self) -> Result<()> {
        let reconcile = self.reconcile;
        let entity = &reconcile.catalogue[self.entity_index];
        let number = reconcile.attached[self.entity_index.0].id;
        match parked_touches::reason(reconcile.session.client(), &entity.name, number).await? {
            None => Ok(()),
            Some(reason) => Err(Error::new(
                Kind::Source,
                format!("push {}", entity.name),
                format!("its changes wait in the site's database: {reason}"),
            )),
        }
    }

    /// Settles as [`TouchedRows::settle`] does, and adds refused rows to the report. Returns whether the
    /// drain makes progress.
    pub(super) async fn settle_reporting(&mut self, report: &mut SyncReport) -> Result<bool> {
        let name = &self.reconcile.catalogue[self.entity_index].name;
        match self.settle().await {
            Ok(refused) => {
                report_refused(refused, name, report);
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

/// Adds refused rows of an entity to the report.
fn report_refused(refused: QuarantinedRows, entity: &str, report: &mut SyncReport) {
    let mut rows: Vec<_> = refused.rows.into_iter().collect();
    rows.sort_unstable();
    for (key, (code, error)) in rows {
        // The cloud's error message may hold values of the row, so it stays in the quarantine.
        let reason = match code {
            0 => format!("row {key} cannot be read: {error}"),
            1 => format!("row {key} is set aside by hand: `cloud-sync quarantine retry` sends it"),
            code => format!("row {key} was refused by {code}: see `cloud-sync quarantine list`"),
        };
        report.fail(entity, reason);
    }
}

impl Reconcile {
    /// Removes the rows that the cloud has refused since the pass began, and adds them to the report: the
    /// drain has already tried them.
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
        let remaining = keys.into_iter().filter(|key| !refused.rows.contains_key(key));
        let remaining = remaining.collect();
        report_refused(refused, name, report);
        Ok(remaining)
    }

    /// Waits until the changes that are in the outbox now are delivered, or the drain fails. Otherwise a row
    /// that is being delivered would count as one that the cloud lacks, and would be sent twice.
    pub(super) async fn let_drain(&self) -> Result<()> {
        let failed = |error| Error::postgres("see which changes wait in the outbox", error);
        let client = self.session.client();
        let row = client
            .query_one("select pg_current_xact_id()::text::bigint", &[])
            .await
            .map_err(failed)?;
        let now = row.get::<_, i64>(0) as u64;
        // If the drain finds no more touches, no checkpoint will see this transaction. So an empty outbox
        // ends the wait, too.
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
            // If the drain fails, the comparison reports it for each entity.
            _ = self.state.settled(now, self.patience) => Ok(()),
        }
    }
}
