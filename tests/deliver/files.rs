//! Files.

use super::*;

fn file(bytes: usize) -> (tempfile::TempDir, UploadFile, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("slip é.jpg");
    let content: Vec<u8> = (0..bytes).map(|at| (at * 31 % 251) as u8).collect();
    std::fs::write(&path, &content).unwrap();
    (folder, UploadFile::open(&path).unwrap(), content)
}

#[tokio::test]
async fn files_arrive_whole_with_their_name_and_type() {
    let server = baseline(&[]).await;
    let cloud = client(&server.url());
    for size in [0, 1, 256 * 1024, 3_000_000] {
        let (_folder, mut file, content) = file(size);
        let sent = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&sent);
        file.pace = Some(Arc::new(move |bytes| {
            count.fetch_add(bytes, Ordering::SeqCst);
            Duration::from_millis(u64::from(bytes > 0))
        }));
        let uploaded = cloud.upload("leave_slips", file).await.unwrap();
        assert_eq!(
            uploaded.url,
            "https://cloud.example/storage/leave_slips/slip é.jpg"
        );
        assert_eq!(
            (uploaded.hash, uploaded.bytes),
            (blake3::hash(&content), size as u64)
        );
        assert!(!uploaded.confirmed, "a baseline server answers no hash");
        let stored = server.files().pop().unwrap();
        assert_eq!(
            (stored.name.as_str(), stored.kind.as_str()),
            ("slip é.jpg", "image/jpeg")
        );
        assert!(stored.bytes == content && sent.load(Ordering::SeqCst) == size);
    }
}

#[tokio::test]
async fn an_upload_is_believed_only_with_a_url_and_the_same_hash() {
    let (_folder, file, content) = file(1000);
    let hash = format!("blake3:{}", blake3::hash(&content).to_hex());
    let other = format!("blake3:{}", blake3::hash(b"other").to_hex());
    for (answer, outcome) in [
        (
            json!({"success": true, "url": "u", "path": "p", "hash": hash}),
            Ok(true),
        ),
        (json!({"success": true, "url": "u"}), Ok(false)),
        (
            json!({"success": true, "url": "u", "hash": other}),
            Err(Kind::Media),
        ),
        (json!({"success": false, "url": "u"}), Err(Kind::CloudUnreachable)),
        (json!({"success": true, "url": ""}), Err(Kind::CloudProtocol)),
        (json!({"success": true}), Err(Kind::CloudProtocol)),
    ] {
        let server = Scripted::start(move |_| json_answer(200, answer.clone())).await;
        let uploaded = client(&server.url).upload("passes", file.clone()).await;
        let confirmed = uploaded
            .map(|one| one.confirmed)
            .map_err(|failure| failure.error().kind());
        assert_eq!(confirmed, outcome);
    }
}

#[tokio::test]
async fn uploads_fail_by_their_cause() {
    let server = baseline(&[]).await;
    let cloud = client(&server.url());
    let (folder, whole, _) = file(1000);
    let kind = async |file: UploadFile| cloud.upload("passes", file).await.unwrap_err().error().kind();
    assert!(UploadFile::open(&folder.path().join("missing.jpg")).is_err());
    assert_eq!(kind(UploadFile::open(folder.path()).unwrap()).await, Kind::Media);
    for (fault, expected) in [
        (Fault::status(413), Kind::CloudRefused),
        (Fault::status(503), Kind::CloudUnreachable),
        (Fault::status(401), Kind::CloudAuth),
        (Fault::cut(), Kind::CloudUnreachable),
        (Fault::page(), Kind::CloudProtocol),
    ] {
        server.clear_faults();
        server.fault(fault);
        assert_eq!(kind(whole.clone()).await, expected);
    }
    assert!(server.files().is_empty());
}

#[tokio::test]
async fn a_file_that_changes_while_it_is_sent_never_arrives() {
    for length in [100, 4_000_000] {
        let server = baseline(&[]).await;
        let (folder, mut file, _) = file(2_000_000);
        let path = folder.path().join("slip é.jpg");
        file.pace = Some(Arc::new(move |_| {
            std::fs::OpenOptions::new()
                .write(true)
                .open(&path)
                .unwrap()
                .set_len(length)
                .unwrap();
            Duration::ZERO
        }));
        let failure = client(&server.url()).upload("passes", file).await.unwrap_err();
        assert_eq!(failure.error().kind(), Kind::Media, "{failure}");
        assert!(server.files().is_empty());
    }
}

#[tokio::test]
async fn contents_are_found_by_hash() {
    let known = blake3::hash(b"known");
    let server = Scripted::start(move |request| {
        assert_eq!(
            (request.method.as_str(), request.uri.path()),
            ("HEAD", "/api/upload/passes")
        );
        if request.uri.query() == Some(&format!("hash=blake3:{}", known.to_hex())) {
            return (StatusCode::OK, [(header::LOCATION, "https://cloud.example/1")]).into_response();
        }
        StatusCode::NOT_FOUND.into_response()
    })
    .await;
    let cloud = client(&server.url);
    let found = cloud.find_content("passes", &known).await.unwrap();
    assert_eq!(found.as_deref(), Some("https://cloud.example/1"));
    assert_eq!(
        cloud
            .find_content("passes", &blake3::hash(b"other"))
            .await
            .unwrap(),
        None
    );
}
