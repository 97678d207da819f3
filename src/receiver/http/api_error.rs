//! The answer to a request that cannot be carried out.
//!
//! Always holds: the caller reads what it can act on, and nothing about this machine. What went wrong here is
//! the error's source; it is logged once, when the answer is made.

use std::error::Error as StdError;
use std::sync::Arc;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::error::chain;
use crate::receiver::db::db_error::DbError;
use crate::wire::{BatchId, Capability, ErrorBody, ErrorCode, HeaderError, LineError};

/// The result of a request.
pub(crate) type ApiResult<T> = std::result::Result<T, ApiError>;

/// An answer other than 2xx: `{"success":false,"error":…}`, with `code` and `source` if a program acts on
/// them.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub(crate) struct ApiError {
    status: StatusCode,
    message: String,
    code: Option<ErrorCode>,
    /// What the receiver has of the source: the answer's `source`.
    source_state: Option<Option<BatchId>>,
    /// What went wrong on this machine, for the log.
    #[source]
    cause: Option<Arc<dyn StdError + Send + Sync>>,
}

impl ApiError {
    /// An answer with this status and this message for the caller.
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            code: None,
            source_state: None,
            cause: None,
        }
    }

    /// The same answer, with a code for the calling program.
    pub(crate) fn with_code(mut self, code: ErrorCode) -> Self {
        self.code = Some(code);
        self
    }

    /// The same answer, with what the receiver has of the source.
    pub(crate) fn with_source_state(mut self, state: Option<BatchId>) -> Self {
        self.source_state = Some(state);
        self
    }

    /// The same answer, with what it is about before its message.
    pub(crate) fn about(mut self, subject: &str) -> Self {
        self.message = format!("{subject}: {}", self.message);
        self
    }

    /// The same answer as a 503: the caller shall ask again.
    pub(crate) fn into_later(mut self) -> Self {
        self.status = StatusCode::SERVICE_UNAVAILABLE;
        self
    }

    /// 503 with `Retry-After`.
    pub(crate) fn later(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    /// 413.
    pub(crate) fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    }

    /// 400.
    pub(crate) fn malformed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 404 for a path without a schema, with the remedy.
    pub(crate) fn unknown_path(path: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            format!("nothing is known at /{path}; declare it first with PUT /schema/{path}"),
        )
    }

    /// 404 for a capability that this server does not offer.
    pub(crate) fn not_offered(capability: Capability) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            format!("this server does not offer {}", capability.name()),
        )
    }

    /// 500 for something wrong on this machine.
    pub(crate) fn fault(operation: &str, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot {operation}")).caused_by(cause)
    }

    /// The same answer, with what went wrong on this machine.
    pub(crate) fn caused_by(mut self, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.cause = Some(Arc::from(cause.into()));
        self
    }
}

impl From<DbError> for ApiError {
    fn from(error: DbError) -> Self {
        let message = error.to_string();
        match error {
            DbError::Transient(cause) => Self::later(message).caused_by(cause),
            DbError::Data { .. } => Self::new(StatusCode::UNPROCESSABLE_ENTITY, message),
            DbError::Fault(cause) => Self::fault("use the database", cause),
        }
    }
}

impl From<HeaderError> for ApiError {
    fn from(error: HeaderError) -> Self {
        Self::malformed(error.to_string())
    }
}

impl From<LineError> for ApiError {
    fn from(error: LineError) -> Self {
        match error {
            LineError::TooMany => Self::too_large(error.to_string()),
            LineError::NotAChange(cause) => Self::malformed(cause),
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
        if let Some(cause) = &self.cause {
            let cause = chain(&**cause);
            if self.status.is_server_error() && self.status != StatusCode::SERVICE_UNAVAILABLE {
                tracing::error!(%cause, "a request failed: {self}");
            } else {
                tracing::warn!(%cause, "a request failed for now: {self}");
            }
        }
        let body = ErrorBody {
            code: self.code,
            error: self.message,
            source: self.source_state,
            success: false,
        };
        let mut response = (self.status, Json(body)).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
