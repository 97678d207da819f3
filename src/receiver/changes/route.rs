//! `POST /changes`: reads a request, and answers after its transaction has been committed.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, header};
use tracing::{Instrument, debug_span};

use crate::receiver::Shared;
use crate::receiver::changes::apply;
use crate::receiver::changes::batch::BatchToApply;
use crate::receiver::http::api_error::ApiResult;
use crate::receiver::http::auth::AuthenticatedSite;
use crate::wire::server_timing::{SERVER_TIMING, write_applied};
use crate::wire::{BatchHeaders, Capability, ChangeLineReader, JSON};

/// A header that says how much of the client's waiting time the server took.
type ServerTimingHeader = [(HeaderName, String); 1];

/// An answer is stored and sent as text.
type AnswerContentType = [(HeaderName, HeaderValue); 1];

/// `POST /changes`.
pub(crate) async fn receive(
    State(shared): State<Arc<Shared>>,
    AuthenticatedSite(site, share): AuthenticatedSite,
    request: Request,
) -> ApiResult<(ServerTimingHeader, AnswerContentType, String)> {
    shared.offers(Capability::Changes)?;
    let (parts, body) = request.into_parts();
    let headers = BatchHeaders::read(&parts.headers)?;
    // The lines are read while they arrive: the client may hold the last byte back until the batch's turn.
    let mut reader = ChangeLineReader::default();
    let body = shared
        .memory
        .of(&share)
        .read_seen(&parts.headers, body, |arrived| reader.read_more(arrived))
        .await?;
    let begun = Instant::now();
    let lines = reader.finish(&body.bytes)?;
    let batch = BatchToApply {
        site: &site,
        headers: &headers,
        body_hash: *blake3::hash(&body.bytes).as_bytes(),
        lines: &lines,
    };
    let answer = apply::apply_batch(&shared, &batch)
        .instrument(debug_span!("apply", changes = lines.len()))
        .await?;
    let json = [(header::CONTENT_TYPE, HeaderValue::from_static(JSON))];
    let timing = write_applied(begun.elapsed());
    Ok(([(HeaderName::from_static(SERVER_TIMING), timing)], json, answer))
}
