//! Feeds `registry_client::fuzzing::content_range`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    registry_client::fuzzing::content_range(bytes);
});
