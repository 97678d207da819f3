//! New settings for a running program: what it can take is taken, what it cannot is named, what is broken is
//! refused.

use std::time::{Duration, Instant};

use cloud_sync::control::status::ReplicatorState;
use tokio_util::sync::CancellationToken;

use super::{garden, plant};
use crate::support::oracle::Tally;
use crate::support::process::{Daemon, Process};
use crate::support::receiver::ReceiverProcess;
use crate::support::site::{Cloud, KEY, LIMIT, SITE, Site, connect};

/// Rewrites the site's settings.
fn edit(site: &Site, from: &str, to: &str) {
    let path = site.folder.path().join("cloud-sync.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "no {from:?} in {text}");
    std::fs::write(path, text.replace(from, to)).unwrap();
}

/// Waits until the log beyond `from` holds these words, and answers it.
async fn logged(daemon: &Daemon, from: usize, words: &str) -> String {
    let start = Instant::now();
    loop {
        let log = daemon.log()[from..].to_owned();
        if log.contains(words) {
            return log;
        }
        assert!(start.elapsed() < LIMIT, "no {words:?} in\n{log}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn hang_up(process: &Process<'_>, daemon: &Daemon, words: &str) -> String {
    let from = daemon.log().len();
    process.signal("HUP");
    logged(daemon, from, words).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_change_under_load_without_losing_anything() {
    let mut cloud = Cloud::start("rekey").await;
    let site = garden("rekey", &cloud).await;
    let receiver = ReceiverProcess::replace(&mut cloud, &[KEY]).await;
    let daemon = Daemon::of(&site, "store");
    let mut tally = Tally::default();
    let process = daemon.start_with(&["delivery.batch_rows=50"]);
    // Before it hears signals, a SIGHUP ends it.
    daemon.caught_up().await;
    let stop = CancellationToken::new();
    let load = tokio::spawn({
        let (stop, url) = (stop.clone(), site.database_url.clone());
        async move {
            let client = connect(&url).await;
            let mut next = 1_i64;
            while !stop.is_cancelled() {
                let insert = "insert into pot select n, 'pot' from generate_series($1::bigint, $2) n";
                client.execute(insert, &[&next, &(next + 9)]).await.unwrap();
                next += 10;
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
        }
    });
    let mut old = KEY.to_owned();
    for round in 0..3 {
        // Given both keys on the cloud, when the site's is replaced, then the old one goes.
        let new = format!("the-key-of-round-{round}");
        receiver.rekey(&[(SITE, &[&old, &new])]);
        let from = receiver.log().len();
        receiver.signal("HUP");
        let start = Instant::now();
        while !receiver.log()[from..].contains("the settings were read again") {
            assert!(start.elapsed() < LIMIT, "{}", receiver.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        edit(&site, &format!("{old:?}"), &format!("{new:?}"));
        let log_line = hang_up(&process, &daemon, "the settings were read again").await;
        assert!(
            log_line.contains("cloud.key") && !log_line.contains(&new),
            "{log_line}"
        );
        receiver.rekey(&[(SITE, &[&new])]);
        receiver.signal("HUP");
        tally.faults += 1;
        old = new;
        let accepted = daemon.status().await.unwrap().counts.accepted;
        daemon
            .until("going on", LIMIT, |status| {
                status.counts.accepted > accepted + 200
            })
            .await;
    }
    stop.cancel();
    load.await.unwrap();
    let status = daemon.caught_up().await;
    // The old key is refused, and no key is in a log.
    let answer = reqwest::Client::new()
        .get(format!("{}/sync-status", cloud.url))
        .bearer_auth(KEY)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 401);
    assert_eq!(status.state, ReplicatorState::Replicating);
    for log in [receiver.log(), daemon.log()] {
        assert!(!log.contains(KEY) && !log.contains("the-key-of-round"), "{log}");
    }
    assert!(process.terminate().await.success());
    tally.judge(&site, &cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_file_is_taken_and_a_broken_one_refused() {
    let cloud = Cloud::start("settings").await;
    let site = garden("settings", &cloud).await;
    let daemon = Daemon::of(&site, "store");
    let mut tally = Tally::default();
    let process = daemon.start();
    plant(&site, 1, 100).await;
    daemon.caught_up().await;
    // When a file is broken, it is refused with its line, and the old settings stay in force;
    edit(
        &site,
        "[schedule]\nsync = \"off\"",
        "[schedule]\nsync = \"sometimes\"",
    );
    tally.faults += 1;
    let log_line = hang_up(&process, &daemon, "the old ones stay in force").await;
    assert!(
        log_line.contains("schedule.sync") && log_line.contains("line"),
        "{log_line}"
    );
    plant(&site, 101, 200).await;
    assert_eq!(daemon.caught_up().await.next_sync, None);
    // and when the file is gone.
    let path = site.folder.path().join("cloud-sync.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    tally.faults += 1;
    hang_up(&process, &daemon, "the old ones stay in force").await;
    std::fs::write(&path, text).unwrap();
    // When it is mended, it is taken without a signal; what needs a restart is named.
    edit(&site, "sync = \"sometimes\"", "sync = \"0 3 * * *\"");
    edit(
        &site,
        "path = \"pots\"",
        "path = \"pots\"\n[delivery]\nbatch_rows = 7\n[source]\nsource_id = \"another\"",
    );
    edit(&site, "source_id = \"college\"\n", "");
    edit(&site, "[source]\nsource_id = \"another\"", "");
    edit(&site, "[source]\n", "[source]\nsource_id = \"another\"\n");
    let from = daemon.log().len();
    let log_line = logged(&daemon, from, "the settings were read again").await;
    assert!(
        log_line.contains("source.source_id") && log_line.contains("need a restart"),
        "{log_line}"
    );
    assert!(
        log_line.contains("schedule.sync") && log_line.contains("delivery.batch_rows"),
        "{log_line}"
    );
    plant(&site, 201, 300).await;
    let status = daemon.caught_up().await;
    assert!(status.next_sync.is_some(), "{status:#?}");
    assert_eq!(status.source.id.as_deref(), Some(SITE));
    // A hundred changes in batches of seven.
    let before = daemon.status().await.unwrap().counts.batches;
    plant(&site, 301, 400).await;
    let after = daemon.caught_up().await.counts.batches;
    assert!(after - before >= 14, "{before} {after}");
    // The operator API's own token, too.
    edit(
        &site,
        "[schedule]",
        "[control]\ntoken = \"a-token-of-ours\"\n[schedule]",
    );
    edit(&site, "[control]\nlisten = \"127.0.0.1:0\"\n", "");
    hang_up(&process, &daemon, "control.token").await;
    let status = |token: &str| {
        let url = format!("http://{}/api/cloud-sync/status", daemon.listen());
        reqwest::Client::new().get(url).bearer_auth(token).send()
    };
    let old = std::fs::read_to_string(site.folder.path().join("store/control.token")).unwrap();
    assert_eq!(status("a-token-of-ours").await.unwrap().status(), 200);
    assert_eq!(status(old.trim()).await.unwrap().status(), 401);
    assert!(process.terminate().await.success());
    tally.judge(&site, &cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_receiver_keeps_its_keys_where_new_ones_are_broken() {
    let mut cloud = Cloud::start("ring").await;
    let site = garden("ring", &cloud).await;
    let receiver = ReceiverProcess::replace(&mut cloud, &[KEY]).await;
    let daemon = Daemon::of(&site, "store");
    let mut tally = Tally::default();
    let process = daemon.start();
    for broken in [
        "[receiver]\nlisten = 5\n",
        "[receiver.keys]\ncollege = [\"one\"]\nannex = [\"one\"]\n",
    ] {
        let from = receiver.log().len();
        receiver.configure(broken);
        receiver.signal("HUP");
        tally.faults += 1;
        let start = Instant::now();
        while !receiver.log()[from..].contains("the new settings are refused") {
            assert!(start.elapsed() < LIMIT, "{}", receiver.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    plant(&site, 1, 100).await;
    daemon.caught_up().await;
    assert!(process.terminate().await.success());
    tally.judge(&site, &cloud).await;
}
