//! The uploads' side of the site's database: what became of each file, and the rows that name it.
//!
//! Outcomes are recorded in groups, one transaction a group. In that transaction the rows that name an
//! uploaded file are touched again, so that its URL is sent with them.

use std::path::Path;

use super::file_upload::{FileFate, FileOutcome, file_stamp};
use super::paths;
use crate::abort;
use crate::catalogue::Catalogue;
use crate::error::{Error, Kind, Result};
use crate::metrics::Metrics;
use crate::source::connect::Session;
use crate::source::file_records::{self, FileStamp};
use crate::source::install::AttachedEntity;
use crate::source::touch;
use crate::wire::json::pick;

/// See the module.
pub(super) struct UploadJournal<'a> {
    pub(super) session: Session,
    pub(super) attached: Vec<AttachedEntity>,
    pub(super) catalogue: &'a Catalogue,
    /// The media root.
    pub(super) root: &'a Path,
    pub(super) metrics: &'a Metrics,
}

impl UploadJournal<'_> {
    /// Makes uploaded files due that have changed since.
    pub(super) async fn check_uploaded(&self) -> Result<()> {
        let mut after = String::new();
        loop {
            let page = file_records::uploaded_after(self.session.client(), &after, 1_000).await?;
            let Some((last, _, _)) = page.last() else {
                return Ok(());
            };
            after.clone_from(last);
            self.make_changed_due(page).await?;
        }
    }

    /// Makes those files due that do not look as they did at their upload, or that were missing and are there
    /// now.
    pub(super) async fn make_changed_due(
        &self,
        known: Vec<(String, String, Option<FileStamp>)>,
    ) -> Result<()> {
        let root = self.root.to_owned();
        let changed = tokio::task::spawn_blocking(move || {
            known
                .into_iter()
                .filter(|(path, state, before)| {
                    let now = paths::locate(&root, path)
                        .ok()
                        .and_then(|file| file_stamp(&file).ok());
                    match (state.as_str(), now) {
                        ("uploaded", Some(now)) => *before != Some(now),
                        ("uploaded", None) => false,
                        _ => now.is_some(),
                    }
                })
                .map(|(path, _, _)| path)
                .collect::<Vec<_>>()
        })
        .await
        .map_err(|error| {
            Error::new(Kind::Media, "look at media files", error.to_string()).caused_by(error)
        })?;
        if changed.is_empty() {
            return Ok(());
        }
        file_records::make_due(self.session.client(), &changed, 0.0).await
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
        let (mut uploaded, mut deferred) = (Vec::new(), Vec::new());
        for outcome in outcomes {
            match &outcome.fate {
                FileFate::Uploaded(stamp, receipt) => uploaded.push(file_records::UploadedFile {
                    path: &outcome.path,
                    stamp: *stamp,
                    hash: receipt.hash.to_string(),
                    url: &receipt.url,
                    remote_path: receipt.path.as_deref(),
                }),
                FileFate::Deferred(deferral) => deferred.push(file_records::DeferredFile {
                    path: &outcome.path,
                    state: deferral.state,
                    why: &deferral.why,
                    seconds: deferral.seconds,
                    counts: deferral.counts,
                }),
            }
        }
        if uploaded.is_empty() && deferred.len() == 1 {
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
        if !uploaded.is_empty() {
            file_records::record_uploads(client, &uploaded).await?;
            let mut paths: Vec<&str> = uploaded.iter().map(|file| file.path).collect();
            let clashing = file_records::part_clashing(client, &paths).await?;
            if !clashing.is_empty() {
                tracing::warn!(
                    files = clashing.len(),
                    "the cloud gave several files one address: \
                     those that came later go up again under other names"
                );
                paths.retain(|path| clashing.iter().all(|clash| clash != path));
            }
            let references = file_records::references(client, &paths).await?;
            for (entity_index, entity) in self.catalogue.entities().iter().enumerate() {
                // A row that was noted before the entity's key columns changed has another key now.
                let keys: Vec<&str> = references
                    .iter()
                    .filter(|(name, _)| *name == entity.name)
                    .map(|(_, key)| key.as_str())
                    .filter(|key| {
                        pick(key, &entity.key).is_ok_and(|values| values.iter().all(Option::is_some))
                    })
                    .collect();
                touch::keys(client, entity, self.attached[entity_index].id, &keys).await?;
            }
            abort::point("before an upload is noted");
        }
        transaction.commit().await.map_err(failed)?;
        if !uploaded.is_empty() {
            abort::point("after an upload is noted");
        }
        let metrics = &self.metrics.files;
        for file in &uploaded {
            metrics.uploaded.inc();
            metrics.bytes.inc_by(file.stamp.size as u64);
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
