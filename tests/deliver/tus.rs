//! Resumable uploads: what has arrived is not sent again, and the key goes nowhere else.

use cloud_sync::deliver::{BegunUpload, PART_TIME, ResumableUpload, UploadReceipt};
use tokio::sync::Notify;

use super::*;
use crate::support::counting_proxy::CountingProxy;
use crate::support::fault_proxy::FaultProxy;
use crate::support::site::{self, LIMIT};
use crate::support::tcp_proxy::{TcpProxy, Trouble};

pub(super) const MIB: usize = 1024 * 1024;

/// The client of a receiver of `support`.
pub(super) fn client_of(url: &str) -> Cloud {
    let options = CloudOptions {
        timeout: Duration::from_secs(20),
        ..CloudOptions::new(url.parse().unwrap(), site::KEY.to_owned().into())
    };
    Cloud::new(options, Arc::new(Catalogue::builtin())).unwrap()
}

pub(super) struct SlipFile {
    _folder: tempfile::TempDir,
    file: UploadFile,
    pub(super) content: Vec<u8>,
}

impl SlipFile {
    pub(super) fn new(bytes: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("slip é.jpg");
        let content: Vec<u8> = (0..bytes).map(|at| (at * 31 % 251) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        Self {
            file: UploadFile::open(&path).unwrap(),
            _folder: folder,
            content,
        }
    }

    fn hash(&self) -> blake3::Hash {
        blake3::hash(&self.content)
    }
}

/// Uploads the file, and returns also what was noted.
pub(super) async fn upload(
    cloud: &Cloud,
    slip: &SlipFile,
    state: Option<BegunUpload>,
) -> (
    Result<UploadReceipt, cloud_sync::deliver::Failure>,
    Vec<BegunUpload>,
) {
    let noted = Mutex::new(Vec::new());
    let note = |upload: &BegunUpload| noted.lock().unwrap().push(upload.clone());
    let uploaded = cloud
        .upload_resumable(ResumableUpload {
            directory: "passes",
            file: slip.file.clone(),
            hash: slip.hash(),
            state,
            part_time: PART_TIME,
            note: &note,
        })
        .await;
    (uploaded, noted.into_inner().unwrap())
}

/// The file as the receiver has it.
fn stored(cloud: &site::Cloud, receipt: &UploadReceipt) -> Vec<u8> {
    let path = receipt.path.as_ref().unwrap();
    std::fs::read(cloud.files.join(site::SITE).join(path)).unwrap()
}

#[tokio::test]
async fn a_file_arrives_through_a_connection_that_breaks_again_and_again() {
    let receiver = site::Cloud::start("tus_cuts").await;
    let counting = CountingProxy::before(&receiver.url).await;
    let target = counting.1.parse::<url::Url>().unwrap();
    let breaking = TcpProxy::start(SocketAddr::from(([127, 0, 0, 1], target.port().unwrap()))).await;
    breaking.set(Trouble::CutRequest(5 * MIB));
    let slip = SlipFile::new(24 * MIB + 1);
    let cloud = client_of(&breaking.url());
    let (uploaded, noted) = upload(&cloud, &slip, None).await;
    let receipt = uploaded.unwrap();
    assert!(breaking.struck() >= 4, "{}", breaking.struck());
    assert!(receipt.confirmed && receipt.bytes == slip.content.len() as u64);
    assert!(stored(&receiver, &receipt) == slip.content);
    assert!(receipt.path.unwrap().ends_with("-slip__.jpg"));
    assert!(noted.is_sorted_by_key(|upload| upload.offset));
    assert_eq!(noted.first().unwrap().offset, 0);
    assert_eq!(noted.last().unwrap().offset, slip.content.len() as u64);
    let sent = counting.0.all().bytes;
    assert!(sent as f64 <= 1.15 * slip.content.len() as f64, "{sent}");
    // The same content again is there already.
    let before = counting.0.all().bytes;
    let (again, _) = upload(&cloud, &slip, None).await;
    assert_eq!(again.unwrap().url, receipt.url);
    assert!(counting.0.all().bytes - before < 10_000);
}

#[tokio::test]
async fn parts_are_as_small_as_a_proxy_before_the_cloud_wants_them() {
    let receiver = site::Cloud::start("tus_limited").await;
    let limited = FaultProxy::before(&receiver.url).await;
    limited.limit(3 * MIB);
    let slip = SlipFile::new(20 * MIB);
    let (uploaded, _) = upload(&client_of(&limited.url()), &slip, None).await;
    assert!(stored(&receiver, &uploaded.unwrap()) == slip.content);
    // No smaller parts are tried than are of use.
    limited.limit(1000);
    let (uploaded, _) = upload(&client_of(&limited.url()), &SlipFile::new(2 * MIB), None).await;
    assert_eq!(uploaded.unwrap_err().status(), Some(413));
}

#[tokio::test]
async fn an_upload_continues_from_what_was_noted() {
    let receiver = site::Cloud::start("tus_noted").await;
    let (counting, url) = CountingProxy::before(&receiver.url).await;
    let mut slip = SlipFile::new(12 * MIB);
    // Given an upload that is dropped amid its second part
    let (amid, sent) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let (reached, paced) = (Arc::clone(&amid), Arc::clone(&sent));
    slip.file.pace = Some(Arc::new(move |bytes| {
        if paced.fetch_add(bytes, Ordering::SeqCst) > 6 * MIB && bytes > 0 {
            reached.notify_one();
            return Duration::from_millis(50);
        }
        Duration::ZERO
    }));
    let cloud = client_of(&url);
    let last = Mutex::new(None);
    let note = |upload: &BegunUpload| *last.lock().unwrap() = Some(upload.clone());
    tokio::select! {
        _ = cloud.upload_resumable(ResumableUpload {
            directory: "passes",
            file: slip.file.clone(),
            hash: slip.hash(),
            state: None,
            part_time: PART_TIME,
            note: &note,
        }) => panic!("it is slow"),
        () = amid.notified() => {}
    }
    let state = last.into_inner().unwrap().unwrap();
    assert_eq!(state.offset, 4 * MIB as u64);
    drop(cloud);
    // When another process continues
    slip.file.pace = None;
    let cloud = client_of(&url);
    let (uploaded, noted) = upload(&cloud, &slip, Some(state.clone())).await;
    // Then what has arrived is not sent again.
    let receipt = uploaded.unwrap();
    assert!(receipt.confirmed && stored(&receiver, &receipt) == slip.content);
    assert!(noted[0].address == state.address && noted[0].offset >= 4 * MIB as u64);
    let bytes = counting.all().bytes;
    let at_most = sent.load(Ordering::SeqCst) + slip.content.len() - 4 * MIB;
    assert!(bytes as f64 <= 1.02 * at_most as f64, "{bytes} of {at_most}");
    // An upload that is complete needs no byte.
    let (again, _) = upload(&cloud, &slip, Some(state)).await;
    assert_eq!(again.unwrap().url, receipt.url);
    // One that the cloud does not know any more begins again, and so does one of another cloud.
    for url in [
        format!("{}/files/00000000000000000000000000000000", cloud.url()),
        "https://other.example/api/files/1".to_owned(),
        format!("{}/../elsewhere/1", cloud.url()),
        "not a URL".to_owned(),
    ] {
        let other = SlipFile::new(1000);
        let state = BegunUpload {
            address: url,
            offset: 500,
            parts: Vec::new(),
        };
        let (uploaded, noted) = upload(&cloud, &other, Some(state)).await;
        assert!(stored(&receiver, &uploaded.unwrap()) == other.content);
        assert_ne!(noted.last().unwrap().address, "https://other.example/api/files/1");
    }
}

#[tokio::test]
async fn a_restart_of_the_cloud_is_waited_for() {
    let mut receiver = site::Cloud::start("tus_away").await;
    let mut slip = SlipFile::new(9 * MIB);
    let (amid, sent) = (Arc::new(Notify::new()), AtomicUsize::new(0));
    let reached = Arc::clone(&amid);
    slip.file.pace = Some(Arc::new(move |bytes| {
        if sent.fetch_add(bytes, Ordering::SeqCst) > 6 * MIB && bytes > 0 {
            reached.notify_one();
            return Duration::from_millis(20);
        }
        Duration::ZERO
    }));
    let cloud = client_of(&receiver.url);
    let restart = async {
        amid.notified().await;
        receiver.away().await;
        receiver.back().await;
    };
    let ((uploaded, noted), ()) = tokio::join!(upload(&cloud, &slip, None), restart);
    // It may be away for longer than the client asks: then the caller continues.
    let receipt = match uploaded {
        Ok(receipt) => receipt,
        Err(failure) => {
            assert!(failure.is_transient(), "{failure}");
            let state = noted.last().cloned();
            upload(&cloud, &slip, state).await.0.unwrap()
        }
    };
    assert!(stored(&receiver, &receipt) == slip.content);
}

#[tokio::test]
async fn another_content_than_announced_is_never_taken() {
    let receiver = site::Cloud::start("tus_changed").await;
    let cloud = client_of(&receiver.url);
    let mut slip = SlipFile::new(2 * MIB);
    slip.content[0] ^= 1;
    let (uploaded, _) = upload(&cloud, &slip, None).await;
    assert_eq!(uploaded.unwrap_err().error().kind(), Kind::Media);
    assert!(!receiver.files.join(site::SITE).exists());
    // A file that becomes shorter while it is sent.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shrinks.jpg");
    std::fs::write(&path, vec![1; 3 * MIB]).unwrap();
    let mut file = UploadFile::open(&path).unwrap();
    file.pace = Some(Arc::new(move |_| {
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(1000).unwrap();
        Duration::ZERO
    }));
    let slip = SlipFile {
        _folder: folder,
        file,
        content: vec![1; 3 * MIB],
    };
    let (uploaded, _) = upload(&cloud, &slip, None).await;
    assert_eq!(uploaded.unwrap_err().error().kind(), Kind::Media);
}

#[tokio::test]
async fn the_key_goes_to_the_cloud_alone() {
    let slip = SlipFile::new(100);
    for location in [
        "http://127.0.0.1:1/api/files/1",
        "//other.example/api/files/1",
        "/elsewhere/1",
        "/api/../elsewhere/1",
        "/api",
        "",
    ] {
        let server = Scripted::start(move |_| {
            let headers = [("location", location), ("tus-resumable", "1.0.0")];
            (StatusCode::CREATED, headers).into_response()
        })
        .await;
        let (uploaded, noted) = upload(&client(&server.url), &slip, None).await;
        let kind = uploaded.map_err(|failure| failure.error().kind());
        assert_eq!(kind.unwrap_err(), Kind::CloudProtocol, "{location}");
        assert_eq!((server.seen().len(), noted.len()), (1, 0), "{location}");
    }
}

#[tokio::test]
async fn a_server_without_resumable_uploads_is_found_out() {
    let slip = SlipFile::new(100);
    for status in [404, 405] {
        let server =
            Scripted::start(move |_| json_answer(status, json!({"success": false, "error": "no"}))).await;
        let (uploaded, _) = upload(&client(&server.url), &slip, None).await;
        assert_eq!(uploaded.unwrap_err().lost_capability(), Some(Capability::Tus));
    }
    // A cloud that takes each part and has nothing of it is not asked for ever.
    let server = Scripted::start(|request| match request.method {
        Method::POST => (StatusCode::CREATED, [("location", "/api/files/1")]).into_response(),
        _ => (StatusCode::NO_CONTENT, [("upload-offset", "0")]).into_response(),
    })
    .await;
    let waited = tokio::time::timeout(LIMIT, upload(&client(&server.url), &slip, None)).await;
    let (uploaded, _) = waited.unwrap();
    assert_eq!(uploaded.unwrap_err().error().kind(), Kind::CloudProtocol);
}
