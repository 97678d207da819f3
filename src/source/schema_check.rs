//! Whether schema `cloud_sync` is whole.

use tokio_postgres::Client;

use crate::error::{Error, Result};
use crate::sql_template::statement;

/// What was found of the schema's parts.
#[derive(Debug)]
pub(crate) struct SchemaParts {
    /// Names of tables and sequences that a crash of the server would empty.
    pub(crate) unlogged: Option<String>,
    /// Names of capture functions that cannot write to the outbox for every writer.
    pub(crate) powerless: Option<String>,
    /// Whether a segment, or another part, is missing.
    pub(crate) is_incomplete: bool,
}

/// Looks at the schema's parts.
///
/// # Errors
/// The source's: also if a part that it asks for by name is missing.
pub(crate) async fn schema_parts(client: &Client, operation: &str) -> Result<SchemaParts> {
    let row = client
        .query_one(statement!("schema_check", "check"), &[])
        .await
        .map_err(|error| Error::postgres(operation, error))?;
    Ok(SchemaParts {
        unlogged: row.get(0),
        powerless: row.get(1),
        is_incomplete: row.get::<_, i64>(2) > 0 || !row.get::<_, bool>(3),
    })
}
