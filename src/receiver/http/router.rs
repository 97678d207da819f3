//! The routes of the receiver: which function answers which path.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::routing::{delete, get, post, put};
use tower_http::compression::CompressionLayer;
use tower_http::timeout::RequestBodyTimeoutLayer;

use super::api_error::ApiError;
use super::status;
use crate::receiver::files::{media, tus, upload};
use crate::receiver::rows::route as rows;
use crate::receiver::tables::schema;
use crate::receiver::{Shared, changes};
use crate::wire::paths;

/// A body of which nothing arrives for this long is given up.
const BODY_PAUSE: Duration = Duration::from_secs(60);

/// All routes.
pub(crate) fn router(shared: Arc<Shared>) -> Router {
    let of_rows = get(rows::list).layer(CompressionLayer::new()).post(rows::post);
    let api = Router::new()
        .route(&format!("/{}", paths::SYNC_STATUS), get(status::sync_status))
        .route(&format!("/{}", paths::CHANGES), post(changes::route::receive))
        .route(&format!("/{}/{{path}}", paths::SCHEMA), put(schema::put))
        .route(&format!("/{}/{{path}}", paths::BULK), post(rows::bulk))
        .route(
            &format!("/{}/{{directory}}", paths::UPLOAD),
            post(upload::receive).head(upload::find),
        )
        .merge(tus::routes::routes())
        .route("/{path}", of_rows)
        .route("/{path}/", delete(rows::delete))
        .route("/{path}/{key}", delete(rows::delete));
    Router::new()
        .nest("/api", api)
        .route("/healthz", get(status::healthz))
        .route("/media/{site}/{directory}/{name}", get(media::serve))
        .fallback(async || ApiError::new(StatusCode::NOT_FOUND, "there is nothing here"))
        .method_not_allowed_fallback(async || {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this method is not for this path")
        })
        .layer(DefaultBodyLimit::disable())
        .layer(RequestBodyTimeoutLayer::new(BODY_PAUSE))
        .with_state(shared)
}
