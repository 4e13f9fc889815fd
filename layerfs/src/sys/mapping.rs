//! A read-only memory mapping of a file that nobody changes.
//!
//! Invariant: only files that were renamed into place complete, and are replaced rather than
//! written to, are mapped. It is no general wrapper for mmap.

use std::fs::File;
use std::io;
use std::ops::Deref;

/// The bytes of a file, paged in as they are read.
#[derive(Debug)]
pub(crate) struct Mapping(memmap2::Mmap);

impl Mapping {
    /// Maps a whole file. It must be one of ours that is only ever replaced, never changed.
    pub(crate) fn of_file(file: &File) -> io::Result<Self> {
        // SAFETY: a mapping is sound as long as the file's bytes do not change under the shared
        // slice. Index files are written under a temporary name, made read-only, renamed into place
        // and from then on only unlinked, in a directory that belongs to the user of this process;
        // no code of ours opens one for writing. Every value read from the slice is plain bytes.
        unsafe { memmap2::Mmap::map(file) }.map(Self)
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
