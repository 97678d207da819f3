//! The files that a server takes.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{FromRequest, Multipart};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::quirks::{Names, Uploads};
use super::{BaselineState, UploadedFile};
use crate::support::locked;

/// Takes the file of `POST upload/directory`.
pub(super) async fn answer(
    state: &BaselineState,
    uploads: &Uploads,
    directory: &str,
    raw: axum::extract::Request,
) -> Response {
    let Some((Some(file), fields)) = read(uploads, raw).await else {
        return required(uploads.field);
    };
    if let Some(missing) = uploads.requires.iter().find(|name| !fields.contains_key(**name)) {
        return required(missing);
    }
    let Part { name, kind, bytes } = file;
    if let Some(limit) = uploads.limit.filter(|limit| bytes.len() > *limit) {
        let words = format!("The file may not be greater than {} kilobytes.", limit >> 10);
        let body = json!({"success": false, "error": words});
        return (StatusCode::INTERNAL_SERVER_ERROR, Json(body)).into_response();
    }
    let mut files = locked(&state.files);
    let kept = match uploads.names {
        Names::AsSent => name.clone(),
        // A second for each file, so that a run's names do not depend on the clock.
        Names::WithTime => format!("{}_{name}", 1_764_000_000 + files.len()),
        Names::BaseName => name.rsplit('/').next().unwrap_or_default().to_owned(),
    };
    let stored = format!("{directory}/{kept}");
    let is_same =
        |file: &&UploadedFile| file.directory == directory && file.name == name && file.bytes == bytes;
    if files.iter().any(|file| is_same(&file)) {
        let waste = &mut locked(&state.tables).waste;
        waste.files_again += 1;
        waste.files_again_bytes += bytes.len() as u64;
    }
    if uploads.names == Names::BaseName {
        files.retain(|file| file.stored != stored);
    }
    let url = format!("https://cloud.example/storage/{stored}");
    let answer: Value = match uploads.names {
        Names::AsSent => json!({"success": true, "url": url, "path": stored}),
        Names::WithTime | Names::BaseName => {
            json!({"success": true, "url": url, "path": format!("/storage/{stored}"), "filename": kept})
        }
    };
    files.push(UploadedFile {
        directory: directory.to_owned(),
        name,
        kind,
        bytes,
        stored,
        fields,
    });
    Json(answer).into_response()
}

struct Part {
    name: String,
    kind: String,
    bytes: axum::body::Bytes,
}

/// The file, and the other fields. `None`: the body is no form.
async fn read(
    uploads: &Uploads,
    raw: axum::extract::Request,
) -> Option<(Option<Part>, BTreeMap<String, String>)> {
    let mut parts = Multipart::from_request(raw, &()).await.ok()?;
    let (mut file, mut fields) = (None, BTreeMap::new());
    while let Some(part) = parts.next_field().await.ok()? {
        let field = part.name().unwrap_or_default().to_owned();
        if field == uploads.field {
            file = Some(Part {
                name: part.file_name().unwrap_or_default().to_owned(),
                kind: part.content_type().unwrap_or_default().to_owned(),
                bytes: part.bytes().await.ok()?,
            });
        } else {
            fields.insert(field, part.text().await.ok()?);
        }
    }
    Some((file, fields))
}

fn required(field: &str) -> Response {
    let words = format!("The {field} field is required.");
    let body = json!({"message": words, "errors": {field: [words]}});
    (StatusCode::UNPROCESSABLE_ENTITY, Json(body)).into_response()
}
