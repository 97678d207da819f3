//! Inputs on which the product once failed, with the right outcome: see each file for its kind.
//!
//! A case is a site with tables of its own, the receiver (or a baseline server) as its cloud, and a
//! replicator that runs. Rows are compared by the text that PostgreSQL writes of each value, on both sides.

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

use cloud_sync::reconcile::NoObserver;
use cloud_sync::reconcile::backfill::{BackfillReport, RowSpan};
use cloud_sync::replicator;
use tokio_util::sync::CancellationToken;

use crate::support::site::Site;

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
