//! The file lane: real files, a real watcher, the real receiver.

mod kept;
mod known;
mod names;
mod resume;
mod rough_line;
mod seeing;
mod signed_urls;
mod states;
mod storage;

use std::io::Write;
use std::time::{Duration, Instant};

use crate::support::baseline::{self, BaselineServer};
use crate::support::counting_proxy::CountingProxy;
use crate::support::fault::Fault;
use crate::support::site::{Cloud, KEY, LIMIT, Site, connect};

async fn slip_url(cloud: &Cloud, leave: i64) -> Option<String> {
    connect(&cloud.database_url)
        .await
        .query_opt(
            "select leave_slip_cloud_url from cloud.leaves where leave_id = $1",
            &[&leave],
        )
        .await
        .unwrap()
        .and_then(|row| row.get(0))
}

const FACULTY: &str = "insert into tbl_faculty (faculty_fname, faculty_images) values ";
const LEAVE: &str = "insert into tbl_leave (faculty_id, leave_slip_image) values ";

#[tokio::test]
async fn files_arrive_once_and_their_rows_get_urls() {
    let (cloud, site) = Site::school_with_cloud("files").await;
    let media = site.media();
    std::fs::create_dir_all(media.join("photos")).unwrap();
    for name in ["a.jpg", "b.jpg"] {
        std::fs::write(media.join("photos").join(name), format!("photo {name}")).unwrap();
    }
    let replicator = site.replicate();
    // a JSON array of paths, one of them in another spelling
    site.run(&format!(
        "{FACULTY} ('x', '[\"photos/a.jpg\", \"./photos//b.jpg\"]')"
    ))
    .await;
    // a row before its file: it does not wait for it
    site.run(&format!("{LEAVE} (1, 'slips/late.jpg')")).await;
    replicator
        .until("one file missing, and nothing waiting for it", |status| {
            status.files.missing == 1
                && status.files.uploaded == 2
                && status.lag.is_some_and(|lag| lag.changes == 0)
        })
        .await;
    assert_eq!(slip_url(&cloud, 1).await, None);
    // and its file later, in a folder that is new
    std::fs::create_dir_all(media.join("slips")).unwrap();
    std::fs::write(media.join("slips/late.jpg"), "slip").unwrap();
    // a file that grows for a while before it is finished
    site.run("insert into tbl_camera (camera_name) values ('c')")
        .await;
    let mut growing = std::fs::File::create(media.join("growing.mp4")).unwrap();
    site.run(
        "insert into tbl_stream_recordings (camera_id, filename, filepath) values (1, 'g', 'growing.mp4')",
    )
    .await;
    for piece in 0..10 {
        writeln!(growing, "piece {piece}").unwrap();
        growing.sync_data().unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(growing);
    // The watcher may have seen the new folder too late: a sync looks for what is missing.
    replicator
        .replicator
        .sync(&Default::default(), &cloud_sync::reconcile::NoObserver)
        .await
        .unwrap();
    replicator
        .until("all files uploaded", |status| status.files.uploaded == 4)
        .await;
    replicator.caught_up().await;
    let report = site.compare(&cloud).await;
    assert!(report.equal, "{report}");
    let files: u64 = report.entities.iter().map(|entity| entity.files_verified).sum();
    assert_eq!(files, 4, "{report}");
    assert!(slip_url(&cloud, 1).await.is_some());
    let urls: String = connect(&cloud.database_url)
        .await
        .query_one("select cloud_image_urls::text from cloud.faculties", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(serde_json::from_str::<Vec<String>>(&urls).unwrap().len(), 2);
    // A restart uploads nothing again.
    replicator.end().await;
    let again = site.replicate();
    site.run("update tbl_leave set leave_reason = 'changed'").await;
    let status = again.caught_up().await;
    assert_eq!(status.files.uploaded, 4);
    assert!(
        cloud_sync::control::Operator::metrics(&*again.replicator)
            .contains("cloud_sync_files_total{state=\"uploaded\"} 0")
    );
    assert!(slip_url(&cloud, 1).await.is_some(), "an update keeps the URL");
    // A file that changes is uploaded again.
    let before = slip_url(&cloud, 1).await;
    std::fs::write(media.join("slips/late.jpg"), "a better scan").unwrap();
    again.until("the new slip", |_| true).await;
    tokio::time::timeout(LIMIT, async {
        while slip_url(&cloud, 1).await == before {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .expect("the changed slip arrives");
    again.caught_up().await;
    assert!(site.compare(&cloud).await.equal);
    again.end().await;
}

#[tokio::test]
async fn paths_outside_the_root_and_empty_files_are_never_sent() {
    let (cloud, site) = Site::school_with_cloud("outside").await;
    std::fs::write(site.folder.path().join("secret"), "secret").unwrap();
    std::fs::write(site.media().join("empty.jpg"), "").unwrap();
    std::os::unix::fs::symlink(site.folder.path().join("secret"), site.media().join("link.jpg")).unwrap();
    let replicator = site.replicate();
    site.run(&format!(
        "{FACULTY} ('x', null); {LEAVE} (1, '../secret'), (1, '/etc/passwd'), (1, 'link.jpg'), (1, \
         'empty.jpg'), (1, ''), (1, null)"
    ))
    .await;
    let status = replicator
        .until("three refused, one waiting", |status| {
            status.files.failed == 3 && status.files.waiting == 1
        })
        .await;
    assert_eq!(status.files.uploaded, 0);
    let stored = connect(&cloud.database_url).await;
    let leaves: i64 = stored
        .query_one("select count(*) from cloud.leaves", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(leaves, 6, "the rows themselves arrive");
    let files: i64 = stored
        .query_one("select count(*) from cloud_meta.files", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(files, 0);
    replicator.end().await;
}

#[tokio::test]
async fn small_files_go_side_by_side_and_large_ones_one_after_another() {
    let catalogue = cloud_sync::catalogue::Catalogue::builtin();
    let server = BaselineServer::start(&catalogue, &[]).await;
    let site = Site::school("lanes", &server.url(), baseline::KEY).await;
    for number in 1..=40 {
        std::fs::write(
            site.media().join(format!("{number}.jpg")),
            format!("slip {number}"),
        )
        .unwrap();
    }
    for number in 41..=42 {
        let large = std::fs::File::create(site.media().join(format!("{number}.jpg"))).unwrap();
        large.set_len(8 << 20).unwrap();
    }
    // Given a cloud that answers no upload
    for directory in ["passes", "leave_slips"] {
        server.fault(Fault::stall().on(&format!("upload/{directory}")));
    }
    let uploads = |server: &BaselineServer| {
        let requests = server.requests();
        let uploads = requests
            .iter()
            .filter(|request| request.path.starts_with("upload/"));
        let large = uploads.clone().filter(|request| request.body.len() > 8 << 20);
        (uploads.count(), large.count())
    };
    let replicator = site.replicate();
    site.run(&format!("{FACULTY} ('x', null)")).await;
    site.run(
        &format!("{LEAVE} select 1, n || '.jpg' from generate_series(1, 42) n").replace(" values ", " "),
    )
    .await;
    // When as many as possible are being uploaded
    server
        .wait_until("uploads", |server| uploads(server) == (13, 1))
        .await;
    // Then rows go on, and no more files do;
    site.run("update tbl_faculty set faculty_lname = 'y'").await;
    server
        .wait_until("the faculty as it is now", |server| {
            let faculty = server.row("faculties", "1");
            faculty.is_some_and(|row| row["faculty_lname"] == "y")
        })
        .await;
    assert_eq!(uploads(&server), (13, 1));
    replicator.end().await;
    // and when it answers again, each is uploaded, and its row sent once more, with its URL.
    server.clear_faults();
    server.forget_requests();
    let again = site.replicate();
    again
        .until("all uploaded", |status| status.files.uploaded == 42)
        .await;
    again.caught_up().await;
    assert_eq!(uploads(&server), (42, 2));
    let leaves = server.rows("leaves");
    assert_eq!(leaves.len(), 42);
    assert!(
        leaves
            .iter()
            .all(|leave| leave["leave_slip_cloud_url"].is_string())
    );
    let posts = server
        .calls()
        .iter()
        .filter(|call| *call == "POST leaves")
        .count();
    assert_eq!(posts, 42);
    again.end().await;
}

#[tokio::test]
async fn a_large_file_arrives_whole_in_one_upload_and_again_when_it_changes() {
    let cloud = Cloud::start("large").await;
    let (line, url) = CountingProxy::before(&cloud.url).await;
    let site = Site::school("large", &url, KEY).await;
    // Given a file that is so long that its begin is on the receiver's disk before its end has come
    let put = |salt: u64| -> Vec<u8> {
        let words = 0..(40 << 20) / 8 + 1_u64;
        let content: Vec<u8> = words
            .flat_map(|at| (at ^ salt).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes())
            .collect();
        let elsewhere = site.folder.path().join("long.mp4");
        std::fs::write(&elsewhere, &content).unwrap();
        std::fs::rename(&elsewhere, site.media().join("long.mp4")).unwrap();
        content
    };
    let mut content = put(0);
    let replicator = site.replicate();
    site.run("insert into tbl_camera (camera_name) values ('c')")
        .await;
    site.run("insert into tbl_stream_recordings (camera_id, filename, filepath) values (1, 'l', 'long.mp4')")
        .await;
    for (nth, salt) in [(1, 0), (2, 7)] {
        if salt > 0 {
            content = put(salt);
        }
        // When it is uploaded
        let start = Instant::now();
        let stored = loop {
            let files = std::fs::read_dir(cloud.files.join("college/stream_recordings"));
            let files: Vec<_> = files.into_iter().flatten().flatten().collect();
            if files.len() == nth {
                break files;
            }
            assert!(start.elapsed() < LIMIT, "not uploaded");
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        // Then it is there, every byte of it,
        assert!(
            stored
                .iter()
                .any(|file| std::fs::read(file.path()).unwrap() == content)
        );
        // and its row has its URL.
        replicator
            .until("uploaded", |status| status.files.uploaded == 1)
            .await;
        replicator.caught_up().await;
        let report = site.compare(&cloud).await;
        assert!(report.equal, "{report}");
    }
    replicator.end().await;
    // And nothing of it went twice.
    let sent = line.all().bytes as usize;
    assert!(
        (2 * content.len()..2 * content.len() + (1 << 20)).contains(&sent),
        "{sent}"
    );
}

#[tokio::test]
async fn a_file_whose_hash_the_cloud_could_confirm_and_did_not_does_not_count() {
    let catalogue = cloud_sync::catalogue::Catalogue::builtin();
    let server = BaselineServer::start(&catalogue, &[]).await;
    let site = Site::school("unconfirmed", &server.url(), baseline::KEY).await;
    let replicator = site.replicate();
    site.run(&format!("{FACULTY} ('x', null); {LEAVE} (1, 'late.jpg')"))
        .await;
    replicator
        .until("one file missing", |status| status.files.missing == 1)
        .await;
    replicator.caught_up().await;
    replicator.end().await;
    // Given a cloud that says that it can more than it does
    server.set_capabilities(&["changes"]);
    // When it takes a file, and answers no hash
    std::fs::write(site.media().join("late.jpg"), "slip").unwrap();
    let again = site.replicate();
    let start = Instant::now();
    loop {
        let why: Option<String> = site
            .client
            .query_one("select error from cloud_sync.media", &[])
            .await
            .unwrap()
            .get(0);
        if why.is_some_and(|why| why.contains("did not confirm")) {
            break;
        }
        assert!(start.elapsed() < LIMIT, "not uploaded");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Then the file waits, and its row has no URL.
    assert_eq!(server.files().len(), 1);
    let state: String = site
        .client
        .query_one("select state from cloud_sync.media where url is null", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(state, "waiting");
    again.end().await;
}
