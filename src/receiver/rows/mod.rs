//! Rows on their way into a table, and the baseline's routes that list, upsert and delete rows.

pub(crate) mod array_params;
pub(crate) mod copy;
pub(crate) mod copy_format;
pub(crate) mod route;
pub(crate) mod row_batch;
pub(crate) mod row_version;
pub(crate) mod statement;
