//! The requests that the client writes, to a server that records them.

use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use axum::http::{HeaderMap, Method, Uri};
use axum::response::{IntoResponse, Response};
use cloud_sync::batch::Batch;
use cloud_sync::catalogue::{Catalogue, Entity, EntityIndex};
use cloud_sync::change::{Cause, Change, Epoch, Op, Position};
use cloud_sync::deliver::{
    Capabilities, ChangeOrigin, Cloud, CloudOptions, Numbering, TableSchema, UploadFile,
};
use cloud_sync::wire::{ColumnDeclaration, SchemaDeclaration};

use super::{Golden, Message};

pub(super) const ROOMS: EntityIndex = EntityIndex(0);
pub(super) const SEATS: EntityIndex = EntityIndex(1);

/// Rooms, and seats, whose key has two columns.
pub(super) fn catalogue() -> Arc<Catalogue> {
    let entities = vec![
        Entity::new("rooms", "tbl_room", &["room_id"]),
        Entity::new("seats", "tbl_seat", &["room_id", "seat_no"]),
    ];
    Arc::new(Catalogue::new(entities).unwrap())
}

pub(super) fn client(url: &str) -> Cloud {
    Cloud::new(
        CloudOptions::new(url.parse().unwrap(), "college-key".to_owned().into()),
        catalogue(),
    )
    .unwrap()
}

pub(super) fn origin() -> ChangeOrigin {
    ChangeOrigin {
        source_id: "college-db".to_owned(),
        epoch: Epoch(2),
        database: "7/5".to_owned(),
    }
}

pub(super) fn numbering() -> Numbering {
    Numbering::new(3, "nonce-of-3".to_owned(), Some("nonce-of-2".to_owned()))
}

pub(super) fn schema() -> TableSchema {
    let column = |(name, type_name): (&str, &str)| ColumnDeclaration {
        name: name.to_owned(),
        type_name: type_name.to_owned(),
    };
    TableSchema {
        path: "rooms".to_owned(),
        declaration: SchemaDeclaration {
            entity: "rooms".to_owned(),
            key: vec!["room_id".to_owned()],
            columns: [
                ("room_id", "bigint"),
                ("room_no", "text"),
                ("seats", "numeric"),
                ("opened_at", "timestamp with time zone"),
                ("plan", "bytea"),
            ]
            .map(column)
            .to_vec(),
            window: Some("opened_at".to_owned()),
        },
    }
}

pub(super) fn upsert(position: i64, room: i64, room_no: &str) -> Change {
    let row = format!(
        "{{\"room_id\":{room},\"room_no\":\"{room_no}\",\"seats\":30.50,\
         \"opened_at\":\"2999-11-29T08:00:00.5+00:00\",\"plan\":\"AAH/\"}}"
    );
    change(
        position,
        ROOMS,
        Op::Upsert,
        &format!("{{\"room_id\":{room}}}"),
        &row,
    )
}

pub(super) fn change(position: i64, entity: EntityIndex, op: Op, key: &str, row: &str) -> Change {
    Change {
        position: Position(position),
        entity,
        op,
        cause: Cause::Gone,
        captured_at: 0,
        key: key.into(),
        row: (!row.is_empty()).then(|| row.into()),
    }
}

/// A server that answers each call as the contract says, and keeps the requests.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<Message>>>);

impl Recorder {
    /// Serves; returns the base URL.
    async fn serve(&self) -> String {
        let recorder = self.clone();
        let app = axum::Router::new().fallback(
            move |method: Method, uri: Uri, headers: HeaderMap, body: Bytes| async move {
                recorder.record(&method, &uri, &headers, &body)
            },
        );
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/api", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        url
    }

    fn record(&self, method: &Method, uri: &Uri, headers: &HeaderMap, body: &[u8]) -> Response {
        let packed = headers.contains_key("content-encoding");
        let body = if packed {
            zstd::stream::decode_all(body).unwrap()
        } else {
            body.to_vec()
        };
        let fields = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_bytes()));
        let mut message = Message::new(format!("{method} {uri}"), fields, &body);
        message.mask_header("host", "HOST");
        message.mask(env!("CARGO_PKG_VERSION"), "VERSION");
        if packed {
            message.mask_header("content-length", "LENGTH");
        }
        let kind = message.header("content-type").unwrap_or_default().to_owned();
        if let Some((_, boundary)) = kind.split_once("boundary=") {
            message.mask(boundary, "BOUNDARY");
        }
        self.0.lock().unwrap().push(message);
        let lines = body.split(|byte| *byte == b'\n').count() - 1;
        match uri.path() {
            "/api/sync-status" => "{\"status\":\"ok\"}".into_response(),
            "/api/changes" => {
                format!("{{\"applied\":{lines},\"skipped\":0,\"rejected\":[]}}").into_response()
            }
            "/api/rooms" if *method == Method::GET => "[]".into_response(),
            _ if *method == Method::HEAD => [("location", "https://cloud.example/f")].into_response(),
            _ => "{\"success\":true,\"url\":\"https://cloud.example/f\"}".into_response(),
        }
    }

    /// The one request since the last call.
    fn take(&self) -> Message {
        let mut requests = std::mem::take(&mut *self.0.lock().unwrap());
        assert_eq!(requests.len(), 1, "{requests:?}");
        requests.remove(0)
    }
}

#[tokio::test]
async fn the_client_writes_the_contracts_requests() {
    let mut golden = Golden::new("requests");
    let recorder = Recorder::default();
    let url = recorder.serve().await;
    let cloud = client(&url);
    let (mut numbering, origin) = (numbering(), origin());

    cloud.handshake(&origin).await.unwrap();
    golden.compare("sync-status", &recorder.take());
    cloud.put_schema(&origin, &schema()).await.unwrap();
    golden.compare("schema", &recorder.take());

    let all = Capabilities::from_names(["changes", "bulk", "delete"]).0;
    let mut batch = Batch::new(vec![
        change(4, SEATS, Op::Truncate, "", ""),
        upsert(7, 1, "A\\\"1"),
        // White space of the source's own `json` columns stays, but for line breaks.
        change(
            8,
            ROOMS,
            Op::Upsert,
            "{\"room_id\" : 2}",
            "{\"room_id\":2,\n\"room_no\" :\r\n\"é\"}",
        ),
        change(9, ROOMS, Op::Delete, "{\"room_id\":3}", ""),
    ]);
    cloud
        .deliver(all, &origin, &mut numbering, &mut batch)
        .await
        .unwrap();
    golden.compare("changes-first-of-term", &recorder.take());
    let mut batch = Batch::new(vec![upsert(10, 1, "A1")]);
    cloud
        .deliver(all, &origin, &mut numbering, &mut batch)
        .await
        .unwrap();
    golden.compare("changes", &recorder.take());
    let mut options = CloudOptions::new(url.parse().unwrap(), "college-key".to_owned().into());
    options.compress = true;
    let compressing = Cloud::new(options, catalogue()).unwrap();
    let mut batch = Batch::new((1..=30).map(|room| upsert(room + 10, room, "A1")).collect());
    compressing
        .deliver(all, &origin, &mut numbering, &mut batch)
        .await
        .unwrap();
    golden.compare("changes-compressed", &recorder.take());

    cloud.list(ROOMS, None, |_| Ok(())).await.unwrap();
    golden.compare("list", &recorder.take());
    cloud.list(ROOMS, Some(30), |_| Ok(())).await.unwrap();
    golden.compare("list-of-days", &recorder.take());
    for (name, capabilities, changes) in [
        ("row", &[][..], vec![upsert(1, 1, "A1")]),
        ("bulk", &["bulk"], vec![upsert(1, 1, "A1"), upsert(2, 2, "A2")]),
        (
            "delete",
            &["delete"],
            vec![change(3, ROOMS, Op::Delete, "{\"room_id\":3}", "")],
        ),
        (
            "delete-of-two-columns",
            &["delete"],
            vec![change(
                4,
                SEATS,
                Op::Delete,
                "{\"room_id\":3,\"seat_no\":\"a/ü,1\"}",
                "",
            )],
        ),
    ] {
        let capabilities = Capabilities::from_names(capabilities.iter().copied()).0;
        let mut batch = Batch::new(changes);
        cloud
            .deliver(capabilities, &origin, &mut numbering, &mut batch)
            .await
            .unwrap();
        golden.compare(name, &recorder.take());
    }

    let folder = tempfile::tempdir().unwrap();
    let slip = folder.path().join("Slip 1.jpg");
    std::fs::write(&slip, "a slip").unwrap();
    cloud
        .upload("leave_slips", UploadFile::open(&slip).unwrap())
        .await
        .unwrap();
    golden.compare("upload", &recorder.take());
    let hash = blake3::hash(b"a slip");
    cloud.find_content("leave_slips", &hash).await.unwrap();
    golden.compare("find-content", &recorder.take());
    golden.finish();
}
