//! The machine's clock jumps by a day, forward and back, while the program runs. libfaketime takes the place
//! of the clock; time that only runs on (CLOCK_MONOTONIC) is left alone, as a jump leaves it.

use std::path::PathBuf;
use std::time::Duration;

use super::{garden, plant, troubled};
use crate::support::oracle::Tally;
use crate::support::process::Daemon;
use crate::support::site::{Cloud, LIMIT};

const DAY: f64 = 86_400.0;

/// The library, where the distribution puts it.
fn library() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    folders
        .map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"))
        .find(|path| path.exists())
        .expect("libfaketime: make prerequisites installs it")
}

async fn syncs(daemon: &Daemon) -> f64 {
    let url = format!("http://{}/metrics", daemon.listen());
    let text = reqwest::get(url).await.unwrap().text().await.unwrap();
    text.lines()
        .filter(|line| line.starts_with("cloud_sync_syncs_total{") || line.starts_with("cloud_sync_syncs"))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_jumps_by_a_day_disturbs_nothing() {
    let mut cloud = Cloud::start("clock").await;
    let site = garden("clock", &cloud).await;
    let daemon = Daemon::of(&site, "store");
    let mut tally = Tally::default();
    let offset = site.folder.path().join("offset");
    std::fs::write(&offset, "+0").unwrap();
    // Given a program with a sync each other second
    let process = daemon.start_under(&["schedule.sync=*/2 * * * * *"], |command| {
        command
            .env("LD_PRELOAD", library())
            .env("FAKETIME_TIMESTAMP_FILE", &offset)
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("NO_FAKE_STAT", "1");
    });
    plant(&site, 1, 100).await;
    daemon.caught_up().await;
    for (nth, jump) in ["+1d", "-1d", "+0"].into_iter().enumerate() {
        let nth = nth as i64 + 1;
        let before = syncs(&daemon).await;
        // when the clock jumps,
        std::fs::write(&offset, jump).unwrap();
        tally.faults += 1;
        let watch = std::time::Instant::now();
        plant(&site, nth * 1000, nth * 1000 + 100).await;
        let status = daemon.caught_up().await;
        // then replication goes on, and the lag is what it is;
        let lag = status.lag.unwrap();
        assert!((0.0..DAY / 2.0).contains(&lag.age_seconds), "{lag:?}");
        // the schedule neither stops
        while syncs(&daemon).await < before + 1.0 {
            assert!(watch.elapsed() < LIMIT, "no sync after a jump to {jump}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // nor makes up for every time that it missed;
        let most = watch.elapsed().as_secs_f64() / 2.0 + 3.0;
        assert!(
            syncs(&daemon).await - before <= most,
            "a storm after a jump to {jump}"
        );
        // and the wait for a cloud that is away ends as it would have.
        if nth % 2 == 1 {
            cloud.away().await;
            plant(&site, nth * 1000 + 200, nth * 1000 + 210).await;
            troubled(&daemon, "cloud").await;
            cloud.back().await;
            daemon.caught_up().await;
        }
        assert_eq!(daemon.health().await, 200);
    }
    assert_eq!(process.terminate().await.code(), Some(0));
    tally.judge(&site, &cloud).await;
}
