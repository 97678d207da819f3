//! The key decides the site; each site sees only its own rows.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{Cloud, upsert};

#[tokio::test]
async fn keys_decide_the_site() {
    let cloud = Cloud::start("keys").await;
    cloud.rooms().await;
    let with = |key: &str| {
        cloud
            .client
            .get(format!("{}/api/sync-status", cloud.root))
            .bearer_auth(key)
            .send()
    };
    for (key, site) in [
        ("new-key", "college"),
        ("old-key", "college"),
        ("annex-key", "annex"),
    ] {
        let status: Value = with(key).await.unwrap().json().await.unwrap();
        assert_eq!(status["site"], site);
        assert_eq!(status["status"], "ok");
    }
    for key in ["", "wrong", "new-key2", "new-ke"] {
        let response = with(key).await.unwrap();
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        let answer: Value = response.json().await.unwrap();
        assert_eq!(answer["success"], false);
    }
    let none = cloud
        .client
        .get(format!("{}/api/rooms", cloud.root))
        .send()
        .await
        .unwrap();
    assert_eq!(none.status(), StatusCode::UNAUTHORIZED);
    // The other site has not declared rooms; then it has its own rooms.
    cloud.send(1, &[upsert(1, 1, "college")]).await;
    let annex = |method, path: &str| {
        cloud
            .client
            .request(method, format!("{}/api/{path}", cloud.root))
            .bearer_auth("annex-key")
    };
    let unknown = annex(Method::GET, "rooms").send().await.unwrap();
    assert_eq!(unknown.status(), StatusCode::NOT_FOUND);
    let schema = json!({"entity": "rooms", "key": ["room_id"],
        "columns": [{"name": "room_id", "type": "integer"}, {"name": "room_no", "type": "text"}]});
    assert_eq!(
        annex(Method::PUT, "schema/rooms")
            .json(&schema)
            .send()
            .await
            .unwrap()
            .status(),
        StatusCode::OK
    );
    let posted = annex(Method::POST, "rooms")
        .json(&json!({"room_id": 1, "room_no": "annex"}))
        .send()
        .await
        .unwrap();
    assert_eq!(posted.status(), StatusCode::OK);
    let removed = annex(Method::DELETE, "rooms/1").send().await.unwrap();
    assert_eq!(removed.status(), StatusCode::OK);
    let list: Value = annex(Method::GET, "rooms")
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(list, json!([]));
    assert_eq!(cloud.standing().await, "1=college@1.1.1");
    // How far each source is.
    let status: Value = with("new-key").await.unwrap().json().await.unwrap();
    assert_eq!(
        status["sources"],
        json!({"source-1": {"epoch": 1, "term": 1, "batch": 1, "database": null}})
    );
    assert_eq!(
        status["capabilities"],
        json!(["bulk", "delete", "changes", "schema", "tus", "content-hash"])
    );
    assert!(status["last_sync"].is_string());
    cloud.end().await;
}
