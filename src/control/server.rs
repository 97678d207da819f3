//! The HTTP server of the operator API.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use secrecy::SecretString;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower_http::timeout::RequestBodyTimeoutLayer;

use super::single_flight::SingleFlight;
use super::{Health, Operator, SyncRequest, token};
use crate::error::{Error, Kind, Result};
use crate::serve::{self, ConnectionLimits, RemoteClient};

/// The largest body that is read: requests are small.
const BODY_LIMIT: usize = 64 << 10;

/// A body of which nothing arrives for this long is an error.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections at a time.
const MAX_CONNECTIONS: usize = 64;

/// How long open requests may take to end after shutdown; after that, how long a sync may take that nobody
/// waits for.
const GRACE: Duration = Duration::from_secs(4);

/// The operator API, bound to its port and not yet serving.
pub struct ControlServer<O> {
    listener: TcpListener,
    address: SocketAddr,
    state: Arc<HandlerState<O>>,
}

/// The server's token, which can be replaced while it serves.
#[derive(Clone)]
pub(crate) struct ServerToken(Arc<RwLock<SecretString>>);

impl ServerToken {
    /// Replaces the token: only the new one is valid from now on.
    pub(crate) fn replace(&self, token: SecretString) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = token;
    }

    fn matches(&self, given: &str) -> bool {
        token::is_equal(given, &self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What the handlers share.
struct HandlerState<O> {
    operator: Arc<O>,
    token: ServerToken,
    syncs: SingleFlight,
    loopback: bool,
}

impl<O: Operator> ControlServer<O> {
    /// Binds the port; port 0 means any free one.
    ///
    /// # Errors
    /// The port is taken, or the address is not this machine's.
    pub async fn bind(listen: SocketAddr, token: SecretString, operator: Arc<O>) -> Result<Self> {
        let operation = || format!("serve the operator API on {listen}");
        let listener = TcpListener::bind(listen).await.map_err(|error| {
            Error::local(operation(), error).remedy("set control.listen to a free port of this machine")
        })?;
        let address = listener
            .local_addr()
            .map_err(|error| Error::local(operation(), error))?;
        let state = HandlerState {
            operator,
            token: ServerToken(Arc::new(RwLock::new(token))),
            syncs: SingleFlight::default(),
            loopback: address.ip().is_loopback(),
        };
        Ok(Self {
            listener,
            address,
            state: Arc::new(state),
        })
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The token that requests must carry.
    pub(crate) fn token(&self) -> ServerToken {
        self.state.token.clone()
    }

    /// Serves until shutdown, then waits some seconds at most for open requests.
    ///
    /// # Errors
    /// None at present: a failure affects only its request or its connection.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<()> {
        let router = router(Arc::clone(&self.state));
        serve::serve(
            self.listener,
            router,
            ConnectionLimits::new(MAX_CONNECTIONS, GRACE),
            shutdown,
        )
        .await;
        tokio::select! {
            () = self.state.syncs.ended() => {}
            () = tokio::time::sleep(GRACE) => tracing::warn!("a sync did not end in time"),
        }
        Ok(())
    }
}

fn router<O: Operator>(state: Arc<HandlerState<O>>) -> Router {
    let api = Router::new()
        .route("/cloud-sync/sync-now", post(sync_now::<O>))
        .route("/cloud-sync/status", get(status::<O>))
        .fallback(async || StatusCode::NOT_FOUND)
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .layer(RequestBodyTimeoutLayer::new(BODY_TIMEOUT))
        .layer(middleware::from_fn_with_state(Arc::clone(&state), authorize::<O>));
    Router::new()
        .nest("/api", api)
        .route("/healthz", get(healthz::<O>))
        .route("/readyz", get(readyz::<O>))
        .route("/metrics", get(metrics::<O>))
        .with_state(state)
}

async fn authorize<O: Operator>(
    State(state): State<Arc<HandlerState<O>>>,
    request: Request,
    next: Next,
) -> Response {
    if !state.is_authorized(request.headers()) {
        return unauthorized();
    }
    if let Some(client) = request.extensions().get::<RemoteClient>() {
        client.trust(None);
    }
    let mut answer = next.run(request).await;
    answer.headers_mut().insert(
        header::CACHE_CONTROL,
        header::HeaderValue::from_static("no-store"),
    );
    answer
}

impl<O> HandlerState<O> {
    /// Whether the request carries the token.
    fn is_authorized(&self, headers: &HeaderMap) -> bool {
        headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .is_some_and(|(scheme, given)| {
                scheme.eq_ignore_ascii_case("bearer") && self.token.matches(given.trim())
            })
    }
}

fn unauthorized() -> Response {
    let error = "the operator API needs its token: Authorization: Bearer <token>";
    (
        StatusCode::UNAUTHORIZED,
        [(header::WWW_AUTHENTICATE, "Bearer")],
        Json(json!({"success": false, "errors": [error], "exit_code": 2})),
    )
        .into_response()
}

async fn sync_now<O: Operator>(State(state): State<Arc<HandlerState<O>>>, body: Bytes) -> Response {
    let request = if body.trim_ascii().is_empty() {
        SyncRequest::default()
    } else {
        match serde_json::from_slice(&body) {
            Ok(request) => request,
            Err(error) => {
                let error = Error::config("read the request", error.to_string())
                    .remedy("send nothing, or {\"force\": true, \"entities\": [\"rooms\"]}");
                return error_response(&error);
            }
        }
    };
    match state.syncs.sync(&state.operator, request).await.as_ref() {
        Ok(report) => Json(report).into_response(),
        Err(error) => error_response(error),
    }
}

async fn status<O: Operator>(State(state): State<Arc<HandlerState<O>>>) -> Response {
    match state.operator.status().await {
        Ok(status) => Json(status).into_response(),
        Err(error) => error_response(&error),
    }
}

async fn healthz<O: Operator>(State(state): State<Arc<HandlerState<O>>>) -> Response {
    match state.operator.health() {
        Health::Well => (StatusCode::OK, "ok\n").into_response(),
        Health::Noted(note) => (StatusCode::OK, format!("ok, but {note}\n")).into_response(),
        Health::Starting(reason) => (StatusCode::OK, format!("starting: {reason}\n")).into_response(),
        Health::Still(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

async fn readyz<O: Operator>(State(state): State<Arc<HandlerState<O>>>) -> Response {
    match state.operator.health() {
        Health::Well | Health::Noted(_) => (StatusCode::OK, "ready\n").into_response(),
        Health::Starting(reason) | Health::Still(reason) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response()
        }
    }
}

async fn metrics<O: Operator>(State(state): State<Arc<HandlerState<O>>>, headers: HeaderMap) -> Response {
    if !state.loopback && !state.is_authorized(&headers) {
        return unauthorized();
    }
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], state.operator.metrics()).into_response()
}

fn error_response(error: &Error) -> Response {
    tracing::warn!(%error, "a call of the operator API failed");
    let status = match error.kind() {
        Kind::Config => StatusCode::BAD_REQUEST,
        Kind::SourceUnreachable | Kind::CloudUnreachable => StatusCode::SERVICE_UNAVAILABLE,
        Kind::CloudAuth | Kind::CloudRefused | Kind::CloudProtocol => StatusCode::BAD_GATEWAY,
        Kind::Source | Kind::Identity | Kind::Store | Kind::Media | Kind::Local => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    };
    let body = json!({"success": false, "errors": [error.to_string()], "exit_code": error.exit_code()});
    (status, Json(body)).into_response()
}
