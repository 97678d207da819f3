//! Which batch of a source may be applied next.
//!
//! The receiver keeps the last batches of each source. A batch is applied if it follows the newest one, and a
//! repeat of one that is kept gets the answer that it had. A batch that arrives a little too early waits for
//! those before it, as a source may send several batches without waiting for their answers. Everything else
//! is refused, and changes nothing.
//!
//! Always holds: the decision is made under the site's lock, in the transaction that applies the rows and
//! records the batch; so a batch is applied once, however often and over however many connections it arrives.

use axum::http::StatusCode;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Row, Statement};

use crate::receiver::db::apply_session::{ApplySession, Params};
use crate::receiver::db::db_error::DbError;
use crate::receiver::http::api_error::ApiError;
use crate::wire::limits::MAX_IN_FLIGHT;
use crate::wire::{BatchHeaders, BatchId, ErrorCode, TurnCode};

const TURN: &str = include_str!("../../../sql/receiver/turn.sql");
const TAKE: &str = include_str!("../../../sql/receiver/take.sql");

/// The newest batch of a source.
#[derive(Debug, Clone)]
pub(crate) struct NewestBatch {
    epoch: i64,
    term: i64,
    nonce: String,
    batch: i64,
}

/// A batch that was applied: the hash of its body, and its answer.
type TakenBatch = (Vec<u8>, String);

/// What becomes of a batch.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TurnDecision {
    /// It is applied.
    Take,
    /// It was applied before, with this answer.
    Repeat(String),
    /// It is not applied yet: the batches before it are on their way.
    Early,
    /// It is not applied.
    Refuse(TurnCode),
}

/// Decides what becomes of a batch with these headers and this hash of its body, if `taken` was applied under
/// its number.
fn decide(
    headers: &BatchHeaders<'_>,
    body_hash: &[u8],
    newest: Option<&NewestBatch>,
    taken: Option<TakenBatch>,
) -> TurnDecision {
    let first = if headers.batch == 1 {
        TurnDecision::Take
    } else {
        TurnDecision::Refuse(TurnCode::OutOfTurn)
    };
    let Some(newest) = newest else {
        return first;
    };
    if headers.epoch != newest.epoch {
        return if headers.epoch < newest.epoch {
            TurnDecision::Refuse(TurnCode::StaleEpoch)
        } else {
            first
        };
    }
    if headers.term < newest.term {
        return TurnDecision::Refuse(TurnCode::StaleTerm);
    }
    if headers.term > newest.term {
        return if headers.previous_nonce == Some(newest.nonce.as_str()) {
            first
        } else {
            TurnDecision::Refuse(TurnCode::UnknownTerm)
        };
    }
    if headers.nonce != newest.nonce {
        return TurnDecision::Refuse(TurnCode::UnknownTerm);
    }
    if headers.batch > newest.batch {
        return match headers.batch - newest.batch {
            1 => TurnDecision::Take,
            2..=MAX_IN_FLIGHT => TurnDecision::Early,
            _ => TurnDecision::Refuse(TurnCode::OutOfTurn),
        };
    }
    match taken {
        Some((hash, answer)) if hash == body_hash => TurnDecision::Repeat(answer),
        Some(_) => TurnDecision::Refuse(TurnCode::DifferentBatch),
        None => TurnDecision::Refuse(TurnCode::OutOfTurn),
    }
}

/// Whether a batch is applied now.
pub(crate) enum Turn {
    /// It is.
    Now,
    /// It was applied before, with this answer.
    Repeated(String),
    /// Not now: the batches before it may be on their way. With its 409.
    Early(ApiError),
    /// Never. With its 409.
    Refused(ApiError),
}

/// The statement that asks for a source's newest batch.
pub(crate) async fn question(session: &mut ApplySession) -> Result<Statement, DbError> {
    let types = [
        Type::TEXT,
        Type::TEXT,
        Type::INT8,
        Type::INT8,
        Type::INT8,
        Type::INT8,
    ];
    session.statement(TURN, &types).await
}

/// Asks for the source's newest batch. The site's lock must be held.
pub(crate) async fn ask(
    client: &Client,
    question: &Statement,
    site: &str,
    headers: &BatchHeaders<'_>,
) -> Result<Option<Row>, tokio_postgres::Error> {
    client
        .query_opt(
            question,
            &[
                &site,
                &headers.source,
                &headers.epoch,
                &headers.term,
                &headers.batch,
                &MAX_IN_FLIGHT,
            ],
        )
        .await
}

/// Decides by the answer to [`ask`] whether it is the batch's turn.
pub(crate) fn turn_of(
    headers: &BatchHeaders<'_>,
    body_hash: &[u8],
    asked: Option<&Row>,
) -> Result<Turn, DbError> {
    let (mut newest, mut taken) = (None, None);
    if let Some(row) = asked {
        newest = Some(NewestBatch {
            epoch: row.try_get("epoch")?,
            term: row.try_get("term")?,
            nonce: row.try_get("nonce")?,
            batch: row.try_get("batch")?,
        });
        taken = Option::zip(row.try_get("body_hash")?, row.try_get("answer")?);
    }
    let newest = newest.as_ref();
    Ok(match decide(headers, body_hash, newest, taken) {
        TurnDecision::Take => Turn::Now,
        TurnDecision::Repeat(answer) => Turn::Repeated(answer),
        TurnDecision::Early => Turn::Early(refusal(TurnCode::OutOfTurn, headers, newest)),
        TurnDecision::Refuse(code) => Turn::Refused(refusal(code, headers, newest)),
    })
}

/// Records a batch as its source's newest, with its answer, and commits.
pub(crate) async fn record_and_commit(
    session: &mut ApplySession,
    site: &str,
    headers: &BatchHeaders<'_>,
    body_hash: &[u8],
    answer: &str,
) -> Result<(), DbError> {
    let types = [
        Type::TEXT,
        Type::TEXT,
        Type::INT8,
        Type::INT8,
        Type::TEXT,
        Type::INT8,
        Type::TEXT,
        Type::INT2,
        Type::BYTEA,
        Type::TEXT,
    ];
    let statement = session.statement(TAKE, &types).await?;
    let client = session.client();
    let slot = (headers.batch % MAX_IN_FLIGHT) as i16;
    let params: Params<'_> = vec![
        &site,
        &headers.source,
        &headers.epoch,
        &headers.term,
        &headers.nonce,
        &headers.batch,
        &headers.database,
        &slot,
        &body_hash,
        &answer,
    ];
    let (recorded, committed) = tokio::join!(
        client.execute(&statement, &params),
        client.batch_execute("commit")
    );
    recorded?;
    committed?;
    Ok(())
}

fn refusal(code: TurnCode, headers: &BatchHeaders<'_>, newest: Option<&NewestBatch>) -> ApiError {
    let batch = format!(
        "batch {} of term {} of epoch {}",
        headers.batch, headers.term, headers.epoch
    );
    let error = match (code, newest) {
        (TurnCode::OutOfTurn, Some(newest))
            if (headers.epoch, headers.term) == (newest.epoch, newest.term) =>
        {
            format!(
                "{batch} is not the next one: the newest is batch {}",
                newest.batch
            )
        }
        (TurnCode::OutOfTurn, _) => format!("{batch} is not the first one of its term"),
        (TurnCode::StaleEpoch, _) => format!("{batch} comes too late: the source has a newer epoch"),
        (TurnCode::StaleTerm, _) => format!("{batch} comes too late: the source has a newer term"),
        (TurnCode::UnknownTerm, _) => format!(
            "{batch} does not follow the source's newest term: another program, perhaps on a copy of the \
             machine, sends as the same source"
        ),
        (TurnCode::DifferentBatch, _) => format!("{batch} was taken before, with another body"),
    };
    let state = newest.map(|newest| BatchId {
        batch: newest.batch,
        epoch: newest.epoch,
        term: newest.term,
    });
    ApiError::new(StatusCode::CONFLICT, error)
        .with_code(ErrorCode::Turn(code))
        .with_source_state(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(epoch: i64, term: i64, batch: i64, nonce: &'static str) -> BatchHeaders<'static> {
        BatchHeaders {
            source: "s",
            epoch,
            term,
            batch,
            nonce,
            previous_nonce: None,
            database: None,
        }
    }

    #[test]
    fn only_the_next_batch_is_taken() {
        let newest = NewestBatch {
            epoch: 5,
            term: 3,
            nonce: "n3".to_owned(),
            batch: 7,
        };
        let taken = |number| (6..=7).contains(&number).then(|| (vec![1], "answer".to_owned()));
        let after = |previous_nonce, headers| BatchHeaders {
            previous_nonce,
            ..headers
        };
        let refuse = TurnDecision::Refuse;
        for (headers, expected) in [
            (batch(4, 9, 1, "n9"), refuse(TurnCode::StaleEpoch)),
            (batch(6, 1, 1, "x"), TurnDecision::Take),
            (batch(6, 1, 2, "x"), refuse(TurnCode::OutOfTurn)),
            (batch(5, 2, 8, "n2"), refuse(TurnCode::StaleTerm)),
            (after(Some("n3"), batch(5, 4, 1, "n4")), TurnDecision::Take),
            (after(Some("n3"), batch(5, 9, 1, "n9")), TurnDecision::Take),
            (
                after(Some("n3"), batch(5, 4, 2, "n4")),
                refuse(TurnCode::OutOfTurn),
            ),
            (
                after(Some("n2"), batch(5, 4, 1, "n4")),
                refuse(TurnCode::UnknownTerm),
            ),
            (batch(5, 4, 1, "n3"), refuse(TurnCode::UnknownTerm)),
            (batch(5, 3, 8, "n3"), TurnDecision::Take),
            (batch(5, 3, 8, "other"), refuse(TurnCode::UnknownTerm)),
            (batch(5, 3, 7, "n3"), TurnDecision::Repeat("answer".to_owned())),
            (batch(5, 3, 6, "n3"), TurnDecision::Repeat("answer".to_owned())),
            (batch(5, 3, 5, "n3"), refuse(TurnCode::OutOfTurn)),
            (batch(5, 3, 9, "n3"), TurnDecision::Early),
            (batch(5, 3, 15, "n3"), TurnDecision::Early),
            (batch(5, 3, 16, "n3"), refuse(TurnCode::OutOfTurn)),
        ] {
            let decided = decide(&headers, &[1], Some(&newest), taken(headers.batch));
            assert_eq!(decided, expected, "{headers:?}");
        }
        let different = decide(&batch(5, 3, 7, "n3"), &[2], Some(&newest), taken(7));
        assert_eq!(different, refuse(TurnCode::DifferentBatch));
        assert_eq!(decide(&batch(1, 4, 1, "n"), &[1], None, None), TurnDecision::Take);
        assert_eq!(
            decide(&batch(1, 1, 2, "n"), &[1], None, None),
            refuse(TurnCode::OutOfTurn)
        );
    }
}
