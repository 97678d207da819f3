//! An HTTP proxy before the receiver: it passes requests on, and answers some of them in the receiver's place
//! or after it.
//!
//! ```ignore
//! let fault_proxy = FaultProxy::before(&cloud).await;
//! fault_proxy.fault(Fault::page().on("changes").times(2));
//! let site = Site::school("page", &fault_proxy.url(), KEY).await;
//! ```

#![allow(dead_code, reason = "each program uses a part of it")]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::cuttable_listener::{CutHandle, HttpServer};
use super::fault::{Fault, FaultScript, Request, What};
use super::locked;

/// The proxy; it ends when it is dropped.
pub(crate) struct FaultProxy {
    state: Arc<FaultProxyState>,
    server: HttpServer,
}

struct FaultProxyState {
    /// The receiver's base URL.
    target: String,
    client: reqwest::Client,
    faults: FaultScript,
    struck: Mutex<u64>,
    requests: Mutex<Vec<Request>>,
    hidden: Mutex<Vec<String>>,
    longest: Mutex<usize>,
}

impl FaultProxy {
    /// A fault proxy before the server with this base URL.
    pub(crate) async fn before(target: &str) -> Self {
        let state = Arc::new(FaultProxyState {
            target: target.to_owned(),
            client: reqwest::Client::builder().no_proxy().build().unwrap(),
            faults: FaultScript::default(),
            struck: Mutex::default(),
            requests: Mutex::default(),
            hidden: Mutex::default(),
            longest: Mutex::new(usize::MAX),
        });
        let app = Router::new().fallback(handle).with_state(state.clone());
        let server = HttpServer::start(app, Arc::default()).await;
        Self { state, server }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.server.address
    }

    /// The API's base URL through it.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/api", self.address())
    }

    /// Adds a fault. The first one that fits a request strikes.
    pub(crate) fn fault(&self, fault: Fault) {
        self.state.faults.add(fault);
    }

    /// From now on nothing goes wrong.
    pub(crate) fn clear_faults(&self) {
        self.state.faults.clear();
    }

    /// How many requests were struck so far.
    pub(crate) fn struck(&self) -> u64 {
        *locked(&self.state.struck)
    }

    /// The requests so far, in the order of their arrival.
    pub(crate) fn requests(&self) -> Vec<Request> {
        locked(&self.state.requests).clone()
    }

    /// Takes these capabilities out of what the receiver lists, and refuses their calls by 404.
    pub(crate) fn hide(&self, capabilities: &[&str]) {
        *locked(&self.state.hidden) = capabilities.iter().map(|&name| name.to_owned()).collect();
    }

    /// Answers 413 to longer bodies.
    pub(crate) fn limit(&self, bytes: usize) {
        *locked(&self.state.longest) = bytes;
    }
}

async fn handle(
    State(state): State<Arc<FaultProxyState>>,
    ConnectInfo(cut_handle): ConnectInfo<CutHandle>,
    request: axum::extract::Request,
) -> Response {
    let (head, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, 1 << 30).await else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let path = head.uri.path().trim_start_matches("/api").trim_start_matches('/');
    let request = Request::new(&head, path, body);
    locked(&state.requests).push(request.clone());
    let fault = state.faults.strike(&request);
    if fault.is_some() {
        *locked(&state.struck) += 1;
    }
    match fault.map(|fault| (fault.what, fault.after)) {
        Some((
            What::Answer {
                status,
                headers,
                body,
            },
            after,
        )) => {
            if after {
                pass(&state, &request).await;
            }
            (status, headers, body).into_response()
        }
        Some((What::Cut { stored }, _)) => {
            if stored {
                pass(&state, &request).await;
            }
            cut_handle.cut();
            StatusCode::OK.into_response()
        }
        Some((What::Stall | What::Hold(_), _)) => std::future::pending().await,
        None => pass(&state, &request).await,
    }
}

async fn pass(state: &FaultProxyState, request: &Request) -> Response {
    let first = request.path.split('/').next().unwrap_or_default();
    if locked(&state.hidden).iter().any(|name| name == first) {
        return StatusCode::NOT_FOUND.into_response();
    }
    if request.body.len() > *locked(&state.longest) {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    }
    let mut url = format!("{}/{}", state.target, request.path);
    if !request.query.is_empty() {
        url = format!("{url}?{}", request.query);
    }
    let mut headers: HeaderMap = request.headers.clone();
    headers.remove(header::HOST);
    let sent = state
        .client
        .request(request.method.clone(), url)
        .headers(headers)
        .body(request.body.clone())
        .send()
        .await;
    let Ok(answer) = sent else {
        return StatusCode::BAD_GATEWAY.into_response();
    };
    let (status, mut headers) = (answer.status(), answer.headers().clone());
    let Ok(body) = answer.bytes().await else {
        return StatusCode::BAD_GATEWAY.into_response();
    };
    headers.remove(header::TRANSFER_ENCODING);
    if request.path == "sync-status" && status.is_success() {
        let mut body: Value = serde_json::from_slice(&body).unwrap();
        let hidden = locked(&state.hidden).clone();
        if let Some(listed) = body["capabilities"].as_array_mut() {
            listed.retain(|name| !hidden.iter().any(|hidden| name == &json!(hidden)));
        }
        return axum::Json(body).into_response();
    }
    (status, headers, body).into_response()
}
