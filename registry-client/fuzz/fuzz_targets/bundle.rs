//! Feeds `registry_client::fuzzing::bundle`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    registry_client::fuzzing::bundle(bytes);
});
