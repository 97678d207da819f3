//! Row by row and in bulk, on servers without `changes`.

use super::*;
use crate::support::tls::{HTTP_2, authority, terminate};
use cloud_sync::batch::ChangeIndex;

#[tokio::test]
async fn rows_go_in_parallel_over_kept_connections() {
    let server = baseline(&[]).await;
    server.set_latency(Duration::from_millis(20));
    let mut batch = rooms(1..=400);
    client(&server.url())
        .deliver(BASELINE, &origin(), &mut numbering(), &mut batch)
        .await
        .unwrap();
    assert_eq!(batch.count(&Fate::Accepted), 400);
    // As many at once as may be in flight, and no more; no other request than one a row.
    assert_eq!(server.most_at_once(), 8);
    assert_eq!(server.calls(), vec!["POST rooms"; 400]);
    // A connection that comes back a moment too late may cost another one, which is kept then.
    assert!(
        (8..=16).contains(&server.connections()),
        "{}",
        server.connections()
    );
    assert_eq!(
        server.row("rooms", "200"),
        Some(json!({"room_id": 200, "at": 200}))
    );
}

#[tokio::test]
async fn one_connection_carries_all_where_http_2_is_offered() {
    let server = baseline(&[]).await;
    server.set_latency(Duration::from_millis(20));
    let ours = authority("ours");
    let (address, _serving) = terminate(server.address(), &ours, &["localhost"], (2020, 2090), HTTP_2).await;
    let folder = tempfile::tempdir().unwrap();
    let ca_file = folder.path().join("ca.pem");
    std::fs::write(&ca_file, ours.pem()).unwrap();
    let cloud = Cloud::new(
        CloudOptions {
            ca_file: Some(ca_file),
            ..options(&format!("https://localhost:{}/api", address.port()))
        },
        Arc::new(Catalogue::builtin()),
    )
    .unwrap();
    cloud.handshake(&origin()).await.unwrap();
    let mut batch = rooms(1..=200);
    cloud
        .deliver(BASELINE, &origin(), &mut numbering(), &mut batch)
        .await
        .unwrap();
    assert_eq!(batch.count(&Fate::Accepted), 200);
    assert_eq!(server.most_at_once(), 8);
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn each_rows_own_order_is_kept_without_collapse() {
    let server = baseline(&["delete"]).await;
    server.set_latency(Duration::from_millis(2));
    let mut batch = Batch::new(
        (0..60)
            .map(|at| match at % 5 {
                4 => change(at + 1, ROOMS, Op::Delete, at % 3),
                _ => change(at + 1, ROOMS, Op::Upsert, at % 3),
            })
            .collect(),
    );
    client(&server.url())
        .deliver(DELETE, &origin(), &mut numbering(), &mut batch)
        .await
        .unwrap();
    for id in 0..3 {
        let last = batch
            .changes()
            .iter()
            .rev()
            .find(|change| change.key == key(ROOMS, id))
            .unwrap();
        let expected = (last.op == Op::Upsert).then(|| json!({"room_id": id, "at": last.position.0}));
        assert_eq!(server.row("rooms", &id.to_string()), expected);
    }
}

#[tokio::test]
async fn parents_go_first_and_deletes_go_children_first() {
    let server = baseline(&["delete"]).await;
    server.set_latency(Duration::from_millis(2));
    for id in [101, 102] {
        server.seed("rooms", json!({"room_id": id}));
        server.seed("cameras", json!({"camera_id": id}));
    }
    let mut changes = Vec::new();
    for id in 1..=20 {
        changes.push(change(4 * id, CAMERAS, Op::Upsert, id));
        changes.push(change(4 * id + 1, ROOMS, Op::Upsert, id));
    }
    for id in [101, 102] {
        changes.push(change(4 * id, ROOMS, Op::Delete, id));
        changes.push(change(4 * id + 1, CAMERAS, Op::Delete, id));
    }
    let mut batch = Batch::new(changes);
    client(&server.url())
        .deliver(DELETE, &origin(), &mut numbering(), &mut batch)
        .await
        .unwrap();
    let calls: Vec<String> = server
        .calls()
        .iter()
        .map(|call| {
            call.trim_end_matches(|letter: char| letter.is_ascii_digit())
                .to_owned()
        })
        .collect();
    let mut expected = vec!["POST rooms"; 20];
    expected.extend(["POST cameras"; 20]);
    expected.extend(["DELETE cameras/"; 2]);
    expected.extend(["DELETE rooms/"; 2]);
    assert_eq!(calls, expected);
}

#[tokio::test]
async fn children_wait_for_a_pending_parent_and_the_rest_is_resumed() {
    let server = baseline(&[]).await;
    server.fault(
        Fault::status(503)
            .retry_after("600")
            .on("rooms")
            .when(|row| row["room_id"] == 2),
    );
    let mut changes: Vec<Change> = (1..=4).map(|id| change(id, ROOMS, Op::Upsert, id)).collect();
    changes.push(change(5, CAMERAS, Op::Upsert, 1));
    let mut batch = Batch::new(changes);
    let cloud = client(&server.url());
    let failure = cloud
        .deliver(BASELINE, &origin(), &mut numbering(), &mut batch)
        .await
        .unwrap_err();
    assert!(failure.is_transient());
    assert_eq!(server.count("cameras"), 0);
    assert_eq!(batch.fate(ChangeIndex(1)), &Fate::Pending);
    assert_eq!(batch.fate(ChangeIndex(4)), &Fate::Pending);
    let pending = batch.pending().len();

    server.clear_faults();
    server.forget_requests();
    cloud
        .deliver(BASELINE, &origin(), &mut numbering(), &mut batch)
        .await
        .unwrap();
    assert_eq!(batch.count(&Fate::Accepted), 5);
    assert_eq!(server.requests().len(), pending, "only what was pending is sent");
    assert_eq!(server.calls().last().unwrap(), "POST cameras");
}

#[tokio::test]
async fn a_dropped_delivery_keeps_what_was_answered() {
    let server = baseline(&[]).await;
    server.fault(Fault::stall().when(|row| row["room_id"] == 2));
    let mut two = options(&server.url());
    two.in_flight = 2;
    let cloud = Cloud::new(two, Arc::new(Catalogue::builtin())).unwrap();
    let mut batch = rooms([1, 2, 3]);
    let origin = origin();
    let mut numbers = numbering();
    tokio::select! {
        _ = cloud.deliver(BASELINE, &origin, &mut numbers, &mut batch) => panic!("it stalls"),
        // It starts only after the answer for the first one is marked.
        () = server.wait_until("the third row is there", |server| server.row("rooms", "3").is_some()) => {}
    }
    assert_eq!(batch.fate(ChangeIndex(0)), &Fate::Accepted);
    assert_eq!(batch.fate(ChangeIndex(1)), &Fate::Pending);
}

#[tokio::test]
async fn deletes_are_sent_kept_or_unsupported() {
    // What the cloud keeps is marked before.
    let changes = || {
        let mut batch = Batch::new(vec![
            change(1, ROOMS, Op::Delete, 1),
            change(2, ROOMS, Op::Delete, 99),
            change(3, LOGS, Op::Delete, 1),
            change(4, LOGS, Op::Truncate, 0),
        ]);
        for nth in [2, 3] {
            batch.set_fate(ChangeIndex(nth), Fate::Kept);
        }
        batch
    };
    let server = baseline(&["delete"]).await;
    server.seed("rooms", json!({"room_id": 1}));
    server.seed("recognition-logs", json!({"log_id": 1}));
    let cloud = client(&server.url());

    let mut batch = changes();
    cloud
        .deliver(BASELINE, &origin(), &mut numbering(), &mut batch)
        .await
        .unwrap();
    assert_eq!(
        fates(&batch),
        [Fate::Unsupported, Fate::Unsupported, Fate::Kept, Fate::Kept]
    );
    assert!(server.requests().is_empty());

    let mut batch = changes();
    cloud
        .deliver(DELETE, &origin(), &mut numbering(), &mut batch)
        .await
        .unwrap();
    assert_eq!(
        fates(&batch),
        [Fate::Accepted, Fate::Accepted, Fate::Kept, Fate::Kept]
    );
    assert_eq!((server.count("rooms"), server.count("recognition-logs")), (0, 1));

    server.fault(Fault::status(405).method(Method::DELETE));
    let mut batch = changes();
    cloud
        .deliver(DELETE, &origin(), &mut numbering(), &mut batch)
        .await
        .unwrap();
    assert_eq!(batch.fate(ChangeIndex(0)), &Fate::Unsupported);
}

#[tokio::test]
async fn a_truncate_deletes_what_the_cloud_has_in_its_turn() {
    let server = baseline(&["delete"]).await;
    for id in 1..=30 {
        server.seed("rooms", json!({"room_id": id}));
    }
    let cloud = client(&server.url());
    let truncated = || {
        Batch::new(vec![
            change(1, ROOMS, Op::Upsert, 5),
            change(2, ROOMS, Op::Truncate, 0),
            change(3, ROOMS, Op::Upsert, 6),
        ])
    };
    let mut batch = truncated();
    cloud
        .deliver(DELETE, &origin(), &mut numbering(), &mut batch)
        .await
        .unwrap();
    assert_eq!(batch.count(&Fate::Accepted), 3);
    assert_eq!(server.rows("rooms"), [json!({"room_id": 6, "at": 3})]);

    server.fault(Fault::status(409).method(Method::DELETE));
    let mut batch = truncated();
    cloud
        .deliver(DELETE, &origin(), &mut numbering(), &mut batch)
        .await
        .unwrap();
    assert_eq!(
        fates(&batch).iter().map(code).collect::<Vec<_>>(),
        [None, Some(409), None]
    );

    let mut batch = truncated();
    cloud
        .deliver(BASELINE, &origin(), &mut numbering(), &mut batch)
        .await
        .unwrap();
    assert_eq!(batch.fate(ChangeIndex(1)), &Fate::Unsupported);
}

#[tokio::test]
async fn composite_keys_are_deleted_by_their_encoded_values() {
    let catalogue = Catalogue::new(vec![Entity::new("terms", "t", &["year", "name"])]).unwrap();
    let server = BaselineServer::start(&catalogue, &["delete"]).await;
    server.seed("terms", json!({"name": "a/b é", "year": 2026}));
    let cloud = Cloud::new(options(&server.url()), Arc::new(catalogue)).unwrap();
    let mut delete = change(1, ROOMS, Op::Delete, 1);
    delete.key = "{\"name\" : \"a/b é\", \"year\" : 2026}".into();
    let mut unspeakable = change(2, ROOMS, Op::Delete, 1);
    unspeakable.key = "{\"name\" : \"\", \"year\" : 2026}".into();
    let mut batch = Batch::new(vec![delete, unspeakable]);
    cloud
        .deliver(DELETE, &origin(), &mut numbering(), &mut batch)
        .await
        .unwrap();
    assert_eq!(server.calls(), ["DELETE terms/2026,a%2Fb%20%C3%A9"]);
    assert_eq!(server.count("terms"), 0);
    assert_eq!(code(batch.fate(ChangeIndex(1))), Some(422));
}

#[tokio::test]
async fn an_upsert_that_needs_a_delete_first_gets_its_second_chance() {
    let server = baseline(&["delete"]).await;
    server.seed("rooms", json!({"room_id": 1, "room_no": "A"}));
    server.fault(
        Fault::status(409)
            .on("rooms")
            .when(|row| row["room_id"] == 2)
            .times(1),
    );
    let mut batch = Batch::new(vec![
        change(1, ROOMS, Op::Delete, 1),
        change(2, ROOMS, Op::Upsert, 2),
    ]);
    client(&server.url())
        .deliver(DELETE, &origin(), &mut numbering(), &mut batch)
        .await
        .unwrap();
    assert_eq!(server.calls(), ["POST rooms", "DELETE rooms/1", "POST rooms"]);
    assert_eq!(batch.count(&Fate::Accepted), 2);
}

#[tokio::test]
async fn bulk_sends_chunks_and_isolates_the_refused_row() {
    let server = baseline(&["bulk"]).await;
    server.fault(
        Fault::status(422)
            .on("bulk/rooms")
            .when(|row| row["room_id"] == 7),
    );
    let mut batch = rooms(1..=1200);
    client(&server.url())
        .deliver(BULK, &origin(), &mut numbering(), &mut batch)
        .await
        .unwrap();
    assert_eq!(batch.count(&Fate::Accepted), 1199);
    assert_eq!(code(batch.fate(ChangeIndex(6))), Some(422));
    assert_eq!(server.count("rooms"), 1199);
    let requests = server.requests();
    assert!(requests.iter().all(|request| request.path == "bulk/rooms"));
    assert!(requests.len() <= 3 + 2 * 10, "{}", requests.len());

    server.clear_faults();
    server.fault(Fault::status(404).on("bulk"));
    let cloud = client(&server.url());
    let failure = cloud
        .deliver(BULK, &origin(), &mut numbering(), &mut rooms([1]))
        .await
        .unwrap_err();
    assert_eq!(failure.lost_capability(), Some(Capability::Bulk));
    assert_eq!(failure.error().kind(), Kind::CloudProtocol);
}

#[tokio::test]
async fn a_413_halves_requests_and_is_remembered() {
    let limit = 40_000;
    let server = Scripted::start(move |request| {
        if request.body.len() > limit {
            return StatusCode::PAYLOAD_TOO_LARGE.into_response();
        }
        if request.uri.path().ends_with("/changes") {
            return all_applied(request);
        }
        json_answer(200, json!({"success": true, "upserted": 1}))
    })
    .await;
    let cloud = client(&server.url);
    for capabilities in [BULK, CHANGES] {
        let mut batch = rooms(1..=2000);
        cloud
            .deliver(capabilities, &origin(), &mut numbering(), &mut batch)
            .await
            .unwrap();
        assert_eq!(batch.count(&Fate::Accepted), 2000);
    }
    let refused = server
        .seen()
        .iter()
        .filter(|request| request.body.len() > limit)
        .count();
    let before = server.seen().len();
    cloud
        .deliver(CHANGES, &origin(), &mut numbering(), &mut rooms(1..=2000))
        .await
        .unwrap();
    let after = server.seen();
    assert!(after[before..].iter().all(|request| request.body.len() <= limit));
    assert!(refused > 0);
    let positions: Vec<i64> = after[before..].iter().flat_map(Seen::positions).collect();
    assert_eq!(positions, (1..=2000).collect::<Vec<_>>(), "in order");

    let mut huge = change(1, ROOMS, Op::Upsert, 1);
    huge.row = Some(format!("{{\"room_id\":1,\"x\":\"{}\"}}", "x".repeat(2 * limit)).into());
    let mut batch = Batch::new(vec![huge, change(2, ROOMS, Op::Upsert, 2)]);
    cloud
        .deliver(CHANGES, &origin(), &mut numbering(), &mut batch)
        .await
        .unwrap();
    assert_eq!(
        fates(&batch).iter().map(code).collect::<Vec<_>>(),
        [Some(413), None]
    );
    assert_eq!(batch.fate(ChangeIndex(1)), &Fate::Accepted);
}
