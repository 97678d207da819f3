//! A site with its receiver and a replicator that runs, for tests that read given, when, then:
//!
//! ```ignore
//! // Given a captured table
//! let scenario = Scenario::start("renamed", TABLE, &entity("x", "t", &["id"], "")).await;
//! // when a row's key changes,
//! scenario.run("update t set id = 2 where id = 1").await;
//! // then the cloud has the row under its new key alone.
//! scenario.assert_settled("id, v").await;
//! ```

use cloud_sync::control::{Operator, SyncReport, SyncRequest};
use cloud_sync::reconcile::NoObserver;
use tokio_postgres::Client;

use super::site::{Cloud, KEY, Running, Site, connect, until_whole};

/// The same text on both sides for the same value.
const RENDERING: &str = "set timezone = 'UTC'; set datestyle = 'ISO, YMD'; set intervalstyle = 'postgres'; \
                         set bytea_output = 'hex'; set extra_float_digits = 1";

/// The rows of a query, each as the texts of its columns, sorted.
pub(crate) async fn row_texts(client: &Client, table: &str, columns: &str, condition: &str) -> Vec<String> {
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
pub(crate) struct Scenario {
    pub(crate) cloud: Cloud,
    pub(crate) site: Site,
    pub(crate) running: Running,
    /// A session with each side's database.
    pub(crate) site_client: Client,
    pub(crate) cloud_client: Client,
}

impl Scenario {
    /// Tables in the run's server, captured and replicated; the drift monitor looks all the time.
    pub(crate) async fn start(hint: &str, tables: &str, config: &str) -> Self {
        let cloud = Cloud::start(hint).await;
        let site = Site::bare(hint, &cloud.url, KEY, tables, config).await;
        Self::of(cloud, site).await
    }

    pub(crate) async fn of(cloud: Cloud, site: Site) -> Self {
        site.init().await;
        let running = site.replicate_monitoring_drift();
        running.caught_up().await;
        let site_client = connect(&site.database_url).await;
        let cloud_client = connect(&cloud.database_url).await;
        for client in [&site_client, &cloud_client] {
            client.batch_execute(RENDERING).await.unwrap();
        }
        Self {
            cloud,
            site,
            running,
            site_client,
            cloud_client,
        }
    }

    pub(crate) async fn run(&self, sql: &str) {
        self.site
            .client
            .batch_execute(sql)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// Waits until nothing waits, then asserts that the entity's rows in the cloud are the table's that meet
    /// the condition.
    pub(crate) async fn assert_rows_equal(&self, name: &str, table: &str, columns: &str, condition: &str) {
        let status = self.running.caught_up().await;
        assert_eq!(status.quarantine, Some(0), "{status:#?}");
        let site = row_texts(&self.site_client, table, columns, condition).await;
        let cloud = row_texts(&self.cloud_client, &format!("cloud.{name}"), columns, "true").await;
        assert!(cloud == site, "{name}:\nsite  {site:#?}\ncloud {cloud:#?}");
    }

    /// As [`Scenario::assert_rows_equal`], for an entity `x` on table `t` without a condition; and nothing
    /// had to be compared for it.
    pub(crate) async fn assert_settled(&self, columns: &str) {
        self.assert_rows_equal("x", "t", columns, "true").await;
        let status = self.running.replicator.status().await.unwrap();
        assert!(status.capture.is_empty(), "{:#?}", status.capture);
    }

    /// Runs each of these, and asserts after each that both sides are equal.
    pub(crate) async fn assert_each(&self, statements: &[&str], columns: &str) {
        for sql in statements {
            self.run(sql).await;
            self.assert_settled(columns).await;
        }
    }

    /// Waits until nothing is wrong with the capture, and nothing is left to compare, what the columns tell
    /// now included.
    pub(crate) async fn until_whole(&self) {
        until_whole(&self.site, &self.running).await;
    }

    /// A sync; returns how many rows of each entity it pushed.
    pub(crate) async fn sync(&self) -> SyncReport {
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
    pub(crate) async fn assert_nothing_to_sync(&self) {
        let report = self.sync().await;
        let pushed: u64 = report.summary().iter().map(|(_, &count)| count as u64).sum();
        assert_eq!(pushed, 0, "{:?}", report.summary());
    }
}
