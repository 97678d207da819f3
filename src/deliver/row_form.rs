//! The form in which a server without `changes` wants an entity's rows: names, values, constants.
//!
//! What the configuration does not name stays as it is, byte by byte.

use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;

use crate::catalogue::Entity;
use crate::catalogue::server::ValueForm;
use crate::wire::json::{all_members, non_null_text};

/// An entity's form.
#[derive(Debug)]
pub(super) struct RowForm {
    columns: Vec<(String, ValueForm, TimeZone)>,
    rename: Vec<(String, String)>,
    /// `"name":value` of each constant.
    constants: Vec<String>,
    /// The names of the constants. A column of the row with such a name is left out.
    given: Vec<String>,
}

impl RowForm {
    /// The form of an entity; `None` if rows are sent as they are.
    pub(super) fn of(entity: &Entity) -> Option<Self> {
        if entity.columns.is_empty() && entity.rename.is_empty() && entity.constants.is_empty() {
            return None;
        }
        let zone = |name: &Option<String>| {
            let zone = name.as_ref().and_then(|name| TimeZone::get(name).ok());
            zone.unwrap_or(TimeZone::UTC)
        };
        Some(Self {
            columns: entity
                .columns
                .iter()
                .map(|(column, form)| (column.clone(), form.form, zone(&form.zone)))
                .collect(),
            rename: entity.rename.clone().into_iter().collect(),
            constants: entity
                .constants
                .iter()
                .map(|(name, value)| format!("{}:{value}", quoted(name)))
                .collect(),
            given: entity.constants.keys().cloned().collect(),
        })
    }

    /// The row, a JSON object, in this form.
    ///
    /// # Errors
    /// The column whose value has no such form, in words without the value.
    pub(super) fn apply(&self, row: &str) -> Result<String, String> {
        let fields = all_members(row).map_err(|_| "the row is not a JSON object".to_owned())?;
        let mut text = String::with_capacity(row.len() + 64);
        text.push('{');
        for (name, value) in &fields {
            let cloud = self.rename.iter().find(|(column, _)| column == name);
            let cloud = cloud.map_or(&**name, |(_, cloud)| cloud.as_str());
            if self.given.iter().any(|given| given == cloud) {
                continue;
            }
            if text.len() > 1 {
                text.push(',');
            }
            text.push_str(&quoted(cloud));
            text.push(':');
            match self.columns.iter().find(|(column, ..)| column == name) {
                None => text.push_str(value),
                Some((_, form, zone)) => match convert(value, *form, zone) {
                    Some(converted) => text.push_str(&converted),
                    None => {
                        let word = form.word();
                        return Err(format!("the value of column {name} has no form {word:?}"));
                    }
                },
            }
        }
        for constant in &self.constants {
            if text.len() > 1 {
                text.push(',');
            }
            text.push_str(constant);
        }
        text.push('}');
        Ok(text)
    }
}

/// A value in a form, as JSON text; `None` if it has no such form.
fn convert(value: &str, form: ValueForm, zone: &TimeZone) -> Option<String> {
    if value == "null" {
        return Some("null".to_owned());
    }
    let text = non_null_text(value)?;
    Some(match form {
        ValueForm::Text | ValueForm::JsonText => quoted(&text),
        ValueForm::Number => match &*text {
            "true" => "1".to_owned(),
            "false" => "0".to_owned(),
            // As JSON writes numbers: without a plus sign, without letters.
            number => serde_json::from_str::<serde_json::Number>(number)
                .ok()
                .map(|_| number.to_owned())?,
        },
        ValueForm::LocalDatetime => quoted(
            &local_datetime(&text, zone)?
                .strftime("%Y-%m-%d %H:%M:%S")
                .to_string(),
        ),
        ValueForm::Date => quoted(&match text.parse::<Date>() {
            Ok(date) if text.len() == 10 => date.to_string(),
            _ => local_datetime(&text, zone)?.date().to_string(),
        }),
    })
}

/// The date and time in the zone; a text without an offset is taken as it is.
fn local_datetime(text: &str, zone: &TimeZone) -> Option<DateTime> {
    match text.parse::<Timestamp>() {
        Ok(moment) => Some(moment.to_zoned(zone.clone()).datetime()),
        Err(_) => text.parse::<DateTime>().ok(),
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::server::ColumnForm;

    fn form(columns: &[(&str, ValueForm)]) -> RowForm {
        let mut entity = Entity::new("rooms", "tbl_room", &["room_no"]);
        let form = |&(name, form): &(&str, ValueForm)| {
            let dated = matches!(form, ValueForm::LocalDatetime | ValueForm::Date);
            let zone = dated.then(|| "Asia/Manila".to_owned());
            (name.to_owned(), ColumnForm { form, zone })
        };
        entity.columns = columns.iter().map(form).collect();
        entity.rename = [("room_no".to_owned(), "number".to_owned())].into();
        entity.constants = [("type".to_owned(), "leave".into())].into();
        RowForm::of(&entity).unwrap()
    }

    #[test]
    fn rows_go_as_they_are_where_nothing_is_configured() {
        assert!(RowForm::of(&Entity::new("rooms", "tbl_room", &["room_no"])).is_none());
    }

    #[test]
    fn names_values_and_constants_are_the_servers() {
        let form = form(&[
            ("room_no", ValueForm::Text),
            ("seats", ValueForm::Number),
            ("open", ValueForm::Number),
            ("at", ValueForm::LocalDatetime),
            ("day", ValueForm::Date),
            ("tags", ValueForm::JsonText),
            ("none", ValueForm::Text),
        ]);
        let row = r#"{"room_no":12,"seats":"30","open":true,"at":"2026-11-29T20:15:00.5+00:00","day":"2026-11-29T20:15:00Z","tags":["a"],"none":null,"type":"x","rest":1.50}"#;
        assert_eq!(
            form.apply(row).unwrap(),
            r#"{"number":"12","seats":30,"open":1,"at":"2026-11-30 04:15:00","day":"2026-11-30","tags":"[\"a\"]","none":null,"rest":1.50,"type":"leave"}"#
        );
        let plain = r#"{"at":"2026-11-29T08:00:00","day":"2026-11-29"}"#;
        assert_eq!(
            form.apply(plain).unwrap(),
            r#"{"at":"2026-11-29 08:00:00","day":"2026-11-29","type":"leave"}"#
        );
    }

    #[test]
    fn a_value_without_such_a_form_is_an_error_without_the_value() {
        let form = form(&[("seats", ValueForm::Number), ("at", ValueForm::LocalDatetime)]);
        for row in [r#"{"seats":"many"}"#, r#"{"at":"infinity"}"#] {
            let error = form.apply(row).unwrap_err();
            assert!(
                error.contains("column") && !error.contains("many") && !error.contains("infinity"),
                "{error}"
            );
        }
    }
}
