//! The connections to PostgreSQL, and what its errors mean for a request.

pub(crate) mod apply_pool;
pub(crate) mod pool;
