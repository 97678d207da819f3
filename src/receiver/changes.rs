//! `POST /changes`: reads a request, and answers after its transaction has been committed.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::HeaderMap;

use super::Shared;
use super::answer::{Answer, Refusal};
use super::apply::{self, Delivery, Outcome};
use super::auth::Site;
use super::lines::{lines, text};

fn source_id(headers: &HeaderMap) -> Answer<&str> {
    headers
        .get("x-source-id")
        .and_then(|value| value.to_str().ok())
        .map(str::trim)
        .filter(|id| !id.is_empty() && id.len() <= 200)
        .ok_or_else(|| Refusal::malformed("the header X-Source-Id is missing or not valid"))
}

fn epoch(headers: &HeaderMap) -> Answer<i64> {
    headers
        .get("x-epoch")
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.trim().parse().ok())
        .filter(|epoch| *epoch >= 1)
        .ok_or_else(|| Refusal::malformed("the header X-Epoch is missing or not a number from 1"))
}

/// `POST /changes`.
pub(super) async fn receive(
    State(shared): State<Arc<Shared>>,
    Site(site): Site,
    request: Request,
) -> Answer<Json<Outcome>> {
    shared.offers("changes")?;
    let (parts, body) = request.into_parts();
    let source = source_id(&parts.headers)?;
    let epoch = epoch(&parts.headers)?;
    let body = shared.bounds.read(&parts.headers, body).await?;
    let lines = lines(text(&body.bytes)?)?;
    let delivery = Delivery {
        site: &site,
        source,
        epoch,
        lines: &lines,
    };
    Ok(Json(apply::apply(&shared, &delivery).await?))
}
