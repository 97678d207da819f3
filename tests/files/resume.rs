//! A large file goes in parts, and goes on where it was: whatever is killed, lost or restarted in between.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::http::Method;

use crate::support::counting_proxy::CountingProxy;
use crate::support::fault::Fault;
use crate::support::fault_proxy::FaultProxy;
use crate::support::process::Daemon;
use crate::support::s3_server;
use crate::support::site::{Cloud, KEY, LIMIT, SCHOOL, Site, connect};
use crate::support::sql::until_some;
use crate::support::tcp_proxy::{TcpProxy, Trouble};

const MIB: u64 = 1024 * 1024;

/// Long enough that a part of it is on its way when something happens.
const SIZE: u64 = 48 * MIB;

/// A site with one large file, and a slow line to its cloud.
struct SlowSite {
    cloud: Cloud,
    site: Site,
    /// Counts what the site sends.
    line: CountingProxy,
    slow: TcpProxy,
}

impl SlowSite {
    async fn new(hint: &str) -> Self {
        let cloud = Cloud::start(hint).await;
        let slow = TcpProxy::start(cloud.address()).await;
        let (line, url) = CountingProxy::before(&slow.url()).await;
        Self::with_line(hint, cloud, &url, "", slow, line).await
    }

    /// The same, whose files go into an object storage over the slow line.
    async fn with_storage(hint: &str, folder: &Path) -> Self {
        std::fs::create_dir(folder.join("school")).unwrap();
        let endpoint: url::Url = s3_server::serve(folder).await.parse().unwrap();
        let slow = TcpProxy::start(endpoint.socket_addrs(|| None).unwrap()[0]).await;
        let (line, url) = CountingProxy::before(&format!("http://{}", slow.address())).await;
        let files = format!("[files]\n{}", s3_server::settings(url.trim_end_matches('/')));
        let cloud = Cloud::start(hint).await;
        let api = cloud.url.clone();
        Self::with_line(hint, cloud, &api, &files, slow, line).await
    }

    async fn with_line(
        hint: &str,
        cloud: Cloud,
        url: &str,
        config: &str,
        slow: TcpProxy,
        line: CountingProxy,
    ) -> Self {
        let mut site = Site::bare(hint, url, KEY, SCHOOL, config).await;
        site.reconfigure("settle = \"100ms\"", "settle = \"100ms\"\nrescan = \"1s\"");
        site.init().await;
        // About 10 MiB a second.
        slow.set(Trouble::Slow(64 * 1024, Duration::from_millis(5)));
        let this = Self {
            cloud,
            site,
            line,
            slow,
        };
        this.write(0);
        this.site
            .run("insert into tbl_camera (camera_name) values ('c')")
            .await;
        this.site
            .run("insert into tbl_stream_recordings (camera_id, filename, filepath) values (1, 'l', 'long.mp4')")
            .await;
        this
    }

    /// What the file holds, by a number.
    fn content(salt: u64) -> Vec<u8> {
        let words = 0..SIZE / 8;
        words
            .flat_map(|at| (at ^ salt).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes())
            .collect()
    }

    fn write(&self, salt: u64) {
        self.put(&Self::content(salt));
    }

    fn put(&self, content: &[u8]) {
        let elsewhere = self.site.folder.path().join("long.mp4");
        std::fs::write(&elsewhere, content).unwrap();
        std::fs::rename(&elsewhere, self.site.media().join("long.mp4")).unwrap();
    }

    async fn until_sent(&self, bytes: u64) {
        let start = Instant::now();
        while self.line.all().bytes < bytes || self.noted().await.is_none() {
            if start.elapsed() > LIMIT {
                let log = std::fs::read_to_string(self.site.folder.path().join("store.log"));
                panic!(
                    "{} {:?} {}",
                    self.line.all().bytes,
                    self.noted().await,
                    log.unwrap_or_default()
                );
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// What is noted of the upload that is in progress: its address and its offset.
    async fn noted(&self) -> Option<(String, i64)> {
        let noted = "select upload_url, upload_offset from cloud_sync.media where upload_url is not null";
        let row = self.site.client.query_opt(noted, &[]).await.unwrap()?;
        Some((row.get(0), row.get(1)))
    }

    /// Waits until the file is there, and asserts that the cloud has this content and no other one, that the
    /// row has its URL, and that no upload is left.
    async fn until_there(&self, daemon: &Daemon, salt: u64) {
        Self::until_uploaded(daemon).await;
        let stored = std::fs::read_dir(self.cloud.files.join("college/stream_recordings")).unwrap();
        let stored: Vec<_> = stored
            .map(|file| std::fs::read(file.unwrap().path()).unwrap())
            .collect();
        assert!(stored == [Self::content(salt)]);
        let client = connect(&self.cloud.database_url).await;
        let url = "select video_cloud_url from cloud.stream_recordings";
        let url: Option<String> = client.query_one(url, &[]).await.unwrap().get(0);
        let hash = blake3::hash(&Self::content(salt)).to_hex();
        assert!(url.is_some_and(|url| url.contains(&hash[..16])));
        assert_eq!(self.noted().await, None);
        let left = "select count(*) from cloud_meta.uploads where stored is null";
        assert_eq!(client.query_one(left, &[]).await.unwrap().get::<_, i64>(0), 0);
    }

    async fn until_uploaded(daemon: &Daemon) {
        daemon
            .until("uploaded", LIMIT, |status| {
                status.files.uploaded == 1
                    && status.files.waiting == 0
                    && status.lag.is_some_and(|lag| lag.changes == 0)
            })
            .await;
    }

    /// Asserts that what has arrived was not sent again.
    fn assert_sent_once(&self) {
        let sent = self.line.all().bytes;
        println!("sent {:.3} times", sent as f64 / SIZE as f64);
        assert!(sent as f64 <= 1.15 * SIZE as f64, "{sent} of {SIZE}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_upload_goes_on_where_it_was_whatever_became_of_the_store() {
    for (hint, loses_store) in [("resume_kill", false), ("resume_store", true)] {
        let slow = SlowSite::new(hint).await;
        let daemon = Daemon::of(&slow.site, "store");
        let process = daemon.start();
        slow.until_sent(SIZE / 2).await;
        // The commands show how far it is,
        let why = daemon.ask(&["files", "why", "long.mp4", "--json"]);
        let why: serde_json::Value = serde_json::from_slice(&why.stdout).unwrap();
        let upload = &why["upload"];
        assert_eq!(upload["bytes_total"], SIZE, "{why}");
        let (sent, percent) = (upload["bytes_sent"].as_u64(), upload["percent"].as_f64());
        assert!(sent.is_some_and(|sent| (4 * MIB..SIZE).contains(&sent)), "{why}");
        assert!(
            percent.is_some_and(|percent| (8.0..100.0).contains(&percent)),
            "{why}"
        );
        assert!(
            upload["bytes_per_second"].as_u64().is_some_and(|rate| rate > 0),
            "{why}"
        );
        assert!(upload["seconds_left"].as_f64().is_some(), "{why}");
        let list = daemon.ask(&["files", "list"]);
        let list = String::from_utf8_lossy(&list.stdout).into_owned();
        assert!(list.contains("% is there") && list.contains("/s, "), "{list}");
        // and when it is killed,
        process.kill();
        if loses_store {
            std::fs::remove_dir_all(daemon.checkpoint()).unwrap();
        }
        let (address, _) = slow.noted().await.unwrap();
        let why = daemon.ask(&["files", "why", "long.mp4"]);
        let why = String::from_utf8_lossy(&why.stdout).into_owned();
        assert!(why.contains("goes on from where it is"), "{why}");
        // the next one goes on.
        let process = daemon.start();
        slow.until_sent(SIZE / 2 + 4 * MIB).await;
        assert_eq!(slow.noted().await.unwrap().0, address);
        slow.until_there(&daemon, 0).await;
        slow.assert_sent_once();
        assert!(process.terminate().await.success(), "{}", daemon.log());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_goes_on_with_an_upload() {
    let slow = SlowSite::new("resume_standby").await;
    let (first, second) = (Daemon::of(&slow.site, "one"), Daemon::of(&slow.site, "two"));
    let process = first.start();
    slow.until_sent(SIZE / 2).await;
    let standby = second.start();
    let (address, _) = slow.noted().await.unwrap();
    process.kill();
    slow.until_sent(SIZE / 2 + 4 * MIB).await;
    assert_eq!(slow.noted().await.unwrap().0, address);
    slow.until_there(&second, 0).await;
    slow.assert_sent_once();
    assert!(standby.terminate().await.success(), "{}", second.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_changes_amid_its_upload_begins_again() {
    let slow = SlowSite::new("resume_changed").await;
    let daemon = Daemon::of(&slow.site, "store");
    let newer = SlowSite::content(1);
    // While it is sent,
    let process = daemon.start();
    slow.until_sent(SIZE / 4).await;
    slow.put(&newer);
    slow.until_sent(slow.line.all().bytes + SIZE / 4).await;
    // and while nothing runs.
    process.kill();
    let (address, _) = slow.noted().await.unwrap();
    slow.write(2);
    let process = daemon.start();
    slow.until_there(&daemon, 2).await;
    // The upload that is of no use is not left in the cloud.
    let client = connect(&slow.cloud.database_url).await;
    let id = address.rsplit('/').next().unwrap();
    let left = client
        .query_one("select count(*) from cloud_meta.uploads where id = $1", &[&id])
        .await
        .unwrap();
    assert_eq!(left.get::<_, i64>(0), 0);
    assert!(process.terminate().await.success(), "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_the_cloud_forgot_begins_again() {
    let slow = SlowSite::new("resume_forgotten").await;
    let daemon = Daemon::of(&slow.site, "store");
    let process = daemon.start();
    slow.until_sent(SIZE / 4).await;
    process.kill();
    // Given a cloud whose unfinished uploads have expired
    connect(&slow.cloud.database_url)
        .await
        .batch_execute("delete from cloud_meta.uploads")
        .await
        .unwrap();
    for file in std::fs::read_dir(slow.cloud.files.join(".incoming")).unwrap() {
        std::fs::remove_file(file.unwrap().path()).unwrap();
    }
    // Then the file goes from its beginning, once.
    let before = slow.line.all().bytes;
    let process = daemon.start();
    slow.until_there(&daemon, 0).await;
    let sent = slow.line.all().bytes - before;
    assert!(sent as f64 <= 1.15 * SIZE as f64, "{sent}");
    assert!(process.terminate().await.success(), "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_outlasts_a_restart_of_the_cloud() {
    let mut slow = SlowSite::new("resume_receiver").await;
    let daemon = Daemon::of(&slow.site, "store");
    let process = daemon.start();
    slow.until_sent(SIZE / 2).await;
    slow.cloud.away().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    slow.cloud.back().await;
    let target: SocketAddr = slow.cloud.address();
    slow.slow.retarget(target);
    slow.until_there(&daemon, 0).await;
    slow.assert_sent_once();
    assert!(process.terminate().await.success(), "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_for_which_the_cloud_has_no_space_leaves_it_to_others() {
    let cloud = Cloud::start("resume_space").await;
    let fault_proxy = FaultProxy::before(&cloud.url).await;
    let site = Site::school("resume_space", &fault_proxy.url(), KEY).await;
    std::fs::write(site.media().join("a.mp4"), vec![1; 6 * MIB as usize]).unwrap();
    // Given a cloud that takes the first part, and has no space for the second one
    let full = Arc::new(AtomicUsize::new(0));
    fault_proxy.fault(Fault::status(507).on("files").method(Method::PATCH).when({
        let full = full.clone();
        move |_| full.fetch_add(1, Ordering::Relaxed) > 0
    }));
    let running = site.replicate();
    site.run("insert into tbl_camera (camera_name) values ('c')")
        .await;
    site.run("insert into tbl_stream_recordings (camera_id, filename, filepath) values (1, 'a', 'a.mp4')")
        .await;
    // Then what has arrived is removed there.
    running.until("it fails", |status| status.files.failed == 1).await;
    assert!(full.load(Ordering::Relaxed) >= 2);
    let uploads = "select count(*) from cloud_meta.uploads";
    let row = connect(&cloud.database_url).await.query_one(uploads, &[]).await;
    assert_eq!(row.unwrap().get::<_, i64>(0), 0);
    let noted = "select count(*) from cloud_sync.media where upload_url is not null";
    let row = site.client.query_one(noted, &[]).await;
    assert_eq!(row.unwrap().get::<_, i64>(0), 0);
    running.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_gets_no_further_begins_again() {
    let cloud = Cloud::start("resume_stuck").await;
    let fault_proxy = FaultProxy::before(&cloud.url).await;
    let site = Site::school("resume_stuck", &fault_proxy.url(), KEY).await;
    std::fs::write(site.media().join("a.mp4"), vec![1; 6 * MIB as usize]).unwrap();
    site.run("insert into tbl_camera (camera_name) values ('c')")
        .await;
    site.run("insert into tbl_stream_recordings (camera_id, filename, filepath) values (1, 'a', 'a.mp4')")
        .await;
    // Given a cloud that has the first part of an upload, and fails to go on with that one
    let parts = AtomicUsize::new(0);
    let later = Fault::status(500).on("files").method(Method::PATCH);
    fault_proxy.fault(later.when(move |_| parts.fetch_add(1, Ordering::Relaxed) > 0));
    let daemon = Daemon::of(&site, "store");
    let client = connect(&site.database_url).await;
    for failed in 1..=3 {
        let process = daemon.start();
        let attempts = format!("select bool_and(attempts >= {failed}) from cloud_sync.media");
        until_some(&client, &attempts).await;
        if failed == 1 {
            let noted = client
                .query_one("select upload_url from cloud_sync.media", &[])
                .await;
            let address: url::Url = noted.unwrap().get::<_, String>(0).parse().unwrap();
            let path = address.path().trim_start_matches("/api/").to_owned();
            fault_proxy.clear_faults();
            fault_proxy.fault(Fault::status(500).on(&path).method(Method::PATCH));
        }
        process.kill();
    }
    // Then it begins again.
    let process = daemon.start();
    daemon
        .until("uploaded", LIMIT, |status| status.files.uploaded == 1)
        .await;
    let uploads = "select count(*) from cloud_meta.uploads where stored is null";
    let row = connect(&cloud.database_url).await.query_one(uploads, &[]).await;
    assert_eq!(row.unwrap().get::<_, i64>(0), 0);
    assert!(process.terminate().await.success(), "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_file_goes_in_one_request() {
    let (cloud, site) = Site::school_with_cloud("resume_small").await;
    std::fs::write(site.media().join("a.mp4"), vec![1; MIB as usize - 1]).unwrap();
    let running = site.replicate();
    site.run("insert into tbl_camera (camera_name) values ('c')")
        .await;
    site.run("insert into tbl_stream_recordings (camera_id, filename, filepath) values (1, 'a', 'a.mp4')")
        .await;
    running
        .until("uploaded", |status| status.files.uploaded == 1)
        .await;
    let uploads = "select count(*) from cloud_meta.uploads";
    let row = connect(&cloud.database_url).await.query_one(uploads, &[]).await;
    assert_eq!(row.unwrap().get::<_, i64>(0), 0);
    running.end().await;
}

/// The names below a folder of a server of S3: the objects' and those of parts.
fn names_below(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        match entry.path().is_dir() {
            true => names.extend(names_below(&entry.path())),
            false => names.push(entry.file_name().to_string_lossy().into_owned()),
        }
    }
    names
}

fn parts_below(folder: &Path) -> usize {
    let names = names_below(folder);
    names.iter().filter(|name| name.contains(".part-")).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_into_a_storage_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let slow = SlowSite::with_storage("resume_s3", folder.path()).await;
    slow.slow.set(Trouble::Slow(32 * 1024, Duration::from_millis(5)));
    let daemon = Daemon::of(&slow.site, "store");
    let process = daemon.start();
    slow.until_sent(SIZE / 2).await;
    // When the line is cut for a while, and the program killed, and its store lost,
    slow.slow.set(Trouble::Refuse);
    tokio::time::sleep(Duration::from_secs(3)).await;
    slow.slow.set(Trouble::Slow(32 * 1024, Duration::from_millis(5)));
    slow.until_sent(SIZE * 3 / 4).await;
    process.kill();
    std::fs::remove_dir_all(daemon.checkpoint()).unwrap();
    let (address, _) = slow.noted().await.unwrap();
    let process = daemon.start();
    slow.until_sent(SIZE * 3 / 4 + 6 * MIB).await;
    assert_eq!(slow.noted().await.unwrap().0, address);
    // then the file is there, whole, and no part was sent again that had arrived and was noted.
    SlowSite::until_uploaded(&daemon).await;
    let hash = blake3::hash(&SlowSite::content(0)).to_hex();
    let object = format!("school/college/stream_recordings/{hash}.mp4");
    assert!(std::fs::read(folder.path().join(object)).unwrap() == SlowSite::content(0));
    assert_eq!(slow.noted().await, None);
    assert_eq!(parts_below(folder.path()), 0);
    let sent = slow.slow.passed();
    println!("sent {:.3} times", sent as f64 / SIZE as f64);
    // Two parts were on their way when the line was cut, and two when the program was killed.
    assert!(sent <= SIZE + 4 * 5 * MIB + MIB, "{sent} of {SIZE}");
    assert!(process.terminate().await.success(), "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_in_a_storage_that_are_of_no_use_are_removed_and_those_that_are_gone_sent_again() {
    let folder = tempfile::tempdir().unwrap();
    let slow = SlowSite::with_storage("resume_s3_changed", folder.path()).await;
    let daemon = Daemon::of(&slow.site, "store");
    let process = daemon.start();
    slow.until_sent(SIZE / 2).await;
    process.kill();
    let (address, _) = slow.noted().await.unwrap();
    assert!(parts_below(folder.path()) > 0);
    // Given a file that was written since, and a storage that then loses its upload
    slow.write(1);
    let process = daemon.start();
    while slow
        .noted()
        .await
        .is_none_or(|noted| noted.0 == address || noted.1 == 0)
    {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    process.kill();
    let number = address.rsplit('=').next().unwrap();
    let names = names_below(folder.path());
    assert!(!names.iter().any(|name| name.contains(number)), "{names:?}");
    let (address, _) = slow.noted().await.unwrap();
    let lost = address.rsplit('=').next().unwrap();
    for name in names.iter().filter(|name| name.contains(lost)) {
        std::fs::remove_file(folder.path().join(name)).unwrap();
    }
    // Then the file goes from its beginning, as it is now.
    let process = daemon.start();
    SlowSite::until_uploaded(&daemon).await;
    let hash = blake3::hash(&SlowSite::content(1)).to_hex();
    let object = format!("school/college/stream_recordings/{hash}.mp4");
    assert!(std::fs::read(folder.path().join(object)).unwrap() == SlowSite::content(1));
    assert_eq!(parts_below(folder.path()), 0);
    assert!(process.terminate().await.success(), "{}", daemon.log());
}
