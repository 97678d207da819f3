//! A site that takes all that it can: the other sites are served as if it did not exist.

use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::{Cloud, counts, upsert};

/// The largest body in these tests.
const BODY: usize = 1 << 20;

/// A request of the site annex of which only this much is sent; its answer is not read.
async fn begun(cloud: &Cloud, head: &str, body: usize) -> TcpStream {
    let mut stream = TcpStream::connect(cloud.root.strip_prefix("http://").unwrap())
        .await
        .unwrap();
    let head = format!("{head} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer annex-key\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    if body > 0 {
        let head = format!(
            "Content-Length: {BODY}\r\nX-Source-Id: greedy\r\nX-Epoch: 1\r\nX-Term: 1\r\nX-Batch: 1\r\nX-Term-Nonce: n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
    }
    stream.write_all(b"\r\n").await.unwrap();
    // It is refused before its end if the site has its share already.
    let _ = stream.write_all(&vec![b' '; body]).await;
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_that_takes_its_full_share_holds_no_other_site_up() {
    let cloud = Cloud::start_with("shares", |settings| settings.body_limit = BODY).await;
    cloud.rooms().await;
    let annex = |method, path: &str| {
        let url = format!("{}/api/{path}", cloud.root);
        cloud.client.request(method, url).bearer_auth("annex-key")
    };
    let declared = serde_json::json!({"entity": "rooms", "key": ["room_id"], "window": null,
        "columns": [{"name": "room_id", "type": "bigint"}, {"name": "room_no", "type": "text"}]});
    let declared = annex(Method::PUT, "schema/rooms")
        .json(&declared)
        .send()
        .await
        .unwrap();
    assert_eq!(declared.status(), StatusCode::OK);
    sqlx::query(
        "insert into cloud.rooms (_site, _epoch, _version, room_id, room_no) \
         select 'annex', 1, 1, n, repeat('x', 1000) from generate_series(1, 20000) n",
    )
    .execute(&cloud.pool)
    .await
    .unwrap();
    let mut holder = cloud.pool.begin().await.unwrap();
    sqlx::query("update cloud.rooms set room_no = 'held' where _site = 'annex' and room_id = 1")
        .execute(&mut *holder)
        .await
        .unwrap();
    // Given a site with lists that it does not read, bodies that do not end, and rows that wait for a lock,
    let mut held = Vec::new();
    for _ in 0..16 {
        held.push(begun(&cloud, "GET /api/rooms", 0).await);
        held.push(begun(&cloud, "POST /api/changes", BODY - 100).await);
    }
    let waiting: Vec<_> = (0..40)
        .map(|_| {
            let row = serde_json::json!({"room_id": 1, "room_no": "waits"});
            tokio::spawn(annex(Method::POST, "rooms").json(&row).send())
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    // then another site's changes, rows, lists and status requests are all answered.
    let mut took = Vec::new();
    for id in 1..=200 {
        let start = Instant::now();
        assert_eq!(
            counts(&cloud.send(1, &[upsert(id, id, "other")]).await),
            (1, 0, 0)
        );
        took.push(start.elapsed());
    }
    let large = "x".repeat(BODY / 2);
    assert_eq!(
        counts(&cloud.send(1, &[upsert(201, 201, &large)]).await),
        (1, 0, 0)
    );
    let row = serde_json::json!({"room_id": 300});
    let posted = cloud
        .request(Method::POST, "rooms")
        .json(&row)
        .send()
        .await
        .unwrap();
    assert_eq!(posted.status(), StatusCode::OK);
    for path in ["rooms", "sync-status"] {
        let answer = cloud.request(Method::GET, path).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        answer.bytes().await.unwrap();
    }
    took.sort_unstable();
    println!(
        "a lone change of the other site: p50 {:?}, p99 {:?}, worst {:?}",
        took[99], took[197], took[199]
    );
    holder.rollback().await.unwrap();
    drop(held);
    for waited in waiting {
        let answer = waited.await.unwrap().unwrap();
        assert!(
            matches!(answer.status(), StatusCode::OK | StatusCode::SERVICE_UNAVAILABLE),
            "{answer:?}"
        );
    }
    cloud.end().await;
}
