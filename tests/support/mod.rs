//! What the integration tests stand on.

pub(crate) mod baseline;
mod fault;
mod wire;
