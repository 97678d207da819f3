//! What a server says about itself, and which schema it gets.

use super::*;

#[tokio::test]
async fn handshake_learns_what_the_server_lists_or_what_is_forced() {
    let server = baseline(&[]).await;
    let info = client(&server.url()).handshake(&origin()).await.unwrap();
    assert_eq!(info.capabilities, BASELINE);
    assert_eq!((info.site, info.version, info.last_sync), (None, None, None));

    server.set_capabilities(&["bulk", "delete", "teleport"]);
    let info = client(&server.url()).handshake(&origin()).await.unwrap();
    assert_eq!(info.capabilities.names(), ["bulk", "delete"]);

    let mut forced = options(&server.url());
    forced.forced = Some(vec!["content-hash".to_owned()]);
    let cloud = Cloud::new(forced.clone(), Arc::new(Catalogue::builtin())).unwrap();
    assert_eq!(
        cloud.handshake(&origin()).await.unwrap().capabilities.names(),
        ["content-hash"]
    );
    forced.forced = Some(vec!["bulky".to_owned()]);
    let error = Cloud::new(forced, Arc::new(Catalogue::builtin())).err().unwrap();
    assert_eq!(error.kind(), Kind::Config);
}

#[tokio::test]
async fn handshake_reads_site_and_version_of_our_receiver() {
    let server = Scripted::start(|_| {
        json_answer(
            200,
            json!({"status": "ok", "message": "", "last_sync": "2026-11-01T00:00:00Z",
                "capabilities": ["changes"],
                "site": "college", "receiver": "r-1",
                "sources": {"other": {"epoch": 9, "term": 9, "batch": 9},
                "college-db": {"epoch": 2, "term": 3, "batch": 7, "database": "7/5"}}}),
        )
    })
    .await;
    let info = client(&server.url).handshake(&origin()).await.unwrap();
    assert_eq!(info.site.as_deref(), Some("college"));
    let version = Version {
        epoch: 2,
        term: 3,
        batch: 7,
    };
    assert_eq!(info.version, Some(version));
    assert_eq!(info.database.as_deref(), Some("7/5"));
    assert_eq!((info.highest_epoch, info.receiver.as_deref()), (9, Some("r-1")));
    assert_eq!(info.last_sync.as_deref(), Some("2026-11-01T00:00:00Z"));
    let request = &server.seen()[0];
    assert_eq!(
        (request.method.as_str(), request.uri.path()),
        ("GET", "/api/sync-status")
    );
    assert_eq!(
        request.headers[header::AUTHORIZATION],
        format!("Bearer {KEY}").as_str()
    );
}

#[tokio::test]
async fn handshake_is_only_believed_in_the_form_of_the_contract() {
    for (status, content_type, body, kind) in [
        (200, "text/html", "<html></html>", Kind::CloudProtocol),
        (200, "application/json", "{\"status\":", Kind::CloudProtocol),
        (200, "application/json", "[]", Kind::CloudProtocol),
        (
            200,
            "application/json",
            "{\"status\":\"maintenance\"}",
            Kind::CloudProtocol,
        ),
        (204, "application/json", "", Kind::CloudProtocol),
        (404, "text/html", "<html>not here</html>", Kind::CloudProtocol),
        (401, "application/json", "{}", Kind::CloudAuth),
        (403, "application/json", "{}", Kind::CloudAuth),
        (503, "text/plain", "busy", Kind::CloudUnreachable),
    ] {
        let server = baseline(&[]).await;
        server.fault(Fault::answer(status, content_type, body).on("sync-status"));
        let failure = client(&server.url()).handshake(&origin()).await.unwrap_err();
        assert_eq!(failure.error().kind(), kind, "{status} {body}");
    }
    let nobody = "http://127.0.0.1:1/api";
    let failure = client(nobody).handshake(&origin()).await.unwrap_err();
    assert_eq!(failure.error().kind(), Kind::CloudUnreachable);
    assert!(!failure.to_string().contains("127.0.0.1:1/api"), "{failure}");
}

#[tokio::test]
async fn a_schema_is_put_in_the_contracts_form() {
    let schema = TableSchema {
        path: "leaves".to_owned(),
        declaration: SchemaDeclaration {
            entity: "leaves".to_owned(),
            key: vec!["leave_id".to_owned()],
            columns: [("leave_id", "bigint"), ("tags", "text[]")]
                .map(|(name, type_name)| ColumnDeclaration {
                    name: name.to_owned(),
                    type_name: type_name.to_owned(),
                })
                .to_vec(),
            window: Some("created_at".to_owned()),
        },
    };
    let server = Scripted::start(|_| json_answer(200, json!({"success": true}))).await;
    client(&server.url).put_schema(&origin(), &schema).await.unwrap();
    let request = &server.seen()[0];
    assert_eq!(
        (request.method.as_str(), request.uri.path()),
        ("PUT", "/api/schema/leaves")
    );
    let body: Value = serde_json::from_slice(&request.body).unwrap();
    assert_eq!(
        body,
        json!({"entity": "leaves", "key": ["leave_id"], "window": "created_at", "columns": [
            {"name": "leave_id", "type": "bigint"}, {"name": "tags", "type": "text[]"}]})
    );
    let server = baseline(&[]).await;
    let failure = client(&server.url())
        .put_schema(&origin(), &schema)
        .await
        .unwrap_err();
    assert_eq!(failure.lost_capability(), Some(Capability::Schema));
}
