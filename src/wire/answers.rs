//! The bodies of answers.
//!
//! The members are written in the order of their names, but for those of `POST /changes`, whose answer is
//! stored and sent as text.

use serde::{Deserialize, Serialize};

use super::codes::{ErrorCode, RejectCode};
use super::json::plain_text_of;
use super::sync_status::BatchId;

/// The answer of `POST /changes`, sent after the receiver's commit. Each change of the request is counted
/// once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangesAnswer {
    /// How many changes took effect.
    pub applied: u64,
    /// How many changes did not need to: the cloud has the same or a newer state.
    pub skipped: u64,
    /// The changes that were not accepted.
    pub rejected: Vec<RejectedChange>,
}

/// A change that was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectedChange {
    /// The change's position.
    pub position: i64,
    /// Its line in the request, counted from 1: several changes may have one position. A server may leave it
    /// out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// Why, for a program.
    #[serde(default)]
    pub code: RejectCode,
    /// Why, for people; without a row's value.
    #[serde(default, deserialize_with = "plain_text_of")]
    pub error: String,
}

/// The answer of a call that has nothing else to say: `{"success":true}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuccessAnswer {
    /// Whether the cloud did what was asked. The contract wants a 4xx if it did not.
    pub success: bool,
}

impl SuccessAnswer {
    /// The answer that says so.
    pub const DONE: Self = Self { success: true };
}

/// The answer of `POST /bulk/{path}`, as the contract has it. The client reads it more leniently: see
/// `deliver::reply`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BulkAnswer {
    /// Whether the cloud took the rows.
    pub success: bool,
    /// How many.
    pub upserted: usize,
}

/// The answer of `POST /upload/{directory}`; some servers wrap it in `data`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadAnswer {
    /// The same answer, wrapped.
    #[serde(default, skip_serializing)]
    pub data: Option<Box<UploadAnswer>>,
    /// The content's hash, `blake3:` and hex digits. A baseline server has none.
    #[serde(default)]
    pub hash: Option<String>,
    /// The file's path in the cloud.
    #[serde(default)]
    pub path: Option<String>,
    /// The file's length. The client does not read it.
    #[serde(default, skip_deserializing)]
    pub size: u64,
    /// Whether the cloud took the file. The client reads it as it reads any server's words: see
    /// `deliver::reply`.
    #[serde(default, skip_deserializing)]
    pub success: bool,
    /// The file's URL.
    #[serde(default)]
    pub url: Option<String>,
}

impl UploadAnswer {
    /// The answer without its wrapper.
    pub fn unwrapped(self) -> Self {
        match self.data {
            Some(data) if self.url.is_none() && self.path.is_none() => *data,
            _ => self,
        }
    }
}

/// Every answer that is not a 2xx: `{"success":false,"error":…}`, with `code` and `source` where a program
/// acts on them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ErrorBody {
    /// What is wrong, for a program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<ErrorCode>,
    /// What is wrong, for people; without a row's value.
    pub error: String,
    /// The newest batch that the receiver has of the source; `null` if it has none. Only with a
    /// [`super::TurnCode`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Option<BatchId>>,
    /// Always `false`.
    pub success: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_without_what_the_client_does_not_need_is_read() {
        let answer: ChangesAnswer = serde_json::from_str(
            r#"{"applied":1,"skipped":0,"more":1,
                "rejected":[{"position":8},{"position":9,"error":["a"],"code":409}]}"#,
        )
        .unwrap();
        let [first, second] = &answer.rejected[..] else {
            panic!("two");
        };
        assert_eq!((first.line, first.code.as_str(), &*first.error), (None, "", ""));
        assert_eq!((second.code.as_str(), &*second.error), ("409", "[\"a\"]"));
        let upload: UploadAnswer =
            serde_json::from_str(r#"{"success":"yes","size":"12","data":{"url":"u","size":-1}}"#).unwrap();
        assert_eq!(upload.unwrapped().url.as_deref(), Some("u"));
    }
}
