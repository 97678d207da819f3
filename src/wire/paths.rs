//! The paths of the calls, below the API's base URL, and the names that entities cannot have.

/// `GET`: who the cloud is and what it can do.
pub const SYNC_STATUS: &str = "sync-status";
/// `POST`: a batch of changes.
pub const CHANGES: &str = "changes";
/// `POST {BULK}/{path}`: many rows of one entity.
pub const BULK: &str = "bulk";
/// `PUT {SCHEMA}/{path}`: the columns of an entity.
pub const SCHEMA: &str = "schema";
/// `POST {UPLOAD}/{directory}`: a file. `HEAD {UPLOAD}/{directory}?hash=…`: whether a content is there.
pub const UPLOAD: &str = "upload";
/// `POST`: begins a resumable upload; `{FILES}/{id}`: the upload. See [`super::tus`].
pub const FILES: &str = "files";
/// `POST {HASHES}/{path}`: sums of row hashes.
pub const HASHES: &str = "hashes";

/// The paths of the contract's own calls. No entity has one of them: the site refuses it at its start, and
/// the receiver refuses its schema.
pub const RESERVED: [&str; 7] = [SYNC_STATUS, BULK, UPLOAD, CHANGES, SCHEMA, FILES, HASHES];

/// The columns of a table in the cloud that are the receiver's own, and the name that its statements give to
/// the place of a tombstone. No entity's column has one of these names there.
pub const RESERVED_COLUMNS: [&str; 4] = ["_site", "_epoch", "_version", "_version_tombstone"];

/// Whether an entity cannot have this path.
pub fn is_reserved(path: &str) -> bool {
    RESERVED.contains(&path)
}

/// The path of an entity's schema.
pub fn schema_of(entity_path: &str) -> String {
    format!("{SCHEMA}/{entity_path}")
}

/// The path of an entity's bulk requests.
pub fn bulk_of(entity_path: &str) -> String {
    format!("{BULK}/{entity_path}")
}

/// The path of a directory's uploads; `directory` is one encoded segment.
pub fn upload_to(directory: &str) -> String {
    format!("{UPLOAD}/{directory}")
}

/// The path that finds a content in a directory, by the hex digits of its BLAKE3 hash.
pub fn content_in(directory: &str, hash: &str) -> String {
    format!("{UPLOAD}/{directory}?hash={HASH_PREFIX}{hash}")
}

/// What comes before the hex digits of a content's hash, in a query and in an answer.
pub const HASH_PREFIX: &str = "blake3:";
