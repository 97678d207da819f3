//! What the headers of a request say.

use axum::http::{HeaderMap, StatusCode, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

use crate::receiver::files::media::is_plain_name;
use crate::receiver::files::upload::safe_name;
use crate::receiver::http::api_error::{ApiError, ApiResult};
use crate::wire::paths::HASH_PREFIX;
use crate::wire::tus::{self, UploadMetadata};

/// The directory of an upload that names none, as those of public clients.
const DEFAULT_DIRECTORY: &str = "files";

/// The upload that a client begins.
pub(super) struct NewUpload {
    pub(super) directory: String,
    /// The file's name, made safe.
    pub(super) name: String,
    pub(super) length: u64,
    /// `blake3:` and hex digits.
    pub(super) announced_hash: Option<String>,
    /// The metadata as they were sent.
    pub(super) metadata: Option<String>,
}

impl NewUpload {
    pub(super) fn read(headers: &HeaderMap, limit: u64) -> ApiResult<Self> {
        if headers.contains_key(tus::UPLOAD_DEFER_LENGTH) {
            return Err(ApiError::malformed(
                "the length of an upload must be known when it begins: Upload-Defer-Length is not offered",
            ));
        }
        let length = number(headers, tus::UPLOAD_LENGTH)?
            .ok_or_else(|| ApiError::malformed("the header Upload-Length is missing"))?;
        if length > limit {
            return Err(ApiError::too_large(format!(
                "the file is larger than {limit} bytes"
            )));
        }
        let metadata = text(headers, tus::UPLOAD_METADATA)?.filter(|metadata| !metadata.is_empty());
        let described = UploadMetadata::read(metadata.unwrap_or_default())
            .map_err(|error| ApiError::malformed(error.to_string()))?;
        let directory = described
            .directory
            .unwrap_or_else(|| DEFAULT_DIRECTORY.to_owned());
        if !is_plain_name(&directory) {
            return Err(ApiError::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "the directory is not one plain segment of letters, digits, _ and -",
            ));
        }
        let announced_hash = described.hash.map(|hash| hash.to_ascii_lowercase());
        if announced_hash.as_deref().is_some_and(|hash| !is_hash(hash)) {
            return Err(ApiError::malformed(
                "the hash in Upload-Metadata is not blake3: and 64 hexadecimal digits",
            ));
        }
        Ok(Self {
            directory,
            name: safe_name(&described.filename.unwrap_or_default()),
            length,
            announced_hash,
            metadata: metadata.map(str::to_owned),
        })
    }
}

fn is_hash(text: &str) -> bool {
    text.strip_prefix(HASH_PREFIX)
        .is_some_and(|digits| digits.len() == 64 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
}

/// Whether the body is a part of a file.
pub(super) fn has_part(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().eq_ignore_ascii_case(tus::PART_TYPE.as_bytes()))
}

/// The offset at which a part begins.
pub(super) fn offset(headers: &HeaderMap) -> ApiResult<u64> {
    number(headers, tus::UPLOAD_OFFSET)?
        .ok_or_else(|| ApiError::malformed("the header Upload-Offset is missing"))
}

fn number(headers: &HeaderMap, name: &str) -> ApiResult<Option<u64>> {
    let Some(text) = text(headers, name)? else {
        return Ok(None);
    };
    // PostgreSQL has no larger number either.
    let number = text
        .parse::<u64>()
        .ok()
        .filter(|number| i64::try_from(*number).is_ok());
    let digits_only = text.bytes().all(|byte| byte.is_ascii_digit());
    number
        .filter(|_| digits_only)
        .map(Some)
        .ok_or_else(|| ApiError::malformed(format!("the header {name} is not a number of bytes")))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> ApiResult<Option<&'a str>> {
    let value = headers.get(name).map(|value| value.to_str().map(str::trim));
    value
        .transpose()
        .map_err(|_| ApiError::malformed(format!("the header {name} is not ASCII")))
}

/// The checksum that a part must have, while it is computed.
#[derive(Clone)]
pub(super) struct PartChecksum {
    expected: Vec<u8>,
    hasher: ChecksumHasher,
}

#[derive(Clone)]
enum ChecksumHasher {
    Sha1(Sha1),
    Blake3(Box<blake3::Hasher>),
}

impl PartChecksum {
    /// The checksum that the headers name; `None` if they name none.
    pub(super) fn read(headers: &HeaderMap) -> ApiResult<Option<Self>> {
        let Some(text) = text(headers, tus::UPLOAD_CHECKSUM)? else {
            return Ok(None);
        };
        let malformed = || ApiError::malformed("the header Upload-Checksum is not an algorithm and base64");
        let (algorithm, checksum) = text.split_once(' ').ok_or_else(malformed)?;
        let (hasher, length) = match algorithm {
            "sha1" => (ChecksumHasher::Sha1(Sha1::new()), 20),
            "blake3" => (ChecksumHasher::Blake3(Box::default()), 32),
            _ => {
                return Err(ApiError::malformed(format!(
                    "the algorithm of Upload-Checksum is none of {}",
                    tus::CHECKSUM_ALGORITHMS
                )));
            }
        };
        let expected = STANDARD.decode(checksum.trim()).map_err(|_| malformed())?;
        if expected.len() != length {
            return Err(malformed());
        }
        Ok(Some(Self { expected, hasher }))
    }

    pub(super) fn update(&mut self, piece: &[u8]) {
        match &mut self.hasher {
            ChecksumHasher::Sha1(hasher) => hasher.update(piece),
            ChecksumHasher::Blake3(hasher) => {
                hasher.update(piece);
            }
        }
    }

    /// Whether what was seen has the checksum.
    pub(super) fn matches(self) -> bool {
        match self.hasher {
            ChecksumHasher::Sha1(hasher) => hasher.finalize()[..] == self.expected[..],
            ChecksumHasher::Blake3(hasher) => hasher.finalize().as_bytes()[..] == self.expected[..],
        }
    }
}

/// 460: what arrived is not what was announced.
pub(super) fn mismatch(message: &str) -> ApiError {
    let status = StatusCode::from_u16(tus::CHECKSUM_MISMATCH).unwrap_or(StatusCode::BAD_REQUEST);
    ApiError::new(status, message)
}
