//! A cloud server as sites have it today: it knows the four baseline calls, and `bulk` and `delete` where it is told to.
//!
//! It is a real HTTP server on a port of its own, under `/api`. Rows are in memory, by key; each request is recorded as it
//! arrives; faults are scripted with [`Fault`]. It knows the paths and keys of a catalogue, and answers 404 to all else.
//!
//! ```ignore
//! let cloud = Baseline::start(&catalogue, &["delete"]).await;
//! cloud.fault(Fault::status(503).retry_after("1").on("rooms").when(|row| row["room_id"] == 3).times(2));
//! …
//! assert_eq!(cloud.rows("rooms").len(), 5);
//! ```

// Each test file uses its own part of it.
#![allow(dead_code)]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, DefaultBodyLimit, FromRequest, Multipart, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use cloud_sync::catalogue::Catalogue;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::fault::What;
pub(crate) use super::fault::{Fault, Request};
use super::wire::{Door, Scissors};

/// The key that the server takes; any other is answered 401.
pub(crate) const KEY: &str = "a-key-that-must-not-leak";

/// A file that was uploaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) directory: String,
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) bytes: Bytes,
}

/// The server. It ends when it is dropped.
pub(crate) struct Baseline {
    state: Arc<Inner>,
    address: SocketAddr,
    serving: JoinHandle<()>,
}

struct Inner {
    keys: HashMap<String, Vec<String>>,
    windows: HashMap<String, String>,
    capabilities: Mutex<Vec<String>>,
    rows: Mutex<HashMap<String, BTreeMap<String, Value>>>,
    files: Mutex<Vec<File>>,
    requests: Mutex<Vec<Request>>,
    faults: Mutex<Vec<Fault>>,
    /// Path and column of a child, path and column of its parent.
    references: Mutex<Vec<[String; 4]>>,
    latency: Mutex<Duration>,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
    connections: Arc<AtomicUsize>,
    /// Held requests that have arrived.
    late: AtomicUsize,
    /// Path and column of unique values.
    uniques: Mutex<Vec<[String; 2]>>,
    changed: Notify,
}

impl Baseline {
    /// Starts a server that knows the paths and keys of the catalogue and lists these capabilities.
    pub(crate) async fn start(catalogue: &Catalogue, capabilities: &[&str]) -> Self {
        let keys = catalogue
            .entities()
            .iter()
            .map(|one| (one.path.clone(), one.key.clone()));
        let windows = catalogue.entities().iter().filter_map(|one| {
            let window = one.window.as_ref()?;
            Some((one.path.clone(), window.column.clone()))
        });
        let connections = Arc::new(AtomicUsize::new(0));
        let state = Arc::new(Inner {
            keys: keys.collect(),
            windows: windows.collect(),
            capabilities: Mutex::new(capabilities.iter().map(|&name| name.to_owned()).collect()),
            rows: Mutex::default(),
            files: Mutex::default(),
            requests: Mutex::default(),
            faults: Mutex::default(),
            references: Mutex::default(),
            latency: Mutex::default(),
            at_once: AtomicUsize::new(0),
            most_at_once: AtomicUsize::new(0),
            connections: Arc::clone(&connections),
            late: AtomicUsize::new(0),
            uniques: Mutex::default(),
            changed: Notify::new(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new()
            .fallback(handle)
            .layer(DefaultBodyLimit::disable())
            .with_state(Arc::clone(&state));
        let listener = Door {
            listener,
            connections,
        };
        let serving = tokio::spawn(async move {
            let service = app.into_make_service_with_connect_info::<Scissors>();
            axum::serve(listener, service).await.unwrap();
        });
        Self {
            state,
            address,
            serving,
        }
    }

    /// The base URL, for `cloud.url`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/api", self.address)
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The rows of a path, in the order of their keys.
    pub(crate) fn rows(&self, path: &str) -> Vec<Value> {
        let rows = locked(&self.state.rows);
        rows.get(path)
            .map_or_else(Vec::new, |rows| rows.values().cloned().collect())
    }

    /// The row with this key: its plain text, or its values joined by commas.
    pub(crate) fn row(&self, path: &str, key: &str) -> Option<Value> {
        locked(&self.state.rows).get(path)?.get(key).cloned()
    }

    /// How many rows a path has.
    pub(crate) fn count(&self, path: &str) -> usize {
        locked(&self.state.rows).get(path).map_or(0, BTreeMap::len)
    }

    /// Stores a row, as if it had been posted long ago.
    pub(crate) fn seed(&self, path: &str, row: Value) {
        let key = key_of(&row, &self.state.keys[path]).unwrap();
        locked(&self.state.rows)
            .entry(path.to_owned())
            .or_default()
            .insert(key, row);
    }

    /// Removes a row, as if someone had done so in the cloud.
    pub(crate) fn remove(&self, path: &str, key: &str) -> Option<Value> {
        locked(&self.state.rows).get_mut(path)?.remove(key)
    }

    /// The files, in the order of their arrival.
    pub(crate) fn files(&self) -> Vec<File> {
        locked(&self.state.files).clone()
    }

    /// The requests, in the order of their arrival.
    pub(crate) fn requests(&self) -> Vec<Request> {
        locked(&self.state.requests).clone()
    }

    /// The requests as `METHOD path`, in the order of their arrival.
    pub(crate) fn calls(&self) -> Vec<String> {
        locked(&self.state.requests)
            .iter()
            .map(|request| format!("{} {}", request.method, request.path))
            .collect()
    }

    /// Forgets the requests so far.
    pub(crate) fn forget_requests(&self) {
        locked(&self.state.requests).clear();
        self.state.most_at_once.store(0, Ordering::SeqCst);
    }

    /// Adds a fault. The first one that fits a request strikes.
    pub(crate) fn fault(&self, fault: Fault) {
        locked(&self.state.faults).push(fault);
    }

    /// From now on nothing goes wrong; requests that stall go on stalling.
    pub(crate) fn clear_faults(&self) {
        locked(&self.state.faults).clear();
    }

    /// From now on a row of `child` is refused by 409 unless a row of `parent` has its `column`'s value in `referred`, or it
    /// is null.
    pub(crate) fn require(&self, child: &str, column: &str, parent: &str, referred: &str) {
        locked(&self.state.references).push([child, column, parent, referred].map(str::to_owned));
    }

    /// From now on a row of `path` is refused by 422 where another row has its `column`'s value.
    pub(crate) fn unique(&self, path: &str, column: &str) {
        locked(&self.state.uniques).push([path, column].map(str::to_owned));
    }

    /// How many held requests have arrived since.
    pub(crate) fn late(&self) -> usize {
        self.state.late.load(Ordering::SeqCst)
    }

    /// Answers each request only after this time.
    pub(crate) fn set_latency(&self, latency: Duration) {
        *locked(&self.state.latency) = latency;
    }

    /// Lists other capabilities from now on.
    pub(crate) fn set_capabilities(&self, capabilities: &[&str]) {
        *locked(&self.state.capabilities) = capabilities.iter().map(|&name| name.to_owned()).collect();
    }

    /// How many connections were opened so far.
    pub(crate) fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// The most requests that were under way at the same time.
    pub(crate) fn most_at_once(&self) -> usize {
        self.state.most_at_once.load(Ordering::SeqCst)
    }

    /// Waits until the condition holds; it is looked at after each request.
    pub(crate) async fn wait_until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let wait = async {
            loop {
                let changed = self.state.changed.notified();
                if condition(self) {
                    return;
                }
                changed.await;
            }
        };
        let limit = Duration::from_secs(60);
        assert!(
            tokio::time::timeout(limit, wait).await.is_ok(),
            "the cloud has waited {limit:?} for this: {what}"
        );
    }
}

impl Drop for Baseline {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn handle(
    State(state): State<Arc<Inner>>,
    ConnectInfo(scissors): ConnectInfo<Scissors>,
    request: axum::extract::Request,
) -> Response {
    let at_once = state.at_once.fetch_add(1, Ordering::SeqCst) + 1;
    state.most_at_once.fetch_max(at_once, Ordering::SeqCst);
    // Also where the client hangs up and this future is dropped.
    let _leaving = Leaving(&state);

    let (head, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, 1 << 30).await else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let request = Request {
        method: head.method.clone(),
        path: head
            .uri
            .path()
            .trim_start_matches("/api")
            .trim_start_matches('/')
            .to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        headers: head.headers.clone(),
        body: body.clone(),
    };
    locked(&state.requests).push(request.clone());
    let latency = *locked(&state.latency);
    if latency > Duration::ZERO {
        tokio::time::sleep(latency).await;
    }
    let what = {
        let mut faults = locked(&state.faults);
        let fault = faults.iter_mut().find(|fault| fault.strikes(&request));
        fault.map(|fault| {
            fault.times = fault.times.map(|times| times - 1);
            fault.what.clone()
        })
    };
    match what {
        Some(What::Answer {
            status,
            headers,
            body,
        }) => return (status, headers, body).into_response(),
        Some(What::Cut { stored }) => {
            if stored {
                answer(
                    &state,
                    &request,
                    axum::extract::Request::from_parts(head, body.into()),
                )
                .await;
            }
            scissors.cut();
            return StatusCode::OK.into_response();
        }
        Some(What::Stall) => std::future::pending().await,
        Some(What::Hold(mut held)) => {
            // A task of its own, as a client that hangs up ends this future.
            let state = Arc::clone(&state);
            let late = tokio::spawn(async move {
                let _ = held.wait_for(|open| *open).await;
                let raw = axum::extract::Request::from_parts(head, body.into());
                let answered = answer(&state, &request, raw).await;
                state.late.fetch_add(1, Ordering::SeqCst);
                state.changed.notify_waiters();
                answered
            });
            return late.await.unwrap();
        }
        None => {}
    }
    answer(
        &state,
        &request,
        axum::extract::Request::from_parts(head, body.into()),
    )
    .await
}

struct Leaving<'a>(&'a Inner);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.at_once.fetch_sub(1, Ordering::SeqCst);
        self.0.changed.notify_waiters();
    }
}

/// What the server does when nothing goes wrong.
async fn answer(state: &Inner, request: &Request, raw: axum::extract::Request) -> Response {
    let bearer = format!("Bearer {KEY}");
    if request
        .headers
        .get(header::AUTHORIZATION)
        .is_none_or(|value| value != bearer.as_str())
    {
        return (
            StatusCode::UNAUTHORIZED,
            json!({"message": "Unauthenticated."}).to_string(),
        )
            .into_response();
    }
    let can = |name: &str| locked(&state.capabilities).iter().any(|one| one == name);
    let parts: Vec<&str> = request.path.split('/').collect();
    match (request.method.as_str(), parts.as_slice()) {
        ("GET", ["sync-status"]) => {
            let mut status = json!({"status": "ok", "message": "ready", "last_sync": null});
            let capabilities = locked(&state.capabilities);
            if !capabilities.is_empty() {
                status["capabilities"] = json!(*capabilities);
            }
            axum::Json(status).into_response()
        }
        ("GET", [path]) if state.keys.contains_key(*path) => {
            let rows = locked(&state.rows);
            let days = request
                .query
                .strip_prefix("days=")
                .and_then(|days| days.parse().ok());
            let rows = rows.get(*path).into_iter().flat_map(BTreeMap::values);
            let rows: Vec<&Value> = rows
                .filter(|row| is_young(row, state.windows.get(*path), days))
                .collect();
            axum::Json(json!(rows)).into_response()
        }
        ("POST", [path]) if state.keys.contains_key(*path) => match store(state, path, &[request.json()]) {
            Ok(_) => (StatusCode::CREATED, axum::Json(json!({"success": true}))).into_response(),
            Err((status, words)) => (status, json!({"message": words}).to_string()).into_response(),
        },
        ("POST", ["bulk", path]) if can("bulk") && state.keys.contains_key(*path) => {
            let body = request.json();
            match store(state, path, body["records"].as_array().map_or(&[], Vec::as_slice)) {
                Ok(count) => axum::Json(json!({"success": true, "upserted": count})).into_response(),
                Err((status, words)) => (status, json!({"message": words}).to_string()).into_response(),
            }
        }
        ("DELETE", [path, key]) if can("delete") && state.keys.contains_key(*path) => {
            let key: Vec<String> = key.split(',').map(decode).collect();
            match locked(&state.rows)
                .get_mut(*path)
                .and_then(|rows| rows.remove(&key.join(",")))
            {
                Some(_) => axum::Json(json!({"success": true})).into_response(),
                None => StatusCode::NOT_FOUND.into_response(),
            }
        }
        ("POST", ["upload", directory]) => take_file(state, directory, raw).await,
        _ => (
            StatusCode::NOT_FOUND,
            axum::Json(json!({"message": "no such route"})),
        )
            .into_response(),
    }
}

/// Stores all of the rows, or none where one has no key or no parent.
fn store(state: &Inner, path: &str, rows: &[Value]) -> Result<usize, (StatusCode, &'static str)> {
    let mut keyed = Vec::with_capacity(rows.len());
    for row in rows {
        let key =
            key_of(row, &state.keys[path]).ok_or((StatusCode::UNPROCESSABLE_ENTITY, "the row has no key"))?;
        keyed.push((key, row.clone()));
    }
    let mut stored = locked(&state.rows);
    for [child, column, parent, referred] in locked(&state.references).iter() {
        if child != path {
            continue;
        }
        let there = stored.get(parent).into_iter().flat_map(BTreeMap::values);
        let beside = rows.iter().filter(|_| parent == child);
        let held: HashSet<String> = there.chain(beside).map(|row| row[referred].to_string()).collect();
        if rows
            .iter()
            .any(|row| !row[column].is_null() && !held.contains(&row[column].to_string()))
        {
            return Err((StatusCode::CONFLICT, "its parent is not there"));
        }
    }
    for [of, column] in locked(&state.uniques).iter().filter(|[of, _]| of == path) {
        let mut after: BTreeMap<String, Value> = stored.get(of).cloned().unwrap_or_default();
        after.extend(keyed.iter().cloned());
        let mut values = HashSet::new();
        if !after.values().all(|row| values.insert(row[column].to_string())) {
            return Err((
                StatusCode::UNPROCESSABLE_ENTITY,
                "the value has already been taken",
            ));
        }
    }
    stored.entry(path.to_owned()).or_default().extend(keyed);
    Ok(rows.len())
}

async fn take_file(state: &Inner, directory: &str, raw: axum::extract::Request) -> Response {
    let refuse = || (StatusCode::UNPROCESSABLE_ENTITY, "no file").into_response();
    let Ok(mut parts) = Multipart::from_request(raw, &()).await else {
        return refuse();
    };
    let Ok(Some(part)) = parts.next_field().await else {
        return refuse();
    };
    if part.name() != Some("file") {
        return refuse();
    }
    let name = part.file_name().unwrap_or_default().to_owned();
    let kind = part.content_type().unwrap_or_default().to_owned();
    let Ok(bytes) = part.bytes().await else {
        return refuse();
    };
    let path = format!("{directory}/{name}");
    locked(&state.files).push(File {
        directory: directory.to_owned(),
        name,
        kind,
        bytes,
    });
    axum::Json(json!({"success": true, "url": format!("https://cloud.example/storage/{path}"), "path": path}))
        .into_response()
}

/// The key's values as plain text, joined by commas.
fn key_of(row: &Value, columns: &[String]) -> Option<String> {
    let values: Option<Vec<String>> = columns
        .iter()
        .map(|column| match row.get(column)? {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        })
        .collect();
    Some(values?.join(","))
}

fn is_young(row: &Value, window: Option<&String>, days: Option<i64>) -> bool {
    let created = window.and_then(|column| row.get(column)?.as_str()?.parse::<jiff::Timestamp>().ok());
    match (created, days) {
        (Some(created), Some(days)) => {
            created >= jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24 * days)
        }
        _ => true,
    }
}

fn decode(part: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = part.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let pair = (first == b'%').then(|| after.get(..2)).flatten();
        match pair.and_then(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).unwrap()
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
