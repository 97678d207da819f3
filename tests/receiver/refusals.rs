//! What is refused: one change among many, or a whole request; and what takes effect then.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{Cloud, counts, delete, upsert};

#[tokio::test]
async fn a_bad_row_among_many_is_rejected_alone() {
    let cloud = Cloud::start("rejected").await;
    cloud.rooms().await;
    let mut changes: Vec<Value> = (1..=1000).map(|id| upsert(id, id, "ok")).collect();
    changes[499] = json!({
        "position": 500, "entity": "rooms", "op": "upsert",
        "key": {"room_id": "sixty"}, "row": {"room_id": "sixty", "room_no": "secret"},
    });
    changes[700] = json!({
        "position": 701, "entity": "rooms", "op": "upsert",
        "key": {"room_id": 701}, "row": {"room_id": 701, "room_no": "nul \u{0}"},
    });
    let answer = cloud.send(1, &changes).await;
    assert_eq!(counts(&answer), (998, 0, 2));
    let rejected = &answer["rejected"];
    assert_eq!(rejected[0]["position"], 500);
    assert_eq!(rejected[0]["line"], 500);
    assert_eq!(rejected[0]["code"], "22P02");
    assert!(
        rejected[0]["error"].as_str().unwrap().contains("room_id"),
        "{rejected}"
    );
    assert_eq!(rejected[1]["code"], "22021");
    assert!(!rejected.to_string().contains("secret") && !rejected.to_string().contains("sixty"));
    assert_eq!(cloud.count("cloud.rooms").await, 998);
    // What is wrong with the change itself.
    let odd = [
        json!({"position": 2000, "entity": "nothing", "op": "upsert", "key": {"id": 1}, "row": {"id": 1}}),
        json!({"position": 2001, "entity": "rooms", "op": "merge", "key": {"room_id": 1}}),
        json!({"position": 2002, "entity": "rooms", "op": "upsert", "key": {"room_id": 1}}),
        json!({"position": 2003, "entity": "rooms", "op": "upsert", "row": {"room_id": 1}}),
        json!({"position": 2004, "entity": "rooms", "op": "upsert", "key": {"room_id": 2}, "row": {"room_no": "x"}}),
        json!({"position": 2005, "entity": "rooms", "op": "upsert", "key": {"room_id": 3}, "row": {"room_id": 4}}),
        json!({"position": 2006, "entity": "rooms", "op": "upsert", "key": {"room_id": 5},
               "row": {"room_id": 5, "colour": "red"}}),
        json!({"position": 2007, "entity": "rooms", "op": "delete", "key": {"room_id": null}}),
        upsert(2008, 6, "good"),
    ];
    let answer = cloud.send(1, &odd).await;
    assert_eq!(counts(&answer), (1, 0, 8));
    let codes: Vec<&str> = answer["rejected"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rejected| rejected["code"].as_str().unwrap())
        .collect();
    assert_eq!(
        codes,
        [
            "unknown-entity",
            "unknown-op",
            "row-missing",
            "key-missing",
            "key-missing",
            "key-mismatch",
            "unknown-column",
            "key-missing"
        ]
    );
    // If a change is rejected, the one that it had superseded is applied.
    let bad = json!({"position": 3001, "entity": "rooms", "op": "upsert", "key": {"room_id": 7},
                     "row": {"room_id": 7, "room_no": "\u{0}"}});
    let answer = cloud
        .send(1, &[upsert(2999, 7, "older"), upsert(3000, 7, "good"), bad])
        .await;
    assert_eq!(counts(&answer), (1, 1, 1));
    assert_eq!(
        cloud
            .count("cloud.rooms where room_id = 7 and room_no = 'good'")
            .await,
        1
    );
    cloud.end().await;
}

#[tokio::test]
async fn broken_requests_change_nothing() {
    let cloud = Cloud::start_with("broken", |settings| settings.body_limit = 1 << 20).await;
    cloud.rooms().await;
    let good = upsert(1, 1, "a").to_string();
    for (line, body) in [
        (2, format!("{good}\n{{\"position\":2,\n")),
        (1, "[]".to_owned()),
        (
            3,
            format!("{good}\n\n{{\"position\":\"2\",\"entity\":\"rooms\",\"op\":\"delete\"}}\n{good}"),
        ),
        (2, format!("{good}\n{}", delete(-1, 1))),
    ] {
        let response = cloud.changes(1, body).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        let answer: Value = response.json().await.unwrap();
        assert!(
            answer["error"]
                .as_str()
                .unwrap()
                .contains(&format!("line {line}")),
            "{answer}"
        );
    }
    let utf8 = cloud.changes(1, vec![b'{', 0xff]).send().await.unwrap();
    assert_eq!(utf8.status(), StatusCode::BAD_REQUEST);
    // Packed bodies: a valid one, one that unpacks to too much, one that is not packed.
    let pack = |text: &[u8]| zstd::bulk::compress(text, 3).unwrap();
    let packed = |body: Vec<u8>| cloud.changes(1, body).header("Content-Encoding", "zstd").send();
    let bomb = packed(pack(&vec![b' '; 512 << 20])).await.unwrap();
    assert_eq!(bomb.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let large = cloud.changes(1, vec![b' '; 2 << 20]).send().await.unwrap();
    assert_eq!(large.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let none = packed(good.clone().into_bytes()).await.unwrap();
    assert_eq!(none.status(), StatusCode::BAD_REQUEST);
    let gzip = cloud
        .changes(1, "x")
        .header("Content-Encoding", "gzip")
        .send()
        .await
        .unwrap();
    assert_eq!(gzip.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(cloud.count("cloud.rooms").await, 0);
    assert_eq!(
        packed(pack(good.as_bytes())).await.unwrap().status(),
        StatusCode::OK
    );
    assert_eq!(cloud.standing().await, "1=a@1.1.1");
    // JSON errors everywhere.
    let lost = cloud.request(Method::GET, "a/b/c").send().await.unwrap();
    assert_eq!(lost.status(), StatusCode::NOT_FOUND);
    assert_eq!(lost.json::<Value>().await.unwrap()["success"], false);
    let method = cloud.request(Method::DELETE, "changes").send().await.unwrap();
    assert_eq!(method.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(method.json::<Value>().await.unwrap()["success"], false);
    let health = cloud
        .client
        .get(format!("{}/healthz", cloud.root))
        .send()
        .await
        .unwrap();
    assert_eq!(health.status(), StatusCode::OK);
    cloud.end().await;
}
