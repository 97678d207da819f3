//! A cloud that cannot be reached, and connections that break off.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

use super::{reason, rooms, waits, why};
use crate::support::oracle::Tally;
use crate::support::site::{Cloud, KEY, Site, connect};
use crate::support::tcp_proxy::{TcpProxy, Trouble};

#[tokio::test]
async fn a_cloud_that_is_away_from_the_start_is_told_with_a_remedy_and_found_when_it_comes() {
    let (mut cloud, site) = Site::school_with_cloud("absent").await;
    let mut tally = Tally::default();
    // Given a cloud that is away, and nothing to send
    cloud.away().await;
    tally.faults += 1;
    let replicator = site.replicate();
    // then the status says so, and what to do,
    let message = why(&replicator).await;
    assert!(message.contains("refused the connection"), "{message}");
    assert!(
        message.contains("; check that the cloud's server runs"),
        "{message}"
    );
    // capture goes on,
    rooms(&site, 1, 20).await;
    let status = waits(&replicator, 20).await;
    assert!(reason(&status).contains("refused the connection"));
    // and it is found when it appears, without a restart.
    cloud.back().await;
    let status = replicator.caught_up().await;
    assert_eq!(status.cloud.reachable, Some(true));
    assert!(status.cloud.capabilities.contains(&"changes".to_owned()));
    replicator.end().await;
    tally.judge(&site, &cloud).await;
}

#[tokio::test]
async fn a_name_without_an_address_is_told_with_a_remedy() {
    let site = Site::school("nameless", "https://cloud.invalid/api", KEY).await;
    let tally = Tally {
        faults: 1,
        ..Tally::default()
    };
    let replicator = site.replicate();
    let message = why(&replicator).await;
    assert!(
        message.contains("the host name cloud.invalid cannot be resolved"),
        "{message}"
    );
    assert!(
        message.contains("; check the host name in cloud.url"),
        "{message}"
    );
    rooms(&site, 1, 3).await;
    waits(&replicator, 3).await;
    replicator.end().await;
    drop(tally);
}

#[tokio::test]
async fn connections_that_break_off_anywhere_lose_and_double_nothing() {
    let cloud = Cloud::start("breaks").await;
    let proxy = TcpProxy::start(cloud.address()).await;
    let mut site = Site::school("breaks", &proxy.url(), KEY).await;
    site.settings.cloud.timeout = Duration::from_secs(1);
    let there = connect(&cloud.database_url).await;
    let mut tally = Tally::default();
    let replicator = site.replicate();
    rooms(&site, 1, 1).await;
    replicator.caught_up().await;
    // Given requests that are cut in their head or body, answers that are cut before or amid their head,
    // silence, and a closed port
    for (nth, trouble) in [
        Trouble::CutRequest(0),
        Trouble::CutRequest(40),
        Trouble::CutRequest(900),
        Trouble::CutAnswer(0),
        Trouble::CutAnswer(60),
        Trouble::Stall,
        Trouble::Refuse,
    ]
    .into_iter()
    .enumerate()
    {
        let struck = proxy.struck();
        proxy.set(trouble);
        rooms(&site, 100 + 10 * nth as i64, 10).await;
        let message = why(&replicator).await;
        println!("{trouble:?}: {message}");
        let (cause, remedy) = message.split_once("; ").expect("a remedy");
        assert!(cause.starts_with("cannot ") && !remedy.is_empty(), "{message}");
        // when it passes, then all arrives.
        proxy.set(Trouble::None);
        replicator.caught_up().await;
        tally.faults += (proxy.struck() - struck).max(1);
    }
    replicator.end().await;
    tally.judge(&site, &cloud).await;
    // What was heard although its answer was lost is applied once.
    let applied: i64 = there
        .query_one("select count(*) from cloud_meta.history", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(applied, 71);
}

#[tokio::test]
async fn an_uplink_that_never_carries_a_long_request_gets_short_ones() {
    let cloud = Cloud::start("short").await;
    let proxy = TcpProxy::start(cloud.address()).await;
    let site = Site::school("short", &proxy.url(), KEY).await;
    let mut tally = Tally::default();
    // Given a backlog whose batches are longer than what any connection carries before it is cut
    site.run(
        "insert into tbl_room (room_no, room_name) select 'R' || n, repeat('x', 1000) \
         from generate_series(1, 1500) n",
    )
    .await;
    proxy.set(Trouble::CutRequest(200_000));
    // then it gets through all the same.
    let replicator = site.replicate();
    replicator.caught_up().await;
    replicator.end().await;
    tally.faults += proxy.struck();
    assert!(proxy.struck() > 0);
    tally.judge(&site, &cloud).await;
}

/// A cloud that takes one request after the other, each on a connection of its own. It fails the second and
/// the fourth `POST /changes`, and leaves the next request time to come before it answers. Answers its URL,
/// and how many changes were in each request that it accepted.
async fn one_at_a_time() -> (String, Arc<Mutex<Vec<usize>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/api", listener.local_addr().unwrap());
    let accepted = Arc::new(Mutex::new(Vec::new()));
    let record = accepted.clone();
    tokio::spawn(async move {
        let mut pushes = 0;
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            let (mut line, mut push, mut length) = (String::new(), false, 0);
            while stream.read_line(&mut line).await.unwrap_or(0) > 2 {
                let header = line.to_ascii_lowercase();
                push |= header.starts_with("post /api/changes");
                if let Some(value) = header.strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                line.clear();
            }
            let mut body = vec![0; length];
            // Whoever goes away is answered nothing.
            if stream.read_exact(&mut body).await.is_err() {
                continue;
            }
            let (mut status, mut answer) = (200, r#"{"status":"ok","capabilities":["changes"]}"#.to_owned());
            if push {
                tokio::time::sleep(Duration::from_millis(100)).await;
                pushes += 1;
                let changes = body.iter().filter(|byte| **byte == b'\n').count();
                if [2, 4].contains(&pushes) {
                    (status, answer) = (503, "{}".to_owned());
                } else {
                    record.lock().unwrap().push(changes);
                    answer = format!(r#"{{"applied":{changes},"skipped":0,"rejected":[]}}"#);
                }
            }
            let answer = format!(
                "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{answer}",
                answer.len()
            );
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (url, accepted)
}

#[tokio::test]
async fn a_cloud_that_takes_one_request_after_the_other_is_never_kept_waiting_by_what_went_ahead() {
    let (url, accepted) = one_at_a_time().await;
    let mut site = Site::school("one_at_a_time", &url, KEY).await;
    site.settings.delivery.batch_rows = 10;
    // Nothing gets through because a time limit ends it.
    site.settings.cloud.timeout = Duration::from_secs(600);
    let tally = Tally {
        faults: 2,
        ..Tally::default()
    };
    rooms(&site, 1, 100).await;
    let replicator = site.replicate();
    replicator.caught_up().await;
    assert_eq!(*accepted.lock().unwrap(), [10; 10]);
    replicator.end().await;
    drop(tally);
}
