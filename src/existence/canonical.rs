//! The canonical form of a value: two JSON texts with the same meaning have the same form, whatever types the
//! two sides keep the value in.
//!
//! Strings, numbers and booleans are compared as plain text, because the cloud may keep a number as text. A
//! text that is a number is compared by its value, a date or a time by the moment, an address without the
//! prefix that its type adds. So two texts that are the same number or moment (`1.0` and `1.00`) are equal,
//! even if the site keeps them as text. The form of an array or an object is its tokens, without white space
//! and with every string escaped in one way; nothing else in it is changed.

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

use serde::de::IgnoredAny;

use crate::wire::column_values::calendar::{days_from_civil, days_in_month};
use crate::wire::json::{ValueScanner, string_content};

/// The first character of a moment's form. No ordinary text begins with it.
const MOMENT: char = '\u{1}';

/// Appends the canonical form of a value, given as JSON text.
pub(super) fn value(out: &mut String, json: &str) {
    let json = json.trim_matches([' ', '\n', '\r', '\t']);
    match json.as_bytes().first() {
        Some(b'{' | b'[') => tokens(out, json),
        Some(b'"') => match string_content(json) {
            Some(text) => plain(out, &text),
            None => out.push_str(json),
        },
        _ => plain(out, json),
    }
}

/// Appends the canonical form of a plain text.
fn plain(out: &mut String, text: &str) {
    let start = out.len();
    let found = match text.as_bytes().first() {
        Some(b'{' | b'[') if serde_json::from_str::<IgnoredAny>(text).is_ok() => {
            tokens(out, text);
            Some(())
        }
        Some(b'-' | b'0'..=b'9') => number(out, text).or_else(|| {
            out.truncate(start);
            moment(out, text)
        }),
        _ => None,
    };
    if found.is_none() {
        out.truncate(start);
        out.push_str(address(text));
    }
}

/// Appends a number as its digits without zeros at either end, and the exponent of ten of the last one.
/// Returns `None` if the text is no JSON number.
fn number(out: &mut String, text: &str) -> Option<()> {
    let (negative, rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (mantissa, exponent) = match rest.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (rest, None),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (mantissa, None),
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let leading_zero = whole.len() > 1 && whole.starts_with('0');
    if !digits(whole) || leading_zero || fraction.is_some_and(|fraction| !digits(fraction)) {
        return None;
    }
    let mut power = match exponent {
        Some(exponent) => {
            let unsigned = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            if !digits(unsigned) {
                return None;
            }
            exponent.parse::<i64>().ok()?
        }
        None => 0,
    };
    let fraction = fraction.unwrap_or("");
    let start = out.len();
    if negative {
        out.push('-');
    }
    let first = out.len();
    let whole = whole.trim_start_matches('0');
    out.push_str(whole);
    out.push_str(if whole.is_empty() {
        fraction.trim_start_matches('0')
    } else {
        fraction
    });
    power = power.checked_sub(i64::try_from(fraction.len()).ok()?)?;
    let significant = out[first..].trim_end_matches('0').len();
    power = power.checked_add(i64::try_from(out.len() - first - significant).ok()?)?;
    out.truncate(first + significant);
    if significant == 0 {
        out.truncate(start);
        out.push('0');
    } else if power != 0 {
        append(out, format_args!("e{power}"));
    }
    Some(())
}

/// Appends a date or a timestamp as the seconds since 1970 and their fraction, in UTC if the text has an
/// offset. A date is its midnight without an offset. Returns `None` if the text is neither.
fn moment(out: &mut String, text: &str) -> Option<()> {
    let (date, rest) = match text.find([' ', 'T']) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    let mut parts = date.split('-');
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || !(4..=6).contains(&year.len()) {
        return None;
    }
    let year: i64 = unsigned(year)?;
    let (month, day) = (two_digits(month)?, two_digits(day)?);
    if !(1..=12).contains(&month) || day < 1 || day > days_in_month(year, month) {
        return None;
    }
    let mut seconds = days_from_civil(year, month, day) * 86_400;
    let (mut fraction, mut zoned) = ("", false);
    if let Some(rest) = rest {
        let offset_at = rest.find(['Z', '+', '-']).unwrap_or(rest.len());
        let (time, offset) = rest.split_at(offset_at);
        let (clock, sub) = time.split_once('.').unwrap_or((time, ""));
        let mut parts = clock.split(':');
        let (hour, minute, second) = (
            two_digits(parts.next()?)?,
            two_digits(parts.next()?)?,
            two_digits(parts.next()?)?,
        );
        let valid = hour < 24 && minute < 60 && second < 60 && sub.bytes().all(|byte| byte.is_ascii_digit());
        if parts.next().is_some() || !valid || time.ends_with('.') {
            return None;
        }
        fraction = sub.trim_end_matches('0');
        seconds += hour * 3_600 + minute * 60 + second;
        if !offset.is_empty() {
            zoned = true;
            seconds -= offset_seconds(offset)?;
        }
    }
    let zone = if zoned { "Z" } else { "" };
    append(out, format_args!("{MOMENT}{seconds}.{fraction}{zone}"));
    Some(())
}

fn append(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = out.write_fmt(text);
}

/// `Z`, `+08`, `+0530`, `-03:30` or `+01:02:03`, in seconds.
fn offset_seconds(text: &str) -> Option<i64> {
    if text == "Z" {
        return Some(0);
    }
    let (sign, rest) = match text.as_bytes().first()? {
        b'+' => (1, &text[1..]),
        b'-' => (-1, &text[1..]),
        _ => return None,
    };
    let (hours, rest) = rest.split_at_checked(2)?;
    let mut seconds = two_digits(hours)? * 3_600;
    let mut rest = rest;
    for unit in [60, 1] {
        if rest.is_empty() {
            break;
        }
        let (digits, more) = rest.strip_prefix(':').unwrap_or(rest).split_at_checked(2)?;
        seconds += two_digits(digits)? * unit;
        rest = more;
    }
    rest.is_empty().then_some(sign * seconds)
}

fn two_digits(text: &str) -> Option<i64> {
    (text.len() == 2).then(|| unsigned(text))?
}

fn unsigned(text: &str) -> Option<i64> {
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())?
}

/// The text of an address without a prefix length that covers the whole address.
fn address(text: &str) -> &str {
    let v4 = text
        .strip_suffix("/32")
        .filter(|host| host.parse::<Ipv4Addr>().is_ok());
    let v6 = || {
        text.strip_suffix("/128")
            .filter(|host| host.parse::<Ipv6Addr>().is_ok())
    };
    v4.or_else(v6).unwrap_or(text)
}

/// Appends JSON text without white space between its tokens, and with each string escaped in one way.
fn tokens(out: &mut String, json: &str) {
    let bytes = json.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b' ' | b'\n' | b'\r' | b'\t' => at += 1,
            b'"' => {
                let length = ValueScanner::default().scan(&bytes[at..]);
                let string = &json[at..length.map_or(bytes.len(), |length| at + length)];
                at += string.len();
                let escaped = string.contains('\\').then(|| string_content(string)).flatten();
                let normal = escaped.and_then(|text| serde_json::to_string(&text).ok());
                out.push_str(normal.as_deref().unwrap_or(string));
            }
            _ => {
                let start = at;
                while at < bytes.len() && !matches!(bytes[at], b' ' | b'\n' | b'\r' | b'\t' | b'"') {
                    at += 1;
                }
                out.push_str(&json[start..at]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(json: &str) -> String {
        let mut out = String::new();
        value(&mut out, json);
        out
    }

    fn same(texts: &[&str]) {
        for text in texts {
            assert_eq!(form(text), form(texts[0]), "{text}");
        }
    }

    fn differ(texts: &[&str]) {
        for (index, text) in texts.iter().enumerate() {
            for other in &texts[..index] {
                assert_ne!(form(text), form(other), "{text} {other}");
            }
        }
    }

    #[test]
    fn scalars_count_as_their_plain_text() {
        same(&["5", "\"5\"", " 5 "]);
        same(&["true", "\"true\""]);
        same(&["\"\\u00e9\\/\"", "\"é/\""]);
        same(&["\"NaN\"", "NaN"]);
        differ(&[
            "\"a\"",
            "\"A\"",
            "\"a \"",
            "\"\"",
            "\"null \"",
            "\"-\"",
            "\"-Infinity\"",
            "\"Infinity\"",
        ]);
        assert_eq!(form("\"\\n\""), "\n");
    }

    #[test]
    fn numbers_are_compared_by_value() {
        same(&["1.0", "1.00", "1", "\"1.000\"", "10e-1", "0.1E+1"]);
        same(&["1e3", "1000", "1000.0"]);
        same(&["-0", "0", "0.00", "-0.0e5"]);
        same(&["0.00120", "1.2e-3"]);
        same(&[
            "123456789012345678901234567890.10",
            "123456789012345678901234567890.1",
        ]);
        differ(&[
            "1",
            "10",
            "0.1",
            "-1",
            "1.01",
            "123456789012345678901234567890",
            "123456789012345678901234567891",
        ]);
        // These are texts, not numbers.
        differ(&[
            "\"1\"",
            "\"01\"",
            "\"1.\"",
            "\".1\"",
            "\"+1\"",
            "\"1 \"",
            "\"1e\"",
            "\"1e+\"",
            "\"-\"",
            "\"1.2.3\"",
        ]);
    }

    #[test]
    fn dates_and_times_are_compared_by_the_moment() {
        same(&[
            "\"2020-01-01\"",
            "\"2020-01-01T00:00:00\"",
            "\"2020-01-01 00:00:00.000\"",
        ]);
        same(&[
            "\"2020-03-01T00:30:00.50Z\"",
            "\"2020-03-01T00:30:00.5+00:00\"",
            "\"2020-02-29T18:30:00.5-06\"",
            "\"2020-03-01 06:00:00.5+0530\"",
            "\"2020-03-01 00:30:01.5+00:00:01\"",
        ]);
        same(&["\"1969-12-31T23:59:59Z\"", "\"1970-01-01T00:59:59+01:00\""]);
        differ(&[
            "\"2020-01-01\"",
            "\"2020-01-01T00:00:00Z\"",
            "\"2020-01-02\"",
            "\"2020-01-01T00:00:00.1\"",
            "\"2020-01-01T00:00\"",
            "\"2020-1-1\"",
            "\"2020-02-30\"",
            "\"2020-03-01\"",
            "\"2020-01-01T24:00:00\"",
            "\"2020-01-02T00:00:00\\u0020\"",
            "\"2020-01-01T00:00:00.\"",
            "\"2020-01-01T00:00:00+1\"",
        ]);
        assert_eq!(form("\"1970-01-02T00:00:01.250Z\""), "\u{1}86401.25Z");
        assert_eq!(form("\"2000-03-01\""), format!("\u{1}{}.", 11_017 * 86_400));
    }

    #[test]
    fn an_address_is_the_same_with_its_whole_prefix() {
        same(&["\"10.1.2.3/32\"", "\"10.1.2.3\""]);
        same(&["\"2001:db8::1/128\"", "\"2001:db8::1\""]);
        differ(&["\"10.1.2.0/24\"", "\"10.1.2.0\"", "\"10.1.2/32\"", "\"10.1.2\""]);
    }

    #[test]
    fn json_is_the_same_as_a_text_that_holds_it() {
        same(&[
            "{\"a\" : [1, 2],\n \"b\":\"\\u00e9\"}",
            "{\"a\":[1,2],\"b\":\"é\"}",
            "\"{\\\"a\\\": [1,2], \\\"b\\\": \\\"é\\\"}\"",
        ]);
        same(&["[]", "\"[]\""]);
        differ(&["[1]", "[1.0]", "[\"1\"]", "\"[1\"", "\"{1}\""]);
        for (text, expected) in [
            (
                r#" { "a\"b" : "c\\" , "d" : [ true , null ] } "#,
                r#"{"a\"b":"c\\","d":[true,null]}"#,
            ),
            (r#"["\ud83d\ude00"]"#, "[\"😀\"]"),
            ("[-1.50e3, \"2020-01-01\"]", "[-1.50e3,\"2020-01-01\"]"),
        ] {
            assert_eq!(form(text), expected);
        }
    }
}
