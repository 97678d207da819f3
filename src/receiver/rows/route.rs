//! The baseline's rows: list, upsert and delete by key, without a version.
//!
//! Such a request takes effect as the newest state. A row that stands keeps its version; a new one takes the version of
//! what had removed it (its tombstone, the truncate mark), else (0, 0). So a change that was older than what the request
//! found stays older, and any later batch of the site still wins. A row that is deleted leaves its version in a
//! tombstone.
//!
//! A posted row sets the columns that it names, and leaves the others of a standing row as they are.

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
use sqlx::{AssertSqlSafe, PgConnection, Row};
use tokio::sync::mpsc;

use crate::receiver::Shared;
use crate::receiver::db::pool::{self, DbError};
use crate::receiver::http::api_error::{ApiError, ApiResult};
use crate::receiver::http::auth::AuthenticatedSite;
use crate::receiver::http::site_shares::SiteShare;
use crate::receiver::rows::row_batch::{RejectReason, RowBatch, canonical_key, unknown_column};
use crate::receiver::rows::statement;
use crate::receiver::tables::schema::{self, EntityTable, PathOwner, TableColumn};
use crate::wire::json::{Members, syntax_error_place};
use crate::wire::{BulkAnswer, Capability, RejectCode, SuccessAnswer};

/// Rows of a list go out in pieces of about this many bytes.
const PIECE: usize = 32 * 1024;

/// A list whose reader takes nothing for this long is ended: it holds a connection of the database.
const SLOW_READER: Duration = Duration::from_secs(60);

const SOURCE: &str = include_str!("../../../sql/receiver/baseline.sql");

#[derive(Deserialize)]
pub(crate) struct ListQuery {
    days: Option<i32>,
    keys: Option<String>,
}

/// `GET /{path}`, optionally with `days=N` (within the window) and `keys=1` (key columns only).
pub(crate) async fn list(
    State(shared): State<Arc<Shared>>,
    AuthenticatedSite(site, share): AuthenticatedSite,
    Path(path): Path<String>,
    Query(wanted): Query<ListQuery>,
) -> ApiResult<Response> {
    if wanted.days.is_some_and(|days| !(0..=1_000_000).contains(&days)) {
        return Err(ApiError::malformed("days is not a number from 0 to 1000000"));
    }
    let own = share.list().await?;
    let permit = tokio::time::timeout(Duration::from_secs(10), Arc::clone(&shared.lists).acquire_owned())
        .await
        .map_err(|_| ApiError::later("too many lists at once"))?
        .map_err(|_| ApiError::later("the server is stopping"))?;
    let mut connection = shared.pool.acquire().await?;
    let PathOwner { table, window } = schema::at_path(&shared, &mut connection, &site, &path).await?;
    let keys_only = wanted.keys.as_deref().is_some_and(|keys| keys != "0");
    let columns: Vec<&TableColumn> = if keys_only {
        table.key.iter().map(|&place| &table.columns[place]).collect()
    } else {
        table.columns.iter().collect()
    };
    let window = window
        .filter(|_| wanted.days.is_some())
        .and_then(|name| table.place(&name))
        .map(|place| &table.columns[place])
        .filter(|column| column.of.is_time());
    let sql = statement::list(&table, &columns, window);
    let days = window.and(wanted.days);
    let (sender, mut receiver) = mpsc::channel::<std::io::Result<Bytes>>(4);
    tokio::spawn(async move {
        let _permits = (own, permit);
        if let Err(cause) = send_list(&mut connection, sql, &site, days, &sender).await {
            tracing::warn!(%cause, "a list broke off");
            // The reader must not take half a list for a whole one.
            let broken = std::io::Error::other("the list broke off");
            let _ = tokio::time::timeout(SLOW_READER, sender.send(Err(broken))).await;
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
        .map_err(|error| format!("{:?}", DbError::from(error)))?
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
    let body = shared.bounds.of(&share).read(&parts.headers, body).await?;
    let row: &RawValue = serde_json::from_slice(&body.bytes).map_err(|error| {
        ApiError::malformed(format!("the body is not a row: {}", syntax_error_place(&error)))
    })?;
    upsert(&shared, (&site, &share), &path, &[row])
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
    let body = shared.bounds.of(&share).read(&parts.headers, body).await?;
    let bulk: BulkRequest<'_> = serde_json::from_slice(&body.bytes).map_err(|error| {
        ApiError::malformed(format!(
            "the body is not {{\"records\":[…]}}: {}",
            syntax_error_place(&error)
        ))
    })?;
    upsert(&shared, (&site, &share), &path, &bulk.records)
        .await
        .map_err(|(nth, refusal)| match nth {
            Some(nth) => refusal.about(&format!("record {nth}")),
            None => refusal,
        })?;
    Ok(Json(BulkAnswer {
        success: true,
        upserted: bulk.records.len(),
    }))
}

/// A refusal, and the row that it is about where that is known.
type RowRefusal = (Option<usize>, ApiError);

fn about(nth: usize, reason: RejectReason) -> RowRefusal {
    let error = format!("{} ({})", reason.error, reason.code.as_str());
    (Some(nth), ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, error))
}

/// Upserts rows in one transaction: all or none. Of rows with equal keys the last one counts.
async fn upsert(
    shared: &Shared,
    (site, share): (&str, &SiteShare),
    path: &str,
    rows: &[&RawValue],
) -> std::result::Result<(), RowRefusal> {
    let failed = |error: sqlx::Error| (None, ApiError::from(error));
    let _connection = share.connection().await.map_err(|refusal| (None, refusal))?;
    let mut transaction = shared.pool.begin().await.map_err(failed)?;
    pool::lock_site(&mut transaction, site)
        .await
        .map_err(|trouble| (None, trouble.into()))?;
    let PathOwner { table, .. } = schema::at_path(shared, &mut transaction, site, path)
        .await
        .map_err(|refusal| (None, refusal))?;
    sqlx::query(SOURCE)
        .bind(site)
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
    // Rows go in runs of one set of columns; a run ends where a key comes again, since one statement cannot
    // upsert a row twice.
    let mut run: Vec<usize> = Vec::new();
    let mut columns: Vec<usize> = Vec::new();
    let mut keys = std::collections::HashSet::new();
    for (nth, row) in rows.iter().enumerate() {
        let named = named(&table, row.get()).map_err(|reason| about(nth, reason))?;
        let key = canonical_key(&table, row.get()).map_err(|reason| about(nth, reason))?;
        let room = RowBatch::new(&table, &named).room();
        if named != columns || run.len() >= room || keys.contains(&key) {
            flush(shared, &mut transaction, site, &table, &columns, rows, &run).await?;
            run.clear();
            keys.clear();
            columns = named;
        }
        keys.insert(key);
        run.push(nth);
    }
    flush(shared, &mut transaction, site, &table, &columns, rows, &run).await?;
    transaction.commit().await.map_err(failed)
}

/// The columns that a row names, in the table's order.
fn named(table: &EntityTable, row: &str) -> Result<Vec<usize>, RejectReason> {
    let members = Members::of(row)
        .ok_or_else(|| RejectReason::new(RejectCode::NotAnObject, "the row is not a JSON object"))?;
    let mut columns = members
        .map(|(name, _)| table.place(&name).ok_or_else(|| unknown_column(table, &name)))
        .collect::<Result<Vec<_>, _>>()?;
    columns.sort_unstable();
    columns.dedup();
    Ok(columns)
}

async fn flush(
    shared: &Shared,
    connection: &mut PgConnection,
    site: &str,
    table: &EntityTable,
    columns: &[usize],
    rows: &[&RawValue],
    run: &[usize],
) -> std::result::Result<(), RowRefusal> {
    if run.is_empty() {
        return Ok(());
    }
    let mut grid = RowBatch::new(table, columns);
    for &nth in run {
        let text = rows[nth].get();
        canonical_key(table, text)
            .and_then(|key| grid.push(text, &key, true))
            .map_err(|reason| about(nth, reason))?;
    }
    let Err(trouble) = store(shared, connection, site, &grid, 0..grid.len()).await else {
        return Ok(());
    };
    let DbError::Data { .. } = trouble else {
        return Err((None, trouble.into()));
    };
    // The transaction is lost; it only remains to name the first row that does not fit.
    let _ = sqlx::raw_sql("rollback; begin").execute(&mut *connection).await;
    for (place, &nth) in run.iter().enumerate() {
        let tried = store(shared, connection, site, &grid, place..place + 1).await;
        if let Err(trouble @ DbError::Data { .. }) = tried {
            return Err((Some(nth), trouble.into()));
        }
        tried.map_err(|trouble| (None, trouble.into()))?;
    }
    Err((None, trouble.into()))
}

async fn store(
    shared: &Shared,
    connection: &mut PgConnection,
    site: &str,
    grid: &RowBatch<'_>,
    rows: std::ops::Range<usize>,
) -> Result<(), DbError> {
    let encoded = grid.encode(&rows)?;
    let sql = statement::post(grid.table, grid.columns(), &encoded, shared.history);
    let mut query = sqlx::query(AssertSqlSafe(sql))
        .bind(site)
        .bind(&grid.table.entity);
    for values in encoded {
        query = values.bind(query);
    }
    query.execute(connection).await?;
    Ok(())
}

/// `DELETE /{path}/{key}`: the key's values, percent-encoded, joined by commas in the schema's order where there are
/// several.
pub(crate) async fn delete(
    State(shared): State<Arc<Shared>>,
    AuthenticatedSite(site, share): AuthenticatedSite,
    uri: Uri,
) -> ApiResult<Json<SuccessAnswer>> {
    shared.offers(Capability::Delete)?;
    let mut segments = uri.path().rsplit('/');
    let key = segments.next().unwrap_or_default();
    let path = segments.next().unwrap_or_default();
    let path = percent_decode_str(path).decode_utf8_lossy().into_owned();
    let none = || ApiError::new(StatusCode::NOT_FOUND, "there is no row with this key");
    let _connection = share.connection().await?;
    let mut transaction = shared.pool.begin().await?;
    pool::lock_site(&mut transaction, &site).await?;
    let PathOwner { table, .. } = schema::at_path(&shared, &mut transaction, &site, &path).await?;
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
    for (&place, value) in table.key.iter().zip(values) {
        let value = percent_decode_str(value)
            .decode_utf8()
            .map_err(|_| ApiError::malformed("the key is not valid UTF-8"))?;
        object.insert(
            table.columns[place].name.clone(),
            Value::String(value.into_owned()),
        );
    }
    let object = Value::Object(object).to_string();
    let mut grid = RowBatch::new(&table, &table.key);
    canonical_key(&table, &object)
        .and_then(|key| grid.push(&object, &key, true))
        .map_err(|_| none())?;
    let encoded = grid.encode(&(0..1))?;
    let sql = statement::delete_row(&table, grid.columns(), &encoded, shared.history);
    let mut query = sqlx::query(AssertSqlSafe(sql)).bind(&*site).bind(&table.entity);
    for values in encoded {
        query = values.bind(query);
    }
    let row = query
        .fetch_one(&mut *transaction)
        .await
        .map_err(|error| match DbError::from(error) {
            // What is no value of the key's type is no row's key.
            DbError::Data { .. } => none(),
            trouble => trouble.into(),
        })?;
    let count: i64 = row.try_get(0)?;
    sqlx::query(SOURCE)
        .bind(&*site)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    if count == 0 {
        return Err(none());
    }
    Ok(Json(SuccessAnswer::DONE))
}
