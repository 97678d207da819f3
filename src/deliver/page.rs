//! One page of a list, as it arrives: the array of rows, or an object that wraps it and says where the next
//! page is.
//!
//! Servers wrap a list as `{"data":[…]}`, `{"results":[…]}`, `{"rooms":[…]}`, some twice:
//! `{"data":{"data":[…]}}`. The other members are small. They are kept, and say whether the request failed,
//! how many rows there are, and what comes next.
//!
//! The rows are split by [`ArraySplitter`]; what is around them has this grammar of its own, over text in
//! chunks.

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::array_splitter::{ArraySplitter, SplitError};
use crate::error;
use crate::wire::json::ValueScanner;

/// The names of members that may be any entity's rows.
const LIST_NAMES: [&str; 4] = ["data", "results", "items", "records"];

/// The names of objects that are looked into.
const WRAPPER_NAMES: [&str; 6] = ["data", "links", "meta", "pagination", "paging", "page"];

/// The longest other member that is kept, in bytes.
const LONGEST_MEMBER: usize = 16 * 1024;

/// How deep objects are looked into.
const MAX_DEPTH: usize = 3;

/// A page that is being read.
pub(super) struct ListPage<'n> {
    /// The entity's own names.
    names: &'n [String],
    state: PageState,
    /// The objects that are open, by their names in the one around them.
    within: Vec<String>,
    name: Vec<u8>,
    /// Whether the last byte of the name was a backslash.
    escaped: bool,
    capture: Vec<u8>,
    scanner: ValueScanner,
    elements: Option<ArraySplitter>,
    members: PageMembers,
}

/// The other members of a page.
#[derive(Debug, Default)]
pub(super) struct PageMembers {
    /// The members of the outermost object that are not the rows.
    pub(super) outer: Map<String, Value>,
    /// All members, wherever they are: of a name that comes twice, the outermost one.
    all: Map<String, Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PageState {
    Start,
    /// Before a member's name, or the end of an object without any.
    FirstName,
    Name,
    InName,
    Colon,
    Value,
    /// In a text, a list or an object that is kept.
    Kept,
    /// In a number or a word that is kept.
    Scalar,
    Rows,
    AfterValue,
    End,
}

impl<'n> ListPage<'n> {
    pub(super) fn new(names: &'n [String]) -> Self {
        Self {
            names,
            state: PageState::Start,
            within: Vec::new(),
            name: Vec::new(),
            escaped: false,
            capture: Vec::new(),
            scanner: ValueScanner::default(),
            elements: None,
            members: PageMembers::default(),
        }
    }

    /// Reads a chunk of the page, and calls `row` for each row that it completes.
    pub(super) fn feed(
        &mut self,
        chunk: &[u8],
        row: &mut impl FnMut(&RawValue) -> error::Result<()>,
    ) -> Result<(), SplitError> {
        let mut rest = chunk;
        while let Some(&byte) = rest.first() {
            if self.state == PageState::Rows {
                let elements = self.elements.get_or_insert_default();
                let used = elements.feed(rest, row)?;
                rest = &rest[used..];
                if elements.is_whole() {
                    self.state = self.state_after_rows();
                }
                continue;
            }
            if self.state == PageState::Kept {
                let end = self.scanner.scan(rest);
                let (kept, after) = rest.split_at(end.unwrap_or(rest.len()));
                self.keep(kept);
                rest = after;
                if end.is_some() {
                    self.end_kept()?;
                }
                continue;
            }
            let blank = matches!(byte, b' ' | b'\n' | b'\r' | b'\t');
            let inside = matches!(self.state, PageState::InName | PageState::Scalar);
            if (!blank || inside) && !self.step(byte)? {
                continue;
            }
            rest = &rest[1..];
        }
        Ok(())
    }

    /// Reads one byte. Returns false if the same byte must be read again in the new state.
    fn step(&mut self, byte: u8) -> Result<bool, SplitError> {
        match (self.state, byte) {
            (PageState::Start, b'[') => {
                self.state = PageState::Rows;
                return Ok(false);
            }
            (PageState::Start, b'{') => self.state = PageState::FirstName,
            (PageState::Start, 0xef | 0xbb | 0xbf) => {}
            (PageState::Start, b'<') => {
                return Err(SplitError::Form("the answer is a page, not JSON".into()));
            }
            (PageState::Start, _) => return Err(SplitError::Form("the answer is not JSON".into())),
            (PageState::FirstName | PageState::AfterValue, b'}') => self.close(),
            (PageState::FirstName | PageState::Name, b'"') => {
                self.name.clear();
                self.state = PageState::InName;
            }
            (PageState::InName, b'"') if !self.escaped => self.state = PageState::Colon,
            (PageState::InName, _) => {
                self.escaped = byte == b'\\' && !self.escaped;
                if self.name.len() < LONGEST_MEMBER {
                    self.name.push(byte);
                }
            }
            (PageState::Colon, b':') => self.state = PageState::Value,
            (PageState::Value, _) => return self.begin_value(byte),
            (PageState::Scalar, b',' | b'}' | b' ' | b'\n' | b'\r' | b'\t') => {
                self.end_kept()?;
                return Ok(false);
            }
            (PageState::Scalar, _) => self.keep(&[byte]),
            (PageState::AfterValue, b',') => self.state = PageState::Name,
            _ => return Err(SplitError::Form("the answer is not valid JSON".into())),
        }
        Ok(true)
    }

    /// Begins a member's value.
    fn begin_value(&mut self, byte: u8) -> Result<bool, SplitError> {
        let name = String::from_utf8_lossy(&self.name).into_owned();
        match byte {
            b'[' if self.elements.is_none() && self.is_list(&name) => {
                self.state = PageState::Rows;
                return Ok(false);
            }
            b'{' if self.within.len() < MAX_DEPTH && WRAPPER_NAMES.contains(&name.as_str()) => {
                self.within.push(name);
                self.state = PageState::FirstName;
                return Ok(true);
            }
            b'"' | b'{' | b'[' => {
                self.state = PageState::Kept;
                self.scanner = ValueScanner::default();
            }
            _ => self.state = PageState::Scalar,
        }
        self.capture.clear();
        // The first byte is a part of it.
        Ok(false)
    }

    fn is_list(&self, name: &str) -> bool {
        LIST_NAMES.contains(&name) || self.names.iter().any(|own| own == name)
    }

    fn keep(&mut self, part: &[u8]) {
        // One byte more than is kept shows that it is too long.
        let room = (LONGEST_MEMBER + 1).saturating_sub(self.capture.len());
        self.capture.extend_from_slice(&part[..part.len().min(room)]);
    }

    /// Ends a member that is kept.
    fn end_kept(&mut self) -> Result<(), SplitError> {
        self.state = PageState::AfterValue;
        // What is longer says nothing about the list.
        if self.capture.len() > LONGEST_MEMBER {
            return Ok(());
        }
        let value: Value = serde_json::from_slice(&self.capture)
            .map_err(|_| SplitError::Form("a member of the page is not valid JSON".into()))?;
        let name = String::from_utf8_lossy(&self.name).into_owned();
        if self.within.is_empty() {
            self.members.outer.insert(name.clone(), value.clone());
            self.members.all.insert(name, value);
        } else {
            self.members.all.entry(name).or_insert(value);
        }
        Ok(())
    }

    fn close(&mut self) {
        self.state = match self.within.pop() {
            Some(_) => PageState::AfterValue,
            None => PageState::End,
        };
    }

    /// The state after the rows.
    fn state_after_rows(&self) -> PageState {
        // A list that nothing wraps has no name before it.
        if self.within.is_empty() && self.name.is_empty() {
            PageState::End
        } else {
            PageState::AfterValue
        }
    }

    /// The other members, and the rows' number and digest, once the page has ended.
    pub(super) fn finish(self) -> Result<(PageMembers, u64, blake3::Hash), SplitError> {
        if self.state != PageState::End {
            return Err(SplitError::Form("the list ends before its array does".into()));
        }
        match self.elements {
            Some(elements) => {
                let (rows, digest) = elements.counted();
                Ok((self.members, rows, digest))
            }
            None if super::reply::says_failure(&Value::Object(self.members.outer.clone()), None) => {
                Ok((self.members, 0, blake3::hash(b"")))
            }
            None => {
                let names: Vec<&str> = self.members.all.keys().map(String::as_str).take(8).collect();
                Err(SplitError::Form(format!(
                    "the answer is an object without a list of rows: its members are {}",
                    names.join(", ")
                )))
            }
        }
    }
}

/// What a page says about the next one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NextPage {
    /// This is the last page.
    None,
    /// Its address.
    Address(String),
    /// Its number.
    Number(u64),
    /// There is one, and nothing says where.
    Unknown,
}

impl PageMembers {
    /// Where the next page is.
    pub(super) fn next(&self) -> NextPage {
        for name in ["next_page_url", "next"] {
            match self.all.get(name) {
                Some(Value::String(address)) if !address.is_empty() => {
                    return NextPage::Address(address.clone());
                }
                Some(Value::Object(link)) => {
                    if let Some(Value::String(address)) = link.get("href") {
                        return NextPage::Address(address.clone());
                    }
                }
                Some(Value::Number(_) | Value::Bool(true)) => return NextPage::Unknown,
                _ => {}
            }
        }
        match (self.number("current_page"), self.number("last_page")) {
            (Some(current), Some(last)) if current < last => NextPage::Number(current + 1),
            _ => NextPage::None,
        }
    }

    /// How many rows the whole list has, if the page says so.
    pub(super) fn total(&self) -> Option<u64> {
        self.number("total").or_else(|| self.number("count"))
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.all.get(name)?.as_u64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_in_chunks(text: &str, chunk: usize) -> Result<(Vec<String>, PageMembers), String> {
        let names = ["rooms".to_owned()];
        let mut page = ListPage::new(&names);
        let mut found = Vec::new();
        let in_words = |stop| match stop {
            SplitError::Form(cause) => cause,
            SplitError::Row(error) => error.to_string(),
        };
        for part in text.as_bytes().chunks(chunk) {
            let mut keep = |row: &RawValue| {
                found.push(row.get().to_owned());
                Ok(())
            };
            page.feed(part, &mut keep).map_err(in_words)?;
        }
        let (members, rows, _) = page.finish().map_err(in_words)?;
        assert_eq!(rows as usize, found.len());
        Ok((found, members))
    }

    #[test]
    fn rows_are_found_in_all_wrappers_wherever_the_chunks_end() {
        let rows = r#"[{"id":1,"data":[{"x":"]}\""}]}, {"id":2}]"#;
        for (text, next, total) in [
            (rows.to_owned(), NextPage::None, None),
            (format!("\u{feff}{rows}\n"), NextPage::None, None),
            (format!(r#"{{"data":{rows}}}"#), NextPage::None, None),
            (
                format!(r#"{{"count":7,"next":"/rooms?page=2","previous":null,"results":{rows}}}"#),
                NextPage::Address("/rooms?page=2".into()),
                Some(7),
            ),
            (
                format!(
                    r#"{{"success":true,"data":{{"current_page":1,"data":{rows},"links":[{{"url":null}}],"next_page_url":"http://c/rooms?page=2","total":9}}}}"#
                ),
                NextPage::Address("http://c/rooms?page=2".into()),
                Some(9),
            ),
            (
                format!(
                    r#"{{"rooms" : {rows} , "links":{{"next":{{"href":"/p2"}}}}, "meta" : {{ "total" : 4 }} }}"#
                ),
                NextPage::Address("/p2".into()),
                Some(4),
            ),
            (
                format!(r#"{{"data":{rows},"meta":{{"current_page":2,"last_page":3}},"links":{{}}}}"#),
                NextPage::Number(3),
                None,
            ),
            (
                format!(r#"{{"results":{rows},"next":2}}"#),
                NextPage::Unknown,
                None,
            ),
        ] {
            for chunk in 1..=text.len() {
                let (found, members) = read_in_chunks(&text, chunk).unwrap();
                assert_eq!(
                    found,
                    [r#"{"id":1,"data":[{"x":"]}\""}]}"#, r#"{"id":2}"#],
                    "{text}"
                );
                assert_eq!((members.next(), members.total()), (next.clone(), total), "{text}");
            }
        }
    }

    #[test]
    fn a_text_that_is_not_a_whole_list_is_an_error_in_words() {
        for (text, words) in [
            ("", "ends before"),
            ("[", "ends before"),
            ("[{}", "ends before"),
            (r#"{"data":[{}]"#, "ends before"),
            (r#"{"data":[{}],"#, "ends before"),
            ("[{}] x", "not valid JSON"),
            ("<html></html>", "page"),
            ("null", "not JSON"),
            ("[1]", "not an object"),
            (r#"{"list":[],"note":"x"}"#, "its members are list, note"),
            (r#"{"data":[{"a":}]}"#, "not valid JSON"),
            (r#"{"data":[{}{}]}"#, "valid JSON"),
        ] {
            for chunk in [1, 3, 100] {
                let error = read_in_chunks(text, chunk).map(|(rows, _)| rows).unwrap_err();
                assert!(error.contains(words), "{text}: {error}");
            }
        }
    }
}
