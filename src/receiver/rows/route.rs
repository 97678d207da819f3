//! The baseline's rows: list, upsert and delete by key, without a version.
//!
//! Always holds: such a request takes effect as the newest state. A row that exists keeps its version; a new
//! one takes the version of what had removed it (its tombstone or the truncate mark), else (0, 0). So a
//! change that is older than what the request found stays older, and any later batch of the site still wins.
//! A deleted row leaves its version in a tombstone.
//!
//! A posted row sets the columns that it names, and leaves the other columns of an existing row as they are.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::StreamExt;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::sync::mpsc;
use tokio_postgres::types::Type;

use crate::error::chain;
use crate::receiver::Shared;
use crate::receiver::db::apply_session::{ApplySession, Params};
use crate::receiver::db::db_error::DbError;
use crate::receiver::http::api_error::{ApiError, ApiResult};
use crate::receiver::http::auth::AuthenticatedSite;
use crate::receiver::rows::array_params::ArrayParam;
use crate::receiver::rows::row_batch::{RejectReason, RowBatch, canonical_key, unknown_column};
use crate::receiver::rows::statement;
use crate::receiver::tables::schema::{self, EntityTable, PathOwner, TableColumn};
use crate::wire::json::{Members, syntax_error_place};
use crate::wire::{BulkAnswer, Capability, RejectCode, SuccessAnswer};

/// Rows of a list go out in pieces of about this many bytes.
const PIECE: usize = 32 * 1024;

/// A list whose reader takes nothing for this long is ended, as it holds a connection of the database.
const SLOW_READER: Duration = Duration::from_secs(60);

const SOURCE: &str = include_str!("../../../sql/receiver/baseline.sql");

#[derive(Deserialize)]
pub(crate) struct ListQuery {
    days: Option<i32>,
    keys: Option<String>,
}

/// `GET /{path}`, optionally with `days=N` (only rows of the last days) and `keys=1` (key columns only).
pub(crate) async fn list(
    State(shared): State<Arc<Shared>>,
    AuthenticatedSite(site, share): AuthenticatedSite,
    Path(path): Path<String>,
    Query(wanted): Query<ListQuery>,
) -> ApiResult<Response> {
    if wanted.days.is_some_and(|days| !(0..=1_000_000).contains(&days)) {
        return Err(ApiError::malformed("days is not a number from 0 to 1000000"));
    }
    let site_permit = share.list().await?;
    let permit = tokio::time::timeout(Duration::from_secs(10), Arc::clone(&shared.lists).acquire_owned())
        .await
        .map_err(|_| ApiError::later("too many lists at once"))?
        .map_err(|_| ApiError::later("the server is stopping"))?;
    let mut lookup = shared.apply_pool.take().await?;
    let found = schema::at_path(&shared, &mut lookup, &site, &path).await;
    shared.apply_pool.give_back(lookup);
    let PathOwner { table, retention } = found?;
    let mut connection = shared.pool.acquire().await?;
    let keys_only = wanted.keys.as_deref().is_some_and(|keys| keys != "0");
    let columns: Vec<&TableColumn> = if keys_only {
        table
            .key
            .iter()
            .map(|&column_index| &table.columns[column_index])
            .collect()
    } else {
        table.columns.iter().collect()
    };
    let retention = retention
        .filter(|_| wanted.days.is_some())
        .and_then(|name| table.column_index(&name))
        .map(|column_index| &table.columns[column_index])
        .filter(|column| column.column_type.is_time());
    let sql = statement::list(&table, &columns, retention);
    let days = retention.and(wanted.days);
    let (sender, mut receiver) = mpsc::channel::<std::io::Result<Bytes>>(4);
    tokio::spawn(async move {
        let _permits = (site_permit, permit);
        if let Err(cause) = send_list(&mut connection, sql, &site, days, &sender).await {
            tracing::warn!(%cause, "a list was interrupted");
            // The reader must not take half a list for a whole one.
            let interrupted = std::io::Error::other("the list was interrupted");
            let _ = tokio::time::timeout(SLOW_READER, sender.send(Err(interrupted))).await;
            connection.close_on_drop();
        }
    });
    let pieces = futures::stream::poll_fn(move |context| receiver.poll_recv(context));
    let body = Body::from_stream(pieces);
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

async fn send_list(
    connection: &mut PgConnection,
    sql: String,
    site: &str,
    days: Option<i32>,
    sender: &mpsc::Sender<std::io::Result<Bytes>>,
) -> Result<(), String> {
    let mut query = sqlx::query_scalar::<_, String>(AssertSqlSafe(sql)).bind(site);
    if let Some(days) = days {
        query = query.bind(days);
    }
    let mut rows = query.fetch(connection);
    let mut piece = String::with_capacity(PIECE + PIECE / 4);
    piece.push('[');
    let mut first = true;
    while let Some(row) = rows
        .next()
        .await
        .transpose()
        .map_err(|error| chain(&DbError::from(error)))?
    {
        if !first {
            piece.push(',');
        }
        first = false;
        piece.push_str(&row);
        if piece.len() >= PIECE {
            let full = std::mem::replace(&mut piece, String::with_capacity(PIECE + PIECE / 4));
            send(sender, full).await?;
        }
    }
    piece.push(']');
    send(sender, piece).await
}

async fn send(sender: &mpsc::Sender<std::io::Result<Bytes>>, piece: String) -> Result<(), String> {
    match tokio::time::timeout(SLOW_READER, sender.send(Ok(Bytes::from(piece)))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err("the reader went away".to_owned()),
        Err(_) => Err("the reader takes nothing".to_owned()),
    }
}

/// `POST /{path}`: one row.
pub(crate) async fn post(
    State(shared): State<Arc<Shared>>,
    AuthenticatedSite(site, share): AuthenticatedSite,
    Path(path): Path<String>,
    request: Request,
) -> ApiResult<Json<SuccessAnswer>> {
    let (parts, body) = request.into_parts();
    let body = shared.memory.of(&share).read(&parts.headers, body).await?;
    let row: &RawValue = serde_json::from_slice(&body.bytes).map_err(|error| {
        ApiError::malformed(format!("the body is not a row: {}", syntax_error_place(&error)))
    })?;
    upsert(&shared, &site, &path, &[row])
        .await
        .map_err(|(_, refusal)| refusal)?;
    Ok(Json(SuccessAnswer::DONE))
}

#[derive(Deserialize)]
struct BulkRequest<'a> {
    #[serde(borrow)]
    records: Vec<&'a RawValue>,
}

/// `POST /bulk/{path}`: many rows, all or none.
pub(crate) async fn bulk(
    State(shared): State<Arc<Shared>>,
    AuthenticatedSite(site, share): AuthenticatedSite,
    Path(path): Path<String>,
    request: Request,
) -> ApiResult<Json<BulkAnswer>> {
    shared.offers(Capability::Bulk)?;
    let (parts, body) = request.into_parts();
    let body = shared.memory.of(&share).read(&parts.headers, body).await?;
    let bulk: BulkRequest<'_> = serde_json::from_slice(&body.bytes).map_err(|error| {
        ApiError::malformed(format!(
            "the body is not {{\"records\":[…]}}: {}",
            syntax_error_place(&error)
        ))
    })?;
    upsert(&shared, &site, &path, &bulk.records)
        .await
        .map_err(|(row_index, refusal)| match row_index {
            Some(row_index) => refusal.about(&format!("record {row_index}")),
            None => refusal,
        })?;
    Ok(Json(BulkAnswer {
        success: true,
        upserted: bulk.records.len(),
    }))
}

/// A refusal, and the index of the row that it is about if that is known.
type RowRefusal = (Option<usize>, ApiError);

/// A refusal of the whole request.
fn whole(error: impl Into<ApiError>) -> RowRefusal {
    (None, error.into())
}

/// The refusal of a row.
fn about(row_index: usize, reason: RejectReason) -> RowRefusal {
    let refusal = ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, reason.to_string());
    (Some(row_index), refusal)
}

/// Upserts rows in one transaction: all or none. Of rows with equal keys the last one counts.
async fn upsert(
    shared: &Shared,
    site: &Arc<str>,
    path: &str,
    rows: &[&RawValue],
) -> std::result::Result<(), RowRefusal> {
    let _queue_head = shared.apply_pool.site_queue(site).await.map_err(whole)?;
    let mut connection = shared.apply_pool.take().await.map_err(whole)?;
    connection.begin_for_site(site).await.map_err(whole)?;
    let upserted = upsert_in_transaction(shared, &mut connection, site, path, rows).await;
    let end = match upserted {
        Ok(()) => connection.commit().await,
        Err(_) => connection.rollback().await,
    };
    end.map_err(whole)?;
    shared.apply_pool.give_back(connection);
    upserted
}

async fn upsert_in_transaction(
    shared: &Shared,
    session: &mut ApplySession,
    site: &str,
    path: &str,
    rows: &[&RawValue],
) -> std::result::Result<(), RowRefusal> {
    let PathOwner { table, .. } = schema::at_path(shared, session, site, path)
        .await
        .map_err(whole)?;
    record_request(session, site).await.map_err(whole)?;
    let mut write = BaselineWrite {
        session,
        site,
        table: &table,
        history: shared.history,
    };
    // Rows go in runs of one set of columns; a run ends when a key is repeated, since one statement cannot
    // upsert a row twice.
    let mut run: Vec<usize> = Vec::new();
    let mut columns: Vec<usize> = Vec::new();
    let mut keys = std::collections::HashSet::new();
    for (row_index, row) in rows.iter().enumerate() {
        let named = named_columns(&table, row.get()).map_err(|reason| about(row_index, reason))?;
        let key = canonical_key(&table, row.get()).map_err(|reason| about(row_index, reason))?;
        let room = RowBatch::new(&table, &named).room();
        if named != columns || run.len() >= room || keys.contains(&key) {
            write.upsert_run(&columns, rows, &run).await?;
            run.clear();
            keys.clear();
            columns = named;
        }
        keys.insert(key);
        run.push(row_index);
    }
    write.upsert_run(&columns, rows, &run).await
}

/// Records the time of a baseline request of the site.
async fn record_request(session: &mut ApplySession, site: &str) -> Result<(), DbError> {
    let statement = session.statement(SOURCE, &[Type::TEXT]).await?;
    session.client().execute(&statement, &[&site]).await?;
    Ok(())
}

/// The columns that a row names, in the table's order.
fn named_columns(table: &EntityTable, row: &str) -> Result<Vec<usize>, RejectReason> {
    let members = Members::of(row)
        .ok_or_else(|| RejectReason::new(RejectCode::NotAnObject, "the row is not a JSON object"))?;
    let mut columns = members
        .map(|(name, _)| {
            table
                .column_index(&name)
                .ok_or_else(|| unknown_column(table, &name))
        })
        .collect::<Result<Vec<_>, _>>()?;
    columns.sort_unstable();
    columns.dedup();
    Ok(columns)
}

/// Rows without a version on their way into a table.
struct BaselineWrite<'a> {
    session: &'a mut ApplySession,
    site: &'a str,
    table: &'a EntityTable,
    history: bool,
}

impl BaselineWrite<'_> {
    /// Upserts a run: the rows with these indexes, which name the same columns.
    async fn upsert_run(
        &mut self,
        columns: &[usize],
        rows: &[&RawValue],
        run: &[usize],
    ) -> std::result::Result<(), RowRefusal> {
        if run.is_empty() {
            return Ok(());
        }
        let mut batch = RowBatch::new(self.table, columns);
        for &row_index in run {
            let json = rows[row_index].get();
            canonical_key(self.table, json)
                .and_then(|key| batch.push(json, &key, true))
                .map_err(|reason| about(row_index, reason))?;
        }
        let Err(error) = self.upsert(&batch, 0..batch.len()).await else {
            return Ok(());
        };
        let DbError::Data { .. } = error else {
            return Err(whole(error));
        };
        // The transaction is lost; it only remains to name the first row that does not fit.
        self.session
            .client()
            .batch_execute("rollback; begin")
            .await
            .map_err(whole)?;
        for (run_index, &row_index) in run.iter().enumerate() {
            match self.upsert(&batch, run_index..run_index + 1).await {
                Ok(()) => {}
                Err(error @ DbError::Data { .. }) => return Err((Some(row_index), error.into())),
                Err(error) => return Err(whole(error)),
            }
        }
        Err(whole(error))
    }

    async fn upsert(&mut self, batch: &RowBatch<'_>, rows: std::ops::Range<usize>) -> Result<(), DbError> {
        let arrays = batch.encode(&rows)?;
        let sql = statement::post(self.table, batch.columns(), &arrays, self.history);
        let statement = self.session.statement(&sql, &baseline_types(&arrays)).await?;
        let params = baseline_params(&self.site, self.table, &arrays);
        self.session.client().execute(&statement, &params).await?;
        Ok(())
    }

    /// Deletes the rows with the batch's keys. Returns how many there were.
    async fn delete(&mut self, batch: &RowBatch<'_>) -> Result<i64, DbError> {
        let arrays = batch.encode(&(0..batch.len()))?;
        let sql = statement::delete_row(self.table, batch.columns(), &arrays, self.history);
        let statement = self.session.statement(&sql, &baseline_types(&arrays)).await?;
        let params = baseline_params(&self.site, self.table, &arrays);
        let row = self.session.client().query_one(&statement, &params).await?;
        Ok(row.try_get(0)?)
    }
}

fn baseline_types(arrays: &[ArrayParam<'_>]) -> Vec<Type> {
    let mut types = vec![Type::TEXT, Type::TEXT];
    types.extend(arrays.iter().map(ArrayParam::array_type));
    types
}

fn baseline_params<'a>(site: &'a &str, table: &'a EntityTable, arrays: &'a [ArrayParam<'_>]) -> Params<'a> {
    let mut params: Params<'a> = vec![site, &table.entity];
    params.extend(arrays.iter().map(ArrayParam::value));
    params
}

/// `DELETE /{path}/{key}`: the key's values, percent-encoded, joined by commas in the schema's order where
/// there are several.
pub(crate) async fn delete(
    State(shared): State<Arc<Shared>>,
    AuthenticatedSite(site, _): AuthenticatedSite,
    uri: Uri,
) -> ApiResult<Json<SuccessAnswer>> {
    shared.offers(Capability::Delete)?;
    let mut segments = uri.path().rsplit('/');
    let key = segments.next().unwrap_or_default();
    let path = segments.next().unwrap_or_default();
    let path = percent_decode_str(path).decode_utf8_lossy().into_owned();
    let _queue_head = shared.apply_pool.site_queue(&site).await?;
    let mut connection = shared.apply_pool.take().await?;
    connection.begin_for_site(&site).await?;
    let deleted = delete_in_transaction(&shared, &mut connection, &site, &path, key).await;
    match deleted {
        Ok(_) => connection.commit().await?,
        Err(_) => connection.rollback().await?,
    }
    shared.apply_pool.give_back(connection);
    if deleted? == 0 {
        return Err(no_row());
    }
    Ok(Json(SuccessAnswer::DONE))
}

fn no_row() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "there is no row with this key")
}

/// Returns how many rows there were.
async fn delete_in_transaction(
    shared: &Shared,
    session: &mut ApplySession,
    site: &str,
    path: &str,
    key: &str,
) -> ApiResult<i64> {
    let PathOwner { table, .. } = schema::at_path(shared, session, site, path).await?;
    let values: Vec<&str> = if table.key.len() == 1 {
        vec![key]
    } else {
        key.split(',').collect()
    };
    if values.len() != table.key.len() {
        return Err(ApiError::malformed(format!(
            "the key of {} has {} values",
            table.entity,
            table.key.len()
        )));
    }
    let mut object = serde_json::Map::new();
    for (&column_index, value) in table.key.iter().zip(values) {
        let value = percent_decode_str(value)
            .decode_utf8()
            .map_err(|_| ApiError::malformed("the key is not valid UTF-8"))?;
        object.insert(
            table.columns[column_index].name.clone(),
            Value::String(value.into_owned()),
        );
    }
    let object = Value::Object(object).to_string();
    let mut batch = RowBatch::new(&table, &table.key);
    canonical_key(&table, &object)
        .and_then(|key| batch.push(&object, &key, true))
        .map_err(|_| no_row())?;
    let mut write = BaselineWrite {
        session: &mut *session,
        site,
        table: &table,
        history: shared.history,
    };
    let count = write.delete(&batch).await.map_err(|error| match error {
        // What is no value of the key's type is no row's key.
        DbError::Data { .. } => no_row(),
        error => error.into(),
    })?;
    record_request(session, site).await?;
    Ok(count)
}
