//! `cloud-sync.toml`: checks its keys against the table of settings, and its values' types against each key's
//! shape.
//!
//! It returns each value as text, in the form that an environment variable has, so that one set of parsers
//! serves all layers. No message repeats a line of the file, which may hold a secret.

use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::entity;
use super::keys::{self, KEYS, SettingKey, ValueShape, nearest};
use super::settings_text::SettingsText;
use super::value::ParsedValue;
use crate::catalogue::Entity;
use crate::error::{Error, Result};

/// What the file sets.
pub(super) struct SettingsFile {
    /// Each key that it sets, its value as text, and the line.
    pub(super) values: Vec<(&'static SettingKey, String, usize)>,
    /// The entities of `[[entity]]`, if there are any.
    pub(super) entities: Option<Vec<Entity>>,
    /// Keys by their old names.
    pub(super) warnings: Vec<String>,
}

/// Reads the file's text.
///
/// # Errors
/// A configuration error that names the line: no TOML, an unknown section or key, a value of another type.
pub(super) fn parse_settings_file(path: &Path, text: &str) -> Result<SettingsFile> {
    let file_text = SettingsText { path, text };
    let document = DeTable::parse(text).map_err(|error| {
        let span = error.span().unwrap_or(0..0);
        Error::config(
            format!("read {}, line {}", path.display(), file_text.line_of(&span)),
            error.message().to_owned(),
        )
        .remedy("write it as TOML: [section], then key = value, with text in quotes")
    })?;
    let mut file = SettingsFile {
        values: Vec::new(),
        entities: None,
        warnings: Vec::new(),
    };
    for (name, value) in document.get_ref() {
        let section = name.get_ref().as_ref();
        if section == "entity" {
            file.entities = Some(entity::parse_entities(&file_text, value, &mut file.warnings)?);
            continue;
        }
        if !KEYS.iter().any(|key| key.section() == section) {
            return Err(unknown_section(&file_text, name, value));
        }
        let Some(table) = value.get_ref().as_table() else {
            return Err(file_text
                .error_at(section, &name.span(), "it is a section, not a key")
                .remedy(format!(
                    "write [{section}] on a line of its own, and its keys below"
                )));
        };
        for (name, value) in table {
            file.values.push(parse_setting(&file_text, section, name, value)?);
        }
    }
    Ok(file)
}

fn parse_setting(
    file_text: &SettingsText<'_>,
    section: &str,
    name: &Spanned<toml::de::DeString<'_>>,
    value: &Spanned<DeValue<'_>>,
) -> Result<(&'static SettingKey, String, usize)> {
    let dotted = format!("{section}.{}", name.get_ref());
    let Some(key) = keys::find(&dotted) else {
        let leaves: Vec<&str> = KEYS
            .iter()
            .filter(|key| key.section() == section)
            .map(SettingKey::leaf)
            .collect();
        let error = file_text.error_at(&dotted, &name.span(), "there is no such key");
        return Err(match nearest(name.get_ref(), leaves.iter().copied()) {
            Some(meant) => error.remedy(format!("did you mean {meant}?")),
            None => error.remedy(format!("[{section}] has {}", leaves.join(", "))),
        });
    };
    let text = text_of(key.shape, value.get_ref()).map_err(|why| {
        file_text
            .error_at(key.name, &value.span(), "its value has the wrong type")
            .remedy(format!("it {why}"))
    })?;
    Ok((key, text, file_text.line_of(&name.span())))
}

fn unknown_section(
    file_text: &SettingsText<'_>,
    name: &Spanned<toml::de::DeString<'_>>,
    value: &Spanned<DeValue<'_>>,
) -> Error {
    let mut sections: Vec<&str> = KEYS.iter().map(SettingKey::section).collect();
    sections.dedup();
    sections.push("entity");
    if value.get_ref().is_table() || value.get_ref().is_array() {
        let error = file_text.error_at(
            &format!("[{}]", name.get_ref()),
            &name.span(),
            "there is no such section",
        );
        return match nearest(name.get_ref(), sections.iter().copied()) {
            Some(meant) => error.remedy(format!("did you mean [{meant}]?")),
            None => error.remedy(format!("the sections are {}", sections.join(", "))),
        };
    }
    let error = file_text.error_at(name.get_ref(), &name.span(), "it is in no section");
    match KEYS.iter().find(|key| key.leaf() == name.get_ref().as_ref()) {
        Some(key) => error.remedy(format!("move it below [{}]", key.section())),
        None => error.remedy(format!("the sections are {}", sections.join(", "))),
    }
}

fn text_of(shape: ValueShape, value: &DeValue<'_>) -> ParsedValue<String> {
    match (shape, value) {
        (ValueShape::Bool, DeValue::Boolean(value)) => Ok(value.to_string()),
        (ValueShape::Bool, _) => Err("must be true or false, without quotes".to_owned()),
        (ValueShape::Count { .. } | ValueShape::Size { .. }, DeValue::Integer(value)) => {
            i128::from_str_radix(value.as_str(), value.radix())
                .map(|value| value.to_string())
                .map_err(|_| "must be a smaller number".to_owned())
        }
        (ValueShape::Count { .. }, _) => Err("must be a whole number, without quotes".to_owned()),
        (ValueShape::Capabilities, DeValue::Array(names)) => {
            let names: Option<Vec<&str>> = names.iter().map(|name| name.get_ref().as_str()).collect();
            names
                .map(|names| {
                    if names.is_empty() {
                        "none".to_owned()
                    } else {
                        names.join(",")
                    }
                })
                .ok_or_else(|| "must be \"auto\" or a list of names in quotes".to_owned())
        }
        (ValueShape::TablePatterns, DeValue::Array(patterns)) => {
            let patterns: Option<Vec<&str>> = patterns
                .iter()
                .map(|pattern| pattern.get_ref().as_str())
                .collect();
            match patterns {
                Some(patterns) if !patterns.iter().any(|pattern| pattern.contains(',')) => {
                    Ok(patterns.join(","))
                }
                _ => Err("must be a list of patterns in quotes, without commas inside".to_owned()),
            }
        }
        (ValueShape::SiteKeys, DeValue::Table(sites)) => site_keys(sites),
        (ValueShape::SiteKeys, _) => {
            Err("must be a section, [receiver.keys], with site = [\"key\"]".to_owned())
        }
        (ValueShape::FormFields, DeValue::Table(fields)) => form_fields(fields),
        (_, DeValue::String(text)) => Ok(text.clone().into_owned()),
        (ValueShape::Duration { .. } | ValueShape::DurationOrAuto { .. }, _) => {
            Err("must be a time span in quotes, such as \"30s\"".to_owned())
        }
        (ValueShape::Size { .. }, _) => Err("must be a size in quotes, such as \"8MiB\"".to_owned()),
        _ => Err("must be text in quotes".to_owned()),
    }
}

/// Writes the sites' keys in the form that [`super::value::site_keys`] reads. In that form `,` and `;` are no
/// part of a key.
fn site_keys(sites: &DeTable<'_>) -> ParsedValue<String> {
    let mut text = Vec::with_capacity(sites.len());
    for (site, keys) in sites {
        let site = site.get_ref();
        let keys: Option<Vec<&str>> = keys
            .get_ref()
            .as_array()
            .and_then(|keys| keys.iter().map(|key| key.get_ref().as_str()).collect());
        let Some(keys) = keys else {
            return Err(format!(
                "must be a list of keys in quotes for each site: {site} = [\"key\"]"
            ));
        };
        if site.contains(['=', ';', ',']) || keys.iter().any(|key| key.contains([',', ';'])) {
            return Err(format!("must not hold , or ; in a key of the site {site}"));
        }
        text.push(format!("{site}={}", keys.join(",")));
    }
    Ok(text.join(";"))
}

/// Writes the fields in the form that [`super::value::form_fields`] reads. In that form `;` is no part of a
/// value.
fn form_fields(fields: &DeTable<'_>) -> ParsedValue<String> {
    let mut text = Vec::with_capacity(fields.len());
    for (name, value) in fields {
        let name = name.get_ref();
        match value.get_ref().as_str() {
            Some(value) if !value.contains(';') && !name.contains(['=', ';']) => {
                text.push(format!("{name}={value}"))
            }
            Some(_) => return Err(format!("must not hold ; in the field {name}")),
            None => {
                return Err(format!(
                    "must be text in quotes for each field: {name} = \"value\""
                ));
            }
        }
    }
    Ok(text.join(";"))
}
