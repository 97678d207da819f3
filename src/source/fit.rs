//! Whether an entity of the catalogue fits its table, and the catalogue's order the foreign keys.

use std::collections::{BTreeMap, HashMap};

use tokio_postgres::Client;

use super::describe::{SourceTable, unique_keys};
use crate::catalogue::{Catalogue, Entity, EntityIndex};
use crate::error::{Error, Result};
use crate::sql_template::statement;

/// Checks that the table has each column that the entity names, and that the column can be used as the entity
/// says.
pub(super) fn check_columns(entity: &Entity, table: &SourceTable) -> Result<()> {
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
        .chain(entity.redact.iter().map(|name| (name, "redact")))
        .chain(entity.files.iter().map(|file| (&file.column, "files")));
    for (name, what) in need {
        if table.column(name).is_none() {
            let near = table
                .columns
                .iter()
                .max_by(|a, b| strsim::jaro(&a.name, name).total_cmp(&strsim::jaro(&b.name, name)));
            let hint = near.map_or(String::new(), |column| format!(" (is {} meant?)", column.name));
            return Err(Error::config(
                format!("use entity {}", entity.name),
                format!(
                    "table {} has no column {name}, which the entity names under {what}",
                    entity.table
                ),
            )
            .remedy(format!("add the column, or correct {what} of the entity{hint}")));
        }
    }
    let redacted = table
        .columns
        .iter()
        .filter(|column| entity.redact.contains(&column.name));
    if let Some(column) = redacted.into_iter().find(|column| !column.can_be_redacted()) {
        return Err(Error::config(
            format!("use entity {}", entity.name),
            format!(
                "column {} of table {} is {}, which cannot be redacted",
                column.name, entity.table, column.sql_type
            ),
        )
        .remedy("name columns of text, json or arrays of text under redact; name this one under exclude"));
    }
    let windows = entity
        .retention
        .iter()
        .map(|window| &window.column)
        .chain(cloud_days_by(entity));
    let mut windows = windows.filter_map(|name| table.column(name));
    if let Some(column) = windows.find(|column| !TIMES.contains(&column.base_type.as_str())) {
        return Err(Error::config(
            format!("use entity {}", entity.name),
            format!(
                "its retention is measured by column {} of table {}, which is {}: neither a date nor a \
                 timestamp",
                column.name, entity.table, column.sql_type
            ),
        )
        .remedy(
            "name a column of type date, timestamp or timestamptz under retention, or take the retention out",
        ));
    }
    Ok(())
}

fn cloud_days_by(entity: &Entity) -> impl Iterator<Item = &String> {
    entity
        .retention
        .iter()
        .filter_map(|window| window.cloud_days_by.as_ref())
}

/// The types by which a retention can be measured.
const TIMES: [&str; 3] = ["date", "timestamp without time zone", "timestamp with time zone"];

/// Checks that the table has the entity's key, and that nothing inherits from it.
pub(super) async fn check_key(client: &Client, entity: &Entity, table: &SourceTable) -> Result<()> {
    check_children(entity, table)?;
    let operation = format!("use entity {}", entity.name);
    if table.key.is_empty() {
        let keys = unique_keys(client, entity, table.oid).await?;
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

/// Checks that the role sees all rows: a row that a policy hides would count as deleted, so reading fails
/// instead.
pub(super) async fn check_policies(client: &Client, entity: &Entity, table: &SourceTable) -> Result<()> {
    let operation = format!("use entity {}", entity.name);
    let found = client
        .query_opt(statement!("tables", "policies"), &[&table.oid])
        .await
        .map_err(|error| Error::postgres(&operation, error))?;
    let Some(row) = found else { return Ok(()) };
    let (role, table): (&str, &str) = (row.get(0), row.get(1));
    Err(Error::config(
        operation,
        format!("row-level security of table {table} applies to role {role}, which must see all rows"),
    )
    .remedy(format!(
        "run `alter role {role} bypassrls` as a superuser, or `alter table {table} no force row level \
         security`"
    )))
}

/// Checks that each parent comes before its children.
pub(super) async fn check_order(
    client: &Client,
    catalogue: &Catalogue,
    tables: &[SourceTable],
) -> Result<()> {
    let oids: Vec<u32> = tables.iter().map(|table| table.oid).collect();
    let by_oid = oids.iter().enumerate();
    let entity_of: HashMap<u32, EntityIndex> =
        by_oid.map(|(index, &oid)| (oid, EntityIndex(index))).collect();
    let rows = client
        .query(statement!("tables", "references"), &[&oids])
        .await
        .map_err(|error| Error::postgres("read the foreign keys of the catalogue's tables", error))?;
    let mut parents: BTreeMap<EntityIndex, Vec<EntityIndex>> = BTreeMap::new();
    for row in &rows {
        let (child, parent) = (entity_of[&row.get::<_, u32>(0)], entity_of[&row.get::<_, u32>(1)]);
        parents.entry(child).or_default().push(parent);
    }
    let name = |entity_index: EntityIndex| catalogue[entity_index].name.as_str();
    if let Some(circle) = circle(&parents) {
        let names: Vec<_> = circle.iter().map(|&entity_index| name(entity_index)).collect();
        return Err(Error::config(
            "order the catalogue",
            format!("entities refer to each other in a circle: {}", names.join(" -> ")),
        )
        .remedy(
            "no order has parents before children: take one of them out of the catalogue, or drop one \
         foreign key",
        ));
    }
    for (&child, parents) in &parents {
        if let Some(&parent) = parents.iter().find(|&&parent| parent > child) {
            return Err(Error::config(
                "order the catalogue",
                format!(
                    "entity {} refers to {}, which comes after it",
                    name(child),
                    name(parent)
                ),
            )
            .remedy(format!("list {} before {}", name(parent), name(child))));
        }
    }
    Ok(())
}

/// A circle of references, its first member repeated at the end; `None` if there is an order.
fn circle(parents: &BTreeMap<EntityIndex, Vec<EntityIndex>>) -> Option<Vec<EntityIndex>> {
    fn visit(
        at: EntityIndex,
        parents: &BTreeMap<EntityIndex, Vec<EntityIndex>>,
        path: &mut Vec<EntityIndex>,
        done: &mut Vec<EntityIndex>,
    ) -> Option<Vec<EntityIndex>> {
        if let Some(start) = path.iter().position(|&entity_index| entity_index == at) {
            let mut circle = path[start..].to_vec();
            circle.push(at);
            return Some(circle);
        }
        if done.contains(&at) {
            return None;
        }
        path.push(at);
        for &parent in parents.get(&at).into_iter().flatten() {
            if let Some(circle) = visit(parent, parents, path, done) {
                return Some(circle);
            }
        }
        path.pop();
        done.push(at);
        None
    }
    let mut done = Vec::new();
    parents
        .keys()
        .find_map(|&start| visit(start, parents, &mut Vec::new(), &mut done))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn circles_are_found_and_orders_are_not() {
        let of = |pairs: &[(usize, usize)]| {
            let mut parents: BTreeMap<EntityIndex, Vec<EntityIndex>> = BTreeMap::new();
            for &(child, parent) in pairs {
                parents
                    .entry(EntityIndex(child))
                    .or_default()
                    .push(EntityIndex(parent));
            }
            circle(&parents)
        };
        assert_eq!(of(&[(1, 0), (2, 0), (2, 1)]), None);
        assert_eq!(
            of(&[(0, 1), (1, 2), (2, 0)]),
            Some([0, 1, 2, 0].map(EntityIndex).to_vec())
        );
    }
}
