//! What the cloud already holds of an entity, learnt from the cloud itself and kept compactly in memory.
//!
//! A row costs 16 bytes: a truncated hash of its key. Where the comparison goes by content too, another 8: a digest of
//! the columns that the site sends. Two rows share a 16-byte hash with a probability that can be left out of account;
//! two contents of one row share an 8-byte digest once in 2^64, and then a difference stays unseen until the row
//! changes again.
//!
//! Texts are compared in a canonical form, since each side writes JSON in its own way: a key's value is its plain text,
//! so that `1` and `"1"` are the same key; white space, the order of columns and the way a string is escaped do not
//! count; a null and a missing column are the same.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hash, Hasher};

use crate::deliver::{Cloud, Outcome, pick, plain};
use crate::error::{Error, Kind, Result};

/// The rows that the cloud holds of one entity.
#[derive(Debug)]
pub struct Held {
    key: Vec<String>,
    rows: Rows,
}

#[derive(Debug)]
enum Rows {
    Keys(HashSet<Id, Plain>),
    Contents {
        columns: Vec<String>,
        digests: HashMap<Id, u64, Plain>,
    },
}

impl Held {
    /// Nothing yet, for an entity with this key; keys only.
    pub fn keys(key: &[String]) -> Self {
        Self {
            key: key.to_owned(),
            rows: Rows::Keys(HashSet::default()),
        }
    }

    /// Nothing yet, for an entity with this key; with a digest of these columns.
    pub fn contents(key: &[String], columns: &[String]) -> Self {
        let mut columns = columns.to_owned();
        columns.sort_unstable();
        Self {
            key: key.to_owned(),
            rows: Rows::Contents {
                columns,
                digests: HashMap::default(),
            },
        }
    }

    /// Asks the cloud for all its rows of the entity, or those of the last `days` days; with content digests where
    /// `columns` are given.
    ///
    /// # Errors
    /// The cloud's; a row without the key is a breach of its contract.
    pub async fn learn(
        cloud: &Cloud,
        entity: usize,
        days: Option<u32>,
        columns: Option<&[String]>,
    ) -> Outcome<Self> {
        let about = &cloud.catalogue().entities()[entity];
        let mut held = match columns {
            Some(columns) => Self::contents(&about.key, columns),
            None => Self::keys(&about.key),
        };
        cloud
            .list(entity, days, |row| {
                held.insert(row.get()).map_err(|error| {
                    Error::new(
                        Kind::CloudProtocol,
                        format!("list {} in the cloud", about.name),
                        error.cause(),
                    )
                    .remedy(format!("each object must hold {}", about.key.join(", ")))
                })
            })
            .await?;
        Ok(held)
    }

    /// Notes a row that the cloud holds.
    ///
    /// # Errors
    /// Where the text is not a JSON object that holds the key.
    pub fn insert(&mut self, row: &str) -> Result<()> {
        let id = id(row, &self.key)?;
        match &mut self.rows {
            Rows::Keys(ids) => {
                ids.insert(id);
            }
            Rows::Contents { columns, digests } => {
                let digest = digest(row, columns)?;
                digests.insert(id, digest);
            }
        }
        Ok(())
    }

    /// Notes that the cloud holds the row no more.
    pub fn remove(&mut self, key: &str) {
        if let Ok(id) = id(key, &self.key) {
            match &mut self.rows {
                Rows::Keys(ids) => {
                    ids.remove(&id);
                }
                Rows::Contents { digests, .. } => {
                    digests.remove(&id);
                }
            }
        }
    }

    /// Whether the cloud holds the row with this key: a JSON object that has the key's columns, a whole row included.
    pub fn contains(&self, key: &str) -> bool {
        id(key, &self.key).is_ok_and(|id| match &self.rows {
            Rows::Keys(ids) => ids.contains(&id),
            Rows::Contents { digests, .. } => digests.contains_key(&id),
        })
    }

    /// The digest of what the cloud holds of the row: to compare with [`digest`] of the site's row over the same
    /// columns. None where it does not hold the row, or only keys were learnt.
    pub fn content(&self, key: &str) -> Option<u64> {
        match &self.rows {
            Rows::Keys(_) => None,
            Rows::Contents { digests, .. } => digests.get(&id(key, &self.key).ok()?).copied(),
        }
    }

    /// How many rows it holds.
    pub fn len(&self) -> usize {
        match &self.rows {
            Rows::Keys(ids) => ids.len(),
            Rows::Contents { digests, .. } => digests.len(),
        }
    }

    /// Whether it holds no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A digest of the row's content in these columns, in whatever order they are named: the same for two texts that say the
/// same, see the module's words on the canonical form. Numbers are compared as they are written.
///
/// # Errors
/// Where the text is not a JSON object.
pub fn digest<C: AsRef<str> + Ord>(row: &str, columns: &[C]) -> Result<u64> {
    let values = pick(row, columns).map_err(|_| not_a_row("it is not a JSON object"))?;
    let mut order: Vec<usize> = (0..columns.len()).collect();
    order.sort_unstable_by_key(|&nth| columns[nth].as_ref());
    let mut hasher = blake3::Hasher::new();
    let mut text = String::new();
    for nth in order {
        let Some(value) = values[nth].filter(|value| value.get() != "null") else {
            continue;
        };
        text.clear();
        canonical(&mut text, value.get());
        field(&mut hasher, columns[nth].as_ref());
        field(&mut hasher, &text);
    }
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    Ok(u64::from_le_bytes(bytes))
}

/// JSON text without white space between its tokens, and with each string escaped in one way.
fn canonical(out: &mut String, json: &str) {
    let bytes = json.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b' ' | b'\n' | b'\r' | b'\t' => at += 1,
            b'"' => {
                let start = at;
                let mut escaped = false;
                at += 1;
                while at < bytes.len() && bytes[at] != b'"' {
                    escaped |= bytes[at] == b'\\';
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                at = (at + 1).min(bytes.len());
                let string = &json[start..at];
                let plain = escaped
                    .then(|| serde_json::from_str::<String>(string).ok())
                    .flatten()
                    .and_then(|text| serde_json::to_string(&text).ok());
                out.push_str(plain.as_deref().unwrap_or(string));
            }
            _ => {
                let start = at;
                while at < bytes.len() && !matches!(bytes[at], b' ' | b'\n' | b'\r' | b'\t' | b'"') {
                    at += 1;
                }
                out.push_str(&json[start..at]);
            }
        }
    }
}

/// The hash of the key's values, in the key's order.
fn id(object: &str, key: &[String]) -> Result<Id> {
    let values = pick(object, key).map_err(|_| not_a_row("it is not a JSON object"))?;
    let mut hasher = blake3::Hasher::new();
    for value in values {
        let value = value.ok_or_else(|| not_a_row("an object lacks a key column"))?;
        let text = plain(value).ok_or_else(|| not_a_row("an object's key column is null"))?;
        field(&mut hasher, &text);
    }
    let mut id = [0; 16];
    id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    Ok(Id(id))
}

/// Length first, so that two fields never read like two others.
fn field(hasher: &mut blake3::Hasher, text: &str) {
    hasher.update(&(text.len() as u64).to_le_bytes());
    hasher.update(text.as_bytes());
}

fn not_a_row(cause: &str) -> Error {
    Error::new(Kind::Local, "compare a row", cause)
}

/// A truncated hash of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Id([u8; 16]);

impl Hash for Id {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.0[..8]);
        state.write_u64(u64::from_le_bytes(bytes));
    }
}

/// An [`Id`] is a hash already.
type Plain = BuildHasherDefault<Already>;

#[derive(Debug, Default, Clone, Copy)]
struct Already(u64);

impl Hasher for Already {
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
        let mut held = Held::keys(&columns(&["term", "no"]));
        held.insert(r#"{"no":"1","term":"é","name":"x"}"#).unwrap();
        assert!(held.contains("{\"term\" : \"\\u00e9\", \"no\" : 1}"));
        assert!(!held.contains(r#"{"term":"é","no":2}"#));
        assert!(!held.contains(r#"{"term":"é1","no":""}"#));
        assert_eq!((held.len(), held.content(r#"{"term":"é","no":1}"#)), (1, None));
        held.remove(r#"{"term":"é","no":1}"#);
        assert!(held.is_empty());
    }

    #[test]
    fn objects_without_their_key_are_refused() {
        let mut held = Held::keys(&columns(&["id"]));
        for row in ["{}", "{\"id\":null}", "[]", "", "{\"id\":1"] {
            assert!(held.insert(row).is_err(), "{row}");
            assert!(!held.contains(row));
        }
    }

    #[test]
    fn a_digest_says_whether_two_rows_say_the_same() {
        let names = ["id", "tags", "note", "gone"];
        let site = digest(
            "{\"id\":1,\"tags\":{\"a\" : [1, 2],\n \"b\":\"x y\"},\"note\":\"\\u00e9\\/\",\"gone\":null,\"more\":1}",
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
        assert_ne!(
            digest("{\"id\":1.0}", &["id"]).unwrap(),
            digest("{\"id\":1}", &["id"]).unwrap()
        );
        assert!(digest("[1]", &["id"]).is_err());
    }

    #[test]
    fn contents_are_kept_by_key() {
        let all = columns(&["id", "name"]);
        let mut held = Held::contents(&columns(&["id"]), &all);
        held.insert(r#"{"id":"1","name":"a"}"#).unwrap();
        let row = r#"{"name":"a","id":"1","_position":7}"#;
        assert_eq!(held.content(r#"{"id":1}"#), Some(digest(row, &all).unwrap()));
        assert_eq!(held.content(r#"{"id":2}"#), None);
    }

    #[test]
    fn canonical_text_survives_quotes_and_backslashes() {
        for (text, expected) in [
            (
                r#" { "a\"b" : "c\\" , "d" : [ true , null ] } "#,
                r#"{"a\"b":"c\\","d":[true,null]}"#,
            ),
            (r#""\ud83d\ude00""#, "\"😀\""),
            ("\"\\n\"", "\"\\n\""),
            ("-1.50e3", "-1.50e3"),
        ] {
            let mut out = String::new();
            canonical(&mut out, text);
            assert_eq!(out, expected);
        }
    }
}
