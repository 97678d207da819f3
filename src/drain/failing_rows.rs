//! Puts rows into quarantine that the cloud does not take and does not refuse either: each of their requests
//! gets 5xx, a firewall's 403, or a 2xx that says it has failed, while the cloud takes others. If the
//! server's application says so itself, in words, once is enough: the row is tried again soon in any case.
//!
//! [`super::retries`] touches such a row again, less and less often; so nothing is lost if the server was at
//! fault. As long as the cloud is not seen to take anything else, one batch at most is set aside.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::send::Sender;
use crate::batch::{Batch, ChangeIndex, Fate};
use crate::catalogue::EntityIndex;
use crate::deliver::Failure;
use crate::error::Result;
use crate::quarantine;

/// How often a change fails before it is set aside, if others were accepted since it first failed.
const AMONG_OTHERS: u32 = 3;

/// The same if nothing else was accepted or refused since.
const ALONE: u32 = 6;

/// How long the server's application refuses whatever is sent, before rows are set aside for that.
const TOLD_ALONE: Duration = Duration::from_secs(2);

/// Rows that are set aside for what the application says while nothing else is accepted, at most: it may be
/// at fault as a whole, and then all of them come again.
const MOST_UNPROVEN: i64 = 10_000;

impl Sender {
    /// Lets rows that are in quarantine for such a failure go alone and behind the others.
    pub(super) async fn expect_failing(&self, batch: &mut Batch) -> Result<()> {
        if self.retries.failing().await? == 0 {
            return Ok(());
        }
        let mut rows: BTreeMap<(EntityIndex, &str), ChangeIndex> = BTreeMap::new();
        for change_index in batch.pending() {
            let change = &batch[change_index];
            rows.insert((change.entity, &change.key), change_index);
        }
        let keys = rows
            .keys()
            .map(|&(entity, key)| (self.catalogue[entity].name.as_str(), key));
        let keys: Vec<_> = keys.collect();
        let expected = quarantine::otherwise_quarantined(self.session.client(), &keys).await?;
        let change_indexes: Vec<ChangeIndex> = rows.into_values().collect();
        for row in expected.failing {
            batch.expect_failing(change_indexes[row]);
        }
        for row in expected.by_hand {
            batch.set_fate(change_indexes[row], quarantine::set_aside_fate());
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
            if let Err(other) = self.cloud.handshake(&self.origin).await {
                return other;
            }
            failure = failure.not_the_key();
        }
        let all = batch.failing();
        if !failure.is_from_application() || all.iter().any(|(_, _, others)| *others) {
            self.told_since = None;
        }
        let since = failure
            .is_from_application()
            .then(|| *self.told_since.get_or_insert_with(Instant::now));
        let lasts = since.is_some_and(|since| since.elapsed() >= TOLD_ALONE);
        let unproven = self.set_aside_alone && batch.count(&Fate::Accepted) == 0;
        for (change_index, failing, others) in all {
            let enough = match (failing.quarantined, others) {
                (true, _) => failing.status != 0,
                (false, true) => failing.refused_by_app || failing.times >= AMONG_OTHERS,
                // Its status call is answered all the while: as a whole it is there.
                (false, false) if failing.refused_by_app => {
                    lasts && self.retries.known_failing() < MOST_UNPROVEN
                }
                // 503 is a service's that is away as a whole.
                (false, false) => failing.times >= ALONE && !unproven && failing.status != 503,
            };
            if enough && failing.alone {
                let error = failing.error.to_string();
                let code = failing.status;
                batch.set_fate(change_index, Fate::Refused { code, error });
            }
        }
        failure
    }

    /// Notes what a batch that is answered says about the cloud.
    pub(super) fn note_set_aside(&mut self, batch: &Batch) {
        let aside = batch
            .refused()
            .filter(|(_, code, _)| quarantine::may_be_accepted_later(*code))
            .count();
        if batch.count(&Fate::Accepted) > 0 {
            self.set_aside_alone = false;
        } else if aside > 0 {
            self.set_aside_alone = true;
        }
        if aside > 0 {
            self.retries.note_failing(aside as i64);
        }
    }
}
