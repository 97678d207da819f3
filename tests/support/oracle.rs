//! The oracle of the fault tests: whether a guarantee was broken, whatever failed on the way.
//!
//! [`check`] is asked when nothing waits any more; [`amid`] at any moment. Both answer violations in words, and none
//! where all holds. [`Tally`] is what a fault test counts; `make test` adds the tallies up.

use std::fmt;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use tokio_postgres::Client;

use super::site::{Cloud, SITE, Site, connect};

/// What a fault test did, and what the oracle found. Dropped, it is added to the run's tallies: a test that fails
/// counts as one violation more.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Processes, backends and servers that were killed.
    pub(crate) kills: u64,
    /// Faults of any other kind that were brought about.
    pub(crate) faults: u64,
    /// Changes that the outbox took.
    pub(crate) changes: u64,
    /// Broken guarantees.
    pub(crate) violations: u64,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kills,
            faults,
            changes,
            violations,
        } = self;
        write!(
            f,
            "kills {kills}, faults {faults}, changes {changes}, violations {violations}"
        )
    }
}

impl Tally {
    /// Asks the oracle when nothing waits any more, and panics where a guarantee was broken.
    pub(crate) async fn judge(&mut self, site: &Site, cloud: &Cloud) {
        self.changes += number(&site.client, "select last_value from cloud_sync.position").await as u64;
        let found = check(site, cloud).await;
        self.violations += found.len() as u64;
        assert!(found.is_empty(), "{}", found.join("\n"));
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        if std::thread::panicking() && self.violations == 0 {
            self.violations = 1;
        }
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fault-tally");
        let line = format!(
            "{} {} {} {}\n",
            self.kills, self.faults, self.changes, self.violations
        );
        let written = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .and_then(|mut file| file.write_all(line.as_bytes()));
        if let Err(error) = written {
            eprintln!("the tally cannot be written: {error}");
        }
    }
}

async fn number(client: &Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// What holds at any moment: no row of the receiver ever went back, no position came with two contents, and neither
/// the checkpoint's mirror nor what was trimmed lies above what the cloud has accepted.
pub(crate) async fn amid(site: &Site, cloud: &Cloud) -> Vec<String> {
    let mut found = Vec::new();
    // The site first: what it says is accepted must be in the cloud by the time that the cloud is asked.
    let checkpointed = number(
        &site.client,
        &format!(
            "select coalesce(max(o.position), 0) from cloud_sync.outbox o, cloud_sync.checkpoint c, \
             lateral (select c.body::json as checkpoint) b where c.source_id = '{SITE}' \
             and (pg_visible_in_snapshot(o.xid, (checkpoint->>'lo')::pg_snapshot) \
                  or pg_visible_in_snapshot(o.xid, (checkpoint->'window'->>'hi')::pg_snapshot) \
                     and o.position <= (checkpoint->'window'->>'position')::bigint)"
        ),
    )
    .await;
    let trimmed = number(&site.client, "select trimmed from cloud_sync.identity").await;
    let there = connect(&cloud.database_url).await;
    let back = number(
        &there,
        "select count(*) from (select (epoch, position) <= lag((epoch, position)) \
         over (partition by site, entity, key order by id) as back from cloud_meta.history) h where back",
    )
    .await;
    let resurrected = number(
        &there,
        "select count(*) from (select position < max(position) filter (where key is null) \
         over (partition by site, entity, epoch order by id) as back from cloud_meta.history) h where back",
    )
    .await;
    let twice = number(
        &there,
        "select count(*) from (select from cloud_meta.history where position > 0 \
         group by site, entity, key, epoch, position having count(distinct digest) > 1) d",
    )
    .await;
    let accepted = number(
        &there,
        "select coalesce(max(position), 0) from cloud_meta.sources",
    )
    .await;
    if back > 0 {
        found.push(format!("{back} rows of the cloud went back to an older position"));
    }
    if resurrected > 0 {
        found.push(format!(
            "{resurrected} rows of the cloud came back from before a truncate"
        ));
    }
    if twice > 0 {
        found.push(format!("{twice} positions came with two contents"));
    }
    for (what, position) in [("the checkpoint", checkpointed), ("what was trimmed", trimmed)] {
        if position > accepted {
            found.push(format!(
                "{what} lies at {position}, and the cloud has only accepted {accepted}"
            ));
        }
    }
    found
}

/// What holds when nothing waits any more: all of [`amid`], and the receiver's rows equal the site's.
pub(crate) async fn check(site: &Site, cloud: &Cloud) -> Vec<String> {
    let mut found = amid(site, cloud).await;
    let report = site.compare(cloud).await;
    if !report.equal {
        found.push(format!("the cloud differs from the site:\n{report}"));
    }
    found
}
