//! Where the time goes on the way to the cloud, as status and metrics tell it.

use cloud_sync::catalogue::Catalogue;
use cloud_sync::control::Operator;
use cloud_sync::latency::{PerStep, Percentiles};

use crate::support::baseline::{self, BaselineServer};
use crate::support::process::Daemon;
use crate::support::site::{Running, Site};

/// What the status tells of each step once a room has arrived, and the metrics' text.
async fn steps(site: &Site) -> (PerStep<Option<Percentiles>>, String) {
    let replicator: Running = site.replicate();
    site.run("insert into tbl_room (room_no) values ('R1')").await;
    let status = replicator
        .until("delivered", |status| {
            status.counts.accepted > 0 && status.lag.is_some_and(|lag| lag.changes == 0)
        })
        .await;
    let metrics = replicator.replicator.metrics();
    replicator.end().await;
    (status.latency.unwrap().steps, metrics)
}

fn observed(metrics: &str, step: &str) -> u64 {
    let name = format!("cloud_sync_step_seconds_count{{step=\"{step}\"}} ");
    let count = metrics.lines().find_map(|line| line.strip_prefix(&name));
    count.unwrap().parse().unwrap()
}

#[tokio::test]
async fn each_step_of_a_change_is_measured_and_told() {
    let (_cloud, site) = Site::school_with_cloud("steps").await;
    let (steps, metrics) = steps(&site).await;
    for (name, took) in steps.named() {
        let took = took.unwrap_or_else(|| panic!("{name} is not known"));
        assert!(0.0 <= took.p50_ms && took.p50_ms <= took.p99_ms, "{name}");
        assert!(observed(&metrics, name) > 0, "{name}");
    }
    // One batch: its steps lie one after another within the whole.
    let parts = steps
        .named()
        .map(|(_, took)| took.map_or(0.0, |took| took.p50_ms));
    assert!(
        parts.iter().sum::<f64>() <= steps.total.unwrap().p50_ms,
        "{steps:?}"
    );
}

#[tokio::test]
async fn what_a_baseline_server_takes_itself_is_not_known() {
    let cloud = BaselineServer::start(&Catalogue::builtin(), &[]).await;
    let site = Site::school("steps_baseline", &cloud.url(), baseline::KEY).await;
    let (steps, metrics) = steps(&site).await;
    assert_eq!(steps.apply, None);
    assert_eq!(observed(&metrics, "apply"), 0);
    assert!(steps.push.is_some() && steps.total.is_some(), "{steps:?}");
}

#[tokio::test]
async fn the_log_tells_each_step_where_it_is_asked_to() {
    let (_cloud, site) = Site::school_with_cloud("steps_logged").await;
    let daemon = Daemon::of(&site, "store");
    let process = daemon.start_under(&[], |command| {
        command.env("RUST_LOG", "debug");
    });
    site.run("insert into tbl_room (room_no) values ('R1')").await;
    daemon.caught_up().await;
    assert!(process.terminate().await.success());
    let log = daemon.log();
    for step in ["wake", "read", "push{changes=1 ", "commit{serial="] {
        let ended =
            |line: &str| line.contains(&format!("DEBUG {step}")) && line.contains(": close time.busy=");
        assert!(log.lines().any(ended), "no {step} in\n{log}");
    }
}
