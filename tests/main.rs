//! The integration tests: one binary, one private PostgreSQL server a run.

mod cli;
mod control;
mod counts;
mod crash;
mod deliver;
mod demo;
mod faults;
mod files;
mod latency;
mod packed;
mod pipeline;
mod receiver;
mod sql;
mod support;
mod sync;
