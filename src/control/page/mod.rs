//! The page for people, at `/cloud-sync`: what is so, in one sentence; what waits, and why; and the buttons
//! that help. It is rendered on the server, and works without script; with it, it is live ([`live`]).
//!
//! What always holds: a stranger gets the sign-in page and its style sheet, and nothing else
//! ([`sign_in`], [`session`]). A request must ask for one of the page's own names, and a form must come from
//! the page itself and carry its session's token ([`request_check`], [`require_session`]). Nothing is loaded
//! from elsewhere, no script is inline, and nothing is kept by a cache ([`protect`]). All text is escaped by
//! the templates.
//!
//! Data flow: [`HandlerState::view`] asks the operator once for all who look at the same moment, and
//! [`view`] puts the answer into words, its [`sentence`] first. The lag over time is noted by [`note_lag`].

mod chart;
mod form;
mod live;
mod request_check;
mod sentence;
mod session;
mod sign_in;
mod templates;
mod view;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Extension, Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{any, get, post};
use axum::{Router, body};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower_http::timeout::RequestBodyTimeoutLayer;

use super::client::connectable;
use super::lag_history::{EVERY, LagHistory, LagRange};
use super::problems::sentence_case;
use super::server::{Caller, HandlerState, RowQuery};
use super::status::{ReplicatorState, StatusReport};
use super::{InquiryState, Operator, PauseScope, SyncRequest};
use crate::change::Position;
use crate::error::Kind;
use crate::serve::RemoteClient;
use form::Form;
use live::LiveUpdates;
use request_check::{HostNames, comes_from_own_page};
use session::{SessionId, Sessions};
use templates::{EntryTemplate, MessageTemplate, PageTemplate, WhyTemplate, respond};
use view::{Seen, View};

/// Where the page is.
pub(super) const PATH: &str = "/cloud-sync";
const SIGN_IN: &str = "/cloud-sync/sign-in";
const SIGN_OUT: &str = "/cloud-sync/sign-out";

const STYLE: &str = include_str!("templates/page.css");
const SCRIPT: &str = include_str!("templates/page.js");

/// The page's URL on this machine, of a server that listens here.
pub(crate) fn page_url(address: SocketAddr) -> String {
    format!("http://{}{PATH}", connectable(address))
}

/// The page's sentence, and what somebody has to do, as plain text.
pub(crate) fn sentence_of(status: &StatusReport) -> String {
    sentence::sentence(status, Timestamp::now()).with_todo()
}

/// The largest form.
const FORM_LIMIT: usize = 16 << 10;

/// A form of which nothing arrives for this long is an error.
const FORM_TIMEOUT: Duration = Duration::from_secs(10);

/// How old a view may be that somebody gets who opens the page.
const VIEW_AGE: Duration = Duration::from_secs(1);

/// What each answer of the page carries.
const PROTECTION: [(HeaderName, &str); 8] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; \
         form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    // Without it, browsers would send `Origin: null` with the page's own forms.
    (header::REFERRER_POLICY, "same-origin"),
    (header::CACHE_CONTROL, "no-store"),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    ),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
    (
        HeaderName::from_static("permissions-policy"),
        "camera=(), geolocation=(), microphone=()",
    ),
];

/// What the page keeps.
pub(super) struct DashboardState {
    sessions: Sessions,
    hosts: HostNames,
    /// The server's port. Cookies are shared by all ports of a machine, so their names have it.
    port: u16,
    history: Mutex<LagHistory>,
    view: tokio::sync::Mutex<Option<(Instant, Arc<View>)>>,
    /// When a form last did something: an older view shows less.
    acted_at: Mutex<Instant>,
    live: LiveUpdates,
    /// Why the sync that somebody asked for here did not run.
    refused_sync: Arc<Mutex<Option<String>>>,
    ending: CancellationToken,
}

impl DashboardState {
    /// Of a server that listens here and is also reached by these names.
    pub(super) fn new(address: SocketAddr, names: &[String]) -> Self {
        Self {
            sessions: Sessions::new(),
            hosts: HostNames::new(address.ip(), names),
            port: address.port(),
            history: Mutex::default(),
            view: tokio::sync::Mutex::default(),
            acted_at: Mutex::new(Instant::now()),
            live: LiveUpdates::new(),
            refused_sync: Arc::default(),
            ending: CancellationToken::new(),
        }
    }
}

impl<O: Operator> HandlerState<O> {
    /// Everything that the page shows, at most so old. Who asks while somebody else does gets the same.
    async fn view(&self, age: Duration) -> Arc<View> {
        let asked = Instant::now();
        let mut kept = self.page.view.lock().await;
        if let Some((began, view)) = &*kept
            && *began + age >= asked
            && *began >= self.page.acted_at()
        {
            return Arc::clone(view);
        }
        let began = Instant::now();
        let status = self.operator.status().await.unwrap_or_else(|error| {
            let mut status = StatusReport::unknown(ReplicatorState::Stopped);
            status.reason = Some(error.to_string());
            status
        });
        // One that has just not answered is not asked again.
        let ask_source = status.source.reachable != Some(false);
        let overview = self.operator.overview(ask_source).await;
        let refused = self
            .page
            .refused_sync
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let view = Arc::new(View::new(&Seen {
            status: &status,
            overview: &overview,
            history: &self.page.history.lock().unwrap_or_else(PoisonError::into_inner),
            refused_sync: refused.as_deref(),
            now: Timestamp::now(),
            zone: &TimeZone::system(),
        }));
        *kept = Some((began, Arc::clone(&view)));
        view
    }
}

/// Runs what the page does in the background, until `shutdown`; then it ends the answers that last.
pub(super) async fn run<O: Operator>(state: &Arc<HandlerState<O>>, shutdown: &CancellationToken) {
    let work = async { tokio::join!(note_lag(state, shutdown), live::render_changes(state, shutdown)) };
    let _end = state.page.ending.clone().drop_guard();
    work.await;
}

/// Notes the lag, again and again.
async fn note_lag<O: Operator>(state: &HandlerState<O>, shutdown: &CancellationToken) {
    let mut ticks = tokio::time::interval(Duration::from_secs(EVERY));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !pause_or_stop(&mut ticks, shutdown).await {
        let now = Timestamp::now().as_second().max(0) as u64;
        if let Some(lag) = state.operator.lag_now() {
            let mut history = state.page.history.lock().unwrap_or_else(PoisonError::into_inner);
            history.note(now, lag.as_secs_f64());
        }
    }
}

/// Waits for the next tick. Returns whether the program ends first.
async fn pause_or_stop(ticks: &mut tokio::time::Interval, shutdown: &CancellationToken) -> bool {
    tokio::select! {
        () = shutdown.cancelled() => true,
        _ = ticks.tick() => false,
    }
}

/// The routes of the page.
pub(super) fn router<O: Operator>(state: &Arc<HandlerState<O>>) -> Router<Arc<HandlerState<O>>> {
    let signed_in = Router::new()
        .route(PATH, get(page::<O>))
        .route("/cloud-sync/page.js", get(async || script()))
        .route("/cloud-sync/events", get(live::events::<O>))
        .route("/cloud-sync/why", get(why::<O>))
        .route("/cloud-sync/sync-now", post(sync_now::<O>))
        .route("/cloud-sync/quarantine/{position}", get(entry::<O>))
        .route("/cloud-sync/quarantine/retry", post(retry::<O>))
        .route("/cloud-sync/quarantine/discard", post(discard::<O>))
        .route("/cloud-sync/pause", post(pause::<O>))
        .route("/cloud-sync/resume", post(resume::<O>))
        .route(SIGN_OUT, post(sign_in::sign_out::<O>))
        .route("/cloud-sync/{*rest}", any(async || not_found()))
        .layer(middleware::from_fn_with_state(
            Arc::clone(state),
            require_session::<O>,
        ));
    Router::new()
        .route("/", get(async || Redirect::to(PATH)))
        .route("/cloud-sync/", get(async || Redirect::to(PATH)))
        .route(SIGN_IN, get(sign_in::show::<O>).post(sign_in::sign_in::<O>))
        .route("/cloud-sync/page.css", get(async || style()))
        .merge(signed_in)
        .layer(DefaultBodyLimit::max(FORM_LIMIT))
        .layer(RequestBodyTimeoutLayer::new(FORM_TIMEOUT))
        .layer(middleware::from_fn_with_state(
            Arc::clone(state),
            check_request::<O>,
        ))
        .layer(middleware::from_fn(protect))
}

/// Puts the headers on each answer that tell a browser what the page may do.
async fn protect(request: Request, next: Next) -> Response {
    let mut answer = next.run(request).await;
    for (name, value) in PROTECTION {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    answer
}

/// Refuses requests that ask for another name, and forms from elsewhere.
async fn check_request<O: Operator>(
    State(state): State<Arc<HandlerState<O>>>,
    request: Request,
    next: Next,
) -> Response {
    if !state.page.hosts.allow(request.headers()) {
        let text = "This page is not reached by this name. Names are set by control.names.\n";
        return (StatusCode::MISDIRECTED_REQUEST, text).into_response();
    }
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    if !is_read && !comes_from_own_page(request.headers()) {
        return (StatusCode::FORBIDDEN, "This form does not come from this page.\n").into_response();
    }
    next.run(request).await
}

/// Lets a request through that belongs to a session; one that sends a form must carry the session's token.
/// The handlers get the [`SessionId`] and the [`Form`].
async fn require_session<O: Operator>(
    State(state): State<Arc<HandlerState<O>>>,
    request: Request,
    next: Next,
) -> Response {
    let session = state.page.session_of(request.headers());
    let session = session.and_then(|id| Some((state.caller_of(&id)?, id)));
    let Some((caller, session)) = session else {
        return if request.method() == Method::GET && request.uri().path() == PATH {
            Redirect::to(SIGN_IN).into_response()
        } else {
            (StatusCode::UNAUTHORIZED, "Sign in first.\n").into_response()
        };
    };
    if let Some(client) = request.extensions().get::<RemoteClient>() {
        client.trust(None);
    }
    let (mut parts, sent) = request.into_parts();
    let mut sent = Some(sent);
    if !matches!(parts.method, Method::GET | Method::HEAD) {
        let Some(form) = Form::read(sent.take().unwrap_or_default()).await else {
            return (StatusCode::BAD_REQUEST, "The form is incomplete or too large.\n").into_response();
        };
        let token = form.get("token").unwrap_or_default();
        if !state.page.sessions.is_form_token(session.as_str(), token) {
            let text = "The form is of another session: open the page again.\n";
            return (StatusCode::FORBIDDEN, text).into_response();
        }
        if !caller.may_act() && parts.uri.path() != SIGN_OUT {
            return message(
                StatusCode::FORBIDDEN,
                "You signed in with a read-only token: it sees everything, and changes nothing.",
            );
        }
        parts.extensions.insert(form);
    }
    parts.extensions.insert(caller);
    parts.extensions.insert(session);
    next.run(Request::from_parts(parts, sent.unwrap_or_else(body::Body::empty)))
        .await
}

/// What the URL of the page may say.
#[derive(serde::Deserialize)]
struct PageQuery {
    #[serde(default)]
    range: String,
}

async fn page<O: Operator>(
    State(state): State<Arc<HandlerState<O>>>,
    Extension(session): Extension<SessionId>,
    Extension(caller): Extension<Caller>,
    Query(query): Query<PageQuery>,
) -> Response {
    let view = state.view(VIEW_AGE).await;
    let range = LagRange::named(&query.range).unwrap_or_default();
    let Some(chart) = view.charts.iter().find(|chart| chart.range == range) else {
        return not_found();
    };
    respond(&PageTemplate {
        view: &view,
        chart,
        form_token: &state.page.sessions.form_token(session.as_str()),
        may_act: caller.may_act(),
        notice: state.page.sessions.take_notice(&session).as_deref(),
        now_ms: Timestamp::now().as_millisecond(),
    })
}

async fn sync_now<O: Operator>(
    State(state): State<Arc<HandlerState<O>>>,
    Extension(session): Extension<SessionId>,
) -> Response {
    let was_running = state.syncs.start(&state.operator, SyncRequest::default(), {
        let refused = Arc::clone(&state.page.refused_sync);
        move |result| {
            let error = result.as_ref().as_ref().err().map(ToString::to_string);
            *refused.lock().unwrap_or_else(PoisonError::into_inner) = error;
        }
    });
    let notice = if was_running {
        "A sync runs already. Its report will be under “Sync”."
    } else {
        "The sync has begun. Its report will be under “Sync”."
    };
    state.back_with(&session, notice, "#sync")
}

async fn entry<O: Operator>(
    State(state): State<Arc<HandlerState<O>>>,
    Extension(session): Extension<SessionId>,
    Extension(caller): Extension<Caller>,
    Path(position): Path<i64>,
) -> Response {
    let entries = match state.operator.quarantined(Position(position)).await {
        Ok(entries) => entries,
        Err(error) => return message(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
    };
    if entries.is_empty() {
        return message(
            StatusCode::NOT_FOUND,
            "No row in quarantine has this position any more: the cloud has accepted it, or it was discarded.",
        );
    }
    let rows = View::quarantined(&entries, Timestamp::now(), &TimeZone::system());
    respond(&EntryTemplate {
        rows: &rows,
        position,
        may_act: caller.may_act(),
        form_token: &state.page.sessions.form_token(session.as_str()),
    })
}

async fn why<O: Operator>(
    State(state): State<Arc<HandlerState<O>>>,
    Query(row): Query<RowQuery>,
) -> Response {
    match state.operator.why(&row.entity, row.key.trim()).await {
        Ok(inquiry) => respond(&WhyTemplate {
            reason: sentence_case(&inquiry.reason),
            is_delivered: inquiry.state == InquiryState::Delivered,
            inquiry: &inquiry,
        }),
        Err(error) => {
            let status = match error.kind() {
                Kind::Config => StatusCode::BAD_REQUEST,
                _ => StatusCode::SERVICE_UNAVAILABLE,
            };
            message(status, &sentence_case(&error.to_string()))
        }
    }
}

async fn retry<O: Operator>(
    State(state): State<Arc<HandlerState<O>>>,
    Extension(session): Extension<SessionId>,
    Extension(form): Extension<Form>,
) -> Response {
    let Some(position) = form.position() else {
        return message(StatusCode::BAD_REQUEST, "The form names no position.");
    };
    let notice = match state.operator.retry(position).await {
        Ok(0) => "It cannot be sent again: it is a truncate, or its key has other columns now.".to_owned(),
        Ok(_) => "The row is sent again. It leaves the list when the cloud has accepted it.".to_owned(),
        Err(error) => sentence_case(&error.to_string()),
    };
    state.back_with(&session, &notice, "#quarantine")
}

async fn discard<O: Operator>(
    State(state): State<Arc<HandlerState<O>>>,
    Extension(session): Extension<SessionId>,
    Extension(form): Extension<Form>,
) -> Response {
    let Some(position) = form.position() else {
        return message(StatusCode::BAD_REQUEST, "The form names no position.");
    };
    let notice = match state.operator.discard(position).await {
        Ok(_) => "The refused change is discarded: the cloud stays without it.".to_owned(),
        Err(error) => sentence_case(&error.to_string()),
    };
    state.back_with(&session, &notice, "#quarantine")
}

async fn pause<O: Operator>(
    State(state): State<Arc<HandlerState<O>>>,
    Extension(session): Extension<SessionId>,
    Extension(caller): Extension<Caller>,
    Extension(form): Extension<Form>,
) -> Response {
    let Some(scope) = form.scope() else {
        return message(StatusCode::BAD_REQUEST, "The form does not say what to pause.");
    };
    let notice = match state.operator.pause(&scope, &caller.at("page")).await {
        Ok(_) => sentence_case(&format!("{scope} is paused")),
        Err(error) => sentence_case(&error.to_string()),
    };
    state.back_with(&session, &notice, part_of(&scope))
}

async fn resume<O: Operator>(
    State(state): State<Arc<HandlerState<O>>>,
    Extension(session): Extension<SessionId>,
    Extension(caller): Extension<Caller>,
    Extension(form): Extension<Form>,
) -> Response {
    let Some(scope) = form.scope() else {
        return message(StatusCode::BAD_REQUEST, "The form does not say what to resume.");
    };
    let notice = match state.operator.resume(&scope, &caller.at("page")).await {
        Ok(_) => sentence_case(&format!("{scope} is resumed")),
        Err(error) => sentence_case(&error.to_string()),
    };
    state.back_with(&session, &notice, part_of(&scope))
}

/// The part of the page with the button that pauses.
fn part_of(scope: &PauseScope) -> &'static str {
    match scope {
        PauseScope::All => "#machine",
        PauseScope::Files => "#files",
        PauseScope::Entity(_) => "#rows",
    }
}

impl<O: Operator> HandlerState<O> {
    /// Whose session it is; `None` if it has ended, or its token is not obeyed any more.
    fn caller_of(&self, session: &SessionId) -> Option<Caller> {
        let caller = self.page.sessions.caller(session);
        caller.filter(|caller| self.is_obeyed(caller))
    }

    /// Leads back to a part of the page, which says once what became of the form.
    fn back_with(&self, session: &SessionId, notice: &str, part: &str) -> Response {
        self.page.sessions.leave_notice(session, notice.to_owned());
        *self.page.acted_at.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        Redirect::to(&format!("{PATH}{part}")).into_response()
    }
}

fn message(status: StatusCode, text: &str) -> Response {
    (status, respond(&MessageTemplate { text })).into_response()
}

fn not_found() -> Response {
    message(StatusCode::NOT_FOUND, "There is no such page.")
}

fn style() -> Response {
    typed("text/css; charset=utf-8", STYLE)
}

fn script() -> Response {
    typed("text/javascript; charset=utf-8", SCRIPT)
}

fn typed(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind)], Body::from(text)).into_response()
}

impl DashboardState {
    fn acted_at(&self) -> Instant {
        *self.acted_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session whose id the request carries; it may have ended.
    fn session_of(&self, headers: &HeaderMap) -> Option<SessionId> {
        let names = [self.cookie_name(true), self.cookie_name(false)];
        let id = names.iter().find_map(|name| sign_in::cookie(headers, name))?;
        Some(SessionId::given(id))
    }

    /// The name of the session's cookie. Only a cookie that came over TLS may have the prefix that protects
    /// it from other hosts of the domain.
    fn cookie_name(&self, is_tls: bool) -> String {
        let prefix = if is_tls { "__Host-" } else { "" };
        format!("{prefix}cloud_sync_{}", self.port)
    }
}
