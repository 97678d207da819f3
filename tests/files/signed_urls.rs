//! URLs of files that hold for a time: whoever has an old one reads nothing, and the row gets a newer one before.

use std::time::{Duration, Instant};

use reqwest::{Client, StatusCode};

use super::{FACULTY, LEAVE, slip_url};
use crate::support::s3_server;
use crate::support::site::{Cloud, KEY, LIMIT, SCHOOL, Site};

/// Long enough for a slow machine to read a file in it.
const VALID: Duration = Duration::from_secs(9);

fn client() -> Client {
    Client::builder().no_proxy().build().unwrap()
}

async fn status_of(url: &str) -> StatusCode {
    client().get(url).send().await.unwrap().status()
}

async fn content_of(url: &str) -> Vec<u8> {
    let answer = client().get(url).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK, "{url}");
    answer.bytes().await.unwrap().to_vec()
}

fn without_query(url: &str) -> &str {
    url.split('?').next().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_url_that_ends_is_renewed_in_the_row_before() {
    let mut cloud = Cloud::start("url_end").await;
    cloud.away().await;
    cloud.set_url_valid(VALID);
    cloud.back().await;
    let mut site = Site::bare("url_end", &cloud.url, KEY, SCHOOL, "").await;
    site.reconfigure("[media]", "[media]\nrescan = \"1s\"");
    site.init().await;
    // Given one file that goes in one request, and one in parts
    let contents = [vec![1_u8; 1_000], vec![2_u8; 3 << 20]];
    for (name, content) in ["small.jpg", "large.jpg"].iter().zip(&contents) {
        std::fs::write(site.media().join(name), content).unwrap();
    }
    site.run(&format!("{FACULTY} ('x', null)")).await;
    site.run(&format!("{LEAVE} (1, 'small.jpg'), (1, 'large.jpg')"))
        .await;
    let running = site.replicate();
    running
        .until("uploaded", |status| status.files.uploaded == 2)
        .await;
    running.caught_up().await;
    // Then each has a URL that holds, and nothing less does.
    let mut first = Vec::new();
    for (leave, content) in [(1, &contents[0]), (2, &contents[1])] {
        let url = slip_url(&cloud, leave).await.unwrap();
        assert!(content_of(&url).await == *content);
        assert_eq!(status_of(without_query(&url)).await, StatusCode::FORBIDDEN);
        first.push(url);
    }
    let swapped = first[0].replace(without_query(&first[0]), without_query(&first[1]));
    assert_eq!(status_of(&swapped).await, StatusCode::FORBIDDEN);
    // A receiver that is started again honours them,
    cloud.away().await;
    cloud.back().await;
    // and before they end, the rows have newer ones.
    for (leave, old) in [(1, &first[0]), (2, &first[1])] {
        let start = Instant::now();
        let newer = loop {
            let url = slip_url(&cloud, leave).await.unwrap();
            if url != *old {
                break url;
            }
            assert!(start.elapsed() < LIMIT, "the URL is not renewed");
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        assert_eq!(without_query(&newer), without_query(old));
        assert!(content_of(&newer).await == contents[leave as usize - 1]);
        while status_of(old).await == StatusCode::OK {
            assert!(start.elapsed() < LIMIT, "the URL does not end");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    // No byte of a file was sent again for that.
    let uploads = "select count(*) from cloud_meta.files";
    let files: i64 = crate::support::site::connect(&cloud.database_url)
        .await
        .query_one(uploads, &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(files, 2);
    running.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_storage_signs_its_urls() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("school")).unwrap();
    let storage = s3_server::settings(&s3_server::serve(folder.path()).await);
    let config = format!("[files]\n{storage}\nurl_valid = \"7d\"\n");
    let (cloud, site) = Site::captured("url_signed", SCHOOL, &config).await;
    std::fs::write(site.media().join("a.jpg"), "slip").unwrap();
    site.run(&format!("{FACULTY} ('x', null)")).await;
    site.run(&format!("{LEAVE} (1, 'a.jpg')")).await;
    let running = site.replicate();
    running
        .until("uploaded", |status| status.files.uploaded == 1)
        .await;
    running.caught_up().await;
    let url = slip_url(&cloud, 1).await.unwrap();
    assert_eq!(content_of(&url).await, b"slip");
    assert_ne!(status_of(without_query(&url)).await, StatusCode::OK);
    // It is renewed when a third of its time is left,
    let renewal = "select extract(epoch from url_renew_at - now())::float8 from cloud_sync.media";
    let seconds: f64 = site.client.query_one(renewal, &[]).await.unwrap().get(0);
    let expected = 7.0 * 86_400.0 * 2.0 / 3.0;
    assert!((expected - 300.0..=expected).contains(&seconds), "{seconds}");
    // and a question whether the file is there changes no row.
    site.run("update cloud_sync.media set state = 'waiting', uploaded_at = null, next_attempt = now()")
        .await;
    running
        .replicator
        .sync(&Default::default(), &cloud_sync::reconcile::NoObserver)
        .await
        .unwrap();
    running
        .until("confirmed", |status| status.files.uploaded == 1)
        .await;
    running.caught_up().await;
    assert_eq!(slip_url(&cloud, 1).await.unwrap(), url);
    running.end().await;
}
