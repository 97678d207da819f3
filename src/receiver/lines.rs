//! The lines of a `POST /changes`: NDJSON, one change a line, read without a database.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::answer::{Answer, Refusal};
use super::json::{self, Members};
use super::schema::place_of;

/// More lines than this are refused: each takes memory beyond its bytes.
const LINES: usize = 200_000;

/// One line of the request.
#[derive(Deserialize)]
pub(super) struct Line<'a> {
    pub(super) position: i64,
    #[serde(borrow)]
    pub(super) entity: Cow<'a, str>,
    #[serde(borrow)]
    op: Cow<'a, str>,
    #[serde(borrow, default)]
    key: Option<&'a RawValue>,
    #[serde(borrow, default)]
    row: Option<&'a RawValue>,
    /// Its number, counted from 1.
    #[serde(skip)]
    pub(super) number: usize,
}

impl<'a> Line<'a> {
    pub(super) fn op(&self) -> &str {
        &self.op
    }

    /// The key's JSON text.
    pub(super) fn key(&self) -> Option<&'a str> {
        self.key.map(RawValue::get)
    }

    /// The row's JSON text.
    pub(super) fn row(&self) -> Option<&'a str> {
        self.row.map(RawValue::get)
    }
}

/// Reads the body's lines. A line that is not a change refuses the whole request, as nothing tells what else is wrong.
pub(super) fn lines(text: &str) -> Answer<Vec<Line<'_>>> {
    let mut lines = Vec::new();
    for (nth, line) in text.split('\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let number = nth + 1;
        if lines.len() == LINES {
            return Err(Refusal::too_large(format!("more than {LINES} lines")));
        }
        let mut read: Line<'_> = serde_json::from_str(line).map_err(|error| {
            Refusal::malformed(format!("line {number} is not a change: {}", place_of(&error)))
        })?;
        if read.position < 0 {
            return Err(Refusal::malformed(format!(
                "line {number} has a negative position"
            )));
        }
        read.number = number;
        lines.push(read);
    }
    Ok(lines)
}

/// Reads a request's body as `POST /changes` does, without a database: how many changes, and how many members their keys
/// and rows have.
///
/// # Errors
/// What the request would be answered.
pub fn read_changes(body: &[u8]) -> std::result::Result<(usize, usize), String> {
    let words = |refusal: Refusal| refusal.words().to_owned();
    let lines = text(body).and_then(lines).map_err(words)?;
    let members = |object: Option<&str>| {
        let members = object.and_then(Members::of).into_iter().flatten();
        members.filter(|(_, value)| json::text(value).is_some()).count()
    };
    let members = lines
        .iter()
        .map(|line| members(line.key()) + members(line.row()))
        .sum();
    Ok((lines.len(), members))
}

pub(super) fn text(body: &[u8]) -> Answer<&str> {
    std::str::from_utf8(body).map_err(|error| {
        let before = body.get(..error.valid_up_to()).unwrap_or_default();
        let number = memchr::memchr_iter(b'\n', before).count() + 1;
        Refusal::malformed(format!("line {number} is not valid UTF-8"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_numbered_and_blank_ones_are_passed_over() {
        let text = "{\"position\":7,\"entity\":\"rooms\",\"op\":\"upsert\",\"key\":{\"id\" : 1},\"row\":{\"id\":1}}\n\n\
                    {\"position\":8,\"entity\":\"ro\\u006fms\",\"op\":\"truncate\",\"key\":null}\r\n";
        let lines = lines(text).unwrap();
        assert_eq!(lines.len(), 2);
        assert_eq!((lines[0].number, lines[0].key()), (1, Some("{\"id\" : 1}")));
        assert_eq!((lines[1].number, &*lines[1].entity), (3, "rooms"));
        assert!(lines[1].key().is_none());
    }

    #[test]
    fn a_broken_line_is_named() {
        for text in [
            "{}\n",
            "{\"position\":1",
            "{\"position\":-1,\"entity\":\"a\",\"op\":\"upsert\"}",
        ] {
            let text = format!("\n{text}");
            let refusal = format!("{:?}", lines(&text).err().unwrap());
            assert!(refusal.contains("line 2"), "{refusal}");
        }
    }
}
