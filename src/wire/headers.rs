//! The headers of `POST /changes`, and of `PUT /schema/{path}`.

use std::borrow::Cow;
use std::fmt;

use reqwest::header::HeaderMap;

use super::limits::{BATCH_BOUND, MAX_DATABASE_CHARS, MAX_NONCE_CHARS, MAX_SOURCE_ID_BYTES, TERM_BOUND};
use super::row_version;

/// The source that sends the batch, or that the entity belongs to.
pub const SOURCE_ID: &str = "x-source-id";
/// The epoch, from 1.
pub const EPOCH: &str = "x-epoch";
/// The term, from 1, below [`TERM_BOUND`].
pub const TERM: &str = "x-term";
/// The batch's number in its term, from 1, below [`BATCH_BOUND`].
pub const BATCH: &str = "x-batch";
/// The random text of the term: 1 to [`MAX_NONCE_CHARS`] visible ASCII characters.
pub const TERM_NONCE: &str = "x-term-nonce";
/// The nonce of the term that the receiver has now. The first batch of a later term must know it.
pub const PREVIOUS_NONCE: &str = "x-previous-nonce";
/// Which database the source is: at most [`MAX_DATABASE_CHARS`] characters.
pub const SOURCE_DATABASE: &str = "x-source-database";

/// The headers of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchHeaders<'a> {
    /// The source that sends it.
    pub source: &'a str,
    /// The epoch of the source's outbox.
    pub epoch: i64,
    /// The term.
    pub term: i64,
    /// Its number in the term.
    pub batch: i64,
    /// The random text of the term.
    pub nonce: &'a str,
    /// The nonce of the term that the receiver has now; only with a term's first batch.
    pub previous_nonce: Option<&'a str>,
    /// Which database the source is.
    pub database: Option<&'a str>,
}

impl<'a> BatchHeaders<'a> {
    /// Their names and values, to be sent.
    pub fn fields(&self) -> impl Iterator<Item = (&'static str, Cow<'a, str>)> {
        let number = |value: i64| Some(Cow::Owned(value.to_string()));
        [
            (SOURCE_ID, Some(Cow::Borrowed(self.source))),
            (SOURCE_DATABASE, self.database.map(Cow::Borrowed)),
            (EPOCH, number(self.epoch)),
            (TERM, number(self.term)),
            (TERM_NONCE, Some(Cow::Borrowed(self.nonce))),
            (BATCH, number(self.batch)),
            (PREVIOUS_NONCE, self.previous_nonce.map(Cow::Borrowed)),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
    }

    /// Reads them.
    ///
    /// # Errors
    /// One is missing or not valid.
    pub fn read(headers: &'a HeaderMap) -> Result<Self, HeaderError> {
        Ok(Self {
            source: source_id(headers)?.ok_or(HeaderError::missing(SOURCE_ID))?,
            epoch: number(headers, EPOCH, i64::MAX)?,
            term: number(headers, TERM, TERM_BOUND)?,
            batch: number(headers, BATCH, BATCH_BOUND)?,
            nonce: nonce(headers, TERM_NONCE)?.ok_or(HeaderError::missing(TERM_NONCE))?,
            previous_nonce: nonce(headers, PREVIOUS_NONCE)?,
            database: database(headers)?,
        })
    }

    /// The version of the batch's rows.
    pub fn row_version(&self) -> i64 {
        row_version(self.term, self.batch)
    }
}

/// The header X-Source-Id; `None` if there is none.
///
/// # Errors
/// It is empty, too long, or not ASCII.
pub fn source_id(headers: &HeaderMap) -> Result<Option<&str>, HeaderError> {
    match header_text(headers, SOURCE_ID) {
        None => Ok(None),
        Some(Ok(id)) if !id.is_empty() && id.len() <= MAX_SOURCE_ID_BYTES && id.is_ascii() => Ok(Some(id)),
        Some(_) => Err(HeaderError::new(SOURCE_ID, HeaderFault::NotValid)),
    }
}

fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> Option<Result<&'a str, std::str::Utf8Error>> {
    let value = headers.get(name)?;
    Some(std::str::from_utf8(value.as_bytes()).map(str::trim))
}

fn number(headers: &HeaderMap, name: &'static str, bound: i64) -> Result<i64, HeaderError> {
    header_text(headers, name)
        .and_then(|value| value.ok()?.parse().ok())
        .filter(|number| (1..bound).contains(number))
        .ok_or(HeaderError::new(name, HeaderFault::NotANumber { bound }))
}

fn nonce<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<Option<&'a str>, HeaderError> {
    let visible = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    match header_text(headers, name) {
        None => Ok(None),
        Some(Ok(nonce)) if (1..=MAX_NONCE_CHARS).contains(&nonce.len()) && visible(nonce) => Ok(Some(nonce)),
        Some(_) => Err(HeaderError::new(name, HeaderFault::NotANonce)),
    }
}

fn database(headers: &HeaderMap) -> Result<Option<&str>, HeaderError> {
    match header_text(headers, SOURCE_DATABASE) {
        None | Some(Ok("")) => Ok(None),
        Some(Ok(name)) if name.chars().count() <= MAX_DATABASE_CHARS => Ok(Some(name)),
        Some(_) => Err(HeaderError::new(SOURCE_DATABASE, HeaderFault::NotADatabase)),
    }
}

/// A header that is missing or not valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeaderError {
    header: &'static str,
    fault: HeaderFault,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HeaderFault {
    Missing,
    NotValid,
    NotANumber { bound: i64 },
    NotANonce,
    NotADatabase,
}

impl HeaderError {
    const fn new(header: &'static str, fault: HeaderFault) -> Self {
        Self { header, fault }
    }

    const fn missing(header: &'static str) -> Self {
        Self::new(header, HeaderFault::Missing)
    }
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header = shown(self.header);
        match self.fault {
            HeaderFault::Missing => write!(f, "the header {header} is missing"),
            HeaderFault::NotValid => write!(f, "the header {header} is not valid"),
            HeaderFault::NotANumber { bound } => write!(
                f,
                "the header {header} is missing or not a number from 1 and below {bound}"
            ),
            HeaderFault::NotANonce => write!(
                f,
                "the header {header} is not 1 to {MAX_NONCE_CHARS} visible ASCII characters"
            ),
            HeaderFault::NotADatabase => write!(
                f,
                "the header {header} is not text of at most {MAX_DATABASE_CHARS} characters"
            ),
        }
    }
}

impl std::error::Error for HeaderError {}

/// A header's name as people write it: `X-Source-Id`.
fn shown(name: &str) -> String {
    let words = name.split('-').map(|word| {
        let (first, rest) = word.split_at(1);
        first.to_ascii_uppercase() + rest
    });
    words.collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADERS: BatchHeaders<'static> = BatchHeaders {
        source: "college-db",
        epoch: 2,
        term: 3,
        batch: 1,
        nonce: "a-nonce",
        previous_nonce: Some("before"),
        database: Some("7/é"),
    };

    fn map(headers: &BatchHeaders<'_>) -> HeaderMap {
        headers
            .fields()
            .map(|(name, value)| (name.parse().unwrap(), value.as_bytes().try_into().unwrap()))
            .collect()
    }

    #[test]
    fn headers_are_read_as_they_are_written() {
        let alone = BatchHeaders {
            previous_nonce: None,
            database: None,
            ..HEADERS
        };
        for headers in [HEADERS, alone] {
            assert_eq!(BatchHeaders::read(&map(&headers)), Ok(headers));
        }
    }

    #[test]
    fn a_wrong_header_is_named_as_people_write_it() {
        let long = "n".repeat(65);
        for (name, value, message) in [
            (SOURCE_ID, None, "the header X-Source-Id is missing"),
            (SOURCE_ID, Some("é"), "the header X-Source-Id is not valid"),
            (TERM_NONCE, None, "the header X-Term-Nonce is missing"),
            (
                TERM_NONCE,
                Some(long.as_str()),
                "the header X-Term-Nonce is not 1 to 64 visible ASCII characters",
            ),
            (
                TERM,
                Some("8388608"),
                "the header X-Term is missing or not a number from 1 and below 8388608",
            ),
            (
                BATCH,
                Some("0"),
                "the header X-Batch is missing or not a number from 1 and below 1099511627776",
            ),
        ] {
            let mut headers = map(&HEADERS);
            headers.remove(name);
            if let Some(value) = value {
                headers.insert(name, value.as_bytes().try_into().unwrap());
            }
            assert_eq!(BatchHeaders::read(&headers).unwrap_err().to_string(), message);
        }
    }
}
