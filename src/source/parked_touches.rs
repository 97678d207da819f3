//! Entities that cannot be read or sent now: their touches are kept apart from the outbox, which flows on.

use tokio_postgres::Client;

use super::outbox::TouchOp;
use super::term::Fence;
use crate::error::{Error, Result};
use crate::sql_template::statement;

/// The reason of an entity that an operator has paused: see [`super::pauses`].
pub(crate) const PAUSED: &str = "it is paused";

/// A touch of a parked entity, with its key in one of the outbox's two forms; a truncate has neither.
pub(crate) struct KeptTouch {
    pub(crate) op: TouchOp,
    pub(crate) number: Option<i64>,
    pub(crate) key: Option<String>,
}

/// Keeps touches of an entity and notes why it is parked. In one transaction, while the term is this drain's.
///
/// # Errors
/// The source's.
pub(crate) async fn park(
    client: &Client,
    fence: &Fence,
    entity: i16,
    why: &str,
    touches: &[KeptTouch],
) -> Result<()> {
    let ops: Vec<i8> = touches.iter().map(|touch| touch.op.letter() as i8).collect();
    let numbers: Vec<Option<i64>> = touches.iter().map(|touch| touch.number).collect();
    let keys: Vec<Option<&str>> = touches.iter().map(|touch| touch.key.as_deref()).collect();
    client
        .execute(
            statement!("parking", "park"),
            &[&fence.term(), &entity, &why, &ops, &numbers, &keys],
        )
        .await
        .map_err(|error| Error::postgres("keep the touches of an entity that is parked", error))?;
    Ok(())
}

/// Touches the rows of a parked entity again, and notes that it is no longer parked.
///
/// # Errors
/// The source's.
pub(crate) async fn unpark(client: &Client, fence: &Fence, entity: i16) -> Result<()> {
    client
        .execute(statement!("parking", "unpark"), &[&fence.term(), &entity])
        .await
        .map_err(|error| Error::postgres("touch the rows of an entity that was parked", error))?;
    Ok(())
}

/// Why the entity `name`, whose number is `entity`, is parked; `None` if it is not.
///
/// # Errors
/// The source's.
pub(crate) async fn reason(client: &Client, name: &str, entity: i16) -> Result<Option<String>> {
    let row = client
        .query_one(statement!("parking", "reason"), &[&entity])
        .await
        .map_err(|error| Error::postgres(format!("see whether {name} is parked"), error))?;
    Ok(row.get(0))
}

/// Whether a touch of the row is kept, or one that does not tell its row. The key is in the outbox's two forms;
/// `is_composite` says whether it has several columns.
///
/// # Errors
/// The source's.
pub(crate) async fn keeps(
    client: &Client,
    entity: i16,
    (number, text): (Option<i64>, Option<&str>),
    is_composite: bool,
) -> Result<bool> {
    let row = client
        .query_one(
            statement!("parking", "keeps"),
            &[&entity, &number, &text, &is_composite],
        )
        .await
        .map_err(|error| Error::postgres("look for the row among kept touches", error))?;
    Ok(row.get(0))
}
