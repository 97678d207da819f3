//! `POST /changes`: reads a request, and answers after its transaction has been committed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, header};
use tracing::{Instrument, debug_span};

use crate::receiver::Shared;
use crate::receiver::changes::apply;
use crate::receiver::changes::batch::BatchToApply;
use crate::receiver::changes::ndjson::ChangeLineReader;
use crate::receiver::changes::turn::BatchHeaders;
use crate::receiver::http::api_error::ApiResult;
use crate::receiver::http::auth::AuthenticatedSite;

/// A header that says how much of the client's waiting time the server took.
type ServerTimingHeader = [(HeaderName, String); 1];

/// An answer is stored and sent as text.
type AnswerContentType = [(HeaderName, HeaderValue); 1];

/// From the body at hand to the commit, in milliseconds. Source: <https://www.w3.org/TR/server-timing/>.
fn server_timing(took: Duration) -> ServerTimingHeader {
    let value = format!("apply;dur={:.3}", took.as_secs_f64() * 1000.0);
    [(HeaderName::from_static("server-timing"), value)]
}

/// `POST /changes`.
pub(crate) async fn receive(
    State(shared): State<Arc<Shared>>,
    AuthenticatedSite(site, share): AuthenticatedSite,
    request: Request,
) -> ApiResult<(ServerTimingHeader, AnswerContentType, String)> {
    shared.offers("changes")?;
    let (parts, body) = request.into_parts();
    let headers = BatchHeaders::read(&parts.headers)?;
    // The lines are read while they arrive: the client may hold the last byte back until the batch's turn.
    let mut reader = ChangeLineReader::default();
    let body = shared
        .memory
        .of(&share)
        .read_seen(&parts.headers, body, |arrived| reader.come(arrived))
        .await?;
    let begun = Instant::now();
    let lines = reader.end(&body.bytes)?;
    let batch = BatchToApply {
        site: &site,
        headers: &headers,
        body_hash: *blake3::hash(&body.bytes).as_bytes(),
        lines: &lines,
    };
    let answer = apply::apply_batch(&shared, &batch)
        .instrument(debug_span!("apply", changes = lines.len()))
        .await?;
    let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    Ok((server_timing(begun.elapsed()), json, answer))
}
