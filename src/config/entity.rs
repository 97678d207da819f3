//! `[[entity]]`: from the file to [`Entity`], with the near name for an unknown key.

use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use super::keys::near;
use super::settings_text::SettingsText;
use crate::catalogue::Entity;
use crate::error::{Error, Result};

/// The keys of an entity, of its window, and of each of its files.
pub(super) const ENTITY: [&str; 16] = [
    "name",
    "table",
    "key",
    "path",
    "window",
    "exclude",
    "redact",
    "where",
    "deletes",
    "files",
    "delete_path",
    "bulk_path",
    "rename",
    "columns",
    "constants",
    "trust_list",
];
pub(super) const WINDOW: [&str; 3] = ["column", "days", "cloud_days_by"];
pub(super) const FILE: [&str; 6] = [
    "column",
    "url_column",
    "directory",
    "many",
    "column_value",
    "until_uploaded",
];
pub(super) const COLUMN: [&str; 2] = ["as", "zone"];

/// Reads the list of entities.
pub(super) fn parse_entities(place: &SettingsText<'_>, value: &Spanned<DeValue<'_>>) -> Result<Vec<Entity>> {
    let Some(list) = value.get_ref().as_array() else {
        return Err(place
            .wrong("entity", &value.span(), "it is not a list")
            .remedy("write [[entity]], with two brackets, above each entity"));
    };
    list.iter().map(|value| one(place, value)).collect()
}

fn one(place: &SettingsText<'_>, value: &Spanned<DeValue<'_>>) -> Result<Entity> {
    let Some(table) = value.get_ref().as_table() else {
        return Err(place
            .wrong("entity", &value.span(), "it is not a section")
            .remedy("write [[entity]] above each entity"));
    };
    let name = table
        .get("name")
        .and_then(|name| name.get_ref().as_str())
        .map_or_else(|| "an entity".to_owned(), |name| format!("entity {name}"));
    known(place, &name, "", table, &ENTITY)?;
    if let Some(window) = table.get("window").and_then(|window| window.get_ref().as_table()) {
        known(place, &name, "window.", window, &WINDOW)?;
    }
    let files = table.get("files").and_then(|files| files.get_ref().as_array());
    for file in files.into_iter().flat_map(|files| files.iter()) {
        if let Some(file) = file.get_ref().as_table() {
            known(place, &name, "files.", file, &FILE)?;
        }
    }
    let columns = table
        .get("columns")
        .and_then(|columns| columns.get_ref().as_table());
    for (column, form) in columns.into_iter().flat_map(|columns| columns.iter()) {
        if let Some(form) = form.get_ref().as_table() {
            known(
                place,
                &name,
                &format!("columns.{}.", column.get_ref()),
                form,
                &COLUMN,
            )?;
        }
    }
    serde::Deserialize::deserialize(ValueDeserializer::from(value.clone())).map_err(
        |error: toml::de::Error| {
            let span = error.span().unwrap_or_else(|| value.span());
            place
                .wrong(&name, &span, error.message().to_owned())
                .remedy("an entity needs name, table and key = [\"column\"]; docs/guide/entities.md lists the other keys")
        },
    )
}

fn known(
    place: &SettingsText<'_>,
    entity: &str,
    prefix: &str,
    table: &DeTable<'_>,
    keys: &[&str],
) -> Result<()> {
    let unknown = table.keys().find(|key| !keys.contains(&key.get_ref().as_ref()));
    let Some(unknown) = unknown else { return Ok(()) };
    let error: Error = place.wrong(
        &format!("{prefix}{} of {entity}", unknown.get_ref()),
        &unknown.span(),
        "there is no such key",
    );
    Err(match near(unknown.get_ref(), keys.iter().copied()) {
        Some(meant) => error.remedy(format!("did you mean {prefix}{meant}?")),
        None => error.remedy(format!("the keys are {}", keys.join(", "))),
    })
}
