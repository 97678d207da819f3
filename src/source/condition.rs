//! The condition of an entity (`where`), as our sessions use it.
//!
//! It is the only SQL of the site's that is parsed with the site's own search path, and nothing is run while
//! that path holds. The parsed condition names everything with its schema. It is refused if a part of it
//! belongs to a role that could take the session over by it.

use tokio_postgres::Client;

use super::describe::SourceTable;
use crate::catalogue::Entity;
use crate::error::{Error, Result};
use crate::sql_template::{fill, statement};

/// The entity's condition as it is used: every name in it with its schema, so that it means in our sessions
/// what it means in the site's own. `None` if the entity has none. The inner error is a configuration error:
/// the condition names what the table lacks, or objects of a role that could take the session over by them;
/// or it uses more than the row's own columns and immutable functions, so that a row could begin or cease to
/// meet it without being written.
///
/// A constraint on an empty temporary table of the same columns has the condition parsed, not run; an index
/// shows whether PostgreSQL takes it for immutable. Both are rolled back at once.
///
/// # Errors
/// The source's.
pub(crate) async fn used(
    client: &Client,
    entity: &Entity,
    table: &SourceTable,
) -> std::result::Result<Result<Option<String>>, tokio_postgres::Error> {
    let Some(filter) = &entity.filter else {
        return Ok(Ok(None));
    };
    let right = client
        .query_one(statement!("condition", "may_create_tables"), &[])
        .await?;
    if !right.get::<_, bool>(0) {
        tracing::warn!(
            entity = entity.name,
            "its condition is not checked, and names without a schema are PostgreSQL's own in it: this \
             role may create no temporary table"
        );
        return Ok(Ok(Some(filter.clone())));
    }
    let used = resolved(client, filter, table).await;
    client.batch_execute("rollback").await?;
    let words = match used? {
        Ok(used) => return Ok(Ok(Some(used))),
        Err(words) => words,
    };
    let operation = format!("use where of entity {}", entity.name);
    Ok(Err(Error::config(
        operation,
        format!("the condition {filter:?} cannot be used: {words}"),
    )
    .remedy(
        "write a condition of the table's own columns with immutable operators and functions only: no time \
         of day, no other table, no setting of a session; and with PostgreSQL's own ones by name, as in \
         `a operator(pg_catalog.=) 'b'`, where another role has made one",
    )))
}

/// The condition with its names resolved, or PostgreSQL's words. Leaves a transaction open.
async fn resolved(
    client: &Client,
    filter: &str,
    table: &SourceTable,
) -> std::result::Result<std::result::Result<String, String>, tokio_postgres::Error> {
    let refused = |error: tokio_postgres::Error| match error.as_db_error() {
        Some(database) => Ok(Err(database.message().to_owned())),
        None => Err(error),
    };
    let begin = fill(statement!("condition", "begin"), &[("table", &table.sql_name)]);
    client.batch_execute(&begin).await?;
    let constraint = fill(statement!("condition", "parse"), &[("condition", filter)]);
    if let Err(error) = client.execute(&constraint, &[]).await {
        return refused(error);
    }
    client.batch_execute(statement!("condition", "pin_path")).await?;
    let row = client
        .query_one(statement!("condition", "parsed"), &[&table.oid])
        .await?;
    let used: String = row.get(0);
    if let Some(stranger) = row.get::<_, Option<String>>(1) {
        return Ok(Err(format!(
            "it means {stranger}, who owns neither the table nor the database"
        )));
    }
    let index = fill(
        statement!("condition", "must_be_immutable"),
        &[("condition", &used)],
    );
    match client.execute(&index, &[]).await {
        Ok(_) => Ok(Ok(used)),
        Err(error) => refused(error),
    }
}
