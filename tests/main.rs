//! The integration tests: one binary, one private PostgreSQL server a run.

mod cases;
mod catalogue;
mod checkpoint;
mod cli;
mod clouds;
mod contract;
mod control;
mod counts;
mod crash;
mod deliver;
mod demo;
mod docs;
mod examples;
mod faults;
mod files;
mod holes;
mod latency;
mod pipeline;
mod receiver;
mod service_manager;
mod setup;
mod sql;
mod support;
mod sync;
mod values;
mod why;
