//! Holes that the first draft of DESIGN section 6 had, each as the schedule that showed it, against the real program.
//!
//! A test's name says what holds; the comment above it says the schedule. Each was seen to fail with the rule taken out.

mod baseline;
mod capture;
mod conditions;
mod drift;
mod going_back;
mod numbers;
mod parked;
mod reading;
mod refused_schema;
mod rewrites;
mod space;
mod unreadable;

use std::sync::{Arc, Mutex};
use std::time::Instant;

use cloud_sync::checkpoint::{Checkpoint, Store};
use cloud_sync::drain::{BatchLimits, Drain, DrainStep, Stages};
use cloud_sync::error::Result;
use cloud_sync::source::connect::Session;
use cloud_sync::source::drift as source_drift;
use tokio_postgres::Client;

use crate::support::site::{Cloud, KEY, LIMIT, Running, Site, connect};

const TABLE: &str = "create table thing (id bigint primary key, label text)";

/// The entity `things` of table `thing`, with further lines.
fn things(more: &str) -> String {
    format!("[[entity]]\nname = \"things\"\ntable = \"thing\"\nkey = [\"id\"]\npath = \"things\"\n{more}\n")
}

/// A site with these tables and a receiver as its cloud; capture is installed.
async fn site_of(hint: &str, tables: &str, config: &str) -> (Cloud, Site) {
    let cloud = Cloud::start(hint).await;
    let site = Site::bare(hint, &cloud.url, KEY, tables, config).await;
    site.init().await;
    (cloud, site)
}

/// A drain whose batches have so many touches at most.
fn drain_by(site: &Site, rows: usize) -> Drain {
    let mut drain = site.drain();
    drain.limits = BatchLimits { rows, bytes: 1 << 20 };
    drain
}

/// A store in memory, for a drain beside another one.
#[derive(Default)]
struct Memory(Mutex<Option<Checkpoint>>);

impl Store for Memory {
    fn load(&self) -> Result<Option<Checkpoint>> {
        Ok(self.0.lock().unwrap().clone())
    }

    fn commit(&self, checkpoint: &Checkpoint) -> Result<()> {
        *self.0.lock().unwrap() = Some(checkpoint.clone());
        Ok(())
    }
}

/// The same drain on another machine: it has no store.
fn elsewhere(drain: &Drain) -> Drain {
    let mut other = drain.clone();
    other.store = Arc::new(Memory::default());
    other
}

async fn number(client: &Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// How many deletes of rows the cloud has ever applied.
async fn deletes(cloud: &Cloud) -> i64 {
    let there = connect(&cloud.database_url).await;
    number(
        &there,
        "select count(*) from cloud_meta.history where op = 'delete'",
    )
    .await
}

/// The first column of the rows, as text.
async fn texts(client: &Client, sql: &str) -> Vec<String> {
    let rows = client.query(sql, &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// What the cloud holds, one text a row, in order.
async fn held(cloud: &Cloud, sql: &str) -> Vec<String> {
    texts(&connect(&cloud.database_url).await, sql).await
}

/// Waits until the query, of one boolean, says so.
pub(crate) async fn until(client: &Client, sql: &str) {
    let start = Instant::now();
    while !client.query_one(sql, &[]).await.unwrap().get::<_, bool>(0) {
        assert!(start.elapsed() < LIMIT, "never: {sql}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// The same of a table that may not be there yet, or be empty.
async fn until_some(client: &Client, sql: &str) {
    let start = Instant::now();
    loop {
        let row = client.query_opt(sql, &[]).await.ok().flatten();
        if row.is_some_and(|row| row.get::<_, Option<bool>>(0) == Some(true)) {
            return;
        }
        assert!(start.elapsed() < LIMIT, "never: {sql}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// Waits until a session of the program waits for a lock.
async fn until_one_waits(client: &Client, session: &str) {
    until(
        client,
        &format!(
            "select exists (select from pg_stat_activity where datname = current_database() \
             and application_name = 'cloud-sync {session}' and wait_event_type = 'Lock')"
        ),
    )
    .await;
}

/// Steps until nothing waits.
async fn drained(stages: &mut Stages) {
    while stages.step().await.unwrap() == DrainStep::Delivered {}
}

/// Steps until nothing waits and no entity is parked.
async fn settled(stages: &mut Stages, site: &Site) {
    let start = Instant::now();
    loop {
        drained(stages).await;
        let parked = "select count(*) from cloud_sync.entity where parked is not null";
        if number(&site.client, parked).await == 0 {
            return drained(stages).await;
        }
        assert!(start.elapsed() < LIMIT, "still parked");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// Waits until nothing waits, capture is in place, and nothing is left to compare.
async fn whole(site: &Site, running: &Running) {
    let start = Instant::now();
    // Types have other names in a session with another path.
    let session = Session::open(&site.database_url.as_str().into(), "test")
        .await
        .unwrap();
    loop {
        let well = source_drift::watch(session.client(), &site.settings.catalogue)
            .await
            .unwrap()
            .iter()
            .all(|(_, watched)| watched.wrong.is_none() && watched.gap.is_none() && watched.parked.is_none());
        let status = running.caught_up().await;
        if well && status.capture.is_empty() {
            return;
        }
        assert!(start.elapsed() < LIMIT, "not whole: {status:#?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}
