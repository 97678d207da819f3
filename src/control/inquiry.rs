//! What is known of one row: why it is not in the cloud.

use serde::Serialize;

/// What is known of a row.
#[derive(Debug, Clone, Serialize)]
pub struct RowInquiry {
    /// The entity's name.
    pub entity: String,
    /// The key, a JSON object.
    pub key: String,
    /// Whether it is in the cloud, waits, or stays at the site.
    pub state: InquiryState,
    /// The reason, in one sentence.
    pub reason: String,
    /// The command that helps or tells more; null if there is nothing to do.
    pub next: Option<String>,
    /// What else is known, a line each: what, and what is so.
    pub facts: Vec<(String, String)>,
}

/// Whether a row is in the cloud, waits, or stays at the site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum InquiryState {
    /// Nothing of it waits.
    Delivered,
    /// It is sent without anybody's help, or as soon as the reason is gone.
    Waiting,
    /// The cloud refused it, or it cannot be read: somebody decides.
    Refused,
    /// The configuration keeps it at the site.
    LeftOut,
    /// The site has no such row.
    Absent,
    /// Changes of it may not have been captured.
    Missed,
}
