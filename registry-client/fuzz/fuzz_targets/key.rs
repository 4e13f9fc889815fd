//! Feeds `registry_client::fuzzing::key`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    registry_client::fuzzing::key(bytes);
});
