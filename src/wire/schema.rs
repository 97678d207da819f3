//! The body of `PUT /schema/{path}`: an entity's columns, for servers that build their tables from it.

use serde::{Deserialize, Serialize};

/// An entity's columns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaDeclaration {
    /// The entity's name.
    pub entity: String,
    /// The key columns, in order.
    pub key: Vec<String>,
    /// Each column, in order.
    pub columns: Vec<ColumnDeclaration>,
    /// The retention's column: `?days=` of a list measures it.
    #[serde(default)]
    pub window: Option<String>,
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColumnDeclaration {
    /// Its name.
    pub name: String,
    /// Its PostgreSQL base type.
    #[serde(rename = "type")]
    pub type_name: String,
}
