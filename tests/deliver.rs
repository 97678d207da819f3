//! The cloud's client against real HTTP servers: the baseline cloud of `support`, and scripted ones for the rest.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use cloud_sync::batch::{Batch, Fate};
use cloud_sync::catalogue::{Catalogue, Entity};
use cloud_sync::change::{Change, Epoch, Op, Position};
use cloud_sync::deliver::{Capabilities, Cloud, CloudOptions, Origin, TableSchema, UploadFile};
use cloud_sync::error::{Class, Error, Kind};
use cloud_sync::existence::{Held, digest};
use serde_json::{Value, json};

use crate::support::baseline::{Baseline, Fault, KEY};

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
        url: url.parse().unwrap(),
        key: KEY.to_owned().into(),
        timeout: Duration::from_secs(20),
        allow_insecure_http: false,
        ca_file: None,
        forced: None,
        in_flight: 8,
        compress: false,
    }
}

fn client(url: &str) -> Cloud {
    Cloud::new(options(url), Arc::new(Catalogue::builtin())).unwrap()
}

fn origin() -> Origin {
    Origin {
        source_id: "college-db".to_owned(),
        epoch: Epoch(2),
    }
}

fn key(entity: usize, id: i64) -> Box<str> {
    let column = Catalogue::builtin().entities()[entity].key[0].clone();
    format!("{{\"{column}\" : {id}}}").into()
}

fn change(position: i64, entity: usize, op: Op, id: i64) -> Change {
    let column = Catalogue::builtin().entities()[entity].key[0].clone();
    Change {
        position: Position(position),
        entity,
        op,
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
    (0..batch.len()).map(|nth| batch.fate(nth).clone()).collect()
}

fn code(fate: &Fate) -> Option<u16> {
    match fate {
        Fate::Refused { code, .. } => Some(*code),
        _ => None,
    }
}

async fn baseline(capabilities: &[&str]) -> Baseline {
    Baseline::start(&Catalogue::builtin(), capabilities).await
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
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self {
            url: format!("http://{address}/api/"),
            seen,
        }
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

#[tokio::test]
async fn hello_learns_what_the_server_lists_or_what_is_forced() {
    let server = baseline(&[]).await;
    let hello = client(&server.url()).hello(&origin()).await.unwrap();
    assert_eq!(hello.capabilities, BASELINE);
    assert_eq!(
        (hello.site, hello.high_water, hello.last_sync),
        (None, None, None)
    );

    server.set_capabilities(&["bulk", "delete", "teleport"]);
    let hello = client(&server.url()).hello(&origin()).await.unwrap();
    assert_eq!(hello.capabilities.names(), ["bulk", "delete"]);

    let mut forced = options(&server.url());
    forced.forced = Some(vec!["content-hash".to_owned()]);
    let cloud = Cloud::new(forced.clone(), Arc::new(Catalogue::builtin())).unwrap();
    assert_eq!(
        cloud.hello(&origin()).await.unwrap().capabilities.names(),
        ["content-hash"]
    );
    forced.forced = Some(vec!["bulky".to_owned()]);
    let error = Cloud::new(forced, Arc::new(Catalogue::builtin())).err().unwrap();
    assert_eq!(error.kind(), Kind::Config);
}

#[tokio::test]
async fn hello_reads_site_and_high_water_of_our_receiver() {
    let server = Scripted::start(|_| {
        json_answer(
            200,
            json!({"status": "ok", "message": "", "last_sync": "2026-11-01T00:00:00Z", "capabilities": ["changes"],
                "site": "college", "sources": {"other": {"epoch": 9, "position": 9},
                "college-db": {"epoch": 2, "position": 7}}}),
        )
    })
    .await;
    let hello = client(&server.url).hello(&origin()).await.unwrap();
    assert_eq!(hello.site.as_deref(), Some("college"));
    assert_eq!(hello.high_water, Some((Epoch(2), Position(7))));
    assert_eq!(hello.last_sync.as_deref(), Some("2026-11-01T00:00:00Z"));
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
async fn hello_is_only_believed_in_the_form_of_the_contract() {
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
        let failure = client(&server.url()).hello(&origin()).await.unwrap_err();
        assert_eq!(failure.error().kind(), kind, "{status} {body}");
    }
    let nobody = "http://127.0.0.1:1/api";
    let failure = client(nobody).hello(&origin()).await.unwrap_err();
    assert_eq!(failure.error().kind(), Kind::CloudUnreachable);
    assert!(!failure.to_string().contains("127.0.0.1:1/api"), "{failure}");
}

#[tokio::test]
async fn each_status_means_one_thing() {
    for status in [200, 201, 202, 204] {
        let server = baseline(&[]).await;
        server.fault(Fault::answer(status, "application/json", ""));
        let mut batch = rooms([1]);
        client(&server.url())
            .deliver(BASELINE, &origin(), &mut batch)
            .await
            .unwrap();
        assert_eq!(fates(&batch), [Fate::Accepted], "{status}");
    }
    for status in [400, 402, 404, 405, 409, 410, 413, 418, 422, 451] {
        let server = baseline(&[]).await;
        server.fault(Fault::status(status).when(|row| row["room_id"] == 2));
        let mut batch = rooms([1, 2, 3]);
        client(&server.url())
            .deliver(BASELINE, &origin(), &mut batch)
            .await
            .unwrap();
        let refused = Fate::Refused {
            code: status,
            error: format!("scripted {status}"),
        };
        assert_eq!(fates(&batch), [Fate::Accepted, refused, Fate::Accepted]);
    }
    for status in [401, 403] {
        let server = baseline(&[]).await;
        server.fault(Fault::status(status));
        let mut batch = rooms([1]);
        let cloud = client(&server.url());
        let failure = cloud.deliver(BASELINE, &origin(), &mut batch).await.unwrap_err();
        assert_eq!(failure.error().kind(), Kind::CloudAuth);
        assert_eq!((fates(&batch), server.requests().len()), (vec![Fate::Pending], 1));
    }
    for status in [408, 425, 429, 500, 502, 503, 504, 507] {
        let server = baseline(&[]).await;
        server.fault(Fault::status(status));
        let mut batch = rooms([1]);
        let cloud = client(&server.url());
        let failure = cloud.deliver(BASELINE, &origin(), &mut batch).await.unwrap_err();
        assert_eq!(failure.error().kind(), Kind::CloudUnreachable, "{status}");
        assert_eq!(
            (failure.status(), failure.error().class()),
            (Some(status), Class::Retry)
        );
        assert_eq!(fates(&batch), [Fate::Pending]);
        assert!(server.requests().len() > 1, "it is tried again, {status}");
    }
    for status in [301, 302, 307, 308, 304] {
        let server = baseline(&[]).await;
        server.fault(Fault::status(status));
        let mut batch = rooms([1]);
        let cloud = client(&server.url());
        let failure = cloud.deliver(BASELINE, &origin(), &mut batch).await.unwrap_err();
        assert_eq!(failure.error().kind(), Kind::CloudProtocol, "{status}");
        assert_eq!(fates(&batch), [Fate::Pending]);
    }
}

#[tokio::test]
async fn what_passes_soon_is_waited_out() {
    for fault in [
        Fault::status(503).times(2),
        Fault::status(429).retry_after("0").times(2),
        Fault::cut().times(1),
        Fault::cut_after_store().times(1),
    ] {
        let server = baseline(&[]).await;
        server.fault(fault.on("rooms").when(|row| row["room_id"] == 3));
        let mut batch = rooms(1..=5);
        client(&server.url())
            .deliver(BASELINE, &origin(), &mut batch)
            .await
            .unwrap();
        assert_eq!(batch.count(&Fate::Accepted), 5);
        assert_eq!(server.count("rooms"), 5);
    }
}

#[tokio::test]
async fn a_longer_wait_is_handed_to_the_caller() {
    let later = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(900);
    let date = jiff::fmt::rfc2822::DateTimePrinter::new()
        .timestamp_to_rfc9110_string(&later)
        .unwrap();
    for (value, least, most) in [("600", 600, 600), (date.as_str(), 890, 900)] {
        let server = baseline(&[]).await;
        server.fault(Fault::status(503).retry_after(value));
        let mut batch = rooms([1]);
        let cloud = client(&server.url());
        let failure = cloud.deliver(BASELINE, &origin(), &mut batch).await.unwrap_err();
        let wait = failure.retry_after().unwrap().as_secs();
        assert!((least..=most).contains(&wait), "{value}: {wait}");
        assert_eq!(server.requests().len(), 1);
    }
}

#[tokio::test]
async fn a_server_that_stalls_is_given_up() {
    let server = baseline(&[]).await;
    server.fault(Fault::stall().when(|row| row["room_id"] == 1));
    let mut hasty = options(&server.url());
    hasty.timeout = Duration::from_millis(300);
    let cloud = Cloud::new(hasty, Arc::new(Catalogue::builtin())).unwrap();
    let mut batch = rooms([1, 2]);
    let failure = cloud.deliver(BASELINE, &origin(), &mut batch).await.unwrap_err();
    assert_eq!(failure.error().kind(), Kind::CloudUnreachable);
    assert_eq!(fates(&batch), [Fate::Pending, Fate::Accepted]);
}

#[tokio::test]
async fn the_key_never_follows_a_redirect() {
    let elsewhere = baseline(&[]).await;
    let server = baseline(&[]).await;
    let target = format!("{}/rooms?token=hidden", elsewhere.url());
    server.fault(Fault::status(307).header(header::LOCATION, &target));
    let cloud = client(&server.url());
    let failure = cloud
        .deliver(BASELINE, &origin(), &mut rooms([1]))
        .await
        .unwrap_err();
    assert_eq!(failure.error().kind(), Kind::CloudProtocol);
    let message = failure.to_string();
    assert!(
        message.contains("to 127.0.0.1:") && !message.contains("hidden"),
        "{message}"
    );
    assert!(elsewhere.requests().is_empty());
}

#[tokio::test]
async fn a_page_is_no_acceptance() {
    for fault in [
        Fault::page(),
        Fault::answer(200, "text/html", ""),
        Fault::answer(200, "text/plain", " <HTML><body>"),
    ] {
        let server = baseline(&[]).await;
        server.fault(fault);
        let mut batch = rooms([1]);
        let cloud = client(&server.url());
        let failure = cloud.deliver(BASELINE, &origin(), &mut batch).await.unwrap_err();
        assert_eq!(failure.error().kind(), Kind::CloudProtocol);
        assert_eq!(fates(&batch), [Fate::Pending]);
    }
    // PHP labels everything as HTML unless told otherwise.
    let server = baseline(&[]).await;
    server.fault(Fault::answer(
        200,
        "text/html; charset=UTF-8",
        "{\"success\":true}",
    ));
    let mut batch = rooms([1]);
    client(&server.url())
        .deliver(BASELINE, &origin(), &mut batch)
        .await
        .unwrap();
    assert_eq!(fates(&batch), [Fate::Accepted]);
}

#[tokio::test]
async fn messages_carry_neither_key_nor_row_nor_control_characters() {
    let server = baseline(&[]).await;
    let words = format!(
        "{{\"message\":\"bad \\u001b[31m key {KEY} {}\"}}",
        "x".repeat(1000)
    );
    server.fault(Fault::answer(422, "application/json", &words).times(1));
    server.fault(Fault::answer(
        500,
        "application/json",
        "{\"row\":\"secret value\"}",
    ));
    let cloud = client(&server.url());
    let mut batch = rooms([1]);
    cloud.deliver(BASELINE, &origin(), &mut batch).await.unwrap();
    let (_, _, error) = batch.refused().next().unwrap();
    assert!(
        !error.contains(KEY) && !error.contains('\u{1b}') && error.chars().count() <= 300,
        "{error}"
    );

    let failure = cloud
        .deliver(BASELINE, &origin(), &mut rooms([1]))
        .await
        .unwrap_err();
    let error = Error::from(failure);
    assert_eq!(error.operation(), "push rooms to the cloud");
    assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
}

#[tokio::test]
async fn rows_go_in_parallel_over_kept_connections() {
    let server = baseline(&[]).await;
    server.set_latency(Duration::from_millis(20));
    let mut batch = rooms(1..=200);
    client(&server.url())
        .deliver(BASELINE, &origin(), &mut batch)
        .await
        .unwrap();
    assert_eq!(batch.count(&Fate::Accepted), 200);
    assert!(
        (2..=8).contains(&server.most_at_once()),
        "{}",
        server.most_at_once()
    );
    assert!(server.connections() <= 16, "{}", server.connections());
    assert_eq!(
        server.row("rooms", "200"),
        Some(json!({"room_id": 200, "at": 200}))
    );
}

#[tokio::test]
async fn each_rows_own_order_is_kept_without_collapse() {
    let server = baseline(&["delete"]).await;
    server.set_latency(Duration::from_millis(2));
    let mut batch = Batch::new(
        (0..60)
            .map(|at| match at % 5 {
                4 => change(at + 1, ROOMS, Op::Delete, at % 3),
                _ => change(at + 1, ROOMS, Op::Upsert, at % 3),
            })
            .collect(),
    );
    client(&server.url())
        .deliver(DELETE, &origin(), &mut batch)
        .await
        .unwrap();
    for id in 0..3 {
        let last = batch
            .changes()
            .iter()
            .rev()
            .find(|change| change.key == key(ROOMS, id))
            .unwrap();
        let expected = (last.op == Op::Upsert).then(|| json!({"room_id": id, "at": last.position.0}));
        assert_eq!(server.row("rooms", &id.to_string()), expected);
    }
}

#[tokio::test]
async fn parents_go_first_and_deletes_go_children_first() {
    let server = baseline(&["delete"]).await;
    server.set_latency(Duration::from_millis(2));
    for id in [101, 102] {
        server.seed("rooms", json!({"room_id": id}));
        server.seed("cameras", json!({"camera_id": id}));
    }
    let mut changes = Vec::new();
    for id in 1..=20 {
        changes.push(change(4 * id, CAMERAS, Op::Upsert, id));
        changes.push(change(4 * id + 1, ROOMS, Op::Upsert, id));
    }
    for id in [101, 102] {
        changes.push(change(4 * id, ROOMS, Op::Delete, id));
        changes.push(change(4 * id + 1, CAMERAS, Op::Delete, id));
    }
    let mut batch = Batch::new(changes);
    client(&server.url())
        .deliver(DELETE, &origin(), &mut batch)
        .await
        .unwrap();
    let calls: Vec<String> = server
        .calls()
        .iter()
        .map(|call| {
            call.trim_end_matches(|letter: char| letter.is_ascii_digit())
                .to_owned()
        })
        .collect();
    let mut expected = vec!["POST rooms"; 20];
    expected.extend(["POST cameras"; 20]);
    expected.extend(["DELETE cameras/"; 2]);
    expected.extend(["DELETE rooms/"; 2]);
    assert_eq!(calls, expected);
}

#[tokio::test]
async fn children_wait_for_a_pending_parent_and_the_rest_is_resumed() {
    let server = baseline(&[]).await;
    server.fault(
        Fault::status(503)
            .retry_after("600")
            .on("rooms")
            .when(|row| row["room_id"] == 2),
    );
    let mut changes: Vec<Change> = (1..=4).map(|id| change(id, ROOMS, Op::Upsert, id)).collect();
    changes.push(change(5, CAMERAS, Op::Upsert, 1));
    let mut batch = Batch::new(changes);
    let cloud = client(&server.url());
    let failure = cloud.deliver(BASELINE, &origin(), &mut batch).await.unwrap_err();
    assert!(failure.is_passing());
    assert_eq!(server.count("cameras"), 0);
    assert_eq!(batch.fate(1), &Fate::Pending);
    assert_eq!(batch.fate(4), &Fate::Pending);
    let pending = batch.pending().len();

    server.clear_faults();
    server.forget_requests();
    cloud.deliver(BASELINE, &origin(), &mut batch).await.unwrap();
    assert_eq!(batch.count(&Fate::Accepted), 5);
    assert_eq!(server.requests().len(), pending, "only what was pending is sent");
    assert_eq!(server.calls().last().unwrap(), "POST cameras");
}

#[tokio::test]
async fn a_dropped_delivery_keeps_what_was_answered() {
    let server = baseline(&[]).await;
    server.fault(Fault::stall().when(|row| row["room_id"] == 2));
    let mut two = options(&server.url());
    two.in_flight = 2;
    let cloud = Cloud::new(two, Arc::new(Catalogue::builtin())).unwrap();
    let mut batch = rooms([1, 2, 3]);
    let origin = origin();
    tokio::select! {
        _ = cloud.deliver(BASELINE, &origin, &mut batch) => panic!("it stalls"),
        // It starts only after the answer for the first one is marked.
        () = server.wait_until("the third row is there", |server| server.row("rooms", "3").is_some()) => {}
    }
    assert_eq!(batch.fate(0), &Fate::Accepted);
    assert_eq!(batch.fate(1), &Fate::Pending);
}

#[tokio::test]
async fn deletes_are_sent_kept_or_unsupported() {
    let changes = || {
        Batch::new(vec![
            change(1, ROOMS, Op::Delete, 1),
            change(2, ROOMS, Op::Delete, 99),
            change(3, LOGS, Op::Delete, 1),
            change(4, LOGS, Op::Truncate, 0),
        ])
    };
    let server = baseline(&["delete"]).await;
    server.seed("rooms", json!({"room_id": 1}));
    server.seed("recognition-logs", json!({"log_id": 1}));
    let cloud = client(&server.url());

    let mut batch = changes();
    cloud.deliver(BASELINE, &origin(), &mut batch).await.unwrap();
    assert_eq!(
        fates(&batch),
        [Fate::Unsupported, Fate::Unsupported, Fate::Kept, Fate::Kept]
    );
    assert!(server.requests().is_empty());

    let mut batch = changes();
    cloud.deliver(DELETE, &origin(), &mut batch).await.unwrap();
    assert_eq!(
        fates(&batch),
        [Fate::Accepted, Fate::Accepted, Fate::Kept, Fate::Kept]
    );
    assert_eq!((server.count("rooms"), server.count("recognition-logs")), (0, 1));

    server.fault(Fault::status(405).method(Method::DELETE));
    let mut batch = changes();
    cloud.deliver(DELETE, &origin(), &mut batch).await.unwrap();
    assert_eq!(batch.fate(0), &Fate::Unsupported);
}

#[tokio::test]
async fn a_truncate_deletes_what_the_cloud_has_in_its_turn() {
    let server = baseline(&["delete"]).await;
    for id in 1..=30 {
        server.seed("rooms", json!({"room_id": id}));
    }
    let cloud = client(&server.url());
    let truncated = || {
        Batch::new(vec![
            change(1, ROOMS, Op::Upsert, 5),
            change(2, ROOMS, Op::Truncate, 0),
            change(3, ROOMS, Op::Upsert, 6),
        ])
    };
    let mut batch = truncated();
    cloud.deliver(DELETE, &origin(), &mut batch).await.unwrap();
    assert_eq!(batch.count(&Fate::Accepted), 3);
    assert_eq!(server.rows("rooms"), [json!({"room_id": 6, "at": 3})]);

    server.fault(Fault::status(409).method(Method::DELETE));
    let mut batch = truncated();
    cloud.deliver(DELETE, &origin(), &mut batch).await.unwrap();
    assert_eq!(
        fates(&batch).iter().map(code).collect::<Vec<_>>(),
        [None, Some(409), None]
    );

    let mut batch = truncated();
    cloud.deliver(BASELINE, &origin(), &mut batch).await.unwrap();
    assert_eq!(batch.fate(1), &Fate::Unsupported);
}

#[tokio::test]
async fn composite_keys_are_deleted_by_their_encoded_values() {
    let catalogue = Catalogue::new(vec![Entity::new("terms", "t", &["year", "name"])]).unwrap();
    let server = Baseline::start(&catalogue, &["delete"]).await;
    server.seed("terms", json!({"name": "a/b é", "year": 2026}));
    let cloud = Cloud::new(options(&server.url()), Arc::new(catalogue)).unwrap();
    let mut delete = change(1, ROOMS, Op::Delete, 1);
    delete.key = "{\"name\" : \"a/b é\", \"year\" : 2026}".into();
    let mut unspeakable = change(2, ROOMS, Op::Delete, 1);
    unspeakable.key = "{\"name\" : \"\", \"year\" : 2026}".into();
    let mut batch = Batch::new(vec![delete, unspeakable]);
    cloud.deliver(DELETE, &origin(), &mut batch).await.unwrap();
    assert_eq!(server.calls(), ["DELETE terms/2026,a%2Fb%20%C3%A9"]);
    assert_eq!(server.count("terms"), 0);
    assert_eq!(code(batch.fate(1)), Some(422));
}

#[tokio::test]
async fn an_upsert_that_needs_a_delete_first_gets_its_second_chance() {
    let server = baseline(&["delete"]).await;
    server.seed("rooms", json!({"room_id": 1, "room_no": "A"}));
    server.fault(
        Fault::status(409)
            .on("rooms")
            .when(|row| row["room_id"] == 2)
            .times(1),
    );
    let mut batch = Batch::new(vec![
        change(1, ROOMS, Op::Delete, 1),
        change(2, ROOMS, Op::Upsert, 2),
    ]);
    client(&server.url())
        .deliver(DELETE, &origin(), &mut batch)
        .await
        .unwrap();
    assert_eq!(server.calls(), ["POST rooms", "DELETE rooms/1", "POST rooms"]);
    assert_eq!(batch.count(&Fate::Accepted), 2);
}

#[tokio::test]
async fn bulk_sends_chunks_and_isolates_the_refused_row() {
    let server = baseline(&["bulk"]).await;
    server.fault(
        Fault::status(422)
            .on("bulk/rooms")
            .when(|row| row["room_id"] == 7),
    );
    let mut batch = rooms(1..=1200);
    client(&server.url())
        .deliver(BULK, &origin(), &mut batch)
        .await
        .unwrap();
    assert_eq!(batch.count(&Fate::Accepted), 1199);
    assert_eq!(code(batch.fate(6)), Some(422));
    assert_eq!(server.count("rooms"), 1199);
    let requests = server.requests();
    assert!(requests.iter().all(|request| request.path == "bulk/rooms"));
    assert!(requests.len() <= 3 + 2 * 10, "{}", requests.len());

    server.clear_faults();
    server.fault(Fault::status(404).on("bulk"));
    let cloud = client(&server.url());
    let failure = cloud.deliver(BULK, &origin(), &mut rooms([1])).await.unwrap_err();
    assert_eq!(failure.lost_capability(), Some("bulk"));
    assert_eq!(failure.error().kind(), Kind::CloudProtocol);
}

#[tokio::test]
async fn a_413_halves_requests_and_is_remembered() {
    let limit = 40_000;
    let server = Scripted::start(move |request| {
        if request.body.len() > limit {
            return StatusCode::PAYLOAD_TOO_LARGE.into_response();
        }
        if request.uri.path().ends_with("/changes") {
            return all_applied(request);
        }
        json_answer(200, json!({"success": true, "upserted": 1}))
    })
    .await;
    let cloud = client(&server.url);
    for capabilities in [BULK, CHANGES] {
        let mut batch = rooms(1..=2000);
        cloud.deliver(capabilities, &origin(), &mut batch).await.unwrap();
        assert_eq!(batch.count(&Fate::Accepted), 2000);
    }
    let refused = server
        .seen()
        .iter()
        .filter(|request| request.body.len() > limit)
        .count();
    let before = server.seen().len();
    cloud
        .deliver(CHANGES, &origin(), &mut rooms(1..=2000))
        .await
        .unwrap();
    let after = server.seen();
    assert!(after[before..].iter().all(|request| request.body.len() <= limit));
    assert!(refused > 0);
    let positions: Vec<i64> = after[before..].iter().flat_map(Seen::positions).collect();
    assert_eq!(positions, (1..=2000).collect::<Vec<_>>(), "in order");

    let mut huge = change(1, ROOMS, Op::Upsert, 1);
    huge.row = Some(format!("{{\"room_id\":1,\"x\":\"{}\"}}", "x".repeat(2 * limit)).into());
    let mut batch = Batch::new(vec![huge, change(2, ROOMS, Op::Upsert, 2)]);
    cloud.deliver(CHANGES, &origin(), &mut batch).await.unwrap();
    assert_eq!(
        fates(&batch).iter().map(code).collect::<Vec<_>>(),
        [Some(413), None]
    );
    assert_eq!(batch.fate(1), &Fate::Accepted);
}

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
    client(&server.url)
        .deliver(CHANGES, &origin(), &mut batch)
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
        cloud.deliver(CHANGES, &origin(), &mut batch).await.unwrap();
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
        cloud.deliver(CHANGES, &origin(), &mut batch).await.unwrap();
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
                {"position": 2, "code": "422", "error": "no\nroom"}, {"position": 5, "code": "23503", "error": "x"}]}),
        )
    })
    .await;
    let mut batch = rooms(1..=5);
    client(&server.url)
        .deliver(CHANGES, &origin(), &mut batch)
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
            .deliver(CHANGES, &origin(), &mut batch)
            .await
            .unwrap_err();
        assert_eq!(failure.error().kind(), kind, "{status} {body}");
        assert_eq!(batch.count(&Fate::Pending), 3);
    }
    for status in [404, 405] {
        let server = Scripted::start(move |_| StatusCode::from_u16(status).unwrap().into_response()).await;
        let mut batch = rooms(1..=3);
        let failure = client(&server.url)
            .deliver(CHANGES, &origin(), &mut batch)
            .await
            .unwrap_err();
        assert_eq!(failure.lost_capability(), Some("changes"));
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
        .deliver(CHANGES, &origin(), &mut batch)
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
        .deliver(CHANGES, &origin(), &mut batch)
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
    let mut batch = rooms(1..=4);
    let failure = cloud.deliver(CHANGES, &origin(), &mut batch).await.unwrap_err();
    assert_eq!(failure.status(), Some(502));
    assert_eq!(batch.pending(), [2, 3]);
    cloud.deliver(CHANGES, &origin(), &mut batch).await.unwrap();
    assert_eq!(server.seen().last().unwrap().positions(), [3, 4]);
    assert_eq!(batch.count(&Fate::Accepted), 4);
}

#[tokio::test]
async fn a_list_is_streamed() {
    const ROWS: usize = 50_000;
    const ROW: usize = 1000;
    let (made, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let making = Arc::clone(&made);
    let server = Scripted::start(move |_| {
        let making = Arc::clone(&making);
        let rows = (0..ROWS).map(move |id| {
            making.store(id, Ordering::SeqCst);
            let open = if id == 0 { "[" } else { "," };
            let close = if id + 1 == ROWS { "]" } else { "" };
            let row = format!("{open}{{\"room_id\":{id},\"x\":\"{}\"}}{close}", "x".repeat(ROW));
            Ok::<_, std::io::Error>(Bytes::from(row))
        });
        Body::from_stream(futures::stream::iter(rows)).into_response()
    })
    .await;
    let mut ahead = 0;
    client(&server.url)
        .list(ROOMS, Some(30), |row| {
            let id = seen.fetch_add(1, Ordering::SeqCst);
            assert!(row.get().starts_with(&format!("{{\"room_id\":{id},")));
            ahead = ahead.max(made.load(Ordering::SeqCst).saturating_sub(id));
            Ok(())
        })
        .await
        .unwrap();
    assert_eq!(seen.load(Ordering::SeqCst), ROWS);
    assert!(
        ahead * ROW < 20_000_000,
        "{ahead} of {ROWS} rows were held between the two"
    );
    assert_eq!(server.seen()[0].uri, "/api/rooms?days=30");
}

#[tokio::test]
async fn a_list_that_is_none_is_not_believed() {
    let server = baseline(&[]).await;
    server.seed("rooms", json!({"room_id": 1}));
    let cloud = client(&server.url());
    let count = async || {
        let mut count = 0;
        let end = cloud.list(ROOMS, None, |_| {
            count += 1;
            Ok(())
        });
        end.await
            .map(|()| count)
            .map_err(|failure| failure.error().kind())
    };
    assert_eq!(count().await, Ok(1));
    for (fault, kind) in [
        (Fault::page(), Kind::CloudProtocol),
        (
            Fault::answer(200, "application/json", "{\"data\":[]}"),
            Kind::CloudProtocol,
        ),
        (
            Fault::answer(200, "application/json", "[{\"room_id\":1}"),
            Kind::CloudProtocol,
        ),
        (
            Fault::answer(200, "application/json", "[1,2]"),
            Kind::CloudProtocol,
        ),
        (Fault::status(404), Kind::CloudRefused),
        (Fault::status(500), Kind::CloudUnreachable),
        (Fault::cut(), Kind::CloudUnreachable),
        (Fault::status(401), Kind::CloudAuth),
    ] {
        server.clear_faults();
        server.fault(fault.on("rooms"));
        assert_eq!(count().await, Err(kind));
    }
}

#[tokio::test]
async fn what_the_cloud_holds_is_learnt_with_its_content() {
    let server = baseline(&[]).await;
    for id in 1..=100 {
        server.seed(
            "rooms",
            json!({"room_id": id.to_string(), "room_no": format!("R{id}"), "_position": id}),
        );
    }
    let cloud = client(&server.url());
    let held = Held::learn(&cloud, ROOMS, None, None).await.unwrap();
    assert_eq!((held.len(), held.content(&key(ROOMS, 7))), (100, None));
    assert!(held.contains(&key(ROOMS, 7)) && !held.contains(&key(ROOMS, 101)));

    let columns = ["room_id".to_owned(), "room_no".to_owned()];
    let held = Held::learn(&cloud, ROOMS, None, Some(&columns)).await.unwrap();
    let row = "{\"room_no\" : \"R7\", \"room_id\" : \"7\"}";
    assert_eq!(held.content(&key(ROOMS, 7)), Some(digest(row, &columns).unwrap()));

    server.fault(Fault::answer(200, "application/json", "[{\"id\":1}]"));
    let failure = Held::learn(&cloud, ROOMS, None, None).await.unwrap_err();
    assert_eq!(failure.error().kind(), Kind::CloudProtocol);
    assert!(failure.to_string().contains("room_id"), "{failure}");
}

fn file(bytes: usize) -> (tempfile::TempDir, UploadFile, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("slip é.jpg");
    let content: Vec<u8> = (0..bytes).map(|at| (at * 31 % 251) as u8).collect();
    std::fs::write(&path, &content).unwrap();
    (folder, UploadFile::new(path), content)
}

#[tokio::test]
async fn files_arrive_whole_with_their_name_and_type() {
    let server = baseline(&[]).await;
    let cloud = client(&server.url());
    for size in [0, 1, 256 * 1024, 3_000_000] {
        let (_folder, mut file, content) = file(size);
        let sent = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&sent);
        file.pace = Some(Arc::new(move |bytes| {
            count.fetch_add(bytes, Ordering::SeqCst);
            Duration::from_millis(1)
        }));
        let uploaded = cloud.upload("leave_slips", file).await.unwrap();
        assert_eq!(
            uploaded.url,
            "https://cloud.example/storage/leave_slips/slip é.jpg"
        );
        assert_eq!(
            (uploaded.hash, uploaded.bytes),
            (blake3::hash(&content), size as u64)
        );
        assert!(!uploaded.confirmed, "a baseline server answers no hash");
        let stored = server.files().pop().unwrap();
        assert_eq!(
            (stored.name.as_str(), stored.kind.as_str()),
            ("slip é.jpg", "image/jpeg")
        );
        assert!(stored.bytes == content && sent.load(Ordering::SeqCst) == size);
    }
}

#[tokio::test]
async fn an_upload_is_believed_only_with_a_url_and_the_same_hash() {
    let (_folder, file, content) = file(1000);
    let hash = format!("blake3:{}", blake3::hash(&content).to_hex());
    let other = format!("blake3:{}", blake3::hash(b"other").to_hex());
    for (answer, outcome) in [
        (
            json!({"success": true, "url": "u", "path": "p", "hash": hash}),
            Ok(true),
        ),
        (json!({"success": true, "url": "u"}), Ok(false)),
        (
            json!({"success": true, "url": "u", "hash": other}),
            Err(Kind::Media),
        ),
        (json!({"success": false, "url": "u"}), Err(Kind::CloudProtocol)),
        (json!({"success": true, "url": ""}), Err(Kind::CloudProtocol)),
        (json!({"success": true}), Err(Kind::CloudProtocol)),
    ] {
        let server = Scripted::start(move |_| json_answer(200, answer.clone())).await;
        let uploaded = client(&server.url).upload("passes", file.clone()).await;
        let confirmed = uploaded
            .map(|one| one.confirmed)
            .map_err(|failure| failure.error().kind());
        assert_eq!(confirmed, outcome);
    }
}

#[tokio::test]
async fn uploads_fail_by_their_cause() {
    let server = baseline(&[]).await;
    let cloud = client(&server.url());
    let (folder, whole, _) = file(1000);
    let kind = async |file: UploadFile| cloud.upload("passes", file).await.unwrap_err().error().kind();
    assert_eq!(
        kind(UploadFile::new(folder.path().join("missing.jpg"))).await,
        Kind::Media
    );
    assert_eq!(kind(UploadFile::new(folder.path())).await, Kind::Media);
    for (fault, expected) in [
        (Fault::status(413), Kind::CloudRefused),
        (Fault::status(503), Kind::CloudUnreachable),
        (Fault::status(401), Kind::CloudAuth),
        (Fault::cut(), Kind::CloudUnreachable),
        (Fault::page(), Kind::CloudProtocol),
    ] {
        server.clear_faults();
        server.fault(fault);
        assert_eq!(kind(whole.clone()).await, expected);
    }
    assert!(server.files().is_empty());
}

#[tokio::test]
async fn a_file_that_changes_while_it_is_sent_never_arrives() {
    for length in [100, 4_000_000] {
        let server = baseline(&[]).await;
        let (folder, mut file, _) = file(2_000_000);
        let path = folder.path().join("slip é.jpg");
        file.pace = Some(Arc::new(move |_| {
            std::fs::OpenOptions::new()
                .write(true)
                .open(&path)
                .unwrap()
                .set_len(length)
                .unwrap();
            Duration::ZERO
        }));
        let failure = client(&server.url()).upload("passes", file).await.unwrap_err();
        assert_eq!(failure.error().kind(), Kind::Media, "{failure}");
        assert!(server.files().is_empty());
    }
}

#[tokio::test]
async fn contents_are_found_by_hash() {
    let known = blake3::hash(b"known");
    let server = Scripted::start(move |request| {
        assert_eq!(
            (request.method.as_str(), request.uri.path()),
            ("HEAD", "/api/upload/passes")
        );
        if request.uri.query() == Some(&format!("hash=blake3:{}", known.to_hex())) {
            return (StatusCode::OK, [(header::LOCATION, "https://cloud.example/1")]).into_response();
        }
        StatusCode::NOT_FOUND.into_response()
    })
    .await;
    let cloud = client(&server.url);
    let found = cloud.find_content("passes", &known).await.unwrap();
    assert_eq!(found.as_deref(), Some("https://cloud.example/1"));
    assert_eq!(
        cloud
            .find_content("passes", &blake3::hash(b"other"))
            .await
            .unwrap(),
        None
    );
}

#[tokio::test]
async fn a_schema_is_put_in_the_contracts_form() {
    let schema = TableSchema {
        entity: "leaves".to_owned(),
        path: "leaves".to_owned(),
        key: vec!["leave_id".to_owned()],
        columns: vec![
            ("leave_id".to_owned(), "bigint".to_owned()),
            ("tags".to_owned(), "text[]".to_owned()),
        ],
        window: Some("created_at".to_owned()),
    };
    let server = Scripted::start(|_| json_answer(200, json!({"success": true}))).await;
    client(&server.url).put_schema(&schema).await.unwrap();
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
    let failure = client(&server.url()).put_schema(&schema).await.unwrap_err();
    assert_eq!(failure.lost_capability(), Some("schema"));
}
