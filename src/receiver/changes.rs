//! `POST /changes`: reads a request, and answers after its transaction has been committed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName};
use tracing::{Instrument, debug_span};

use super::Shared;
use super::answer::{Answer, Refusal};
use super::apply::{self, Delivery, Outcome};
use super::auth::Site;
use super::lines::Reader;

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

/// A header that tells what the server took of the time that the client waits.
type ServerTiming = [(HeaderName, String); 1];

/// From the body at hand to the commit, in milliseconds. Source: <https://www.w3.org/TR/server-timing/>.
fn server_timing(took: Duration) -> ServerTiming {
    let value = format!("apply;dur={:.3}", took.as_secs_f64() * 1000.0);
    [(HeaderName::from_static("server-timing"), value)]
}

/// `POST /changes`.
pub(super) async fn receive(
    State(shared): State<Arc<Shared>>,
    Site(site): Site,
    request: Request,
) -> Answer<(ServerTiming, Json<Outcome>)> {
    shared.offers("changes")?;
    let (parts, body) = request.into_parts();
    let source = source_id(&parts.headers)?;
    let epoch = epoch(&parts.headers)?;
    // Read while they come: the rest of the body may wait for its turn at the other end.
    let mut reader = Reader::default();
    let body = shared
        .bounds
        .read_seen(&parts.headers, body, |come| reader.come(come))
        .await?;
    let begun = Instant::now();
    let lines = reader.end(&body.bytes)?;
    let delivery = Delivery {
        site: &site,
        source,
        epoch,
        lines: &lines,
    };
    let outcome = apply::apply(&shared, &delivery)
        .instrument(debug_span!("apply", changes = lines.len()))
        .await?;
    Ok((server_timing(begun.elapsed()), Json(outcome)))
}
