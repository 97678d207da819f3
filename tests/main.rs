//! The integration tests: one binary, one private PostgreSQL server a run.

mod receiver;
mod support;
