//! Holes that the first draft of DESIGN section 6 had, each as the schedule that showed it, against the real
//! program.
//!
//! A test's name says what holds; the comment above it says the schedule. Each was seen to fail with the rule
//! taken out.

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

use std::sync::Arc;
use std::time::Instant;

use cloud_sync::drain::{BatchLimits, Drain, DrainStep, Stages};

use crate::support::site::{Cloud, LIMIT, Site, connect, entity};
use crate::support::sql::{number, texts};
use crate::support::store::MemoryStore;

const TABLE: &str = "create table thing (id bigint primary key, label text)";

/// The entity `things` of table `thing`, with further lines.
fn things(more: &str) -> String {
    entity("things", "thing", &["id"], more)
}

/// A drain whose batches have so many touches at most.
fn drain_by(site: &Site, rows: usize) -> Drain {
    let mut drain = site.drain();
    drain.limits = BatchLimits { rows, bytes: 1 << 20 };
    drain
}

/// The same drain on another machine: it has no store.
fn elsewhere(drain: &Drain) -> Drain {
    let mut other = drain.clone();
    other.store = Arc::new(MemoryStore::default());
    other
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

/// What the cloud holds, one text a row, in order.
async fn held(cloud: &Cloud, sql: &str) -> Vec<String> {
    texts(&connect(&cloud.database_url).await, sql).await
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
