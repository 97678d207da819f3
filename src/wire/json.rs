//! Walks the members of a JSON object without building it: names and values stay slices of the request's body.
//!
//! The text must already be known to be valid JSON (it comes out of a `RawValue`). On anything else the walk ends
//! early; it never panics.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// The members of a JSON object, in order: each name, and the value's text.
pub(crate) struct Members<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Members<'a> {
    /// The members of `text`; none where it is not an object.
    pub(crate) fn of(text: &'a str) -> Option<Self> {
        let text = text.trim_ascii();
        text.starts_with('{').then_some(Self { text, at: 1 })
    }

    fn skip(&mut self, also: u8) {
        let bytes = self.text.as_bytes();
        while let Some(&byte) = bytes.get(self.at) {
            if byte != also && !byte.is_ascii_whitespace() {
                break;
            }
            self.at += 1;
        }
    }

    /// Moves past the string that begins here.
    fn pass_string(&mut self) -> Option<()> {
        let bytes = self.text.as_bytes();
        self.at += 1;
        loop {
            let step = memchr::memchr2(b'"', b'\\', bytes.get(self.at..)?)?;
            self.at += step + 1;
            if bytes[self.at - 1] == b'"' {
                return Some(());
            }
            self.at += 1;
        }
    }

    /// Moves past the value that begins here.
    fn pass_value(&mut self) -> Option<()> {
        let bytes = self.text.as_bytes();
        match *bytes.get(self.at)? {
            b'"' => self.pass_string(),
            b'{' | b'[' => {
                let mut depth = 0_usize;
                loop {
                    match *bytes.get(self.at)? {
                        b'"' => {
                            self.pass_string()?;
                            continue;
                        }
                        b'{' | b'[' => depth += 1,
                        b'}' | b']' => depth -= 1,
                        _ => {}
                    }
                    self.at += 1;
                    if depth == 0 {
                        return Some(());
                    }
                }
            }
            _ => {
                while !matches!(bytes.get(self.at)?, b',' | b'}' | b' ' | b'\t' | b'\n' | b'\r') {
                    self.at += 1;
                }
                Some(())
            }
        }
    }

    /// The next member's value, if that member is written as `name` (in quotes, with its colon); else none, and the walk
    /// stands where it stood.
    pub(crate) fn expect(&mut self, name: &str) -> Option<&'a str> {
        self.skip(b',');
        let start = self.at;
        if self.text.as_bytes().get(start..)?.starts_with(name.as_bytes()) {
            self.at += name.len();
            self.skip(b':');
            let value = self.at;
            if self.pass_value().is_some() {
                return self.text.get(value..self.at);
            }
        }
        self.at = start;
        None
    }

    fn step(&mut self) -> Option<(Cow<'a, str>, &'a str)> {
        self.skip(b',');
        if self.text.as_bytes().get(self.at) != Some(&b'"') {
            return None;
        }
        let name = self.at;
        self.pass_string()?;
        let name = string_content(self.text.get(name..self.at)?)?;
        self.skip(b':');
        let value = self.at;
        self.pass_value()?;
        Some((name, self.text.get(value..self.at)?))
    }
}

impl<'a> Iterator for Members<'a> {
    type Item = (Cow<'a, str>, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        let member = self.step();
        if member.is_none() {
            self.at = self.text.len();
        }
        member
    }
}

/// What a JSON string (with its quotes) says; none where it holds half a surrogate pair.
fn string_content(token: &str) -> Option<Cow<'_, str>> {
    let inner = token.get(1..token.len().checked_sub(1)?)?;
    if memchr::memchr(b'\\', inner.as_bytes()).is_none() {
        return Some(Cow::Borrowed(inner));
    }
    serde_json::from_str::<String>(token).ok().map(Cow::Owned)
}

/// A value as text: a string's content, anything else as it is written; none where it cannot be text.
pub(crate) fn value_as_text(value: &str) -> Option<Cow<'_, str>> {
    if value.starts_with('"') {
        string_content(value)
    } else {
        Some(Cow::Borrowed(value))
    }
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
pub(crate) fn plain_text_of<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    optional_plain_text_of(deserializer).map(Option::unwrap_or_default)
}

/// The same; `None` if it is null.
pub(crate) fn optional_plain_text_of<'de, D: Deserializer<'de>>(
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
    }
}
