//! The uploads' side of the site's database: what became of each file, and the rows that name it.
//!
//! Outcomes are recorded in groups, one transaction a group. In that transaction the rows that name an
//! uploaded file are touched again, so that its URL is sent with them.

use jiff::Timestamp;
use tokio_postgres::Client;

use super::file_outcome::{FileFate, FileOutcome};
use super::file_upload::ReadyFile;
use super::rescan::PAGE;
use super::root::MediaRoot;
use super::url_end::renewed_at;
use crate::abort;
use crate::catalogue::Catalogue;
use crate::error::{Error, Kind, Result};
use crate::metrics::Metrics;
use crate::source::connect::Session;
use crate::source::file_records::{self, KnownFile};
use crate::source::file_state::FileState;
use crate::source::install::AttachedEntity;
use crate::source::kept_files::{self, KeptFile};
use crate::source::touch;
use crate::source::upload_state::{self, UploadNote};
use crate::wire::json::pick;

/// See the module.
pub(super) struct UploadJournal<'a> {
    pub(super) session: Session,
    pub(super) attached: Vec<AttachedEntity>,
    pub(super) catalogue: &'a Catalogue,
    pub(super) root: &'a MediaRoot,
    pub(super) metrics: &'a Metrics,
}

impl UploadJournal<'_> {
    /// Compares a page of files with their records, and makes those due that differ. Returns the page's last
    /// path if there may be more behind it, and how many files it has.
    pub(super) async fn rescan_page(&self, after: &str) -> Result<(Option<String>, usize)> {
        let page = file_records::known_after(self.session.client(), after, PAGE as i64).await?;
        let files = page.len();
        let last = page
            .last()
            .filter(|_| files == PAGE)
            .map(|file| file.path.clone());
        self.make_changed_due(page, false).await?;
        Ok((last, files))
    }

    /// Makes those of the files due that the watch saw, if they are known and look otherwise now. A path that
    /// the configuration strips something from is known by what the rows name.
    pub(super) async fn look_at(&self, seen: &[String]) -> Result<()> {
        let mut named = seen.to_vec();
        for prefix in &self.root.strip_prefix {
            let slash = if prefix.ends_with('/') { "" } else { "/" };
            named.extend(seen.iter().map(|path| format!("{prefix}{slash}{path}")));
        }
        let known = file_records::known(self.session.client(), &named).await?;
        self.make_changed_due(known, true).await
    }

    /// Makes those files due that do not look as they did at their upload, or that were not there and are
    /// now; and, where an event tells that they changed, those that wait or fail.
    async fn make_changed_due(&self, known: Vec<KnownFile>, by_event: bool) -> Result<()> {
        let root = self.root.clone();
        let look = move || {
            let Ok(root) = root.open() else {
                // Nothing is known of its files: none of them is missing for that.
                return Vec::new();
            };
            let is_due = |file: &KnownFile| {
                let waits = matches!(file.state, FileState::Waiting | FileState::Failing);
                if waits && !by_event {
                    return false;
                }
                match (root.stamp(&file.path), file.state, file.stamp) {
                    (Ok(now), FileState::Uploaded, Some(before)) => before.differs(&now),
                    (Ok(_), _, _) => true,
                    (Err(_), _, _) => false,
                }
            };
            known
                .into_iter()
                .filter(is_due)
                .map(|file| file.path)
                .collect::<Vec<_>>()
        };
        let changed = tokio::task::spawn_blocking(look).await.map_err(|error| {
            Error::new(Kind::Media, "look at media files", error.to_string()).caused_by(error)
        })?;
        if changed.is_empty() {
            return Ok(());
        }
        file_records::make_due(self.session.client(), &changed, 0.0).await
    }

    /// Notes of which files another one of the same size is in the cloud.
    pub(super) async fn note_known_sizes(&self, files: &mut [ReadyFile]) -> Result<()> {
        let paths: Vec<&str> = files.iter().map(|file| file.pending.path.as_str()).collect();
        let directories: Vec<&str> = files.iter().map(|file| file.pending.directory.as_str()).collect();
        let sizes: Vec<i64> = files.iter().map(|file| file.stamp.size).collect();
        let known = file_records::of_known_size(self.session.client(), &paths, &directories, &sizes).await?;
        for file in files {
            file.may_be_there = known.contains(&file.pending.path);
        }
        Ok(())
    }

    /// Reads the uploads of these files that are in progress.
    pub(super) async fn read_begun_uploads(&self, files: &mut [&mut ReadyFile]) -> Result<()> {
        let paths: Vec<&str> = files.iter().map(|file| file.pending.path.as_str()).collect();
        let mut begun = upload_state::in_progress(self.session.client(), &paths).await?;
        for file in files {
            file.begun = begun.remove(&file.pending.path);
        }
        Ok(())
    }

    /// Notes how far uploads have come.
    pub(super) async fn note_progress(&self, notes: &[UploadNote]) -> Result<()> {
        upload_state::note(self.session.client(), notes).await
    }

    /// Records outcomes, and touches the rows that name the uploaded files. If a group cannot be recorded, as
    /// one of its rows is locked, its outcomes are recorded one by one.
    pub(super) async fn record(&mut self, outcomes: &[FileOutcome]) -> Result<()> {
        let Err(error) = self.record_group(outcomes).await else {
            return Ok(());
        };
        if outcomes.len() == 1 || error.sqlstate().is_none() {
            return Err(error);
        }
        tracing::debug!(%error, files = outcomes.len(), "outcomes of files are recorded one by one");
        for outcome in outcomes {
            self.record_group(std::slice::from_ref(outcome)).await?;
        }
        Ok(())
    }

    /// One transaction.
    async fn record_group(&mut self, outcomes: &[FileOutcome]) -> Result<()> {
        let failed = |error| Error::postgres("record the outcomes of uploads", error);
        let (mut uploaded, mut unchanged, mut deferred) = (Vec::new(), Vec::new(), Vec::new());
        let (mut kept, mut gone) = (Vec::new(), Vec::new());
        for outcome in outcomes {
            match &outcome.fate {
                FileFate::Uploaded(stamp, receipt) => uploaded.push(file_records::UploadedFile {
                    path: &outcome.path,
                    stamp: *stamp,
                    hash: receipt.hash.to_string(),
                    url: &receipt.url,
                    remote_path: receipt.path.as_deref(),
                    renew_at: renew_at(&receipt.url),
                }),
                FileFate::Unchanged(stamp) => unchanged.push((outcome.path.as_str(), *stamp)),
                FileFate::Kept {
                    hash,
                    url,
                    has_changed,
                } => kept.push(KeptFile {
                    path: &outcome.path,
                    hash,
                    url,
                    has_changed: *has_changed,
                    renew_at: renew_at(url),
                }),
                FileFate::Gone { hash } => gone.push((outcome.path.as_str(), hash.as_str())),
                FileFate::Deferred(deferral) => deferred.push(file_records::DeferredFile {
                    path: &outcome.path,
                    state: deferral.state,
                    why: &deferral.why,
                    seconds: deferral.seconds,
                    counts: deferral.counts,
                    size: deferral.size,
                }),
            }
        }
        let ended: Vec<&str> = outcomes
            .iter()
            .filter(|outcome| outcome.ends_upload())
            .map(|outcome| outcome.path.as_str())
            .collect();
        if outcomes.len() == 1 && deferred.len() == 1 && ended.is_empty() {
            return file_records::defer(self.session.client(), &deferred).await;
        }
        let transaction = self.session.client_mut().transaction().await.map_err(failed)?;
        let client = transaction.client();
        if outcomes.len() > 1 {
            // Shorter than the server waits before it looks for a deadlock, so that no transaction of the
            // site's is ended.
            client
                .batch_execute("set local lock_timeout = '200ms'")
                .await
                .map_err(failed)?;
            let paths: Vec<&str> = outcomes.iter().map(|outcome| outcome.path.as_str()).collect();
            file_records::lock(client, &paths).await?;
        }
        if !deferred.is_empty() {
            file_records::defer(client, &deferred).await?;
        }
        if !unchanged.is_empty() {
            file_records::record_stamps(client, &unchanged).await?;
        }
        if !ended.is_empty() {
            upload_state::forget(client, &ended).await?;
        }
        if !gone.is_empty() {
            let (paths, hashes): (Vec<&str>, Vec<&str>) = gone.into_iter().unzip();
            kept_files::forget_content(client, &paths, &hashes).await?;
        }
        let moved = match kept.is_empty() {
            true => Vec::new(),
            false => kept_files::confirm(client, &kept).await?,
        };
        if !uploaded.is_empty() {
            file_records::record_uploads(client, &uploaded).await?;
        }
        // The rows of these have another URL than before.
        let mut paths: Vec<&str> = uploaded.iter().map(|file| file.path).collect();
        paths.extend(moved.iter().map(String::as_str));
        // The cloud has the content of these, as far as it says; another file's may be at the same address
        // now.
        let mut there = paths.clone();
        there.extend(unchanged.iter().map(|(path, _)| *path));
        if !there.is_empty() {
            let clashing = file_records::part_clashing(client, &there).await?;
            if !clashing.is_empty() {
                tracing::warn!(
                    files = clashing.len(),
                    "the cloud gave several files one address: \
                     those that came later go up again under other names"
                );
                paths.retain(|path| clashing.iter().all(|clash| clash != path));
            }
        }
        touch_rows_of(client, self.catalogue, &self.attached, &paths).await?;
        if !uploaded.is_empty() {
            abort::point("before an upload is noted");
        }
        transaction.commit().await.map_err(failed)?;
        if !uploaded.is_empty() {
            abort::point("after an upload is noted");
        }
        let metrics = &self.metrics.files;
        for file in &uploaded {
            metrics.uploaded.inc();
            metrics.bytes.inc_by(file.stamp.size.cast_unsigned());
            tracing::debug!(path = file.path, bytes = file.stamp.size, "uploaded");
        }
        Ok(())
    }

    /// Sets the gauge of files that are not uploaded yet.
    pub(super) async fn count(&self) -> Result<()> {
        let counts = file_records::counts(self.session.client()).await?;
        self.metrics
            .files
            .waiting
            .set((counts.waiting + counts.failing + counts.missing) as i64);
        Ok(())
    }
}

/// When a URL is renewed, in seconds since 1970.
fn renew_at(url: &str) -> Option<f64> {
    renewed_at(url, Timestamp::now()).map(|at| at.as_second() as f64)
}

/// Touches the rows that name the files, so that they are sent with the files' URLs. In the caller's
/// transaction.
async fn touch_rows_of(
    client: &Client,
    catalogue: &Catalogue,
    attached: &[AttachedEntity],
    paths: &[&str],
) -> Result<()> {
    if paths.is_empty() {
        return Ok(());
    }
    let references = file_records::references(client, paths).await?;
    for (entity_index, entity) in catalogue.entities().iter().enumerate() {
        // A row that was noted before the entity's key columns changed has another key now.
        let keys: Vec<&str> = references
            .iter()
            .filter(|(name, _)| *name == entity.name)
            .map(|(_, key)| key.as_str())
            .filter(|key| pick(key, &entity.key).is_ok_and(|values| values.iter().all(Option::is_some)))
            .collect();
        touch::keys(client, entity, attached[entity_index].id, &keys).await?;
    }
    Ok(())
}
