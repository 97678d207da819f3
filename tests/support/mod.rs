//! What the integration tests stand on.

pub(crate) mod baseline;
mod fault;
pub(crate) mod oracle;
pub(crate) mod postgres;
pub(crate) mod process;
pub(crate) mod receiver;
pub(crate) mod site;
mod wire;
