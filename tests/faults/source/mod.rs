//! Faults of the site's database.

mod failover;
mod full;
mod outages;
mod pooler;
mod settings;
mod values;

use cloud_sync::control::StatusReport;
use cloud_sync::control::status::ReplicatorState;

use crate::support::machine::reach;
use crate::support::process::{Daemon, Process};
use crate::support::site::{Cloud, KEY, LIMIT, Site};

/// Parents and children, small, so that the tests are about the server.
const TABLES: &str = "
create table pot (pot_id bigint primary key, label text, weight bigint not null default 0);
create table leaf (
    pot_id bigint not null references pot on delete cascade, nth int not null, note text, \
    primary key (pot_id, nth)
)";

const ENTITIES: &str = "
[[entity]]
name = \"pots\"
table = \"pot\"
key = [\"pot_id\"]

[[entity]]
name = \"leaves\"
table = \"leaf\"
key = [\"pot_id\", \"nth\"]
";

/// One turn of a writer: rows come, change and go, each transaction touching several.
const TURN: &str = "begin; insert into pot values ($n % 97, 'turn $n', 1) on conflict (pot_id) \
     do update set label = excluded.label, weight = pot.weight + 1; \
     insert into leaf values ($n % 97, $n % 5, 'turn $n') on conflict (pot_id, nth) do update \
     set note = excluded.note; delete from pot where pot_id = ($n * 7) % 97 and $n % 11 = 0; commit";

/// A site of these tables in a database that the test has made.
async fn garden(database_url: String, cloud: &Cloud) -> Site {
    let site = Site::at(database_url, &cloud.url, KEY, TABLES, ENTITIES).await;
    site.init().await;
    site
}

/// Waits until the daemon replicates, whatever still waits.
async fn replicating(daemon: &Daemon) -> StatusReport {
    let so = |status: &StatusReport| {
        status.state == ReplicatorState::Replicating && status.source.reachable == Some(true)
    };
    daemon.until("replicating", LIMIT, so).await
}

/// Waits until the daemon has ended because its database is another one, and takes the remedy that
/// it named. The process that this answers replicates.
async fn renewed<'a>(
    daemon: &'a Daemon,
    process: Process<'_>,
    site: &mut Site,
    cloud: &Cloud,
) -> Process<'a> {
    let code = process.ended(LIMIT).await.code();
    let log = daemon.log();
    assert_eq!(code, Some(3), "{log}");
    let remedy = "run `cloud-sync init --new-epoch` and start the replicator again";
    assert!(log.contains(remedy), "{log}");
    let output = daemon.ask(&["init", "--new-epoch"]);
    assert!(output.status.success(), "{output:?}");
    let process = daemon.start();
    compared(daemon, site, cloud).await;
    process
}

/// Waits until the cloud is, by the daemon's own doing, what a database that went back to an older state
/// holds.
async fn compared(daemon: &Daemon, site: &mut Site, cloud: &Cloud) {
    site.client = reach(&site.database_url).await;
    let start = std::time::Instant::now();
    loop {
        daemon
            .until("compared", LIMIT, |status| {
                status.state == ReplicatorState::Replicating
                    && status.source.reachable == Some(true)
                    && status.capture.is_empty()
                    && status.lag.is_some_and(|lag| lag.changes == 0)
            })
            .await;
        if start.elapsed() > LIMIT || site.compare(cloud).await.equal {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
}
