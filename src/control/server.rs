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

/// A request is small; nothing larger is read.
const BODY_LIMIT: usize = 64 << 10;

/// A body of which nothing comes for this long is given up.
const BODY_PAUSE: Duration = Duration::from_secs(10);

/// Connections at once.
const PLACES: usize = 64;

/// How long open requests, and then a sync that nobody waits for, may take to end after shutdown.
const GRACE: Duration = Duration::from_secs(4);

/// The operator API, bound to its port and not yet serving.
pub struct ControlServer<O> {
    listener: TcpListener,
    address: SocketAddr,
    desk: Arc<HandlerState<O>>,
}

/// The server's token, which can be replaced while it serves.
#[derive(Clone)]
pub(crate) struct ServerToken(Arc<RwLock<SecretString>>);

impl ServerToken {
    /// From now on this one counts, and no other.
    pub(crate) fn replace(&self, token: SecretString) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = token;
    }

    fn is(&self, given: &str) -> bool {
        token::same(given, &self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What the handlers share.
struct HandlerState<O> {
    operator: Arc<O>,
    token: ServerToken,
    turns: SingleFlight,
    loopback: bool,
}

impl<O: Operator> ControlServer<O> {
    /// Takes the port; port 0 takes any free one.
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
        let desk = HandlerState {
            operator,
            token: ServerToken(Arc::new(RwLock::new(token))),
            turns: SingleFlight::default(),
            loopback: address.ip().is_loopback(),
        };
        Ok(Self {
            listener,
            address,
            desk: Arc::new(desk),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The token that it asks for.
    pub(crate) fn token(&self) -> ServerToken {
        self.desk.token.clone()
    }

    /// Serves until shutdown, then lets open requests end, for some seconds at most.
    ///
    /// # Errors
    /// None at present: what fails while serving fails a request or a connection.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<()> {
        let router = router(Arc::clone(&self.desk));
        serve::serve(
            self.listener,
            router,
            ConnectionLimits::new(PLACES, GRACE),
            shutdown,
        )
        .await;
        tokio::select! {
            () = self.desk.turns.ended() => {}
            () = tokio::time::sleep(GRACE) => tracing::warn!("a sync did not end in time"),
        }
        Ok(())
    }
}

fn router<O: Operator>(desk: Arc<HandlerState<O>>) -> Router {
    let api = Router::new()
        .route("/cloud-sync/sync-now", post(sync_now::<O>))
        .route("/cloud-sync/status", get(status::<O>))
        .fallback(async || StatusCode::NOT_FOUND)
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .layer(RequestBodyTimeoutLayer::new(BODY_PAUSE))
        .layer(middleware::from_fn_with_state(Arc::clone(&desk), authorize::<O>));
    Router::new()
        .nest("/api", api)
        .route("/healthz", get(healthz::<O>))
        .route("/readyz", get(readyz::<O>))
        .route("/metrics", get(metrics::<O>))
        .with_state(desk)
}

async fn authorize<O: Operator>(
    State(desk): State<Arc<HandlerState<O>>>,
    request: Request,
    next: Next,
) -> Response {
    if !desk.knows(request.headers()) {
        return unauthorized();
    }
    if let Some(caller) = request.extensions().get::<RemoteClient>() {
        caller.trust(None);
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
    fn knows(&self, headers: &HeaderMap) -> bool {
        headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .is_some_and(|(scheme, given)| {
                scheme.eq_ignore_ascii_case("bearer") && self.token.is(given.trim())
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

async fn sync_now<O: Operator>(State(desk): State<Arc<HandlerState<O>>>, body: Bytes) -> Response {
    let request = if body.trim_ascii().is_empty() {
        SyncRequest::default()
    } else {
        match serde_json::from_slice(&body) {
            Ok(request) => request,
            Err(error) => {
                let error = Error::config("read the request", error.to_string())
                    .remedy("send nothing, or {\"force\": true, \"entities\": [\"rooms\"]}");
                return refused(&error);
            }
        }
    };
    match desk.turns.sync(&desk.operator, request).await.as_ref() {
        Ok(report) => Json(report).into_response(),
        Err(error) => refused(error),
    }
}

async fn status<O: Operator>(State(desk): State<Arc<HandlerState<O>>>) -> Response {
    match desk.operator.status().await {
        Ok(status) => Json(status).into_response(),
        Err(error) => refused(&error),
    }
}

async fn healthz<O: Operator>(State(desk): State<Arc<HandlerState<O>>>) -> Response {
    match desk.operator.health() {
        Health::Well => (StatusCode::OK, "ok\n").into_response(),
        Health::Noted(what) => (StatusCode::OK, format!("ok, but {what}\n")).into_response(),
        Health::Starting(reason) => (StatusCode::OK, format!("starting: {reason}\n")).into_response(),
        Health::Still(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

async fn readyz<O: Operator>(State(desk): State<Arc<HandlerState<O>>>) -> Response {
    match desk.operator.health() {
        Health::Well | Health::Noted(_) => (StatusCode::OK, "ready\n").into_response(),
        Health::Starting(reason) | Health::Still(reason) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response()
        }
    }
}

async fn metrics<O: Operator>(State(desk): State<Arc<HandlerState<O>>>, headers: HeaderMap) -> Response {
    if !desk.loopback && !desk.knows(&headers) {
        return unauthorized();
    }
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], desk.operator.metrics()).into_response()
}

fn refused(error: &Error) -> Response {
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
