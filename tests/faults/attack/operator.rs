//! The operator API of a site, under the same attacks.

use axum::body::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::MEMORY;
use crate::support::oracle::Tally;
use crate::support::process::{Daemon, peak_memory};
use crate::support::site::Site;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operator_api_stands_the_same() {
    let (cloud, site) = Site::school_with_cloud("operator").await;
    let daemon = Daemon::of(&site, "store");
    let mut tally = Tally::default();
    let process = daemon.start();
    site.run("insert into tbl_room (room_no, room_name) values ('1', 'one')")
        .await;
    daemon.caught_up().await;
    let token = std::fs::read_to_string(site.folder.path().join("store/control.token")).unwrap();
    let url = format!("http://{}/api/cloud-sync/sync-now", daemon.listen());
    let client = reqwest::Client::new();
    // Guessed tokens and huge bodies, with the token and without,
    for guess in ["", "x", &token.trim()[..63], &format!("{}0", token.trim())] {
        let request = client.post(&url).bearer_auth(guess).body(vec![b' '; 1 << 20]);
        tally.faults += 1;
        if let Ok(answer) = request.send().await {
            assert_eq!(answer.status(), 401);
        }
    }
    let piece = Bytes::from(vec![b' '; 256 * 1024]);
    let body = futures::stream::iter((0..40_000).map(move |_| Ok::<_, std::io::Error>(piece.clone())));
    let request = client
        .post(&url)
        .bearer_auth(token.trim())
        .body(reqwest::Body::wrap_stream(body));
    tally.faults += 1;
    if let Ok(answer) = request.send().await {
        assert_eq!(answer.status(), 413);
    }
    // and more slow connections than there are places,
    let mut held = Vec::new();
    for _ in 0..600 {
        if let Ok(mut stream) = TcpStream::connect(daemon.listen()).await {
            let _ = stream
                .write_all(b"GET /api/cloud-sync/status HTTP/1.1\r\nHost: x\r\n")
                .await;
            held.push(stream);
            tally.faults += 1;
        }
    }
    // stop neither the operator nor the drain.
    assert!(daemon.status().await.is_some());
    assert_eq!(daemon.health().await, 200);
    site.run("insert into tbl_room (room_no, room_name) values ('2', 'two')")
        .await;
    daemon.caught_up().await;
    let peak = peak_memory(process.pid().parse().unwrap());
    assert!(peak < MEMORY, "{peak} bytes");
    assert!(!daemon.log().contains(token.trim()), "{}", daemon.log());
    assert!(process.terminate().await.success());
    tally.judge(&site, &cloud).await;
}
