//! The schema of an entity as it is sent to the cloud: the columns that leave the site, and those that only
//! the cloud has.

use std::collections::BTreeMap;

use crate::catalogue::{Entity, EntityIndex};
use crate::deliver::TableSchema;
use crate::source::describe::SourceTable;
use crate::wire::{ColumnDeclaration, SchemaDeclaration};

/// The entities whose schema the cloud refuses, by their places in the catalogue, each with the reason. The
/// sender knows them, and the reader parks them.
pub(super) type RefusedSchemas = BTreeMap<EntityIndex, String>;

/// The schema of an entity on the wire: no excluded column, encrypted ones as text, and the URL columns of its
/// files.
pub fn wire_schema(entity: &Entity, table: &SourceTable) -> TableSchema {
    let declared = |name: &str, type_name: &str| ColumnDeclaration {
        name: name.to_owned(),
        type_name: type_name.to_owned(),
    };
    let mut columns: Vec<ColumnDeclaration> = table
        .columns
        .iter()
        .filter(|column| !entity.leaves_out(&column.name))
        .map(|column| match entity.encrypts(&column.name) {
            true => declared(&column.name, "text"),
            false => declared(&column.name, &column.wire_type),
        })
        .collect();
    for file in &entity.files {
        let wire_type = if file.many { "jsonb" } else { "text" };
        columns.retain(|column| column.name != file.url_column);
        columns.push(declared(&file.url_column, wire_type));
    }
    TableSchema {
        path: entity.path.clone(),
        declaration: SchemaDeclaration {
            entity: entity.name.clone(),
            key: entity.key.clone(),
            columns,
            window: entity.retention.as_ref().map(|window| window.column.clone()),
        },
    }
}
