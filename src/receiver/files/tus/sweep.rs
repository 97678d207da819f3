//! Removes expired uploads, now and then.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sqlx::Row;
use tokio_util::sync::CancellationToken;

use super::partial_file::PartialFile;
use crate::receiver::files::group_commit::storage_error;
use crate::receiver::files::upload::INCOMING;
use crate::receiver::http::api_error::ApiResult;
use crate::receiver::{ABANDONED, Shared};

/// The time between two sweeps, at most.
const EVERY: Duration = Duration::from_secs(10 * 60);

/// Expired uploads that are removed at once.
const AT_ONCE: i64 = 1000;

/// Sweeps at once, and then now and then until `shutdown`.
pub(crate) async fn run(shared: Arc<Shared>, shutdown: CancellationToken) {
    let sweep_and_wait = async || {
        if let Err(error) = once(&shared).await {
            tracing::warn!(%error, "expired uploads were not removed; it is tried again");
        }
        tokio::time::sleep(EVERY.min(shared.upload_expiry)).await;
    };
    while shutdown.run_until_cancelled(sweep_and_wait()).await.is_some() {}
}

/// Removes the uploads that have expired and that nobody writes, and files in the folder that belong to none.
async fn once(shared: &Shared) -> ApiResult<()> {
    let incoming = shared.files.join(INCOMING);
    let expired = sqlx::query("select id from cloud_meta.uploads where expires_at < now() limit $1")
        .bind(AT_ONCE)
        .fetch_all(&shared.pool)
        .await?;
    for row in &expired {
        let id: &str = row.try_get(0)?;
        // A request that writes it has the lock.
        let partial = PartialFile::lock_aside(incoming.join(id))
            .await
            .map_err(storage_error)?;
        let Some(partial) = partial else { continue };
        let removed = sqlx::query("delete from cloud_meta.uploads where id = $1 and expires_at < now()")
            .bind(id)
            .execute(&shared.pool)
            .await?;
        if removed.rows_affected() > 0 {
            partial.remove().map_err(storage_error)?;
        }
    }
    let old = tokio::task::spawn_blocking(move || old_files(&incoming))
        .await
        .unwrap_or_default();
    for name in old {
        let id = name.trim_end_matches(".whole");
        let known = sqlx::query_scalar::<_, bool>(
            "select exists (select from cloud_meta.uploads where id = $1 and stored is null)",
        );
        if !known.bind(id).fetch_one(&shared.pool).await? {
            let path = shared.files.join(INCOMING).join(&name);
            tokio::fs::remove_file(path)
                .await
                .or_else(|error| match error.kind() {
                    std::io::ErrorKind::NotFound => Ok(()),
                    _ => Err(storage_error(error)),
                })?;
        }
    }
    Ok(())
}

/// Names of files that were not written for long.
fn old_files(incoming: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(incoming) else {
        return Vec::new();
    };
    let is_old = |entry: &std::fs::DirEntry| {
        let modified = entry.metadata().and_then(|file| file.modified());
        let age = modified.map(|at| SystemTime::now().duration_since(at).unwrap_or_default());
        age.is_ok_and(|age| age > ABANDONED)
    };
    entries
        .flatten()
        .filter(is_old)
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}
