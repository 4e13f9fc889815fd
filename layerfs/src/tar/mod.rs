//! Layer tars: a stream of bytes to entries ([`Reader`]) and back ([`Writer`]).
//!
//! Invariant: an [`Entry`] holds only validated names: relative, without `.` and `..`, and whiteout
//! marks are kinds rather than names. What entries mean for a tree is the business of `index`.
//!
//! ```text
//! path.rs    names as they come in tars -> EntryPath
//! entry.rs   Entry and EntryKind, whiteout names
//! header.rs  the 512-byte header block, its numbers and its sum
//! pax.rs     extended headers
//! fields.rs  the fields of one entry, from its header and what extends it
//! sparse.rs  maps of sparse files
//! reader.rs, writer.rs, error.rs
//! ```

mod entry;
mod error;
mod fields;
mod header;
mod path;
mod pax;
mod reader;
mod sparse;
mod writer;

#[cfg(any(test, fuzzing))]
pub(crate) use entry::Mark;
pub(crate) use entry::OPAQUE_NAME;
pub use entry::{Entry, EntryKind, WHITEOUT_PREFIX, Xattr};
pub use error::{EntryFault, TarError};
pub use path::{EntryPath, PathFault};
pub(crate) use reader::{Extent, Located, TarReader};
pub use writer::TarWriter;
