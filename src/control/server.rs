//! The HTTP server of the operator API.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{DefaultBodyLimit, Extension, Query, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower_http::timeout::RequestBodyTimeoutLayer;

use super::named_tokens::{Access, NamedToken, NamedTokens};
use super::page::{self, DashboardState};
use super::single_flight::SingleFlight;
use super::throttle::{TokenCheck, TokenThrottle};
use super::{Health, Operator, PauseRequest, PauseScope, SyncRequest, token};
use crate::config::Settings;
use crate::error::{Error, Kind, Result};
use crate::serve::{self, ConnectionLimits, RemoteClient};

/// The largest body that is read: requests are small.
const BODY_LIMIT: usize = 64 << 10;

/// A body of which nothing arrives for this long is an error.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections at a time. Each browser that shows the page holds one.
const MAX_CONNECTIONS: usize = 512;

/// Bytes that a connection buffers of a request: heads are small here, and strangers' connections are many.
const READ_BUFFER: usize = 16 << 10;

/// How long open requests may take to end after shutdown; after that, how long a sync may take that nobody
/// waits for.
const GRACE: Duration = Duration::from_secs(4);

/// Where somebody acts who calls the API.
const PLACE: &str = "operator API";

/// The operator API, bound to its port and not yet serving.
pub struct ControlServer<O> {
    listener: TcpListener,
    address: SocketAddr,
    state: Arc<HandlerState<O>>,
}

/// The server's single token, which can be replaced while it serves.
#[derive(Clone)]
pub(crate) struct ServerToken(Arc<RwLock<CurrentToken>>);

/// Whose token somebody has shown, and what it may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Caller {
    /// The single token's, of this generation.
    Single(u64),
    /// That of a token with a name.
    Named(NamedToken),
}

impl Caller {
    /// Whether it may change something.
    pub(super) fn may_act(&self) -> bool {
        match self {
            Self::Single(_) => true,
            Self::Named(token) => token.access == Access::Admin,
        }
    }

    /// Who acts at this place, as others read it.
    pub(super) fn at(&self, place: &str) -> String {
        match self {
            Self::Single(_) => format!("somebody at the {place}"),
            Self::Named(token) => format!("{} at the {place}", token.name),
        }
    }
}

struct CurrentToken {
    secret: SecretString,
    /// How often the token was replaced: who signed in with another one is signed out.
    generation: u64,
}

impl ServerToken {
    fn new(secret: SecretString) -> Self {
        Self(Arc::new(RwLock::new(CurrentToken {
            secret,
            generation: 0,
        })))
    }

    /// Replaces the token: only the new one is valid from now on.
    pub(crate) fn replace(&self, secret: SecretString) {
        let mut current = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if !token::is_equal(secret.expose_secret(), &current.secret) {
            current.generation += 1;
            current.secret = secret;
        }
    }

    fn generation(&self) -> u64 {
        self.0.read().unwrap_or_else(PoisonError::into_inner).generation
    }

    /// The token's generation if this is the token.
    fn matches(&self, given: &str) -> Option<u64> {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        token::is_equal(given, &current.secret).then_some(current.generation)
    }
}

/// What the handlers share.
pub(super) struct HandlerState<O> {
    pub(super) operator: Arc<O>,
    pub(super) token: ServerToken,
    named_tokens: NamedTokens,
    pub(super) syncs: SingleFlight,
    pub(super) loopback: bool,
    pub(super) page: DashboardState,
    throttle: TokenThrottle,
}

impl<O: Operator> ControlServer<O> {
    /// Binds the port; port 0 means any free one.
    ///
    /// # Errors
    /// The port is taken, or the address is not this machine's.
    pub async fn bind(settings: &Settings, token: SecretString, operator: Arc<O>) -> Result<Self> {
        let named_tokens = NamedTokens::of(settings);
        let settings = &settings.control;
        let listen = settings.listen;
        let operation = || format!("serve the operator API on {listen}");
        let listener = TcpListener::bind(listen).await.map_err(|error| {
            Error::local(operation(), error).remedy("set control.listen to a free port of this machine")
        })?;
        let address = listener
            .local_addr()
            .map_err(|error| Error::local(operation(), error))?;
        let state = HandlerState {
            operator,
            token: ServerToken::new(token),
            named_tokens,
            syncs: SingleFlight::default(),
            loopback: address.ip().is_loopback(),
            page: DashboardState::new(address, &settings.names),
            throttle: TokenThrottle::default(),
        };
        if !state.loopback {
            tracing::warn!(
                %address,
                "the operator API listens beyond this machine, and has no TLS of its own: tokens and sessions can \
                 be read on the way; listen on 127.0.0.1 behind a proxy that adds TLS"
            );
        }
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
        let limits = ConnectionLimits {
            read_buffer: READ_BUFFER,
            ..ConnectionLimits::new(MAX_CONNECTIONS, GRACE)
        };
        tokio::join!(
            serve::serve(self.listener, router, limits, shutdown.clone()),
            page::run(&self.state, &shutdown)
        );
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
        .route("/cloud-sync/why", get(why::<O>))
        .route("/cloud-sync/pause", post(pause::<O>))
        .route("/cloud-sync/resume", post(resume::<O>))
        .fallback(async || StatusCode::NOT_FOUND)
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .layer(RequestBodyTimeoutLayer::new(BODY_TIMEOUT))
        .layer(middleware::from_fn_with_state(Arc::clone(&state), authorize::<O>));
    Router::new()
        .nest("/api", api)
        .merge(page::router(&state))
        .route("/healthz", get(healthz::<O>))
        .route("/readyz", get(readyz::<O>))
        .route("/metrics", get(metrics::<O>))
        .with_state(state)
}

async fn authorize<O: Operator>(
    State(state): State<Arc<HandlerState<O>>>,
    mut request: Request,
    next: Next,
) -> Response {
    let client = request.extensions().get::<RemoteClient>();
    let caller = match state.caller(client, request.headers()) {
        Ok(caller) => caller,
        Err(refusal) => return *refusal,
    };
    if let Some(client) = client {
        client.trust(None);
    }
    if !is_read(request.method()) && !caller.may_act() {
        return read_only();
    }
    request.extensions_mut().insert(caller);
    let mut answer = next.run(request).await;
    answer.headers_mut().insert(
        header::CACHE_CONTROL,
        header::HeaderValue::from_static("no-store"),
    );
    answer
}

impl<O> HandlerState<O> {
    /// Whose token a request carries. Returns the answer if it is not valid.
    fn caller(
        &self,
        client: Option<&RemoteClient>,
        headers: &HeaderMap,
    ) -> std::result::Result<Caller, Box<Response>> {
        let given = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, given)| given.trim());
        match given.map(|given| self.check_token(client_address(client), given)) {
            Some((TokenCheck::Valid, Some(caller))) => Ok(caller),
            Some((TokenCheck::TooMany(wait), _)) => Err(Box::new(too_many_tokens(wait))),
            _ => Err(Box::new(unauthorized())),
        }
    }

    /// Checks a token that somebody gave, and returns whose it is if it is valid.
    pub(super) fn check_token(&self, from: IpAddr, given: &str) -> (TokenCheck, Option<Caller>) {
        let mut caller = None;
        let checked = self.throttle.check(from, given, |given| {
            caller = self.token.matches(given).map(Caller::Single);
            if caller.is_none() {
                caller = self.named_tokens.find(given).map(Caller::Named);
            }
            caller.is_some()
        });
        (checked, caller)
    }

    /// Whether the token with which somebody signed in is still obeyed.
    pub(super) fn is_obeyed(&self, caller: &Caller) -> bool {
        match caller {
            Caller::Single(generation) => *generation == self.token.generation(),
            Caller::Named(token) => self.named_tokens.has(token),
        }
    }
}

/// Where a request comes from.
pub(super) fn client_address(client: Option<&RemoteClient>) -> IpAddr {
    client.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |client| client.address.ip())
}

fn too_many_tokens(wait: Duration) -> Response {
    let error = "too many wrong tokens came from this address: wait a minute";
    (
        StatusCode::TOO_MANY_REQUESTS,
        [(header::RETRY_AFTER, (wait.as_secs() + 1).to_string())],
        Json(json!({"success": false, "errors": [error], "exit_code": 2})),
    )
        .into_response()
}

/// Whether a request changes nothing.
pub(super) fn is_read(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

fn read_only() -> Response {
    let error = "this token is read-only: it sees everything, and changes nothing";
    let body = json!({"success": false, "errors": [error], "exit_code": 2});
    (StatusCode::FORBIDDEN, Json(body)).into_response()
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
    let example = r#"{"force": true, "entities": ["rooms"]}"#;
    let request: SyncRequest = match read_request(&body, example) {
        Ok(request) => request,
        Err(error) => return error_response(&error),
    };
    match state.syncs.sync(&state.operator, request).await.as_ref() {
        Ok(report) => Json(report).into_response(),
        Err(error) => error_response(error),
    }
}

/// Reads a body; an empty one is the default.
fn read_request<T: Default + DeserializeOwned>(body: &Bytes, example: &str) -> Result<T> {
    if body.trim_ascii().is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(body).map_err(|error| {
        Error::config("read the request", error.to_string()).remedy(format!("send nothing, or {example}"))
    })
}

async fn pause<O: Operator>(
    State(state): State<Arc<HandlerState<O>>>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Response {
    pause_or_resume(&*state.operator, &caller, &body, true).await
}

async fn resume<O: Operator>(
    State(state): State<Arc<HandlerState<O>>>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Response {
    pause_or_resume(&*state.operator, &caller, &body, false).await
}

async fn pause_or_resume(operator: &impl Operator, caller: &Caller, body: &Bytes, pauses: bool) -> Response {
    let scope = match pause_scope(body) {
        Ok(scope) => scope,
        Err(error) => return error_response(&error),
    };
    let by = caller.at(PLACE);
    let done = if pauses {
        operator.pause(&scope, &by).await
    } else {
        operator.resume(&scope, &by).await
    };
    match done {
        Ok(status) => Json(status).into_response(),
        Err(error) => error_response(&error),
    }
}

fn pause_scope(body: &Bytes) -> Result<PauseScope> {
    read_request::<PauseRequest>(body, r#"{"entity": "rooms"}, or {"files": true}"#)?.scope()
}

async fn status<O: Operator>(State(state): State<Arc<HandlerState<O>>>) -> Response {
    match state.operator.status().await {
        Ok(status) => Json(status).into_response(),
        Err(error) => error_response(&error),
    }
}

/// Which row is meant.
#[derive(serde::Deserialize)]
pub(super) struct RowQuery {
    pub(super) entity: String,
    pub(super) key: String,
}

async fn why<O: Operator>(
    State(state): State<Arc<HandlerState<O>>>,
    query: std::result::Result<Query<RowQuery>, QueryRejection>,
) -> Response {
    let Ok(Query(row)) = query else {
        let error = Error::config("read the request", "it does not name an entity and a key")
            .remedy("ask for /api/cloud-sync/why?entity=rooms&key=42");
        return error_response(&error);
    };
    match state.operator.why(&row.entity, &row.key).await {
        Ok(inquiry) => Json(inquiry).into_response(),
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

async fn metrics<O: Operator>(State(state): State<Arc<HandlerState<O>>>, request: Request) -> Response {
    let client = request.extensions().get::<RemoteClient>();
    if !state.loopback
        && let Err(refusal) = state.caller(client, request.headers())
    {
        return *refusal;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_token_ends_the_sessions_of_the_one_before() {
        let token = ServerToken::new("first".into());
        assert!(token.matches("first").is_some() && token.matches("second").is_none());
        let before = token.generation();
        token.replace("first".into());
        assert_eq!(token.generation(), before, "it is the same token");
        token.replace("second".into());
        assert_ne!(token.generation(), before);
        assert!(token.matches("second").is_some() && token.matches("first").is_none());
    }
}
