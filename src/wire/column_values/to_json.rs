//! From PostgreSQL's binary form of a value to the wire's JSON: byte by byte what `to_json` would have made
//! of it in a session whose time zone is UTC; `bytea` as base64.
//!
//! A new type is a number in [`BINARY_OIDS`] and its writer here; [`crate::source::column_type`] says what else
//! it needs.
//!
//! Source: PostgreSQL, the `…_send` functions of the types; `datum_to_json` for what they become.

use std::io::Write;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::calendar::{DAYS_TO_2000, MICROS_A_DAY, civil_from_days};
use crate::wire::json::push_string;

/// The oids of the types whose binary form is read here. Source: PostgreSQL, `pg_type.dat`.
pub(crate) const BINARY_OIDS: [u32; 16] = [
    16, 17, 20, 21, 23, 25, 114, 1042, 1043, 1082, 1083, 1114, 1184, 1700, 2950, 3802,
];

/// The next bytes of a value, which are taken out of it.
fn take<const N: usize>(from: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = from.split_first_chunk()?;
    *from = rest;
    Some(*first)
}

/// Appends the JSON of a value, given in the binary form of the type with this oid. Returns `None` if it is
/// not in that form; what has been appended is of no use then.
pub(crate) fn push_binary(json: &mut Vec<u8>, oid: u32, mut field: &[u8]) -> Option<()> {
    push_value(json, oid, &mut field)
}

/// Appends the JSON of a number that is given as PostgreSQL's text.
pub(crate) fn push_number(json: &mut Vec<u8>, text: &[u8]) {
    // NaN, Infinity and -Infinity have no JSON number.
    if text.last().is_some_and(u8::is_ascii_digit) {
        json.extend_from_slice(text);
    } else {
        push_string(json, text);
    }
}

fn push_value(json: &mut Vec<u8>, oid: u32, field: &mut &[u8]) -> Option<()> {
    match oid {
        16 => json.extend_from_slice(if take::<1>(field)? == [0] {
            b"false"
        } else {
            b"true"
        }),
        21 => push_integer(json, i64::from(i16::from_be_bytes(take(field)?))),
        23 => push_integer(json, i64::from(i32::from_be_bytes(take(field)?))),
        20 => push_integer(json, i64::from_be_bytes(take(field)?)),
        1700 => push_numeric(json, field)?,
        17 => {
            json.push(b'"');
            let start = json.len();
            json.resize(start + field.len().div_ceil(3) * 4, 0);
            BASE64_STANDARD.encode_slice(*field, &mut json[start..]).ok()?;
            json.push(b'"');
        }
        25 | 1042 | 1043 => push_string(json, field),
        114 => json.extend_from_slice(field),
        // The version of its form comes first.
        3802 => json.extend_from_slice(field.strip_prefix(&[1])?),
        2950 => {
            let id = u128::from_be_bytes(take(field)?);
            let part = |shift: u32, bits: u32| (id >> shift) & ((1 << bits) - 1);
            put(
                json,
                format_args!(
                    "\"{:08x}-{:04x}-{:04x}-{:04x}-{:012x}\"",
                    part(96, 32),
                    part(80, 16),
                    part(64, 16),
                    part(48, 16),
                    part(0, 48)
                ),
            );
        }
        1082 => {
            let days = i32::from_be_bytes(take(field)?);
            match days {
                i32::MAX | i32::MIN => push_infinity(json, days > 0),
                days => {
                    json.push(b'"');
                    let before_christ = push_date(json, i64::from(days));
                    push_era(json, before_christ);
                }
            }
        }
        1083 => {
            let micros = i64::from_be_bytes(take(field)?);
            if !(0..=MICROS_A_DAY).contains(&micros) {
                return None;
            }
            json.push(b'"');
            push_time(json, micros);
            json.push(b'"');
        }
        1114 | 1184 => {
            let micros = i64::from_be_bytes(take(field)?);
            if matches!(micros, i64::MAX | i64::MIN) {
                push_infinity(json, micros > 0);
            } else {
                json.push(b'"');
                let before_christ = push_date(json, micros.div_euclid(MICROS_A_DAY));
                json.push(b'T');
                push_time(json, micros.rem_euclid(MICROS_A_DAY));
                if oid == 1184 {
                    json.extend_from_slice(b"+00:00");
                }
                push_era(json, before_christ);
            }
        }
        _ => return None,
    }
    Some(())
}

fn put(json: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // Writing to memory cannot fail.
    let _ = json.write_fmt(text);
}

/// Groups of four decimal digits, the place of the first one, the sign, and how many decimals are shown.
fn push_numeric(json: &mut Vec<u8>, field: &mut &[u8]) -> Option<()> {
    let count = usize::from(u16::from_be_bytes(take(field)?));
    let weight = i16::from_be_bytes(take(field)?);
    let sign = u16::from_be_bytes(take(field)?);
    let decimals = usize::from(u16::from_be_bytes(take(field)?));
    match sign {
        0 => {}
        0x4000 => json.push(b'-'),
        0xC000 => {
            json.extend_from_slice(b"\"NaN\"");
            return Some(());
        }
        0xD000 | 0xF000 => {
            push_infinite_number(json, sign == 0xD000);
            return Some(());
        }
        _ => return None,
    }
    let groups = field.get(..count * 2)?;
    let group = |index: i32| {
        let digits = usize::try_from(index)
            .ok()
            .and_then(|index| groups.get(index * 2..index * 2 + 2));
        digits.map_or(0, |digits| u16::from_be_bytes([digits[0], digits[1]]))
    };
    let weight = i32::from(weight);
    if weight < 0 {
        json.push(b'0');
    }
    for index in 0..=weight {
        match index {
            0 => push_digits(json, u64::from(group(0))),
            index => push_four_digits(json, u64::from(group(index))),
        }
    }
    if decimals > 0 {
        json.push(b'.');
        let end = json.len() + decimals;
        let mut index = weight + 1;
        while json.len() < end {
            push_four_digits(json, u64::from(group(index)));
            index += 1;
        }
        json.truncate(end);
    }
    Some(())
}

fn push_infinity(json: &mut Vec<u8>, positive: bool) {
    json.extend_from_slice(if positive {
        b"\"infinity\""
    } else {
        b"\"-infinity\""
    });
}

fn push_infinite_number(json: &mut Vec<u8>, positive: bool) {
    json.extend_from_slice(if positive {
        b"\"Infinity\""
    } else {
        b"\"-Infinity\""
    });
}

/// Appends a date by its days since 2000. Returns whether it lies before the year 1, which [`push_era`]
/// writes.
fn push_date(json: &mut Vec<u8>, days: i64) -> bool {
    let (year, month, day) = civil_from_days(days + DAYS_TO_2000);
    let shown = if year > 0 { year } else { 1 - year };
    push_four_digits(json, shown.unsigned_abs());
    let ([m, n], [d, e]) = (two_digits(month.unsigned_abs()), two_digits(day.unsigned_abs()));
    json.extend_from_slice(&[b'-', m, n, b'-', d, e]);
    year <= 0
}

fn push_era(json: &mut Vec<u8>, before_christ: bool) {
    json.extend_from_slice(if before_christ { b" BC\"" } else { b"\"" });
}

/// A time of day, with as many decimals as it has.
fn push_time(json: &mut Vec<u8>, micros: i64) {
    let micros = micros.unsigned_abs();
    let seconds = micros / 1_000_000;
    let ([h, i], [m, n], [s, t]) = (
        two_digits(seconds / 3600),
        two_digits(seconds / 60 % 60),
        two_digits(seconds % 60),
    );
    json.extend_from_slice(&[h, i, b':', m, n, b':', s, t]);
    let fraction = micros % 1_000_000;
    if fraction > 0 {
        let ([a, b], [c, d], [e, f]) = (
            two_digits(fraction / 10_000),
            two_digits(fraction / 100 % 100),
            two_digits(fraction % 100),
        );
        json.extend_from_slice(&[b'.', a, b, c, d, e, f]);
        while json.last() == Some(&b'0') {
            json.pop();
        }
    }
}

fn push_integer(json: &mut Vec<u8>, number: i64) {
    if number < 0 {
        json.push(b'-');
    }
    push_digits(json, number.unsigned_abs());
}

/// A number. Most of what a row holds is numbers, and the formatter's way is several times longer.
fn push_digits(json: &mut Vec<u8>, mut number: u64) {
    let mut text = [b'0'; 20];
    let mut from = text.len() - 1;
    loop {
        text[from] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
        from -= 1;
    }
    json.extend_from_slice(&text[from..]);
}

/// A number with at least four digits.
fn push_four_digits(json: &mut Vec<u8>, number: u64) {
    if number > 9_999 {
        return push_digits(json, number);
    }
    let ([a, b], [c, d]) = (two_digits(number / 100), two_digits(number % 100));
    json.extend_from_slice(&[a, b, c, d]);
}

/// The two digits of a number below 100.
fn two_digits(number: u64) -> [u8; 2] {
    [b'0' + (number / 10) as u8, b'0' + (number % 10) as u8]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(oid: u32, field: &[u8]) -> Option<String> {
        let mut json = Vec::new();
        push_binary(&mut json, oid, field)?;
        String::from_utf8(json).ok()
    }

    // What PostgreSQL itself makes of values is compared in tests/values.rs.
    #[test]
    fn values_become_json() {
        assert_eq!(json(20, &7_i64.to_be_bytes()).as_deref(), Some("7"));
        assert_eq!(json(25, b"a \"b\"\n").as_deref(), Some(r#""a \"b\"\n""#));
        let number = [0, 1, 255, 255, 0, 0, 0, 6, 12, 51];
        assert_eq!(json(1700, &number).as_deref(), Some("0.312300"));
        assert_eq!(json(1082, &[0; 4]).as_deref(), Some("\"2000-01-01\""));
        assert_eq!(json(17, &[0, 1, 255]).as_deref(), Some("\"AAH/\""));
        assert_eq!(json(17, &[0, 1, 255, 7]).as_deref(), Some("\"AAH/Bw==\""));
    }

    #[test]
    fn what_is_no_value_of_the_type_is_refused() {
        for (oid, field) in [
            (20, &[0; 4][..]),
            (600, &[0; 16]),
            (3802, b"{}"),
            (1700, &[0, 9, 0, 0, 0, 0, 0, 0]),
            (1083, &[0x7f; 8]),
        ] {
            assert_eq!(json(oid, field), None, "{oid}");
        }
    }

    #[test]
    fn numbers_in_words_are_strings() {
        let json = |text: &str| {
            let mut json = Vec::new();
            push_number(&mut json, text.as_bytes());
            String::from_utf8(json).unwrap()
        };
        assert_eq!(json("-1.5e-300"), "-1.5e-300");
        assert_eq!(json("NaN"), "\"NaN\"");
        assert_eq!(json("-Infinity"), "\"-Infinity\"");
    }
}
