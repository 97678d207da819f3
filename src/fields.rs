//! Single fields out of a row's or a key's JSON text.
//!
//! The text is walked once and only the wanted fields are kept, unparsed.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The fields with these names, in the order of `columns`; none where the object has no such field.
///
/// # Errors
/// Where the text is not a JSON object.
pub(crate) fn pick<'a, C: AsRef<str>>(
    object: &'a str,
    columns: &[C],
) -> Result<Vec<Option<&'a RawValue>>, serde_json::Error> {
    let mut parser = serde_json::Deserializer::from_str(object);
    let found = parser.deserialize_map(WantedFields { columns })?;
    parser.end()?;
    Ok(found)
}

/// All fields of the object, in their order, with their names.
///
/// # Errors
/// Where the text is not a JSON object.
pub(crate) fn all(object: &str) -> Result<Vec<(String, &RawValue)>, serde_json::Error> {
    let mut parser = serde_json::Deserializer::from_str(object);
    let found = parser.deserialize_map(AllFields)?;
    parser.end()?;
    Ok(found)
}

/// A field's value as plain text: a string without its quotes, null as nothing, all else as it is written.
pub(crate) fn plain(value: &RawValue) -> Option<String> {
    match value.get() {
        "null" => None,
        text if text.starts_with('"') => serde_json::from_str(text).ok(),
        text => Some(text.to_owned()),
    }
}

struct WantedFields<'c, C> {
    columns: &'c [C],
}

impl<'de, C: AsRef<str>> Visitor<'de> for WantedFields<'_, C> {
    type Value = Vec<Option<&'de RawValue>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = vec![None; self.columns.len()];
        while let Some(place) = map.next_key_seed(FieldIndex {
            columns: self.columns,
        })? {
            match place {
                Some(place) => found[place] = Some(map.next_value()?),
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(found)
    }
}

struct AllFields;

impl<'de> Visitor<'de> for AllFields {
    type Value = Vec<(String, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = Vec::new();
        while let Some(field) = map.next_entry()? {
            found.push(field);
        }
        Ok(found)
    }
}

/// The place of a field's name among the wanted ones.
struct FieldIndex<'c, C> {
    columns: &'c [C],
}

impl<'de, C: AsRef<str>> DeserializeSeed<'de> for FieldIndex<'_, C> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, name: D) -> Result<Self::Value, D::Error> {
        name.deserialize_str(self)
    }
}

impl<C: AsRef<str>> Visitor<'_> for FieldIndex<'_, C> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field's name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.columns.iter().position(|column| column.as_ref() == name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_name_and_kept_unparsed() {
        let row = r#"{"b" : "x\u00e9", "a":12345678901234567890.10, "n":null, "o":{"a":1}}"#;
        let found = pick(row, &["a", "b", "n", "missing"]).unwrap();
        let text: Vec<_> = found.iter().map(|value| value.map(RawValue::get)).collect();
        assert_eq!(
            text,
            [
                Some("12345678901234567890.10"),
                Some("\"x\\u00e9\""),
                Some("null"),
                None
            ]
        );
        assert_eq!(plain(found[1].unwrap()).as_deref(), Some("xé"));
        for wrong in ["", "[]", "1", "{\"a\":1} x", "{\"a\"}"] {
            assert!(pick(wrong, &["a"]).is_err(), "{wrong}");
        }
    }
}
