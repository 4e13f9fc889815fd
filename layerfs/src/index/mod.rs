//! Indexes: what a layer, or a merged stack of layers, holds, in one position-independent file.
//!
//! Invariant: every access to an index file is bounds-checked; a damaged one gives [`IndexError`] or
//! `EIO`, never a panic, a read out of range or an endless loop. An index is derived from layer tars
//! and can be made again at any time; it never holds file content.
//!
//! ```text
//! header   magic, version, what it indexes, (offset, length) of the sections, length of the file
//! layers   32-byte diff ids of the tars that hold the content, lowest first
//! inodes   64-byte records; number 1 is the root; numbered breadth first in byte order
//! entries  12-byte records (name, inode, kind); a directory is one slice, sorted by name
//! names    bytes of names and of symbolic link targets
//! xattrs   blobs, each stored once
//! extents  24-byte records (offset, size, position in the tar) of files with holes
//! ```
//!
//! format.rs says how records are written, file.rs reads them, layer.rs builds the index of one tar,
//! merge.rs that of a stack, tree.rs serves one as a [`Tree`](crate::Tree).

mod file;
mod format;
mod layer;
mod merge;
mod tree;

pub use file::IndexError;
pub(crate) use file::IndexFile;
pub(crate) use format::{IndexBytes, Subject};
pub(crate) use layer::{LayerBuilder, index_tar};
pub(crate) use merge::merge;
pub use tree::TreeIndex;
