//! A door before the receiver: it passes requests on, and answers some of them in the receiver's place or after it.
//!
//! ```ignore
//! let gate = Gate::before(&cloud).await;
//! gate.fault(Fault::page().on("changes").times(2));
//! let site = Site::school("page", &gate.url(), KEY).await;
//! ```

#![allow(dead_code, reason = "each program uses a part of it")]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::extract::{ConnectInfo, DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::fault::{Fault, Request, What};
use super::wire::{Door, Scissors};

/// The door; it closes when it is dropped.
pub(crate) struct Gate {
    state: Arc<Inner>,
    address: SocketAddr,
    serving: JoinHandle<()>,
}

struct Inner {
    /// The receiver's base URL.
    target: String,
    client: reqwest::Client,
    faults: Mutex<Vec<Fault>>,
    struck: Mutex<u64>,
    requests: Mutex<Vec<Request>>,
    hidden: Mutex<Vec<String>>,
    longest: Mutex<usize>,
}

impl Gate {
    /// A gate before the server with this base URL.
    pub(crate) async fn before(target: &str) -> Self {
        let state = Arc::new(Inner {
            target: target.to_owned(),
            client: reqwest::Client::builder().no_proxy().build().unwrap(),
            faults: Mutex::default(),
            struck: Mutex::default(),
            requests: Mutex::default(),
            hidden: Mutex::default(),
            longest: Mutex::new(usize::MAX),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new()
            .fallback(handle)
            .layer(DefaultBodyLimit::disable())
            .with_state(state.clone());
        let listener = Door {
            listener,
            connections: Arc::default(),
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

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The API's base URL through it.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/api", self.address)
    }

    /// Adds a fault. The first one that fits a request strikes.
    pub(crate) fn fault(&self, fault: Fault) {
        locked(&self.state.faults).push(fault);
    }

    /// From now on nothing goes wrong.
    pub(crate) fn clear_faults(&self) {
        locked(&self.state.faults).clear();
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

impl Drop for Gate {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn handle(
    State(state): State<Arc<Inner>>,
    ConnectInfo(scissors): ConnectInfo<Scissors>,
    request: axum::extract::Request,
) -> Response {
    let (head, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, 1 << 30).await else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let path = head.uri.path().trim_start_matches("/api").trim_start_matches('/');
    let request = Request {
        method: head.method,
        path: path.to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        headers: head.headers,
        body,
    };
    locked(&state.requests).push(request.clone());
    let what = {
        let mut faults = locked(&state.faults);
        let fault = faults.iter_mut().find(|fault| fault.strikes(&request));
        fault.map(|fault| {
            fault.times = fault.times.map(|times| times - 1);
            (fault.what.clone(), fault.after)
        })
    };
    if what.is_some() {
        *locked(&state.struck) += 1;
    }
    match what {
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
            scissors.cut();
            StatusCode::OK.into_response()
        }
        Some((What::Stall | What::Hold(_), _)) => std::future::pending().await,
        None => pass(&state, &request).await,
    }
}

async fn pass(state: &Inner, request: &Request) -> Response {
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

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
