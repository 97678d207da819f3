//! The term: one drain's time in office, and the fence that guards what a drain writes to the site's
//! database.
//!
//! A drain begins a term before it sends its first batch, by raising a number in the site's database. Each
//! write of a drain names its term and holds a lock on that row: once another drain has begun a term, this
//! one cannot write any more. Each term has a random nonce. The cloud accepts a new term only from a drain
//! that knows the nonce of the present one, so that a copy of the machine cannot take the site over.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use rand::RngExt;
use tokio_postgres::Client;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Kind, Result};
use crate::sql_template::statement;

/// The term that this drain's writes are fenced by. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Fence(Arc<AtomicI64>);

impl Fence {
    /// The term's number; 0 before the first one of an outbox.
    pub fn term(&self) -> i64 {
        self.0.load(Ordering::Acquire)
    }

    fn set(&self, term: i64) {
        self.0.store(term, Ordering::Release);
    }
}

/// The term when a drain opens.
#[derive(Debug, Clone)]
pub struct TermAtOpen {
    /// The fence of the drain that opens, with the present term.
    pub fence: Fence,
    /// Whether the drain before it ended in order: then none of its requests can still arrive.
    pub ended: bool,
}

/// Reads the present term.
///
/// # Errors
/// The source's.
pub async fn term_at_open(client: &Client) -> Result<TermAtOpen> {
    let row = client
        .query_one(statement!("term", "at_open"), &[])
        .await
        .map_err(|error| Error::postgres("read who drains the outbox", error))?;
    let fence = Fence::default();
    fence.set(row.get(0));
    Ok(TermAtOpen {
        fence,
        ended: row.get(1),
    })
}

/// Begins a term above `above` and the fence's own, with a new nonce. In one transaction the checkpoint,
/// which gets both, becomes the mirror, and the outbox's epoch that of its identity: whoever resumes from now
/// on begins there.
///
/// # Errors
/// The source's; [`Kind::SourceUnreachable`] if another drain has begun a term since.
pub async fn begin(client: &Client, fence: &Fence, above: i64, checkpoint: &mut Checkpoint) -> Result<()> {
    let mine = fence.term();
    let term = mine.max(above) + 1;
    let nonce = format!("{:032x}", rand::rng().random::<u128>());
    checkpoint.begin_term(term, nonce.clone());
    let body = checkpoint.to_json()?;
    let row = client
        .query_one(
            statement!("term", "begin"),
            &[
                &mine,
                &term,
                &nonce,
                &checkpoint.identity.epoch.0,
                &checkpoint.identity.source_id,
                &(checkpoint.serial as i64),
                &body,
            ],
        )
        .await
        .map_err(|error| Error::postgres("begin a term", error))?;
    if row.get::<_, i64>(0) == 0 {
        return Err(taken_over());
    }
    fence.set(term);
    Ok(())
}

/// The nonce of a term; `None` if this database does not know it.
///
/// # Errors
/// The source's.
pub async fn nonce(client: &Client, term: i64) -> Result<Option<String>> {
    let row = client
        .query_opt(statement!("term", "nonce"), &[&term])
        .await
        .map_err(|error| Error::postgres("read the nonce of a term", error))?;
    Ok(row.map(|row| row.get(0)))
}

/// Notes that the drain of this term has ended in order: no request of it is without an answer.
///
/// # Errors
/// The source's.
pub async fn end(client: &Client, fence: &Fence) -> Result<()> {
    client
        .execute(statement!("term", "end"), &[&fence.term()])
        .await
        .map_err(|error| Error::postgres("end a term", error))?;
    Ok(())
}

/// The incarnation of the server: a random name in an unlogged table, which PostgreSQL empties in a crash
/// recovery and on a standby that is promoted. Within one incarnation no transaction number is given twice.
///
/// # Errors
/// The source's.
pub async fn incarnation(client: &Client) -> Result<String> {
    let failed = |error| Error::postgres("read the server's incarnation", error);
    client
        .execute(statement!("term", "name_incarnation"), &[])
        .await
        .map_err(failed)?;
    let row = client
        .query_one(statement!("term", "incarnation"), &[])
        .await
        .map_err(failed)?;
    Ok(row.get(0))
}

/// The error of a drain after another one has begun a term.
pub fn taken_over() -> Error {
    Error::new(
        Kind::SourceUnreachable,
        "drain the outbox",
        "another replicator has begun to drain it",
    )
    .remedy("only one drains at a time; this one waits")
}
