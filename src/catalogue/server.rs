//! How a server without `changes` wants an entity's rows: the paths, the columns' names, and the forms of
//! values. Text as a form is for every server.

use serde::{Deserialize, Serialize};

use super::{Entity, invalid};
use crate::error::Result;
use crate::wire::paths;

/// The form in which the cloud wants a column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ColumnForm {
    /// The form.
    #[serde(rename = "as")]
    pub form: ValueForm,
    /// The time zone of a local date or time, by its name in the IANA database; `None` means UTC.
    #[serde(default)]
    pub zone: Option<String>,
}

/// A form into which a value can be converted. Null stays null.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ValueForm {
    /// A JSON text.
    #[serde(rename = "text")]
    Text,
    /// A JSON number: from a text that is one, or 1 and 0 from a boolean.
    #[serde(rename = "number")]
    Number,
    /// `YYYY-MM-DD hh:mm:ss`, without an offset, from a date with a time.
    #[serde(rename = "local datetime")]
    LocalDatetime,
    /// `YYYY-MM-DD`, from a date with or without a time.
    #[serde(rename = "date")]
    Date,
    /// A JSON text that holds the JSON of an array or an object.
    #[serde(rename = "json text")]
    JsonText,
}

impl ValueForm {
    /// Its word in the configuration.
    pub fn word(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Number => "number",
            Self::LocalDatetime => "local datetime",
            Self::Date => "date",
            Self::JsonText => "json text",
        }
    }
}

/// What the URL column gets of the upload's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ColumnValue {
    /// The file's URL; an array of URLs if there are several files.
    Url,
    /// The file's path on the server; an array of paths if there are several files.
    Path,
    /// A text that holds the JSON array of the paths.
    Json,
}

/// What happens to a row whose file the cloud has not confirmed yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unconfirmed {
    /// It is sent, with null in the URL column, or with the site's value if the URL column is the file column
    /// itself.
    Send,
    /// It is held back until the cloud has its file.
    Hold,
}

impl Entity {
    /// The key columns by their names in the cloud.
    pub fn cloud_key(&self) -> Vec<String> {
        self.key
            .iter()
            .map(|column| self.cloud_name(column).to_owned())
            .collect()
    }

    /// A column's name in the cloud.
    pub fn cloud_name<'a>(&'a self, column: &'a str) -> &'a str {
        self.rename.get(column).map_or(column, String::as_str)
    }

    /// The path of a bulk request.
    pub fn bulk_path(&self) -> String {
        match &self.bulk_path {
            Some(path) => path.trim_matches('/').to_owned(),
            None => paths::bulk_of(&self.path),
        }
    }

    /// The path of a delete. `key` is percent-encoded.
    pub fn delete_path(&self, key: &str) -> String {
        match &self.delete_path {
            Some(path) => path.trim_matches('/').replace("{key}", key),
            None => format!("{}/{key}", self.path),
        }
    }

    /// The name of a setting of this entity that has a meaning only for a server without `changes`; `None` if
    /// none is set.
    pub fn server_setting(&self) -> Option<&'static str> {
        let set = [
            (self.delete_path.is_some(), "delete_path"),
            (self.bulk_path.is_some(), "bulk_path"),
            (!self.rename.is_empty(), "rename"),
            (
                self.columns.keys().any(|column| !self.is_sent_as_text(column)),
                "columns",
            ),
            (!self.constants.is_empty(), "constants"),
            (!self.trust_list, "trust_list"),
        ];
        set.into_iter().find_map(|(is_set, name)| is_set.then_some(name))
    }
}

/// Checks these settings of an entity, as far as that is possible without a database.
pub(super) fn check_server_settings(entity: &Entity) -> Result<()> {
    if let Some(path) = &entity.delete_path
        && (!path.contains("{key}") || path.contains(['?', '#']))
    {
        return Err(invalid(
            entity,
            format!("its delete_path {path:?} is not a path with {{key}} in it"),
        )
        .remedy("write it as in rooms/by-number/{key}"));
    }
    if let Some(path) = &entity.bulk_path
        && (path.trim_matches('/').is_empty() || path.contains(['?', '#', '{']))
    {
        return Err(
            invalid(entity, format!("its bulk_path {path:?} is no path")).remedy("write it as in rooms/bulk")
        );
    }
    let mut names: Vec<&str> = entity.rename.values().map(String::as_str).collect();
    names.extend(entity.constants.keys().map(String::as_str));
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(invalid(
            entity,
            format!("two of its columns have the name {} in the cloud", twice[0]),
        )
        .remedy("give each column of rename and constants a name of its own"));
    }
    if let Some((column, value)) = entity
        .constants
        .iter()
        .find(|(_, value)| value.is_array() || value.is_object())
    {
        return Err(invalid(
            entity,
            format!("its constant {column} is {value}, and not one value"),
        )
        .remedy("set a text, a number, true or false"));
    }
    if let Some(retention) = &entity.retention {
        let mut counted = [Some(&retention.column), retention.cloud_days_by.as_ref()]
            .into_iter()
            .flatten();
        if let Some(column) = counted.find(|column| entity.is_sent_as_text(column)) {
            return Err(invalid(
                entity,
                format!("its column {column} goes as text, and its retention is measured by it"),
            )
            .remedy(format!(
                "take {column} out of columns: the cloud counts days by a date or a time"
            )));
        }
    }
    for (column, form) in &entity.columns {
        let dated = matches!(form.form, ValueForm::LocalDatetime | ValueForm::Date);
        match &form.zone {
            Some(zone) if !dated => {
                return Err(invalid(
                    entity,
                    format!("its column {column} has the zone {zone}, but it is no date"),
                )
                .remedy("set zone for \"local datetime\" and \"date\" only"));
            }
            Some(zone) if jiff::tz::TimeZone::get(zone).is_err() => {
                return Err(invalid(
                    entity,
                    format!("its column {column} has the zone {zone:?}, which is not known"),
                )
                .remedy(
                    "name one of the IANA database, as in Asia/Manila; on Debian it is in the package tzdata",
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Catalogue;

    #[test]
    fn paths_and_names_are_those_of_the_server() {
        let mut rooms = Entity::new("rooms", "tbl_room", &["room_no"]);
        assert_eq!(rooms.delete_path("A%201"), "rooms/A%201");
        assert_eq!(rooms.bulk_path(), "bulk/rooms");
        assert_eq!(rooms.server_setting(), None);
        rooms.delete_path = Some("/rooms/by-number/{key}".into());
        rooms.bulk_path = Some("rooms/bulk".into());
        rooms.rename = [("room_no".to_owned(), "number".to_owned())].into();
        assert_eq!(rooms.delete_path("A%201"), "rooms/by-number/A%201");
        assert_eq!(rooms.bulk_path(), "rooms/bulk");
        assert_eq!(rooms.cloud_key(), ["number"]);
        assert_eq!(rooms.server_setting(), Some("delete_path"));
    }

    #[test]
    fn what_no_server_can_want_is_refused() {
        let refusal = |change: fn(&mut Entity)| {
            let mut entity = Entity::new("rooms", "tbl_room", &["room_no"]);
            change(&mut entity);
            Catalogue::new(vec![entity]).unwrap_err().to_string()
        };
        let zone = |form, zone: &str| ColumnForm {
            form,
            zone: Some(zone.to_owned()),
        };
        assert!(refusal(|one| one.delete_path = Some("rooms".into())).contains("{key}"));
        assert!(refusal(|one| one.bulk_path = Some("/".into())).contains("bulk_path"));
        let twice = |one: &mut Entity| {
            one.rename = [("a".to_owned(), "x".to_owned())].into();
            one.constants = [("x".to_owned(), true.into())].into();
        };
        assert!(refusal(twice).contains("the name x"));
        assert!(
            refusal(|one| one.constants = [("x".to_owned(), Vec::<u8>::new().into())].into())
                .contains("one value")
        );
        let mut entity = Entity::new("rooms", "tbl_room", &["room_no"]);
        entity.columns = [("at".to_owned(), zone(ValueForm::LocalDatetime, "Asia/Nowhere"))].into();
        assert!(
            check_server_settings(&entity)
                .unwrap_err()
                .to_string()
                .contains("Asia/Nowhere")
        );
        let text = ColumnForm {
            form: ValueForm::Text,
            zone: None,
        };
        entity.columns = [("created_at".to_owned(), text.clone())].into();
        assert_eq!(entity.server_setting(), None);
        entity.columns.insert("room_no".to_owned(), text);
        assert_eq!(entity.server_setting(), Some("columns"));
        assert!(
            check_server_settings(&entity.clone().retention(30))
                .unwrap_err()
                .to_string()
                .contains("measured by it")
        );
        entity.columns = [("at".to_owned(), zone(ValueForm::Text, "Asia/Manila"))].into();
        assert!(
            check_server_settings(&entity)
                .unwrap_err()
                .to_string()
                .contains("no date")
        );
    }
}
