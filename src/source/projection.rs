//! What is read of an entity's rows, and how it becomes the JSON of a row and of its key.
//!
//! One form for all: rows that were touched, rows that a sync compares, keys that are sent to the cloud. A
//! row has the columns that the table has now, without the excluded ones. Redaction happens here, by
//! [`redact`], with the values of the excluded columns: they are read for that, and never leave the program. So
//! does encryption, by [`column_cipher`](crate::encryption::column_cipher).

use secrecy::zeroize::Zeroizing;
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, Type};

use super::column_type::{Codec, SourceColumn};
use super::describe::SourceTable;
use super::quote_name;
use crate::catalogue::Entity;
use crate::encryption::column_cipher::ColumnCipher;
use crate::redact;
use crate::wire::column_values::to_json::{push_binary, push_number};
use crate::wire::json::push_string;

/// The buffer of a longer row is not used for the next one.
const SCRATCH: usize = 64 * 1024;

/// The columns of an entity's rows.
#[derive(Debug)]
pub(crate) struct Projection {
    columns: Vec<ProjectedColumn>,
    /// For each key column, its index among the columns.
    key: Vec<usize>,
    /// The names of the excluded columns whose values are taken out of redacted ones.
    secrets: Vec<String>,
    filter: Option<String>,
    /// Whether a column is encrypted.
    encrypts: bool,
}

#[derive(Debug)]
struct ProjectedColumn {
    name: String,
    base_type: String,
    codec: Codec,
    redacted: bool,
    encryption: Encryption,
    /// Whether it goes as the text of its JSON.
    as_text: bool,
    /// The name as a member of a JSON object: in quotes, with its colon.
    label: Vec<u8>,
}

/// Whether a column is encrypted.
#[derive(Debug)]
enum Encryption {
    /// It is sent as it is.
    None,
    Cipher(Box<ColumnCipher>),
    /// There is no key: no row is sent.
    NoKey,
}

impl Encryption {
    fn of(entity: &Entity, column: &str) -> Self {
        if !entity.encrypts(column) {
            return Self::None;
        }
        let keys = entity.keys.as_ref();
        let cipher = keys.and_then(|keys| ColumnCipher::new(keys, &entity.name, column));
        cipher.map_or(Self::NoKey, |cipher| Self::Cipher(Box::new(cipher)))
    }
}

impl ProjectedColumn {
    fn new(column: &SourceColumn, entity: &Entity) -> Self {
        let mut label = Vec::new();
        push_string(&mut label, column.name.as_bytes());
        label.push(b':');
        Self {
            name: column.name.clone(),
            base_type: column.base_type.clone(),
            codec: column.codec,
            redacted: entity.redact.contains(&column.name),
            encryption: Encryption::of(entity, &column.name),
            as_text: entity.is_sent_as_text(&column.name),
            label,
        }
    }

    /// The SQL expression that reads `value`.
    fn read(&self, value: &str) -> String {
        match self.codec {
            Codec::Binary(_) => value.to_owned(),
            Codec::Number | Codec::Text => format!("({value})::pg_catalog.text"),
            Codec::Output => super::output(value),
            Codec::Json => format!("pg_catalog.to_json({value})::pg_catalog.text"),
        }
    }

    /// Appends the value's JSON as it is sent in the row of this key; `None` if it has none.
    fn sent(&self, json: &mut Vec<u8>, field: Option<&[u8]>, secrets: &[&str], row_key: &[u8]) -> Option<()> {
        let cipher = match &self.encryption {
            Encryption::Cipher(cipher) if field.is_some() => cipher,
            Encryption::NoKey => return None,
            _ => return self.json(json, field, secrets),
        };
        let mut value = Zeroizing::new(Vec::new());
        self.json(&mut value, field, secrets)?;
        if *value == *b"null" {
            // A JSON null of a column of type json.
            json.extend_from_slice(b"null");
            return Some(());
        }
        push_string(json, cipher.encrypt(row_key, &value)?.as_bytes());
        Some(())
    }

    /// Appends the value's JSON; `None` if it has none.
    fn json(&self, json: &mut Vec<u8>, field: Option<&[u8]>, secrets: &[&str]) -> Option<()> {
        let start = json.len();
        self.own_json(json, field, secrets)?;
        if self.as_text {
            let value = json.split_off(start);
            match &*value {
                [b'"', ..] | b"null" => json.extend_from_slice(&value),
                _ => push_string(json, &value),
            }
        }
        Some(())
    }

    /// Appends the JSON that the column's type has.
    fn own_json(&self, json: &mut Vec<u8>, field: Option<&[u8]>, secrets: &[&str]) -> Option<()> {
        let Some(field) = field else {
            json.extend_from_slice(b"null");
            return Some(());
        };
        if self.redacted {
            let text = std::str::from_utf8(field).ok()?;
            match self.codec {
                Codec::Json | Codec::Binary(114) => {
                    json.extend_from_slice(redact::redact_json(text, secrets)?.as_bytes());
                }
                Codec::Binary(3802) => {
                    json.extend_from_slice(
                        redact::redact_json(text.strip_prefix('\u{1}')?, secrets)?.as_bytes(),
                    );
                }
                Codec::Text | Codec::Output | Codec::Binary(25 | 1042 | 1043) => {
                    push_string(json, redact::redact_text(text, secrets).as_bytes());
                }
                Codec::Number | Codec::Binary(_) => return None,
            }
            return Some(());
        }
        match self.codec {
            Codec::Binary(oid) => push_binary(json, oid, field)?,
            Codec::Number => push_number(json, field),
            Codec::Text | Codec::Output => push_string(json, field),
            Codec::Json => json.extend_from_slice(field),
        }
        Some(())
    }
}

/// A row as it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RowImage {
    /// Its key, a JSON object.
    pub(crate) key: Box<str>,
    /// All of it, a JSON object.
    pub(crate) row: Box<str>,
}

/// A buffer in which images are built, one after the other.
#[derive(Debug, Default)]
pub(crate) struct ImageBuffer {
    row: Vec<u8>,
    key: Vec<u8>,
    /// Where in the row each key column's value begins and ends.
    key_spans: Vec<(usize, usize)>,
}

/// What was read of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PresentRow {
    /// It exists.
    Row(RowImage),
    /// It exists, and does not meet the entity's condition.
    Unmet(Box<str>),
    /// It exists, and has no JSON.
    Unreadable(String),
}

impl Projection {
    /// Of rows that meet the condition: see [`super::condition`].
    pub(crate) fn new(entity: &Entity, table: &SourceTable, condition: Option<String>) -> Self {
        let columns: Vec<_> = table
            .columns
            .iter()
            .filter(|column| !entity.leaves_out(&column.name))
            .map(|column| ProjectedColumn::new(column, entity))
            .collect();
        let index = |name: &String| columns.iter().position(|field| field.name == *name);
        Self {
            key: entity.key.iter().filter_map(index).collect(),
            secrets: if entity.redact.is_empty() {
                Vec::new()
            } else {
                let left_out = table.columns.iter().map(|column| &column.name);
                left_out
                    .filter(|column| entity.leaves_out(column))
                    .cloned()
                    .collect()
            },
            filter: condition,
            encrypts: columns
                .iter()
                .any(|column| !matches!(column.encryption, Encryption::None)),
            columns,
        }
    }

    /// The select list over a table `t`. If rows are `optional`, it evaluates nothing of a row that does not
    /// exist.
    pub(crate) fn list(&self, optional: bool) -> String {
        let mut list = vec![if optional && self.filter.is_some() {
            format!("case when t.tableoid is not null then {} end", self.met())
        } else {
            self.met()
        }];
        list.extend(
            self.columns
                .iter()
                .map(|field| field.read(&format!("t.{}", quote_name(&field.name)))),
        );
        let secret = |name: &String| format!("t.{}::pg_catalog.text", quote_name(name));
        list.extend(self.secrets.iter().map(secret));
        list.join(", ")
    }

    /// SQL that returns whether a row meets the condition.
    pub(crate) fn met(&self) -> String {
        self.filter
            .as_ref()
            .map_or("true".to_owned(), |filter| format!("({filter}) is true"))
    }

    /// The select list of the key's columns, given as values of their types.
    pub(crate) fn key_list(&self, values: &[String]) -> String {
        let list: Vec<_> = self
            .fields()
            .zip(values)
            .map(|(field, value)| field.read(value))
            .collect();
        list.join(", ")
    }

    /// The types of the key's columns, for casts.
    pub(crate) fn key_types(&self) -> impl Iterator<Item = &str> {
        self.fields().map(|field| field.base_type.as_str())
    }

    fn fields(&self) -> impl Iterator<Item = &ProjectedColumn> {
        self.key.iter().map(|&index| &self.columns[index])
    }

    /// The row whose columns, those of [`Projection::list`], begin at `first`.
    pub(crate) fn present(&self, row: &Row, first: usize, scratch: &mut ImageBuffer) -> PresentRow {
        match self.image(row, first, scratch) {
            Some(image) if row.get::<_, Option<bool>>(first) == Some(true) => PresentRow::Row(image),
            Some(image) => PresentRow::Unmet(image.key),
            None if self.lacks_key() => PresentRow::Unreadable(
                "a column is to be encrypted, and there is no key: see encryption.key_file".to_owned(),
            ),
            None => PresentRow::Unreadable("a value of the row has no JSON form".to_owned()),
        }
    }

    fn lacks_key(&self) -> bool {
        let mut columns = self.columns.iter();
        columns.any(|column| matches!(column.encryption, Encryption::NoKey))
    }

    fn image(&self, row: &Row, first: usize, scratch: &mut ImageBuffer) -> Option<RowImage> {
        let columns = first + 1;
        let secrets: Vec<&str> = (0..self.secrets.len())
            .filter_map(|column_index| field(row, columns + self.columns.len() + column_index))
            .map(std::str::from_utf8)
            .collect::<Result<_, _>>()
            .ok()?;
        let ImageBuffer {
            row: json,
            key,
            key_spans,
        } = scratch;
        let row_key = match self.encrypts {
            true => self.image_key(row, first)?,
            false => Box::default(),
        };
        json.clear();
        json.reserve(row.raw_size_bytes() + self.columns.len() * 16);
        key.clear();
        key_spans.clear();
        key_spans.resize(self.key.len(), (0, 0));
        for (column_index, column) in self.columns.iter().enumerate() {
            json.push(if column_index == 0 { b'{' } else { b',' });
            json.extend_from_slice(&column.label);
            let start = json.len();
            column.sent(
                json,
                field(row, columns + column_index),
                &secrets,
                row_key.as_bytes(),
            )?;
            if let Some(key_index) = self.key.iter().position(|&index| index == column_index) {
                key_spans[key_index] = (start, json.len());
            }
        }
        json.push(b'}');
        for (column_index, (column, &(start, end))) in self.fields().zip(&*key_spans).enumerate() {
            key.push(if column_index == 0 { b'{' } else { b',' });
            key.extend_from_slice(&column.label);
            key.extend_from_slice(&json[start..end]);
        }
        key.push(b'}');
        let key = std::str::from_utf8(key).ok()?.into();
        // A short row is copied out of the buffer, which costs less than a new buffer for each row. A long
        // one takes the buffer.
        let row = if json.len() > SCRATCH {
            String::from_utf8(std::mem::take(json)).ok()?.into()
        } else {
            std::str::from_utf8(json).ok()?.into()
        };
        Some(RowImage { key, row })
    }

    /// The key alone, out of the columns of [`Projection::list`] from `first` on.
    pub(crate) fn image_key(&self, row: &Row, first: usize) -> Option<Box<str>> {
        let column_indexes = self.key.iter().map(|column_index| first + 1 + column_index);
        self.key_of(row, column_indexes)
    }

    /// The key's JSON object out of the columns of [`Projection::key_list`] from `first` on.
    pub(crate) fn key(&self, row: &Row, first: usize) -> Option<Box<str>> {
        self.key_of(row, first..)
    }

    fn key_of(&self, row: &Row, column_indexes: impl IntoIterator<Item = usize>) -> Option<Box<str>> {
        let mut key = Vec::with_capacity(64);
        for (key_index, (column, column_index)) in self.fields().zip(column_indexes).enumerate() {
            key.push(if key_index == 0 { b'{' } else { b',' });
            key.extend_from_slice(&column.label);
            column.json(&mut key, field(row, column_index), &[])?;
        }
        key.push(b'}');
        Some(String::from_utf8(key).ok()?.into())
    }

    /// The key's JSON object of an integer key.
    pub(crate) fn number_key(&self, number: i64) -> Box<str> {
        let label = self.fields().next().map_or(&b"\"\":"[..], |field| &field.label);
        format!("{{{}{number}}}", String::from_utf8_lossy(label)).into()
    }

    /// The key's JSON object of texts that are not values of the columns' types.
    pub(crate) fn text_key(&self, texts: &[Option<String>]) -> Box<str> {
        let mut key = Vec::new();
        for (key_index, (column, text)) in self.fields().zip(texts).enumerate() {
            key.push(if key_index == 0 { b'{' } else { b',' });
            key.extend_from_slice(&column.label);
            match text {
                Some(text) => push_string(&mut key, text.as_bytes()),
                None => key.extend_from_slice(b"null"),
            }
        }
        key.push(b'}');
        String::from_utf8_lossy(&key).into_owned().into()
    }
}

/// A value's bytes, whatever its type.
struct RawBytes<'a>(&'a [u8]);

impl<'a> FromSql<'a> for RawBytes<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(raw))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

fn field(row: &Row, column_index: usize) -> Option<&[u8]> {
    row.get::<_, Option<RawBytes<'_>>>(column_index)
        .map(|RawBytes(field)| field)
}
