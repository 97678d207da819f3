//! Whether an entity of the catalogue fits its table.

use std::collections::HashMap;

use tokio_postgres::Client;

use super::describe::{SourceTable, UniqueKey};
use crate::catalogue::Entity;
use crate::error::{Error, Result};
use crate::sql_template::statement;

/// Why the entity's columns do not fit the table: it lacks a column that the entity names, or the column cannot
/// be used as the entity says.
pub(super) fn column_faults(entity: &Entity, table: &SourceTable) -> Vec<Error> {
    let mut faults = Vec::new();
    let operation = || format!("use entity {}", entity.name);
    let need = entity
        .key
        .iter()
        .map(|name| (name, "key"))
        .chain(
            entity
                .retention
                .iter()
                .map(|retention| (&retention.column, "retention")),
        )
        .chain(cloud_days_by(entity).map(|column| (column, "cloud_days_by")))
        .chain(entity.rename.keys().map(|name| (name, "rename")))
        .chain(entity.columns.keys().map(|name| (name, "columns")))
        .chain(entity.exclude.iter().map(|name| (name, "exclude")))
        .chain(entity.include.iter().map(|name| (name, "include")))
        .chain(entity.redact.iter().map(|name| (name, "redact")))
        .chain(entity.encrypt.iter().map(|name| (name, "encrypt")))
        .chain(entity.files.iter().map(|file| (&file.column, "files")));
    for (name, what) in need {
        if table.column(name).is_none() {
            let near = table
                .columns
                .iter()
                .max_by(|a, b| strsim::jaro(&a.name, name).total_cmp(&strsim::jaro(&b.name, name)));
            let hint = near.map_or(String::new(), |column| format!(" (is {} meant?)", column.name));
            let fault = Error::config(
                operation(),
                format!(
                    "table {} has no column {name}, which the entity names under {what}",
                    entity.table
                ),
            );
            faults.push(fault.remedy(format!("add the column, or correct {what} of the entity{hint}")));
        }
    }
    let redacted = table
        .columns
        .iter()
        .filter(|column| entity.redact.contains(&column.name));
    for column in redacted.filter(|column| !column.can_be_redacted()) {
        let fault = Error::config(
            operation(),
            format!(
                "column {} of table {} is {}, which cannot be redacted",
                column.name, entity.table, column.sql_type
            ),
        );
        faults.push(fault.remedy(
            "name columns of text, json or arrays of text under redact; name this one under exclude",
        ));
    }
    let windows = entity
        .retention
        .iter()
        .map(|window| &window.column)
        .chain(cloud_days_by(entity));
    for column in windows.filter_map(|name| table.column(name)) {
        if TIMES.contains(&column.base_type.as_str()) {
            continue;
        }
        let fault = Error::config(
            operation(),
            format!(
                "its retention is measured by column {} of table {}, which is {}: neither a date nor a \
                 timestamp",
                column.name, entity.table, column.sql_type
            ),
        );
        faults.push(fault.remedy(
            "name a column of type date, timestamp or timestamptz under retention, or take the retention out",
        ));
    }
    faults
}

fn cloud_days_by(entity: &Entity) -> impl Iterator<Item = &String> {
    entity
        .retention
        .iter()
        .filter_map(|window| window.cloud_days_by.as_ref())
}

/// The types by which a retention can be measured.
const TIMES: [&str; 3] = ["date", "timestamp without time zone", "timestamp with time zone"];

/// Checks that the table has the entity's key, and that nothing inherits from it. `keys` are its unique keys.
pub(super) fn check_key(entity: &Entity, table: &SourceTable, keys: &[UniqueKey]) -> Result<()> {
    check_children(entity, table)?;
    let operation = format!("use entity {}", entity.name);
    if table.key.is_empty() {
        let primary = keys.iter().find(|unique| unique.primary).map(|unique| {
            let names: Vec<_> = unique.columns.iter().map(|column| column.name.as_str()).collect();
            names.join(", ")
        });
        let remedy = match primary {
            Some(columns) => format!("its primary key is ({columns}): name that as the entity's key"),
            None => {
                "add a primary key to the table: without one, no change can be told from another".to_owned()
            }
        };
        return Err(Error::config(
            operation,
            format!(
                "table {} has no primary or unique key on ({})",
                entity.table,
                entity.key.join(", ")
            ),
        )
        .remedy(remedy));
    }
    if let Some(name) = entity
        .key
        .iter()
        .find(|name| table.column(name).is_some_and(|column| column.nullable))
    {
        return Err(Error::config(
            operation,
            format!("key column {name} of table {} may be null", entity.table),
        )
        .remedy(format!(
            "alter table {} alter column {name} set not null",
            entity.table
        )));
    }
    Ok(())
}

/// Rows of a child are not in the parent's unique index, a write to the child touches nothing, and a write to
/// the parent fails if a child is a foreign table.
fn check_children(entity: &Entity, table: &SourceTable) -> Result<()> {
    let Some(child) = &table.child else { return Ok(()) };
    Err(Error::config(
        format!("use entity {}", entity.name),
        format!(
            "child {child} inherits from table {}: what is written there cannot be captured",
            entity.table
        ),
    )
    .remedy(
        "make the table a partitioned one, or detach the child by `alter table … no inherit` and make \
     an entity of it",
    ))
}

/// The tables whose rows the role does not all see, by their oids: a row that a policy hides would count as
/// deleted, so reading fails instead. Each has the role, and the table or partition with the policy.
pub(super) async fn tables_with_policies(
    client: &Client,
    oids: &[u32],
) -> Result<HashMap<u32, (String, String)>> {
    let rows = client
        .query(statement!("tables", "policies"), &[&oids])
        .await
        .map_err(|error| Error::postgres("look for row-level security", error))?;
    Ok(rows
        .iter()
        .map(|row| (row.get(0), (row.get(1), row.get(2))))
        .collect())
}

/// The error of an entity whose table has a policy.
pub(super) fn hidden_rows(entity: &Entity, role: &str, table: &str) -> Error {
    Error::config(
        format!("use entity {}", entity.name),
        format!("row-level security of table {table} applies to role {role}, which must see all rows"),
    )
    .remedy(format!(
        "run `alter role {role} bypassrls` as a superuser, or `alter table {table} no force row level \
         security`"
    ))
}
