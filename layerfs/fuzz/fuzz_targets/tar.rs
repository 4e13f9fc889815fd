//! Feeds `layerfs::fuzzing::tar`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    layerfs::fuzzing::tar(bytes);
});
