//! The integration tests: one binary, one private PostgreSQL server a run.

mod demo;
mod support;
