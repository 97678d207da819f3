//! Sets rows aside that the cloud does not take and does not refuse either: each of their requests gets 5xx,
//! or a firewall's 403, while the cloud takes others.
//!
//! Such a row goes into quarantine, and is touched again by itself, less and less often; so nothing is lost
//! where the server was at fault. As long as the cloud is not seen to take anything else, one batch at most
//! is set aside.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::courier::Courier;
use crate::batch::{Batch, Fate};
use crate::deliver::Failure;
use crate::error::Result;
use crate::quarantine;
use crate::source::touch;

/// How often a change fails before it is set aside, where others were accepted since it first failed.
const BESIDE_OTHERS: u32 = 3;

/// The same where nothing else was accepted or refused since.
const ALONE: u32 = 6;

/// Rows that are touched again at once: should they fail again, each costs a request of its own, and others
/// wait for it.
const CHUNK: i64 = 20;

impl Courier {
    /// Lets rows that are in quarantine for such a failure go alone and behind the others.
    pub(super) async fn expect_failing(&self, batch: &mut Batch) -> Result<()> {
        if self.failing == 0 {
            return Ok(());
        }
        let mut rows: BTreeMap<(usize, &str), usize> = BTreeMap::new();
        for nth in batch.pending() {
            let change = &batch.changes()[nth];
            rows.insert((change.entity, &change.key), nth);
        }
        let keys = rows
            .keys()
            .map(|&(entity, key)| (self.catalogue.entities()[entity].name.as_str(), key));
        let keys: Vec<_> = keys.collect();
        let failing = quarantine::failing(self.session.client(), &keys).await?;
        let places: Vec<usize> = rows.into_values().collect();
        for nth in failing {
            batch.expect_failing(places[nth]);
        }
        Ok(())
    }

    /// Sets aside what fails again and again, after a delivery that failed. Returns the failure, or a better
    /// word for it.
    pub(super) async fn set_aside(&mut self, batch: &mut Batch, failure: Failure) -> Failure {
        if !failure.may_be_a_rows_fault() {
            return failure;
        }
        let mut failure = failure;
        if failure.status() == Some(403) {
            // Whether it is the key, the cloud tells.
            if let Err(other) = self.cloud.hello(&self.origin).await {
                return other;
            }
            failure = failure.not_the_key();
        }
        let unproven = self.set_aside_alone && batch.count(&Fate::Accepted) == 0;
        for (nth, failing, others) in batch.failing() {
            let enough = match (failing.known, others) {
                (true, _) => failing.status != 0,
                (false, true) => failing.times >= BESIDE_OTHERS,
                // 503 is a service's that is away as a whole.
                (false, false) => failing.times >= ALONE && !unproven && failing.status != 503,
            };
            if enough && failing.alone {
                let error = failing.error.to_string();
                let code = failing.status;
                batch.set_fate(nth, Fate::Refused { code, error });
            }
        }
        failure
    }

    /// Notes what a batch that is answered says about the cloud.
    pub(super) fn note_set_aside(&mut self, batch: &Batch) {
        let aside = batch
            .refused()
            .filter(|(_, code, _)| quarantine::may_pass(*code))
            .count();
        if batch.count(&Fate::Accepted) > 0 {
            self.set_aside_alone = false;
        } else if aside > 0 {
            self.set_aside_alone = true;
        }
        if aside > 0 {
            self.greet_at = self.greet_at.min(Instant::now() + quarantine::FIRST_WAIT);
            self.failing += aside as i64;
        }
    }

    /// Touches the rows again whose time has come, and sets the time of the next greeting by the next one's.
    pub(super) async fn touch_failing(&mut self) -> Result<()> {
        let client = self.session.client();
        let due = quarantine::due(client, CHUNK).await?;
        touch::rows(client, &self.catalogue, &due.rows).await?;
        quarantine::put_off(client, &due.rows).await?;
        self.failing = due.all;
        // More may be due.
        let next = if due.rows.len() as i64 == CHUNK {
            Some(1.0)
        } else {
            due.next
        };
        if let Some(seconds) = next {
            let next = Instant::now() + Duration::from_secs_f64(seconds.clamp(0.1, 3600.0));
            self.greet_at = self.greet_at.min(next);
        }
        Ok(())
    }
}
