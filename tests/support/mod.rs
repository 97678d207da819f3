//! What the integration tests stand on.

pub(crate) mod baseline;
mod fault;
pub(crate) mod postgres;
mod wire;
