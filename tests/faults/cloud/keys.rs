//! Keys that the cloud refuses.

use cloud_sync::control::status::ReplicatorState;

use super::rooms;
use crate::support::fault::Fault;
use crate::support::fault_proxy::FaultProxy;
use crate::support::oracle::Tally;
use crate::support::process::Daemon;
use crate::support::site::{Cloud, KEY, LIMIT, Site};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_key_stops_the_pushing_and_not_the_capture_until_it_is_valid_again() {
    let cloud = Cloud::start("refused_key").await;
    let fault_proxy = FaultProxy::before(&cloud.url).await;
    let site = Site::school("refused_key", &fault_proxy.url(), KEY).await;
    let daemon = Daemon::of(&site, "store");
    let mut tally = Tally::default();
    // Given a key that is refused: from the start, before there is anything to send, and later amid the work
    fault_proxy.fault(Fault::status(401));
    let process = daemon.start();
    for round in 0..2 {
        if round == 1 {
            fault_proxy.fault(Fault::status(403));
        } else {
            daemon
                .until("refused", LIMIT, |status| {
                    status.state == ReplicatorState::KeyRefused
                })
                .await;
        }
        rooms(&site, 10 * round, 5).await;
        daemon
            .until("refused", LIMIT, |status| {
                status.state == ReplicatorState::KeyRefused && status.lag.is_some_and(|lag| lag.changes == 5)
            })
            .await;
        // then health and status say so,
        assert_eq!(daemon.health().await, 503);
        let answer = daemon.ask(&["status"]);
        let text = String::from_utf8_lossy(&answer.stdout).into_owned();
        assert!(text.contains("key refused"), "{text}");
        let remedy = "set cloud.key (CLOUD_API_KEY) to a key that is valid there; until then changes wait in the outbox";
        assert!(text.contains(remedy), "{text}");
        assert!(!text.contains(KEY) && !daemon.log().contains(KEY));
        // and once the key is accepted, it continues without a restart.
        fault_proxy.clear_faults();
        daemon.caught_up().await;
        assert_eq!(daemon.health().await, 200);
    }
    tally.faults += fault_proxy.struck();
    assert!(process.terminate().await.success());
    tally.judge(&site, &cloud).await;
}

#[tokio::test]
async fn a_key_that_is_taken_back_and_given_again_needs_no_restart() {
    let (mut cloud, site) = Site::school_with_cloud("rotated").await;
    let mut tally = Tally::default();
    let replicator = site.replicate();
    rooms(&site, 1, 5).await;
    replicator.caught_up().await;
    // Given a cloud that knows only another key
    cloud.away().await;
    cloud.set_keys(&["another-key-for-tests"]);
    cloud.back().await;
    tally.faults += 1;
    rooms(&site, 10, 5).await;
    let status = replicator
        .until("refused", |status| status.state == ReplicatorState::KeyRefused)
        .await;
    assert_eq!(status.cloud.reachable, Some(false));
    assert!(status.cloud.last_error.unwrap().contains("refused the key"));
    // when it knows both, then it goes on.
    cloud.away().await;
    cloud.set_keys(&["another-key-for-tests", KEY]);
    cloud.back().await;
    replicator.caught_up().await;
    replicator.end().await;
    tally.judge(&site, &cloud).await;
}
