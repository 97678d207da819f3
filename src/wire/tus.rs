//! Resumable uploads: the headers of tus 1.0.0 at [`super::paths::FILES`], and the metadata of an upload.
//!
//! Beside the protocol's own headers, an answer about a complete upload has [`CONTENT_LOCATION`],
//! [`UPLOAD_PATH`] and [`UPLOAD_HASH`]: the file's public URL, its path in the cloud and its content's hash.
//!
//! Source: <https://tus.io/protocols/resumable-upload>, version 1.0.0.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// The only version that is spoken, and the value of [`TUS_RESUMABLE`].
pub const VERSION: &str = "1.0.0";
/// The extensions of the protocol that the receiver has.
pub const EXTENSIONS: &str = "creation,creation-with-upload,checksum,termination,expiration";
/// The algorithms of [`UPLOAD_CHECKSUM`].
pub const CHECKSUM_ALGORITHMS: &str = "sha1,blake3";
/// The media type of a part's body.
pub const PART_TYPE: &str = "application/offset+octet-stream";
/// The status for a checksum or a hash that the content does not have.
pub const CHECKSUM_MISMATCH: u16 = 460;

/// The version of the protocol, in each request and answer.
pub const TUS_RESUMABLE: &str = "tus-resumable";
/// The versions that the server speaks.
pub const TUS_VERSION: &str = "tus-version";
/// The extensions that it has.
pub const TUS_EXTENSION: &str = "tus-extension";
/// The largest upload, in bytes.
pub const TUS_MAX_SIZE: &str = "tus-max-size";
/// The algorithms of checksums that it knows.
pub const TUS_CHECKSUM_ALGORITHM: &str = "tus-checksum-algorithm";
/// How many bytes the server has.
pub const UPLOAD_OFFSET: &str = "upload-offset";
/// How many bytes the file has.
pub const UPLOAD_LENGTH: &str = "upload-length";
/// Says that the length comes later; not offered.
pub const UPLOAD_DEFER_LENGTH: &str = "upload-defer-length";
/// Names and values that describe the upload.
pub const UPLOAD_METADATA: &str = "upload-metadata";
/// The checksum of one part.
pub const UPLOAD_CHECKSUM: &str = "upload-checksum";
/// When the server removes the unfinished upload.
pub const UPLOAD_EXPIRES: &str = "upload-expires";
/// The public URL of the complete file.
pub const CONTENT_LOCATION: &str = "content-location";
/// The path of the complete file in the cloud: directory and stored name.
pub const UPLOAD_PATH: &str = "upload-path";
/// The hash of the complete file's content: `blake3:` and hex digits.
pub const UPLOAD_HASH: &str = "upload-hash";
/// The method that is meant, where a client can send `POST` only.
pub const METHOD_OVERRIDE: &str = "x-http-method-override";

/// The key of the file's name in the metadata.
pub const FILENAME: &str = "filename";
/// The key of its directory.
pub const DIRECTORY: &str = "directory";
/// The key of its content's hash.
pub const HASH: &str = "hash";

/// The header [`UPLOAD_METADATA`] with these keys and values.
pub fn encode_metadata<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let pairs = pairs
        .into_iter()
        .map(|(key, value)| format!("{key} {}", STANDARD.encode(value)));
    pairs.collect::<Vec<_>>().join(",")
}

/// What the header [`UPLOAD_METADATA`] says about the file.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct UploadMetadata {
    /// The file's name.
    pub filename: Option<String>,
    /// Its directory.
    pub directory: Option<String>,
    /// The hash that its content must have.
    pub hash: Option<String>,
}

impl UploadMetadata {
    /// Reads the header. Keys that mean nothing here may have any value.
    ///
    /// # Errors
    /// It does not have the protocol's form.
    pub fn read(header: &str) -> Result<Self, MetadataError> {
        let mut metadata = Self::default();
        let mut keys = Vec::new();
        for pair in header.split(',').map(str::trim) {
            if pair.is_empty() {
                // An empty header describes nothing; an empty pair is an error.
                if header.trim().is_empty() {
                    continue;
                }
                return Err(MetadataError::EmptyKey);
            }
            let (key, value) = pair.split_once(' ').unwrap_or((pair, ""));
            if keys.contains(&key) {
                return Err(MetadataError::Twice(key.to_owned()));
            }
            keys.push(key);
            let bytes = STANDARD
                .decode(value.trim())
                .map_err(|_| MetadataError::NotBase64(key.to_owned()))?;
            let field = match key {
                FILENAME => &mut metadata.filename,
                DIRECTORY => &mut metadata.directory,
                HASH => &mut metadata.hash,
                _ => continue,
            };
            let text = String::from_utf8(bytes).map_err(|_| MetadataError::NotText(key.to_owned()))?;
            *field = Some(text).filter(|text| !text.is_empty());
        }
        Ok(metadata)
    }
}

/// Why the header [`UPLOAD_METADATA`] cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetadataError {
    /// A pair has no key.
    EmptyKey,
    /// A key is there twice.
    Twice(String),
    /// The value of this key is not base64.
    NotBase64(String),
    /// The value of this key is not UTF-8.
    NotText(String),
}

impl fmt::Display for MetadataError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the header Upload-Metadata is not valid: ")?;
        match self {
            Self::EmptyKey => f.write_str("a key is empty"),
            Self::Twice(key) => write!(f, "the key {key:?} is there twice"),
            Self::NotBase64(key) => write!(f, "the value of {key:?} is not base64"),
            Self::NotText(key) => write!(f, "the value of {key:?} is not UTF-8"),
        }
    }
}

impl std::error::Error for MetadataError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_read_as_it_is_written() {
        let header = encode_metadata([(FILENAME, "Slip é.jpg"), (DIRECTORY, "passes"), ("filetype", "")]);
        assert_eq!(
            UploadMetadata::read(&header),
            Ok(UploadMetadata {
                filename: Some("Slip é.jpg".to_owned()),
                directory: Some("passes".to_owned()),
                hash: None,
            })
        );
        assert_eq!(UploadMetadata::read(""), Ok(UploadMetadata::default()));
        assert_eq!(
            UploadMetadata::read("is_confidential, filename eA==")
                .unwrap()
                .filename
                .as_deref(),
            Some("x")
        );
        for broken in ["filename ***", "filename eA==,", "a eA==,a eA==", "filename /w=="] {
            assert!(UploadMetadata::read(broken).is_err(), "{broken}");
        }
    }
}
