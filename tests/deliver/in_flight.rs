//! Batches that go before the batch before them is answered.

use cloud_sync::deliver::{Failure, InFlight};
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
    /// The bodies that ended.
    whole: Arc<Mutex<Vec<Seen>>>,
}

impl Slow {
    /// Bodies are read while `open`.
    async fn start(open: watch::Receiver<bool>) -> Self {
        let (come, bytes) = watch::channel(0);
        let whole = Arc::new(Mutex::new(Vec::new()));
        let ended = Arc::clone(&whole);
        let come = Arc::new(come);
        let app = Router::new().fallback(move |method: Method, uri: Uri, headers: HeaderMap, body: Body| {
            let (ended, come, mut open) = (Arc::clone(&ended), Arc::clone(&come), open.clone());
            async move {
                let mut all = Vec::new();
                let mut body = body.into_data_stream();
                open.wait_for(|open| *open).await.unwrap();
                while let Some(piece) = body.next().await {
                    let Ok(piece) = piece else {
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

/// The numbers of a term whose first batch the cloud has, which takes batches in their order.
async fn second(cloud: &Cloud) -> Numbering {
    let mut numbers = numbering().in_order();
    first(cloud, &mut numbers).await;
    numbers
}

/// Delivers the first batch under these numbers.
async fn first(cloud: &Cloud, numbers: &mut Numbering) {
    cloud
        .deliver(CHANGES, &origin(), numbers, &mut rooms([1]))
        .await
        .unwrap();
}

/// A server that has the first batch of a term and reads no other body until the sender says so.
async fn shut() -> (watch::Sender<bool>, Slow, Cloud, Numbering) {
    let (open, opened) = watch::channel(true);
    let server = Slow::start(opened).await;
    let cloud = client(&server.url);
    let numbers = second(&cloud).await;
    open.send_replace(false);
    (open, server, cloud, numbers)
}

/// What goes behind the next batch.
async fn behind(cloud: &Cloud, numbers: &Numbering, batch: &Batch) -> Option<(InFlight, blake3::Hash)> {
    cloud
        .send_behind(&origin(), numbers, numbers.next + 1, batch, None)
        .await
}

fn numbers_of(seen: &[Seen]) -> Vec<String> {
    let number = |seen: &Seen| seen.headers["x-batch"].to_str().unwrap().to_owned();
    seen.iter().map(number).collect()
}

#[tokio::test]
async fn a_batch_goes_whole_before_the_one_before_it_is_answered() {
    let (open, mut server, cloud, mut numbers) = shut().await;
    let (mut first, mut next) = (rooms(1..=3), rooms(4..=6));
    let mut watched = numbers.watch().unwrap();
    let origin = origin();
    let following = numbers.clone();
    let mut delivery = Box::pin(cloud.deliver(CHANGES, &origin, &mut numbers, &mut first));
    // Others may be sent as soon as it is in flight,
    tokio::select! {
        biased;
        _ = &mut delivery => panic!("nobody reads it"),
        number = watched.wait_for(Option::is_some) => assert_eq!(*number.unwrap(), Some(2)),
    }
    let (in_flight, hash) = behind(&cloud, &following, &next).await.unwrap();
    tokio::select! {
        biased;
        _ = &mut delivery => panic!("nobody reads it"),
        () = tokio::time::sleep(A_WHILE) => {}
    }
    open.send_replace(true);
    delivery.await.unwrap();
    // and none behind what is answered.
    assert_eq!(*watched.borrow(), None);
    assert!(numbers.sent_after_last_taken());
    server.has(1).await;
    numbers.note_sent_early(hash);
    cloud
        .deliver_in_flight(CHANGES, &origin, &mut numbers, &mut next, Some(in_flight))
        .await
        .unwrap();
    assert!(!numbers.sent_after_last_taken());
    assert_eq!(
        (first.count(&Fate::Accepted), next.count(&Fate::Accepted)),
        (3, 3)
    );
    let mut whole = server.whole();
    whole.sort_by_key(|seen| seen.headers["x-batch"].to_str().unwrap().to_owned());
    assert_eq!(numbers_of(&whole), ["1", "2", "3"], "nothing went twice");
    assert_eq!(whole[2].positions(), [1, 2, 3]);
    assert!(!whole[2].headers.contains_key("x-previous-nonce"));
}

#[tokio::test]
async fn nothing_goes_before_its_turn_where_the_cloud_would_take_it() {
    let server = Scripted::start(all_applied).await;
    let cloud = client(&server.url);
    let mut numbers = numbering();
    assert!(numbers.watch().is_none());
    first(&cloud, &mut numbers).await;
    assert!(behind(&cloud, &numbers, &rooms([2])).await.is_none());
    // The first batch of a term goes alone: the cloud does not know the term.
    let mut numbers = numbering().in_order();
    let watched = numbers.watch().unwrap();
    first(&cloud, &mut numbers).await;
    assert!(!watched.has_changed().unwrap());
}

#[tokio::test]
async fn what_was_in_flight_and_given_up_goes_again_as_it_was() {
    let (open, _server, cloud, mut numbers) = shut().await;
    let mut next = rooms(1..=3);
    let (in_flight, hash) = cloud
        .send_behind(&origin(), &numbers, 2, &next, None)
        .await
        .unwrap();
    tokio::time::sleep(A_WHILE).await;
    drop(in_flight);
    open.send_replace(true);
    numbers.note_sent_early(hash);
    // Other changes do not go under its number, neither behind another batch nor in their turn.
    let sent = cloud
        .send_behind(&origin(), &numbers, 2, &rooms([9]), Some(hash))
        .await;
    assert!(sent.is_none());
    let failure = cloud
        .deliver(CHANGES, &origin(), &mut numbers, &mut rooms([9]))
        .await
        .unwrap_err();
    assert!(failure.needs_new_term(), "{failure}");
    cloud
        .deliver(CHANGES, &origin(), &mut numbers, &mut next)
        .await
        .unwrap();
    assert_eq!(next.count(&Fate::Accepted), 3);
}

/// An answer to the second batch and the outcome of its delivery, where another one went behind it.
async fn followed(answer: impl Fn() -> Response + Send + Sync + 'static) -> (Result<(), Failure>, Batch) {
    let server = Scripted::start(move |request| match request.headers["x-batch"].to_str() {
        Ok("2") => answer(),
        _ => all_applied(request),
    })
    .await;
    let cloud = client(&server.url);
    let mut numbers = second(&cloud).await;
    let _in_flight = behind(&cloud, &numbers, &rooms([7])).await.unwrap();
    let mut batch = rooms(1..=2);
    let delivered = cloud.deliver(CHANGES, &origin(), &mut numbers, &mut batch).await;
    (delivered, batch)
}

#[tokio::test]
async fn nothing_else_goes_under_a_number_behind_which_a_batch_went() {
    // The whole request is refused, and would be halved.
    for status in [400, 413, 422] {
        let (delivered, batch) = followed(move || json_answer(status, json!({"error": "no"}))).await;
        assert!(delivered.unwrap_err().needs_new_term(), "{status}");
        assert_eq!(batch.count(&Fate::Pending), 2);
    }
    // Something was rejected, and which is not said.
    let rejected = json!({"position": 1, "code": "x", "error": ""});
    let unclear = json!({"applied": 0, "skipped": 0, "rejected": [rejected, rejected]});
    let (delivered, _) = followed(move || json_answer(200, unclear.clone())).await;
    assert!(delivered.is_err());
    // What passes is tried again under the same number.
    let (delivered, batch) = followed(|| json_answer(503, json!({}))).await;
    let failure = delivered.unwrap_err();
    assert!(failure.is_transient() && !failure.needs_new_term(), "{failure}");
    assert_eq!(batch.count(&Fate::Pending), 2);
}

#[tokio::test]
async fn nothing_goes_behind_a_body_that_is_under_way() {
    let wide = |position| {
        let mut batch = Batch::new(vec![change(position, ROOMS, Op::Upsert, 1)]);
        let row = format!("{{\"room_id\":1,\"x\":\"{}\"}}", "x".repeat(32 << 20));
        batch.changes_mut()[0].row = Some(row.into());
        batch
    };
    let (open, _server, cloud, mut numbers) = shut().await;
    let (mut first, next) = (wide(1), rooms([2]));
    let origin = origin();
    let following = numbers.clone();
    let mut delivery = Box::pin(cloud.deliver(CHANGES, &origin, &mut numbers, &mut first));
    tokio::select! {
        biased;
        _ = &mut delivery => panic!("nobody reads it"),
        () = tokio::time::sleep(A_WHILE) => {}
    }
    let mut in_flight = Box::pin(behind(&cloud, &following, &next));
    tokio::select! {
        biased;
        _ = &mut delivery => panic!("nobody reads it"),
        _ = &mut in_flight => panic!("it went"),
        () = tokio::time::sleep(A_WHILE) => {}
    }
    open.send_replace(true);
    let (delivered, in_flight) = tokio::join!(delivery, in_flight);
    delivered.unwrap();
    assert!(in_flight.is_some());
}

#[tokio::test]
async fn what_takes_several_requests_does_not_go_before_its_turn() {
    let server = Scripted::start(|request| {
        if request.body.len() > 40_000 {
            return StatusCode::PAYLOAD_TOO_LARGE.into_response();
        }
        all_applied(request)
    })
    .await;
    let cloud = client(&server.url);
    let mut numbers = numbering().in_order();
    cloud
        .deliver(CHANGES, &origin(), &mut numbers, &mut rooms(1..=1000))
        .await
        .unwrap();
    assert!(behind(&cloud, &numbers, &rooms(1..=1000)).await.is_none());
    assert!(behind(&cloud, &numbers, &rooms(1..=10)).await.is_some());
    assert!(behind(&cloud, &numbers, &Batch::default()).await.is_none());
}
