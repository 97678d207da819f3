//! The report of a sync. The API, the command line and the library give the same one.
//!
//! What always holds: every entity of the catalogue is in it, in push order; a sync succeeded if its report
//! has no error. A row's key is reported as it is in the row: a number or a text for a key of one column, an
//! object for a composite key. Keys stay the text that the database wrote, so that no number loses a digit.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, SerializeStruct, Serializer};
use serde_json::value::RawValue;

use crate::catalogue::{Catalogue, EntityIndex};
use crate::error::{Error, Kind, Result};

/// A value for each entity, in push order; in JSON an object with the entities' names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PerEntity<T>(Vec<(String, T)>);

impl<T> PerEntity<T> {
    /// A default value for each entity of the catalogue.
    pub fn new(catalogue: &Catalogue) -> Self
    where
        T: Default,
    {
        catalogue
            .entities()
            .iter()
            .map(|entity| (entity.name.clone(), T::default()))
            .collect()
    }

    /// The entities' names and values, in push order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// The value of the entity with this name.
    pub fn get(&self, name: &str) -> Option<&T> {
        self.iter()
            .find(|&(other, _)| other == name)
            .map(|(_, value)| value)
    }

    /// The value of the entity at `entity_index` in the catalogue.
    pub fn at(&mut self, entity_index: EntityIndex) -> &mut T {
        &mut self.0[entity_index.0].1
    }
}

impl<T> FromIterator<(String, T)> for PerEntity<T> {
    fn from_iter<I: IntoIterator<Item = (String, T)>>(pairs: I) -> Self {
        Self(pairs.into_iter().collect())
    }
}

impl<T: Serialize> Serialize for PerEntity<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for PerEntity<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Pairs<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Pairs<T> {
            type Value = PerEntity<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with a value for each entity")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<PerEntity<T>, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(PerEntity(pairs))
            }
        }

        deserializer.deserialize_map(Pairs(PhantomData))
    }
}

/// What a sync did.
#[derive(Debug, Clone, serde::Deserialize)]
pub struct SyncReport {
    synced: PerEntity<Vec<Box<RawValue>>>,
    errors: Vec<String>,
}

impl SyncReport {
    /// A report in which nothing has happened yet.
    pub fn new(catalogue: &Catalogue) -> Self {
        Self {
            synced: PerEntity::new(catalogue),
            errors: Vec::new(),
        }
    }

    /// Adds a row of the entity at `entity_index` that was pushed. `key` is its key as a JSON object.
    ///
    /// # Errors
    /// The key is no JSON object.
    pub fn add(&mut self, entity_index: EntityIndex, key: &str) -> Result<()> {
        let key = reported_key(key)
            .map_err(|_| Error::new(Kind::Source, "report a synced row", "its key is no JSON object"))?;
        self.synced.at(entity_index).push(key);
        Ok(())
    }

    /// Adds the failure of an entity, with its reason: `Failed to sync cameras: Connection timeout`.
    pub fn fail(&mut self, entity: &str, reason: impl fmt::Display) {
        self.errors.push(format!("Failed to sync {entity}: {reason}"));
    }

    /// Adds an error that belongs to no entity.
    pub fn error(&mut self, error: impl fmt::Display) {
        self.errors.push(error.to_string());
    }

    /// Whether there was no error.
    pub fn success(&self) -> bool {
        self.errors.is_empty()
    }

    /// The pushed rows' keys by entity, in push order.
    pub fn synced(&self) -> &PerEntity<Vec<Box<RawValue>>> {
        &self.synced
    }

    /// How many rows were pushed, by entity.
    pub fn summary(&self) -> PerEntity<usize> {
        self.synced
            .iter()
            .map(|(name, keys)| (name.to_owned(), keys.len()))
            .collect()
    }

    /// What went wrong.
    pub fn errors(&self) -> &[String] {
        &self.errors
    }
}

/// The value of a key object with one column, or the whole object if it has several.
fn reported_key(key: &str) -> serde_json::Result<Box<RawValue>> {
    let columns: PerEntity<Box<RawValue>> = serde_json::from_str(key)?;
    match <[_; 1]>::try_from(columns.0) {
        Ok([(_, value)]) => Ok(value),
        Err(_) => RawValue::from_string(key.trim().to_owned()),
    }
}

impl Serialize for SyncReport {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut report = serializer.serialize_struct("SyncReport", 4)?;
        report.serialize_field("success", &self.success())?;
        report.serialize_field("synced", &self.synced)?;
        report.serialize_field("summary", &self.summary())?;
        report.serialize_field("errors", &self.errors)?;
        report.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_is_the_contracts() {
        let catalogue = Catalogue::builtin();
        let mut report = SyncReport::new(&catalogue);
        report.add(EntityIndex(0), "{\"room_id\" : 1}").unwrap();
        report
            .add(EntityIndex(0), "{\"room_id\":9223372036854775807}")
            .unwrap();
        assert!(report.success());
        report.fail("cameras", "Connection timeout");
        assert_eq!(
            serde_json::to_string(&report).unwrap(),
            "{\"success\":false,\"synced\":{\"rooms\":[1,9223372036854775807],\"cameras\":[],\
             \"faculties\":[],\"teaching_loads\":[],\"attendance_records\":[],\"leaves\":[],\
             \"passes\":[],\"recognition_logs\":[],\"stream_recordings\":[]},\
             \"summary\":{\"rooms\":2,\"cameras\":0,\"faculties\":0,\"teaching_loads\":0,\
             \"attendance_records\":0,\"leaves\":0,\"passes\":0,\"recognition_logs\":0,\
             \"stream_recordings\":0},\
             \"errors\":[\"Failed to sync cameras: Connection timeout\"]}"
        );
    }

    #[test]
    fn composite_and_text_keys_are_reported_as_they_are() {
        let mut report = SyncReport::new(&Catalogue::builtin());
        report.add(EntityIndex(1), "{\"a\" : 1, \"b\" : \"x\"}").unwrap();
        report.add(EntityIndex(1), "{\"code\":\"R-1\"}").unwrap();
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(
            json["synced"]["cameras"],
            serde_json::json!([{"a": 1, "b": "x"}, "R-1"])
        );
        assert!(report.add(EntityIndex(1), "[1]").is_err());
    }

    #[test]
    fn it_comes_back_as_it_was_sent() {
        let mut report = SyncReport::new(&Catalogue::builtin());
        report
            .add(EntityIndex(2), "{\"id\":12345678901234567890123.5}")
            .unwrap();
        report.fail("rooms", "x");
        let text = serde_json::to_string(&report).unwrap();
        let back: SyncReport = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&back).unwrap(), text);
    }
}
