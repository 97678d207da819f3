//! Cloud servers as sites have them today, in memory: one server whose habits are switches ([`Quirks`]).
//!
//! It is a real HTTP server on a port of its own. It knows the paths and keys of a catalogue, and answers 404
//! to all else. Each request is recorded as it arrives; faults are scripted with [`Fault`]; rows are refused
//! by rules ([`BaselineServer::require`], [`BaselineServer::refuse`]) until [`BaselineServer::clear_rules`].
//!
//! A request goes through [`serve`]; rows are in [`tables`], lists are made by [`lists`], files are taken by
//! [`uploads`].
//!
//! ```ignore
//! let cloud = BaselineServer::start(&catalogue, Quirks::laravel()).await;
//! cloud.require("leaves", "faculty_id", "faculties", "faculty_id");
//! cloud.refuse(|path, row| (path == "rooms" && row["room_id"] == 3).then(|| "no such building".to_owned()));
//! cloud.fault(Fault::status(503).retry_after("1").on("rooms").times(2));
//! …
//! assert_eq!(cloud.rows("rooms").len(), 5);
//! assert!(cloud.waste().percent() < 2.0);
//! ```

#![allow(dead_code, reason = "each program uses a part of it")]

mod lists;
mod quirks;
mod serve;
mod tables;
mod uploads;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use cloud_sync::catalogue::{Catalogue, Entity};
use serde_json::Value;
use tokio::sync::Notify;

#[allow(unused_imports, reason = "each test file uses its own part")]
pub(crate) use quirks::{
    Accepted, Bulk, Ids, List, ListFault, Names, Paging, Quirks, Refusal, Slash, Uploads,
};
pub(crate) use tables::Waste;
use tables::{Rules, Tables, key_of};

use super::cuttable_listener::HttpServer;
use super::fault::{Fault, FaultScript, Request};
use super::locked;

/// The key that the server takes; any other is answered 401.
pub(crate) const KEY: &str = "a-key-that-must-not-leak";

/// A file that was uploaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UploadedFile {
    pub(crate) directory: String,
    /// As it was sent.
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) bytes: Bytes,
    /// Where it is kept: `directory/name`, the name as the server has made it.
    pub(crate) stored: String,
    /// The other fields of the form.
    pub(crate) fields: BTreeMap<String, String>,
}

/// The server. It ends when it is dropped.
pub(crate) struct BaselineServer {
    state: Arc<BaselineState>,
    server: HttpServer,
}

struct BaselineState {
    /// By path.
    entities: HashMap<String, Entity>,
    quirks: Mutex<Quirks>,
    rules: Mutex<Rules>,
    tables: Mutex<Tables>,
    files: Mutex<Vec<UploadedFile>>,
    requests: Mutex<Vec<Request>>,
    faults: FaultScript,
    latency: Mutex<Duration>,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
    connections: Arc<AtomicUsize>,
    /// Held requests that have arrived.
    late: AtomicUsize,
    changed: Notify,
}

impl BaselineServer {
    /// Starts a server that knows the paths and keys of the catalogue. Where capabilities stand in place of
    /// quirks, it is the contract's server with these.
    pub(crate) async fn start(catalogue: &Catalogue, quirks: impl Into<Quirks>) -> Self {
        let entities = catalogue.entities().iter();
        let connections = Arc::new(AtomicUsize::new(0));
        let state = Arc::new(BaselineState {
            entities: entities.map(|one| (one.path.clone(), one.clone())).collect(),
            quirks: Mutex::new(quirks.into()),
            rules: Mutex::default(),
            tables: Mutex::default(),
            files: Mutex::default(),
            requests: Mutex::default(),
            faults: FaultScript::default(),
            latency: Mutex::default(),
            at_once: AtomicUsize::new(0),
            most_at_once: AtomicUsize::new(0),
            connections: Arc::clone(&connections),
            late: AtomicUsize::new(0),
            changed: Notify::new(),
        });
        let app = Router::new()
            .fallback(serve::handle)
            .with_state(Arc::clone(&state));
        let server = HttpServer::start(app, connections).await;
        Self { state, server }
    }

    /// The base URL, for `cloud.url`; calls are below it and the prefix.
    pub(crate) fn url(&self) -> String {
        format!("http://{}{}", self.address(), locked(&self.state.quirks).base)
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.server.address
    }

    /// The rows of a path as they are stored, in the order of their keys.
    pub(crate) fn rows(&self, path: &str) -> Vec<Value> {
        let quirks = locked(&self.state.quirks);
        locked(&self.state.tables).of(&quirks, path).cloned().collect()
    }

    /// The row with this key in the path's table: its plain text, or its values joined by commas.
    pub(crate) fn row(&self, path: &str, key: &str) -> Option<Value> {
        let quirks = locked(&self.state.quirks);
        locked(&self.state.tables).get(quirks.table(path).0, key).cloned()
    }

    /// How many rows a path has.
    pub(crate) fn count(&self, path: &str) -> usize {
        let quirks = locked(&self.state.quirks);
        locked(&self.state.tables).of(&quirks, path).count()
    }

    /// Stores a row, as if it had been posted long ago.
    pub(crate) fn seed(&self, path: &str, row: Value) {
        let key = key_of(&row, &self.state.entities[path].key).unwrap();
        let quirks = locked(&self.state.quirks);
        locked(&self.state.tables).insert(quirks.table(path).0, key, row);
    }

    /// Removes a row, as if someone had done so in the cloud.
    pub(crate) fn remove(&self, path: &str, key: &str) -> Option<Value> {
        let quirks = locked(&self.state.quirks);
        locked(&self.state.tables).remove(quirks.table(path).0, key)
    }

    /// The files, in the order of their arrival.
    pub(crate) fn files(&self) -> Vec<UploadedFile> {
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
        self.state.faults.add(fault);
    }

    /// From now on nothing goes wrong; requests that stall go on stalling.
    pub(crate) fn clear_faults(&self) {
        self.state.faults.clear();
    }

    /// From now on a row of `child` is refused (by 409 where refusals are 4xx) unless a row of `parent` has
    /// its `column`'s value in `referred`, or it is null.
    pub(crate) fn require(&self, child: &str, column: &str, parent: &str, referred: &str) {
        locked(&self.state.rules)
            .references
            .push([child, column, parent, referred].map(str::to_owned));
    }

    /// From now on a row of `path` is refused where another row has its `column`'s value. Each row is
    /// compared with all others.
    pub(crate) fn unique(&self, path: &str, column: &str) {
        locked(&self.state.rules)
            .uniques
            .push([path, column].map(str::to_owned));
    }

    /// From now on a row of `path` is refused where `column` has more than `most` letters.
    pub(crate) fn longest(&self, path: &str, column: &str, most: usize) {
        locked(&self.state.rules)
            .lengths
            .push((path.to_owned(), column.to_owned(), most));
    }

    /// From now on a row is refused where the rule has words for its path and it.
    pub(crate) fn refuse(&self, rule: impl Fn(&str, &Value) -> Option<String> + Send + Sync + 'static) {
        locked(&self.state.rules).judges.push(Arc::new(rule));
    }

    /// From now on no rule refuses a row; faults and quirks stay.
    pub(crate) fn clear_rules(&self) {
        *locked(&self.state.rules) = Rules::default();
    }

    /// Changes its habits from now on.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Quirks)) {
        change(&mut locked(&self.state.quirks));
    }

    /// What came so far, and how much of it need not have come.
    pub(crate) fn waste(&self) -> Waste {
        locked(&self.state.tables).waste.clone()
    }

    /// How many held requests have arrived since.
    pub(crate) fn late(&self) -> usize {
        self.state.late.load(Ordering::SeqCst)
    }

    /// Answers each request only after this time.
    pub(crate) fn set_latency(&self, latency: Duration) {
        *locked(&self.state.latency) = latency;
    }

    /// Has other capabilities from now on.
    pub(crate) fn set_capabilities(&self, capabilities: &[&str]) {
        let capabilities = capabilities.iter().map(|&name| name.to_owned()).collect();
        locked(&self.state.quirks).capabilities = capabilities;
    }

    /// How many connections were opened so far.
    pub(crate) fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// The most requests that were open at the same time.
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
