//! The calm after a workload: all is left to catch up, and then both sides must be equal, without a command
//! of a person.

use std::time::{Duration, Instant};

use cloud_sync::control::status::ReplicatorState;
use cloud_sync::source::connect::Session;
use cloud_sync::source::drift;
use tokio_postgres::Client;

use crate::support::oracle;
use crate::support::site::connect;
use crate::support::tcp_proxy::Trouble;
use crate::support::workload::{self, Workload, audited};
use crate::{World, tail};

/// How long the replicator may take until nothing waits, once nothing is in its way. Twice it may have to
/// wait for its next look at the capture.
const CATCH_UP: Duration = Duration::from_secs(240);

impl World<'_> {
    /// Ends the workload, leaves everything alone until nothing waits, and returns what is broken then.
    pub(super) async fn calm(&mut self, workload: Workload) -> Vec<String> {
        self.proxy.set(Trouble::None);
        self.fault_proxy.clear_faults();
        self.receiver.ensure();
        let counts = workload.end().await;
        self.counts.add(&counts);
        let begun = Instant::now();
        self.command = None;
        if let Err(found) = self.terminate().await {
            return vec![found];
        }
        let which = self.running_after_all();
        self.site.client = connect(&self.site.database_url).await;
        while let Some(why) = self.unsettled(which).await {
            self.receiver.ensure();
            if let Some(run) = &mut self.running[which]
                && let Some(ended) = run.process.has_ended()
                && !self.stop.is_cancelled()
            {
                let log = tail(&self.daemons[which].log());
                return vec![format!("the replicator ended without a fault ({ended}):\n{log}")];
            }
            if self.stop.is_cancelled() {
                return Vec::new();
            }
            if begun.elapsed() > CATCH_UP {
                let log = tail(&self.daemons[which].log());
                return vec![format!("it did not catch up within {CATCH_UP:?}: {why}\n{log}")];
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let caught_up = begun.elapsed();
        let found = self.judge().await;
        println!(
            "calm: {} transactions; caught up in {:.1} s; {}",
            counts.committed(),
            caught_up.as_secs_f64(),
            if found.is_empty() {
                "both sides are equal"
            } else {
                "VIOLATED"
            }
        );
        if found.is_empty() {
            self.forget().await;
        }
        found
    }

    /// Starts one of the replicators, and returns which.
    fn running_after_all(&mut self) -> usize {
        let which = rand::RngExt::random_range(&mut self.rng, 0..2);
        self.start(which, None);
        which
    }

    /// Why there is still something to do for the replicator; `None` if nothing waits, capture is in place,
    /// every gap is closed, and the columns of every table are those that it has seen.
    async fn unsettled(&self, which: usize) -> Option<String> {
        let url = self.site.database_url.as_str().into();
        // Types are called in a session of the program's as the program calls them.
        let session = match Session::open(&url, "test").await {
            Ok(session) => session,
            Err(error) => return Some(error.to_string()),
        };
        let client = session.client();
        let catalogue = &self.site.settings.catalogue;
        let watched = match drift::watch(client, catalogue).await {
            Ok(watched) => watched,
            Err(error) => return Some(error.to_string()),
        };
        for (entity, (standing, watched)) in catalogue.entities().iter().zip(&watched) {
            if watched.wrong.is_some() || watched.gap.is_some() || watched.parked.is_some() {
                return Some(format!("{}: {watched:?}", entity.name));
            }
            if would_mark_a_gap(client, watched.id, standing.table.oid).await {
                return Some(format!("{}: its columns have changed", entity.name));
            }
        }
        // After that: what a comparison found missing waits by now.
        let status = self.daemons[which].status().await;
        if status
            .as_ref()
            .and_then(|status| status.quarantine)
            .is_some_and(|rows| rows > 0)
        {
            // What the fault proxy refused, a person sends again.
            self.daemons[which].ask(&["quarantine", "retry", "--all"]);
            return Some("rows were in quarantine".to_owned());
        }
        let done = status.as_ref().is_some_and(|status| {
            status.state == ReplicatorState::Replicating && status.lag.is_some_and(|lag| lag.changes == 0)
        });
        (!done).then(|| format!("{status:#?}"))
    }

    /// What is broken now that nothing waits.
    async fn judge(&self) -> Vec<String> {
        let mut found = oracle::check(&self.site, &self.cloud).await;
        found.extend(oracle::differences(&self.site, &self.cloud).await);
        found.extend(audited(&self.site, &self.cloud).await);
        let refused = self
            .site
            .client
            .query(
                "select entity || ' ' || key || ': ' || error from cloud_sync.quarantine",
                &[],
            )
            .await
            .expect("the site's database answers");
        found.extend(
            refused
                .iter()
                .map(|row| format!("refused: {}", row.get::<_, &str>(0))),
        );
        for daemon in self.daemons {
            if daemon.log().contains("panicked") {
                found.push(format!("a panic in {}", daemon.checkpoint().display()));
            }
        }
        found
    }

    /// Forgets what was checked, so that checks stay quick: of each row's history only the last entry is
    /// kept.
    async fn forget(&self) {
        workload::audit::forget(&self.site).await;
        let sql = "delete from cloud_meta.history h using (select site, entity, key, max(id) as id \
                   from cloud_meta.history group by 1, 2, 3) l where h.site = l.site and h.entity = l.entity \
                   and h.key is not distinct from l.key and h.id < l.id";
        let there = connect(&self.cloud.database_url).await;
        there
            .batch_execute(sql)
            .await
            .expect("the cloud's database answers");
    }
}

/// Whether the drift monitor would find, at its next look, that values may have changed without a touch. Leaves no
/// trace.
async fn would_mark_a_gap(client: &Client, id: i16, table: u32) -> bool {
    let sql = format!("begin; select cloud_sync.note_shape({id}::smallint, {table}::oid); rollback");
    let messages = client
        .simple_query(&sql)
        .await
        .expect("the site's database answers");
    messages.iter().any(
        |message| matches!(message, tokio_postgres::SimpleQueryMessage::Row(row) if row.get(0) == Some("t")),
    )
}
