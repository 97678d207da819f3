//! Two replicators of one site: one drains, the other waits, and they never meet.

use std::time::Duration;

use cloud_sync::control::status::ReplicatorState;

use super::{garden, plant};
use crate::support::oracle::Tally;
use crate::support::process::Daemon;
use crate::support::site::{Cloud, LIMIT, Site, connect};

/// The guarantee's own bound on taking over.
const TAKEN_OVER: Duration = Duration::from_secs(10);

/// Ends the session of the leader, as a network that breaks would; answers whether there was one.
async fn cut_leader(site: &Site) -> bool {
    let row = site
        .client
        .query_one(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity \
             where application_name = 'cloud-sync leader' and datname = current_database() \
             and pid in (select pid from pg_locks where relation = 'cloud_sync.leader'::regclass \
             and mode = 'ExclusiveLock' and granted)",
            &[],
        )
        .await
        .unwrap();
    row.get::<_, i64>(0) > 0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hung_first_one_is_not_overtaken_and_a_dead_one_is() {
    let cloud = Cloud::start("hung").await;
    let site = garden("hung", &cloud).await;
    let (first, second) = (Daemon::of(&site, "first"), Daemon::of(&site, "second"));
    let mut tally = Tally::default();
    let leader = first.start();
    plant(&site, 1, 100).await;
    first.caught_up().await;
    let other = second.start();
    second
        .until("standing by", LIMIT, |status| {
            status.state == ReplicatorState::Standby
        })
        .await;
    // Given a first one that hangs: it may wake at any moment, so nobody takes its place;
    leader.signal("STOP");
    tally.faults += 1;
    plant(&site, 101, 200).await;
    let there = connect(&cloud.database_url).await;
    let rows = async || -> i64 {
        let row = there.query_one("select count(*) from cloud.pots", &[]).await;
        row.unwrap().get(0)
    };
    // two tries of the second one's pass.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(
        (second.status().await.unwrap().state, rows().await),
        (ReplicatorState::Standby, 100)
    );
    // When it dies, the second takes over.
    leader.kill();
    tally.kills += 1;
    second
        .until("in its place", TAKEN_OVER, |status| {
            status.state == ReplicatorState::Replicating
        })
        .await;
    second.caught_up().await;
    assert!(other.terminate().await.success());
    tally.judge(&site, &cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_session_is_cut_stops_at_once_and_is_followed() {
    let cloud = Cloud::start("cut").await;
    let site = garden("cut", &cloud).await;
    let (first, second) = (Daemon::of(&site, "first"), Daemon::of(&site, "second"));
    let mut tally = Tally::default();
    let rows = ["delivery.batch_rows=20"];
    let (one, two) = (first.start_with(&rows), second.start_with(&rows));
    plant(&site, 1, 10).await;
    // Given a load of updates of the same rows, so that whatever comes late would show,
    for round in 0..8_i64 {
        for _ in 0..5 {
            site.run(&format!(
                "insert into pot select n, 'r{round}' from generate_series(1, 300) n \
                 on conflict (pot_id) do update set label = excluded.label || random()"
            ))
            .await;
        }
        // when the leader's session is cut amid the drain,
        let start = std::time::Instant::now();
        while !cut_leader(&site).await {
            assert!(start.elapsed() < LIMIT, "{}\n{}", first.log(), second.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tally.kills += 1;
        // then one of the two drains again, and never both.
        let start = std::time::Instant::now();
        loop {
            let states = [first.status().await.unwrap(), second.status().await.unwrap()];
            let led: i64 = site
                .client
                .query_one(
                    "select count(*) from pg_stat_activity where application_name = 'cloud-sync delivery' \
                     and datname = current_database()",
                    &[],
                )
                .await
                .unwrap()
                .get(0);
            assert!(led <= 1, "{led} drains at once");
            let leads = states
                .iter()
                .filter(|status| status.state == ReplicatorState::Replicating)
                .count();
            if leads == 1 && led == 1 {
                break;
            }
            assert!(start.elapsed() < TAKEN_OVER, "{states:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let waits = async || -> i64 {
        let status = first.status().await.unwrap();
        status.lag.map_or(1, |lag| lag.changes as i64)
    };
    let start = std::time::Instant::now();
    while waits().await > 0 {
        assert!(start.elapsed() < LIMIT);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for (process, daemon) in [(one, &first), (two, &second)] {
        assert!(process.terminate().await.success());
        assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
    }
    tally.judge(&site, &cloud).await;
}
