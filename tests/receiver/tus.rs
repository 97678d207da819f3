//! Resumable uploads: each byte counts once, a file is visible when it is whole, and any receiver goes on.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cloud_sync::receiver::Receiver;
use cloud_sync::wire::tus::encode_metadata;
use reqwest::{Body, Method, RequestBuilder, Response, StatusCode};
use sha1::{Digest, Sha1};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use super::{Cloud, settings};

/// The address of an upload below the API, as its creation returned it.
fn location(response: &Response) -> String {
    header(response, "location").unwrap()
}

fn header(response: &Response, name: &str) -> Option<String> {
    let value = response.headers().get(name)?;
    Some(value.to_str().unwrap().to_owned())
}

fn offset(response: &Response) -> u64 {
    header(response, "upload-offset").unwrap().parse().unwrap()
}

fn content(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at * 31 % 251) as u8).collect()
}

fn hash(content: &[u8]) -> String {
    format!("blake3:{}", blake3::hash(content).to_hex())
}

impl Cloud {
    fn tus(&self, method: Method, path: &str) -> RequestBuilder {
        self.request(method, path).header("Tus-Resumable", "1.0.0")
    }

    fn creation(&self, length: usize, metadata: &[(&str, &str)]) -> RequestBuilder {
        self.tus(Method::POST, "files")
            .header("Upload-Length", length)
            .header("Upload-Metadata", encode_metadata(metadata.iter().copied()))
    }

    /// Begins an upload, and returns its address below the API.
    async fn begin(&self, length: usize, metadata: &[(&str, &str)]) -> String {
        let created = self.creation(length, metadata).send().await.unwrap();
        assert_eq!(created.status(), StatusCode::CREATED);
        assert_eq!(header(&created, "tus-resumable").as_deref(), Some("1.0.0"));
        location(&created)
    }

    fn part(&self, upload: &str, offset: usize, bytes: impl Into<Body>) -> RequestBuilder {
        self.tus(Method::PATCH, upload)
            .header("Upload-Offset", offset)
            .header("Content-Type", "application/offset+octet-stream")
            .body(bytes)
    }

    async fn append(&self, upload: &str, offset: usize, bytes: &[u8]) -> Response {
        self.part(upload, offset, bytes.to_vec()).send().await.unwrap()
    }

    async fn head(&self, upload: &str) -> Response {
        self.tus(Method::HEAD, upload).send().await.unwrap()
    }

    /// Sends the beginning of a part, without its end, on a connection of its own.
    async fn begin_part(
        &self,
        upload: &str,
        offset: usize,
        announced: usize,
        bytes: &[u8],
    ) -> tokio::net::TcpStream {
        let address = self.root.trim_start_matches("http://");
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let head = format!(
            "PATCH /api/{upload} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer new-key\r\nTus-Resumable: 1.0.0\r\n\
             Upload-Offset: {offset}\r\nContent-Type: application/offset+octet-stream\r\n\
             Content-Length: {announced}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream
    }

    /// The same, once the receiver writes it: it refuses others until then.
    async fn hold_part(
        &self,
        upload: &str,
        offset: usize,
        announced: usize,
        bytes: &[u8],
    ) -> tokio::net::TcpStream {
        for _ in 0..100 {
            let stream = self.begin_part(upload, offset, announced, bytes).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            // Where this comes first, the part is refused.
            if self.append(upload, offset, b"").await.status() == StatusCode::LOCKED {
                return stream;
            }
        }
        panic!("the part never begins")
    }

    /// Waits until the upload has so many bytes.
    async fn until_offset(&self, upload: &str, bytes: u64) {
        let begin = Instant::now();
        loop {
            let has = offset(&self.head(upload).await);
            if has == bytes {
                return;
            }
            assert!(
                begin.elapsed() < Duration::from_secs(20),
                "{has} of {bytes} bytes"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn get(&self, response: &Response) -> Vec<u8> {
        let url = header(response, "content-location").unwrap();
        let got = self.client.get(url).send().await.unwrap();
        assert_eq!(got.status(), StatusCode::OK);
        got.bytes().await.unwrap().to_vec()
    }

    fn incoming(&self) -> usize {
        std::fs::read_dir(self.files.path().join(".incoming"))
            .unwrap()
            .count()
    }
}

#[tokio::test]
async fn a_server_says_what_it_can_do() {
    let cloud = Cloud::start("tus_options").await;
    let said = cloud.request(Method::OPTIONS, "files").send().await.unwrap();
    assert_eq!(said.status(), StatusCode::NO_CONTENT);
    assert_eq!(header(&said, "tus-version").as_deref(), Some("1.0.0"));
    assert_eq!(header(&said, "tus-max-size").as_deref(), Some("1048576"));
    let extensions = header(&said, "tus-extension").unwrap();
    for extension in [
        "creation",
        "creation-with-upload",
        "checksum",
        "termination",
        "expiration",
    ] {
        assert!(extensions.split(',').any(|one| one == extension));
    }
    assert!(header(&said, "tus-checksum-algorithm").unwrap().contains("sha1"));
    // Another version, or none, or no key.
    for version in [Some("0.2.2"), None] {
        let mut request = cloud.request(Method::POST, "files").header("Upload-Length", 1);
        if let Some(version) = version {
            request = request.header("Tus-Resumable", version);
        }
        let refused = request.send().await.unwrap();
        assert_eq!(refused.status(), StatusCode::PRECONDITION_FAILED);
        assert_eq!(header(&refused, "tus-version").as_deref(), Some("1.0.0"));
    }
    let keyless = cloud
        .client
        .post(format!("{}/api/files", cloud.root))
        .header("Tus-Resumable", "1.0.0")
        .header("Upload-Length", 1);
    assert_eq!(keyless.send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
    cloud.end().await;
    let without = Cloud::start_with("tus_none", |settings| settings.capabilities = Some(Vec::new())).await;
    let refused = without.creation(1, &[]).send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::NOT_FOUND);
    without.end().await;
}

#[tokio::test]
async fn a_file_arrives_in_parts() {
    let cloud = Cloud::start("tus_parts").await;
    let content = content(700_001);
    let hash = hash(&content);
    let upload = cloud
        .begin(
            content.len(),
            &[
                ("filename", "../Slip 1.jpg"),
                ("directory", "passes"),
                ("hash", &hash),
            ],
        )
        .await;
    // Wrong offsets, and bodies that are no parts.
    for wrong in [1, 700_001, 800_000] {
        assert_eq!(
            cloud.append(&upload, wrong, b"x").await.status(),
            StatusCode::CONFLICT
        );
    }
    let no_part = cloud
        .tus(Method::PATCH, &upload)
        .header("Upload-Offset", 0)
        .body("x");
    assert_eq!(
        no_part.send().await.unwrap().status(),
        StatusCode::UNSUPPORTED_MEDIA_TYPE
    );
    let first = cloud.append(&upload, 0, &content[..300_000]).await;
    assert_eq!(
        (first.status(), offset(&first)),
        (StatusCode::NO_CONTENT, 300_000)
    );
    assert!(header(&first, "upload-expires").unwrap().ends_with(" GMT"));
    assert_eq!(header(&first, "content-location"), None);
    let head = cloud.head(&upload).await;
    assert_eq!(
        (head.status(), offset(&head), header(&head, "upload-length")),
        (StatusCode::OK, 300_000, Some("700001".to_owned()))
    );
    assert_eq!(header(&head, "cache-control").as_deref(), Some("no-store"));
    assert!(header(&head, "upload-metadata").unwrap().contains("directory "));
    // The same part again is refused, and more than announced too.
    assert_eq!(
        cloud.append(&upload, 0, &content[..300_000]).await.status(),
        StatusCode::CONFLICT
    );
    let too_long = cloud.append(&upload, 300_000, &content[..500_000]).await;
    assert_eq!(too_long.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(cloud.count("cloud_meta.files").await, 0);
    // The last part, as a client sends it that knows POST alone.
    let last = cloud
        .tus(Method::POST, &upload)
        .header("X-HTTP-Method-Override", "PATCH")
        .header("Upload-Offset", 300_000)
        .header("Content-Type", "application/offset+octet-stream")
        .body(content[300_000..].to_vec())
        .send()
        .await
        .unwrap();
    assert_eq!((last.status(), offset(&last)), (StatusCode::NO_CONTENT, 700_001));
    assert_eq!(header(&last, "upload-hash"), Some(hash.clone()));
    let path = header(&last, "upload-path").unwrap();
    assert!(path.starts_with("passes/") && path.ends_with("-Slip_1.jpg"));
    assert!(cloud.get(&last).await == content);
    let head = cloud.head(&upload).await;
    assert_eq!(offset(&head), 700_001);
    assert!(cloud.get(&head).await == content);
    assert_eq!(
        cloud.append(&upload, 700_001, b"").await.status(),
        StatusCode::NO_CONTENT
    );
    assert_eq!(cloud.incoming(), 0);
    // The same content again needs no byte; another site has none of it.
    let announced = [
        ("filename", "other.jpg"),
        ("directory", "passes"),
        ("hash", &hash),
    ];
    let again = cloud.creation(content.len(), &announced).send().await.unwrap();
    assert_eq!((again.status(), offset(&again)), (StatusCode::CREATED, 700_001));
    assert!(cloud.get(&again).await == content);
    let annex = cloud
        .client
        .post(format!("{}/api/files", cloud.root))
        .bearer_auth("annex-key")
        .header("Tus-Resumable", "1.0.0")
        .header("Upload-Length", content.len())
        .header("Upload-Metadata", encode_metadata(announced))
        .send()
        .await
        .unwrap();
    assert_eq!((annex.status(), offset(&annex)), (StatusCode::CREATED, 0));
    cloud.end().await;
}

#[tokio::test]
async fn small_uploads_and_public_clients() {
    let cloud = Cloud::start("tus_small").await;
    // An empty file is there at once.
    let empty = cloud.creation(0, &[]).send().await.unwrap();
    assert_eq!((empty.status(), offset(&empty)), (StatusCode::CREATED, 0));
    assert!(header(&empty, "upload-path").unwrap().starts_with("files/"));
    assert!(cloud.get(&empty).await.is_empty());
    // A creation that carries the whole file, and one that carries its beginning.
    let whole = cloud
        .creation(5, &[("filename", "a.txt")])
        .header("Content-Type", "application/offset+octet-stream")
        .body("hello")
        .send()
        .await
        .unwrap();
    assert_eq!((whole.status(), offset(&whole)), (StatusCode::CREATED, 5));
    assert_eq!(cloud.get(&whole).await, b"hello");
    let half = cloud
        .creation(5, &[("filename", "b.txt")])
        .header("Content-Type", "application/offset+octet-stream")
        .body("he")
        .send()
        .await
        .unwrap();
    assert_eq!((half.status(), offset(&half)), (StatusCode::CREATED, 2));
    let rest = cloud.append(&location(&half), 2, b"llo").await;
    assert_eq!(cloud.get(&rest).await, b"hello");
    // An address with a slash, as public clients have it, and its relative location.
    let slash = cloud
        .tus(Method::POST, "files/")
        .header("Upload-Length", 1)
        .send()
        .await
        .unwrap();
    assert_eq!(slash.status(), StatusCode::CREATED);
    assert_eq!(location(&slash).len(), 32);
    // What is refused.
    let refused = async |length: &str, metadata: &str| {
        cloud
            .tus(Method::POST, "files")
            .header("Upload-Length", length)
            .header("Upload-Metadata", metadata)
            .send()
            .await
            .unwrap()
            .status()
    };
    assert_eq!(refused("1048577", "").await, StatusCode::PAYLOAD_TOO_LARGE);
    for length in ["-1", "x", "", "+1", "99999999999999999999"] {
        assert_eq!(refused(length, "").await, StatusCode::BAD_REQUEST, "{length}");
    }
    let not_a_hash = encode_metadata([("hash", "md5:00")]);
    for metadata in [
        "filename ***",
        "filename eA==,,",
        "filename eA==,filename eA==",
        &not_a_hash,
    ] {
        assert_eq!(
            refused("1", metadata).await,
            StatusCode::BAD_REQUEST,
            "{metadata}"
        );
    }
    for directory in ["..", "a/b", "a.b"] {
        let metadata = encode_metadata([("directory", directory)]);
        assert_eq!(
            refused("1", &metadata).await,
            StatusCode::UNPROCESSABLE_ENTITY,
            "{directory}"
        );
    }
    let deferred = cloud.tus(Method::POST, "files").header("Upload-Defer-Length", 1);
    assert_eq!(deferred.send().await.unwrap().status(), StatusCode::BAD_REQUEST);
    cloud.end().await;
}

#[tokio::test]
async fn a_part_with_a_wrong_checksum_does_not_count() {
    let cloud = Cloud::start("tus_checksum").await;
    let content = content(400_000);
    let upload = cloud.begin(content.len(), &[("hash", &hash(&content))]).await;
    let sha1 = |bytes: &[u8]| format!("sha1 {}", STANDARD.encode(Sha1::digest(bytes)));
    let blake3 = |bytes: &[u8]| format!("blake3 {}", STANDARD.encode(blake3::hash(bytes).as_bytes()));
    let send = async |offset: usize, bytes: &[u8], checksum: &str| {
        cloud
            .part(&upload, offset, bytes.to_vec())
            .header("Upload-Checksum", checksum)
            .send()
            .await
            .unwrap()
            .status()
    };
    assert_eq!(send(0, &content[..200_000], &sha1(b"other")).await.as_u16(), 460);
    cloud.until_offset(&upload, 0).await;
    assert_eq!(
        send(0, &content[..200_000], &sha1(&content[..200_000])).await,
        StatusCode::NO_CONTENT
    );
    assert_eq!(
        send(200_000, &vec![0; 200_000], &blake3(b"other")).await.as_u16(),
        460
    );
    cloud.until_offset(&upload, 200_000).await;
    for malformed in ["md5 xxxx", "sha1", "sha1 ***", "sha1 eA=="] {
        assert_eq!(
            send(200_000, b"x", malformed).await,
            StatusCode::BAD_REQUEST,
            "{malformed}"
        );
    }
    assert_eq!(
        send(200_000, &content[200_000..], &blake3(&content[200_000..])).await,
        StatusCode::NO_CONTENT
    );
    assert!(cloud.get(&cloud.head(&upload).await).await == content);
    cloud.end().await;
}

#[tokio::test]
async fn an_interrupted_part_counts_as_far_as_it_came() {
    let cloud = Cloud::start("tus_interrupted").await;
    let content = content(900_000);
    let upload = cloud.begin(content.len(), &[("hash", &hash(&content))]).await;
    // A connection that ends.
    let cut = cloud.begin_part(&upload, 0, 900_000, &content[..300_000]).await;
    cut.set_zero_linger().unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    drop(cut);
    let begin = Instant::now();
    let has = loop {
        let has = offset(&cloud.head(&upload).await);
        if has > 0 {
            break has as usize;
        }
        assert!(begin.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(has <= 300_000);
    // A connection that is dead: the next request to write is refused, and one that asks takes its place.
    let mut dead = cloud
        .hold_part(&upload, has, 900_000 - has, &content[has..500_000])
        .await;
    let has = offset(&cloud.head(&upload).await) as usize;
    assert_eq!(has, 500_000);
    let mut answer = vec![0; 12];
    dead.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, b"HTTP/1.1 409");
    // Then it goes on, with another receiver on the same database and folder.
    let receiver = Receiver::bind(settings(&cloud.database_url, cloud.files.path()))
        .await
        .unwrap();
    let other = format!("http://{}/api/{upload}", receiver.address());
    let stop = CancellationToken::new();
    let task = tokio::spawn(receiver.serve(stop.clone()));
    let send = |method, offset: usize, bytes: Vec<u8>| {
        cloud
            .client
            .request(method, &other)
            .bearer_auth("new-key")
            .header("Tus-Resumable", "1.0.0")
            .header("Upload-Offset", offset)
            .header("Content-Type", "application/offset+octet-stream")
            .body(bytes)
            .send()
    };
    // While one receiver writes it, the other one does not.
    let held = cloud.hold_part(&upload, has, 1000, &content[has..has + 10]).await;
    let refused = send(Method::PATCH, has, Vec::new()).await.unwrap();
    assert_eq!(refused.status(), StatusCode::LOCKED);
    drop(held);
    cloud.until_offset(&upload, 500_010).await;
    let next = send(Method::PATCH, 500_010, content[500_010..800_000].to_vec())
        .await
        .unwrap();
    assert_eq!((next.status(), offset(&next)), (StatusCode::NO_CONTENT, 800_000));
    // And back with the first one, which has seen an older state of it.
    let last = cloud.append(&upload, 800_000, &content[800_000..]).await;
    assert!(cloud.get(&last).await == content);
    assert_eq!(cloud.incoming(), 0);
    stop.cancel();
    task.await.unwrap().unwrap();
    cloud.end().await;
}

#[tokio::test]
async fn a_restart_of_the_receiver_keeps_what_has_arrived() {
    let cloud = Cloud::start("tus_restart").await;
    let content = content(600_000);
    let upload = cloud.begin(content.len(), &[("hash", &hash(&content))]).await;
    let first = cloud.append(&upload, 0, &content[..200_000]).await;
    assert_eq!(offset(&first), 200_000);
    // One part is being sent when it stops.
    let _open = cloud
        .hold_part(&upload, 200_000, 400_000, &content[200_000..400_000])
        .await;
    let Cloud {
        client,
        database_url,
        files,
        stop,
        task,
        pool,
        ..
    } = cloud;
    stop.cancel();
    task.await.unwrap().unwrap();
    // What was written and not noted does not count: the tail of a receiver that was killed.
    let partial = std::fs::read_dir(files.path().join(".incoming"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let mut file = std::fs::OpenOptions::new().append(true).open(&partial).unwrap();
    std::io::Write::write_all(&mut file, &[0; 1000]).unwrap();
    let receiver = Receiver::bind(settings(&database_url, files.path()))
        .await
        .unwrap();
    let url = format!("http://{}/api/{upload}", receiver.address());
    let stop = CancellationToken::new();
    let task = tokio::spawn(receiver.serve(stop.clone()));
    let request = |method| {
        client
            .request(method, &url)
            .bearer_auth("new-key")
            .header("Tus-Resumable", "1.0.0")
    };
    let has = offset(&request(Method::HEAD).send().await.unwrap()) as usize;
    assert_eq!(has, 400_000);
    let last = request(Method::PATCH)
        .header("Upload-Offset", has)
        .header("Content-Type", "application/offset+octet-stream")
        .body(content[has..].to_vec())
        .send()
        .await
        .unwrap();
    assert_eq!(last.status(), StatusCode::NO_CONTENT);
    let stored = files
        .path()
        .join("college")
        .join(header(&last, "upload-path").unwrap());
    assert!(std::fs::read(stored).unwrap() == content);
    // A file that is whole and was not stored yet is stored when its sender asks.
    let (id,): (String,) = sqlx::query_as("select id from cloud_meta.uploads")
        .fetch_one(&pool)
        .await
        .unwrap();
    sqlx::raw_sql("update cloud_meta.uploads set stored = null, hash = null; delete from cloud_meta.files")
        .execute(&pool)
        .await
        .unwrap();
    std::fs::write(files.path().join(".incoming").join(&id), &content).unwrap();
    let head = request(Method::HEAD).send().await.unwrap();
    assert_eq!(header(&head, "upload-hash"), Some(hash(&content)));
    let files_stored: (i64,) = sqlx::query_as("select count(*) from cloud_meta.files")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(files_stored.0, 1);
    stop.cancel();
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_upload_is_its_sites_own_and_ends_when_it_is_told_to() {
    let cloud = Cloud::start("tus_own").await;
    let upload = cloud.begin(10, &[]).await;
    assert_eq!(offset(&cloud.append(&upload, 0, b"12345").await), 5);
    for method in [Method::HEAD, Method::PATCH, Method::DELETE] {
        let other = cloud
            .client
            .request(method, format!("{}/api/{upload}", cloud.root))
            .bearer_auth("annex-key")
            .header("Tus-Resumable", "1.0.0")
            .header("Upload-Offset", 5)
            .header("Content-Type", "application/offset+octet-stream")
            .body("67890")
            .send()
            .await
            .unwrap();
        assert_eq!(other.status(), StatusCode::NOT_FOUND);
    }
    assert_eq!(offset(&cloud.head(&upload).await), 5);
    assert_eq!(cloud.incoming(), 1);
    let ended = cloud.tus(Method::DELETE, &upload).send().await.unwrap();
    assert_eq!(ended.status(), StatusCode::NO_CONTENT);
    assert_eq!(cloud.incoming(), 0);
    assert_eq!(cloud.head(&upload).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(
        cloud.append(&upload, 5, b"67890").await.status(),
        StatusCode::NOT_FOUND
    );
    assert_eq!(
        cloud.head("files/..%2f..%2fx").await.status(),
        StatusCode::NOT_FOUND
    );
    cloud.end().await;
}

#[tokio::test]
async fn content_with_another_hash_is_never_visible() {
    let cloud = Cloud::start("tus_hash").await;
    let upload = cloud
        .begin(5, &[("directory", "passes"), ("hash", &hash(b"hello"))])
        .await;
    assert_eq!(
        cloud.append(&upload, 0, b"hel").await.status(),
        StatusCode::NO_CONTENT
    );
    let refused = cloud.append(&upload, 3, b"p!").await;
    assert_eq!(refused.status().as_u16(), 460);
    assert_eq!(cloud.head(&upload).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(cloud.count("cloud_meta.files").await, 0);
    assert_eq!(cloud.incoming(), 0);
    assert!(!cloud.files.path().join("college").exists());
    cloud.end().await;
}

#[tokio::test]
async fn an_upload_without_progress_expires() {
    let cloud = Cloud::start("tus_expiry").await;
    let receiver = Receiver::bind(settings(&cloud.database_url, cloud.files.path()))
        .await
        .unwrap()
        .with_upload_expiry(Duration::from_secs(1));
    let base = format!("http://{}/api", receiver.address());
    let stop = CancellationToken::new();
    let task = tokio::spawn(receiver.serve(stop.clone()));
    let kept = cloud.begin(10, &[]).await;
    cloud.append(&kept, 0, b"12345").await;
    let created = cloud
        .client
        .post(format!("{base}/files"))
        .bearer_auth("new-key")
        .header("Tus-Resumable", "1.0.0")
        .header("Upload-Length", 10)
        .header("Content-Type", "application/offset+octet-stream")
        .body("12345")
        .send()
        .await
        .unwrap();
    let upload = location(&created);
    assert_eq!(cloud.incoming(), 2);
    let begin = Instant::now();
    while cloud.incoming() == 2 {
        assert!(begin.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(cloud.head(&upload).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(cloud.count("cloud_meta.uploads").await, 1);
    assert_eq!(offset(&cloud.head(&kept).await), 5);
    stop.cancel();
    task.await.unwrap().unwrap();
    cloud.end().await;
}
