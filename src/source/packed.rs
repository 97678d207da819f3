//! The JSON of a row that was captured as PostgreSQL sends it: byte by byte what `row_to_json` would have made of it in a
//! session whose time zone is UTC.
//!
//! A packed row is what `record_send` gives: the number of columns, then of each one its type's oid, its length, and its
//! value in the binary form of that type. It does not say names; those are the layout's, under whose number it was
//! written. All numbers are big-endian.
//!
//! Source: PostgreSQL, `record_send` and the `…_send` functions of the types; `datum_to_json` for what they become.

use std::io::Write;

/// The types whose values can be unpacked, as `format_type` names them without modifiers. No setting changes their JSON, a
/// moment's offset apart.
pub(crate) const TYPES: [&str; 15] = [
    "boolean",
    "smallint",
    "integer",
    "bigint",
    "numeric",
    "text",
    "character varying",
    "character",
    "uuid",
    "json",
    "jsonb",
    "date",
    "timestamp without time zone",
    "timestamp with time zone",
    "time without time zone",
];

/// From 1970-01-01, where ours begin, to 2000-01-01, where PostgreSQL's do.
const DAYS_TO_2000: i64 = 10_957;

const DAY: i64 = 86_400_000_000;

/// The same, in microseconds.
pub(crate) const MICROS_TO_2000: i64 = DAYS_TO_2000 * DAY;

/// The columns of packed rows.
pub(crate) struct Layout {
    /// What stands before each value: `{"a":`, `,"b":`.
    labels: Vec<Box<[u8]>>,
}

impl Layout {
    /// The layout of columns with these names.
    pub(crate) fn new<S: AsRef<str>>(columns: &[S]) -> Self {
        let label = |(nth, name): (usize, &S)| {
            let mut label = vec![if nth == 0 { b'{' } else { b',' }];
            string(&mut label, name.as_ref().as_bytes());
            label.push(b':');
            label.into()
        };
        Self {
            labels: columns.iter().enumerate().map(label).collect(),
        }
    }

    /// The row as a JSON object, written into `json`; none where it is no packed row of this layout.
    pub(crate) fn json<'a>(&self, packed: &[u8], json: &'a mut Vec<u8>) -> Option<&'a str> {
        json.clear();
        let mut row = packed;
        if usize::try_from(i32::from_be_bytes(take(&mut row)?)).ok()? != self.labels.len() {
            return None;
        }
        for label in &self.labels {
            json.extend_from_slice(label);
            let of = u32::from_be_bytes(take(&mut row)?);
            match usize::try_from(i32::from_be_bytes(take(&mut row)?)) {
                Ok(length) => {
                    let (mut field, rest) = row.split_at_checked(length)?;
                    row = rest;
                    value(json, of, &mut field)?;
                }
                Err(_) => json.extend_from_slice(b"null"),
            }
        }
        json.extend_from_slice(if self.labels.is_empty() { b"{}" } else { b"}" });
        std::str::from_utf8(json).ok().filter(|_| row.is_empty())
    }
}

/// The next bytes of a value, which are taken out of it.
fn take<const N: usize>(from: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = from.split_first_chunk()?;
    *from = rest;
    Some(*first)
}

/// A value of the type with this oid. Source: PostgreSQL, `pg_type.dat`.
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

/// A text with its quotes.
fn string(json: &mut Vec<u8>, text: &[u8]) {
    json.push(b'"');
    let mut rest = text;
    while let Some(at) = rest
        .iter()
        .position(|&byte| byte < b' ' || matches!(byte, b'"' | b'\\'))
    {
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
            0 => digits(json, u64::from(group(0)), 1),
            nth => digits(json, u64::from(group(nth)), 4),
        }
    }
    if decimals > 0 {
        json.push(b'.');
        let end = json.len() + decimals;
        let mut nth = weight + 1;
        while json.len() < end {
            digits(json, u64::from(group(nth)), 4);
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
    digits(json, shown.unsigned_abs(), 4);
    json.push(b'-');
    digits(json, month.unsigned_abs(), 2);
    json.push(b'-');
    digits(json, day.unsigned_abs(), 2);
    year <= 0
}

fn era(json: &mut Vec<u8>, before: bool) {
    json.extend_from_slice(if before { b" BC\"" } else { b"\"" });
}

/// A time of day, with as many decimals as it has.
fn time(json: &mut Vec<u8>, micros: i64) {
    let micros = micros.unsigned_abs();
    let seconds = micros / 1_000_000;
    digits(json, seconds / 3600, 2);
    json.push(b':');
    digits(json, seconds / 60 % 60, 2);
    json.push(b':');
    digits(json, seconds % 60, 2);
    let fraction = micros % 1_000_000;
    if fraction > 0 {
        json.push(b'.');
        digits(json, fraction, 6);
        while json.last() == Some(&b'0') {
            json.pop();
        }
    }
}

fn whole(json: &mut Vec<u8>, number: i64) {
    if number < 0 {
        json.push(b'-');
    }
    digits(json, number.unsigned_abs(), 1);
}

/// A number with at least as many digits. Most of what a row holds is numbers, and the formatter's way is several times longer.
fn digits(json: &mut Vec<u8>, mut number: u64, least: usize) {
    let mut text = [b'0'; 20];
    let mut from = text.len();
    while number > 0 {
        from -= 1;
        text[from] = b'0' + (number % 10) as u8;
        number /= 10;
    }
    json.extend_from_slice(&text[from.min(text.len() - least)..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row of these fields; each by its type and, where it is not null, its bytes.
    fn packed(fields: &[(u32, Option<&[u8]>)]) -> Vec<u8> {
        let mut row = (fields.len() as i32).to_be_bytes().to_vec();
        for (of, bytes) in fields {
            row.extend_from_slice(&of.to_be_bytes());
            row.extend_from_slice(&bytes.map_or(-1, |bytes| bytes.len() as i32).to_be_bytes());
            row.extend_from_slice(bytes.unwrap_or_default());
        }
        row
    }

    // What PostgreSQL itself makes of values is compared in tests/packed.rs.
    #[test]
    fn it_is_an_object_under_the_layouts_names() {
        let layout = Layout::new(&["id", "a \"b\"\n"]);
        let row = packed(&[(20, Some(&7_i64.to_be_bytes())), (25, None)]);
        assert_eq!(
            layout.json(&row, &mut Vec::new()).unwrap(),
            r#"{"id":7,"a \"b\"\n":null}"#
        );
        let row = packed(&[
            (1700, Some(&[0, 1, 255, 255, 0, 0, 0, 6, 12, 51])),
            (1082, Some(&[0; 4])),
        ]);
        assert_eq!(
            layout.json(&row, &mut Vec::new()).unwrap(),
            r#"{"id":0.312300,"a \"b\"\n":"2000-01-01"}"#
        );
        assert_eq!(
            Layout::new::<&str>(&[])
                .json(&packed(&[]), &mut Vec::new())
                .unwrap(),
            "{}"
        );
    }

    #[test]
    fn what_is_no_row_of_the_layout_is_refused() {
        let layout = Layout::new(&["id"]);
        let whole = packed(&[(20, Some(&7_i64.to_be_bytes()))]);
        assert!(layout.json(&whole, &mut Vec::new()).is_some());
        for length in 0..whole.len() {
            assert_eq!(layout.json(&whole[..length], &mut Vec::new()), None, "{length}");
        }
        let longer = [&whole[..], &[0]].concat();
        for other in [
            &longer,
            &packed(&[]),
            &packed(&[(20, None), (20, None)]),
            &packed(&[(600, Some(&[0; 16]))]),
            &packed(&[(25, Some(&[0xff]))]),
            &packed(&[(3802, Some(b"{}"))]),
            &packed(&[(1700, Some(&[0, 9, 0, 0, 0, 0, 0, 0]))]),
        ] {
            assert_eq!(layout.json(other, &mut Vec::new()), None, "{other:?}");
        }
    }
}
