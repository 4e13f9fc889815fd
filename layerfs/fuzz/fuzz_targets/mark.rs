//! Feeds `layerfs::fuzzing::mark`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    layerfs::fuzzing::mark(bytes);
});
