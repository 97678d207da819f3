//! What a request is answered when it cannot be carried out. Database details go to the log, never into an answer.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::error::chain;
use crate::receiver::db::db_error::DbError;

/// The result of a request.
pub(crate) type ApiResult<T> = std::result::Result<T, ApiError>;

/// An answer other than 2xx: `{"success":false,"error":…}`, with `code` and `source` where a program acts on them.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    error: String,
    code: Option<&'static str>,
    source: Option<Value>,
}

impl ApiError {
    /// An answer with this status and these words for the caller.
    pub(crate) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self {
            status,
            error: error.into(),
            code: None,
            source: None,
        }
    }

    /// The same answer, with a code for the calling program.
    pub(crate) fn with_code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// The same answer, with what the receiver has of the source.
    pub(crate) fn with_source(mut self, source: Value) -> Self {
        self.source = Some(source);
        self
    }

    /// What it tells the caller.
    pub(crate) fn words(&self) -> &str {
        &self.error
    }

    /// The same answer, with what it is about before its words.
    pub(crate) fn about(mut self, subject: &str) -> Self {
        self.error = format!("{subject}: {}", self.error);
        self
    }

    /// 503 with `Retry-After`.
    pub(crate) fn later(error: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error)
    }

    /// 413.
    pub(crate) fn too_large(error: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, error)
    }

    /// 400.
    pub(crate) fn malformed(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    /// 404 for a path without a schema, with the remedy.
    pub(crate) fn unknown_path(path: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            format!("nothing is known at /{path}; declare it first with PUT /schema/{path}"),
        )
    }

    /// 404 for a capability that this server does not offer.
    pub(crate) fn not_offered(capability: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            format!("this server does not offer {capability}"),
        )
    }

    /// 500 for something wrong on this machine; the cause goes to the log.
    pub(crate) fn fault(operation: &str, cause: &dyn std::fmt::Display) -> Self {
        tracing::error!(operation, %cause, "a request failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot {operation}"))
    }
}

impl From<DbError> for ApiError {
    fn from(error: DbError) -> Self {
        match &error {
            DbError::Transient(cause) => {
                tracing::warn!(cause = %chain(&**cause), "the database cannot be used now");
                Self::later("the database cannot be used now")
            }
            DbError::Data { .. } => Self::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()),
            DbError::Fault(cause) => Self::fault("use the database", &chain(&**cause)),
        }
    }
}

impl From<sqlx::Error> for ApiError {
    fn from(error: sqlx::Error) -> Self {
        DbError::from(error).into()
    }
}

impl From<tokio_postgres::Error> for ApiError {
    fn from(error: tokio_postgres::Error) -> Self {
        DbError::from(error).into()
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut body = json!({"success": false, "error": self.error});
        if let Some(code) = self.code {
            body["code"] = code.into();
        }
        if let Some(source) = self.source {
            body["source"] = source;
        }
        let mut response = (self.status, Json(body)).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
