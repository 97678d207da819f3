//! Requests with two ends, two sites or a wrong kind of content.

use serde_json::{Value, json};

use super::Fort;
use crate::support::batches::BatchSource;
use crate::support::oracle::Tally;
use crate::support::site::{KEY, SITE, connect};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_has_one_end_and_one_site() {
    let fort = Fort::build("smuggle").await;
    let mut tally = Tally::default();
    let inner = "GET /api/rooms HTTP/1.1\r\nHost: x\r\n\r\n";
    let head = |more: &str| {
        format!(
            "POST /api/rooms HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nConnection: \
             close\r\n{more}\r\n"
        )
    };
    // Two lengths, or a length that is none, are refused or read in the one way that the standard allows (RFC
    // 9112, 6.3): what is hidden behind them is never answered as a request.
    for more in [
        "Content-Length: 4\r\nContent-Length: 100\r\n",
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: xchunked\r\nContent-Length: 4\r\n",
        "Content-Length: +4\r\n",
        "Content-Length: 4, 100\r\n",
        "Content-Length : 4\r\n",
        "Transfer-Encoding\u{b}: chunked\r\n",
    ] {
        let bytes = format!("{}0\r\n\r\n{inner}", head(more));
        let answer = fort.raw(bytes.as_bytes()).await;
        tally.faults += 1;
        assert!(answer.matches("HTTP/1.1 ").count() <= 1, "{more}: {answer}");
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
            "{more}: {answer}"
        );
    }
    // Of two keys in one request none is chosen but the first, and what the request claims chooses nothing.
    fort.receiver
        .rekey(&[(SITE, &[KEY]), ("annex", &["the-annex-key"])]);
    fort.receiver.signal("HUP");
    fort.receiver.logged("the settings were read again").await;
    fort.is_serving(1).await;
    let line = json!({"position": 9, "entity": "rooms", "op": "delete", "key": {"room_id": 1, "_site": SITE}, "site": SITE});
    let body = line.to_string();
    let request = |key: &str| {
        let request = fort
            .client
            .post(format!("{}/changes", fort.cloud.url))
            .bearer_auth(key)
            .header("x-site", SITE)
            .body(body.clone());
        BatchSource::new(SITE).next().put(request)
    };
    let answer: Value = request("the-annex-key")
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    tally.faults += 1;
    assert_eq!(answer["rejected"][0]["code"], "unknown-entity", "{answer}");
    let there = connect(&fort.cloud.database_url).await;
    let row = there
        .query_one("select count(*) from cloud.rooms where _site = $1", &[&SITE])
        .await;
    assert_eq!(row.unwrap().get::<_, i64>(0), 1);
    // Wrong kinds of content are refused, not guessed.
    for (path, kind) in [
        ("upload/slips", "application/json"),
        ("upload/slips", "multipart/form-data"),
        ("upload/slips", ""),
    ] {
        let request = fort.post(path).header("content-type", kind).body("{}");
        assert_eq!(request.send().await.unwrap().status(), 400, "{kind}");
        tally.faults += 1;
    }
    let request = fort.changes().header("content-encoding", "gzip").body("{}");
    assert_eq!(request.send().await.unwrap().status(), 415);
    fort.is_discreet(&[KEY, "the-annex-key"]);
}
