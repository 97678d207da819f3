//! The end of an upload: its content is checked, and the file gets its name.

use std::fs::File;
use std::io::{self, Seek};
use std::path::Path;

use tempfile::{NamedTempFile, TempPath};

use super::partial_file::PartialFile;
use super::record::UploadRecord;
use super::request::mismatch;
use crate::receiver::Shared;
use crate::receiver::files::group_commit::{FinishedUpload, storage_error};
use crate::receiver::http::api_error::{ApiError, ApiResult};
use crate::wire::paths::HASH_PREFIX;

/// Stores the whole file. `hasher` has seen all of it; without one the file is read.
///
/// # Errors
/// 460 if the content does not have the announced hash; the upload is removed then. After any other error the
/// upload is as it was, and can be finished again.
pub(super) async fn finish(
    shared: &Shared,
    record: &mut UploadRecord,
    partial: PartialFile,
    hasher: Option<blake3::Hasher>,
) -> ApiResult<()> {
    let fault = |error| ApiError::fault("store a file", error);
    let (partial, hash) = match hasher {
        Some(hasher) => (partial, hasher.finalize()),
        None => tokio::task::spawn_blocking(move || hash_of(&partial.file).map(|hash| (partial, hash)))
            .await
            .map_err(fault)?
            .map_err(storage_error)?,
    };
    let digest = hash.to_hex();
    let hash = format!("{HASH_PREFIX}{digest}");
    if record
        .announced_hash
        .as_ref()
        .is_some_and(|announced| *announced != hash)
    {
        record.delete(&shared.pool).await?;
        partial.remove().map_err(storage_error)?;
        return Err(mismatch("the content does not have the announced hash"));
    }
    let stored = format!("{}-{}", &digest[..16], record.name);
    let (partial, file) = tokio::task::spawn_blocking(move || {
        let file = second_name(&partial)?;
        Ok((partial, file))
    })
    .await
    .map_err(fault)?
    .map_err(storage_error)?;
    shared
        .group_commit
        .store(FinishedUpload {
            file,
            site: record.site.clone(),
            directory: record.directory.clone(),
            stored: stored.clone(),
            hash: hash.clone(),
            name: record.name.clone(),
            size: record.length,
        })
        .await?;
    record.note_stored(&shared.pool, stored, hash).await?;
    if let Err(error) = partial.remove() {
        // The sweep removes it.
        tracing::debug!(%error, "the file of a finished upload was not removed");
    }
    Ok(())
}

fn hash_of(mut file: &File) -> io::Result<blake3::Hash> {
    file.rewind()?;
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file)?;
    Ok(hasher.finalize())
}

/// The file under a second name, which the group commit renames or removes: so the first one is still there
/// if the file cannot be stored now. Where the file system has no links, the first name is given away.
fn second_name(partial: &PartialFile) -> io::Result<NamedTempFile> {
    let second = partial.path.with_extension("whole");
    let name = match link(&partial.path, &second) {
        Ok(()) => second,
        Err(_) => partial.path.clone(),
    };
    let path = TempPath::try_from_path(name)?;
    Ok(NamedTempFile::from_parts(partial.file.try_clone()?, path))
}

fn link(from: &Path, to: &Path) -> io::Result<()> {
    match std::fs::hard_link(from, to) {
        // What was killed in between has left it behind.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            std::fs::remove_file(to)?;
            std::fs::hard_link(from, to)
        }
        linked => linked,
    }
}
