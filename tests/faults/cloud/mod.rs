//! Faults on the way to the cloud and in it: what it answers ([`answers`]), its database ([`database`]), what it
//! has lost ([`forgetful`]), its keys ([`keys`]), the line ([`link`]), and TLS ([`tls`]).

mod answers;
mod database;
mod forgetful;
mod keys;
mod link;
mod tls;

use cloud_sync::control::StatusReport;
use cloud_sync::control::status::ReplicatorState;

use crate::support::site::{Running, Site};

/// Waits until the replicator backs off, and answers why.
async fn why(running: &Running) -> String {
    let status = running
        .until("backing off", |status| {
            status.state == ReplicatorState::BackingOff
        })
        .await;
    reason(&status)
}

fn reason(status: &StatusReport) -> String {
    assert_eq!(status.cloud.reachable, Some(false), "{status:#?}");
    status.reason.clone().unwrap()
}

/// Writes so many rooms, from number `from` on.
async fn rooms(site: &Site, from: i64, count: i64) {
    site.client
        .execute(
            "insert into tbl_room (room_id, room_no, room_name) overriding system value \
             select n, 'R' || n, 'room ' || n from generate_series($1::bigint, $2) n",
            &[&from, &(from + count - 1)],
        )
        .await
        .unwrap();
}

/// Waits until so many changes wait: capture goes on.
async fn waits(running: &Running, changes: u64) -> StatusReport {
    running
        .until("waiting", |status| {
            status.lag.is_some_and(|lag| lag.changes == changes)
        })
        .await
}
