//! Turns the JSON values of one column, of many rows, into one PostgreSQL array.
//!
//! Values of the common types are read here and travel in binary form, which spares the server most of the
//! work of a row. A column with any value in an unusual form travels as text, and PostgreSQL's own input
//! function reads it, or says why it cannot.

use std::borrow::Cow;

use bytes::{BufMut, BytesMut};
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};

use crate::receiver::tables::column_type::ColumnType;
use crate::wire::column_values::from_json::{date, timestamp, timestamptz};
use crate::wire::json;

/// One column's values, as the value of a parameter.
pub(crate) enum ArrayParam<'a> {
    Boolean(Vec<Option<bool>>),
    SmallInt(Vec<Option<i16>>),
    Integer(Vec<Option<i32>>),
    BigInt(Vec<Option<i64>>),
    Date(Vec<Option<Date>>),
    Timestamp(Vec<Option<Timestamp>>),
    TimestampTz(Vec<Option<TimestampTz>>),
    Text(Vec<Option<Cow<'a, str>>>),
    /// Text that PostgreSQL turns into the column's type.
    Cast(Vec<Option<Cow<'a, str>>>),
}

macro_rules! binary {
    ($(#[$doc:meta])* $name:ident, $inner:ty, $type:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) struct $name(pub(crate) $inner);

        impl ToSql for $name {
            fn to_sql(
                &self,
                _: &Type,
                buffer: &mut BytesMut,
            ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
                buffer.put_slice(&self.0.to_be_bytes());
                Ok(IsNull::No)
            }

            fn accepts(given: &Type) -> bool {
                *given == Type::$type
            }

            to_sql_checked!();
        }
    };
}

binary!(
    /// A `date`, in days since 2000-01-01.
    Date, i32, DATE
);
binary!(
    /// A `timestamp`, in microseconds since 2000-01-01.
    Timestamp, i64, TIMESTAMP
);
binary!(
    /// A `timestamptz`, in microseconds since 2000-01-01 UTC.
    TimestampTz, i64, TIMESTAMPTZ
);

/// Parses each value; `None` if any is not in the usual form.
fn parse_all<'a, T>(
    cells: impl Iterator<Item = Option<&'a str>>,
    parse: impl Fn(&'a str) -> Option<T>,
) -> Option<Vec<Option<T>>> {
    let mut values = Vec::with_capacity(cells.size_hint().0);
    for cell in cells {
        values.push(match cell {
            None | Some("null") => None,
            Some(token) => Some(parse(token)?),
        });
    }
    Some(values)
}

/// The values of a column of this type, given as JSON texts; `None` if a string of them cannot be text at
/// all.
pub(crate) fn encode<'a>(
    column_type: ColumnType,
    cells: impl Iterator<Item = Option<&'a str>> + Clone,
) -> Option<ArrayParam<'a>> {
    if column_type.array {
        return as_text(column_type, cells);
    }
    let usual = match column_type.name {
        "boolean" => parse_all(cells.clone(), |token| token.parse().ok()).map(ArrayParam::Boolean),
        "smallint" => parse_all(cells.clone(), |token| token.parse().ok()).map(ArrayParam::SmallInt),
        "integer" => parse_all(cells.clone(), |token| token.parse().ok()).map(ArrayParam::Integer),
        "bigint" => parse_all(cells.clone(), |token| token.parse().ok()).map(ArrayParam::BigInt),
        "date" => parse_all(cells.clone(), |token| date(token).map(Date)).map(ArrayParam::Date),
        "timestamp without time zone" => {
            parse_all(cells.clone(), |token| timestamp(token).map(Timestamp)).map(ArrayParam::Timestamp)
        }
        "timestamp with time zone" => {
            parse_all(cells.clone(), |token| timestamptz(token).map(TimestampTz)).map(ArrayParam::TimestampTz)
        }
        _ => None,
    };
    usual.or_else(|| as_text(column_type, cells))
}

/// The values of a column of this type, all as text; `None` if a string of them cannot be text at all.
pub(crate) fn as_text<'a>(
    column_type: ColumnType,
    cells: impl Iterator<Item = Option<&'a str>>,
) -> Option<ArrayParam<'a>> {
    if column_type.array || column_type.name == "json" || column_type.name == "jsonb" {
        parse_all(cells, |token| Some(Cow::Borrowed(token))).map(ArrayParam::Cast)
    } else if column_type.name == "text" || column_type.name == "character varying" {
        parse_all(cells, json::value_as_text).map(ArrayParam::Text)
    } else {
        parse_all(cells, json::value_as_text).map(ArrayParam::Cast)
    }
}

impl ArrayParam<'_> {
    /// The array's element type in SQL.
    pub(crate) fn element(&self) -> &'static str {
        match self {
            Self::Boolean(_) => "boolean",
            Self::SmallInt(_) => "smallint",
            Self::Integer(_) => "integer",
            Self::BigInt(_) => "bigint",
            Self::Date(_) => "date",
            Self::Timestamp(_) => "timestamp",
            Self::TimestampTz(_) => "timestamptz",
            Self::Text(_) | Self::Cast(_) => "text",
        }
    }

    /// The expression that makes the column's value of the array's element, in `element` (quoted).
    pub(crate) fn expression(&self, column_type: ColumnType, element: &str) -> String {
        let Self::Cast(_) = self else {
            return element.to_owned();
        };
        if column_type.array {
            let sql = column_type.sql();
            format!("(select v from json_to_record(json_build_object('v', {element}::json)) as a(v {sql}))")
        } else if column_type.name == "bytea" {
            format!("decode({element}, 'base64')")
        } else {
            format!("{element}::{}", column_type.name)
        }
    }

    /// The array's type.
    pub(crate) fn array_type(&self) -> Type {
        match self {
            Self::Boolean(_) => Type::BOOL_ARRAY,
            Self::SmallInt(_) => Type::INT2_ARRAY,
            Self::Integer(_) => Type::INT4_ARRAY,
            Self::BigInt(_) => Type::INT8_ARRAY,
            Self::Date(_) => Type::DATE_ARRAY,
            Self::Timestamp(_) => Type::TIMESTAMP_ARRAY,
            Self::TimestampTz(_) => Type::TIMESTAMPTZ_ARRAY,
            Self::Text(_) | Self::Cast(_) => Type::TEXT_ARRAY,
        }
    }

    /// The array as a parameter's value.
    pub(crate) fn value(&self) -> &(dyn ToSql + Sync) {
        match self {
            Self::Boolean(values) => values,
            Self::SmallInt(values) => values,
            Self::Integer(values) => values,
            Self::BigInt(values) => values,
            Self::Date(values) => values,
            Self::Timestamp(values) => values,
            Self::TimestampTz(values) => values,
            Self::Text(values) | Self::Cast(values) => values,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_unusual_value_makes_the_column_text() {
        let bigint = ColumnType::declared("bigint");
        let usual = encode(bigint, [Some("1"), None, Some("null")].into_iter()).unwrap();
        assert!(matches!(usual, ArrayParam::BigInt(values) if values == [Some(1), None, None]));
        let unusual = encode(bigint, [Some("1"), Some("\"2\"")].into_iter()).unwrap();
        assert!(matches!(unusual, ArrayParam::Cast(values) if values[1].as_deref() == Some("2")));
    }
}
