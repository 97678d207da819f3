//! `POST /bulk/{path}`: many rows of one entity in one request.
//!
//! A request that is refused as a whole, or in part without saying which rows, is halved until each row at
//! fault is alone. A row that is alone in a request goes by its own call if the answer counts it as not
//! taken: how servers count rows differs.

use bytes::{BufMut, Bytes, BytesMut};
use reqwest::Method;
use reqwest::header::CONTENT_TYPE;

use super::bulk_errors;
use super::failure::Failure;
use super::http::HttpAnswer;
use super::reply::BulkVerdict;
use super::row_requests::RequestOutcome;
use super::rows::{RowSender, refused_row};
use crate::batch::{ChangeIndex, Fate};
use crate::catalogue::EntityIndex;
use crate::wire::{Capability, JSON};

/// Sends the rows.
pub(super) async fn post(
    sender: &RowSender<'_>,
    operation: &str,
    entity: EntityIndex,
    rows: Vec<(ChangeIndex, Bytes)>,
) -> RequestOutcome {
    let (cloud, requests) = (sender.cloud, &sender.requests);
    let (http, sizer) = (&cloud.inner.http, &cloud.inner.sizer);
    let path = cloud.entity(entity).bulk_path();
    let mut fates = Vec::with_capacity(rows.len());
    let mut pieces = vec![rows.as_slice()];
    let mut first_refusal = None;
    while let Some(piece) = pieces.pop() {
        if piece.is_empty() {
            continue;
        }
        let body = records(piece);
        let request = || {
            http.request(Method::POST, &path)
                .header(CONTENT_TYPE, JSON)
                .body(body.clone())
        };
        let numbers: Vec<usize> = piece.iter().map(|(change_index, _)| change_index.0).collect();
        let answer = requests.attempt(operation, body.len(), &numbers, request).await;
        sizer.record(body.len(), &answer);
        // `None` for the words of a 2xx.
        let (status, words) = match answer {
            Ok(HttpAnswer::Accepted(reply)) => match reply.bulk_verdict(operation, piece.len()) {
                Ok(BulkVerdict::All) => {
                    cloud.record_bulk(entity, true);
                    let accepted = piece
                        .iter()
                        .map(|(change_index, _)| (*change_index, Fate::Accepted));
                    fates.extend(accepted);
                    continue;
                }
                Ok(BulkVerdict::NotAll { errors, left_out }) => {
                    cloud.record_bulk(entity, false);
                    let status = reply.status.as_u16();
                    let key = cloud.entity(entity).cloud_key();
                    if let Some(refused) = bulk_errors::refused(piece, &key, &errors, left_out) {
                        let row_fates = piece.iter().enumerate().map(|(at, (change_index, row))| {
                            let fate = match refused.get(&at) {
                                Some(words) => refused_row(status, &http.clean(words), row),
                                None => Fate::Accepted,
                            };
                            (*change_index, fate)
                        });
                        fates.extend(row_fates);
                        continue;
                    }
                    (status, None)
                }
                Err(failure) => {
                    requests.gate.record_failed(&numbers, &failure);
                    return (fates, Err(failure));
                }
            },
            Ok(HttpAnswer::Refused { status, .. }) if matches!(status, 404 | 405) => {
                let lost = Failure::capability(operation, Capability::Bulk, status);
                return (fates, Err(lost));
            }
            Ok(HttpAnswer::Refused { status, words, .. }) => {
                if status == 413 {
                    sizer.record_too_long(body.len());
                }
                (status, Some(words))
            }
            Err(failure) => return (fates, Err(failure)),
        };
        match (piece, words) {
            ([(change_index, row)], Some(words)) => {
                fates.push((*change_index, refused_row(status, &words, row)));
            }
            ([(change_index, row)], None) => {
                let (mut row_fates, end) = sender.post(operation, entity, *change_index, row.clone()).await;
                fates.append(&mut row_fates);
                match end {
                    // It says nothing about the other pieces.
                    Err(failure) if failure.is_from_application() => {
                        first_refusal.get_or_insert(failure);
                    }
                    Err(failure) => return (fates, Err(failure)),
                    Ok(()) => {}
                }
            }
            _ => {
                let (first, second) = piece.split_at(piece.len() / 2);
                pieces.push(second);
                pieces.push(first);
            }
        }
    }
    (fates, first_refusal.map_or(Ok(()), Err))
}

/// `{"records":[…]}`, the rows unparsed.
fn records(rows: &[(ChangeIndex, Bytes)]) -> Bytes {
    let bytes: usize = rows.iter().map(|(_, row)| row.len() + 1).sum();
    let mut body = BytesMut::with_capacity(bytes + 16);
    body.put_slice(b"{\"records\":[");
    for (at, (_, row)) in rows.iter().enumerate() {
        if at > 0 {
            body.put_u8(b',');
        }
        body.put_slice(row);
    }
    body.put_slice(b"]}");
    body.freeze()
}
