//! `GET /sync-status` and `GET /healthz`.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde_json::{Map, Value, json};
use sqlx::Row;

use crate::receiver::Shared;
use crate::receiver::http::api_error::{ApiError, ApiResult};
use crate::receiver::http::auth::AuthenticatedSite;

const SOURCES: &str = include_str!("../../../sql/receiver/sources.sql");

/// `GET /sync-status`: the capabilities, the receiver's identity, and the newest batch of each source of the
/// site.
pub(crate) async fn sync_status(
    State(shared): State<Arc<Shared>>,
    AuthenticatedSite(site, _): AuthenticatedSite,
) -> ApiResult<Json<Value>> {
    let rows = sqlx::query(SOURCES).bind(&*site).fetch_all(&shared.pool).await?;
    let mut sources = Map::new();
    let (mut receiver, mut last_sync) = (Value::Null, Value::Null);
    for row in rows {
        receiver = Value::String(row.try_get("receiver")?);
        last_sync = row.try_get::<Option<String>, _>("last_sync")?.into();
        let id: Option<String> = row.try_get("source_id")?;
        if let Some(id) = id.filter(|id| !id.is_empty()) {
            let number = |column| row.try_get::<i64, _>(column);
            let newest = json!({
                "epoch": number("epoch")?,
                "term": number("term")?,
                "batch": number("batch")?,
                "database": row.try_get::<Option<String>, _>("database")?,
            });
            sources.insert(id, newest);
        }
    }
    Ok(Json(json!({
        "status": "ok",
        "message": "cloud-sync receiver",
        "last_sync": last_sync,
        "capabilities": shared.capabilities,
        "site": &*site,
        "receiver": receiver,
        "sources": sources,
    })))
}

/// `GET /healthz`: whether the database answers. It asks for no key.
pub(crate) async fn healthz(State(shared): State<Arc<Shared>>) -> ApiResult<Json<Value>> {
    let asked = sqlx::query("select 1").execute(&shared.pool);
    match tokio::time::timeout(Duration::from_secs(3), asked).await {
        Ok(done) => done?,
        Err(_) => return Err(ApiError::later("the database does not answer")),
    };
    Ok(Json(json!({"success": true, "status": "ok"})))
}
