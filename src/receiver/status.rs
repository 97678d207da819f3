//! `GET /sync-status` and `GET /healthz`.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde_json::{Map, Value, json};
use sqlx::Row;

use super::Shared;
use super::answer::{Answer, Refusal};
use super::auth::Site;

const SOURCES: &str = include_str!("../../sql/receiver/sources.sql");

/// `GET /sync-status`: the capabilities, and how far each source of the site has come.
pub(super) async fn sync_status(State(shared): State<Arc<Shared>>, Site(site): Site) -> Answer<Json<Value>> {
    let rows = sqlx::query(SOURCES).bind(&*site).fetch_all(&shared.pool).await?;
    let mut sources = Map::new();
    let mut last_sync = Value::Null;
    for row in rows {
        last_sync = Value::String(row.try_get("last_sync")?);
        let id: String = row.try_get("source_id")?;
        if !id.is_empty() {
            let epoch: i64 = row.try_get("epoch")?;
            let position: i64 = row.try_get("position")?;
            sources.insert(id, json!({"epoch": epoch, "position": position}));
        }
    }
    Ok(Json(json!({
        "status": "ok",
        "message": "cloud-sync receiver",
        "last_sync": last_sync,
        "capabilities": shared.capabilities,
        "site": &*site,
        "sources": sources,
    })))
}

/// `GET /healthz`: whether the database answers. It asks for no key.
pub(super) async fn healthz(State(shared): State<Arc<Shared>>) -> Answer<Json<Value>> {
    let asked = sqlx::query("select 1").execute(&shared.pool);
    match tokio::time::timeout(Duration::from_secs(3), asked).await {
        Ok(done) => done?,
        Err(_) => return Err(Refusal::later("the database does not answer")),
    };
    Ok(Json(json!({"success": true, "status": "ok"})))
}
