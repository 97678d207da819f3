//! The types of a table's columns: which of them the wire carries in which form, and how each is read.
//!
//! A type that is to be read in its binary form needs a writer in [`crate::wire::column_values::to_json`], and
//! the receiver's side: the column that it makes in `receiver/tables/column_type.rs`, and, to be written in
//! binary form too, a reader in `from_json` there and its line in `receiver/rows/copy_format.rs`.

use tokio_postgres::Row;

use crate::catalogue::Entity;
use crate::wire::column_values::to_json::BINARY_OIDS;

/// Objects with lower oids are PostgreSQL's own. Source: PostgreSQL, `transam.h`.
const FIRST_NORMAL_OID: u32 = 16_384;

/// How a column's value is read, and becomes JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// In binary form, by the type with this oid: see [`crate::wire::column_values`].
    Binary(u32),
    /// As the text of a number, or of `NaN` and its like.
    Number,
    /// As text, which becomes a JSON string.
    Text,
    /// The same, by the type's output function: a cast to text may be the site's own, or add to the value.
    Output,
    /// As JSON that the server makes.
    Json,
}

/// A column of a source table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceColumn {
    /// Its name.
    pub name: String,
    /// Its base type's canonical name without modifiers, `text` for what the wire carries as text.
    pub wire_type: String,
    /// Its own type, written out without modifiers.
    pub sql_type: String,
    /// Its base type, written out without modifiers, for casts.
    pub base_type: String,
    /// How it is read.
    pub codec: Codec,
    /// Whether it may be null.
    pub nullable: bool,
}

impl SourceColumn {
    /// A column, from a row of the statement that reads columns. Types of extensions, types that a cast of
    /// the site's own would turn into another JSON, and what the entity says, are sent as text.
    pub(super) fn describe(row: &Row, entity: &Entity) -> Self {
        let (typtype, element, schema): (&str, &str, &str) = (row.get(5), row.get(6), row.get(7));
        let (oid, element_oid): (u32, u32) = (row.get(8), row.get(9));
        let name: String = row.get(0);
        let own = typtype == "b" && schema == "pg_catalog";
        let in_key = entity.key.contains(&name);
        let codec = match oid {
            // A key is sent as text: each side finds the row by it.
            17 | 114 | 3802 if in_key => Codec::Text,
            _ if BINARY_OIDS.contains(&oid) => Codec::Binary(oid),
            700 | 701 | 26 => Codec::Number,
            _ if own && element == "b" && element_oid < FIRST_NORMAL_OID && element_oid != 17 && !in_key => {
                Codec::Json
            }
            // The cast of an address adds its mask.
            869 => Codec::Output,
            _ if schema != "pg_catalog" => Codec::Output,
            _ => Codec::Text,
        };
        let plain = own
            && matches!(element, "" | "b")
            && !(in_key && (element == "b" || matches!(oid, 17 | 114 | 3802)))
            && !entity.is_sent_as_text(&name);
        Self {
            wire_type: if plain { row.get(1) } else { "text".to_owned() },
            sql_type: row.get(2),
            base_type: row.get(3),
            codec,
            nullable: row.get(4),
            name,
        }
    }

    /// Whether credentials can be taken out of its values: they are text, or JSON that may hold some.
    pub(crate) fn can_be_redacted(&self) -> bool {
        matches!(
            self.codec,
            Codec::Text | Codec::Output | Codec::Json | Codec::Binary(25 | 114 | 1042 | 1043 | 3802)
        )
    }
}
