//! Declared schemas: created, extended, widened; a declaration that would break rows is refused.

use cloud_sync::wire::paths::RESERVED;
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
    // A new column is added; a column that is left out stays.
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
    // What is refused. A name that the receiver does not use is like any other.
    for name in ["_position", "_site_id", "_version_x"] {
        let like_any = schema("room_id", &[("room_id", "bigint"), (name, "bigint")]);
        assert_eq!(cloud.declare("rooms", like_any).await.status(), StatusCode::OK);
    }
    let broken = [
        (
            StatusCode::CONFLICT,
            schema("room_id", &[("room_id", "bigint"), ("at", "boolean")]),
        ),
        (StatusCode::CONFLICT, schema("room_no", &[("room_no", "text")])),
        (
            StatusCode::UNPROCESSABLE_ENTITY,
            schema("room_id", &[("room_id", "bigint"), ("_version", "text")]),
        ),
        (
            StatusCode::UNPROCESSABLE_ENTITY,
            schema("room_id", &[("room_id", "bigint"), ("_site", "text")]),
        ),
        (
            StatusCode::UNPROCESSABLE_ENTITY,
            schema("room_id", &[("room_id", "bigint"), ("_epoch", "text")]),
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
    // The paths of the receiver's own calls.
    for path in RESERVED {
        let schema = schema("room_id", &[("room_id", "bigint")]);
        let response = cloud.declare(path, schema).await;
        assert_eq!(response.status(), StatusCode::UNPROCESSABLE_ENTITY, "{path}");
    }
    cloud.end().await;
}

#[tokio::test]
async fn an_entity_of_a_site_belongs_to_one_source() {
    let cloud = Cloud::start("owner").await;
    let schema = |columns: &[&str]| {
        let columns: Vec<Value> = columns
            .iter()
            .map(|name| json!({"name": name, "type": "bigint"}))
            .collect();
        json!({"entity": "rooms", "key": ["room_id"], "columns": columns})
    };
    let declare = async |key: &str, source: Option<&str>, schema: &Value| {
        let mut request = cloud
            .client
            .put(format!("{}/api/schema/rooms", cloud.root))
            .bearer_auth(key)
            .json(schema);
        if let Some(source) = source {
            request = request.header("X-Source-Id", source);
        }
        let response = request.send().await.unwrap();
        (response.status(), response.json::<Value>().await.unwrap())
    };
    let owner = async || {
        cloud
            .scalar::<Option<String>>("select source_id from cloud_meta.schemas where site = 'college'")
            .await
    };
    // Without the header nobody owns it. The first source that declares it owns it, however often it declares
    // it.
    let (narrow, wide) = (schema(&["room_id"]), schema(&["room_id", "floor"]));
    assert_eq!(declare("new-key", None, &narrow).await.0, StatusCode::OK);
    assert_eq!(owner().await, None);
    for _ in 0..2 {
        assert_eq!(declare("new-key", Some("first"), &narrow).await.0, StatusCode::OK);
        assert_eq!(owner().await.as_deref(), Some("first"));
    }
    // Another source is refused, with the remedy, and changes nothing.
    let (status, answer) = declare("new-key", Some("second"), &wide).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert_eq!(
        (&answer["success"], &answer["code"]),
        (&json!(false), &json!("other-source"))
    );
    let words = answer["error"].as_str().unwrap();
    assert!(
        words.contains("the source first")
            && words.contains("another name")
            && words.contains("source.source_id to first"),
        "{words}"
    );
    assert!(answer.get("source").is_none());
    let floors = "information_schema.columns where table_name = 'rooms' and column_name = 'floor'";
    assert_eq!(cloud.count(floors).await, 0);
    // A request without the header is not checked, and the owner stays. Another site has its own owner.
    assert_eq!(declare("new-key", None, &wide).await.0, StatusCode::OK);
    assert_eq!(owner().await.as_deref(), Some("first"));
    assert_eq!(
        declare("annex-key", Some("second"), &wide).await.0,
        StatusCode::OK
    );
    assert_eq!(
        declare("new-key", Some(""), &wide).await.0,
        StatusCode::BAD_REQUEST
    );
    cloud.end().await;
}
