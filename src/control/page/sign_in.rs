//! Signing in with the operator API's token, and signing out.

use std::sync::Arc;

use axum::extract::{Extension, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};

use super::form::Form;
use super::session::{LIFETIME, SessionId, random_text};
use super::templates::{SignInTemplate, respond};
use super::{PATH, SIGN_IN};
use crate::control::Operator;
use crate::control::server::{HandlerState, client_address};
use crate::control::throttle::TokenCheck;
use crate::serve::RemoteClient;

/// The cookie that ties the sign-in form to the browser that it was made for.
const FORM_COOKIE: &str = "cloud_sync_sign_in";

pub(super) async fn show<O: Operator>(
    State(state): State<Arc<HandlerState<O>>>,
    headers: HeaderMap,
) -> Response {
    if let Some(session) = state.page.session_of(&headers)
        && state.caller_of(&session).is_some()
    {
        return Redirect::to(PATH).into_response();
    }
    ask_for_token(&state, &headers, StatusCode::OK, None)
}

pub(super) async fn sign_in<O: Operator>(
    State(state): State<Arc<HandlerState<O>>>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let headers = parts.headers;
    let client = parts.extensions.get::<RemoteClient>();
    let ask = |status, text: &str| ask_for_token(&state, &headers, status, Some(text));
    let Some(form) = Form::read(body).await else {
        return ask(
            StatusCode::BAD_REQUEST,
            "The form did not arrive as a whole. Try again.",
        );
    };
    let shown_to = cookie(&headers, FORM_COOKIE).unwrap_or_default();
    let token = form.get("token").unwrap_or_default();
    if shown_to.is_empty() || !state.page.sessions.is_form_token(shown_to, token) {
        return ask(
            StatusCode::FORBIDDEN,
            "The form was too old, or the browser keeps no cookies. Try again.",
        );
    }
    let given = form.get("secret").unwrap_or_default().trim();
    let caller = match state.check_token(client_address(client), given) {
        (TokenCheck::Valid, Some(caller)) => caller,
        (TokenCheck::Valid | TokenCheck::Wrong, _) => {
            return ask(StatusCode::UNAUTHORIZED, "That is not the token.");
        }
        (TokenCheck::TooMany(wait), _) => {
            let seconds = wait.as_secs() + 1;
            let text =
                format!("Too many wrong tokens came from your address. Try again in {seconds} seconds.");
            let mut answer = ask(StatusCode::TOO_MANY_REQUESTS, &text);
            answer
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
            return answer;
        }
    };
    if let Some(client) = client {
        client.trust(None);
    }
    let from = client_address(client);
    tracing::info!(%from, "{} has signed in", caller.at("page"));
    let sessions = &state.page.sessions;
    let session = sessions.begin(caller, |caller| state.is_obeyed(caller));
    let mut answer = Redirect::to(PATH).into_response();
    let is_tls = came_over_tls(&headers);
    let name = state.page.cookie_name(is_tls);
    set_cookie(&mut answer, &name, session.as_str(), LIFETIME.as_secs(), is_tls);
    set_cookie(&mut answer, FORM_COOKIE, "", 0, is_tls);
    answer
}

pub(super) async fn sign_out<O: Operator>(
    State(state): State<Arc<HandlerState<O>>>,
    Extension(session): Extension<SessionId>,
    headers: HeaderMap,
) -> Response {
    state.page.sessions.end(&session);
    let mut answer = Redirect::to(SIGN_IN).into_response();
    let is_tls = came_over_tls(&headers);
    set_cookie(&mut answer, &state.page.cookie_name(is_tls), "", 0, is_tls);
    answer
}

fn ask_for_token<O: Operator>(
    state: &HandlerState<O>,
    headers: &HeaderMap,
    status: StatusCode,
    refusal: Option<&str>,
) -> Response {
    let shown_to = random_text();
    let page = respond(&SignInTemplate {
        form_token: &state.page.sessions.form_token(&shown_to),
        refusal,
        is_open: !state.loopback && !came_over_tls(headers),
    });
    let mut answer = (status, page).into_response();
    set_cookie(&mut answer, FORM_COOKIE, &shown_to, 3600, came_over_tls(headers));
    answer
}

/// Whether a proxy says that the browser has reached it over TLS. Who sends this header without a proxy
/// protects its own cookie only.
fn came_over_tls(headers: &HeaderMap) -> bool {
    headers
        .get("x-forwarded-proto")
        .is_some_and(|proto| proto.as_bytes().eq_ignore_ascii_case(b"https"))
}

/// Sets a cookie for so many seconds; 0 removes it.
fn set_cookie(answer: &mut Response, name: &str, value: &str, seconds: u64, is_tls: bool) {
    let (path, secure) = if is_tls { ("/", "; Secure") } else { (PATH, "") };
    let text = format!("{name}={value}; Path={path}; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}");
    if let Ok(text) = HeaderValue::from_str(&text) {
        answer.headers_mut().append(header::SET_COOKIE, text);
    }
}

/// The value of a cookie.
pub(super) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|cookies| cookies.split(';'))
        .filter_map(|cookie| cookie.trim().split_once('='))
        .find(|(other, _)| *other == name)
        .map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_found_among_others() {
        let mut headers = HeaderMap::new();
        headers.append(header::COOKIE, "a=1; cloud_sync_8787=xyz;b=2".parse().unwrap());
        headers.append(header::COOKIE, "c=3".parse().unwrap());
        assert_eq!(cookie(&headers, "cloud_sync_8787"), Some("xyz"));
        assert_eq!(cookie(&headers, "c"), Some("3"));
        assert_eq!(cookie(&headers, "cloud_sync"), None);
    }

    #[test]
    fn only_a_cookie_over_tls_is_secure_and_bound_to_its_host() {
        let mut answer = ().into_response();
        set_cookie(&mut answer, "__Host-cloud_sync_1", "x", 9, true);
        set_cookie(&mut answer, "cloud_sync_1", "x", 9, false);
        let cookies: Vec<_> = answer.headers().get_all(header::SET_COOKIE).iter().collect();
        assert_eq!(
            cookies[0],
            "__Host-cloud_sync_1=x; Path=/; Max-Age=9; HttpOnly; SameSite=Strict; Secure"
        );
        assert_eq!(
            cookies[1],
            "cloud_sync_1=x; Path=/cloud-sync; Max-Age=9; HttpOnly; SameSite=Strict"
        );
    }
}
