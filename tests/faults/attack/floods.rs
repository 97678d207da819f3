//! Endless bodies, bombs and slow connections: little memory, and a place for whoever has a key.

use std::time::Duration;

use axum::body::Bytes;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Fort, HUGE, MEMORY};
use crate::support::batches::BatchSource;
use crate::support::oracle::Tally;
use crate::support::site::{KEY, LIMIT};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endless_bodies_and_bombs_take_no_memory() {
    let fort = Fort::build("bombs").await;
    let mut tally = Tally::default();
    let zeroes = || {
        let piece = Bytes::from(vec![b' '; 256 * 1024]);
        let count = HUGE / piece.len() as u64;
        futures::stream::iter((0..count).map(move |_| Ok::<_, std::io::Error>(piece.clone())))
    };
    // Given bodies of ten gigabytes, with their length and without,
    for path in ["changes", "rooms", "bulk/rooms"] {
        for length in [true, false] {
            let mut request = fort
                .source
                .next()
                .put(fort.post(path))
                .body(reqwest::Body::wrap_stream(zeroes()));
            if length {
                request = request.header("content-length", HUGE);
            }
            tally.faults += 1;
            // The answer may come before the body has gone, and the connection with it.
            if let Ok(answer) = request.send().await {
                assert_eq!(answer.status(), 413, "{path}");
            }
        }
    }
    // a multipart body whose first boundary never comes, whose head never ends, whose other part never ends,
    let kind = "multipart/form-data; boundary=B";
    for start in [
        "",
        "--B\r\nContent-Disposition: form-data; name=\"file\"; x=\"",
        "--B\r\nContent-Disposition: form-data; name=\"note\"\r\n\r\n",
    ] {
        let first = futures::stream::iter([Ok::<_, std::io::Error>(Bytes::from(start))]);
        let body = reqwest::Body::wrap_stream(futures::StreamExt::chain(first, zeroes()));
        tally.faults += 1;
        let sent = fort
            .post("upload/slips")
            .header("content-type", kind)
            .body(body)
            .send();
        if let Ok(answer) = tokio::time::timeout(LIMIT, sent).await.expect("an end") {
            assert!(answer.status().is_client_error(), "{}", answer.status());
        }
    }
    // and a few kilobytes that unpack to gigabytes,
    for (bytes, window) in [(1_u64 << 29, None), (1 << 27, Some(27))] {
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 3).unwrap();
        if let Some(window) = window {
            encoder.window_log(window).unwrap();
        }
        std::io::copy(
            &mut std::io::Read::take(std::io::repeat(b' '), bytes),
            &mut encoder,
        )
        .unwrap();
        let bomb = encoder.finish().unwrap();
        tally.faults += 1;
        let request = fort.changes().header("content-encoding", "zstd").body(bomb);
        let status = request.send().await.unwrap().status().as_u16();
        assert!(matches!(status, 400 | 413), "{status}");
    }
    // then each is refused, and little of it was ever in memory.
    fort.is_serving(1).await;
    let peak = fort.receiver.peak_memory();
    println!("at most {} MiB", peak >> 20);
    assert!(peak < MEMORY, "{peak} bytes");
    let left: Vec<_> = std::fs::read_dir(fort.cloud.files.join(".incoming"))
        .unwrap()
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_connections_keep_nobody_out() {
    let fort = Fort::build("loris").await;
    let mut tally = Tally::default();
    // Given more connections than there are places, each of which has begun a head or a body and says no
    // more,
    let path = format!(
        "Host: {}\r\nAuthorization: Bearer wrong\r\n",
        fort.receiver.address
    );
    let starts = std::sync::Arc::new([
        String::new(),
        "GET /api/sync-sta".to_owned(),
        "GET /api/sync-status HTTP/1.1\r\nHost: x\r\nX-A: b\r\n".to_owned(),
        format!("POST /api/changes HTTP/1.1\r\n{path}Content-Length: 1000\r\n\r\nx"),
        format!("POST /api/upload/a HTTP/1.1\r\n{path}Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"),
    ]);
    let mut slow = tokio::task::JoinSet::new();
    let opened = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    for nth in 0..1500 {
        let (address, starts, opened) = (fort.receiver.address.clone(), starts.clone(), opened.clone());
        slow.spawn(async move {
            loop {
                // Whoever is sent away comes again.
                if let Ok(mut stream) = TcpStream::connect(&address).await {
                    opened.add_permits(1);
                    let _ = stream.write_all(starts[nth % starts.len()].as_bytes()).await;
                    let _ = stream.read_to_end(&mut Vec::new()).await;
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
        tally.faults += 1;
    }
    let all = tokio::time::timeout(LIMIT, opened.acquire_many(1100)).await;
    all.expect("more connections than places").unwrap().forget();
    // when a site comes that has a key, on a new connection each time, it is served each time.
    let source = BatchSource::new("site");
    let served = async {
        for position in 1..20 {
            let line =
                json!({"position": position, "entity": "rooms", "op": "delete", "key": {"room_id": 1}});
            let name = source.next();
            // A stranger until its first request is read, it may be sent away once in the crowd, as by any
            // full server.
            loop {
                let request = reqwest::Client::new()
                    .post(format!("{}/changes", fort.cloud.url))
                    .bearer_auth(KEY)
                    .body(line.to_string());
                if let Ok(answer) = name.put(request).send().await {
                    assert_eq!(answer.status(), 200);
                    source.taken(name);
                    break;
                }
            }
        }
    };
    tokio::time::timeout(LIMIT, served)
        .await
        .expect("an answer to each");
    slow.shutdown().await;
    // One that says nothing is sent away before long.
    let mut silent = TcpStream::connect(&fort.receiver.address).await.unwrap();
    let end = tokio::time::timeout(LIMIT, silent.read_to_end(&mut Vec::new())).await;
    end.expect("an end").ok();
    let peak = fort.receiver.peak_memory();
    assert!(peak < MEMORY, "{peak} bytes");
    fort.is_discreet(&["wrong\r"]);
}
