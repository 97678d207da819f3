//! The binary format of COPY, for the types that most columns have.
//!
//! Only values in the usual form are written here. All others are left to PostgreSQL's own input functions.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::receiver::rows::array_params::{date, digits, inside_quotes, timestamp, timestamptz};
use crate::receiver::rows::json;
use crate::receiver::tables::column_type::ColumnType;

/// How a column's values are written in the binary format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CopyFormat {
    Boolean,
    SmallInt,
    Integer,
    BigInt,
    Numeric,
    Real,
    Double,
    Text,
    Json,
    Jsonb,
    Bytea,
    Date,
    Time,
    Timestamp,
    TimestampTz,
    Uuid,
}

impl CopyFormat {
    /// The format of a type; `None` if it has none here.
    pub(crate) fn of(column_type: ColumnType) -> Option<Self> {
        if column_type.array {
            return None;
        }
        Some(match column_type.name {
            "boolean" => Self::Boolean,
            "smallint" => Self::SmallInt,
            "integer" => Self::Integer,
            "bigint" => Self::BigInt,
            "numeric" => Self::Numeric,
            "real" => Self::Real,
            "double precision" => Self::Double,
            "text" | "character varying" => Self::Text,
            "json" => Self::Json,
            "jsonb" => Self::Jsonb,
            "bytea" => Self::Bytea,
            "date" => Self::Date,
            "time without time zone" => Self::Time,
            "timestamp without time zone" => Self::Timestamp,
            "timestamp with time zone" => Self::TimestampTz,
            "uuid" => Self::Uuid,
            _ => return None,
        })
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
        if self.append_value(buffer, token).is_none() {
            return false;
        }
        let Ok(length) = i32::try_from(buffer.len() - start - 4) else {
            return false;
        };
        buffer[start..start + 4].copy_from_slice(&length.to_be_bytes());
        true
    }

    fn append_value(self, buffer: &mut Vec<u8>, token: &str) -> Option<()> {
        let mut put = |bytes: &[u8]| buffer.extend_from_slice(bytes);
        match self {
            Self::Boolean => put(&[u8::from(token.parse::<bool>().ok()?)]),
            Self::SmallInt => put(&token.parse::<i16>().ok()?.to_be_bytes()),
            Self::Integer => put(&token.parse::<i32>().ok()?.to_be_bytes()),
            Self::BigInt => put(&token.parse::<i64>().ok()?.to_be_bytes()),
            Self::Numeric => return append_numeric(buffer, token.as_bytes()),
            Self::Real => {
                let number: f32 = token.parse().ok()?;
                put(&is_usual(token, number.is_normal())
                    .then_some(number)?
                    .to_be_bytes());
            }
            Self::Double => {
                let number: f64 = token.parse().ok()?;
                put(&is_usual(token, number.is_normal())
                    .then_some(number)?
                    .to_be_bytes());
            }
            Self::Text => put(json::value_as_text(token)?.as_bytes()),
            Self::Json => put(token.as_bytes()),
            Self::Jsonb => {
                put(&[1]);
                put(token.as_bytes());
            }
            Self::Bytea => put(&BASE64_STANDARD.decode(inside_quotes(token)?).ok()?),
            Self::Date => put(&date(token)?.0.to_be_bytes()),
            Self::Time => put(&time(inside_quotes(token)?)?.to_be_bytes()),
            Self::Timestamp => put(&timestamp(token)?.0.to_be_bytes()),
            Self::TimestampTz => put(&timestamptz(token)?.0.to_be_bytes()),
            Self::Uuid => put(&uuid(inside_quotes(token)?)?),
        }
        Some(())
    }
}

/// Whether a floating-point number can be read in one way only: it is neither huge, tiny nor a word.
fn is_usual(token: &str, is_normal: bool) -> bool {
    token.as_bytes()[0] != b'"' && (is_normal || token == "0" || token == "0.0")
}

/// PostgreSQL keeps the digits of a `numeric` in groups of this many.
const GROUP: usize = 4;

/// Appends a decimal number without an exponent: the numbers of groups of digits, the weight of the first
/// group, the sign, the digits after the point, and the groups.
///
/// Source: PostgreSQL, `numeric_send` in `numeric.c`.
fn append_numeric(buffer: &mut Vec<u8>, token: &[u8]) -> Option<()> {
    let (negative, digits) = match token {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    if digits.is_empty() || digits.len() > 1000 {
        return None;
    }
    let point = memchr::memchr(b'.', digits).unwrap_or(digits.len());
    let (whole, fraction) = (&digits[..point], digits.get(point + 1..).unwrap_or_default());
    if whole.is_empty() {
        return None;
    }
    // The first group may be short; the last one is filled up with zeros.
    let short = whole.len() % GROUP;
    let groups = whole.len().div_ceil(GROUP) + fraction.len().div_ceil(GROUP);
    let head = buffer.len();
    buffer.extend_from_slice(&[0; 8]);
    let mut weight = whole.len().div_ceil(GROUP) as i16 - 1;
    let mut put = |group: &[u8]| -> Option<()> {
        let mut number = 0_i16;
        for digit_index in 0..GROUP {
            let digit = group.get(digit_index).copied().unwrap_or(b'0').wrapping_sub(b'0');
            number = number * 10 + i16::from(Some(digit).filter(|digit| *digit < 10)?);
        }
        // Zeros before the first digit are not kept.
        if number != 0 || buffer.len() > head + 8 {
            buffer.extend_from_slice(&number.to_be_bytes());
        } else {
            weight -= 1;
        }
        Some(())
    };
    let mut first = [b'0'; GROUP];
    first[GROUP - short..].copy_from_slice(&whole[..short]);
    if short > 0 {
        put(&first)?;
    }
    for group in whole[short..].chunks(GROUP).chain(fraction.chunks(GROUP)) {
        put(group)?;
    }
    debug_assert!(buffer.len() <= head + 8 + 2 * groups);
    while buffer.len() > head + 8 && buffer.ends_with(&[0, 0]) {
        buffer.truncate(buffer.len() - 2);
    }
    let group_count = ((buffer.len() - head - 8) / 2) as i16;
    let zero = group_count == 0;
    let sign: u16 = if negative && !zero { 0x4000 } else { 0 };
    buffer[head..head + 2].copy_from_slice(&group_count.to_be_bytes());
    buffer[head + 2..head + 4].copy_from_slice(&(if zero { 0 } else { weight }).to_be_bytes());
    buffer[head + 4..head + 6].copy_from_slice(&sign.to_be_bytes());
    buffer[head + 6..head + 8].copy_from_slice(&(fraction.len() as u16).to_be_bytes());
    Some(())
}

/// Microseconds since midnight of `HH:MM:SS[.f]`.
fn time(text: &[u8]) -> Option<i64> {
    if text.len() < 8 || text[2] != b':' || text[5] != b':' {
        return None;
    }
    let (hour, minute, second) = (digits(&text[..2])?, digits(&text[3..5])?, digits(&text[6..8])?);
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let micros = match &text[8..] {
        [] => 0,
        [b'.', fraction @ ..] if (1..=6).contains(&fraction.len()) => {
            digits(fraction)? * 10_i64.pow(6 - fraction.len() as u32)
        }
        _ => return None,
    };
    Some(((hour * 60 + minute) * 60 + second) * 1_000_000 + micros)
}

/// The bytes of `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`.
fn uuid(text: &[u8]) -> Option<[u8; 16]> {
    if text.len() != 36 || [8, 13, 18, 23].iter().any(|&index| text[index] != b'-') {
        return None;
    }
    let mut bytes = [0; 16];
    let mut digits = text.iter().filter(|byte| **byte != b'-');
    for byte in &mut bytes {
        let mut digit = || char::from(*digits.next()?).to_digit(16);
        *byte = (digit()? * 16 + digit()?) as u8;
    }
    digits.next().is_none().then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn appended(format: CopyFormat, token: &str) -> Option<Vec<u8>> {
        let mut buffer = Vec::new();
        format
            .append(&mut buffer, Some(token))
            .then(|| buffer.split_off(4))
    }

    #[test]
    fn numbers_have_the_servers_own_format() {
        // What `select numeric_send(…)` returns.
        for (token, bytes) in [
            ("0", vec![0, 0, 0, 0, 0, 0, 0, 0]),
            ("0.00", vec![0, 0, 0, 0, 0, 0, 0, 2]),
            ("-0", vec![0, 0, 0, 0, 0, 0, 0, 0]),
            ("1", vec![0, 1, 0, 0, 0, 0, 0, 0, 0, 1]),
            ("-12345", vec![0, 2, 0, 1, 0x40, 0, 0, 0, 0, 1, 0x09, 0x29]),
            ("10000", vec![0, 1, 0, 1, 0, 0, 0, 0, 0, 1]),
            (
                "0.312345",
                vec![0, 2, 0xff, 0xff, 0, 0, 0, 6, 0x0c, 0x33, 0x11, 0x94],
            ),
            ("0.00001", vec![0, 1, 0xff, 0xfe, 0, 0, 0, 5, 0x03, 0xe8]),
        ] {
            assert_eq!(appended(CopyFormat::Numeric, token), Some(bytes), "{token}");
        }
        for token in ["1e5", "\"NaN\"", "", "-", ".5", "1..2", "1.-2"] {
            assert_eq!(appended(CopyFormat::Numeric, token), None, "{token}");
        }
    }

    #[test]
    fn other_forms_are_left_to_postgresql() {
        for (format, token) in [
            (CopyFormat::Boolean, "\"t\""),
            (CopyFormat::SmallInt, "40000"),
            (CopyFormat::Double, "1e400"),
            (CopyFormat::Double, "1e-400"),
            (CopyFormat::Double, "\"NaN\""),
            (CopyFormat::Bytea, "\"AA=\\n\""),
            (CopyFormat::Time, "\"24:00:00\""),
            (CopyFormat::Uuid, "\"{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}\""),
            (CopyFormat::Text, "\"\\ud800\""),
        ] {
            assert_eq!(appended(format, token), None, "{token}");
        }
    }

    #[test]
    fn usual_values_are_exact() {
        assert_eq!(
            appended(CopyFormat::Double, "0.1"),
            Some(0.1_f64.to_be_bytes().to_vec())
        );
        assert_eq!(
            appended(CopyFormat::Real, "0.1"),
            Some(0.1_f32.to_be_bytes().to_vec())
        );
        assert_eq!(appended(CopyFormat::Bytea, "\"AAH/\""), Some(vec![0, 1, 255]));
        assert_eq!(
            appended(CopyFormat::Time, "\"00:00:01.5\""),
            Some(1_500_000_i64.to_be_bytes().to_vec())
        );
        assert_eq!(appended(CopyFormat::Jsonb, "[1]"), Some(b"\x01[1]".to_vec()));
        assert_eq!(
            appended(CopyFormat::Uuid, "\"00010203-0405-0607-0809-0a0b0c0d0eff\"").map(|bytes| bytes[15]),
            Some(255)
        );
    }
}
