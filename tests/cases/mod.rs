//! Inputs on which the product once failed, with the right outcome: see each file for its kind.
//!
//! A case is a site with tables of its own, the receiver (or a baseline server) as its cloud, and a replicator that runs. Rows are
//! compared by the text that PostgreSQL writes of each value, on both sides.

mod aside;
mod cloud;
mod conditions;
mod keys;
mod others;
mod redaction;
mod reports;
mod schemas;
mod setup;
mod states;
mod unnoticed;
mod writers;

use cloud_sync::config::{LoadOptions, Settings};
use cloud_sync::control::{Operator, SyncReport, SyncRequest};
use cloud_sync::error::Kind;
use cloud_sync::reconcile::NoObserver;
use cloud_sync::reconcile::backfill::{BackfillReport, RowSpan};
use cloud_sync::replicator;
use cloud_sync::source::identity::OutboxDeclaration;
use cloud_sync::source::install;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::support::site::{Cloud, KEY, Running, Site, connect, whole};

/// An `[[entity]]` on a table, with further lines.
pub(crate) fn entity(name: &str, table: &str, key: &[&str], more: &str) -> String {
    format!("[[entity]]\nname = \"{name}\"\ntable = \"{table}\"\nkey = {key:?}\n{more}\n")
}

/// The same text on both sides for the same value.
const RENDERING: &str = "set timezone = 'UTC'; set datestyle = 'ISO, YMD'; set intervalstyle = 'postgres'; \
                         set bytea_output = 'hex'; set extra_float_digits = 1";

/// The rows of a query, each as the texts of its columns, sorted.
async fn texts(client: &Client, table: &str, columns: &str, condition: &str) -> Vec<String> {
    let list: Vec<_> = columns
        .split(", ")
        .map(|column| format!("{column}::text"))
        .collect();
    let sql = format!(
        "select (array[{}])::text from {table} where {condition}",
        list.join(", ")
    );
    let rows = client
        .query(&sql, &[])
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let mut rows: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    rows.sort_unstable();
    rows
}

/// A site, its receiver, and a replicator that runs.
struct Case {
    cloud: Cloud,
    site: Site,
    running: Running,
    /// Sessions that look at both sides.
    here: Client,
    there: Client,
}

impl Case {
    /// Tables in the run's server, captured and replicated; the guard looks all the time.
    async fn start(hint: &str, tables: &str, config: &str) -> Self {
        let cloud = Cloud::start(hint).await;
        let site = Site::bare(hint, &cloud.url, KEY, tables, config).await;
        Self::of(cloud, site).await
    }

    async fn of(cloud: Cloud, site: Site) -> Self {
        site.init().await;
        let running = site.replicate_guarded();
        running.caught_up().await;
        let here = connect(&site.database_url).await;
        let there = connect(&cloud.database_url).await;
        for client in [&here, &there] {
            client.batch_execute(RENDERING).await.unwrap();
        }
        Self {
            cloud,
            site,
            running,
            here,
            there,
        }
    }

    async fn run(&self, sql: &str) {
        self.site
            .client
            .batch_execute(sql)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// Waits until nothing waits, then asserts that the entity's rows in the cloud are the table's that meet the condition.
    async fn equal(&self, name: &str, table: &str, columns: &str, condition: &str) {
        let status = self.running.caught_up().await;
        assert_eq!(status.quarantine, Some(0), "{status:#?}");
        let site = texts(&self.here, table, columns, condition).await;
        let cloud = texts(&self.there, &format!("cloud.{name}"), columns, "true").await;
        assert!(cloud == site, "{name}:\nsite  {site:#?}\ncloud {cloud:#?}");
    }

    /// As [`Case::equal`], for an entity `x` on table `t` without a condition; and nothing had to be compared for it.
    async fn settled(&self, columns: &str) {
        self.equal("x", "t", columns, "true").await;
        let status = self.running.replicator.status().await.unwrap();
        assert!(status.capture.is_empty(), "{:#?}", status.capture);
    }

    /// Runs each of these, and asserts after each that both sides are equal.
    async fn each(&self, statements: &[&str], columns: &str) {
        for sql in statements {
            self.run(sql).await;
            self.settled(columns).await;
        }
    }

    /// Waits until nothing is wrong with the capture, and nothing is left to compare, what the columns tell now included.
    async fn whole(&self) {
        whole(&self.site, &self.running).await;
    }

    /// A sync; returns how many rows of each entity it pushed.
    async fn sync(&self) -> SyncReport {
        let report = self
            .running
            .replicator
            .sync(&SyncRequest::default(), &NoObserver)
            .await
            .unwrap();
        assert!(report.success(), "{:?}", report.errors());
        report
    }

    /// Asserts that a sync finds nothing to push.
    async fn nothing_to_sync(&self) {
        let report = self.sync().await;
        let pushed: u64 = report.summary().iter().map(|(_, &count)| count as u64).sum();
        assert_eq!(pushed, 0, "{:?}", report.summary());
    }
}

/// Backfills all rows.
async fn backfill(site: &Site, restart: bool) -> BackfillReport {
    let stop = CancellationToken::new();
    replicator::backfill(&site.settings, &[], RowSpan::All, restart, &NoObserver, &stop)
        .await
        .unwrap()
}

/// Backfills all rows, each of which the cloud takes.
async fn backfill_all(site: &Site) -> BackfillReport {
    let report = backfill(site, false).await;
    assert!(report.success, "{:?}", report.errors);
    report
}

/// Replaces a text of the configuration file, which is then read again.
pub(crate) fn reconfigure(site: &mut Site, from: &str, to: &str) {
    let path = site.folder.path().join("cloud-sync.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "no {from:?} in {text}");
    std::fs::write(&path, text.replace(from, to)).unwrap();
    let options = LoadOptions {
        config: Some(path),
        overrides: Vec::new(),
        env: std::collections::BTreeMap::new(),
        dir: site.folder.path().to_owned(),
    };
    site.settings = Settings::load(options).unwrap().settings;
}

/// What `init` says to a catalogue that it refuses.
pub(crate) async fn refusal(hint: &str, tables: &str, config: &str) -> String {
    let site = Site::bare(hint, "http://127.0.0.1:9/api", KEY, tables, config).await;
    let url = site.settings.require_database_url().unwrap();
    let refused = install::init(url, &site.settings.catalogue, OutboxDeclaration::Nothing).await;
    let error = refused.expect_err("a refusal");
    assert_eq!(error.kind(), Kind::Config, "{error}");
    error.to_string()
}

/// Asserts that a text has each of these words.
pub(crate) fn says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
}
