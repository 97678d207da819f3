//! `GET /sync-status` and `GET /healthz`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};
use sqlx::Row;

use crate::receiver::Shared;
use crate::receiver::http::api_error::{ApiError, ApiResult};
use crate::receiver::http::auth::AuthenticatedSite;
use crate::wire::{Capability, SourceProgress, SourcesMember, SyncStatusAnswer};

const SOURCES: &str = include_str!("../../../sql/receiver/sources.sql");

/// `GET /sync-status`: the capabilities, the receiver's identity, and the newest batch of each source of the
/// site.
pub(crate) async fn sync_status(
    State(shared): State<Arc<Shared>>,
    AuthenticatedSite(site, _): AuthenticatedSite,
) -> ApiResult<Json<SyncStatusAnswer>> {
    let rows = sqlx::query(SOURCES).bind(&*site).fetch_all(&shared.pool).await?;
    let mut sources = BTreeMap::new();
    let (mut receiver, mut last_sync) = (None, None);
    for row in rows {
        receiver = Some(row.try_get("receiver")?);
        last_sync = row.try_get("last_sync")?;
        let id: Option<String> = row.try_get("source_id")?;
        if let Some(id) = id.filter(|id| !id.is_empty()) {
            let newest = SourceProgress {
                batch: row.try_get("batch")?,
                database: row.try_get("database")?,
                epoch: row.try_get("epoch")?,
                term: row.try_get("term")?,
            };
            sources.insert(id, newest);
        }
    }
    let capabilities = shared.capabilities.iter().copied().map(Capability::name);
    Ok(Json(SyncStatusAnswer {
        capabilities: Some(capabilities.map(str::to_owned).collect()),
        data: None,
        last_sync,
        message: Some("cloud-sync receiver".to_owned()),
        receiver,
        site: Some(site.to_string()),
        sources: Some(SourcesMember::Known(sources)),
        status: Some("ok".to_owned()),
    }))
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
