//! Uploads in parts that are in progress, in the site's database: a replicator that is started again, or
//! takes over, goes on with them, whatever became of the local store.
//!
//! An upload holds for a file as it looked when the upload began. Whether it looks so still is for the caller
//! to compare.

use std::collections::HashMap;

use tokio_postgres::Client;

use super::file_records::FileStamp;
use crate::deliver::BegunUpload;
use crate::error::{Error, Result};
use crate::sql_template::statement;

fn failed(error: tokio_postgres::Error) -> Error {
    Error::postgres("keep the state of uploads", error)
}

/// An upload that is in progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UploadState {
    /// Where it is, and what the cloud had of it.
    pub(crate) upload: BegunUpload,
    /// How the file looked when it began.
    pub(crate) stamp: FileStamp,
    /// Of the whole content.
    pub(crate) hash: blake3::Hash,
}

/// What is noted of an upload.
#[derive(Debug)]
pub(crate) struct UploadNote {
    pub(crate) path: String,
    pub(crate) state: UploadState,
    /// Bytes a second, of late.
    pub(crate) rate: Option<i64>,
}

impl UploadNote {
    /// Lists of several lengths are no array of PostgreSQL's.
    fn parts_as_json(&self) -> Option<String> {
        let parts = &self.state.upload.parts;
        (!parts.is_empty()).then(|| serde_json::json!(parts).to_string())
    }
}

/// Notes how far uploads have come.
pub(crate) async fn note(client: &Client, notes: &[UploadNote]) -> Result<()> {
    let column = |value: fn(&UploadNote) -> i64| notes.iter().map(value).collect::<Vec<_>>();
    client
        .execute(
            statement!("upload_state", "note"),
            &[
                &notes.iter().map(|note| note.path.as_str()).collect::<Vec<_>>(),
                &notes
                    .iter()
                    .map(|note| note.state.upload.address.as_str())
                    .collect::<Vec<_>>(),
                &column(|note| note.state.upload.offset.cast_signed()),
                &column(|note| note.state.stamp.size),
                &column(|note| note.state.stamp.modified_us),
                &column(|note| note.state.stamp.changed_us),
                &column(|note| note.state.stamp.inode),
                &notes
                    .iter()
                    .map(|note| note.state.hash.to_string())
                    .collect::<Vec<_>>(),
                &notes.iter().map(|note| note.rate).collect::<Vec<_>>(),
                &notes.iter().map(|note| note.parts_as_json()).collect::<Vec<_>>(),
            ],
        )
        .await
        .map_err(failed)?;
    Ok(())
}

/// The uploads of these files that are in progress, by their paths.
pub(crate) async fn in_progress(client: &Client, paths: &[&str]) -> Result<HashMap<String, UploadState>> {
    if paths.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = client
        .query(statement!("upload_state", "in_progress"), &[&paths])
        .await
        .map_err(failed)?;
    Ok(rows
        .iter()
        .filter_map(|row| {
            let state = UploadState {
                upload: BegunUpload {
                    address: row.get(1),
                    offset: row.get::<_, i64>(2).cast_unsigned(),
                    parts: row.get::<_, Option<Vec<String>>>(8).unwrap_or_default(),
                },
                stamp: FileStamp {
                    size: row.get(3),
                    modified_us: row.get(4),
                    changed_us: row.get(5),
                    inode: row.get(6),
                },
                // One that cannot be read began with another program: it begins again.
                hash: blake3::Hash::from_hex(row.get::<_, &str>(7)).ok()?,
            };
            Some((row.get(0), state))
        })
        .collect())
}

/// Forgets the uploads of these files: they have ended.
pub(crate) async fn forget(client: &Client, paths: &[&str]) -> Result<()> {
    client
        .execute(statement!("upload_state", "forget"), &[&paths])
        .await
        .map_err(failed)?;
    Ok(())
}
