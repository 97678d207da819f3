//! The oracle of the fault tests: whether a guarantee was broken, whatever failed on the way.
//!
//! [`check`] is asked when nothing waits any more; [`amid`] at any moment. Both answer violations in words,
//! and none where all holds. [`Tally`] is what a fault test counts; `make test` adds the tallies up.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use tokio_postgres::{Client, SimpleQueryMessage};

use super::site::{Cloud, SITE, Site, connect};
use super::sql::number;

/// What a fault test did, and what the oracle found. Dropped, it is added to the run's tallies: a test that
/// fails counts as one violation more.
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

/// What holds at any moment: no row of the receiver ever went back to an older version, no version came with
/// two contents, and the checkpoint's mirror does not count a batch as accepted that the cloud has not taken.
pub(crate) async fn amid(site: &Site, cloud: &Cloud) -> Vec<String> {
    let mut found = Vec::new();
    // The site first: what it says is accepted must be in the cloud by the time that the cloud is asked.
    let accepted = version(
        &site.client,
        &format!(
            "select (a->>'epoch')::bigint, (a->>'term')::bigint, (a->>'batch')::bigint \
             from cloud_sync.checkpoint, lateral (select body::json->'accepted') b (a) \
             where source_id = '{SITE}'"
        ),
    )
    .await;
    let there = connect(&cloud.database_url).await;
    let back = number(
        &there,
        "select count(*) from (select (epoch, version) < lag((epoch, version)) \
         over (partition by site, entity, key order by id) as back from cloud_meta.history) h where back",
    )
    .await;
    let resurrected = number(
        &there,
        "select count(*) from (select version < max(version) filter (where key is null) \
         over (partition by site, entity, epoch order by id) as back from cloud_meta.history) h where back",
    )
    .await;
    let twice = number(
        &there,
        "select count(*) from (select from cloud_meta.history where version > 0 \
         group by site, entity, key, epoch, version having count(distinct digest) > 1) d",
    )
    .await;
    let taken = version(
        &there,
        "select epoch, term, batch from cloud_meta.sources order by 1 desc, 2 desc limit 1",
    )
    .await;
    if back > 0 {
        found.push(format!("{back} rows of the cloud went back to an older version"));
    }
    if resurrected > 0 {
        found.push(format!(
            "{resurrected} rows of the cloud came back from before a truncate"
        ));
    }
    if twice > 0 {
        found.push(format!("{twice} versions came with two contents"));
    }
    if accepted > taken {
        found.push(format!(
            "the mirror counts batch {accepted:?} as accepted, and the cloud has only taken {taken:?}"
        ));
    }
    found
}

/// No row of the receiver ever went back to an older version, and no version came with two contents.
pub(crate) async fn assert_never_back(cloud: &Cloud) {
    let client = connect(&cloud.database_url).await;
    let back: i64 = client
        .query_one(
            "select count(*) from (select (epoch, version) <= lag((epoch, version)) \
             over (partition by site, entity, key order by id) as back from cloud_meta.history) h where back",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    let twice: i64 = client
        .query_one(
            "select count(*) from (select from cloud_meta.history where version > 0 \
             group by site, entity, key, epoch, version having count(distinct digest) > 1) d",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert_eq!(
        (back, twice),
        (0, 0),
        "rows that went back, versions with two contents"
    );
}

/// Epoch, term and batch; `None` if there is no such row.
async fn version(client: &Client, sql: &str) -> Option<(i64, i64, i64)> {
    let row = client.query_opt(sql, &[]).await.unwrap()?;
    let epoch: Option<i64> = row.get(0);
    epoch.map(|epoch| (epoch, row.get(1), row.get(2)))
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

/// Rows of the cloud that the site does not have, and how rows differ, a few of each entity. For catalogues
/// in which every delete leaves the site. Asked when nothing waits any more.
#[allow(dead_code, reason = "for the soak")]
pub(crate) async fn differences(site: &Site, cloud: &Cloud) -> Vec<String> {
    let there = connect(&cloud.database_url).await;
    let mut found = Vec::new();
    for entity in site.settings.catalogue.entities() {
        let key: Vec<String> = entity.key.iter().map(|column| format!("t.{column}")).collect();
        let columns: Vec<String> = texts(
            &site.client,
            &format!(
                "select attname from pg_attribute where attrelid = '{}'::regclass and attnum > 0 \
                 and not attisdropped",
                entity.table
            ),
        )
        .await;
        // Of the cloud's row only the columns that the site has now.
        let rows = |table: &str| {
            format!(
                "select jsonb_build_array({}) || (select jsonb_object_agg(k, v) \
                 from jsonb_each(to_jsonb(t)) e (k, v) \
                 where k = any ('{{{}}}'))::jsonb || '[]' from {table} t",
                key.join(", "),
                columns.join(",")
            )
        };
        let here: BTreeSet<String> = texts(&site.client, &rows(&entity.table))
            .await
            .into_iter()
            .collect();
        let held: BTreeSet<String> = texts(&there, &rows(&format!("cloud.{}", entity.name)))
            .await
            .into_iter()
            .collect();
        let lines = (here
            .difference(&held)
            .map(|row| format!("only the site has {row}")))
        .chain(
            held.difference(&here)
                .map(|row| format!("only the cloud has {row}")),
        );
        let lines: Vec<String> = lines.collect();
        if !lines.is_empty() {
            found.push(format!(
                "{}: {} rows differ or are on one side only:\n  {}",
                entity.name,
                lines.len(),
                lines[..lines.len().min(12)].join("\n  ")
            ));
        }
    }
    found
}

/// The first column of the rows, as text; no rows if there is no such table.
async fn texts(client: &Client, sql: &str) -> Vec<String> {
    let rows = client.simple_query(sql).await.unwrap_or_default();
    rows.iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        })
        .collect()
}
