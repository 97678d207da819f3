//! Every fault that a site meets, each ended by the oracle's check: nothing lost, each row's order kept, the
//! receiver equal to the source, the checkpoint never ahead of the cloud, the outbox trimmed only below what
//! is accepted.

pub(crate) mod attack;
mod cloud;
mod ddl;
mod fuzz;
mod growth;
mod local;
mod poison;
mod schedules;
mod source;
