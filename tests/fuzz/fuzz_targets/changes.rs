//! The body of `POST /changes`. `make test` replays the corpus with some mutations; this one searches for new
//! ways in:
//!
//! ```text
//! rustup toolchain install nightly && cargo install cargo-fuzz
//! cd tests && cargo +nightly fuzz run --fuzz-dir fuzz changes
//! ```
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    let _ = cloud_sync::receiver::read_changes(body);
});
