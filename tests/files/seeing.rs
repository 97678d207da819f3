//! A file that changes is found, whatever tells of it: an event, or the rescan alone.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use super::{FACULTY, LEAVE, slip_url};
use crate::support::counting_proxy::CountingProxy;
use crate::support::process::Daemon;
use crate::support::site::{Cloud, KEY, LIMIT, Running, SCHOOL, Site, connect};

const DAY: Duration = Duration::from_secs(86_400);

/// A site whose files are looked at every second.
async fn site_with_cloud(hint: &str) -> (Cloud, Site) {
    let cloud = Cloud::start(hint).await;
    let mut site = Site::bare(hint, &cloud.url, KEY, SCHOOL, "").await;
    site.reconfigure("settle = \"100ms\"", "settle = \"100ms\"\nrescan = \"1s\"");
    site.init().await;
    site.run(&format!("{FACULTY} ('x', null)")).await;
    (cloud, site)
}

/// What the cloud has of a leave's slip.
async fn slip(cloud: &Cloud, leave: i64) -> Option<Vec<u8>> {
    let url = slip_url(cloud, leave).await?;
    let (_, stored) = url.split_once("/media/")?;
    std::fs::read(cloud.files.join(stored)).ok()
}

async fn until_slip(cloud: &Cloud, leave: i64, content: &[u8], what: &str) {
    let start = Instant::now();
    while slip(cloud, leave).await.as_deref() != Some(content) {
        assert!(start.elapsed() < LIMIT, "{what}: {:?}", slip(cloud, leave).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn write_with_time(path: &Path, content: &str, modified: SystemTime) {
    std::fs::write(path, content).unwrap();
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_modified(modified).unwrap();
}

#[tokio::test]
async fn a_file_that_changed_is_found_by_whatever_tells_of_it() {
    let (cloud, site) = site_with_cloud("seen").await;
    let (media, outside) = (site.media(), site.folder.path().join("outside"));
    let at = |path: &str| media.join(path);
    let long_ago = SystemTime::now() - 30 * DAY;
    for folder in ["swapped", "store", "real", "plain"] {
        std::fs::create_dir(at(folder)).unwrap();
    }
    std::fs::create_dir(&outside).unwrap();
    // Given files that rows name in every way
    for path in [
        "swapped/x",
        "store/v1",
        "real/x",
        "plain/over",
        "plain/renamed",
        "plain/again",
    ] {
        std::fs::write(at(path), "old").unwrap();
    }
    symlink("store/v1", at("current")).unwrap();
    symlink("real", at("alias")).unwrap();
    write_with_time(&at("in-place"), "AAAA", long_ago);
    write_with_time(&at("sixties"), "AAAA", SystemTime::UNIX_EPOCH - 365 * DAY);
    write_with_time(&at("future"), "old", SystemTime::now() + 40 * DAY);
    std::fs::write(outside.join("linked"), "old").unwrap();
    std::fs::hard_link(outside.join("linked"), at("hard")).unwrap();
    let named = [
        "swapped/x",
        "current",
        "alias/x",
        "in-place",
        "sixties",
        "hard",
        "plain/over",
        "plain/renamed",
        "plain/again",
        "future",
    ];
    let running = site.replicate();
    for path in named {
        site.run(&format!("{LEAVE} (1, '{path}')")).await;
    }
    running
        .until("all uploaded", |status| {
            status.files.uploaded == named.len() as u64
        })
        .await;
    running.rows_caught_up().await;
    // When each changes: a folder is swapped, a link's target is written, and so on
    std::fs::create_dir(at("new")).unwrap();
    std::fs::write(at("new/x"), "new swapped/x").unwrap();
    std::fs::rename(at("swapped"), at("swapped.old")).unwrap();
    std::fs::rename(at("new"), at("swapped")).unwrap();
    std::fs::write(at("store/v1"), "new current").unwrap();
    std::fs::write(at("real/x"), "new alias/x").unwrap();
    write_with_time(&at("in-place"), "BBBB", long_ago);
    write_with_time(&at("sixties.new"), "BBBB", SystemTime::UNIX_EPOCH - 100 * DAY);
    std::fs::rename(at("sixties.new"), at("sixties")).unwrap();
    std::fs::write(outside.join("linked"), "new hard").unwrap();
    std::fs::write(at("plain/over"), "new plain/over").unwrap();
    std::fs::write(at("plain/fresh"), "new plain/renamed").unwrap();
    std::fs::rename(at("plain/fresh"), at("plain/renamed")).unwrap();
    std::fs::remove_file(at("plain/again")).unwrap();
    std::fs::write(at("plain/again"), "new plain/again").unwrap();
    write_with_time(&at("future"), "new future", SystemTime::now() + 40 * DAY);
    // Then the cloud gets each as it is now.
    for (leave, path) in (1..).zip(named) {
        let content = match path {
            "in-place" | "sixties" => "BBBB".to_owned(),
            path => format!("new {path}"),
        };
        until_slip(&cloud, leave, content.as_bytes(), path).await;
    }
    running.end().await;
}

#[tokio::test]
async fn a_root_that_comes_late_or_is_replaced_is_watched_and_nothing_is_hashed_again() {
    let (cloud, site) = site_with_cloud("late_root").await;
    std::fs::remove_dir(site.media()).unwrap();
    let running = site.replicate();
    site.run(&format!("{LEAVE} (1, 'a.jpg'), (1, 'b.jpg')")).await;
    running.rows_caught_up().await;
    // Given a root that is not there: nothing is known of its files, and none counts as missing
    running
        .until("both wait", |status| {
            status.files.waiting == 2 && status.files.missing == 0
        })
        .await;
    // When it is made
    std::fs::create_dir(site.media()).unwrap();
    for name in ["a.jpg", "b.jpg"] {
        std::fs::write(site.media().join(name), format!("first {name}")).unwrap();
    }
    running.until("both", |status| status.files.uploaded == 2).await;
    until_slip(&cloud, 1, b"first a.jpg", "late root").await;
    let uploads = |running: &Running| {
        let metrics = cloud_sync::control::Operator::metrics(&*running.replicator);
        let line = metrics
            .lines()
            .find(|line| line.contains("state=\"uploaded\""))
            .unwrap();
        line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    assert_eq!(uploads(&running), 2);
    // or is unmounted, which empties it, and comes back
    let aside = site.folder.path().join("aside");
    std::fs::rename(site.media(), &aside).unwrap();
    std::fs::create_dir(site.media()).unwrap();
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    let status = running.rows_caught_up().await;
    assert_eq!((status.files.uploaded, status.files.missing), (2, 0));
    std::fs::remove_dir(site.media()).unwrap();
    std::fs::rename(&aside, site.media()).unwrap();
    // then what is as it was is not sent again, and what changes now is.
    std::fs::write(site.media().join("b.jpg"), "second b.jpg").unwrap();
    until_slip(&cloud, 2, b"second b.jpg", "root that came back").await;
    assert_eq!(uploads(&running), 3);
    running.end().await;
}

#[tokio::test]
async fn a_content_that_the_cloud_has_is_not_sent_again() {
    let cloud = Cloud::start("content").await;
    let (line, url) = CountingProxy::before(&cloud.url).await;
    let mut site = Site::bare("content", &url, KEY, SCHOOL, "").await;
    site.reconfigure("settle = \"100ms\"", "settle = \"100ms\"\nrescan = \"1s\"");
    site.init().await;
    let content = vec![7; 1 << 20];
    std::fs::write(site.media().join("a.mp4"), &content).unwrap();
    let running = site.replicate();
    site.run("insert into tbl_camera (camera_name) values ('c')")
        .await;
    site.run("insert into tbl_stream_recordings (camera_id, filename, filepath) values (1, 'a', 'a.mp4')")
        .await;
    running
        .until("uploaded", |status| status.files.uploaded == 1)
        .await;
    running.rows_caught_up().await;
    let first = line.all().bytes;
    assert!(first > content.len() as u64);
    // When the file is renamed, and its row with it; when it is copied; when its times change
    std::fs::rename(site.media().join("a.mp4"), site.media().join("b.mp4")).unwrap();
    site.run("update tbl_stream_recordings set filepath = 'b.mp4'")
        .await;
    std::fs::copy(site.media().join("b.mp4"), site.media().join("c.mp4")).unwrap();
    site.run("insert into tbl_stream_recordings (camera_id, filename, filepath) values (1, 'c', 'c.mp4')")
        .await;
    running
        .until("all three", |status| status.files.uploaded == 3)
        .await;
    let touched = std::fs::File::options()
        .write(true)
        .open(site.media().join("b.mp4"))
        .unwrap();
    touched.set_modified(SystemTime::now() - DAY).unwrap();
    drop(touched);
    let stamp = || async {
        let row = site.client.query_one(
            "select modified_us from cloud_sync.media where path = 'b.mp4'",
            &[],
        );
        row.await.unwrap().get::<_, i64>(0)
    };
    let before = stamp().await;
    let start = Instant::now();
    while stamp().await == before {
        assert!(start.elapsed() < LIMIT, "the new times are not seen");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    running.rows_caught_up().await;
    // Then each row has its URL, and no byte of it went again.
    let urls: i64 = connect(&cloud.database_url)
        .await
        .query_one(
            "select count(*) from cloud.stream_recordings where video_cloud_url is not null",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert_eq!(urls, 2);
    let again = line.all().bytes - first;
    assert!(again < content.len() as u64 / 4, "{again}");
    running.end().await;
}

#[tokio::test]
async fn a_file_that_a_program_has_open_is_sent_when_it_is_closed() {
    use std::io::Write;
    let (cloud, site) = site_with_cloud("held").await;
    let running = site.replicate();
    // Given a copy that has its full size at once, stalls, and gets old times in the end
    let path = site.media().join("copy.jpg");
    let mut copy = std::fs::File::create(&path).unwrap();
    copy.set_len(1_000).unwrap();
    copy.set_modified(SystemTime::now() - DAY).unwrap();
    site.run(&format!("{LEAVE} (1, 'copy.jpg')")).await;
    // When it is looked at
    let start = Instant::now();
    let why = || async {
        let row = site.client.query_opt("select error from cloud_sync.media", &[]);
        row.await.unwrap().and_then(|row| row.get::<_, Option<String>>(0))
    };
    while !why().await.is_some_and(|why| why.contains("open for writing")) {
        assert!(start.elapsed() < LIMIT, "{:?}", why().await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(slip(&cloud, 1).await, None);
    // Then it waits until it is closed.
    copy.write_all(&[9; 1_000]).unwrap();
    copy.set_modified(SystemTime::now() - DAY).unwrap();
    drop(copy);
    until_slip(&cloud, 1, &[9; 1_000], "closed").await;
    running.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_watches_are_used_up_is_said_when_it_happens() {
    let (_cloud, site) = site_with_cloud("watches").await;
    let limited = "echo 4 > /proc/sys/user/max_inotify_watches";
    let unshare = |script: &str| {
        let mut command = std::process::Command::new("unshare");
        command.args(["--user", "--map-root-user", "sh", "-c", script]);
        command
    };
    if !unshare(limited)
        .output()
        .is_ok_and(|output| output.status.success())
    {
        println!("skipped: this system lets no user have limits of its own (unshare --user)");
        return;
    }
    // Given a program whose user may watch few folders
    let daemon = Daemon::of(&site, "store");
    let process = daemon.start_under(&[], |command| {
        let mut limited = unshare(&format!("{limited}; exec \"$0\" \"$@\""));
        limited.arg(command.get_program()).args(command.get_args());
        limited
            .current_dir(command.get_current_dir().unwrap())
            .env_clear();
        let log = || {
            std::fs::File::options()
                .append(true)
                .open(site.folder.path().join("store.log"))
        };
        limited.stdout(log().unwrap()).stderr(log().unwrap());
        *command = limited;
    });
    let status = daemon.caught_up().await;
    assert_eq!(status.files.watch_problem, None);
    // When there are more, then it says so.
    for number in 0..8 {
        std::fs::create_dir(site.media().join(number.to_string())).unwrap();
    }
    daemon
        .until("the problem", LIMIT, |status| {
            let problem = status.files.watch_problem.as_deref();
            problem.is_some_and(|problem| problem.contains("max_user_watches"))
        })
        .await;
    assert!(process.terminate().await.success());
}
