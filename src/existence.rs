//! The rows that the cloud already holds of an entity, as the cloud lists them, kept compactly in memory.
//!
//! A row costs 16 bytes: a truncated hash of its key. If contents are compared too, it costs 8 more: a digest
//! of the columns that the site sends. The probability that two rows share a 16-byte hash is negligible. Two
//! contents of one row share an 8-byte digest once in 2^64; then the difference stays unseen until the row
//! changes again.
//!
//! Each side writes a value in its own way, and the cloud may keep it in a wider type. So keys are compared
//! as plain text: `1` and `"1"` are the same key. Contents are compared in a canonical form: see [`digest`].

mod canonical;

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hash, Hasher};

use crate::catalogue::EntityIndex;
use crate::deliver::{Cloud, CloudResult};
use crate::error::{Error, Kind, Result};
use crate::wire::json::{non_null_text, pick};

/// The rows that the cloud holds of one entity.
#[derive(Debug)]
pub struct CloudRows {
    key: Vec<String>,
    rows: RowSet,
}

#[derive(Debug)]
enum RowSet {
    Keys(HashSet<KeyHash, KeyHashBuilder>),
    Contents {
        columns: Vec<String>,
        digests: HashMap<KeyHash, u64, KeyHashBuilder>,
    },
}

impl CloudRows {
    /// Makes an empty set for an entity with this key, of keys only.
    pub fn keys(key: &[String]) -> Self {
        Self {
            key: key.to_owned(),
            rows: RowSet::Keys(HashSet::default()),
        }
    }

    /// Makes an empty set for an entity with this key, with a digest of these columns for each row.
    pub fn contents(key: &[String], columns: &[String]) -> Self {
        let mut columns = columns.to_owned();
        columns.sort_unstable();
        Self {
            key: key.to_owned(),
            rows: RowSet::Contents {
                columns,
                digests: HashMap::default(),
            },
        }
    }

    /// Asks the cloud for all its rows of the entity, or for those of the last `days` days; with content
    /// digests if `columns` are given. The keys are the cloud's: see [`Cloud::cloud_key_of`].
    ///
    /// # Errors
    /// The cloud's; a row without the key breaks the wire contract.
    pub async fn learn(
        cloud: &Cloud,
        entity: EntityIndex,
        days: Option<u32>,
        columns: Option<&[String]>,
    ) -> CloudResult<Self> {
        let entity_settings = &cloud.catalogue()[entity];
        let key = entity_settings.cloud_key();
        let mut cloud_rows = match columns {
            Some(columns) => Self::contents(&key, columns),
            None => Self::keys(&key),
        };
        cloud
            .list(entity, days, |row| {
                cloud_rows.insert(row.get()).map_err(|error| {
                    Error::new(
                        Kind::CloudProtocol,
                        format!("list {} in the cloud", entity_settings.name),
                        error.cause(),
                    )
                    .remedy(format!(
                        "each object must hold {}; if the server has other names for them, set rename",
                        key.join(", ")
                    ))
                })
            })
            .await?;
        Ok(cloud_rows)
    }

    /// Adds a row that the cloud holds.
    ///
    /// # Errors
    /// The text is not a JSON object that holds the key.
    pub fn insert(&mut self, row: &str) -> Result<()> {
        let id = self.key_hash(row)?;
        match &mut self.rows {
            RowSet::Keys(ids) => {
                ids.insert(id);
            }
            RowSet::Contents { columns, digests } => {
                let digest = digest(row, columns)?;
                digests.insert(id, digest);
            }
        }
        Ok(())
    }

    /// Removes a row, given as a JSON object that has the key's columns. Returns `None` if the cloud does not
    /// hold it; else the digest of its content, if contents are compared.
    pub fn remove(&mut self, key: &str) -> Option<Option<u64>> {
        let id = self.key_hash(key).ok()?;
        match &mut self.rows {
            RowSet::Keys(ids) => ids.remove(&id).then_some(None),
            RowSet::Contents { digests, .. } => digests.remove(&id).map(Some),
        }
    }

    /// Whether the cloud holds the row with this key: a JSON object that has the key's columns, a whole row
    /// included.
    pub fn contains(&self, key: &str) -> bool {
        self.key_hash(key).is_ok_and(|id| match &self.rows {
            RowSet::Keys(ids) => ids.contains(&id),
            RowSet::Contents { digests, .. } => digests.contains_key(&id),
        })
    }

    /// The digest of the row's content in the cloud, to compare with [`digest`] of the site's row over the
    /// same columns. `None` if the cloud does not hold the row, or if only keys are compared.
    pub fn content(&self, key: &str) -> Option<u64> {
        match &self.rows {
            RowSet::Keys(_) => None,
            RowSet::Contents { digests, .. } => digests.get(&self.key_hash(key).ok()?).copied(),
        }
    }

    /// The hash of the object's key. If contents are compared, the server is the receiver, which writes keys
    /// as they were sent.
    fn key_hash(&self, object: &str) -> Result<KeyHash> {
        key_hash(object, &self.key, matches!(self.rows, RowSet::Keys(_)))
    }

    /// How many rows the cloud holds.
    pub fn len(&self) -> usize {
        match &self.rows {
            RowSet::Keys(ids) => ids.len(),
            RowSet::Contents { digests, .. } => digests.len(),
        }
    }

    /// Whether the cloud holds no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A digest of the row's content in these columns, whose order does not matter: two texts with the same
/// meaning have the same digest. Null and a missing column are equal. Strings, numbers and booleans are
/// compared as plain text; numbers by value; dates and times by the moment. In arrays and objects, white
/// space and the escaping of strings do not matter, and a text that holds such JSON is equal to that JSON.
///
/// # Errors
/// The text is not a JSON object.
pub fn digest<C: AsRef<str> + Ord>(row: &str, columns: &[C]) -> Result<u64> {
    let values = pick(row, columns).map_err(|_| not_a_row("it is not a JSON object"))?;
    let mut order: Vec<usize> = (0..columns.len()).collect();
    order.sort_unstable_by_key(|&column_index| columns[column_index].as_ref());
    let mut hasher = blake3::Hasher::new();
    let mut text = String::new();
    for column_index in order {
        let Some(value) = values[column_index].filter(|value| *value != "null") else {
            continue;
        };
        text.clear();
        canonical::value(&mut text, value);
        hash_field(&mut hasher, columns[column_index].as_ref());
        hash_field(&mut hasher, &text);
    }
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    Ok(u64::from_le_bytes(bytes))
}

/// The hash of the key's values, in the key's order. `loosely` means that `1.0` is `1`.
fn key_hash(object: &str, key: &[String], loosely: bool) -> Result<KeyHash> {
    let values = pick(object, key).map_err(|_| not_a_row("it is not a JSON object"))?;
    let mut hasher = blake3::Hasher::new();
    for value in values {
        let value = value.ok_or_else(|| not_a_row("an object lacks a key column"))?;
        let text = non_null_text(value).ok_or_else(|| not_a_row("an object's key column is null"))?;
        let text = if loosely {
            without_zero_fraction(value, &text)
        } else {
            &text
        };
        hash_field(&mut hasher, text);
    }
    let mut id = [0; 16];
    id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    Ok(KeyHash(id))
}

/// Removes the fraction of a number like `1.0`: a server whose language has no whole numbers writes them so.
/// Returns any other text unchanged.
fn without_zero_fraction<'t>(value: &str, text: &'t str) -> &'t str {
    match text.strip_suffix(".0") {
        Some(whole) if !value.starts_with('"') => whole,
        _ => text,
    }
}

/// Hashes a field: its length first, so that two fields never hash like two others.
fn hash_field(hasher: &mut blake3::Hasher, text: &str) {
    hasher.update(&(text.len() as u64).to_le_bytes());
    hasher.update(text.as_bytes());
}

fn not_a_row(cause: &str) -> Error {
    Error::new(Kind::Local, "compare a row", cause)
}

/// A truncated hash of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct KeyHash([u8; 16]);

impl Hash for KeyHash {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.0[..8]);
        state.write_u64(u64::from_le_bytes(bytes));
    }
}

/// A [`KeyHash`] is a hash already.
type KeyHashBuilder = BuildHasherDefault<IdentityHasher>;

#[derive(Debug, Default, Clone, Copy)]
struct IdentityHasher(u64);

impl Hasher for IdentityHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn a_key_is_found_however_it_is_written() {
        let mut held = CloudRows::keys(&columns(&["term", "no"]));
        held.insert(r#"{"no":"1","term":"é","name":"x"}"#).unwrap();
        assert!(held.contains("{\"term\" : \"\\u00e9\", \"no\" : 1}"));
        assert!(held.contains(r#"{"term":"é","no":1.0}"#) && !held.contains(r#"{"term":"é","no":1.5}"#));
        assert!(!held.contains(r#"{"term":"é","no":"1.0"}"#));
        assert!(!held.contains(r#"{"term":"é","no":2}"#));
        assert!(!held.contains(r#"{"term":"é1","no":""}"#));
        assert_eq!((held.len(), held.content(r#"{"term":"é","no":1}"#)), (1, None));
        let key = r#"{"term":"é","no":1}"#;
        assert_eq!((held.remove(key), held.remove(key)), (Some(None), None));
        assert!(held.is_empty());
    }

    #[test]
    fn objects_without_their_key_are_refused() {
        let mut held = CloudRows::keys(&columns(&["id"]));
        for row in ["{}", "{\"id\":null}", "[]", "", "{\"id\":1"] {
            assert!(held.insert(row).is_err(), "{row}");
            assert!(!held.contains(row));
        }
    }

    #[test]
    fn a_digest_says_whether_two_rows_say_the_same() {
        let names = ["id", "tags", "note", "gone"];
        let site = digest(
            "{\"id\":1,\"tags\":{\"a\" : [1, 2],\n \"b\":\"x y\"},\
             \"note\":\"\\u00e9\\/\",\"gone\":null,\"more\":1}",
            &names,
        )
        .unwrap();
        let cloud = r#"{"_site":"college","note":"é/","tags":{"a":[1,2],"b":"x y"},"id":1}"#;
        assert_eq!(site, digest(cloud, &names).unwrap());
        assert_eq!(site, digest(cloud, &["note", "gone", "id", "tags"]).unwrap());
        for other in [
            r#"{"note":"é/","tags":{"a":[1,2],"b":"xy"},"id":1}"#,
            r#"{"note":"é/","tags":{"a":[1,2],"b":"x y"},"id":2}"#,
            r#"{"note":"é/","tags":{"a":[12],"b":"x y"},"id":1}"#,
            r#"{"tags":"é/","note":{"a":[1,2],"b":"x y"},"id":1}"#,
            r#"{"note":"é/","tags":{"a":[1,2],"b":"x y"}}"#,
        ] {
            assert_ne!(site, digest(other, &names).unwrap(), "{other}");
        }
        assert_eq!(
            digest("{\"id\":1.0}", &["id"]).unwrap(),
            digest("{\"id\":\"1\"}", &["id"]).unwrap()
        );
        assert!(digest("[1]", &["id"]).is_err());
    }

    #[test]
    fn contents_are_kept_by_key() {
        let all = columns(&["id", "name"]);
        let mut held = CloudRows::contents(&columns(&["id"]), &all);
        held.insert(r#"{"id":"1","name":"a"}"#).unwrap();
        let row = r#"{"name":"a","id":"1","_version":7}"#;
        assert_eq!(held.content(r#"{"id":1}"#), Some(digest(row, &all).unwrap()));
        assert_eq!(held.content(r#"{"id":2}"#), None);
    }
}
