//! The leader's lock: one on view `cloud_sync.leader`, which is made for it. Whoever holds it may drain: see
//! [`crate::replicator`].

use tokio_postgres::Client;

use super::identity;
use crate::error::{Error, Result};
use crate::sql_template::statement;

/// Takes the lock in a transaction that it begins, without waiting. Returns whether no other session held it.
///
/// # Errors
/// The source's; a configuration error if capture is not installed.
pub(crate) async fn try_lock(client: &Client) -> Result<bool> {
    let Err(error) = client.batch_execute(statement!("leader", "lock")).await else {
        return Ok(true);
    };
    let error = Error::postgres("take the leader's lock", error);
    match error.sqlstate() {
        Some("55P03") => Ok(false),
        // There is no such view, or no such schema.
        Some("42P01" | "3F000") => Err(identity::not_installed()),
        _ => Err(error),
    }
}

/// The session that holds the lock, in words; `None` if no other session does.
///
/// # Errors
/// The source's.
pub async fn holder(client: &Client) -> Result<Option<String>> {
    let row = client
        .query_opt(statement!("leader", "holder"), &[])
        .await
        .map_err(|error| Error::postgres("look for a running replicator", error))?;
    Ok(row.map(|row| row.get(0)))
}
