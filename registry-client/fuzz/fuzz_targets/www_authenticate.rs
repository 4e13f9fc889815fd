//! Feeds `registry_client::fuzzing::www_authenticate`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    registry_client::fuzzing::www_authenticate(bytes);
});
