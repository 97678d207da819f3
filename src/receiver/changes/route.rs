//! `POST /changes`: reads a request, and answers after its transaction has been committed.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, header};
use tracing::{Instrument, debug_span};

use crate::receiver::Shared;
use crate::receiver::changes::apply::{self, BatchToApply};
use crate::receiver::http::api_error::ApiResult;
use crate::receiver::http::auth::AuthenticatedSite;
use crate::wire::server_timing::{SERVER_TIMING, write_applied};
use crate::wire::{BatchHeaders, Capability, ChangeLineReader, JSON};

/// A header that tells what the server took of the time that the client waits.
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
    // Read while they come: the rest of the body may wait for its turn at the other end.
    let mut reader = ChangeLineReader::default();
    let body = shared
        .bounds
        .of(&share)
        .read_seen(&parts.headers, body, |come| reader.read_more(come))
        .await?;
    let begun = Instant::now();
    let lines = reader.finish(&body.bytes)?;
    let delivery = BatchToApply {
        site: &site,
        headers: &headers,
        body_hash: *blake3::hash(&body.bytes).as_bytes(),
        lines: &lines,
    };
    let answer = apply::apply(&shared, &delivery)
        .instrument(debug_span!("apply", changes = lines.len()))
        .await?;
    let json = [(header::CONTENT_TYPE, HeaderValue::from_static(JSON))];
    let timing = write_applied(begun.elapsed());
    Ok(([(HeaderName::from_static(SERVER_TIMING), timing)], json, answer))
}
