//! Feeds `layerfs::fuzzing::layer_index`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    layerfs::fuzzing::layer_index(bytes);
});
