//! A request's way through a server: its faults first, then what the server does when nothing goes wrong.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Json;
use axum::extract::{ConnectInfo, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::quirks::{Accepted, Bulk, Quirks, Refusal, Slash};
use super::tables::{Context, Refused, cleaned};
use super::{BaselineState, KEY, lists, uploads};
use crate::support::cuttable_listener::CutHandle;
use crate::support::fault::{Request, What};
use crate::support::locked;

pub(super) async fn handle(
    State(state): State<Arc<BaselineState>>,
    ConnectInfo(cut_handle): ConnectInfo<CutHandle>,
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
    let root = locked(&state.quirks).root();
    let path = head.uri.path();
    // A path that is not below the root keeps its slash at the start, so that it fits no route.
    let below = path
        .strip_prefix(&root)
        .filter(|rest| rest.starts_with('/'))
        .map_or(path, |rest| rest.trim_start_matches('/'));
    let request = Request::new(&head, below, body.clone());
    locked(&state.requests).push(request.clone());
    locked(&state.tables).note_bytes(below.trim_end_matches('/'), body.len());
    let latency = *locked(&state.latency);
    if latency > Duration::ZERO {
        tokio::time::sleep(latency).await;
    }
    match state.faults.strike(&request).map(|fault| fault.what) {
        Some(What::Answer {
            status,
            headers,
            body,
        }) => return (status, headers, body).into_response(),
        Some(What::Cut { stored }) => {
            if stored {
                let raw = axum::extract::Request::from_parts(head, body.into());
                answer(&state, &request, raw).await;
            }
            cut_handle.cut();
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
    let raw = axum::extract::Request::from_parts(head, body.into());
    answer(&state, &request, raw).await
}

struct Leaving<'a>(&'a BaselineState);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.at_once.fetch_sub(1, Ordering::SeqCst);
        self.0.changed.notify_waiters();
    }
}

/// What a request asks for.
enum Call {
    Status,
    List(String),
    Post(String),
    Bulk(String),
    /// Path, key.
    Put(String, String),
    /// Path, key.
    Delete(String, String),
    /// Directory.
    Upload(String),
}

/// What the server does when nothing goes wrong.
async fn answer(state: &BaselineState, request: &Request, raw: axum::extract::Request) -> Response {
    let quirks = locked(&state.quirks).clone();
    if let Some(redirect) = with_slash(&quirks, request, &raw) {
        return redirect;
    }
    if quirks.post_limit.is_some_and(|limit| request.body.len() > limit) {
        let page = "<!DOCTYPE html><html><head><title>413 Content Too Large</title></head></html>";
        return page_of(StatusCode::PAYLOAD_TOO_LARGE, page.to_owned());
    }
    let bearer = format!("Bearer {KEY}");
    let authorization = request.headers.get(header::AUTHORIZATION);
    if !quirks.takes_any_key && authorization.is_none_or(|value| value != bearer.as_str()) {
        let body = json!({"message": "Unauthenticated."});
        return (StatusCode::UNAUTHORIZED, Json(body)).into_response();
    }
    match call_of(state, &quirks, request) {
        Some(Call::Status) => {
            let mut status = quirks.status.clone();
            if quirks.lists_capabilities && !quirks.capabilities.is_empty() {
                status["capabilities"] = json!(quirks.capabilities);
            }
            Json(status).into_response()
        }
        Some(Call::List(path)) => {
            lists::answer(&quirks, &state.entities[&path], &locked(&state.tables), request)
        }
        Some(Call::Post(path)) => post(state, &quirks, &path, &request.json()),
        Some(Call::Bulk(path)) => bulk(state, &quirks, &path, &request.json()),
        Some(Call::Put(path, key)) => {
            if locked(&state.tables).get(quirks.table(&path).0, &key).is_none() {
                return StatusCode::NOT_FOUND.into_response();
            }
            let replaces = Quirks {
                upserts: true,
                merges: false,
                ..quirks
            };
            post(state, &replaces, &path, &request.json())
        }
        Some(Call::Delete(path, key)) => match locked(&state.tables).remove(quirks.table(&path).0, &key) {
            Some(_) if quirks.accepted == Accepted::Row => StatusCode::NO_CONTENT.into_response(),
            Some(_) => Json(json!({"success": true})).into_response(),
            None => StatusCode::NOT_FOUND.into_response(),
        },
        Some(Call::Upload(directory)) => match &quirks.uploads {
            Some(uploads) => uploads::answer(state, uploads, &directory, raw).await,
            None => no_route(),
        },
        None => no_route(),
    }
}

fn call_of(state: &BaselineState, quirks: &Quirks, request: &Request) -> Option<Call> {
    let path = match quirks.slash {
        Slash::Never => request.path.as_str(),
        _ => request.path.trim_end_matches('/'),
    };
    let known = |path: &str| state.entities.contains_key(path).then(|| path.to_owned());
    match request.method {
        Method::GET if quirks.status_path == Some(path) => Some(Call::Status),
        Method::GET => known(path).map(Call::List),
        Method::POST => {
            let moved = quirks.bulk_paths.iter().find(|[_, address]| *address == path);
            let usual = || path.strip_prefix("bulk/").and_then(known);
            let of_bulk = match moved {
                Some([of, _]) => known(of),
                None => usual().filter(|of| quirks.bulk_paths.iter().all(|[moved, _]| moved != of)),
            };
            let directory = || path.strip_prefix("upload/").filter(|rest| !rest.contains('/'));
            of_bulk
                .filter(|_| quirks.can("bulk"))
                .map(Call::Bulk)
                .or_else(|| known(path).map(Call::Post))
                .or_else(|| Some(Call::Upload(directory()?.to_owned())))
        }
        Method::PUT if quirks.put => {
            let (of, key) = path.rsplit_once('/')?;
            Some(Call::Put(known(of)?, key_from(key)))
        }
        Method::DELETE if quirks.can("delete") => state.entities.keys().find_map(|of| {
            let moved = quirks.delete_paths.iter().find(|[path, _]| path == of);
            let template =
                moved.map_or_else(|| format!("{of}/{{key}}"), |[_, template]| (*template).to_owned());
            let (before, after) = template.split_once("{key}")?;
            let key = path.strip_prefix(before)?.strip_suffix(after)?;
            (!key.contains('/')).then(|| Call::Delete(of.clone(), key_from(key)))
        }),
        _ => None,
    }
}

/// The answer to a request whose path lacks the slash that this server wants.
fn with_slash(quirks: &Quirks, request: &Request, raw: &axum::extract::Request) -> Option<Response> {
    if quirks.slash == Slash::Never || request.path.ends_with('/') {
        return None;
    }
    if quirks.slash == Slash::RedirectsGetOnly && request.method != Method::GET {
        let words = format!(
            "RuntimeError: You called this URL via {}, but the URL doesn't end in a slash and you have \
             APPEND_SLASH set.",
            request.method
        );
        let page = format!("<!DOCTYPE html><html><body><h1>{words}</h1></body></html>");
        return Some(page_of(StatusCode::INTERNAL_SERVER_ERROR, page));
    }
    let query = raw
        .uri()
        .query()
        .map_or_else(String::new, |query| format!("?{query}"));
    let location = format!("{}/{query}", raw.uri().path());
    Some((StatusCode::MOVED_PERMANENTLY, [(header::LOCATION, location)]).into_response())
}

fn post(state: &BaselineState, quirks: &Quirks, path: &str, row: &Value) -> Response {
    let rules = locked(&state.rules);
    let context = Context {
        quirks,
        rules: &rules,
        entities: &state.entities,
        path,
    };
    let stored = locked(&state.tables).store(&context, row);
    match (stored, quirks.accepted) {
        (Err(refused), _) => refusal(quirks, path, &refused, row),
        (Ok(_), Accepted::Success) => created(json!({"success": true})),
        (Ok(row), Accepted::Data) => created(json!({"success": true, "data": row})),
        (Ok(row), Accepted::Row) => created(row),
        (Ok(_), Accepted::Empty) => StatusCode::NO_CONTENT.into_response(),
    }
}

fn bulk(state: &BaselineState, quirks: &Quirks, path: &str, body: &Value) -> Response {
    let rows = body["records"].as_array().map_or(&[][..], Vec::as_slice);
    let rules = locked(&state.rules);
    let context = Context {
        quirks,
        rules: &rules,
        entities: &state.entities,
        path,
    };
    let mut tables = locked(&state.tables);
    let Bulk::SkipsRows { names_keys } = quirks.bulk else {
        return match tables.store_all(&context, rows) {
            Ok(count) => Json(json!({"success": true, "upserted": count})).into_response(),
            Err(refused) => refusal(quirks, path, &refused, &Value::Null),
        };
    };
    let mut errors = Vec::new();
    for row in rows {
        if let Err(refused) = tables.store(&context, row) {
            let mut error =
                json!({"error": refused.sql_words(quirks.table(path).0, &cleaned(quirks, path, row))});
            for column in state.entities[path].key.iter().filter(|_| names_keys) {
                error[column] = row[column].clone();
            }
            errors.push(error);
        }
    }
    let (skipped, upserted) = (errors.len(), rows.len() - errors.len());
    Json(json!({"success": true, "upserted": upserted, "skipped": skipped, "errors": errors})).into_response()
}

fn refusal(quirks: &Quirks, path: &str, refused: &Refused, row: &Value) -> Response {
    if matches!(refused, Refused::Exists) {
        let stack = "Error: Insert failed, duplicate id\n    at Function.insert (lodash-id/src/index.js)";
        return page_of(StatusCode::INTERNAL_SERVER_ERROR, stack.to_owned());
    }
    let words = refused.words();
    let sql_words = || refused.sql_words(quirks.table(path).0, &cleaned(quirks, path, row));
    let failure = || json!({"success": false, "error": sql_words()});
    let (status, body) = match quirks.refused {
        Refusal::Status4xx => (refused.status(), json!({"message": words})),
        Refusal::Fields400 => (400, json!({refused.column(): [words]})),
        Refusal::Error500 => (500, failure()),
        Refusal::SuccessFalse200 => (200, failure()),
        Refusal::Errors200 => (200, json!({"errors": {refused.column(): [words]}})),
    };
    (StatusCode::from_u16(status).unwrap(), Json(body)).into_response()
}

fn created(body: Value) -> Response {
    (StatusCode::CREATED, Json(body)).into_response()
}

fn page_of(status: StatusCode, page: String) -> Response {
    (status, [(header::CONTENT_TYPE, "text/html; charset=utf-8")], page).into_response()
}

fn no_route() -> Response {
    let body = json!({"message": "no such route"});
    (StatusCode::NOT_FOUND, Json(body)).into_response()
}

/// The key of a path's last part, as [`super::tables::key_of`] writes it.
fn key_from(part: &str) -> String {
    let values: Vec<String> = part.split(',').map(decode).collect();
    values.join(",")
}

fn decode(part: &str) -> String {
    percent_encoding::percent_decode_str(part)
        .decode_utf8()
        .unwrap()
        .into_owned()
}
