//! Uploaded files: whole, safe to serve, found again, and never outside their folder.

use reqwest::{Method, StatusCode};
use serde_json::Value;

use super::Cloud;

#[tokio::test]
async fn uploads_are_whole_safe_and_found_again() {
    let cloud = Cloud::start("upload").await;
    let upload = async |directory: &str, name: &str, content: Vec<u8>| {
        let part = reqwest::multipart::Part::bytes(content).file_name(name.to_owned());
        cloud
            .request(Method::POST, &format!("upload/{directory}"))
            .multipart(
                reqwest::multipart::Form::new()
                    .text("other", "x")
                    .part("file", part),
            )
            .send()
            .await
            .unwrap()
    };
    let content = vec![7_u8; 300_000];
    let first: Value = upload("leave_slips", "../../Slip 1.jpg", content.clone())
        .await
        .json()
        .await
        .unwrap();
    assert_eq!(first["success"], true);
    assert_eq!(first["size"], 300_000);
    assert_eq!(
        first["hash"],
        format!("blake3:{}", blake3::hash(&content).to_hex())
    );
    let url = first["url"].as_str().unwrap();
    assert!(
        url.starts_with(&format!("{}/media/college/leave_slips/", cloud.root))
            && url.ends_with("-Slip_1.jpg")
    );
    let again: Value = upload("leave_slips", "../../Slip 1.jpg", content.clone())
        .await
        .json()
        .await
        .unwrap();
    assert_eq!(first, again);
    let got = cloud.client.get(url).send().await.unwrap();
    assert_eq!(got.headers()["content-type"], "image/jpeg");
    assert_eq!(got.headers()["x-content-type-options"], "nosniff");
    assert_eq!(got.bytes().await.unwrap(), content);
    let part = cloud
        .client
        .get(url)
        .header("Range", "bytes=10-19")
        .send()
        .await
        .unwrap();
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(part.bytes().await.unwrap().len(), 10);
    let page: Value = upload("passes", "page.html", b"<script>".to_vec())
        .await
        .json()
        .await
        .unwrap();
    let page = cloud
        .client
        .get(page["url"].as_str().unwrap())
        .send()
        .await
        .unwrap();
    assert_eq!(page.headers()["content-type"], "application/octet-stream");
    assert_eq!(page.headers()["content-disposition"], "attachment");
    // What is refused.
    for directory in ["..", "a%2Fb", "%2e%2e", "a.b"] {
        let refused = upload(directory, "x.jpg", b"x".to_vec()).await;
        assert!(refused.status().is_client_error(), "{directory}");
    }
    let large = upload("passes", "x.mp4", vec![0; (1 << 20) + 1]).await;
    assert_eq!(large.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let nameless = cloud
        .request(Method::POST, "upload/passes")
        .multipart(reqwest::multipart::Form::new().text("other", "x"))
        .send()
        .await
        .unwrap();
    assert_eq!(nameless.status(), StatusCode::BAD_REQUEST);
    // An interrupted upload leaves nothing.
    let boundary = "multipart/form-data; boundary=b";
    let half = "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"h.jpg\"\r\n\r\nhalf";
    let broken = cloud
        .request(Method::POST, "upload/passes")
        .header("Content-Type", boundary)
        .body(half)
        .send()
        .await
        .unwrap();
    assert_eq!(broken.status(), StatusCode::BAD_REQUEST);
    assert_eq!(
        std::fs::read_dir(cloud.files.path().join(".incoming"))
            .unwrap()
            .count(),
        0
    );
    // Ways out of the folder.
    let slips = cloud.files.path().join("college/leave_slips");
    std::os::unix::fs::symlink("/etc/passwd", slips.join("0123456789abcdef-link.txt")).unwrap();
    std::os::unix::fs::symlink("/etc", cloud.files.path().join("college/etc")).unwrap();
    for path in [
        "college/leave_slips/0123456789abcdef-link.txt",
        "college/etc/passwd",
        "college/leave_slips/..%2f..%2f..%2fetc%2fpasswd",
        "college/leave_slips/%2e%2e",
        "college/leave_slips/",
        "college/leave_slips",
        "",
        "..%2f/x/y",
        "annex/leave_slips/0123456789abcdef-link.txt",
    ] {
        let got = cloud
            .client
            .get(format!("{}/media/{path}", cloud.root))
            .send()
            .await
            .unwrap();
        assert_eq!(got.status(), StatusCode::NOT_FOUND, "{path}");
    }
    assert_eq!(cloud.count("cloud_meta.files").await, 2);
    cloud.end().await;
}

#[tokio::test]
async fn files_that_come_at_once_are_all_there_when_they_are_confirmed() {
    let cloud = Cloud::start("uploads").await;
    // Given forty files, ten of them with one name and content, ten with one name
    let uploads = (0..40_u32).map(|number| {
        let (name, content) = match number {
            0..10 => ("same.jpg".to_owned(), "the same".to_owned()),
            10..20 => ("named.jpg".to_owned(), format!("content {number}")),
            _ => (format!("{number}.jpg"), format!("content {number}")),
        };
        let part = reqwest::multipart::Part::bytes(content.clone().into_bytes()).file_name(name);
        let sent = cloud
            .request(Method::POST, "upload/passes")
            .multipart(reqwest::multipart::Form::new().part("file", part))
            .send();
        async move {
            let answer: Value = sent.await.unwrap().json().await.unwrap();
            assert_eq!(answer["success"], true, "{answer}");
            (answer["url"].as_str().unwrap().to_owned(), content)
        }
    });
    // When they arrive at once
    let answers = futures::future::join_all(uploads).await;
    // Then each is where its answer says, once.
    for (url, content) in &answers {
        assert_eq!(
            cloud.client.get(url).send().await.unwrap().text().await.unwrap(),
            *content
        );
    }
    assert_eq!(cloud.count("cloud_meta.files").await, 31);
    let folder = cloud.files.path().join("college/passes");
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), 31);
    assert_eq!(
        std::fs::read_dir(cloud.files.path().join(".incoming"))
            .unwrap()
            .count(),
        0
    );
    cloud.end().await;
}
