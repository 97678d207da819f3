//! What a caller says and hears of an upload in parts, whether it goes to the cloud's API ([`super::tus`]) or
//! into an object storage ([`super::object_storage`]).

use std::time::Duration;

use super::files::UploadFile;

/// How long a part should take to send, unless [`ResumableUpload::part_time`] says otherwise.
pub const PART_TIME: Duration = Duration::from_secs(10);

/// An upload in parts that has begun and not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BegunUpload {
    /// Where it is: its URL at the cloud, or its key and number in an object storage.
    pub address: String,
    /// How many bytes are there.
    pub offset: u64,
    /// What an object storage calls the parts that are there, in order; empty at the cloud's API.
    pub parts: Vec<String>,
}

/// A file to send in parts.
pub struct ResumableUpload<'a> {
    /// The directory in the cloud.
    pub directory: &'a str,
    /// The file.
    pub file: UploadFile,
    /// The hash of its content.
    pub hash: blake3::Hash,
    /// What an earlier call has noted of the same content.
    pub state: Option<BegunUpload>,
    /// How long a part should take: [`PART_TIME`], or less where something else waits for the end of a part.
    /// Parts in an object storage have one size.
    pub part_time: Duration,
    /// Called once the server knows the upload, and after each part.
    pub note: &'a (dyn Fn(&BegunUpload) + Send + Sync),
}
