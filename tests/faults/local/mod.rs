//! Faults of the machine: full disks, clocks that jump, signals, a second replicator, new settings.

mod clock;
mod disk;
mod locks;
mod mount;
mod reload;
mod shutdown;
mod standby;

use cloud_sync::control::status::ReplicatorState;

use crate::support::process::Daemon;
use crate::support::site::{Cloud, KEY, LIMIT, Site};

/// A small table: these tests are about the machine, not the catalogue.
const TABLES: &str = "create table pot (pot_id bigint primary key, label text)";

const ENTITIES: &str = "
[[entity]]
name = \"pots\"
table = \"pot\"
key = [\"pot_id\"]
path = \"pots\"
";

async fn garden(hint: &str, cloud: &Cloud) -> Site {
    let site = Site::bare(hint, &cloud.url, KEY, TABLES, ENTITIES).await;
    site.init().await;
    site
}

/// Inserts these pots, in one transaction.
async fn plant(site: &Site, from: i64, to: i64) {
    site.client
        .execute(
            "insert into pot select n, 'pot' from generate_series($1::bigint, $2) n",
            &[&from, &to],
        )
        .await
        .unwrap();
}

/// Waits until a running daemon says that it cannot go on, for a reason that holds `words`.
async fn troubled(daemon: &Daemon, words: &str) {
    daemon
        .until(words, LIMIT, |status| {
            status.state != ReplicatorState::Replicating
                && status
                    .reason
                    .as_ref()
                    .is_some_and(|reason| reason.contains(words))
        })
        .await;
}
