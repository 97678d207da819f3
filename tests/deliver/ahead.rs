//! Requests of changes that are sent ahead, all but the last byte.

use cloud_sync::deliver::Ahead;
use futures::StreamExt;
use tokio::sync::watch;
use tokio::time::timeout;

use super::*;

/// Long enough for whatever would come.
const A_WHILE: Duration = Duration::from_millis(300);

/// A server that shows how much of each body has come.
struct Slow {
    url: String,
    /// The bytes of all bodies.
    bytes: watch::Receiver<usize>,
    /// The bodies that ended, and those that broke off.
    whole: Arc<Mutex<Vec<Seen>>>,
    broken: Arc<AtomicUsize>,
}

impl Slow {
    /// Bodies are read while `open`.
    async fn start(open: watch::Receiver<bool>) -> Self {
        let (come, bytes) = watch::channel(0);
        let whole = Arc::new(Mutex::new(Vec::new()));
        let broken = Arc::new(AtomicUsize::new(0));
        let (ended, broke) = (Arc::clone(&whole), Arc::clone(&broken));
        let come = Arc::new(come);
        let app = Router::new().fallback(move |method: Method, uri: Uri, headers: HeaderMap, body: Body| {
            let (ended, broke, come, mut open) = (
                Arc::clone(&ended),
                Arc::clone(&broke),
                Arc::clone(&come),
                open.clone(),
            );
            async move {
                let mut all = Vec::new();
                let mut body = body.into_data_stream();
                open.wait_for(|open| *open).await.unwrap();
                while let Some(piece) = body.next().await {
                    let Ok(piece) = piece else {
                        broke.fetch_add(1, Ordering::Relaxed);
                        return StatusCode::BAD_REQUEST.into_response();
                    };
                    come.send_modify(|bytes| *bytes += piece.len());
                    all.extend_from_slice(&piece);
                }
                let body = all.into();
                let request = Seen {
                    method,
                    uri,
                    headers,
                    body,
                };
                ended.lock().unwrap().push(request.clone());
                all_applied(&request)
            }
        });
        Self {
            url: serve(app).await,
            bytes,
            whole,
            broken,
        }
    }

    async fn has(&mut self, count: usize) {
        timeout(
            Duration::from_secs(20),
            self.bytes.wait_for(|bytes| *bytes >= count),
        )
        .await
        .expect("it does not come")
        .unwrap();
    }

    fn whole(&self) -> Vec<Seen> {
        self.whole.lock().unwrap().clone()
    }
}

/// A server to which rooms with ids from 1 went ahead, its client, the batch, what went ahead, and its whole length.
async fn rooms_ahead(count: i64) -> (Slow, Cloud, Batch, Ahead, usize) {
    let whole = Scripted::start(all_applied).await;
    client(&whole.url)
        .deliver(CHANGES, &origin(), &mut numbering(), &mut rooms(1..=count))
        .await
        .unwrap();
    let all = whole.seen()[0].body.len();
    let mut server = Slow::start(watch::channel(true).1).await;
    let cloud = client(&server.url);
    let batch = rooms(1..=count);
    let ahead = cloud.send_ahead(&origin(), &numbering(), &batch).await.unwrap();
    server.has(all - 1).await;
    (server, cloud, batch, ahead, all)
}

#[tokio::test]
async fn all_but_the_last_byte_goes_ahead() {
    let (server, cloud, mut batch, ahead, all) = rooms_ahead(5000).await;
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(*server.bytes.borrow(), all - 1);
    assert!(server.whole().is_empty());

    cloud
        .deliver_begun(CHANGES, &origin(), &mut numbering(), &mut batch, Some(ahead))
        .await
        .unwrap();
    assert_eq!(batch.count(&Fate::Accepted), 5000);
    let whole = server.whole();
    assert_eq!(whole.len(), 1);
    assert_eq!(whole[0].positions(), (1..=5000).collect::<Vec<_>>());
    assert_eq!(*server.bytes.borrow(), all, "nothing went twice");
}

#[tokio::test]
async fn what_was_sent_ahead_and_given_up_never_ends() {
    let (server, cloud, mut batch, ahead, _) = rooms_ahead(3).await;
    drop(ahead);
    while server.broken.load(Ordering::Relaxed) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(server.whole().is_empty());

    // Another batch than the one that was sent ahead goes by itself.
    let ahead = cloud.send_ahead(&origin(), &numbering(), &batch).await.unwrap();
    batch.set_fate(1, Fate::Accepted);
    cloud
        .deliver_begun(CHANGES, &origin(), &mut numbering(), &mut batch, Some(ahead))
        .await
        .unwrap();
    assert_eq!(batch.count(&Fate::Accepted), 3);
    let whole = server.whole();
    assert_eq!(whole.len(), 1);
    assert_eq!(whole[0].positions(), [1, 3]);
}

#[tokio::test]
async fn a_server_that_does_not_wait_is_asked_again() {
    // The first request is answered before its end, by a server that has not seen what it answers.
    for status in [200, 401, 413, 503] {
        let asked = Arc::new(AtomicUsize::new(0));
        let app = Router::new().fallback(move |body: Body| {
            let first = asked.fetch_add(1, Ordering::Relaxed) == 0;
            async move {
                if first {
                    return StatusCode::from_u16(status).unwrap().into_response();
                }
                let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
                let applied = body.iter().filter(|byte| **byte == b'\n').count();
                json_answer(200, json!({"applied": applied, "skipped": 0, "rejected": []}))
            }
        });
        let cloud = client(&serve(app).await);
        let mut batch = rooms(1..=2);
        let ahead = cloud.send_ahead(&origin(), &numbering(), &batch).await.unwrap();
        tokio::time::sleep(A_WHILE).await;
        cloud
            .deliver_begun(CHANGES, &origin(), &mut numbering(), &mut batch, Some(ahead))
            .await
            .unwrap();
        assert_eq!(batch.count(&Fate::Accepted), 2, "{status}");
    }
}

#[tokio::test]
async fn nothing_goes_ahead_of_a_body_that_is_under_way() {
    let wide = |position| {
        let mut batch = Batch::new(vec![change(position, ROOMS, Op::Upsert, 1)]);
        let row = format!("{{\"room_id\":1,\"x\":\"{}\"}}", "x".repeat(32 << 20));
        batch.changes_mut()[0].row = Some(row.into());
        batch
    };
    let (open, opened) = watch::channel(false);
    let server = Slow::start(opened).await;
    let cloud = client(&server.url);
    let (mut first, mut second) = (wide(1), rooms([2]));
    let origin = origin();
    let (mut numbers, following) = (numbering(), numbering().after_next());
    let mut delivery = Box::pin(cloud.deliver(CHANGES, &origin, &mut numbers, &mut first));
    let mut ahead = Box::pin(cloud.send_ahead(&origin, &following, &second));
    tokio::select! {
        biased;
        _ = &mut delivery => panic!("nobody reads it"),
        () = tokio::time::sleep(A_WHILE) => {}
    }
    tokio::select! {
        biased;
        _ = &mut delivery => panic!("nobody reads it"),
        _ = &mut ahead => panic!("it went ahead"),
        () = tokio::time::sleep(A_WHILE) => {}
    }
    open.send_replace(true);
    let (delivered, ahead) = tokio::join!(delivery, ahead);
    delivered.unwrap();
    cloud
        .deliver_begun(CHANGES, &origin, &mut numbers, &mut second, ahead)
        .await
        .unwrap();
    let positions: Vec<_> = server.whole().iter().map(Seen::positions).collect();
    assert_eq!(positions, [[1], [1]]);
}

#[tokio::test]
async fn what_takes_several_requests_does_not_go_ahead() {
    let server = Scripted::start(|request| {
        if request.body.len() > 40_000 {
            return StatusCode::PAYLOAD_TOO_LARGE.into_response();
        }
        all_applied(request)
    })
    .await;
    let cloud = client(&server.url);
    let mut batch = rooms(1..=1000);
    cloud
        .deliver(CHANGES, &origin(), &mut numbering(), &mut batch)
        .await
        .unwrap();
    assert!(
        cloud
            .send_ahead(&origin(), &numbering(), &rooms(1..=1000))
            .await
            .is_none()
    );
    assert!(
        cloud
            .send_ahead(&origin(), &numbering(), &rooms(1..=10))
            .await
            .is_some()
    );
    assert!(
        cloud
            .send_ahead(&origin(), &numbering(), &Batch::default())
            .await
            .is_none()
    );
}
