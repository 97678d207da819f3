//! The calls at `/files` and `/files/{id}`.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{options, patch, post};
use jiff::fmt::rfc2822::DateTimePrinter;

use super::finish::finish;
use super::receive::{IncomingPart, Taken, append, on_disk, take};
use super::record::UploadRecord;
use super::request::{NewUpload, PartChecksum, has_part, offset};
use crate::receiver::Shared;
use crate::receiver::files::group_commit::storage_error;
use crate::receiver::files::upload::{public_address, stored_with};
use crate::receiver::http::api_error::{ApiError, ApiResult};
use crate::receiver::http::auth::AuthenticatedSite;
use crate::wire::{Capability, paths, tus};

/// The routes of resumable uploads.
pub(crate) fn routes() -> Router<Arc<Shared>> {
    let all = || post(create).options(describe);
    let one = patch(append_part)
        .head(show)
        .delete(terminate)
        .post(overridden)
        .merge(options(describe));
    Router::new()
        .route(&format!("/{}", paths::FILES), all())
        .route(&format!("/{}/", paths::FILES), all())
        .route(&format!("/{}/{{id}}", paths::FILES), one)
        .layer(from_fn(speak))
}

/// Refuses a request of another version of the protocol, and puts ours in the answer.
async fn speak(request: Request, next: Next) -> Response {
    let version = request.headers().get(tus::TUS_RESUMABLE);
    let speaks = version.is_some_and(|version| version.as_bytes() == tus::VERSION.as_bytes());
    let mut response = if speaks || request.method() == Method::OPTIONS {
        next.run(request).await
    } else {
        let refusal = ApiError::new(
            StatusCode::PRECONDITION_FAILED,
            format!("the header Tus-Resumable is not {}", tus::VERSION),
        );
        let mut response = refusal.into_response();
        set(&mut response, tus::TUS_VERSION, tus::VERSION);
        response
    };
    set(&mut response, tus::TUS_RESUMABLE, tus::VERSION);
    response
}

/// `OPTIONS`: what the server can do.
async fn describe(
    State(shared): State<Arc<Shared>>,
    AuthenticatedSite(..): AuthenticatedSite,
) -> ApiResult<Response> {
    shared.offers(Capability::Tus)?;
    let mut response = StatusCode::NO_CONTENT.into_response();
    set(&mut response, tus::TUS_VERSION, tus::VERSION);
    set(&mut response, tus::TUS_EXTENSION, tus::EXTENSIONS);
    set(
        &mut response,
        tus::TUS_CHECKSUM_ALGORITHM,
        tus::CHECKSUM_ALGORITHMS,
    );
    set(&mut response, tus::TUS_MAX_SIZE, &shared.upload_limit.to_string());
    Ok(response)
}

/// `POST /files`: begins an upload, with its first part if the body is one.
async fn create(
    State(shared): State<Arc<Shared>>,
    AuthenticatedSite(site, _): AuthenticatedSite,
    request: Request,
) -> ApiResult<Response> {
    shared.offers(Capability::Tus)?;
    let (head, body) = request.into_parts();
    let new = NewUpload::read(&head.headers, shared.upload_limit)?;
    let checksum = PartChecksum::read(&head.headers)?;
    let known = match &new.announced_hash {
        None => None,
        Some(hash) => {
            let found = stored_with(&shared, &site, &new.directory, hash).await?;
            let found = found.filter(|(_, size)| *size == new.length);
            found.map(|(stored, _)| (stored, hash.clone()))
        }
    };
    let known = known
        .as_ref()
        .map(|(stored, hash)| (stored.as_str(), hash.as_str()));
    let mut record = UploadRecord::insert(&shared, &site, &new, known).await?;
    let has_part = has_part(&head.headers);
    if record.stored.is_none() && (has_part || record.length == 0) {
        let part = IncomingPart {
            site,
            id: record.id.clone(),
            offset: 0,
            checksum: checksum.filter(|_| has_part),
            announced: announced(&head.headers).filter(|_| has_part),
            body: if has_part { body } else { Body::empty() },
        };
        match append(Arc::clone(&shared), part).await {
            Ok(appended) => record = appended,
            Err(refusal) => {
                // Its address was never told, so nobody can continue it.
                discard(&shared, &record).await;
                return Err(refusal);
            }
        }
    }
    let mut response = StatusCode::CREATED.into_response();
    // Relative to the request's address: it holds behind any proxy.
    let location = if head.uri.path().ends_with('/') {
        record.id.clone()
    } else {
        format!("{}/{}", paths::FILES, record.id)
    };
    set(&mut response, header::LOCATION.as_str(), &location);
    set_state(&mut response, &shared, &record, record.received);
    Ok(response)
}

async fn discard(shared: &Shared, record: &UploadRecord) {
    if let Ok(Taken::Unfinished(_, record, partial)) = take(shared, &record.site, &record.id).await
        && record.delete(&shared.pool).await.is_ok()
    {
        // The sweep removes it otherwise.
        let _ = partial.remove();
    }
}

/// `PATCH /files/{id}`: a part.
async fn append_part(
    State(shared): State<Arc<Shared>>,
    AuthenticatedSite(site, _): AuthenticatedSite,
    Path(id): Path<String>,
    request: Request,
) -> ApiResult<Response> {
    shared.offers(Capability::Tus)?;
    let (head, body) = request.into_parts();
    if !has_part(&head.headers) {
        return Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            format!("the body is not {}", tus::PART_TYPE),
        ));
    }
    let part = IncomingPart {
        site,
        id,
        offset: offset(&head.headers)?,
        checksum: PartChecksum::read(&head.headers)?,
        announced: announced(&head.headers),
        body,
    };
    let record = append(Arc::clone(&shared), part).await?;
    let mut response = StatusCode::NO_CONTENT.into_response();
    set_state(&mut response, &shared, &record, record.received);
    Ok(response)
}

/// `HEAD /files/{id}`: how much of it is there, to continue there. A whole file that was not stored yet is
/// stored.
async fn show(
    State(shared): State<Arc<Shared>>,
    AuthenticatedSite(site, _): AuthenticatedSite,
    Path(id): Path<String>,
) -> ApiResult<Response> {
    shared.offers(Capability::Tus)?;
    let mut record = UploadRecord::find(&shared.pool, &site, &id).await?;
    if record.stored.is_none() {
        shared.active_uploads.interrupt(&id).await;
        record = UploadRecord::find(&shared.pool, &site, &id).await?;
    }
    if record.stored.is_none() && record.is_whole() {
        record = finish_whole(&shared, record).await?;
    }
    let has = match &record.stored {
        Some(_) => record.length,
        None => {
            let file = tokio::fs::metadata(record.path(&shared)).await;
            record.received.min(file.map_or(0, |file| file.len()))
        }
    };
    let mut response = StatusCode::OK.into_response();
    set(&mut response, tus::UPLOAD_LENGTH, &record.length.to_string());
    if let Some(metadata) = &record.metadata {
        set(&mut response, tus::UPLOAD_METADATA, metadata);
    }
    set(&mut response, header::CACHE_CONTROL.as_str(), "no-store");
    set_state(&mut response, &shared, &record, has);
    Ok(response)
}

/// Stores a file that is whole, unless another request is just doing so.
async fn finish_whole(shared: &Arc<Shared>, record: UploadRecord) -> ApiResult<UploadRecord> {
    let shared = Arc::clone(shared);
    let finished = tokio::spawn(async move {
        let (_guard, mut record, partial) = match take(&shared, &record.site, &record.id).await {
            Ok(Taken::Complete(record)) => return Ok(record),
            Ok(Taken::Unfinished(guard, record, partial)) => (guard, record, partial),
            Err(_) => return UploadRecord::find(&shared.pool, &record.site, &record.id).await,
        };
        let (partial, has) = on_disk(partial, record.received).await?;
        if has == record.length {
            finish(&shared, &mut record, partial, None).await?;
        }
        Ok(record)
    });
    finished
        .await
        .map_err(|error| ApiError::fault("store a file", error))?
}

/// `DELETE /files/{id}`: ends an upload. A complete file stays: rows may name it.
async fn terminate(
    State(shared): State<Arc<Shared>>,
    AuthenticatedSite(site, _): AuthenticatedSite,
    Path(id): Path<String>,
) -> ApiResult<Response> {
    shared.offers(Capability::Tus)?;
    UploadRecord::find(&shared.pool, &site, &id).await?;
    shared.active_uploads.interrupt(&id).await;
    match take(&shared, &site, &id).await? {
        Taken::Complete(record) => record.delete(&shared.pool).await?,
        Taken::Unfinished(_guard, record, partial) => {
            record.delete(&shared.pool).await?;
            partial.remove().map_err(storage_error)?;
        }
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `POST /files/{id}` with the method that is meant, for clients that can send no other.
async fn overridden(
    state: State<Arc<Shared>>,
    site: AuthenticatedSite,
    id: Path<String>,
    request: Request,
) -> ApiResult<Response> {
    match request
        .headers()
        .get(tus::METHOD_OVERRIDE)
        .map(HeaderValue::as_bytes)
    {
        Some(b"PATCH") => append_part(state, site, id, request).await,
        Some(b"DELETE") => terminate(state, site, id).await,
        Some(b"HEAD") => show(state, site, id).await,
        _ => Err(ApiError::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "this method is not for this path",
        )),
    }
}

/// The length of the body, if the headers say it.
fn announced(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The headers about an upload: how much is there; when it expires, or where its file is.
fn set_state(response: &mut Response, shared: &Shared, record: &UploadRecord, has: u64) {
    set(response, tus::UPLOAD_OFFSET, &has.to_string());
    match &record.stored {
        Some((stored, hash)) => {
            let UploadRecord { site, directory, .. } = record;
            let url = public_address(shared, site, directory, stored);
            set(response, tus::CONTENT_LOCATION, &url);
            set(response, tus::UPLOAD_PATH, &format!("{directory}/{stored}"));
            set(response, tus::UPLOAD_HASH, hash);
        }
        None => {
            if let Ok(at) = DateTimePrinter::new().timestamp_to_rfc9110_string(&record.expires_at) {
                set(response, tus::UPLOAD_EXPIRES, &at);
            }
        }
    }
}

/// Sets a header, unless its value cannot be one.
fn set(response: &mut Response, name: &str, value: &str) {
    if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
        response.headers_mut().insert(name, value);
    }
}
