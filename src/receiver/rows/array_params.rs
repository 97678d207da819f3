//! Turns the JSON values of one column, of many rows, into one PostgreSQL array.
//!
//! The common types are read here and travel in binary form, which spares the server most of the work of a row. A
//! column in which any value is written in another way than the usual one travels as text, and PostgreSQL's own
//! input function reads it, or says why it cannot.

use std::borrow::Cow;

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgArguments, PgHasArrayType, PgTypeInfo};
use sqlx::query::Query;
use sqlx::{Encode, Postgres, Type};

use crate::receiver::tables::column_type::ColumnType;
use crate::wire::json;
use crate::wire::values::from_json::{date, timestamp, timestamptz};

/// One column's values, ready to be bound.
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
    ($(#[$doc:meta])* $name:ident, $inner:ty, $oid:literal, $array:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) struct $name(pub(crate) $inner);

        impl Type<Postgres> for $name {
            fn type_info() -> PgTypeInfo {
                PgTypeInfo::with_oid(Oid($oid))
            }
        }

        impl PgHasArrayType for $name {
            fn array_type_info() -> PgTypeInfo {
                PgTypeInfo::with_oid(Oid($array))
            }
        }

        impl Encode<'_, Postgres> for $name {
            fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
                buffer.extend_from_slice(&self.0.to_be_bytes());
                Ok(IsNull::No)
            }
        }
    };
}

binary!(
    /// A `date`, in days since 2000-01-01.
    Date, i32, 1082, 1182
);
binary!(
    /// A `timestamp`, in microseconds since 2000-01-01.
    Timestamp, i64, 1114, 1115
);
binary!(
    /// A `timestamptz`, in microseconds since 2000-01-01 UTC.
    TimestampTz, i64, 1184, 1185
);

/// Reads each value by `read`; none as soon as one is not in the usual form.
fn all<'a, T>(
    cells: impl Iterator<Item = Option<&'a str>>,
    read: impl Fn(&'a str) -> Option<T>,
) -> Option<Vec<Option<T>>> {
    let mut values = Vec::with_capacity(cells.size_hint().0);
    for cell in cells {
        values.push(match cell {
            None | Some("null") => None,
            Some(token) => Some(read(token)?),
        });
    }
    Some(values)
}

/// The values of a column of this type, given as JSON texts; none where a string cannot be text at all.
pub(crate) fn encode<'a>(
    of: ColumnType,
    cells: impl Iterator<Item = Option<&'a str>> + Clone,
) -> Option<ArrayParam<'a>> {
    if of.array {
        return as_text(of, cells);
    }
    let usual = match of.name {
        "boolean" => all(cells.clone(), |token| token.parse().ok()).map(ArrayParam::Boolean),
        "smallint" => all(cells.clone(), |token| token.parse().ok()).map(ArrayParam::SmallInt),
        "integer" => all(cells.clone(), |token| token.parse().ok()).map(ArrayParam::Integer),
        "bigint" => all(cells.clone(), |token| token.parse().ok()).map(ArrayParam::BigInt),
        "date" => all(cells.clone(), |token| date(token).map(Date)).map(ArrayParam::Date),
        "timestamp without time zone" => {
            all(cells.clone(), |token| timestamp(token).map(Timestamp)).map(ArrayParam::Timestamp)
        }
        "timestamp with time zone" => {
            all(cells.clone(), |token| timestamptz(token).map(TimestampTz)).map(ArrayParam::TimestampTz)
        }
        _ => None,
    };
    usual.or_else(|| as_text(of, cells))
}

/// The values of a column of this type, all as text; none where a string cannot be text at all.
pub(crate) fn as_text<'a>(
    of: ColumnType,
    cells: impl Iterator<Item = Option<&'a str>>,
) -> Option<ArrayParam<'a>> {
    if of.array || of.name == "json" || of.name == "jsonb" {
        all(cells, |token| Some(Cow::Borrowed(token))).map(ArrayParam::Cast)
    } else if of.name == "text" || of.name == "character varying" {
        all(cells, json::value_as_text).map(ArrayParam::Text)
    } else {
        all(cells, json::value_as_text).map(ArrayParam::Cast)
    }
}

impl ArrayParam<'_> {
    /// The values of a column that travels as text.
    pub(crate) fn texts(&self) -> Option<impl Iterator<Item = Option<&str>>> {
        match self {
            Self::Text(values) | Self::Cast(values) => Some(values.iter().map(Option::as_deref)),
            _ => None,
        }
    }

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
    pub(crate) fn expression(&self, of: ColumnType, element: &str) -> String {
        let Self::Cast(_) = self else {
            return element.to_owned();
        };
        if of.array {
            let sql = of.sql();
            format!("(select v from json_to_record(json_build_object('v', {element}::json)) as a(v {sql}))")
        } else if of.name == "bytea" {
            format!("decode({element}, 'base64')")
        } else {
            format!("{element}::{}", of.name)
        }
    }

    /// Binds the array as the next parameter.
    pub(crate) fn bind<'q>(
        self,
        query: Query<'q, Postgres, PgArguments>,
    ) -> Query<'q, Postgres, PgArguments> {
        match self {
            Self::Boolean(values) => query.bind(values),
            Self::SmallInt(values) => query.bind(values),
            Self::Integer(values) => query.bind(values),
            Self::BigInt(values) => query.bind(values),
            Self::Date(values) => query.bind(values),
            Self::Timestamp(values) => query.bind(values),
            Self::TimestampTz(values) => query.bind(values),
            Self::Text(values) | Self::Cast(values) => {
                let values: Vec<Option<&str>> = values.iter().map(Option::as_deref).collect();
                query.bind(values)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_unusual_value_makes_the_column_text() {
        let of = ColumnType::of("bigint");
        let usual = encode(of, [Some("1"), None, Some("null")].into_iter()).unwrap();
        assert!(matches!(usual, ArrayParam::BigInt(values) if values == [Some(1), None, None]));
        let unusual = encode(of, [Some("1"), Some("\"2\"")].into_iter()).unwrap();
        assert!(matches!(unusual, ArrayParam::Cast(values) if values[1].as_deref() == Some("2")));
    }
}
