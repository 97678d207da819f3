//! `GET /media/{site}/{directory}/{name}`: an uploaded file, by the URL that its upload returned.
//!
//! A row carries the URL to whoever shows the file, so no key is needed; the URL holds 64 bits of the
//! content's hash, and holds for a time only where the receiver is set up so ([`super::signed_url`]). Always
//! holds: nothing is listed, and only names that an upload can have made are looked up.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use tower::ServiceExt;
use tower_http::services::ServeFile;

use super::signed_url::SignedQuery;
use crate::receiver::Shared;
use crate::receiver::http::api_error::{ApiError, ApiResult};

/// Types that a browser may show in place. Everything else is downloaded: an uploaded page must not run here.
const SHOWN: &[(&str, &str)] = &[
    ("jpg", "image/jpeg"),
    ("jpeg", "image/jpeg"),
    ("png", "image/png"),
    ("gif", "image/gif"),
    ("webp", "image/webp"),
    ("avif", "image/avif"),
    ("bmp", "image/bmp"),
    ("mp4", "video/mp4"),
    ("m4v", "video/mp4"),
    ("webm", "video/webm"),
    ("mov", "video/quicktime"),
    ("mkv", "video/x-matroska"),
    ("avi", "video/x-msvideo"),
    ("mp3", "audio/mpeg"),
    ("wav", "audio/wav"),
    ("ogg", "audio/ogg"),
    ("pdf", "application/pdf"),
    ("txt", "text/plain; charset=utf-8"),
];

/// Whether a name is one safe segment of a path: letters, digits, `_` and `-`, 60 at most.
pub(crate) fn is_plain_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 60
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

/// Whether an upload can have made a name: 16 hex digits, a dash, and a safe name.
fn is_stored_name(name: &str) -> bool {
    let Some((hash, rest)) = name.split_at_checked(16) else {
        return false;
    };
    hash.bytes().all(|byte| byte.is_ascii_hexdigit())
        && rest.len() > 1
        && rest.len() <= 120
        && rest.starts_with('-')
        && rest
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

/// `GET` and `HEAD`, ranges included.
pub(crate) async fn serve(
    State(shared): State<Arc<Shared>>,
    Path((site, directory, name)): Path<(String, String, String)>,
    query: Result<Query<SignedQuery>, QueryRejection>,
    request: Request,
) -> ApiResult<Response> {
    let no_file = || ApiError::new(StatusCode::NOT_FOUND, "there is no such file");
    if let Some(signer) = &shared.url_signer {
        let path = format!("{site}/{directory}/{name}");
        let holds = query.is_ok_and(|Query(query)| signer.holds(&path, &query, Timestamp::now()));
        if !holds {
            return Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "this URL has ended or is not signed; the row has a newer one",
            ));
        }
    }
    if !is_plain_name(&site) || !is_plain_name(&directory) || !is_stored_name(&name) {
        return Err(no_file());
    }
    let path = shared.files.join(site).join(directory).join(&name);
    // A link anywhere below the root, which is itself free of links, makes the two differ.
    let real = tokio::fs::canonicalize(&path).await.map_err(|_| no_file())?;
    let regular = tokio::fs::metadata(&real).await.is_ok_and(|file| file.is_file());
    if real != path || !regular {
        return Err(no_file());
    }
    let response = ServeFile::new(&real)
        .oneshot(request)
        .await
        .map_err(|error| ApiError::fault("serve a file", error))?;
    let mut response = response.map(Body::new).into_response();
    if response.status() == StatusCode::NOT_FOUND {
        return Err(no_file());
    }
    let extension = name.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
    let shown = SHOWN
        .iter()
        .find(|(known, _)| *known == extension)
        .map(|(_, mime)| *mime);
    let headers = response.headers_mut();
    let mut set = |name: HeaderName, value: &'static str| {
        headers.insert(name, HeaderValue::from_static(value));
    };
    set(header::CONTENT_TYPE, shown.unwrap_or("application/octet-stream"));
    set(
        header::CONTENT_DISPOSITION,
        if shown.is_some() { "inline" } else { "attachment" },
    );
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; img-src 'self'; media-src 'self'; sandbox",
    );
    set(
        header::CACHE_CONTROL,
        match shared.url_signer {
            None => "private, max-age=31536000, immutable",
            // Its URL may end sooner.
            Some(_) => "private, no-cache",
        },
    );
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_uploads_are_looked_up() {
        assert!(is_stored_name("0123456789abcdef-slip.jpg"));
        for name in [
            "",
            "slip.jpg",
            "0123456789abcdef",
            "0123456789abcdef-",
            "0123456789abcdef-../x",
            "0123456789abcdef-a/b",
            "0123456789abcdeñ-a",
        ] {
            assert!(!is_stored_name(name), "{name}");
        }
        assert!(is_plain_name("leave_slips"));
        assert!(!is_plain_name("..") && !is_plain_name("a/b") && !is_plain_name(""));
    }
}
