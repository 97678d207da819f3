//! The condition of an entity (`where`), as our sessions use it.
//!
//! It is the only SQL of the site's that is parsed with the site's own search path, and nothing is run
//! meanwhile. What it means is then written with schemas, and refused where a role has made a part of it that
//! could take the session over.

use tokio_postgres::Client;

use super::describe::SourceTable;
use crate::catalogue::Entity;
use crate::error::{Error, Result};

/// The entity's condition as it is used: every name in it with its schema, so that it means in our sessions
/// what it means in the site's own. None where the entity has none. The inner error is a configuration error:
/// the condition has names that the table lacks, or that a role has made who could take the session over by
/// them; or it is not one of the row's own columns and of immutable functions, so that a row could come to
/// meet it, or no longer meet it, without being written.
///
/// A constraint of an empty temporary table of the same columns has the condition parsed, not run; an index
/// tells what PostgreSQL takes for immutable. Both go at once.
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
        .query_one(
            "select has_database_privilege(current_database(), 'temporary')",
            &[],
        )
        .await?;
    if !right.get::<_, bool>(0) {
        tracing::warn!(
            entity = entity.name,
            "its condition is not checked, and names without a schema are PostgreSQL's own in it: this role may create no \
             temporary table"
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
    Ok(Err(Error::config(operation, format!("the condition {filter:?} cannot be used: {words}")).remedy(
        "write a condition of the table's own columns with immutable operators and functions only: no time of day, no other \
         table, no setting of a session; and with PostgreSQL's own ones by name, as in `a operator(pg_catalog.=) 'b'`, \
         where another role has made one",
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
    // By the name that the condition sees when rows are read.
    client
        .batch_execute(&format!(
            "begin; create temporary table t (like {}); \
             select set_config('search_path', concat_ws(', ', 'pg_catalog', nullif(current_setting('cloud_sync.path', true), '')), true)",
            table.sql_name
        ))
        .await?;
    // Not more than one statement. Whatever the site's schemas hold, nothing but this is parsed by them.
    let constraint =
        format!("alter table pg_temp.t add constraint cloud_sync_condition check ({filter}) not valid");
    if let Err(error) = client.execute(&constraint, &[]).await {
        return refused(error);
    }
    client
        .batch_execute("set local search_path = pg_catalog, pg_temp")
        .await?;
    let row = client.query_one(CONDITION, &[&table.oid]).await?;
    let used: String = row.get(0);
    if let Some(stranger) = row.get::<_, Option<String>>(1) {
        return Ok(Err(format!(
            "it means {stranger}, who owns neither the table nor the database"
        )));
    }
    let index = format!("create index on pg_temp.t ((1)) where ({used})");
    match client.execute(&index, &[]).await {
        Ok(_) => Ok(Ok(used)),
        Err(error) => refused(error),
    }
}

/// The parsed condition of table $1, and the first operator, function or domain in it that is neither
/// PostgreSQL's nor of a role that could do what it likes with the table anyway.
const CONDITION: &str = "\
select pg_get_expr(c.conbin, c.conrelid), (
    select pg_describe_object(d.refclassid, d.refobjid, 0) || ' of role ' || owner.rolname
    from pg_depend d
    left join pg_operator o on d.refclassid = 'pg_operator'::regclass and o.oid = d.refobjid
    left join pg_proc p on p.oid = o.oprcode or d.refclassid = 'pg_proc'::regclass and p.oid = d.refobjid
    left join pg_type y on d.refclassid = 'pg_type'::regclass and y.oid = d.refobjid and y.typtype = 'd'
        and y.oid not in (select atttypid from pg_attribute where attrelid = $1)
    join pg_roles owner on owner.oid in (o.oprowner, p.proowner, y.typowner)
    where d.classid = 'pg_constraint'::regclass and d.objid = c.oid and not owner.rolsuper
        and owner.rolname <> current_user
        and owner.oid not in (select relowner from pg_class where oid = $1
            union all select datdba from pg_database where datname = current_database())
    limit 1)
from pg_constraint c where c.conrelid = 'pg_temp.t'::regclass and c.conname = 'cloud_sync_condition'";
