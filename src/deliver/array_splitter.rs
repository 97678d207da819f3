//! Splits a JSON array of objects, which arrives in chunks, into its elements. Only an element that a chunk's
//! end divides is kept in memory.
//!
//! This is another job than [`crate::wire::json::Members`] has, whose text is there as a whole. Both find the
//! end of a value by [`ValueScanner`].

use serde_json::value::RawValue;

use super::failure::Failure;
use crate::error::{self, Error};
use crate::wire::json::ValueScanner;

/// The longest row that is taken from a list, in bytes.
const LONGEST_ROW: usize = 64 * 1024 * 1024;

const REMEDY: &str = "a list is a JSON array of objects, or an object with such an array under data, results \
                      or the entity's name: check cloud.url and the cloud's server";

/// Why the splitting stopped.
pub(super) enum SplitError {
    /// The text is not an array of objects.
    Form(String),
    /// The caller does not want more rows.
    Row(Error),
}

impl SplitError {
    pub(super) fn failure(self, operation: &str) -> Failure {
        match self {
            Self::Form(cause) => Failure::protocol(operation, cause, REMEDY),
            Self::Row(error) => Failure::from(error),
        }
    }
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum SplitState {
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

/// Splits a JSON array of objects, which arrives in chunks, into its elements.
#[derive(Default)]
pub(super) struct ArraySplitter {
    state: SplitState,
    scanner: ValueScanner,
    /// The start of the element that the last chunk's end divided.
    begun: Vec<u8>,
    rows: u64,
    digest: blake3::Hasher,
}

impl ArraySplitter {
    /// Reads a chunk, up to the array's end. Returns how many bytes it has read.
    pub(super) fn feed(
        &mut self,
        chunk: &[u8],
        row: &mut impl FnMut(&RawValue) -> error::Result<()>,
    ) -> Result<usize, SplitError> {
        let form = |words: &str| SplitError::Form(words.to_owned());
        let mut at = 0;
        while at < chunk.len() && self.state != SplitState::AfterArray {
            if self.state == SplitState::Inside {
                let end = self.scanner.scan(&chunk[at..]);
                let part = &chunk[at..end.map_or(chunk.len(), |end| at + end)];
                at += part.len();
                if end.is_none() || !self.begun.is_empty() {
                    if self.begun.len() + part.len() > LONGEST_ROW {
                        return Err(form("an element of the array is longer than 64 MiB"));
                    }
                    self.begun.extend_from_slice(part);
                }
                if end.is_none() {
                    return Ok(at);
                }
                let element = if self.begun.is_empty() { part } else { &self.begun };
                let element: &RawValue = serde_json::from_slice(element)
                    .map_err(|_| form("an element of the array is not valid JSON"))?;
                self.rows += 1;
                self.digest.update(element.get().as_bytes());
                row(element).map_err(SplitError::Row)?;
                self.begun.clear();
                self.state = SplitState::Between;
                continue;
            }
            let byte = chunk[at];
            if matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
                at += 1;
                continue;
            }
            self.state = match (self.state, byte) {
                (SplitState::BeforeArray, b'[') => SplitState::First,
                (SplitState::First | SplitState::Next, b'{') => {
                    self.state = SplitState::Inside;
                    // The brace belongs to the element.
                    continue;
                }
                (SplitState::First | SplitState::Between, b']') => SplitState::AfterArray,
                (SplitState::Between, b',') => SplitState::Next,
                (SplitState::BeforeArray, b'<') => return Err(form("the answer is a page, not JSON")),
                (SplitState::BeforeArray, _) => return Err(form("the answer is not a JSON array")),
                (SplitState::First | SplitState::Next, _) => {
                    return Err(form("an element of the array is not an object"));
                }
                _ => return Err(form("the answer is not one valid JSON array")),
            };
            at += 1;
        }
        Ok(at)
    }

    /// Whether the array has ended.
    pub(super) fn is_whole(&self) -> bool {
        self.state == SplitState::AfterArray
    }

    /// How many rows it had, and a digest of their texts.
    pub(super) fn counted(&self) -> (u64, blake3::Hash) {
        (self.rows, self.digest.finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str, chunk: usize) -> Option<Vec<String>> {
        let mut elements = ArraySplitter::default();
        let mut found = Vec::new();
        for part in text.as_bytes().chunks(chunk) {
            let mut keep = |row: &RawValue| {
                found.push(row.get().to_owned());
                Ok(())
            };
            if elements.feed(part, &mut keep).ok()? < part.len() {
                return None;
            }
        }
        elements.is_whole().then_some(found)
    }

    #[test]
    fn elements_are_found_wherever_the_chunks_end() {
        let text = " [ {\"id\":1,\"t\":\"a]}\\\"é\\\\\"} ,\n{\"n\":[{},{\"x\":[]}]},{} ]";
        let expected = [
            "{\"id\":1,\"t\":\"a]}\\\"é\\\\\"}",
            "{\"n\":[{},{\"x\":[]}]}",
            "{}",
        ];
        for chunk in 1..=text.len() {
            assert_eq!(
                split(text, chunk).as_deref(),
                Some(expected.map(str::to_owned).as_slice()),
                "{chunk}"
            );
        }
        assert_eq!(split("[]", 1), Some(vec![]));
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
                assert_eq!(split(text, chunk), None, "{text}");
            }
        }
    }
}
