//! The schema of an entity as it is sent to the cloud: the columns that leave the site, and those that only
//! the cloud has.

use std::collections::BTreeMap;

use crate::catalogue::{Entity, EntityIndex};
use crate::deliver::TableSchema;
use crate::source::describe::SourceTable;

/// The entities whose schema the cloud refuses, by their places in the catalogue, each with the reason. The
/// sender knows them, and the reader parks them.
pub(super) type RefusedSchemas = BTreeMap<EntityIndex, String>;

/// The schema of an entity on the wire: no excluded column, and the URL columns of its files.
pub fn wire_schema(entity: &Entity, table: &SourceTable) -> TableSchema {
    let mut columns: Vec<(String, String)> = table
        .columns
        .iter()
        .filter(|column| !entity.exclude.contains(&column.name))
        .map(|column| (column.name.clone(), column.wire_type.clone()))
        .collect();
    for file in &entity.files {
        let wire_type = if file.many { "jsonb" } else { "text" };
        columns.retain(|(name, _)| *name != file.url_column);
        columns.push((file.url_column.clone(), wire_type.to_owned()));
    }
    TableSchema {
        entity: entity.name.clone(),
        path: entity.path.clone(),
        key: entity.key.clone(),
        columns,
        window: entity.window.as_ref().map(|window| window.column.clone()),
    }
}
