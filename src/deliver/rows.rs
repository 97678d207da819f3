//! The calls of a server without `changes` for single rows: `POST /{path}` and `DELETE /{path}/{key}`. Many
//! rows in one request are in [`super::bulk`].
//!
//! The requests go through [`RowRequests`], which sends many of them at once and tries them again.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use reqwest::Method;
use reqwest::header::CONTENT_TYPE;

use super::failure::CloudResult;
use super::http::HttpAnswer;
use super::key_forms::{key_line, segment};
use super::refusal_words::without_row;
use super::request_sizer::split_by_bytes;
use super::row_requests::{RequestOutcome, RowRequests};
use super::{Cloud, bulk};
use crate::batch::{Batch, ChangeIndex, Fate};
use crate::catalogue::{Entity, EntityIndex};
use crate::error::Kind;
use crate::wire::JSON;

/// How long one bulk request may be, in bytes.
const BULK_BYTES: usize = 1024 * 1024;

/// Sends the rows of one delivery.
pub(super) struct RowSender<'c> {
    pub(super) cloud: &'c Cloud,
    pub(super) requests: RowRequests<'c>,
}

impl<'c> RowSender<'c> {
    pub(super) fn new(cloud: &'c Cloud) -> Self {
        Self {
            cloud,
            requests: RowRequests::new(cloud),
        }
    }

    /// Upserts rows of one entity, in any order.
    pub(super) async fn upsert(
        &self,
        bulk: bool,
        batch: &mut Batch,
        entity: EntityIndex,
        changes: &[ChangeIndex],
    ) -> CloudResult<()> {
        let operation = self.cloud.push_entity_operation(entity);
        let changes = batch.failing_last(changes);
        if !bulk {
            let start = |batch: &Batch, change_index: ChangeIndex| {
                let row = self.body(batch, change_index);
                let operation = &operation;
                async move {
                    match row {
                        Ok(row) => self.post(operation, entity, change_index, row).await,
                        Err(unfit) => (vec![(change_index, unfit)], Ok(())),
                    }
                }
            };
            return self.requests.run_changes(batch, changes, start).await;
        }
        let limit = BULK_BYTES.min(self.cloud.inner.sizer.limit());
        let rows_at_once = self.cloud.bulk_rows(entity).load(Ordering::Relaxed);
        let bytes = |change_index: ChangeIndex| batch[change_index].bytes();
        let pieces: Vec<&[ChangeIndex]> = split_by_bytes(&changes, limit, bytes)
            .into_iter()
            .flat_map(|piece| piece.chunks(rows_at_once))
            .flat_map(|piece| batch.cut_by_failures(piece))
            .collect();
        let start = |batch: &Batch, piece: &[ChangeIndex]| {
            let (mut rows, mut unfit) = (Vec::with_capacity(piece.len()), Vec::new());
            for &change_index in piece {
                match self.body(batch, change_index) {
                    Ok(row) => rows.push((change_index, row)),
                    Err(fate) => unfit.push((change_index, fate)),
                }
            }
            let operation = &operation;
            async move {
                let (mut fates, end) = bulk::post(self, operation, entity, rows).await;
                fates.append(&mut unfit);
                (fates, end)
            }
        };
        self.requests.run_changes(batch, pieces, start).await
    }

    /// A change's row in the form that the server wants; if it has no such form, what becomes of the change.
    fn body(&self, batch: &Batch, change_index: ChangeIndex) -> Result<Bytes, Fate> {
        let change = &batch[change_index];
        let row = change.row.as_deref().unwrap_or("{}");
        match self.cloud.row_form(change.entity) {
            None => Ok(Bytes::copy_from_slice(row.as_bytes())),
            Some(form) => form
                .apply(row)
                .map(Bytes::from)
                .map_err(|error| refused(422, error)),
        }
    }

    /// Deletes rows of one entity, in any order.
    pub(super) async fn delete(
        &self,
        batch: &mut Batch,
        entity: EntityIndex,
        changes: &[ChangeIndex],
    ) -> CloudResult<()> {
        let operation = self.cloud.push_entity_operation(entity);
        let entity = self.cloud.entity(entity);
        let start = |batch: &Batch, change_index: ChangeIndex| {
            let change = &batch[change_index];
            let key = self.cloud.cloud_key_of(change.entity, &change.key);
            let segment = segment(&key, &entity.cloud_key());
            let operation = &operation;
            async move {
                match self.delete_one(operation, entity, change_index.0, segment).await {
                    Ok(fate) => (vec![(change_index, fate)], Ok(())),
                    Err(failure) => (Vec::new(), Err(failure)),
                }
            }
        };
        let changes = batch.failing_last(changes);
        self.requests.run_changes(batch, changes, start).await
    }

    /// Deletes every row that the cloud has of the truncated entity.
    pub(super) async fn truncate(&self, batch: &mut Batch, change_index: ChangeIndex) -> CloudResult<()> {
        let entity_index = batch[change_index].entity;
        let operation = self.cloud.push_entity_operation(entity_index);
        let entity = self.cloud.entity(entity_index);
        let cloud_key = entity.cloud_key();
        // One text for all the keys, a line each: the key as a path segment, which is encoded and has no tab,
        // a tab, and the key as JSON.
        let mut keys = String::new();
        let mut has_odd_key = false;
        let listed = self.cloud.list(entity_index, None, |row| {
            match segment(row.get(), &cloud_key).zip(key_line(row.get(), &cloud_key, &entity.key)) {
                Some((segment, key)) => {
                    for part in [&*segment, "\t", &*key, "\n"] {
                        keys.push_str(part);
                    }
                }
                None => has_odd_key = true,
            }
            Ok(())
        });
        match listed.await {
            Err(failure) if failure.error().kind() == Kind::CloudRefused => {
                let status = failure.status().unwrap_or(400);
                batch.set_fate(change_index, refused(status, failure.error().cause()));
                return Ok(());
            }
            other => drop(other?),
        }
        if has_odd_key {
            let words = "the cloud has a row whose key has no form in a URL";
            batch.set_fate(change_index, refused(422, words));
            return Ok(());
        }
        let start = |_: &Batch, (number, line): (usize, &str)| {
            let segment = line.split_once('\t').map(|(segment, _)| segment.to_owned());
            let operation = &operation;
            async move {
                match self.delete_one(operation, entity, number, segment).await {
                    Ok(Fate::Accepted) => (Vec::new(), Ok(())),
                    Ok(fate) => (vec![(change_index, fate)], Ok(())),
                    Err(failure) => (Vec::new(), Err(failure)),
                }
            }
        };
        let end = self.requests.run(batch, keys.lines().enumerate(), start).await;
        self.requests.gate.take_failed();
        let unanswered: HashSet<usize> = self.requests.gate.take_unanswered().into_iter().collect();
        for (number, line) in keys.lines().enumerate() {
            if let Some((_, key)) = line.split_once('\t').filter(|_| unanswered.contains(&number)) {
                batch.note_unanswered(entity_index, key.into());
            }
        }
        if end.is_err() {
            batch.set_fate(change_index, Fate::Pending);
        } else if *batch.fate(change_index) == Fate::Pending {
            batch.set_fate(change_index, Fate::Accepted);
        }
        end
    }

    /// `POST /{path}` with one row.
    pub(super) async fn post(
        &self,
        operation: &str,
        entity: EntityIndex,
        change_index: ChangeIndex,
        row: Bytes,
    ) -> RequestOutcome {
        let path = &self.cloud.entity(entity).path;
        let request = || {
            self.cloud
                .inner
                .http
                .request(Method::POST, path)
                .header(CONTENT_TYPE, JSON)
                .body(row.clone())
        };
        let numbers = [change_index.0];
        let accepted = match self
            .requests
            .attempt(operation, row.len(), &numbers, request)
            .await
        {
            Ok(HttpAnswer::Refused { status, words, .. }) => {
                return (vec![(change_index, refused_row(status, &words, &row))], Ok(()));
            }
            Ok(HttpAnswer::Accepted(reply)) => {
                self.requests
                    .check_accepted(operation, &reply, &numbers, Some(row_text(&row)))
            }
            Err(failure) => Err(failure),
        };
        match accepted {
            Ok(()) => (vec![(change_index, Fate::Accepted)], Ok(())),
            Err(failure) => (Vec::new(), Err(failure)),
        }
    }

    /// `DELETE /{path}/{key}`. The request is known by `number`; `segment` is `None` if the key has no form
    /// in a URL.
    async fn delete_one(
        &self,
        operation: &str,
        entity: &Entity,
        number: usize,
        segment: Option<String>,
    ) -> CloudResult<Fate> {
        let Some(segment) = segment else {
            return Ok(refused(422, "its key has no form in a URL"));
        };
        let path = entity.delete_path(&segment);
        let request = || self.cloud.inner.http.request(Method::DELETE, &path);
        match self.requests.attempt(operation, 0, &[number], request).await? {
            HttpAnswer::Accepted(reply) => self
                .requests
                .check_accepted(operation, &reply, &[number], None)
                .map(|()| Fate::Accepted),
            HttpAnswer::Refused { status: 404, .. } => Ok(Fate::Accepted),
            HttpAnswer::Refused { status: 405, .. } => Ok(Fate::Unsupported),
            HttpAnswer::Refused { status, words, .. } => Ok(refused(status, words)),
        }
    }
}

fn refused(code: u16, error: impl Into<String>) -> Fate {
    Fate::Refused {
        code,
        error: error.into(),
    }
}

/// The fate of a row that the cloud refused in these words, which are kept without the row's values.
pub(super) fn refused_row(code: u16, words: &str, row: &Bytes) -> Fate {
    refused(code, without_row(words, row_text(row)))
}

/// The text of a row, which is JSON and so UTF-8.
fn row_text(row: &Bytes) -> &str {
    std::str::from_utf8(row).unwrap_or_default()
}
