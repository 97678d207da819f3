//! The cloud's client against real HTTP servers: the baseline cloud of `support`, and scripted ones for the
//! rest.

mod changes;
mod files;
mod handshake;
mod in_flight;
mod lists;
mod rows;
mod statuses;
mod tus;
mod tus_peers;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use cloud_sync::batch::{Batch, ChangeIndex, Fate};
use cloud_sync::catalogue::{Catalogue, Entity, EntityIndex};
use cloud_sync::change::{Cause, Change, Epoch, Op, Position};
use cloud_sync::checkpoint::Version;
use cloud_sync::deliver::{
    Capabilities, ChangeOrigin, Cloud, CloudOptions, Numbering, TableSchema, UploadFile,
};
use cloud_sync::error::{Class, Error, Kind};
use cloud_sync::existence::{CloudRows, digest};
use cloud_sync::wire::{Capability, ColumnDeclaration, SchemaDeclaration};
use serde_json::{Value, json};

use crate::support::baseline::{BaselineServer, KEY};
use crate::support::fault::Fault;

const BASELINE: Capabilities = Capabilities {
    bulk: false,
    delete: false,
    changes: false,
    schema: false,
    tus: false,
    content_hash: false,
};
const BULK: Capabilities = Capabilities {
    bulk: true,
    ..BASELINE
};
const DELETE: Capabilities = Capabilities {
    delete: true,
    ..BASELINE
};
const CHANGES: Capabilities = Capabilities {
    changes: true,
    ..BASELINE
};

const ROOMS: usize = 0;
const CAMERAS: usize = 1;
const LOGS: usize = 7;

fn options(url: &str) -> CloudOptions {
    CloudOptions {
        timeout: Duration::from_secs(20),
        in_flight: 8,
        ..CloudOptions::new(url.parse().unwrap(), KEY.to_owned().into())
    }
}

fn client(url: &str) -> Cloud {
    Cloud::new(options(url), Arc::new(Catalogue::builtin())).unwrap()
}

fn origin() -> ChangeOrigin {
    ChangeOrigin {
        source_id: "college-db".to_owned(),
        epoch: Epoch(2),
        database: "7/5".to_owned(),
    }
}

/// The numbers of a term that begins.
fn numbering() -> Numbering {
    Numbering::new(3, "a-nonce".to_owned(), None)
}

fn key(entity: usize, id: i64) -> Box<str> {
    let column = Catalogue::builtin().entities()[entity].key[0].clone();
    format!("{{\"{column}\" : {id}}}").into()
}

fn change(position: i64, entity: usize, op: Op, id: i64) -> Change {
    let column = Catalogue::builtin().entities()[entity].key[0].clone();
    Change {
        position: Position(position),
        entity: EntityIndex(entity),
        op,
        cause: Cause::Gone,
        captured_at: 0,
        key: if op == Op::Truncate {
            "".into()
        } else {
            key(entity, id)
        },
        row: (op == Op::Upsert).then(|| format!("{{\"{column}\":{id},\n\"at\":{position}}}").into()),
    }
}

/// Rooms with these ids, at positions from 1.
fn rooms(ids: impl IntoIterator<Item = i64>) -> Batch {
    let changes = ids.into_iter().zip(1..);
    Batch::new(
        changes
            .map(|(id, at)| change(at, ROOMS, Op::Upsert, id))
            .collect(),
    )
}

fn fates(batch: &Batch) -> Vec<Fate> {
    (0..batch.len())
        .map(|nth| batch.fate(ChangeIndex(nth)).clone())
        .collect()
}

fn code(fate: &Fate) -> Option<u16> {
    match fate {
        Fate::Refused { code, .. } => Some(*code),
        _ => None,
    }
}

async fn baseline(capabilities: &[&str]) -> BaselineServer {
    BaselineServer::start(&Catalogue::builtin(), capabilities).await
}

/// A request that a scripted server has seen.
#[derive(Debug, Clone)]
struct Seen {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
}

impl Seen {
    fn lines(&self) -> Vec<Value> {
        let text = std::str::from_utf8(&self.body).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    fn positions(&self) -> Vec<i64> {
        self.lines()
            .iter()
            .map(|line| line["position"].as_i64().unwrap())
            .collect()
    }
}

/// Serves on a port of its own; answers the base URL.
async fn serve(app: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    format!("http://{address}/api/")
}

/// A server that answers what the test says.
struct Scripted {
    url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Scripted {
    async fn start(answer: impl Fn(&Seen) -> Response + Send + Sync + 'static) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&seen);
        let answer = Arc::new(answer);
        let app = Router::new()
            .fallback(move |method: Method, uri: Uri, headers: HeaderMap, body: Bytes| {
                let (record, answer) = (Arc::clone(&record), Arc::clone(&answer));
                async move {
                    let request = Seen {
                        method,
                        uri,
                        headers,
                        body,
                    };
                    record.lock().unwrap().push(request.clone());
                    answer(&request)
                }
            })
            .layer(axum::extract::DefaultBodyLimit::disable());
        let url = serve(app).await;
        Self { url, seen }
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

fn json_answer(status: u16, value: Value) -> Response {
    (StatusCode::from_u16(status).unwrap(), axum::Json(value)).into_response()
}

fn all_applied(request: &Seen) -> Response {
    json_answer(
        200,
        json!({"applied": request.lines().len(), "skipped": 0, "rejected": []}),
    )
}
