//! The one codec from PostgreSQL's binary form of a value to the wire's JSON: byte by byte what `to_json` would have made of it
//! in a session whose time zone is UTC; `bytea` as base64.
//!
//! Numbers are big-endian. Types that are not here are read as text or as JSON that the server makes: see
//! [`super::describe::Codec`].
//!
//! Source: PostgreSQL, the `…_send` functions of the types; `datum_to_json` for what they become.

use std::io::Write;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

/// The oids of the types whose binary form is read here. Source: PostgreSQL, `pg_type.dat`.
pub(super) const BINARY: [u32; 16] = [
    16, 17, 20, 21, 23, 25, 114, 1042, 1043, 1082, 1083, 1114, 1184, 1700, 2950, 3802,
];

/// From 1970-01-01, where ours begin, to 2000-01-01, where PostgreSQL's do.
const DAYS_TO_2000: i64 = 10_957;

const DAY: i64 = 86_400_000_000;

/// The same, in microseconds.
pub(crate) const MICROS_TO_2000: i64 = DAYS_TO_2000 * DAY;

/// The next bytes of a value, which are taken out of it.
fn take<const N: usize>(from: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = from.split_first_chunk()?;
    *from = rest;
    Some(*first)
}

/// Appends the JSON of a value, given in the binary form of the type with this oid. None where it is not in that form; what has
/// been appended is worth nothing then.
pub(super) fn binary(json: &mut Vec<u8>, of: u32, mut field: &[u8]) -> Option<()> {
    value(json, of, &mut field)
}

/// Appends the JSON of a number that is given as text.
pub(super) fn number(json: &mut Vec<u8>, text: &[u8]) {
    // NaN, Infinity and -Infinity have no JSON number.
    if text.last().is_some_and(u8::is_ascii_digit) {
        json.extend_from_slice(text);
    } else {
        string(json, text);
    }
}

fn value(json: &mut Vec<u8>, of: u32, field: &mut &[u8]) -> Option<()> {
    match of {
        16 => json.extend_from_slice(if take::<1>(field)? == [0] {
            b"false"
        } else {
            b"true"
        }),
        21 => whole(json, i64::from(i16::from_be_bytes(take(field)?))),
        23 => whole(json, i64::from(i32::from_be_bytes(take(field)?))),
        20 => whole(json, i64::from_be_bytes(take(field)?)),
        1700 => numeric(json, field)?,
        17 => {
            json.push(b'"');
            let start = json.len();
            json.resize(start + field.len().div_ceil(3) * 4, 0);
            BASE64_STANDARD.encode_slice(*field, &mut json[start..]).ok()?;
            json.push(b'"');
        }
        25 | 1042 | 1043 => string(json, field),
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
                i32::MAX | i32::MIN => endless(json, days > 0),
                days => {
                    json.push(b'"');
                    let before = date(json, i64::from(days));
                    era(json, before);
                }
            }
        }
        1083 => {
            json.push(b'"');
            time(json, i64::from_be_bytes(take(field)?));
            json.push(b'"');
        }
        1114 | 1184 => {
            let micros = i64::from_be_bytes(take(field)?);
            if matches!(micros, i64::MAX | i64::MIN) {
                endless(json, micros > 0);
            } else {
                json.push(b'"');
                let before = date(json, micros.div_euclid(DAY));
                json.push(b'T');
                time(json, micros.rem_euclid(DAY));
                if of == 1184 {
                    json.extend_from_slice(b"+00:00");
                }
                era(json, before);
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

/// Appends a text as a JSON string.
pub(super) fn string(json: &mut Vec<u8>, text: &[u8]) {
    json.push(b'"');
    let mut rest = text;
    // Nearly no text has one; looked at without a branch for each byte, many bytes go at once.
    let special = |byte: u8| (byte < b' ') | (byte == b'"') | (byte == b'\\');
    let plain = !text.iter().fold(false, |any, &byte| any | special(byte));
    while !plain && let Some(at) = rest.iter().position(|&byte| special(byte)) {
        json.extend_from_slice(&rest[..at]);
        match rest[at] {
            b'"' => json.extend_from_slice(b"\\\""),
            b'\\' => json.extend_from_slice(b"\\\\"),
            b'\n' => json.extend_from_slice(b"\\n"),
            b'\r' => json.extend_from_slice(b"\\r"),
            b'\t' => json.extend_from_slice(b"\\t"),
            8 => json.extend_from_slice(b"\\b"),
            12 => json.extend_from_slice(b"\\f"),
            byte => put(json, format_args!("\\u{byte:04x}")),
        }
        rest = &rest[at + 1..];
    }
    json.extend_from_slice(rest);
    json.push(b'"');
}

/// Groups of four decimal digits, the place of the first one, the sign, and how many decimals are shown.
fn numeric(json: &mut Vec<u8>, field: &mut &[u8]) -> Option<()> {
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
            endless_number(json, sign == 0xD000);
            return Some(());
        }
        _ => return None,
    }
    let groups = field.get(..count * 2)?;
    let group = |nth: i32| {
        let digits = usize::try_from(nth)
            .ok()
            .and_then(|nth| groups.get(nth * 2..nth * 2 + 2));
        digits.map_or(0, |digits| u16::from_be_bytes([digits[0], digits[1]]))
    };
    let weight = i32::from(weight);
    if weight < 0 {
        json.push(b'0');
    }
    for nth in 0..=weight {
        match nth {
            0 => digits(json, u64::from(group(0))),
            nth => four_digits(json, u64::from(group(nth))),
        }
    }
    if decimals > 0 {
        json.push(b'.');
        let end = json.len() + decimals;
        let mut nth = weight + 1;
        while json.len() < end {
            four_digits(json, u64::from(group(nth)));
            nth += 1;
        }
        json.truncate(end);
    }
    Some(())
}

fn endless(json: &mut Vec<u8>, positive: bool) {
    json.extend_from_slice(if positive {
        b"\"infinity\""
    } else {
        b"\"-infinity\""
    });
}

fn endless_number(json: &mut Vec<u8>, positive: bool) {
    json.extend_from_slice(if positive {
        b"\"Infinity\""
    } else {
        b"\"-Infinity\""
    });
}

/// A date by its days since 2000; answers whether it lies before the year 1, which [`era`] tells.
///
/// Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
fn date(json: &mut Vec<u8>, days: i64) -> bool {
    let shifted = days + DAYS_TO_2000 + 719_468;
    let cycle = shifted.div_euclid(146_097);
    let of_cycle = shifted.rem_euclid(146_097);
    let year_of_cycle = (of_cycle - of_cycle / 1_460 + of_cycle / 36_524 - of_cycle / 146_096) / 365;
    let of_year = of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_cycle + cycle * 400 + i64::from(month <= 2);
    let shown = if year > 0 { year } else { 1 - year };
    four_digits(json, shown.unsigned_abs());
    let ([m, n], [d, e]) = (pair(month.unsigned_abs()), pair(day.unsigned_abs()));
    json.extend_from_slice(&[b'-', m, n, b'-', d, e]);
    year <= 0
}

fn era(json: &mut Vec<u8>, before: bool) {
    json.extend_from_slice(if before { b" BC\"" } else { b"\"" });
}

/// A time of day, with as many decimals as it has.
fn time(json: &mut Vec<u8>, micros: i64) {
    let micros = micros.unsigned_abs();
    let seconds = micros / 1_000_000;
    let ([h, i], [m, n], [s, t]) = (pair(seconds / 3600), pair(seconds / 60 % 60), pair(seconds % 60));
    json.extend_from_slice(&[h, i, b':', m, n, b':', s, t]);
    let fraction = micros % 1_000_000;
    if fraction > 0 {
        let ([a, b], [c, d], [e, f]) = (
            pair(fraction / 10_000),
            pair(fraction / 100 % 100),
            pair(fraction % 100),
        );
        json.extend_from_slice(&[b'.', a, b, c, d, e, f]);
        while json.last() == Some(&b'0') {
            json.pop();
        }
    }
}

fn whole(json: &mut Vec<u8>, number: i64) {
    if number < 0 {
        json.push(b'-');
    }
    digits(json, number.unsigned_abs());
}

/// A number. Most of what a row holds is numbers, and the formatter's way is several times longer.
fn digits(json: &mut Vec<u8>, mut number: u64) {
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
fn four_digits(json: &mut Vec<u8>, number: u64) {
    if number > 9_999 {
        return digits(json, number);
    }
    let ([a, b], [c, d]) = (pair(number / 100), pair(number % 100));
    json.extend_from_slice(&[a, b, c, d]);
}

/// The two digits of a number below 100.
fn pair(number: u64) -> [u8; 2] {
    [b'0' + (number / 10) as u8, b'0' + (number % 10) as u8]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(of: u32, field: &[u8]) -> Option<String> {
        let mut json = Vec::new();
        binary(&mut json, of, field)?;
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
        for (of, field) in [
            (20, &[0; 4][..]),
            (600, &[0; 16]),
            (3802, b"{}"),
            (1700, &[0, 9, 0, 0, 0, 0, 0, 0]),
        ] {
            assert_eq!(json(of, field), None, "{of}");
        }
    }

    #[test]
    fn numbers_in_words_are_strings() {
        let json = |text: &str| {
            let mut json = Vec::new();
            number(&mut json, text.as_bytes());
            String::from_utf8(json).unwrap()
        };
        assert_eq!(json("-1.5e-300"), "-1.5e-300");
        assert_eq!(json("NaN"), "\"NaN\"");
        assert_eq!(json("-Infinity"), "\"-Infinity\"");
    }
}
