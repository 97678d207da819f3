//! What the integration tests stand on.

pub(crate) mod baseline;
pub(crate) mod batches;
pub(crate) mod clouds;
pub(crate) mod fault;
pub(crate) mod gate;
#[allow(dead_code, reason = "each group of tests uses its own part")]
pub(crate) mod lone;
pub(crate) mod machine;
#[allow(dead_code, reason = "for the counts")]
pub(crate) mod meter;
pub(crate) mod oracle;
pub(crate) mod postgres;
pub(crate) mod process;
#[allow(dead_code, reason = "each group of tests uses its own part")]
pub(crate) mod proxy;
pub(crate) mod receiver;
pub(crate) mod site;
#[allow(dead_code, reason = "the soak uses all of it")]
pub(crate) mod storm;
#[allow(dead_code, reason = "each group of tests uses its own part")]
pub(crate) mod tls;
mod wire;
