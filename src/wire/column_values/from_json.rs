//! From the wire's JSON to PostgreSQL's binary form of a value, of the types that most columns have.
//!
//! Only values in the usual form are read here, as a token of JSON: a string with its quotes and without
//! escapes, a number, a word. `None` means any other form; PostgreSQL's own input function reads that, or
//! says why it cannot.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::calendar::{DAYS_TO_2000, MICROS_A_DAY, days_from_civil, days_in_month};
use crate::wire::json::value_as_text;

/// A type whose binary form is written here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BinaryType {
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

impl BinaryType {
    #[cfg(test)]
    pub(super) const ALL: [Self; 16] = [
        Self::Boolean,
        Self::SmallInt,
        Self::Integer,
        Self::BigInt,
        Self::Numeric,
        Self::Real,
        Self::Double,
        Self::Text,
        Self::Json,
        Self::Jsonb,
        Self::Bytea,
        Self::Date,
        Self::Time,
        Self::Timestamp,
        Self::TimestampTz,
        Self::Uuid,
    ];

    /// Appends the binary form of a value, given as a JSON token that is not `null`. What has been appended
    /// is of no use if it returns `None`.
    pub(crate) fn push(self, buffer: &mut Vec<u8>, token: &str) -> Option<()> {
        let mut put = |bytes: &[u8]| buffer.extend_from_slice(bytes);
        match self {
            Self::Boolean => put(&[u8::from(token.parse::<bool>().ok()?)]),
            Self::SmallInt => put(&token.parse::<i16>().ok()?.to_be_bytes()),
            Self::Integer => put(&token.parse::<i32>().ok()?.to_be_bytes()),
            Self::BigInt => put(&token.parse::<i64>().ok()?.to_be_bytes()),
            Self::Numeric => return push_numeric(buffer, token.as_bytes()),
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
            Self::Text => put(value_as_text(token)?.as_bytes()),
            Self::Json => put(token.as_bytes()),
            Self::Jsonb => {
                // The version of its form comes first.
                put(&[1]);
                put(token.as_bytes());
            }
            Self::Bytea => put(&BASE64_STANDARD.decode(inside(token)?).ok()?),
            Self::Date => put(&date(token)?.to_be_bytes()),
            Self::Time => put(&micros_of_day(inside(token)?)?.to_be_bytes()),
            Self::Timestamp => put(&timestamp(token)?.to_be_bytes()),
            Self::TimestampTz => put(&timestamptz(token)?.to_be_bytes()),
            Self::Uuid => put(&uuid_bytes(inside(token)?)?),
        }
        Some(())
    }
}

/// A `date`, in days since 2000-01-01.
pub(crate) fn date(token: &str) -> Option<i32> {
    i32::try_from(days_since_2000(inside(token)?)?).ok()
}

/// A `timestamp`, in microseconds since 2000-01-01.
pub(crate) fn timestamp(token: &str) -> Option<i64> {
    match local_micros(inside(token)?)? {
        (micros, []) => Some(micros),
        _ => None,
    }
}

/// A `timestamptz`, in microseconds since 2000-01-01 UTC.
pub(crate) fn timestamptz(token: &str) -> Option<i64> {
    let (micros, zone) = local_micros(inside(token)?)?;
    let (sign, zone) = match zone {
        b"Z" => return Some(micros),
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
    Some(micros - sign * (hours * 60 + minutes) * 60_000_000)
}

/// The inside of a JSON string without escapes.
fn inside(token: &str) -> Option<&[u8]> {
    token.strip_prefix('"')?.strip_suffix('"').map(str::as_bytes)
}

/// The number of a few digits.
fn digits(text: &[u8]) -> Option<i64> {
    let mut number = 0;
    for byte in text {
        number = number * 10 + i64::from(byte.checked_sub(b'0').filter(|digit| *digit < 10)?);
    }
    Some(number)
}

/// Days since 2000-01-01 of `YYYY-MM-DD`.
fn days_since_2000(text: &[u8]) -> Option<i64> {
    if text.len() != 10 || text[4] != b'-' || text[7] != b'-' {
        return None;
    }
    let (year, month, day) = (digits(&text[..4])?, digits(&text[5..7])?, digits(&text[8..])?);
    let is_date = year > 0 && (1..=12).contains(&month) && (1..=days_in_month(year, month)).contains(&day);
    is_date.then(|| days_from_civil(year, month, day) - DAYS_TO_2000)
}

/// Microseconds since 2000-01-01 of `YYYY-MM-DDTHH:MM:SS[.f]`, and what follows.
fn local_micros(text: &[u8]) -> Option<(i64, &[u8])> {
    let (date, time) = text.split_at_checked(10)?;
    let (b'T' | b' ', time) = time.split_first()? else {
        return None;
    };
    let zone_at = time.iter().position(|byte| matches!(byte, b'Z' | b'+' | b'-'));
    let (time, zone) = time.split_at(zone_at.unwrap_or(time.len()));
    Some((days_since_2000(date)? * MICROS_A_DAY + micros_of_day(time)?, zone))
}

/// Whether a floating-point number is one whose reading leaves no question: what is neither huge, tiny nor in
/// words.
fn is_usual(token: &str, normal: bool) -> bool {
    !token.starts_with('"') && (normal || token == "0" || token == "0.0")
}

/// Digits of a number are kept in groups of this many.
const GROUP: usize = 4;

/// Appends a decimal number without an exponent: the numbers of groups of digits, the weight of the first
/// group, the sign, the digits after the point, and the groups.
///
/// Source: PostgreSQL, `numeric_send` in `numeric.c`.
fn push_numeric(buffer: &mut Vec<u8>, token: &[u8]) -> Option<()> {
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
    // The first group is short, the last one is filled up with zeros.
    let short = whole.len() % GROUP;
    let groups = whole.len().div_ceil(GROUP) + fraction.len().div_ceil(GROUP);
    let head = buffer.len();
    buffer.extend_from_slice(&[0; 8]);
    let mut weight = whole.len().div_ceil(GROUP) as i16 - 1;
    let mut put = |group: &[u8]| -> Option<()> {
        let mut number = 0_i16;
        for index in 0..GROUP {
            let digit = group.get(index).copied().unwrap_or(b'0').wrapping_sub(b'0');
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
    let kept = ((buffer.len() - head - 8) / 2) as i16;
    let zero = kept == 0;
    let sign: u16 = if negative && !zero { 0x4000 } else { 0 };
    buffer[head..head + 2].copy_from_slice(&kept.to_be_bytes());
    buffer[head + 2..head + 4].copy_from_slice(&(if zero { 0 } else { weight }).to_be_bytes());
    buffer[head + 4..head + 6].copy_from_slice(&sign.to_be_bytes());
    buffer[head + 6..head + 8].copy_from_slice(&(fraction.len() as u16).to_be_bytes());
    Some(())
}

/// Microseconds since midnight of `HH:MM:SS[.f]`.
fn micros_of_day(text: &[u8]) -> Option<i64> {
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
fn uuid_bytes(text: &[u8]) -> Option<[u8; 16]> {
    if text.len() != 36 || [8, 13, 18, 23].iter().any(|&at| text[at] != b'-') {
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

    fn put(of: BinaryType, token: &str) -> Option<Vec<u8>> {
        let mut buffer = Vec::new();
        of.push(&mut buffer, token).map(|()| buffer)
    }

    #[test]
    fn times_in_the_usual_form_are_exact() {
        assert_eq!(date("\"2000-01-01\""), Some(0));
        assert_eq!(date("\"1970-01-01\""), Some(-10_957));
        assert_eq!(date("\"2024-02-29\""), Some(8_825));
        assert_eq!(timestamp("\"2000-01-01T00:00:01.5\""), Some(1_500_000));
        assert_eq!(timestamptz("\"2000-01-01T08:00:00.000001+08:00\""), Some(1));
        assert_eq!(timestamptz("\"1999-12-31T18:30:00-05:30\""), Some(0));
        assert_eq!(timestamptz("\"2000-01-01T00:00:00Z\""), Some(0));
    }

    #[test]
    fn other_forms_of_times_are_left_to_postgresql() {
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
    fn numbers_have_the_servers_own_form() {
        // As `select numeric_send(…)` answers.
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
            assert_eq!(put(BinaryType::Numeric, token), Some(bytes), "{token}");
        }
        for token in ["1e5", "\"NaN\"", "", "-", ".5", "1..2", "1.-2"] {
            assert_eq!(put(BinaryType::Numeric, token), None, "{token}");
        }
    }

    #[test]
    fn other_forms_are_left_to_postgresql() {
        for (form, token) in [
            (BinaryType::Boolean, "\"t\""),
            (BinaryType::SmallInt, "40000"),
            (BinaryType::Double, "1e400"),
            (BinaryType::Double, "1e-400"),
            (BinaryType::Double, "\"NaN\""),
            (BinaryType::Bytea, "\"AA=\\n\""),
            (BinaryType::Time, "\"24:00:00\""),
            (BinaryType::Uuid, "\"{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}\""),
            (BinaryType::Text, "\"\\ud800\""),
        ] {
            assert_eq!(put(form, token), None, "{token}");
        }
    }

    #[test]
    fn usual_values_are_exact() {
        assert_eq!(
            put(BinaryType::Double, "0.1"),
            Some(0.1_f64.to_be_bytes().to_vec())
        );
        assert_eq!(put(BinaryType::Real, "0.1"), Some(0.1_f32.to_be_bytes().to_vec()));
        assert_eq!(put(BinaryType::Bytea, "\"AAH/\""), Some(vec![0, 1, 255]));
        assert_eq!(
            put(BinaryType::Time, "\"00:00:01.5\""),
            Some(1_500_000_i64.to_be_bytes().to_vec())
        );
        assert_eq!(put(BinaryType::Jsonb, "[1]"), Some(b"\x01[1]".to_vec()));
        assert_eq!(
            put(BinaryType::Uuid, "\"00010203-0405-0607-0809-0a0b0c0d0eff\"").map(|bytes| bytes[15]),
            Some(255)
        );
    }
}
