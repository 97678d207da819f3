//! A line of `POST /changes`: NDJSON, one change a line.
//!
//! The client writes lines into one buffer ([`ChangeLine::write_to`]). The receiver reads them while the body
//! comes ([`ChangeLineReader`]): entity, key and row stay slices of the body, and keys and rows stay unparsed
//! JSON text. [`ChangeLine::number`] is its number in the request: an answer names rejected changes by it.
//!
//! A line that is not a change makes the whole request wrong, since nothing tells what else is wrong. An op
//! that is none of the contract's is a matter of that change only.

use std::borrow::Cow;
use std::fmt;
use std::io::Write;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::json::{Members, syntax_error_place, value_as_text};
use super::limits::MAX_LINES;

/// A body is read on when so many more bytes of it have come.
const READ_STEP: usize = 64 * 1024;

/// What happened to the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    /// The row is there: the change carries its present state.
    Upsert,
    /// The row is not there: the change carries the key.
    Delete,
    /// The whole table was truncated: the change carries neither.
    Truncate,
}

impl Op {
    /// The word on the wire.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Upsert => "upsert",
            Self::Delete => "delete",
            Self::Truncate => "truncate",
        }
    }

    /// The op of this word; `None` if it is none of the contract's.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Upsert, Self::Delete, Self::Truncate]
            .into_iter()
            .find(|op| op.word() == word)
    }
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeLine<'a> {
    /// The change's position, for tracing.
    pub position: i64,
    /// The entity's name.
    pub entity: Cow<'a, str>,
    /// `None` if it is none of the contract's.
    pub op: Option<Op>,
    /// The key, as the text of a JSON object.
    pub key: Option<&'a str>,
    /// The row, as the text of a JSON object.
    pub row: Option<&'a str>,
    /// The line's number in the request, counted from 1. It is not written.
    pub number: usize,
}

impl ChangeLine<'_> {
    /// How many bytes a line has at most beyond its entity's name, its key and its row: its names and braces
    /// have 62, the longest op 8, the longest position 20.
    pub const OVERHEAD: usize = 90;

    /// Appends the line. The entity's name must be one that needs no escape in JSON.
    pub fn write_to(&self, text: &mut Vec<u8>) {
        // Writing to memory cannot fail.
        let _ = write!(
            text,
            "{{\"position\":{},\"entity\":\"{}\",\"op\":\"{}\"",
            self.position,
            self.entity,
            self.op.map_or("", Op::word)
        );
        if let Some(key) = self.key {
            text.extend_from_slice(b",\"key\":");
            push_on_one_line(text, key);
        }
        if let Some(row) = self.row {
            text.extend_from_slice(b",\"row\":");
            push_on_one_line(text, row);
        }
        text.extend_from_slice(b"}\n");
    }
}

/// Appends JSON text without its line breaks: unescaped, they are only ever white space between tokens.
fn push_on_one_line(text: &mut Vec<u8>, json: &str) {
    let start = text.len();
    text.extend_from_slice(json.as_bytes());
    let added = &mut text[start..];
    let mut from = 0;
    while let Some(at) = memchr::memchr2(b'\n', b'\r', &added[from..]) {
        added[from + at] = b' ';
        from += at + 1;
    }
}

/// Why the lines of a request cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LineError {
    /// There are more than [`MAX_LINES`].
    TooMany,
    /// One is not a change; in words, which name the line.
    NotAChange(String),
}

impl fmt::Display for LineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooMany => write!(f, "more than {MAX_LINES} lines"),
            Self::NotAChange(cause) => f.write_str(cause),
        }
    }
}

impl std::error::Error for LineError {}

/// A line as JSON.
#[derive(Deserialize)]
struct ChangeLineJson<'a> {
    position: i64,
    #[serde(borrow)]
    entity: Cow<'a, str>,
    #[serde(borrow)]
    op: Cow<'a, str>,
    #[serde(borrow, default)]
    key: Option<&'a RawValue>,
    #[serde(borrow, default)]
    row: Option<&'a RawValue>,
}

/// A line by its places in the body, which may move while it grows.
struct LineSpans {
    position: i64,
    entity: TextSpan,
    op: Option<Op>,
    key: Option<Range<usize>>,
    row: Option<Range<usize>>,
    number: usize,
}

/// A string of the body.
enum TextSpan {
    At(Range<usize>),
    /// It was written with escapes.
    Unescaped(String),
}

/// Reads the lines of a body, while it comes.
#[derive(Default)]
pub struct ChangeLineReader {
    lines: Vec<LineSpans>,
    /// The bytes and the line breaks that were read.
    bytes: usize,
    breaks: usize,
    error: Option<LineError>,
}

impl ChangeLineReader {
    /// Reads on. `body` is what has come of it from its beginning.
    pub fn read_more(&mut self, body: &[u8]) {
        let new = &body[self.bytes..];
        if new.len() < READ_STEP {
            return;
        }
        if let Some(last) = memchr::memrchr(b'\n', new) {
            self.read_lines(&new[..=last]);
        }
    }

    /// Reads the rest of the body, and returns all its lines. Blank lines are counted and passed over.
    ///
    /// # Errors
    /// A line is not a change, or there are too many.
    pub fn finish(mut self, body: &[u8]) -> Result<Vec<ChangeLine<'_>>, LineError> {
        self.read_lines(&body[self.bytes..]);
        if let Some(error) = self.error {
            return Err(error);
        }
        let body = utf8_text(body, 0)?;
        let slice = |span: Range<usize>| &body[span];
        let string = |text: TextSpan| match text {
            TextSpan::At(span) => Cow::Borrowed(slice(span)),
            TextSpan::Unescaped(text) => Cow::Owned(text),
        };
        let lines = self.lines.into_iter().map(|spans| ChangeLine {
            position: spans.position,
            entity: string(spans.entity),
            op: spans.op,
            key: spans.key.map(slice),
            row: spans.row.map(slice),
            number: spans.number,
        });
        Ok(lines.collect())
    }

    /// Reads whole lines, which follow what was read.
    fn read_lines(&mut self, lines: &[u8]) {
        if self.error.is_none() {
            self.error = self.parse(lines).err();
        }
        self.bytes += lines.len();
    }

    fn parse(&mut self, lines: &[u8]) -> Result<(), LineError> {
        let (start, before) = (self.bytes, self.breaks);
        let lines = utf8_text(lines, before)?;
        let whole = |part: &str| {
            let from = start + (part.as_ptr() as usize - lines.as_ptr() as usize);
            from..from + part.len()
        };
        let string = |text: Cow<'_, str>| match text {
            Cow::Borrowed(text) => TextSpan::At(whole(text)),
            Cow::Owned(text) => TextSpan::Unescaped(text),
        };
        for (line_index, line) in lines.split('\n').enumerate() {
            self.breaks = before + line_index;
            if line.trim_ascii().is_empty() {
                continue;
            }
            let number = self.breaks + 1;
            if self.lines.len() == MAX_LINES {
                return Err(LineError::TooMany);
            }
            let read: ChangeLineJson<'_> = serde_json::from_str(line).map_err(|error| {
                let place = syntax_error_place(&error);
                LineError::NotAChange(format!("line {number} is not a change: {place}"))
            })?;
            if read.position < 0 {
                return Err(LineError::NotAChange(format!(
                    "line {number} has a negative position"
                )));
            }
            self.lines.push(LineSpans {
                position: read.position,
                entity: string(read.entity),
                op: Op::from_word(&read.op),
                key: read.key.map(|key| whole(key.get())),
                row: read.row.map(|row| whole(row.get())),
                number,
            });
        }
        Ok(())
    }
}

/// Reads a body as `POST /changes` does, without a database: how many changes it has, and how many members
/// their keys and rows have.
///
/// # Errors
/// What the request would be answered.
pub fn read_changes(body: &[u8]) -> Result<(usize, usize), String> {
    let lines = ChangeLineReader::default()
        .finish(body)
        .map_err(|error| error.to_string())?;
    let count_members = |object: Option<&str>| {
        let members = object.and_then(Members::of).into_iter().flatten();
        members
            .filter(|(_, value)| value_as_text(value).is_some())
            .count()
    };
    let members = lines
        .iter()
        .map(|line| count_members(line.key) + count_members(line.row))
        .sum();
    Ok((lines.len(), members))
}

/// `body` as text; so many line breaks come before it.
fn utf8_text(body: &[u8], breaks: usize) -> Result<&str, LineError> {
    std::str::from_utf8(body).map_err(|error| {
        let before = body.get(..error.valid_up_to()).unwrap_or_default();
        let number = breaks + memchr::memchr_iter(b'\n', before).count() + 1;
        LineError::NotAChange(format!("line {number} is not valid UTF-8"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(position: i64, op: Op) -> ChangeLine<'static> {
        ChangeLine {
            position,
            entity: "rooms".into(),
            op: Some(op),
            key: (op != Op::Truncate).then_some("{\"room_id\" : 1}"),
            row: (op == Op::Upsert).then_some("{\"room_id\":1,\n\"x\":\r\n{\"y\" :\"a\\n\"}}"),
            number: 0,
        }
    }

    #[test]
    fn each_change_is_one_valid_line_and_is_read_as_it_was_written() {
        let lines = [
            line(i64::MAX, Op::Upsert),
            line(2, Op::Delete),
            line(3, Op::Truncate),
        ];
        let mut text = Vec::new();
        lines.iter().for_each(|line| line.write_to(&mut text));
        let text = String::from_utf8(text).unwrap();
        let position = i64::MAX;
        let upsert = format!(
            r#"{{"position":{position},"entity":"rooms","op":"upsert","key":{{"room_id" : 1}},"row":"#
        ) + r#"{"room_id":1, "x":  {"y" :"a\n"}}}"#;
        assert_eq!(
            text.lines().collect::<Vec<_>>(),
            [
                &upsert,
                r#"{"position":2,"entity":"rooms","op":"delete","key":{"room_id" : 1}}"#,
                r#"{"position":3,"entity":"rooms","op":"truncate"}"#,
            ]
        );
        let read = ChangeLineReader::default().finish(text.as_bytes()).unwrap();
        for ((read, mut written), number) in read.into_iter().zip(lines).zip(1..) {
            let row = written.row.map(|row| row.replace(['\n', '\r'], " "));
            (written.row, written.number) = (row.as_deref(), number);
            assert_eq!(read, written);
        }
    }

    #[test]
    fn the_overhead_is_what_a_line_has_at_most() {
        for op in [Op::Upsert, Op::Delete, Op::Truncate] {
            let (line, mut text) = (line(i64::MAX, op), Vec::new());
            line.write_to(&mut text);
            let own = line.entity.len() + line.key.map_or(0, str::len) + line.row.map_or(0, str::len);
            assert!(text.len() <= own + ChangeLine::OVERHEAD, "{op:?}");
        }
    }

    #[test]
    fn lines_are_numbered_and_blank_ones_are_passed_over() {
        let text = concat!(
            r#"{"position":7,"entity":"rooms","op":"upsert","key":{"id" : 1},"row":{"id":1}}"#,
            "\n\n",
            r#"{"position":8,"entity":"ro\u006fms","op":"truncate","key":null}"#,
            "\r\n"
        );
        let lines = ChangeLineReader::default().finish(text.as_bytes()).unwrap();
        assert_eq!(lines.len(), 2);
        assert_eq!((lines[0].number, lines[0].key), (1, Some("{\"id\" : 1}")));
        assert_eq!((lines[1].number, &*lines[1].entity), (3, "rooms"));
        assert!(lines[1].key.is_none());
    }

    #[test]
    fn a_broken_line_is_named() {
        for text in [
            "{}\n",
            "{\"position\":1",
            "{\"position\":-1,\"entity\":\"a\",\"op\":\"upsert\"}",
        ] {
            let text = format!("\n{text}");
            let error = ChangeLineReader::default().finish(text.as_bytes()).unwrap_err();
            assert!(error.to_string().contains("line 2"), "{error}");
        }
    }

    #[test]
    fn lines_that_come_in_pieces_are_the_same() {
        let mut text = String::new();
        for id in 0..3000 {
            let name = ["rooms", "ro\\u006fms", "räume"][id % 3];
            text += &format!(
                "{{\"position\":{id},\"entity\":\"{name}\",\"op\":\"upsert\",\"key\":{{\"id\":{id}}},\
                 \"row\":{{\"id\":{id},\"x\":\"{}é\"}}}}\n{}",
                "x".repeat(id % 90),
                if id % 7 == 0 { "\n" } else { "" }
            );
        }
        let read = |text: &[u8], piece: usize| {
            let mut reader = ChangeLineReader::default();
            for end in (piece..text.len()).step_by(piece) {
                reader.read_more(&text[..end]);
            }
            let lines = reader.finish(text).map_err(|error| error.to_string())?;
            let shown = lines.iter().map(|line| {
                format!(
                    "{} {} {} {:?} {:?} {:?}",
                    line.number, line.position, line.entity, line.op, line.key, line.row
                )
            });
            Ok::<_, String>(shown.collect::<Vec<_>>())
        };
        let whole = read(text.as_bytes(), usize::MAX).unwrap();
        assert_eq!(whole.len(), 3000);
        for piece in [1000, READ_STEP - 1, READ_STEP, 70_001, 200_000] {
            assert!(read(text.as_bytes(), piece).unwrap() == whole, "{piece}");
        }
        // A line that is wrong late is named as if all had come at once.
        for wrong in [&b"{}\n"[..], b"\xff\n"] {
            let text = [text.as_bytes(), wrong, text.as_bytes()].concat();
            let words = read(&text, usize::MAX).unwrap_err();
            assert!(words.contains("line 3430 "), "{words}");
            assert_eq!(read(&text, 1000).unwrap_err(), words);
        }
    }
}
