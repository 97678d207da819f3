//! `[[entity]]`: reads entities from the file into [`Entity`], and suggests the nearest name for an unknown
//! key.

use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use super::keys::nearest;
use super::settings_text::SettingsText;
use crate::catalogue::Entity;
use crate::error::{Error, Result};

/// The keys of an entity; then those of its retention, of each of its files, and of each form of a column.
pub(super) const ENTITY: [&str; 18] = [
    "name",
    "table",
    "key",
    "path",
    "retention",
    "exclude",
    "include",
    "redact",
    "encrypt",
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
pub(super) const RETENTION: [&str; 3] = ["column", "days", "cloud_days_by"];
/// The old name of `retention`: it is read, with a warning.
const OLD_RETENTION: &str = "window";
pub(super) const FILE: [&str; 8] = [
    "column",
    "url_column",
    "directory",
    "many",
    "column_value",
    "until_uploaded",
    "after",
    "when",
];
pub(super) const COLUMN: [&str; 2] = ["as", "zone"];

/// Reads the list of entities. Adds a warning for each key that has an old name.
pub(super) fn parse_entities(
    file_text: &SettingsText<'_>,
    value: &Spanned<DeValue<'_>>,
    warnings: &mut Vec<String>,
) -> Result<Vec<Entity>> {
    let Some(list) = value.get_ref().as_array() else {
        return Err(file_text
            .error_at("entity", &value.span(), "it is not a list")
            .remedy("write [[entity]], with two brackets, above each entity"));
    };
    list.iter()
        .map(|value| parse_entity(file_text, value, warnings))
        .collect()
}

fn parse_entity(
    file_text: &SettingsText<'_>,
    value: &Spanned<DeValue<'_>>,
    warnings: &mut Vec<String>,
) -> Result<Entity> {
    let Some(table) = value.get_ref().as_table() else {
        return Err(file_text
            .error_at("entity", &value.span(), "it is not a section")
            .remedy("write [[entity]] above each entity"));
    };
    let name = table
        .get("name")
        .and_then(|name| name.get_ref().as_str())
        .map_or_else(|| "an entity".to_owned(), |name| format!("entity {name}"));
    if let Some((old_key, _)) = table.get_key_value(OLD_RETENTION) {
        warnings.push(format!(
            "{OLD_RETENTION} is the old name of retention: rename it in {name}, {} line {}",
            file_text.path.display(),
            file_text.line_of(&old_key.span())
        ));
    }
    check_keys(file_text, &name, "", table, &ENTITY)?;
    for key in ["retention", OLD_RETENTION] {
        if let Some(retention) = table.get(key).and_then(|value| value.get_ref().as_table()) {
            check_keys(file_text, &name, &format!("{key}."), retention, &RETENTION)?;
        }
    }
    let files = table.get("files").and_then(|files| files.get_ref().as_array());
    for file in files.into_iter().flat_map(|files| files.iter()) {
        if let Some(file) = file.get_ref().as_table() {
            check_keys(file_text, &name, "files.", file, &FILE)?;
        }
    }
    let columns = table
        .get("columns")
        .and_then(|columns| columns.get_ref().as_table());
    for (column, form) in columns.into_iter().flat_map(|columns| columns.iter()) {
        if let Some(form) = form.get_ref().as_table() {
            check_keys(
                file_text,
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
            file_text
                .error_at(&name, &span, error.message().to_owned())
                .remedy("an entity needs its table; docs/guide/entities.md lists the other keys")
        },
    )
}

fn check_keys(
    file_text: &SettingsText<'_>,
    entity: &str,
    prefix: &str,
    table: &DeTable<'_>,
    keys: &[&str],
) -> Result<()> {
    let is_known = |key: &str| keys.contains(&key) || (prefix.is_empty() && key == OLD_RETENTION);
    let unknown = table.keys().find(|key| !is_known(key.get_ref()));
    let Some(unknown) = unknown else { return Ok(()) };
    let error: Error = file_text.error_at(
        &format!("{prefix}{} of {entity}", unknown.get_ref()),
        &unknown.span(),
        "there is no such key",
    );
    Err(match nearest(unknown.get_ref(), keys.iter().copied()) {
        Some(meant) => error.remedy(format!("did you mean {prefix}{meant}?")),
        None => error.remedy(format!("the keys are {}", keys.join(", "))),
    })
}
