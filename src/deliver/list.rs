//! `GET /{path}`: what the cloud holds of an entity, element by element.
//!
//! The body is never held: [`Elements`] cuts the array into its objects as the chunks arrive, and keeps only the one
//! that a chunk's end cut in two. So a list of millions of rows costs the memory of one row.

use reqwest::Method;
use serde_json::value::RawValue;

use super::broken::broken;
use super::failure::{Failure, Outcome};
use super::link::Link;
use crate::error::{self, Error, Kind};

/// The longest row that is taken from a list.
const LONGEST_ROW: usize = 64 * 1024 * 1024;

const REMEDY: &str = "the contract wants a JSON array of objects: check cloud.url and the cloud's server";

/// Calls `row` for each element. The time limit holds for the start of the answer and then for each part of it.
pub(super) async fn list(
    link: &Link,
    operation: &str,
    path: &str,
    days: Option<u32>,
    mut row: impl FnMut(&RawValue) -> error::Result<()>,
) -> Outcome<()> {
    let path = match days {
        Some(days) => format!("{path}?days={days}"),
        None => path.to_owned(),
    };
    let limit = link.timeout();
    let late = |_| link.too_late(operation, limit);
    let start = link.request(Method::GET, &path).send();
    let mut response = tokio::time::timeout(limit, start)
        .await
        .map_err(late)?
        .map_err(|error| broken(operation, error))?;
    if !response.status().is_success() {
        let refused = tokio::time::timeout(limit, link.refused(operation, response));
        let (status, words, _) = refused.await.map_err(late)??;
        let cause = format!("the cloud answered {status}: {words}");
        return Err(Failure::new(Kind::CloudRefused, operation, cause).with_status(status));
    }
    let mut elements = Elements::default();
    loop {
        let chunk = tokio::time::timeout(limit, response.chunk())
            .await
            .map_err(late)?;
        let Some(chunk) = chunk.map_err(|error| broken(operation, error))? else {
            break;
        };
        elements
            .feed(&chunk, &mut row)
            .map_err(|stop| stop.failure(operation))?;
    }
    elements.finish().map_err(|stop| stop.failure(operation))
}

/// Why the cutting stopped.
enum Stop {
    /// The text is not an array of objects.
    Form(&'static str),
    /// The caller does not want any more.
    Row(Error),
}

impl Stop {
    fn failure(self, operation: &str) -> Failure {
        match self {
            Self::Form(cause) => Failure::protocol(operation, cause, REMEDY),
            Self::Row(error) => Failure::from(error),
        }
    }
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Place {
    #[default]
    BeforeArray,
    /// After `[`: an element or the end.
    First,
    /// After a comma.
    Next,
    Inside,
    /// After an element: a comma or the end.
    Between,
    AfterArray,
}

/// Cuts a JSON array of objects, arriving in chunks, into its elements.
#[derive(Default)]
struct Elements {
    place: Place,
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// The start of the element that the last chunk cut in two.
    begun: Vec<u8>,
}

impl Elements {
    fn feed(
        &mut self,
        chunk: &[u8],
        row: &mut impl FnMut(&RawValue) -> error::Result<()>,
    ) -> Result<(), Stop> {
        let mut at = 0;
        while at < chunk.len() {
            if self.place == Place::Inside {
                let end = self.end_of_element(&chunk[at..]);
                let part = &chunk[at..end.map_or(chunk.len(), |end| at + end)];
                at += part.len();
                if end.is_none() || !self.begun.is_empty() {
                    if self.begun.len() + part.len() > LONGEST_ROW {
                        return Err(Stop::Form("an element of the array is longer than 64 MiB"));
                    }
                    self.begun.extend_from_slice(part);
                }
                if end.is_none() {
                    return Ok(());
                }
                let element = if self.begun.is_empty() { part } else { &self.begun };
                let element: &RawValue = serde_json::from_slice(element)
                    .map_err(|_| Stop::Form("an element of the array is not valid JSON"))?;
                row(element).map_err(Stop::Row)?;
                self.begun.clear();
                self.place = Place::Between;
                continue;
            }
            let byte = chunk[at];
            if matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
                at += 1;
                continue;
            }
            self.place = match (self.place, byte) {
                (Place::BeforeArray, b'[') => Place::First,
                (Place::First | Place::Next, b'{') => {
                    self.depth = 0;
                    self.place = Place::Inside;
                    // The brace belongs to the element.
                    continue;
                }
                (Place::First | Place::Between, b']') => Place::AfterArray,
                (Place::Between, b',') => Place::Next,
                (Place::BeforeArray, b'<') => return Err(Stop::Form("the answer is a page, not JSON")),
                (Place::BeforeArray, _) => return Err(Stop::Form("the answer is not a JSON array")),
                (Place::First | Place::Next, _) => {
                    return Err(Stop::Form("an element of the array is not an object"));
                }
                _ => return Err(Stop::Form("the answer is not one valid JSON array")),
            };
            at += 1;
        }
        Ok(())
    }

    /// One past the closing brace of the current element, where it lies in `text`.
    fn end_of_element(&mut self, text: &[u8]) -> Option<usize> {
        for (nth, &byte) in text.iter().enumerate() {
            if self.in_string {
                if self.escaped {
                    self.escaped = false;
                } else if byte == b'\\' {
                    self.escaped = true;
                } else if byte == b'"' {
                    self.in_string = false;
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return Some(nth + 1);
                    }
                }
                _ => {}
            }
        }
        None
    }

    fn finish(self) -> Result<(), Stop> {
        if self.place == Place::AfterArray {
            Ok(())
        } else {
            Err(Stop::Form("the array breaks off before its end"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(text: &str, chunk: usize) -> Option<Vec<String>> {
        let mut elements = Elements::default();
        let mut found = Vec::new();
        for part in text.as_bytes().chunks(chunk) {
            let mut keep = |row: &RawValue| {
                found.push(row.get().to_owned());
                Ok(())
            };
            elements.feed(part, &mut keep).ok()?;
        }
        elements.finish().ok()?;
        Some(found)
    }

    #[test]
    fn elements_are_found_wherever_the_chunks_end() {
        let text = " [ {\"id\":1,\"t\":\"a]}\\\"é\\\\\"} ,\n{\"n\":[{},{\"x\":[]}]},{} ]\n";
        let expected = [
            "{\"id\":1,\"t\":\"a]}\\\"é\\\\\"}",
            "{\"n\":[{},{\"x\":[]}]}",
            "{}",
        ];
        for chunk in 1..=text.len() {
            assert_eq!(
                cut(text, chunk).as_deref(),
                Some(expected.map(str::to_owned).as_slice()),
                "{chunk}"
            );
        }
        assert_eq!(cut("[]", 1), Some(vec![]));
    }

    #[test]
    fn what_is_not_an_array_of_objects_is_refused() {
        for text in [
            "",
            "[",
            "[{}",
            "[{},]",
            "[,{}]",
            "[1]",
            "[{}{}]",
            "[{}] x",
            "{\"data\":[]}",
            "null",
            "<html></html>",
            "[{\"a\":}]",
            "[{\"a\":1]]",
            "[{\"a\" 1}]",
        ] {
            for chunk in [1, 3, 100] {
                assert_eq!(cut(text, chunk), None, "{text}");
            }
        }
    }
}
