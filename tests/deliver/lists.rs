//! What the cloud holds: lists.

use super::*;
use cloud_sync::catalogue::EntityIndex;

#[tokio::test]
async fn a_list_is_streamed() {
    const ROWS: usize = 50_000;
    const ROW: usize = 1000;
    let (made, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let making = Arc::clone(&made);
    let server = Scripted::start(move |_| {
        let making = Arc::clone(&making);
        let rows = (0..ROWS).map(move |id| {
            making.store(id, Ordering::SeqCst);
            let open = if id == 0 { "[" } else { "," };
            let close = if id + 1 == ROWS { "]" } else { "" };
            let row = format!("{open}{{\"room_id\":{id},\"x\":\"{}\"}}{close}", "x".repeat(ROW));
            Ok::<_, std::io::Error>(Bytes::from(row))
        });
        Body::from_stream(futures::stream::iter(rows)).into_response()
    })
    .await;
    let mut ahead = 0;
    client(&server.url)
        .list(EntityIndex(ROOMS), Some(30), |row| {
            let id = seen.fetch_add(1, Ordering::SeqCst);
            assert!(row.get().starts_with(&format!("{{\"room_id\":{id},")));
            ahead = ahead.max(made.load(Ordering::SeqCst).saturating_sub(id));
            Ok(())
        })
        .await
        .unwrap();
    assert_eq!(seen.load(Ordering::SeqCst), ROWS);
    assert!(
        ahead * ROW < 20_000_000,
        "{ahead} of {ROWS} rows were held between the two"
    );
    assert_eq!(server.seen()[0].uri, "/api/rooms?days=30");
}

#[tokio::test]
async fn a_list_that_is_none_is_not_believed() {
    let server = baseline(&[]).await;
    server.seed("rooms", json!({"room_id": 1}));
    let cloud = client(&server.url());
    let count = async || {
        let mut count = 0;
        let end = cloud.list(EntityIndex(ROOMS), None, |_| {
            count += 1;
            Ok(())
        });
        end.await.map(|_| count).map_err(|failure| failure.error().kind())
    };
    assert_eq!(count().await, Ok(1));
    for (fault, kind) in [
        (Fault::page(), Kind::CloudProtocol),
        (
            Fault::answer(200, "application/json", "{\"rows\":7}"),
            Kind::CloudProtocol,
        ),
        (
            Fault::answer(200, "application/json", "[{\"room_id\":1}"),
            Kind::CloudProtocol,
        ),
        (
            Fault::answer(200, "application/json", "[1,2]"),
            Kind::CloudProtocol,
        ),
        (Fault::status(404), Kind::CloudRefused),
        (Fault::status(500), Kind::CloudUnreachable),
        (Fault::cut(), Kind::CloudUnreachable),
        (Fault::status(401), Kind::CloudAuth),
    ] {
        server.clear_faults();
        server.fault(fault.on("rooms"));
        assert_eq!(count().await, Err(kind));
    }
}

#[tokio::test]
async fn what_the_cloud_holds_is_learnt_with_its_content() {
    let server = baseline(&[]).await;
    for id in 1..=100 {
        server.seed(
            "rooms",
            json!({"room_id": id.to_string(), "room_no": format!("R{id}"), "_position": id}),
        );
    }
    let cloud = client(&server.url());
    let held = CloudRows::learn(&cloud, EntityIndex(ROOMS), None, None)
        .await
        .unwrap();
    assert_eq!((held.len(), held.content(&key(ROOMS, 7))), (100, None));
    assert!(held.contains(&key(ROOMS, 7)) && !held.contains(&key(ROOMS, 101)));

    let columns = ["room_id".to_owned(), "room_no".to_owned()];
    let held = CloudRows::learn(&cloud, EntityIndex(ROOMS), None, Some(&columns))
        .await
        .unwrap();
    let row = "{\"room_no\" : \"R7\", \"room_id\" : \"7\"}";
    assert_eq!(held.content(&key(ROOMS, 7)), Some(digest(row, &columns).unwrap()));

    server.fault(Fault::answer(200, "application/json", "[{\"id\":1}]"));
    let failure = CloudRows::learn(&cloud, EntityIndex(ROOMS), None, None)
        .await
        .unwrap_err();
    assert_eq!(failure.error().kind(), Kind::CloudProtocol);
    assert!(failure.to_string().contains("room_id"), "{failure}");
}
