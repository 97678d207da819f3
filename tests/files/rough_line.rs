//! Many files over a line that is cut every few seconds, while the programs at its ends are killed again and
//! again: each arrives once, whole, and its row has its URL.
//!
//! The tests that take minutes are run by name, with `--ignored`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::support::process::{Daemon, Process};
use crate::support::receiver::ReceiverProcess;
use crate::support::s3_server;
use crate::support::site::{Cloud, KEY, SCHOOL, Site, connect};
use crate::support::tcp_proxy::{TcpProxy, Trouble};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// 40 Mbit/s, in bytes a second.
const LINE: u64 = 5_000_000;

/// How often the line is cut, and for how long.
const CUT_EVERY: Duration = Duration::from_secs(5);
const CUT_FOR: Duration = Duration::from_millis(300);

/// What is sent, and what happens meanwhile.
struct RoughLoad {
    files: usize,
    /// Of all files together, about.
    bytes: u64,
    /// Of the largest file, at most.
    largest: u64,
    /// SIGKILLs.
    kills_of_the_replicator: u32,
    kills_of_the_receiver: u32,
    /// How long all may take.
    limit: Duration,
}

/// As many seconds as the test suite has.
const SHORT: RoughLoad = RoughLoad {
    files: 60,
    bytes: 60 * MIB,
    largest: 24 * MIB,
    kills_of_the_replicator: 3,
    kills_of_the_receiver: 1,
    limit: Duration::from_secs(180),
};

const WHOLE: RoughLoad = RoughLoad {
    files: 1_000,
    bytes: 2_000 * MIB,
    largest: 200 * MIB,
    kills_of_the_replicator: 20,
    kills_of_the_receiver: 5,
    limit: Duration::from_secs(1_800),
};

impl RoughLoad {
    /// Sizes from 1 KiB on, as many small ones as large ones by their order of magnitude.
    fn sizes(&self, random: &mut StdRng) -> Vec<u64> {
        let (least, largest) = ((KIB as f64).ln(), (self.largest as f64).ln());
        let drawn: Vec<f64> = (0..self.files)
            .map(|_| random.random_range(least..largest).exp())
            .collect();
        let scale = (self.bytes as f64 / drawn.iter().sum::<f64>()).min(1.0);
        drawn
            .iter()
            .map(|size| ((size * scale) as u64).clamp(KIB, self.largest))
            .collect()
    }
}

/// Where files go.
enum Target {
    Cloud,
    Storage,
}

async fn arrives(hint: &str, load: &RoughLoad, target: Target, at_most: f64) {
    let folder = tempfile::tempdir().unwrap();
    let mut cloud = Cloud::start(hint).await;
    let mut receiver = ReceiverProcess::replace(&mut cloud, &[KEY]).await;
    std::fs::create_dir(folder.path().join("school")).unwrap();
    let storage: url::Url = s3_server::serve(folder.path()).await.parse().unwrap();
    let address = match target {
        Target::Cloud => cloud.address(),
        Target::Storage => storage.socket_addrs(|| None).unwrap()[0],
    };
    let line = TcpProxy::start(address).await;
    let url = format!("http://{}", line.address());
    let site = match target {
        Target::Cloud => Site::bare(hint, &format!("{url}/api"), KEY, SCHOOL, "").await,
        Target::Storage => {
            let config = format!("[files]\n{}", s3_server::settings(&url));
            Site::bare(hint, &cloud.url, KEY, SCHOOL, &config).await
        }
    };
    site.init().await;
    let sent = write_files(&site, load).await;
    let total: u64 = sent.values().map(|(size, _)| size).sum();
    line.set(Trouble::Line(LINE));
    let daemon = Daemon::of(&site, "store");
    let mut process = daemon.start();
    let (began, mut cuts, mut kills, mut receivers_kills) = (Instant::now(), 0, 0, 0);
    let share = |nth: u32, all: u32| total * u64::from(nth + 1) / u64::from(all + 1);
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let elapsed = began.elapsed();
        assert!(elapsed < load.limit, "{}", daemon.log());
        let bytes = line.passed();
        if kills < load.kills_of_the_replicator && bytes > share(kills, load.kills_of_the_replicator) {
            process.kill();
            process = daemon.start();
            kills += 1;
        }
        if receivers_kills < load.kills_of_the_receiver
            && bytes > share(receivers_kills, load.kills_of_the_receiver)
        {
            receiver.kill();
            receiver.ensure();
            receivers_kills += 1;
        }
        if elapsed > CUT_EVERY * (cuts + 1) {
            line.set(Trouble::Refuse);
            tokio::time::sleep(CUT_FOR).await;
            line.set(Trouble::Line(LINE));
            cuts += 1;
            if all_there(&daemon, load).await {
                break;
            }
        }
    }
    println!(
        "{hint}: {} files, {} MiB, {cuts} cuts, {kills} + {receivers_kills} kills, {:.0} s, sent {:.3} times",
        load.files,
        total / MIB,
        began.elapsed().as_secs_f64(),
        line.passed() as f64 / total as f64
    );
    end(process).await;
    let kept = match target {
        Target::Cloud => cloud.files.join("college/leave_slips"),
        Target::Storage => folder.path().join("school/college/leave_slips"),
    };
    assert_arrived(&cloud, &kept, &sent).await;
    let bytes = line.passed();
    assert!(bytes as f64 <= at_most * total as f64, "sent {bytes} of {total}");
}

async fn all_there(daemon: &Daemon, load: &RoughLoad) -> bool {
    daemon.status().await.is_some_and(|status| {
        status.files.uploaded == load.files as u64 && status.lag.is_some_and(|lag| lag.changes == 0)
    })
}

async fn end(process: Process<'_>) {
    assert!(process.terminate().await.success());
}

/// Writes the files and their rows; the size and the hash of each, by its row.
async fn write_files(site: &Site, load: &RoughLoad) -> BTreeMap<i64, (u64, String)> {
    let mut random = StdRng::seed_from_u64(14);
    site.run("insert into tbl_faculty (faculty_fname) values ('x')")
        .await;
    let mut files = BTreeMap::new();
    for (number, size) in (1..).zip(load.sizes(&mut random)) {
        let mut content = vec![0; size as usize];
        random.fill(&mut content[..]);
        std::fs::write(site.media().join(format!("{number}.jpg")), &content).unwrap();
        files.insert(number, (size, blake3::hash(&content).to_hex().to_string()));
    }
    site.run(&format!(
        "insert into tbl_leave (leave_id, faculty_id, leave_slip_image) \
         select n, 1, n || '.jpg' from generate_series(1, {}) n",
        load.files
    ))
    .await;
    files
}

/// Asserts that each file is there once, whole, and that each row has the URL of its own.
async fn assert_arrived(cloud: &Cloud, kept: &Path, sent: &BTreeMap<i64, (u64, String)>) {
    let mut there: Vec<String> = std::fs::read_dir(kept)
        .unwrap()
        .map(|file| {
            blake3::hash(&std::fs::read(file.unwrap().path()).unwrap())
                .to_hex()
                .to_string()
        })
        .collect();
    let mut expected: Vec<String> = sent.values().map(|(_, hash)| hash.clone()).collect();
    there.sort();
    expected.sort();
    assert!(there == expected, "{} of {} files", there.len(), expected.len());
    let rows = connect(&cloud.database_url)
        .await
        .query("select leave_id, leave_slip_cloud_url from cloud.leaves", &[])
        .await
        .unwrap();
    assert_eq!(rows.len(), sent.len());
    for row in rows {
        let (leave, url): (i64, Option<String>) = (row.get(0), row.get(1));
        let (_, hash) = &sent[&leave];
        assert!(
            url.as_ref().is_some_and(|url| url.contains(&hash[..16])),
            "{leave}: {url:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_arrive_once_over_a_rough_line() {
    arrives("rough", &SHORT, Target::Cloud, 1.3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes ten minutes"]
async fn a_thousand_files_arrive_once_over_a_rough_line() {
    arrives("rough_whole", &WHOLE, Target::Cloud, 1.15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes ten minutes"]
async fn a_thousand_files_arrive_once_in_a_storage_over_a_rough_line() {
    arrives("rough_storage", &WHOLE, Target::Storage, 1.3).await;
}

/// 256 kbit/s, in bytes a second.
const THIN_LINE: u64 = 32_000;

/// How often a thin line is cut: about every tenth request for rows is.
const THIN_CUT_EVERY: Duration = Duration::from_secs(6);

/// Writes a row and waits until the cloud has it; how long that took.
async fn row_arrives(site: &Site, there: &tokio_postgres::Client, number: i64) -> Duration {
    let began = Instant::now();
    site.run(&format!(
        "insert into tbl_faculty (faculty_fname) values ('row {number}')"
    ))
    .await;
    let is_there =
        format!("select exists (select from cloud.faculties where faculty_fname = 'row {number}')");
    crate::support::sql::until_some(there, &is_there).await;
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes five minutes"]
async fn rows_do_not_wait_for_a_video_on_a_thin_line() {
    const ROWS: usize = 400;
    let cloud = Cloud::start("rough_thin").await;
    let line = TcpProxy::start(cloud.address()).await;
    let site = Site::bare(
        "rough_thin",
        &format!("http://{}/api", line.address()),
        KEY,
        SCHOOL,
        "",
    )
    .await;
    site.init().await;
    let daemon = Daemon::of(&site, "store");
    let process = daemon.start();
    line.set(Trouble::Line(THIN_LINE));
    let there = connect(&cloud.database_url).await;
    for number in 0..20 {
        row_arrives(&site, &there, number).await;
    }
    // What a row costs, with what goes on beside it.
    let before = line.passed();
    for number in 20..40 {
        row_arrives(&site, &there, number).await;
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    let per_row = (line.passed() - before) as f64 / 20.0;
    // A video of 5 GB
    let video = std::fs::File::create(site.media().join("long.mp4")).unwrap();
    video.set_len(5_000_000_000).unwrap();
    site.run(
        "insert into tbl_camera (camera_name) values ('c'); \
         insert into tbl_stream_recordings (camera_id, filename, filepath) values (1, 'l', 'long.mp4')",
    )
    .await;
    let is_begun = "select exists (select from cloud_sync.media where upload_url is not null)";
    // It is read as a whole first.
    while !site
        .client
        .query_one(is_begun, &[])
        .await
        .unwrap()
        .get::<_, bool>(0)
    {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (began, passed) = (Instant::now(), line.passed());
    let (mut took, mut cuts) = (Vec::new(), 0);
    for number in 100..100 + ROWS as i64 {
        if began.elapsed() > THIN_CUT_EVERY * (cuts + 1) {
            line.set(Trouble::Refuse);
            tokio::time::sleep(Duration::from_millis(20)).await;
            line.set(Trouble::Line(THIN_LINE));
            cuts += 1;
        }
        took.push(row_arrives(&site, &there, number).await);
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    let all = (line.passed() - passed) as f64;
    let arrived = std::fs::read_dir(cloud.files.join(".incoming")).unwrap();
    let of_video: u64 = arrived.map(|file| file.unwrap().metadata().unwrap().len()).sum();
    took.sort();
    let waste = (all - of_video as f64 - per_row * ROWS as f64) / all;
    println!(
        "{ROWS} rows beside a video, {cuts} cuts, {:.0} s: p50 {:?}, p99 {:?}, worst {:?}; \
         of {all} bytes {:.1} % for nothing; {per_row:.0} bytes a row",
        began.elapsed().as_secs_f64(),
        took[ROWS / 2],
        took[ROWS * 99 / 100],
        took[ROWS - 1],
        waste * 100.0
    );
    assert!(of_video > 0);
    end(process).await;
}
