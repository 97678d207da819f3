//! Files into an object storage: the same for each driver that can run here.
//!
//! S3 is a server of another project, in this process. Google Cloud Storage and Azure have no server here.

use std::path::Path;
use std::time::Duration;

use axum::http::Method;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

use super::{FACULTY, LEAVE, slip_url};
use crate::support::site::{Cloud, KEY, SCHOOL, Site};

/// Serves a folder as S3; its folders are the buckets. Returns the URL.
async fn s3_server(folder: &Path) -> String {
    s3_server_refusing(folder, "none").await
}

/// The same; it refuses to store objects whose keys hold this text.
async fn s3_server_refusing(folder: &Path, refused: &str) -> String {
    let refused = refused.to_owned();
    let mut service = s3s::service::S3ServiceBuilder::new(s3s_fs::FileSystem::new(folder).unwrap());
    service.set_auth(s3s::auth::SimpleAuth::from_single("test-key", "test-secret"));
    let service = service.build();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
        while let Ok((socket, _)) = listener.accept().await {
            let (refused, service) = (refused.clone(), service.clone());
            let service = service_fn(move |request: hyper::Request<Incoming>| {
                let is_refused = request.method() == Method::PUT && request.uri().path().contains(&refused);
                let service = service.clone();
                async move {
                    if is_refused {
                        let forbidden = hyper::Response::builder().status(403);
                        return Ok(forbidden.body(s3s::Body::empty()).unwrap());
                    }
                    hyper::service::Service::call(&service, request).await
                }
            });
            let connection = server.serve_connection(TokioIo::new(socket), service);
            tokio::spawn(connection.into_owned());
        }
    });
    url
}

/// Every object below a folder, by its content.
fn objects(folder: &Path) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() {
            found.extend(objects(&entry.path()));
        } else if !name.starts_with('.') {
            found.push(std::fs::read(entry.path()).unwrap());
        }
    }
    found.sort();
    found
}

/// Small files, one in parts, two of one content, one that is renamed and one that changes.
async fn stores(hint: &str, config: &str, bucket: &Path, url: &str) {
    let cloud = Cloud::start(hint).await;
    let config = format!("[files]\n{config}\nprefix = \"media\"\npublic_url = {url:?}\n");
    let site = Site::bare(hint, &cloud.url, KEY, SCHOOL, &config).await;
    site.init().await;
    let large: Vec<u8> = (0..20_000_000_u32).map(|at| (at / 7 % 251) as u8).collect();
    for (name, content) in [
        ("a.jpg", b"one".as_slice()),
        ("b.jpg", b"two"),
        ("copy.jpg", b"one"),
        ("large.jpg", &large),
    ] {
        std::fs::write(site.media().join(name), content).unwrap();
    }
    site.run(&format!("{FACULTY} ('x', null)")).await;
    site.run(&format!(
        "{LEAVE} (1, 'a.jpg'), (1, 'b.jpg'), (1, 'copy.jpg'), (1, 'large.jpg')"
    ))
    .await;
    let running = site.replicate();
    running
        .until("all uploaded", |status| status.files.uploaded == 4)
        .await;
    running.caught_up().await;
    // Each content is there once, whole, under a key of its hash; and each row has its URL.
    let mut expected = vec![b"one".to_vec(), b"two".to_vec(), large.clone()];
    expected.sort();
    assert!(objects(bucket) == expected);
    for (leave, content) in [(1, b"one".as_slice()), (2, b"two"), (3, b"one"), (4, &large)] {
        let expected = format!(
            "{url}/media/college/leave_slips/{}.jpg",
            blake3::hash(content).to_hex()
        );
        assert_eq!(slip_url(&cloud, leave).await, Some(expected));
    }
    // A renamed file is there already, and a changed one is another object.
    std::fs::rename(site.media().join("b.jpg"), site.media().join("renamed.jpg")).unwrap();
    site.run("update tbl_leave set leave_slip_image = 'renamed.jpg' where leave_id = 2")
        .await;
    std::fs::write(site.media().join("a.jpg"), "one, changed").unwrap();
    let changed = format!(
        "{url}/media/college/leave_slips/{}.jpg",
        blake3::hash(b"one, changed").to_hex()
    );
    let start = std::time::Instant::now();
    while slip_url(&cloud, 1).await.as_ref() != Some(&changed) {
        assert!(
            start.elapsed() < crate::support::site::LIMIT,
            "the change is not there"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    running.caught_up().await;
    assert_eq!(objects(bucket).len(), 4);
    // A file that was touched is read, and not recorded as uploaded again.
    let uploaded = "select uploaded_at::text, modified_us from cloud_sync.media where path = 'large.jpg'";
    let record = || async {
        let row = site.client.query_one(uploaded, &[]).await.unwrap();
        (row.get::<_, String>(0), row.get::<_, i64>(1))
    };
    let before = record().await;
    let touched = std::fs::File::options()
        .write(true)
        .open(site.media().join("large.jpg"))
        .unwrap();
    touched.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    drop(touched);
    let start = std::time::Instant::now();
    while record().await.1 == before.1 {
        assert!(start.elapsed() < crate::support::site::LIMIT, "not looked at");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(record().await.0, before.0);
    assert!(slip_url(&cloud, 2).await.is_some());
    running.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_takes_files() {
    let folder = tempfile::tempdir().unwrap();
    let bucket = folder.path().join("share");
    let config = format!("driver = \"file\"\nbucket = {:?}", bucket.display().to_string());
    stores("store_file", &config, &bucket, "https://files.example").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_s3_server_takes_files() {
    let folder = tempfile::tempdir().unwrap();
    let bucket = folder.path().join("school");
    std::fs::create_dir(&bucket).unwrap();
    let endpoint = s3_server(folder.path()).await;
    let config = format!(
        "driver = \"s3\"\nbucket = \"school\"\nendpoint = {endpoint:?}\nregion = \"us-east-1\"\naccess_key = \"test-key\"\nsecret_key = \"test-secret\""
    );
    stores("store_s3", &config, &bucket, "https://files.example").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_that_the_storage_refuses_stops_no_other() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("school")).unwrap();
    let refused = blake3::hash(b"refused").to_hex();
    let endpoint = s3_server_refusing(folder.path(), &refused).await;
    let config = format!(
        "[files]\ndriver = \"s3\"\nbucket = \"school\"\nendpoint = {endpoint:?}\nregion = \"us-east-1\"\n\
         access_key = \"test-key\"\nsecret_key = \"test-secret\"\n"
    );
    let (_cloud, site) = Site::captured("store_object", SCHOOL, &config).await;
    for (name, content) in [("a.jpg", "one"), ("b.jpg", "refused"), ("c.jpg", "three")] {
        std::fs::write(site.media().join(name), content).unwrap();
    }
    site.run(&format!("{FACULTY} ('x', null)")).await;
    let running = site.replicate();
    site.run(&format!("{LEAVE} (1, 'b.jpg')")).await;
    running
        .until("one fails", |status| status.files.failed == 1)
        .await;
    site.run(&format!("{LEAVE} (1, 'a.jpg'), (1, 'c.jpg')")).await;
    running
        .until("the others", |status| {
            (status.files.uploaded, status.files.failed) == (2, 1)
        })
        .await;
    running.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storage_that_refuses_the_credentials_stops_files_and_no_rows() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("school")).unwrap();
    let endpoint = s3_server(folder.path()).await;
    let cloud = Cloud::start("store_refused").await;
    let config = format!(
        "[files]\ndriver = \"s3\"\nbucket = \"school\"\nendpoint = {endpoint:?}\nregion = \"us-east-1\"\n\
         access_key = \"test-key\"\nsecret_key = \"wrong\"\n"
    );
    let mut site = Site::bare("store_refused", &cloud.url, KEY, SCHOOL, &config).await;
    site.init().await;
    std::fs::write(site.media().join("a.jpg"), "slip").unwrap();
    let running = site.replicate();
    site.run(&format!("{FACULTY} ('x', null); {LEAVE} (1, 'a.jpg')"))
        .await;
    running.rows_caught_up().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    site.run("update tbl_leave set leave_reason = 'changed'").await;
    let status = running.rows_caught_up().await;
    assert_eq!((status.files.waiting, status.files.uploaded), (1, 0));
    running.end().await;
    // When the secret is corrected
    site.reconfigure("\"wrong\"", "\"test-secret\"");
    let running = site.replicate();
    running
        .until("uploaded", |status| status.files.uploaded == 1)
        .await;
    running.caught_up().await;
    // Then it is there, and its row has the storage's own address.
    let url = slip_url(&cloud, 1).await.unwrap();
    assert!(url.starts_with("s3://school/college/leave_slips/"), "{url}");
    running.end().await;
}
