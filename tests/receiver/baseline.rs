//! The baseline API: single rows, bulk, lists and their days, and a receiver that offers no capabilities.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{Cloud, counts, delete, upsert};
use crate::support::batches::BatchSource;

#[tokio::test]
async fn baseline_requests_take_effect_as_the_newest_and_keep_the_guard() {
    let cloud = Cloud::start("baseline").await;
    let unknown = cloud
        .request(Method::POST, "rooms")
        .json(&json!({"room_id": 1}))
        .send()
        .await
        .unwrap();
    assert_eq!(unknown.status(), StatusCode::NOT_FOUND);
    assert!(unknown.text().await.unwrap().contains("PUT /schema/rooms"));
    cloud.rooms().await;
    let post = async |row: Value| {
        let response = cloud
            .request(Method::POST, "rooms")
            .json(&row)
            .send()
            .await
            .unwrap();
        (response.status(), response.text().await.unwrap())
    };
    let ahead = BatchSource::at_term("ahead", 5);
    cloud
        .send_as(&ahead, &[upsert(5, 1, "five"), upsert(6, 2, "six")])
        .await;
    cloud.send_as(&ahead, &[delete(7, 2)]).await;
    assert_eq!(
        post(json!({"room_id": 1, "room_no": "posted"})).await.0,
        StatusCode::OK
    );
    assert_eq!(
        post(json!({"room_id": 2, "room_no": "raised"})).await.0,
        StatusCode::OK
    );
    assert_eq!(
        post(json!({"room_id": 3, "room_no": "new"})).await.0,
        StatusCode::OK
    );
    assert_eq!(
        cloud.standing().await,
        "1=posted@1.5.1 2=raised@1.5.2 3=new@0.0.0"
    );
    // What was older stays older; what is newer wins.
    let answer = cloud
        .send(
            1,
            &[
                upsert(5, 1, "five"),
                upsert(6, 2, "six"),
                upsert(0, 3, "backfill"),
            ],
        )
        .await;
    assert_eq!(counts(&answer), (1, 2, 0));
    assert_eq!(
        cloud.standing().await,
        "1=posted@1.5.1 2=raised@1.5.2 3=backfill@1.1.1"
    );
    // Only the columns that are named.
    assert_eq!(post(json!({"room_id": 1})).await.0, StatusCode::OK);
    assert!(cloud.standing().await.starts_with("1=posted@1.5.1 "));
    for bad in [
        json!({"room_id": "x"}),
        json!({"room_no": "x"}),
        json!({"room_id": 1, "colour": 1}),
        json!([1]),
    ] {
        let (status, text) = post(bad).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{text}");
    }
    // Delete by key: the version stays in the tombstone.
    let removed = cloud.request(Method::DELETE, "rooms/1").send().await.unwrap();
    assert_eq!(removed.status(), StatusCode::OK);
    for none in ["rooms/1", "rooms/x", "rooms/"] {
        let removed = cloud.request(Method::DELETE, none).send().await.unwrap();
        assert_eq!(removed.status(), StatusCode::NOT_FOUND, "{none}");
    }
    assert_eq!(counts(&cloud.send(1, &[upsert(5, 1, "five")]).await), (0, 1, 0));
    assert_eq!(
        counts(&cloud.send_as(&ahead, &[upsert(9, 1, "nine")]).await),
        (1, 0, 0)
    );
    // Bulk: all or none, the last of equal keys, rows with different columns.
    let bulk = async |records: Value| {
        let response = cloud
            .request(Method::POST, "bulk/rooms")
            .json(&json!({"records": records}))
            .send()
            .await
            .unwrap();
        (response.status(), response.json::<Value>().await.unwrap())
    };
    let (status, answer) = bulk(json!([
        {"room_id": 10, "room_no": "a"}, {"room_id": 11}, {"room_id": 10, "room_no": "b"}
    ]))
    .await;
    assert_eq!((status, &answer["upserted"]), (StatusCode::OK, &json!(3)));
    let (status, answer) =
        bulk(json!([{"room_id": 12}, {"room_id": 13}, {"room_id": 1e3}, {"room_id": 14}])).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(answer["error"].as_str().unwrap().contains("record 2"), "{answer}");
    assert_eq!(cloud.count("cloud.rooms where room_id >= 10").await, 2);
    assert_eq!(
        cloud
            .count("cloud.rooms where room_id = 10 and room_no = 'b'")
            .await,
        1
    );
    // Lists.
    let keys: Value = cloud
        .request(Method::GET, "rooms?keys=1")
        .header("Accept-Encoding", "zstd")
        .send()
        .await
        .unwrap()
        .bytes()
        .await
        .map(|bytes| {
            let plain = zstd::stream::decode_all(&bytes[..]).unwrap_or_else(|_| bytes.to_vec());
            serde_json::from_slice(&plain).unwrap()
        })
        .unwrap();
    assert_eq!(keys.as_array().unwrap().len(), 5);
    assert!(keys[0].get("room_no").is_none());
    cloud.end().await;
}

#[tokio::test]
async fn lists_keep_to_the_window() {
    let cloud = Cloud::start("window").await;
    let schema = json!({"entity": "logs", "key": ["id"], "window": "created_at",
        "columns": [{"name": "id", "type": "integer"}, {"name": "created_at", "type": "timestamptz"}]});
    assert_eq!(cloud.declare("logs", schema).await.status(), StatusCode::OK);
    sqlx::query(
        "insert into cloud.logs select 'college', 1, i, i, now() - make_interval(days => i) from generate_series(0, 20000) i",
    )
    .execute(&cloud.pool)
    .await
    .unwrap();
    for (query, count) in [
        ("", 20_001),
        ("?days=7", 7),
        ("?days=0", 0),
        ("?days=100&keys=1", 100),
    ] {
        let list: Vec<Value> = cloud
            .request(Method::GET, &format!("logs{query}"))
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap();
        // The row of exactly N days ago has become older since then.
        assert_eq!(list.len(), count, "{query}");
    }
    let wrong = cloud.request(Method::GET, "logs?days=-1").send().await.unwrap();
    assert_eq!(wrong.status(), StatusCode::BAD_REQUEST);
    cloud.end().await;
}

#[tokio::test]
async fn only_what_is_offered_is_there() {
    let cloud = Cloud::start_with("offered", |settings| settings.capabilities = Some(Vec::new())).await;
    cloud.rooms().await;
    let status: Value = cloud
        .request(Method::GET, "sync-status")
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(status["capabilities"], json!([]));
    let changes = cloud.changes(1, "").send().await.unwrap();
    assert_eq!(changes.status(), StatusCode::NOT_FOUND);
    let bulk = cloud
        .request(Method::POST, "bulk/rooms")
        .json(&json!({"records": []}))
        .send()
        .await
        .unwrap();
    assert_eq!(bulk.status(), StatusCode::NOT_FOUND);
    let posted = cloud
        .request(Method::POST, "rooms")
        .json(&json!({"room_id": 1}))
        .send()
        .await
        .unwrap();
    assert_eq!(posted.status(), StatusCode::OK);
    cloud.end().await;
}
