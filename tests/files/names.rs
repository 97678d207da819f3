//! Odd names and odd files: each has its outcome.

use std::os::unix::fs::symlink;

use super::{FACULTY, LEAVE, slip_url};
use crate::support::site::{SCHOOL, Site};

/// A row of `cloud_sync.media`: its state and its reason.
async fn record(site: &Site, path: &str) -> (String, String) {
    let row = site
        .client
        .query_one(
            "select state, coalesce(error, '') from cloud_sync.media where path = $1",
            &[&path],
        )
        .await
        .unwrap();
    (row.get(0), row.get(1))
}

async fn name_slips(site: &Site, paths: &[&str]) {
    for path in paths {
        site.client
            .execute(
                "insert into tbl_leave (faculty_id, leave_slip_image) values (1, $1)",
                &[path],
            )
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn files_of_every_name_arrive() {
    let (cloud, mut site) = Site::captured("names", SCHOOL, "").await;
    site.reconfigure(
        "settle = \"100ms\"",
        "settle = \"100ms\"\nstrip_prefix = \"/storage\"",
    );
    let media = site.media();
    let longest = format!("{}.jpg", "n".repeat(251));
    let names = [
        "with space.jpg",
        "quote\"s'.jpg",
        "line\nfeed.jpg",
        "100%2F.jpg",
        "trail.jpg",
        "trail.jpg ",
        " lead.jpg",
        "-dash.jpg",
        "caf\u{e9}.jpg",
        "cafe\u{301}-decomposed.jpg",
        "ends in dot.",
        "no ending",
        &longest,
    ];
    for name in names {
        std::fs::write(media.join(name), format!("content of {name}")).unwrap();
    }
    std::fs::create_dir(media.join("deep")).unwrap();
    std::fs::write(media.join("deep/a.jpg"), "content of a").unwrap();
    std::fs::write(media.join("my slip.jpg"), "content of my slip").unwrap();
    let sparse = std::fs::File::create(media.join("sparse.jpg")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    drop(sparse);
    site.run(&format!("{FACULTY} ('x', null)")).await;
    name_slips(&site, &names).await;
    // and what programs write for a path
    let real = media.join("deep/a.jpg").display().to_string();
    let forms = [
        "/storage/deep/a.jpg",
        "deep\\a.jpg",
        "my%20slip.jpg",
        &real,
        "sparse.jpg",
    ];
    name_slips(&site, &forms).await;
    let running = site.replicate();
    let all = (names.len() + forms.len()) as u64;
    running
        .until("all uploaded", |status| status.files.uploaded == all)
        .await;
    running.rows_caught_up().await;
    for (leave, name) in (1..).zip(names) {
        let url = slip_url(&cloud, leave).await.unwrap();
        let (_, stored) = url.split_once("/media/").unwrap();
        let content = std::fs::read_to_string(cloud.files.join(stored)).unwrap();
        assert_eq!(content, format!("content of {name}"), "{name:?}");
    }
    for leave in names.len() + 1..=names.len() + forms.len() {
        assert!(slip_url(&cloud, leave as i64).await.is_some(), "{leave}");
    }
    running.end().await;
}

#[tokio::test]
async fn what_is_no_file_is_said_and_never_sent() {
    let (cloud, site) = Site::captured("no_files", SCHOOL, "").await;
    let media = site.media();
    std::fs::write(site.folder.path().join("secret"), "secret").unwrap();
    symlink(site.folder.path().join("secret"), media.join("out.jpg")).unwrap();
    symlink("loop.jpg", media.join("loop.jpg")).unwrap();
    std::fs::create_dir(media.join("folder.jpg")).unwrap();
    let made = std::process::Command::new("mkfifo")
        .arg(media.join("pipe.jpg"))
        .status();
    assert!(made.unwrap().success());
    std::fs::write(media.join("empty.jpg"), "").unwrap();
    site.run(&format!("{FACULTY} ('x', null)")).await;
    let expected = [
        ("out.jpg", "refused", "outside"),
        ("../secret", "refused", "outside"),
        ("/etc/passwd", "refused", "outside"),
        ("loop.jpg", "missing", "symbolic links"),
        ("folder.jpg", "refused", "not a regular file"),
        ("pipe.jpg", "refused", "not a regular file"),
        ("empty.jpg", "waiting", "empty"),
        ("none.jpg", "missing", "not there"),
        ("[{\"path\":\"a.jpg\"}]", "missing", "JSON"),
    ];
    let paths: Vec<&str> = expected.iter().map(|(path, _, _)| *path).collect();
    name_slips(&site, &paths).await;
    // A URL is left to whoever has written it.
    name_slips(&site, &["https://elsewhere.example/a.jpg"]).await;
    let running = site.replicate();
    let status = running
        .until("each has its state", |status| {
            (status.files.failed, status.files.missing, status.files.waiting) == (5, 3, 1)
        })
        .await;
    assert_eq!(status.files.uploaded, 0);
    for (path, state, why) in expected {
        let (found, reason) = record(&site, path).await;
        assert_eq!(found, state, "{path}: {reason}");
        assert!(reason.contains(why), "{path}: {reason}");
    }
    let noted: i64 = site
        .client
        .query_one("select count(*) from cloud_sync.media", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(noted, expected.len() as i64);
    running.end().await;
    drop(cloud);
}

#[tokio::test]
async fn a_queued_file_that_becomes_a_link_out_of_the_root_is_not_read() {
    let catalogue = cloud_sync::catalogue::Catalogue::builtin();
    let server = crate::support::baseline::BaselineServer::start(&catalogue, &[]).await;
    let site = Site::school("switched", &server.url(), crate::support::baseline::KEY).await;
    std::fs::write(site.folder.path().join("secret"), "secret").unwrap();
    // Given a large file whose upload is held, and one behind it
    for name in ["a.jpg", "b.jpg"] {
        let large = std::fs::File::create(site.media().join(name)).unwrap();
        large.set_len(9 << 20).unwrap();
    }
    let (hold, latch) = crate::support::fault::Fault::hold();
    server.fault(hold.on("upload/leave_slips").times(1));
    let running = site.replicate();
    site.run(&format!("{FACULTY} ('x', null); {LEAVE} (1, 'a.jpg')"))
        .await;
    server
        .wait_until("the first upload", |server| {
            server
                .requests()
                .iter()
                .any(|request| request.path.starts_with("upload/"))
        })
        .await;
    site.run(&format!("{LEAVE} (1, 'b.jpg')")).await;
    running.rows_caught_up().await;
    // When a link takes its place
    std::fs::remove_file(site.media().join("b.jpg")).unwrap();
    symlink(site.folder.path().join("secret"), site.media().join("b.jpg")).unwrap();
    latch.open();
    // Then it is refused, and what the link leads to is not sent.
    running
        .until("refused", |status| {
            status.files.failed == 1 && status.files.uploaded == 1
        })
        .await;
    assert_eq!(server.files().len(), 1);
    running.end().await;
}
