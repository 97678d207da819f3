//! Turns the JSON values of one column, of many rows, into one PostgreSQL array.
//!
//! Values of the common types are read here and travel in binary form, which spares the server most of the
//! work of a row. A column with any value in an unusual form travels as text, and PostgreSQL's own input
//! function reads it, or says why it cannot.

use std::borrow::Cow;

use bytes::{BufMut, BytesMut};
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};

use crate::receiver::rows::json;
use crate::receiver::tables::column_type::ColumnType;

/// Days from 1970-01-01 to PostgreSQL's epoch, 2000-01-01.
const EPOCH_DAYS: i64 = 10_957;

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
        "date" => parse_all(cells.clone(), date).map(ArrayParam::Date),
        "timestamp without time zone" => parse_all(cells.clone(), timestamp).map(ArrayParam::Timestamp),
        "timestamp with time zone" => parse_all(cells.clone(), timestamptz).map(ArrayParam::TimestampTz),
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

/// A number of decimal digits only.
pub(crate) fn digits(text: &[u8]) -> Option<i64> {
    let mut number = 0;
    for byte in text {
        number = number * 10 + i64::from(byte.checked_sub(b'0').filter(|digit| *digit < 10)?);
    }
    Some(number)
}

/// Days since 1970-01-01 of `YYYY-MM-DD`.
///
/// Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `days_from_civil`.
fn days(text: &[u8]) -> Option<i64> {
    if text.len() != 10 || text[4] != b'-' || text[7] != b'-' {
        return None;
    }
    let (year, month, day) = (digits(&text[..4])?, digits(&text[5..7])?, digits(&text[8..])?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 => 28 + i64::from(leap),
        _ => return None,
    };
    if year == 0 || day == 0 || day > length {
        return None;
    }
    let shifted = if month > 2 { year } else { year - 1 };
    let era = shifted / 400;
    let year_of_era = shifted - era * 400;
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    Some(era * 146_097 + day_of_era - 719_468)
}

/// What is inside the quotes of a JSON string that has no escapes.
pub(crate) fn inside_quotes(token: &str) -> Option<&[u8]> {
    token.strip_prefix('"')?.strip_suffix('"').map(str::as_bytes)
}

/// A date of a JSON string `YYYY-MM-DD`.
pub(crate) fn date(token: &str) -> Option<Date> {
    let since = days(inside_quotes(token)?)? - EPOCH_DAYS;
    i32::try_from(since).ok().map(Date)
}

/// Microseconds since 2000-01-01 of `YYYY-MM-DDTHH:MM:SS[.f]`, and the rest of the text.
fn local_time(text: &[u8]) -> Option<(i64, &[u8])> {
    if text.len() < 19 || !matches!(text[10], b'T' | b' ') || text[13] != b':' || text[16] != b':' {
        return None;
    }
    let day = days(&text[..10])? - EPOCH_DAYS;
    let (hour, minute, second) = (
        digits(&text[11..13])?,
        digits(&text[14..16])?,
        digits(&text[17..19])?,
    );
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let mut micros = (((day * 24 + hour) * 60 + minute) * 60 + second) * 1_000_000;
    let mut rest = &text[19..];
    if let Some(fraction) = rest.strip_prefix(b".") {
        let length = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if length == 0 || length > 6 {
            return None;
        }
        micros += digits(&fraction[..length])? * 10_i64.pow(6 - length as u32);
        rest = &fraction[length..];
    }
    Some((micros, rest))
}

/// A timestamp of a JSON string without an offset.
pub(crate) fn timestamp(token: &str) -> Option<Timestamp> {
    match local_time(inside_quotes(token)?)? {
        (micros, []) => Some(Timestamp(micros)),
        _ => None,
    }
}

/// A timestamp of a JSON string with an offset.
pub(crate) fn timestamptz(token: &str) -> Option<TimestampTz> {
    let (micros, zone) = local_time(inside_quotes(token)?)?;
    let (sign, zone) = match zone {
        b"Z" => return Some(TimestampTz(micros)),
        [b'+', zone @ ..] => (1, zone),
        [b'-', zone @ ..] => (-1, zone),
        _ => return None,
    };
    let (hours, minutes) = match zone.len() {
        2 => (digits(zone)?, 0),
        5 if zone[2] == b':' => (digits(&zone[..2])?, digits(&zone[3..])?),
        _ => return None,
    };
    if hours > 15 || minutes > 59 {
        return None;
    }
    Some(TimestampTz(micros - sign * (hours * 60 + minutes) * 60_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_in_the_usual_form_are_exact() {
        assert_eq!(date("\"2000-01-01\""), Some(Date(0)));
        assert_eq!(date("\"1970-01-01\""), Some(Date(-10_957)));
        assert_eq!(date("\"2024-02-29\""), Some(Date(8_825)));
        assert_eq!(timestamp("\"2000-01-01T00:00:01.5\""), Some(Timestamp(1_500_000)));
        assert_eq!(
            timestamptz("\"2000-01-01T08:00:00.000001+08:00\""),
            Some(TimestampTz(1))
        );
        assert_eq!(timestamptz("\"1999-12-31T18:30:00-05:30\""), Some(TimestampTz(0)));
        assert_eq!(timestamptz("\"2000-01-01T00:00:00Z\""), Some(TimestampTz(0)));
    }

    #[test]
    fn other_forms_are_left_to_postgresql() {
        for token in [
            "\"infinity\"",
            "\"2023-02-29\"",
            "\"0000-01-01\"",
            "\"2024-1-01\"",
            "\"0044-03-15 BC\"",
            "12",
            "\"12024-01-01\"",
        ] {
            assert_eq!(date(token), None, "{token}");
        }
        for token in [
            "\"2000-01-01T00:00:00\"",
            "\"2000-01-01T24:00:00+00\"",
            "\"2000-01-01T00:00:00.1234567+00\"",
            "\"2000-01-01T00:00:00+01:02:03\"",
            "\"-infinity\"",
        ] {
            assert_eq!(timestamptz(token), None, "{token}");
        }
    }

    #[test]
    fn one_unusual_value_makes_the_column_text() {
        let bigint = ColumnType::declared("bigint");
        let usual = encode(bigint, [Some("1"), None, Some("null")].into_iter()).unwrap();
        assert!(matches!(usual, ArrayParam::BigInt(values) if values == [Some(1), None, None]));
        let unusual = encode(bigint, [Some("1"), Some("\"2\"")].into_iter()).unwrap();
        assert!(matches!(unusual, ArrayParam::Cast(values) if values[1].as_deref() == Some("2")));
    }
}
