//! `POST /changes`.

use super::*;
use cloud_sync::batch::ChangeIndex;

#[tokio::test]
async fn changes_go_in_one_request_in_their_order() {
    let server = Scripted::start(all_applied).await;
    let mut batch = Batch::new(vec![
        change(3, CAMERAS, Op::Upsert, 1),
        change(4, ROOMS, Op::Truncate, 0),
        change(5, LOGS, Op::Delete, 1),
        change(6, ROOMS, Op::Upsert, 1),
        change(7, LOGS, Op::Truncate, 0),
        change(8, ROOMS, Op::Delete, 2),
    ]);
    // What the cloud keeps is marked before.
    for nth in [2, 4] {
        batch.set_fate(ChangeIndex(nth), Fate::Kept);
    }
    client(&server.url)
        .deliver(CHANGES, &origin(), &mut numbering(), &mut batch)
        .await
        .unwrap();
    let sent = [
        Fate::Accepted,
        Fate::Accepted,
        Fate::Kept,
        Fate::Accepted,
        Fate::Kept,
        Fate::Accepted,
    ];
    assert_eq!(fates(&batch), sent);
    let requests = server.seen();
    let [request] = requests.as_slice() else {
        panic!("{requests:?}")
    };
    assert_eq!(
        (request.method.as_str(), request.uri.path()),
        ("POST", "/api/changes")
    );
    assert_eq!(request.headers["x-source-id"], "college-db");
    assert_eq!(request.headers["x-epoch"], "2");
    assert_eq!(request.headers[header::CONTENT_TYPE], "application/x-ndjson");
    assert_eq!(
        request.lines(),
        [
            json!({"position": 3, "entity": "cameras", "op": "upsert", "key": {"camera_id": 1},
                "row": {"camera_id": 1, "at": 3}}),
            json!({"position": 4, "entity": "rooms", "op": "truncate"}),
            json!({"position": 6, "entity": "rooms", "op": "upsert", "key": {"room_id": 1},
                "row": {"room_id": 1, "at": 6}}),
            json!({"position": 8, "entity": "rooms", "op": "delete", "key": {"room_id": 2}}),
        ]
    );
}

#[tokio::test]
async fn changes_are_compressed_where_that_pays_and_the_server_can() {
    let server = Scripted::start(|request| match request.headers.get(header::CONTENT_ENCODING) {
        Some(encoding) => {
            assert_eq!(encoding, "zstd");
            let plain = zstd::stream::decode_all(&*request.body).unwrap();
            assert!(request.body.len() < plain.len() / 3);
            all_applied(&Seen {
                body: plain.into(),
                ..request.clone()
            })
        }
        None => all_applied(request),
    })
    .await;
    let mut compressing = options(&server.url);
    compressing.compress = true;
    let cloud = Cloud::new(compressing.clone(), Arc::new(Catalogue::builtin())).unwrap();
    for count in [1, 500, 20_000] {
        let mut batch = rooms(1..=count);
        cloud
            .deliver(CHANGES, &origin(), &mut numbering(), &mut batch)
            .await
            .unwrap();
        assert_eq!(batch.count(&Fate::Accepted) as i64, count);
    }
    let seen = server.seen();
    let compressed = seen
        .iter()
        .map(|request| request.headers.contains_key(header::CONTENT_ENCODING));
    assert_eq!(compressed.collect::<Vec<_>>(), [false, true, true]);

    let server = Scripted::start(|request| {
        if request.headers.contains_key(header::CONTENT_ENCODING) {
            return StatusCode::UNSUPPORTED_MEDIA_TYPE.into_response();
        }
        all_applied(request)
    })
    .await;
    compressing.url = server.url.parse().unwrap();
    let cloud = Cloud::new(compressing, Arc::new(Catalogue::builtin())).unwrap();
    for _ in 0..2 {
        let mut batch = rooms(1..=500);
        cloud
            .deliver(CHANGES, &origin(), &mut numbering(), &mut batch)
            .await
            .unwrap();
        assert_eq!(batch.count(&Fate::Accepted), 500);
    }
    assert_eq!(server.seen().len(), 3, "it asks once");
}

#[tokio::test]
async fn rejected_changes_are_refused_and_the_rest_is_accepted() {
    let server = Scripted::start(|_| {
        json_answer(
            200,
            json!({"applied": 2, "skipped": 1, "rejected": [
                {"position": 2, "code": "422", "error": "no\nroom"},
                {"position": 5, "code": "23503", "error": "x"}]}),
        )
    })
    .await;
    let mut batch = rooms(1..=5);
    client(&server.url)
        .deliver(CHANGES, &origin(), &mut numbering(), &mut batch)
        .await
        .unwrap();
    let refused: Vec<_> = batch
        .refused()
        .map(|(change, code, error)| (change.position.0, code, error))
        .collect();
    assert_eq!(refused, [(2, 422, "no room"), (5, 422, "23503: x")]);
    assert_eq!(batch.count(&Fate::Accepted), 3);
}

#[tokio::test]
async fn answers_to_changes_are_checked() {
    for (status, body, kind) in [
        (200, "<html></html>", Kind::CloudProtocol),
        (200, "", Kind::CloudProtocol),
        (200, "{\"success\":true}", Kind::CloudProtocol),
        (
            200,
            "{\"applied\":1,\"skipped\":0,\"rejected\":[]}",
            Kind::CloudProtocol,
        ),
        (
            200,
            "{\"applied\":2,\"skipped\":0,\"rejected\":[{\"position\":9,\"code\":\"1\",\"error\":\"\"}]}",
            Kind::CloudProtocol,
        ),
        (401, "", Kind::CloudAuth),
        (503, "", Kind::CloudUnreachable),
        (302, "", Kind::CloudProtocol),
    ] {
        let server =
            Scripted::start(move |_| (StatusCode::from_u16(status).unwrap(), body).into_response()).await;
        let mut batch = rooms(1..=3);
        let failure = client(&server.url)
            .deliver(CHANGES, &origin(), &mut numbering(), &mut batch)
            .await
            .unwrap_err();
        assert_eq!(failure.error().kind(), kind, "{status} {body}");
        assert_eq!(batch.count(&Fate::Pending), 3);
    }
    for status in [404, 405] {
        let server = Scripted::start(move |_| StatusCode::from_u16(status).unwrap().into_response()).await;
        let mut batch = rooms(1..=3);
        let failure = client(&server.url)
            .deliver(CHANGES, &origin(), &mut numbering(), &mut batch)
            .await
            .unwrap_err();
        assert_eq!(failure.lost_capability(), Some(Capability::Changes));
        assert_eq!(batch.count(&Fate::Pending), 3);
    }
}

#[tokio::test]
async fn a_refused_request_is_bisected_in_order() {
    let server = Scripted::start(|request| {
        if request.positions().contains(&6) {
            return json_answer(400, json!({"error": "cannot parse"}));
        }
        all_applied(request)
    })
    .await;
    let mut batch = rooms(1..=8);
    client(&server.url)
        .deliver(CHANGES, &origin(), &mut numbering(), &mut batch)
        .await
        .unwrap();
    assert_eq!(
        batch
            .refused()
            .map(|(change, ..)| change.position.0)
            .collect::<Vec<_>>(),
        [6]
    );
    assert_eq!(batch.count(&Fate::Accepted), 7);
    let sent: Vec<Vec<i64>> = server.seen().iter().map(Seen::positions).collect();
    let expected: [&[i64]; 7] = [
        &[1, 2, 3, 4, 5, 6, 7, 8],
        &[1, 2, 3, 4],
        &[5, 6, 7, 8],
        &[5, 6],
        &[5],
        &[6],
        &[7, 8],
    ];
    assert_eq!(sent, expected);
}

#[tokio::test]
async fn a_rejected_backfilled_row_is_found_without_its_line() {
    let server = Scripted::start(|request| {
        let lines = request.lines();
        let bad = lines.iter().filter(|line| line["key"]["room_id"] == 3).count();
        let rejected = vec![json!({"position": 0, "code": "422", "error": "bad"}); bad];
        json_answer(
            200,
            json!({"applied": lines.len() - bad, "skipped": 0, "rejected": rejected}),
        )
    })
    .await;
    let mut batch = Batch::new((1..=5).map(|id| change(0, ROOMS, Op::Upsert, id)).collect());
    client(&server.url)
        .deliver(CHANGES, &origin(), &mut numbering(), &mut batch)
        .await
        .unwrap();
    let codes: Vec<_> = fates(&batch).iter().map(code).collect();
    assert_eq!(codes, [None, None, Some(422), None, None]);
    assert_eq!(batch.count(&Fate::Accepted), 4);
}

#[tokio::test]
async fn half_a_batch_of_changes_is_resumed() {
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    let server = Scripted::start(move |request| match count.fetch_add(1, Ordering::SeqCst) {
        0 => StatusCode::PAYLOAD_TOO_LARGE.into_response(),
        2 => StatusCode::BAD_GATEWAY.into_response(),
        _ => all_applied(request),
    })
    .await;
    let cloud = client(&server.url);
    let (mut batch, mut numbering) = (rooms(1..=4), numbering());
    let failure = cloud
        .deliver(CHANGES, &origin(), &mut numbering, &mut batch)
        .await
        .unwrap_err();
    assert_eq!(failure.status(), Some(502));
    assert_eq!(batch.pending(), [ChangeIndex(2), ChangeIndex(3)]);
    cloud
        .deliver(CHANGES, &origin(), &mut numbering, &mut batch)
        .await
        .unwrap();
    assert_eq!(server.seen().last().unwrap().positions(), [3, 4]);
    assert_eq!(batch.count(&Fate::Accepted), 4);
}
