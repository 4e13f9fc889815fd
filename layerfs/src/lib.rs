//! Layers of container images: stored, indexed and mounted as a copy-on-write union.

mod tree;

pub use tree::{Attributes, DirectoryEntry, FileKind, Time, Tree, TreeInode};
