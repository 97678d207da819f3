//! The body of `POST /upload`, whose parts are divided by `X-BOUNDARY`. See `changes.rs` for how to run it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let body = bytes::Bytes::copy_from_slice(body);
    let read = cloud_sync::receiver::read_parts("multipart/form-data; boundary=X-BOUNDARY", body);
    for (name, _) in runtime.block_on(read).unwrap_or_default() {
        assert!(!name.contains(['/', '\\', '\0']) && !name.starts_with('.') && name.len() <= 100);
    }
});
