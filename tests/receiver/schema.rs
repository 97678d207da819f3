//! Declared schemas: made, extended, widened; what would break rows is refused.

use reqwest::StatusCode;
use serde_json::{Value, json};

use super::{Cloud, counts, upsert};

#[tokio::test]
async fn schemas_are_made_extended_and_widened_but_not_broken() {
    let cloud = Cloud::start("schema").await;
    cloud.rooms().await;
    cloud.send(1, &[upsert(1, 1, "a")]).await;
    let schema = |key: &str, columns: &[(&str, &str)]| {
        let columns: Vec<Value> = columns
            .iter()
            .map(|(name, of)| json!({"name": name, "type": of}))
            .collect();
        json!({"entity": "rooms", "key": [key], "columns": columns})
    };
    // A new column; one is left out and stays.
    let wider = schema(
        "room_id",
        &[
            ("room_id", "bigint"),
            ("floor", "integer"),
            ("mood", "my_enum"),
            ("at", "timestamp(3) with time zone"),
        ],
    );
    assert_eq!(cloud.declare("rooms", wider).await.status(), StatusCode::OK);
    let row = json!({"position": 2, "entity": "rooms", "op": "upsert", "key": {"room_id": 2},
                     "row": {"room_id": 2, "floor": 3, "mood": "happy", "at": "2026-01-02T03:04:05.678+08:00"}});
    assert_eq!(counts(&cloud.send(1, &[row]).await), (1, 0, 0));
    let stored: String = cloud
        .scalar("select concat_ws(' ', floor, mood, at at time zone 'UTC', room_no is null) from cloud.rooms where room_id = 2")
        .await;
    assert_eq!(stored, "3 happy 2026-01-01 19:04:05.678 t");
    // Widening keeps the rows; a narrower declaration changes nothing.
    for (of, now) in [
        ("bigint", "bigint"),
        ("smallint", "bigint"),
        ("numeric(8,6)", "numeric"),
        ("text", "text"),
    ] {
        let wider = schema("room_id", &[("room_id", "bigint"), ("floor", of)]);
        assert_eq!(
            cloud.declare("rooms", wider).await.status(),
            StatusCode::OK,
            "{of}"
        );
        let have: String = cloud
            .scalar("select data_type from information_schema.columns where table_name = 'rooms' and column_name = 'floor'")
            .await;
        assert_eq!(have, now);
    }
    assert_eq!(cloud.count("cloud.rooms where floor = '3'").await, 1);
    // What cannot be.
    let broken = [
        (
            StatusCode::CONFLICT,
            schema("room_id", &[("room_id", "bigint"), ("at", "boolean")]),
        ),
        (StatusCode::CONFLICT, schema("room_no", &[("room_no", "text")])),
        (
            StatusCode::UNPROCESSABLE_ENTITY,
            schema("room_id", &[("room_id", "bigint"), ("_position_x", "text")]),
        ),
        (
            StatusCode::UNPROCESSABLE_ENTITY,
            schema("missing", &[("room_id", "bigint")]),
        ),
        (
            StatusCode::UNPROCESSABLE_ENTITY,
            schema("room_id", &[("room_id", "bigint"), (&"x".repeat(64), "text")]),
        ),
        (StatusCode::BAD_REQUEST, json!({"entity": "rooms"})),
    ];
    for (status, schema) in broken {
        let response = cloud.declare("rooms", schema.clone()).await;
        assert_eq!(response.status(), status, "{schema}");
        let answer: Value = response.json().await.unwrap();
        assert_eq!(answer["success"], false);
    }
    // The path of another entity.
    let other = json!({"entity": "halls", "key": ["id"], "columns": [{"name": "id", "type": "bigint"}]});
    assert_eq!(cloud.declare("rooms", other).await.status(), StatusCode::CONFLICT);
    cloud.end().await;
}
