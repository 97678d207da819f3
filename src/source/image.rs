//! The SQL of a row's key and image, the same in triggers, in backfill, and where a row is captured anew.
//!
//! A table without private, redacted or binary columns has the fast form, `row_to_json`; a trigger on one whose types are
//! all well known writes no image, but the row as PostgreSQL sends it ([`packs`]). Every other table goes through
//! `cloud_sync.image`, by column name at run time: a statement of the site must not fail because a column was dropped
//! or renamed, and a private column that was renamed must not leave under its new name.

use std::collections::BTreeMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::value::RawValue;

use super::describe::{Column, Table};
use super::{packed, quote_name, quote_text, text_array};
use crate::catalogue::Entity;

/// The SQL expression of the image of `row` (a table's alias), a text, or null where the image is withheld.
pub fn image(entity: &Entity, table: &Table, row: &str) -> String {
    if let Some(document) = document(entity, table, row) {
        format!("{document}::pg_catalog.text")
    } else {
        let binaries = table.binaries();
        // Only `json` keeps text that `jsonb` refuses; a type of the site's own may be made of it.
        let holds_json = table.columns.iter().any(|column| {
            let of = column.sql_type.trim_end_matches("[]");
            column.wire_type == "json" || !known(of)
        });
        let (document, opening, closing) = if holds_json {
            (
                format!("cloud_sync.document(row_to_json({row}.*)::pg_catalog.text)"),
                "cloud_sync.plain(",
                ")",
            )
        } else {
            (format!("to_jsonb({row}.*)"), "", "")
        };
        format!(
            "{opening}cloud_sync.image({document}, {}, {}, {}){closing}",
            text_array(&entity.exclude),
            text_array(&entity.redact),
            text_array(&binaries),
        )
    }
}

/// Whether the image is the row as it is.
fn whole(entity: &Entity, table: &Table) -> bool {
    entity.exclude.is_empty() && entity.redact.is_empty() && table.binaries().is_empty()
}

/// The image as `json`, where it is the row as it is: the database then writes it down without a copy, and without the key,
/// which it has in the same form.
pub(crate) fn document(entity: &Entity, table: &Table, row: &str) -> Option<String> {
    // The row, not a column of the same name.
    whole(entity, table).then(|| format!("pg_catalog.row_to_json({row}.*)"))
}

/// Whether capture writes the row as PostgreSQL sends it, and its JSON is made here ([`super::packed`]): where it is the row as
/// it is, of types that look the same whatever a session's settings. Partitions may have their columns in another order.
pub(crate) fn packs(entity: &Entity, table: &Table) -> bool {
    let known = |column: &Column| packed::TYPES.contains(&column.sql_type.as_str());
    !table.partitioned && settings(entity, table).is_empty() && table.columns.iter().all(known)
}

/// The SQL expression of the key of `row` as a JSON object, a text.
pub fn key(entity: &Entity, row: &str) -> String {
    let pairs: Vec<_> = entity
        .key
        .iter()
        .map(|column| format!("{}, {row}.{}", quote_text(column), quote_name(column)))
        .collect();
    format!(
        "pg_catalog.json_build_object({})::pg_catalog.text",
        pairs.join(", ")
    )
}

/// The key where its columns are named without their table; see [`offered`].
pub(crate) fn bare_key(entity: &Entity) -> String {
    let pairs: Vec<_> = entity
        .key
        .iter()
        .map(|column| format!("{}, {}", quote_text(column), quote_name(column)))
        .collect();
    format!(
        "pg_catalog.json_build_object({})::pg_catalog.text",
        pairs.join(", ")
    )
}

/// The SQL query of one row of nulls under the names of the key columns. Within a query that stands below it, a key
/// column that the table does not have any more is null.
pub(crate) fn offered(entity: &Entity) -> String {
    let nulls: Vec<_> = entity
        .key
        .iter()
        .map(|column| format!("null::pg_catalog.text as {}", quote_name(column)))
        .collect();
    format!("select {}", nulls.join(", "))
}

/// The SQL condition that `row` belongs to the entity.
pub fn filter(entity: &Entity) -> String {
    entity
        .filter
        .as_ref()
        .map_or_else(|| "true".to_owned(), |filter| format!("({filter})"))
}

/// The SQL condition that `row` lies within the entity's window of `days`; always true without one.
pub fn within(entity: &Entity, days: Option<u32>, row: &str) -> String {
    match (&entity.window, days) {
        (Some(window), Some(days)) => format!(
            "{row}.{} >= now() - interval '{days} days'",
            quote_name(&window.column)
        ),
        _ => "true".to_owned(),
    }
}

/// Settings that a capture function pins, as its images would otherwise depend on the writer's session, and its names on
/// the writer's search path. Each costs every statement some microseconds: a table of ordinary columns has none.
pub fn settings(entity: &Entity, table: &Table) -> String {
    let of = |column: &Column| column.sql_type.trim_end_matches("[]").to_owned();
    let any = |types: &[&str]| {
        table
            .columns
            .iter()
            .any(|column| types.contains(&of(column).as_str()))
    };
    let odd = table
        .columns
        .iter()
        .any(|column| !known(&of(column)) || column.sql_type == "bytea[]");
    let mut settings = String::new();
    if odd || any(&["real", "double precision"]) {
        settings.push_str(" set extra_float_digits = 1");
    }
    if odd || any(&["interval"]) {
        settings.push_str(" set intervalstyle = postgres");
    }
    if odd || any(&["bytea"]) {
        settings.push_str(" set bytea_output = hex");
    }
    // One moment has as many texts as there are time zones: a key must have one.
    let zoned = entity.key.iter().any(|name| {
        table
            .column(name)
            .is_some_and(|column| column.sql_type == "timestamp with time zone")
    });
    if odd || zoned {
        settings.push_str(" set timezone = 'UTC'");
    }
    if odd {
        settings.push_str(
            " set datestyle = 'ISO, YMD' set xmlbinary = base64 set lc_monetary = 'C' set quote_all_identifiers = off",
        );
    }
    if settings.is_empty() && entity.filter.is_none() && whole(entity, table) {
        return settings;
    }
    format!("set search_path = pg_catalog, pg_temp set standard_conforming_strings = on{settings}")
}

/// Whether it is known what the JSON of a type depends on.
fn known(of: &str) -> bool {
    packed::TYPES.contains(&of) || PLAIN.contains(&of) || STYLED.contains(&of)
}

/// Types beside [`packed::TYPES`] whose JSON no setting changes.
const PLAIN: [&str; 5] = ["name", "time with time zone", "inet", "cidr", "oid"];

/// Types whose JSON one setting changes.
const STYLED: [&str; 4] = ["real", "double precision", "interval", "bytea"];

/// The row with its `bytea` values in base64, where one of them is still written as the database writes it: its column is
/// so new that the trigger did not know it. None where there is no such value.
pub(crate) fn mend_binaries<S: AsRef<str>>(row: &str, binaries: &[S]) -> Option<String> {
    if binaries.is_empty() || memchr::memmem::find(row.as_bytes(), br#""\\x"#).is_none() {
        return None;
    }
    let mut fields: BTreeMap<String, Box<RawValue>> = serde_json::from_str(row).ok()?;
    for name in binaries {
        let Some(value) = fields.get_mut(name.as_ref()) else {
            continue;
        };
        let Ok(text) = serde_json::from_str::<String>(value.get()) else {
            continue;
        };
        let bytes = text.strip_prefix("\\x").and_then(unhex);
        if let Some(bytes) = bytes {
            *value = RawValue::from_string(format!("\"{}\"", BASE64_STANDARD.encode(bytes))).ok()?;
        }
    }
    serde_json::to_string(&fields).ok()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    text.as_bytes()
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(columns: &[(&str, &str)]) -> Table {
        Table {
            oid: 1,
            sql_name: "public.t".into(),
            partitioned: false,
            columns: columns
                .iter()
                .map(|(name, sql_type)| Column {
                    name: (*name).into(),
                    wire_type: (*sql_type).into(),
                    sql_type: (*sql_type).into(),
                    nullable: true,
                })
                .collect(),
        }
    }

    #[test]
    fn only_tables_that_need_it_take_the_slow_form() {
        let plain = Entity::new("rooms", "tbl_room", &["id"]);
        assert_eq!(
            image(&plain, &table(&[("id", "bigint")]), "n"),
            "pg_catalog.row_to_json(n.*)::pg_catalog.text"
        );
        assert!(
            image(&plain, &table(&[("id", "bigint"), ("photo", "bytea")]), "n").contains("array['photo']")
        );
        let mut private = plain.clone();
        private.exclude = vec!["pass'word".into()];
        assert!(image(&private, &table(&[("id", "bigint")]), "n").contains("array['pass''word']"));
    }

    #[test]
    fn rows_are_packed_where_nothing_else_says_how_they_look() {
        let plain = Entity::new("rooms", "tbl_room", &["id"]);
        let of = |other: &str| table(&[("id", "bigint"), ("other", other)]);
        assert!(packs(&plain, &of("timestamp with time zone")) && packs(&plain, &of("jsonb")));
        for other in ["real", "bytea", "text[]", "inet", "mood"] {
            assert!(!packs(&plain, &of(other)), "{other}");
        }
        assert!(!packs(
            &Entity::new("rooms", "tbl_room", &["other"]),
            &of("timestamp with time zone")
        ));
        let mut partitioned = of("text");
        partitioned.partitioned = true;
        assert!(!packs(&plain, &partitioned));
        for change in [
            (|entity| entity.filter = Some("true".into())) as fn(&mut Entity),
            |entity| entity.exclude = vec!["other".into()],
            |entity| entity.redact = vec!["other".into()],
        ] {
            let mut entity = plain.clone();
            change(&mut entity);
            assert!(!packs(&entity, &of("text")));
        }
    }

    #[test]
    fn new_binary_columns_are_mended() {
        assert_eq!(
            mend_binaries(r#"{"a":"\\x00ff","b":"\\x01"}"#, &["a"]).unwrap(),
            r#"{"a":"AP8=","b":"\\x01"}"#
        );
        assert_eq!(mend_binaries(r#"{"a":"AP8="}"#, &["a"]), None);
    }

    #[test]
    fn names_are_quoted() {
        let entity = Entity::new("rooms", "tbl_room", &["Room \"No\""]);
        assert_eq!(
            key(&entity, "n"),
            "pg_catalog.json_build_object('Room \"No\"', n.\"Room \"\"No\"\"\")::pg_catalog.text"
        );
    }
}
