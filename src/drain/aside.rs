//! Sets rows aside that the cloud does not take and does not refuse either: each of their requests gets 5xx,
//! a firewall's 403, or a 2xx that says it has failed, while the cloud takes others. Where the server's
//! application says so itself, in words, once is enough: the row is tried again soon in any case.
//!
//! Such a row goes into quarantine, and is touched again by itself, less and less often; so nothing is lost
//! where the server was at fault. As long as the cloud is not seen to take anything else, one batch at most
//! is set aside.

use crate::catalogue::EntityIndex;
use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::sender::Sender;
use crate::batch::{Batch, ChangeIndex, Fate};
use crate::deliver::Failure;
use crate::error::Result;
use crate::existence::CloudRows;
use crate::quarantine;
use crate::source::touch;

/// How often a change fails before it is set aside, where others were accepted since it first failed.
const BESIDE_OTHERS: u32 = 3;

/// The same where nothing else was accepted or refused since.
const ALONE: u32 = 6;

/// How long the server's application refuses whatever is sent, before rows are set aside for that.
const TOLD_ALONE: Duration = Duration::from_secs(2);

/// Rows that are set aside for what the application says while nothing else is accepted, at most: it may be
/// at fault as a whole, and then all of them come again.
const MOST_UNPROVEN: i64 = 10_000;

/// Rows that are touched again at once: should they fail again, each costs a request of its own, and others
/// wait for it.
const CHUNK: i64 = 20;

/// The same after one of them was accepted unchanged.
const CHUNK_MENDED: i64 = 500;

impl Sender {
    /// Lets rows that are in quarantine for such a failure go alone and behind the others.
    pub(super) async fn expect_failing(&self, batch: &mut Batch) -> Result<()> {
        if self.failing == 0 {
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
        let expected = quarantine::expected(self.session.client(), &keys).await?;
        let change_indexes: Vec<ChangeIndex> = rows.into_values().collect();
        for row in expected.failing {
            batch.expect_failing(change_indexes[row]);
        }
        for row in expected.by_hand {
            batch.set_fate(change_indexes[row], quarantine::by_hand());
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
        let all = batch.failing();
        if !failure.is_told() || all.iter().any(|(_, _, others)| *others) {
            self.told_since = None;
        }
        let since = failure
            .is_told()
            .then(|| *self.told_since.get_or_insert_with(Instant::now));
        let lasts = since.is_some_and(|since| since.elapsed() >= TOLD_ALONE);
        let unproven = self.set_aside_alone && batch.count(&Fate::Accepted) == 0;
        for (change_index, failing, others) in all {
            let enough = match (failing.known, others) {
                (true, _) => failing.status != 0,
                (false, true) => failing.told || failing.times >= BESIDE_OTHERS,
                // Its status call is answered all the while: as a whole it is there.
                (false, false) if failing.told => lasts && self.failing < MOST_UNPROVEN,
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
        let session = self.session.clone();
        let client = session.client();
        let chunk = if std::mem::take(&mut self.mended) {
            CHUNK_MENDED
        } else {
            CHUNK
        };
        let due = quarantine::due(client, chunk).await?;
        self.bring_parents(&due.rows).await?;
        touch::rows(client, &self.catalogue, &due.rows).await?;
        quarantine::put_off(client, &due.rows).await?;
        (self.failing, self.by_hand) = (due.all, due.by_hand);
        // More may be due.
        let next = if due.rows.len() as i64 == chunk {
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

    /// Touches the parents again that the cloud does not list, of rows that were refused for the first time.
    /// Only at a server without `changes`: it may have a foreign key where the site has one.
    pub(super) async fn bring_parents(&mut self, rows: &[(String, String)]) -> Result<()> {
        let baseline = self
            .hello
            .as_ref()
            .is_some_and(|hello| !hello.capabilities.changes);
        let (true, Some(shapes)) = (baseline && !rows.is_empty(), self.shapes.clone()) else {
            return Ok(());
        };
        let session = self.session.clone();
        let images = quarantine::first_images(session.client(), rows).await?;
        if images.is_empty() {
            return Ok(());
        }
        let orphans = self.orphans(&shapes).await?;
        for (parent, keys) in orphans.parents(&self.catalogue, &images) {
            let entity = &self.catalogue[parent];
            let held = match CloudRows::learn(&self.cloud, parent, None, None).await {
                Ok(held) => held,
                Err(failure) => {
                    tracing::debug!(entity = entity.name, %failure, "it is not known which parents the cloud lacks");
                    continue;
                }
            };
            let waiting = quarantine::refused(session.client(), &entity.name, &keys).await?;
            let lacking: Vec<&String> = keys
                .iter()
                .filter(|key| !waiting.rows.contains_key(*key))
                .filter(|key| !held.contains(&self.cloud.cloud_key_of(parent, key)))
                .collect();
            if !lacking.is_empty() {
                tracing::info!(
                    entity = entity.name,
                    rows = lacking.len(),
                    "the cloud lacks parents of refused rows: they are sent again"
                );
                touch::keys(session.client(), entity, shapes.numbers[parent.0], &lacking).await?;
            }
        }
        Ok(())
    }
}
