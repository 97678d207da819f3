//! The binary format of COPY, for the types that most columns have: each value has its length before it.
//!
//! Only values in the usual form are written here. All others are left to PostgreSQL's own input functions.

use crate::receiver::tables::column_type::ColumnType;
use crate::wire::column_values::from_json::BinaryType;

/// How a column's values are written in the binary format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CopyFormat(BinaryType);

impl CopyFormat {
    /// The format of a type; `None` if it has none here.
    pub(crate) fn of(column_type: ColumnType) -> Option<Self> {
        if column_type.array {
            return None;
        }
        Some(Self(match column_type.name {
            "boolean" => BinaryType::Boolean,
            "smallint" => BinaryType::SmallInt,
            "integer" => BinaryType::Integer,
            "bigint" => BinaryType::BigInt,
            "numeric" => BinaryType::Numeric,
            "real" => BinaryType::Real,
            "double precision" => BinaryType::Double,
            "text" | "character varying" => BinaryType::Text,
            "json" => BinaryType::Json,
            "jsonb" => BinaryType::Jsonb,
            "bytea" => BinaryType::Bytea,
            "date" => BinaryType::Date,
            "time without time zone" => BinaryType::Time,
            "timestamp without time zone" => BinaryType::Timestamp,
            "timestamp with time zone" => BinaryType::TimestampTz,
            "uuid" => BinaryType::Uuid,
            _ => return None,
        }))
    }

    /// Appends a value, given as JSON text, with its length before it. Returns false if it is not in the
    /// usual form; what was appended must be removed then.
    pub(crate) fn append(self, buffer: &mut Vec<u8>, cell: Option<&str>) -> bool {
        let Some(token) = cell.filter(|token| *token != "null") else {
            buffer.extend_from_slice(&(-1_i32).to_be_bytes());
            return true;
        };
        let start = buffer.len();
        buffer.extend_from_slice(&[0; 4]);
        if self.0.push(buffer, token).is_none() {
            return false;
        }
        let Ok(length) = i32::try_from(buffer.len() - start - 4) else {
            return false;
        };
        buffer[start..start + 4].copy_from_slice(&length.to_be_bytes());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_has_its_length_before_it_and_null_has_minus_one() {
        let (number, mut buffer) = (CopyFormat::of(ColumnType::declared("int4")).unwrap(), Vec::new());
        assert!(number.append(&mut buffer, Some("258")));
        assert!(number.append(&mut buffer, Some("null")) && number.append(&mut buffer, None));
        assert_eq!(
            buffer,
            [0, 0, 0, 4, 0, 0, 1, 2, 255, 255, 255, 255, 255, 255, 255, 255]
        );
        assert!(!number.append(&mut buffer, Some("\"258\"")));
        assert_eq!(CopyFormat::of(ColumnType::declared("int4[]")), None);
    }
}
