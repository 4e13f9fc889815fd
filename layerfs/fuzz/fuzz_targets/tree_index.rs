//! Feeds `layerfs::fuzzing::tree_index`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    layerfs::fuzzing::tree_index(bytes);
});
