//! The codes of answers: what a program acts on, while the words are for people.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::json::plain_text_of;

/// Why a change was rejected: the member `code` of an entry of `rejected`.
///
/// Another server may write what it likes; a number counts as its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RejectCode {
    /// The site has not declared the entity.
    UnknownEntity,
    /// The entity has no such column.
    UnknownColumn,
    /// The op is none of the contract's.
    UnknownOp,
    /// An upsert carries no row.
    RowMissing,
    /// The change carries no key, or one without a value.
    KeyMissing,
    /// The row's own key is not the change's.
    KeyMismatch,
    /// The row is not a JSON object.
    NotAnObject,
    /// An SQLSTATE of the receiver's database, or the code of another server: an HTTP status, or a word.
    /// Empty if there is none.
    Other(Cow<'static, str>),
}

impl RejectCode {
    const WORDS: [Self; 7] = [
        Self::UnknownEntity,
        Self::UnknownColumn,
        Self::UnknownOp,
        Self::RowMissing,
        Self::KeyMissing,
        Self::KeyMismatch,
        Self::NotAnObject,
    ];

    /// The code on the wire.
    pub fn as_str(&self) -> &str {
        match self {
            Self::UnknownEntity => "unknown-entity",
            Self::UnknownColumn => "unknown-column",
            Self::UnknownOp => "unknown-op",
            Self::RowMissing => "row-missing",
            Self::KeyMissing => "key-missing",
            Self::KeyMismatch => "key-mismatch",
            Self::NotAnObject => "not-an-object",
            Self::Other(code) => code,
        }
    }

    /// Whether the cloud does not know the entity or one of its columns: the schema must be declared first.
    pub fn needs_schema(&self) -> bool {
        matches!(self, Self::UnknownEntity | Self::UnknownColumn)
    }
}

impl Default for RejectCode {
    fn default() -> Self {
        Self::Other(Cow::Borrowed(""))
    }
}

impl From<String> for RejectCode {
    fn from(code: String) -> Self {
        Self::WORDS
            .into_iter()
            .find(|word| word.as_str() == code)
            .unwrap_or(Self::Other(Cow::Owned(code)))
    }
}

impl Serialize for RejectCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for RejectCode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        plain_text_of(deserializer).map(Self::from)
    }
}

/// Why a batch is not taken under its number: the member `code` of a 409 to `POST /changes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnCode {
    /// The batch is not the one that follows the newest.
    OutOfTurn,
    /// The epoch is over.
    StaleEpoch,
    /// The term is over.
    StaleTerm,
    /// The sender does not know the term's nonce: it may be a copy of the machine that does.
    UnknownTerm,
    /// A batch with this number was taken, with another body.
    DifferentBatch,
}

/// The member `code` of an error answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// Of a 409 to `POST /changes`.
    Turn(TurnCode),
    /// Of a 409 to `PUT /schema/{path}`: the entity belongs to another source of the site.
    OtherSource,
}

impl ErrorCode {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Turn(TurnCode::OutOfTurn),
        Self::Turn(TurnCode::StaleEpoch),
        Self::Turn(TurnCode::StaleTerm),
        Self::Turn(TurnCode::UnknownTerm),
        Self::Turn(TurnCode::DifferentBatch),
        Self::OtherSource,
    ];

    /// The code on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Turn(TurnCode::OutOfTurn) => "out-of-turn",
            Self::Turn(TurnCode::StaleEpoch) => "stale-epoch",
            Self::Turn(TurnCode::StaleTerm) => "stale-term",
            Self::Turn(TurnCode::UnknownTerm) => "unknown-term",
            Self::Turn(TurnCode::DifferentBatch) => "different-batch",
            Self::OtherSource => "other-source",
        }
    }

    /// The code with this text; `None` if it is none of the contract's.
    pub fn from_text(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.as_str() == text)
    }
}

impl Serialize for ErrorCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_read_as_they_are_written() {
        for code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_text(code.as_str()), Some(code));
        }
        assert_eq!(ErrorCode::from_text("teapot"), None);
        for code in RejectCode::WORDS {
            let text = serde_json::to_string(&code).unwrap();
            assert_eq!(serde_json::from_str::<RejectCode>(&text).unwrap(), code);
        }
    }

    #[test]
    fn a_code_may_be_any_value() {
        let read = |json: &str| serde_json::from_str::<RejectCode>(json).unwrap();
        assert_eq!(read("\"23505\"").as_str(), "23505");
        assert_eq!(read("409").as_str(), "409");
        assert_eq!(read("null"), RejectCode::default());
        assert_eq!(read("{\"a\": 1}").as_str(), "{\"a\":1}");
        assert!(read("\"unknown-column\"").needs_schema() && !read("\"key-missing\"").needs_schema());
    }
}
