//! The connections to PostgreSQL, and what its errors mean for a request.
//!
//! Rows are written, and tables are changed, on tokio-postgres connections ([`apply_pool`]); lists, uploads
//! and the status use sqlx's pool ([`pool`]), which also runs the migrations.

pub(crate) mod apply_pool;
pub(crate) mod apply_session;
pub(crate) mod connector;
pub(crate) mod db_error;
pub(crate) mod pool;
