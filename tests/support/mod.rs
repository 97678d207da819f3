//! The kit of the integration tests, the soak included: one private PostgreSQL a run, sites, their clouds,
//! and what goes wrong between them.
//!
//! [`site`] has the [`site::Site`] and its [`site::Cloud`], the receiver in this process; [`scenario`] puts
//! both together with a running replicator. [`process`] and [`receiver`] run the real binary instead.
//! [`baseline`] is a server that knows the baseline calls only. Faults come from [`fault_proxy`] (HTTP),
//! [`tcp_proxy`] (bytes) and [`machine`] (servers that are stopped, copied and promoted). [`workload`]
//! writes, and [`oracle`] judges.

pub(crate) mod baseline;
pub(crate) mod batches;
#[allow(dead_code, reason = "for the page")]
pub(crate) mod browser;
#[allow(dead_code, reason = "each group of tests uses its own part")]
pub(crate) mod commit_latency;
#[allow(dead_code, reason = "for the counts")]
pub(crate) mod counting_proxy;
mod cuttable_listener;
pub(crate) mod fault;
pub(crate) mod fault_proxy;
#[allow(dead_code, reason = "for the tests")]
pub(crate) mod installed;
pub(crate) mod machine;
pub(crate) mod many_tables;
pub(crate) mod oracle;
pub(crate) mod postgres;
pub(crate) mod process;
#[allow(dead_code, reason = "for the tests of setup")]
pub(crate) mod random_writes;
pub(crate) mod receiver;
#[allow(dead_code, reason = "for the files")]
pub(crate) mod s3_server;
#[allow(dead_code, reason = "each group of tests uses its own part")]
pub(crate) mod scenario;
pub(crate) mod site;
#[allow(dead_code, reason = "each group of tests uses its own part")]
pub(crate) mod sql;
#[allow(dead_code, reason = "each group of tests uses its own part")]
pub(crate) mod store;
#[allow(dead_code, reason = "each group of tests uses its own part")]
pub(crate) mod tcp_proxy;
#[allow(dead_code, reason = "each group of tests uses its own part")]
pub(crate) mod tls;
#[allow(dead_code, reason = "the soak uses all of it")]
pub(crate) mod workload;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks, also after a panic of another thread: its test fails already.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asserts that a text has each of these words.
#[allow(dead_code, reason = "for the tests")]
pub(crate) fn says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
}
