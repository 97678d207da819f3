//! The lines of a `POST /changes`: NDJSON, one change a line, read without a database.

use std::borrow::Cow;
use std::ops::Range;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::receiver::http::api_error::{ApiError, ApiResult};
use crate::receiver::rows::json::{self, Members};
use crate::receiver::tables::schema::place_of;

/// More lines than this are refused: each takes memory beyond its bytes.
const LINES: usize = 200_000;

/// What has come is read when it is so many bytes.
const PIECE: usize = 64 * 1024;

/// One line of the request.
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

/// One line of the request.
pub(crate) struct ChangeLine<'a> {
    pub(crate) position: i64,
    pub(crate) entity: Cow<'a, str>,
    op: Cow<'a, str>,
    key: Option<&'a str>,
    row: Option<&'a str>,
    /// Its number, counted from 1.
    pub(crate) number: usize,
}

impl<'a> ChangeLine<'a> {
    pub(crate) fn op(&self) -> &str {
        &self.op
    }

    /// The key's JSON text.
    pub(crate) fn key(&self) -> Option<&'a str> {
        self.key
    }

    /// The row's JSON text.
    pub(crate) fn row(&self) -> Option<&'a str> {
        self.row
    }
}

/// A line by its places in the body, which may move while it grows.
struct LineSpans {
    position: i64,
    entity: TextSpan,
    op: TextSpan,
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

/// Reads the lines of a body, while it comes. A line that is not a change refuses the whole request, as nothing tells what
/// else is wrong.
#[derive(Default)]
pub(crate) struct ChangeLineReader {
    lines: Vec<LineSpans>,
    /// The bytes and the line breaks that were read.
    bytes: usize,
    breaks: usize,
    refusal: Option<ApiError>,
}

impl ChangeLineReader {
    /// Reads on. `body` is what has come of it from its beginning.
    pub(crate) fn come(&mut self, body: &[u8]) {
        let new = &body[self.bytes..];
        if new.len() < PIECE {
            return;
        }
        if let Some(last) = memchr::memrchr(b'\n', new) {
            self.read(&new[..=last]);
        }
    }

    /// Reads the rest, and answers all lines.
    pub(crate) fn end(mut self, body: &[u8]) -> ApiResult<Vec<ChangeLine<'_>>> {
        self.read(&body[self.bytes..]);
        if let Some(refusal) = self.refusal {
            return Err(refusal);
        }
        let body = utf8_text(body, 0)?;
        let at = |place: Range<usize>| &body[place];
        let string = |text: TextSpan| match text {
            TextSpan::At(place) => Cow::Borrowed(at(place)),
            TextSpan::Unescaped(text) => Cow::Owned(text),
        };
        let lines = self.lines.into_iter().map(|place| ChangeLine {
            position: place.position,
            entity: string(place.entity),
            op: string(place.op),
            key: place.key.map(at),
            row: place.row.map(at),
            number: place.number,
        });
        Ok(lines.collect())
    }

    /// Reads whole lines, which follow what was read.
    fn read(&mut self, lines: &[u8]) {
        if self.refusal.is_none() {
            self.refusal = self.parse(lines).err();
        }
        self.bytes += lines.len();
    }

    fn parse(&mut self, lines: &[u8]) -> ApiResult<()> {
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
        for (nth, line) in lines.split('\n').enumerate() {
            self.breaks = before + nth;
            if line.trim_ascii().is_empty() {
                continue;
            }
            let number = self.breaks + 1;
            if self.lines.len() == LINES {
                return Err(ApiError::too_large(format!("more than {LINES} lines")));
            }
            let read: ChangeLineJson<'_> = serde_json::from_str(line).map_err(|error| {
                ApiError::malformed(format!("line {number} is not a change: {}", place_of(&error)))
            })?;
            if read.position < 0 {
                return Err(ApiError::malformed(format!(
                    "line {number} has a negative position"
                )));
            }
            self.lines.push(LineSpans {
                position: read.position,
                entity: string(read.entity),
                op: string(read.op),
                key: read.key.map(|key| whole(key.get())),
                row: read.row.map(|row| whole(row.get())),
                number,
            });
        }
        Ok(())
    }
}

/// Reads a request's body as `POST /changes` does, without a database: how many changes, and how many members their keys
/// and rows have.
///
/// # Errors
/// What the request would be answered.
pub fn read_changes(body: &[u8]) -> std::result::Result<(usize, usize), String> {
    let words = |refusal: ApiError| refusal.to_string();
    let lines = ChangeLineReader::default().end(body).map_err(words)?;
    let members = |object: Option<&str>| {
        let members = object.and_then(Members::of).into_iter().flatten();
        members
            .filter(|(_, value)| json::value_as_text(value).is_some())
            .count()
    };
    let members = lines
        .iter()
        .map(|line| members(line.key()) + members(line.row()))
        .sum();
    Ok((lines.len(), members))
}

/// `body` as text; so many line breaks come before it.
fn utf8_text(body: &[u8], breaks: usize) -> ApiResult<&str> {
    std::str::from_utf8(body).map_err(|error| {
        let before = body.get(..error.valid_up_to()).unwrap_or_default();
        let number = breaks + memchr::memchr_iter(b'\n', before).count() + 1;
        ApiError::malformed(format!("line {number} is not valid UTF-8"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_numbered_and_blank_ones_are_passed_over() {
        let text = "{\"position\":7,\"entity\":\"rooms\",\"op\":\"upsert\",\"key\":{\"id\" : 1},\"row\":{\"id\":1}}\n\n\
                    {\"position\":8,\"entity\":\"ro\\u006fms\",\"op\":\"truncate\",\"key\":null}\r\n";
        let lines = ChangeLineReader::default().end(text.as_bytes()).unwrap();
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
            let refusal = format!(
                "{:?}",
                ChangeLineReader::default().end(text.as_bytes()).err().unwrap()
            );
            assert!(refusal.contains("line 2"), "{refusal}");
        }
    }

    #[test]
    fn lines_that_come_in_pieces_are_the_same() {
        let mut text = String::new();
        for nth in 0..3000 {
            let name = ["rooms", "ro\\u006fms", "räume"][nth % 3];
            text += &format!(
                "{{\"position\":{nth},\"entity\":\"{name}\",\"op\":\"upsert\",\"key\":{{\"id\":{nth}}},\
                 \"row\":{{\"id\":{nth},\"x\":\"{}é\"}}}}\n{}",
                "x".repeat(nth % 90),
                if nth % 7 == 0 { "\n" } else { "" }
            );
        }
        let told = |text: &[u8], piece: usize| {
            let mut reader = ChangeLineReader::default();
            for end in (piece..text.len()).step_by(piece) {
                reader.come(&text[..end]);
            }
            let lines = reader.end(text).map_err(|refusal| refusal.to_string())?;
            let told = lines.iter().map(|line| {
                format!(
                    "{} {} {} {} {:?} {:?}",
                    line.number,
                    line.position,
                    line.entity,
                    line.op(),
                    line.key(),
                    line.row()
                )
            });
            Ok::<_, String>(told.collect::<Vec<_>>())
        };
        let whole = told(text.as_bytes(), usize::MAX).unwrap();
        assert_eq!(whole.len(), 3000);
        for piece in [1000, PIECE - 1, PIECE, 70_001, 200_000] {
            assert!(told(text.as_bytes(), piece).unwrap() == whole, "{piece}");
        }
        // A line that is wrong late is named as if all had come at once.
        for wrong in [&b"{}\n"[..], b"\xff\n"] {
            let text = [text.as_bytes(), wrong, text.as_bytes()].concat();
            let words = told(&text, usize::MAX).unwrap_err();
            assert!(words.contains("line 3430 "), "{words}");
            assert_eq!(told(&text, 1000).unwrap_err(), words);
        }
    }
}
