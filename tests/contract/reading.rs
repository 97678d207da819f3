//! What the client makes of the answers that the receiver gives.

use axum::body::Bytes;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use cloud_sync::batch::{Batch, ChangeIndex, Fate};
use cloud_sync::change::Op;
use cloud_sync::checkpoint::Version;
use cloud_sync::deliver::{Capabilities, Cloud, CloudResult, UploadFile};
use cloud_sync::error::Kind;

use super::Message;
use super::requests::{ROOMS, SEATS, change, client, numbering, origin, schema, upsert};

/// A client of a server that gives this answer.
async fn answered_by(name: &str) -> Cloud {
    let answer = Message::read("answers", name);
    let app = axum::Router::new().fallback(async move |_request: Bytes| {
        let status = StatusCode::from_bytes(answer.first_line.as_bytes()).unwrap();
        let kind = answer.header("content-type").unwrap_or_default().to_owned();
        (status, [("content-type", kind)], answer.body).into_response()
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/api", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    client(&url)
}

/// Sends as many changes as the answer is about.
async fn sent(name: &str, changes: usize) -> (Batch, CloudResult<()>) {
    let capabilities = Capabilities::from_names(["changes"]).0;
    let rooms = (1..).map(|room| upsert(9, room, "A1"));
    let mut batch = Batch::new(match name {
        "changes-first-of-term" => vec![
            change(4, SEATS, Op::Truncate, "", ""),
            upsert(7, 1, "A1"),
            upsert(8, 2, "A2"),
            change(9, ROOMS, Op::Delete, "{\"room_id\":3}", ""),
        ],
        _ => rooms.take(changes).collect(),
    });
    let cloud = answered_by(name).await;
    let outcome = cloud
        .deliver(capabilities, &origin(), &mut numbering(), &mut batch)
        .await;
    (batch, outcome)
}

#[tokio::test]
async fn the_status_says_who_the_cloud_is_and_how_far_the_source_has_come() {
    let info = answered_by("sync-status")
        .await
        .handshake(&origin())
        .await
        .unwrap();
    assert_eq!(
        info.capabilities.names(),
        ["bulk", "delete", "changes", "schema", "tus", "content-hash"]
    );
    assert_eq!(
        (info.site.as_deref(), info.receiver.as_deref()),
        (Some("college"), Some("RECEIVER"))
    );
    let version = Version {
        epoch: 2,
        term: 3,
        batch: 3,
    };
    assert_eq!(
        (info.version, info.database.as_deref()),
        (Some(version), Some("7/5"))
    );
    let new = answered_by("sync-status-new")
        .await
        .handshake(&origin())
        .await
        .unwrap();
    assert!(new.version.is_none() && new.tells_version && new.last_sync.is_none());
}

#[tokio::test]
async fn each_change_gets_its_fate() {
    let (batch, outcome) = sent("changes", 1).await;
    outcome.unwrap();
    assert_eq!(batch.count(&Fate::Accepted), 1);
    let (batch, outcome) = sent("changes-first-of-term", 4).await;
    outcome.unwrap();
    assert_eq!(batch.count(&Fate::Accepted), 3);
    assert!(batch.has_undeclared());
    let Fate::Refused { code, error } = batch.fate(ChangeIndex(0)) else {
        panic!("{batch:?}");
    };
    assert!(
        *code == 422 && error.starts_with("unknown-entity: "),
        "{code} {error}"
    );
}

#[tokio::test]
async fn a_batch_that_is_not_taken_asks_for_a_new_term_or_for_a_person() {
    for name in [
        "changes-out-of-turn",
        "changes-stale-term",
        "changes-different-batch",
    ] {
        let failure = sent(name, 1).await.1.unwrap_err();
        assert!(failure.needs_new_term(), "{name}: {failure}");
    }
    for name in ["changes-stale-epoch", "changes-unknown-term"] {
        let failure = sent(name, 1).await.1.unwrap_err();
        assert_eq!(failure.error().kind(), Kind::Identity, "{name}: {failure}");
    }
    let failure = sent("without-a-key", 1).await.1.unwrap_err();
    assert_eq!(failure.error().kind(), Kind::CloudAuth);
}

#[tokio::test]
async fn a_schema_is_declared_or_refused() {
    let put = async |name| {
        let put = answered_by(name).await.put_schema(&origin(), &schema()).await;
        put.map_err(|failure| failure.error().kind())
    };
    assert_eq!(put("schema").await, Ok(()));
    assert_eq!(put("schema-of-another-source").await, Err(Kind::Identity));
    assert_eq!(put("schema-with-another-key").await, Err(Kind::CloudRefused));
}

#[tokio::test]
async fn an_upload_is_confirmed_by_its_hash() {
    let folder = tempfile::tempdir().unwrap();
    let slip = folder.path().join("Slip 1.jpg");
    std::fs::write(&slip, "a slip").unwrap();
    let cloud = answered_by("upload").await;
    let receipt = cloud
        .upload("leave_slips", UploadFile::open(&slip).unwrap())
        .await
        .unwrap();
    assert!(receipt.confirmed);
    assert!(
        receipt
            .url
            .starts_with("https://cloud.example/media/college/leave_slips/")
    );
}
