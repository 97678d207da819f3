//! JSON text, walked without building values: names and values stay slices of it.
//!
//! There are two walks. [`Members`] goes over an object whose whole text is there. [`ValueScanner`] finds
//! where a value ends in text that comes in pieces; `Members` uses it too, and so do the readers of lists in
//! `deliver`, which have their own grammar around it (an array of rows, a page of a list).
//!
//! The text of a value is not checked: it comes out of a `RawValue`, or out of this program's own encoder. On
//! anything else a walk ends early; it never panics, and [`pick`] says that the text is not an object.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// Finds where a string, an array or an object ends, in text that may come in pieces.
#[derive(Debug, Default)]
pub(crate) struct ValueScanner {
    depth: usize,
    in_string: bool,
    /// The last byte was a backslash in a string.
    escaped: bool,
}

impl ValueScanner {
    /// Scans the next piece of a value that begins with `"`, `[` or `{`. Returns one past the value's last
    /// byte in the piece; `None` if the value does not end in it.
    pub(crate) fn scan(&mut self, piece: &[u8]) -> Option<usize> {
        let mut at = 0;
        loop {
            if self.in_string {
                at = self.scan_string(piece, at)?;
                if self.depth == 0 {
                    return Some(at);
                }
            }
            let byte = *piece.get(at)?;
            at += 1;
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Some(at);
                    }
                }
                _ => {}
            }
        }
    }

    /// Scans on in a string. Returns one past its closing quote.
    fn scan_string(&mut self, piece: &[u8], mut at: usize) -> Option<usize> {
        loop {
            if self.escaped {
                piece.get(at)?;
                at += 1;
                self.escaped = false;
            }
            at += memchr::memchr2(b'"', b'\\', piece.get(at..)?)? + 1;
            if piece[at - 1] == b'"' {
                self.in_string = false;
                return Some(at);
            }
            self.escaped = true;
        }
    }
}

/// The members of a JSON object, in order: each name, and the value's text.
pub(crate) struct Members<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Members<'a> {
    /// The members of `text`; `None` if it does not begin as an object does.
    pub(crate) fn of(text: &'a str) -> Option<Self> {
        let text = text.trim_ascii();
        text.starts_with('{').then_some(Self { text, at: 1 })
    }

    /// The value of the next member, if that is written as `name` (in quotes, with its colon); else `None`,
    /// and the walk stays where it is.
    pub(crate) fn expect(&mut self, name: &str) -> Option<&'a str> {
        self.skip(b',');
        let start = self.at;
        if self.text.as_bytes().get(start..)?.starts_with(name.as_bytes()) {
            self.at += name.len();
            if let Some(value) = self.value() {
                return Some(value);
            }
        }
        self.at = start;
        None
    }

    /// Whether nothing but the object's closing brace is left.
    fn is_at_end(&self) -> bool {
        self.text.as_bytes().get(self.at..) == Some(b"}")
    }

    /// Skips white space, and this byte.
    fn skip(&mut self, also: u8) {
        let bytes = self.text.as_bytes();
        while let Some(&byte) = bytes.get(self.at) {
            if byte != also && !byte.is_ascii_whitespace() {
                break;
            }
            self.at += 1;
        }
    }

    /// The value that comes next, with a colon before it.
    fn value(&mut self) -> Option<&'a str> {
        self.skip(b':');
        let start = self.at;
        let rest = self.text.as_bytes().get(start..)?;
        self.at += match rest.first()? {
            b'"' | b'{' | b'[' => ValueScanner::default().scan(rest)?,
            _ => rest
                .iter()
                .position(|byte| matches!(byte, b',' | b'}' | b' ' | b'\t' | b'\n' | b'\r'))
                .filter(|&length| length > 0)?,
        };
        self.text.get(start..self.at)
    }

    fn member(&mut self) -> Option<(Cow<'a, str>, &'a str)> {
        let rest = self.text.as_bytes().get(self.at..)?;
        if rest.first() != Some(&b'"') {
            return None;
        }
        let start = self.at;
        self.at += ValueScanner::default().scan(rest)?;
        let name = string_content(self.text.get(start..self.at)?)?;
        Some((name, self.value()?))
    }
}

impl<'a> Iterator for Members<'a> {
    type Item = (Cow<'a, str>, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        self.skip(b',');
        let start = self.at;
        let member = self.member();
        if member.is_none() {
            self.at = start;
        }
        member
    }
}

/// Text that is not a JSON object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotAnObject;

impl fmt::Display for NotAnObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it is not a JSON object")
    }
}

impl std::error::Error for NotAnObject {}

/// The values of the members with these names, in the order of `names`, as JSON text; `None` for a name that
/// the object does not have. Of a name that comes twice the last value counts.
pub(crate) fn pick<'a, N: AsRef<str>>(
    object: &'a str,
    names: &[N],
) -> Result<Vec<Option<&'a str>>, NotAnObject> {
    let mut members = Members::of(object).ok_or(NotAnObject)?;
    let mut found = vec![None; names.len()];
    for (name, value) in &mut members {
        if let Some(index) = names.iter().position(|wanted| wanted.as_ref() == name) {
            found[index] = Some(value);
        }
    }
    members.is_at_end().then_some(found).ok_or(NotAnObject)
}

/// All members of the object, in order.
pub(crate) fn all_members(object: &str) -> Result<Vec<(Cow<'_, str>, &str)>, NotAnObject> {
    let mut members = Members::of(object).ok_or(NotAnObject)?;
    let found = members.by_ref().collect();
    members.is_at_end().then_some(found).ok_or(NotAnObject)
}

/// What a JSON string (with its quotes) says; `None` if it is none, or holds half a surrogate pair.
pub(crate) fn string_content(token: &str) -> Option<Cow<'_, str>> {
    let inner = token.strip_prefix('"')?.strip_suffix('"')?;
    if memchr::memchr(b'\\', inner.as_bytes()).is_none() {
        return Some(Cow::Borrowed(inner));
    }
    serde_json::from_str::<String>(token).ok().map(Cow::Owned)
}

/// A value as text: a string's content, anything else as it is written; `None` if it cannot be text.
pub(crate) fn value_as_text(value: &str) -> Option<Cow<'_, str>> {
    if value.starts_with('"') {
        string_content(value)
    } else {
        Some(Cow::Borrowed(value))
    }
}

/// A value as text, as [`value_as_text`] has it; `None` if it is null, too.
pub(crate) fn non_null_text(value: &str) -> Option<Cow<'_, str>> {
    if value == "null" {
        None
    } else {
        value_as_text(value)
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Appends a text as a JSON string.
pub(crate) fn push_string(json: &mut Vec<u8>, text: &[u8]) {
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
            byte => {
                let hex = |digit: u8| HEX[usize::from(digit)];
                json.extend_from_slice(&[b'\\', b'u', b'0', b'0', hex(byte >> 4), hex(byte & 15)]);
            }
        }
        rest = &rest[at + 1..];
    }
    json.extend_from_slice(rest);
    json.push(b'"');
}

/// Where a JSON text is broken. serde's own words may carry a value.
pub(crate) fn syntax_error_place(error: &serde_json::Error) -> String {
    let what = match error.classify() {
        serde_json::error::Category::Data => "a member is missing or of another kind",
        _ => "broken JSON",
    };
    format!("{what} at line {}, column {}", error.line(), error.column())
}

/// Reads any JSON value as plain text: a string's content, null as nothing, anything else as JSON text.
pub(super) fn plain_text_of<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    optional_plain_text_of(deserializer).map(Option::unwrap_or_default)
}

/// The same; `None` if it is null.
pub(super) fn optional_plain_text_of<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::String(text) => Some(text),
        Value::Null => None,
        other => Some(other.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn members_come_in_order_with_their_text() {
        let text = "{ \"a\" : 1 ,\"b\":\"x\\\"}\",\n\"c\":{\"a\":[2,\"]\"]},\"d\\u0041\":null , \"e\":[] }";
        let members: Vec<_> = Members::of(text)
            .unwrap()
            .map(|(name, value)| (name.into_owned(), value))
            .collect();
        assert_eq!(
            members,
            [
                ("a".to_owned(), "1"),
                ("b".to_owned(), "\"x\\\"}\""),
                ("c".to_owned(), "{\"a\":[2,\"]\"]}"),
                ("dA".to_owned(), "null"),
                ("e".to_owned(), "[]"),
            ]
        );
        assert_eq!(Members::of("{}").unwrap().count(), 0);
        assert!(Members::of("[1]").is_none());
    }

    #[test]
    fn an_expected_member_is_taken_and_no_other() {
        let mut members = Members::of("{\"a\":1, \"ab\" : 2,\"c\": {\"a\":3}}").unwrap();
        assert_eq!(members.expect("\"ab\":"), None);
        assert_eq!(members.expect("\"a\":"), Some("1"));
        assert_eq!(members.expect("\"ab\":"), None);
        assert_eq!(members.next(), Some(("ab".into(), "2")));
        assert_eq!(members.expect("\"c\":"), Some("{\"a\":3}"));
        assert_eq!(members.expect("\"a\":"), None);
        assert_eq!(members.next(), None);
    }

    #[test]
    fn broken_text_ends_the_walk() {
        for text in ["{\"a\"", "{\"a\":", "{\"a\":\"x", "{\"a\":[1", "{\"a\\", "{"] {
            assert_eq!(Members::of(text).unwrap().count(), 0, "{text}");
        }
    }

    #[test]
    fn text_unescapes_strings_only() {
        assert_eq!(value_as_text("\"a\\nb\"").unwrap(), "a\nb");
        assert_eq!(value_as_text("12.50").unwrap(), "12.50");
        assert!(value_as_text("\"\\ud800\"").is_none());
        assert!(non_null_text("null").is_none());
    }

    #[test]
    fn members_are_picked_by_name_and_kept_as_text() {
        let row = r#"{"b" : "x\u00e9", "a":12345678901234567890.10, "n":null, "o":{"a":1}, "d":1, "d":2}"#;
        assert_eq!(
            pick(row, &["a", "b", "n", "missing", "d"]).unwrap(),
            [
                Some("12345678901234567890.10"),
                Some("\"x\\u00e9\""),
                Some("null"),
                None,
                Some("2")
            ]
        );
        assert_eq!(all_members(row).unwrap().len(), 6);
        for wrong in ["", "[]", "1", "{\"a\":1} x", "{\"a\"}", "{\"a\":1", "{\"a\":1}}"] {
            assert!(pick(wrong, &["a"]).is_err(), "{wrong}");
            assert!(all_members(wrong).is_err(), "{wrong}");
        }
    }

    /// Any JSON value of a few levels.
    fn json() -> impl Strategy<Value = Value> {
        let text = prop_oneof![any::<String>(), "[\"\\\\{}\\[\\],: \n\u{e9}]{0,8}"];
        let scalar = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            text.clone().prop_map(Value::from),
        ];
        scalar.prop_recursive(3, 24, 6, move |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                proptest::collection::btree_map(text.clone(), inner, 0..6)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn an_objects_members_are_what_serde_reads(value in json(), pretty: bool) {
            let text = match pretty {
                true => serde_json::to_string_pretty(&value).unwrap(),
                false => serde_json::to_string(&value).unwrap(),
            };
            match &value {
                Value::Object(members) => {
                    let walked = all_members(&text).unwrap();
                    prop_assert_eq!(walked.len(), members.len());
                    for (name, value) in &walked {
                        let read = |text: &str| serde_json::from_str::<Value>(text).unwrap();
                        prop_assert_eq!(read(value), read(&members[&**name].to_string()));
                    }
                    let names: Vec<&String> = members.keys().collect();
                    let picked = pick(&text, &names).unwrap();
                    prop_assert!(picked.iter().all(Option::is_some));
                }
                _ => prop_assert!(all_members(&text).is_err()),
            }
        }

        #[test]
        fn a_value_ends_where_it_ends_in_any_pieces(value in json(), piece in 1_usize..9, tail: String) {
            let text = serde_json::to_string(&value).unwrap();
            if matches!(text.as_bytes()[0], b'"' | b'[' | b'{') {
                let all = format!("{text}{tail}");
                let mut scanner = ValueScanner::default();
                let mut end = None;
                for (index, piece_text) in all.as_bytes().chunks(piece).enumerate() {
                    if let Some(at) = scanner.scan(piece_text) {
                        end = Some(index * piece + at);
                        break;
                    }
                }
                prop_assert_eq!(end, Some(text.len()));
            }
        }

        #[test]
        fn a_text_is_read_as_it_was_written(text: String) {
            let mut json = Vec::new();
            push_string(&mut json, text.as_bytes());
            let json = String::from_utf8(json).unwrap();
            prop_assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text.as_str());
            prop_assert_eq!(string_content(&json).unwrap(), text);
        }

        #[test]
        fn no_text_makes_a_walk_panic(text in "[\\PC{}\\[\\]\",:\\\\u 0-9]{0,64}", any_text: String) {
            for text in [text, any_text] {
                let object = format!("{{{text}");
                let _ = (pick(&object, &["a"]), all_members(&object), value_as_text(&text));
                ValueScanner::default().scan(text.as_bytes());
                if let Some(mut members) = Members::of(&object) {
                    while members.expect("\"a\":").is_some() || members.next().is_some() {}
                }
            }
        }
    }
}
