//! The answer of `GET /sync-status`: who the cloud is, what it can do, and how far each source of the site
//! has come.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::json::optional_plain_text_of;

/// `GET /sync-status`. A baseline server has `status`, `message` and `last_sync` only.
///
/// The members are written in the order of their names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncStatusAnswer {
    /// The names of the server's capabilities.
    #[serde(default)]
    pub capabilities: Option<Vec<String>>,
    /// The same answer, wrapped, as some servers give each answer.
    #[serde(default, skip_serializing)]
    pub data: Option<WrappedStatus>,
    /// When it last took something in, in its own words.
    #[serde(default, deserialize_with = "optional_plain_text_of")]
    pub last_sync: Option<String>,
    /// For people. The client does not read it.
    #[serde(default, skip_deserializing)]
    pub message: Option<String>,
    /// The server's own identity.
    #[serde(default)]
    pub receiver: Option<String>,
    /// The site that the key belongs to.
    #[serde(default)]
    pub site: Option<String>,
    /// How far each source has come, by its id.
    #[serde(default)]
    pub sources: Option<SourcesMember>,
    /// `ok`, if it is well.
    #[serde(default)]
    pub status: Option<String>,
}

impl SyncStatusAnswer {
    /// The answer without its wrapper.
    pub fn unwrapped(self) -> Self {
        match self.data {
            Some(WrappedStatus::Known(answer)) if self.status.is_none() => *answer,
            _ => self,
        }
    }
}

/// What an answer has under `data`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum WrappedStatus {
    /// The answer.
    Known(Box<SyncStatusAnswer>),
    /// Something else.
    Other(Value),
}

/// How far each source has come. What another server has under that name need not be of the contract's form:
/// it is an error only if the server has `changes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SourcesMember {
    /// By the source's id.
    Known(BTreeMap<String, SourceProgress>),
    /// Something else.
    Other(Value),
}

/// How far a source has come: its newest batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceProgress {
    /// The batch's number in its term.
    pub batch: i64,
    /// The database that the source was when that batch came.
    #[serde(default)]
    pub database: Option<String>,
    /// The epoch of the source's outbox.
    pub epoch: i64,
    /// The term.
    pub term: i64,
}

/// The name of a batch, as error answers give it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchId {
    /// The batch's number in its term.
    pub batch: i64,
    /// The epoch of the source's outbox.
    pub epoch: i64,
    /// The term.
    pub term: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_of_another_server_may_be_of_any_form() {
        let read = |json: &str| serde_json::from_str::<SyncStatusAnswer>(json).unwrap();
        assert_eq!(read("{}"), SyncStatusAnswer::default());
        let status =
            read(r#"{"status":"ok","message":{"en":"hello"},"last_sync":1700000000.5,"sources":[1],"x":1}"#);
        assert_eq!(status.last_sync.as_deref(), Some("1700000000.5"));
        assert!(matches!(status.sources, Some(SourcesMember::Other(_))));
        assert_eq!(
            read(r#"{"last_sync":null,"sources":null}"#),
            SyncStatusAnswer::default()
        );
        let wrapped = read(r#"{"data":{"status":"ok","site":"a"}}"#).unwrapped();
        assert_eq!(
            (wrapped.status.as_deref(), wrapped.site.as_deref()),
            (Some("ok"), Some("a"))
        );
        let whole = read(r#"{"status":"ok","data":{"status":"no"}}"#).unwrapped();
        assert_eq!(whole.status.as_deref(), Some("ok"));
        assert_eq!(read(r#"{"data":[1]}"#).unwrapped().status, None);
        let status = read(r#"{"sources":{"a":{"epoch":1,"term":2,"batch":3,"more":4}}}"#);
        let Some(SourcesMember::Known(sources)) = status.sources else {
            panic!("known");
        };
        assert_eq!(
            (sources["a"].epoch, sources["a"].term, sources["a"].batch),
            (1, 2, 3)
        );
    }
}
