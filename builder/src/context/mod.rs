//! The build context: the files of a directory that a build may see.
//!
//! Invariant: nothing outside the context's directory is ever opened, whatever links the directory holds, and what the
//! ignore file excludes does not exist. Nothing here knows the Dockerfile language.

mod directory;
mod error;
mod facts;
mod glob;
mod ignore;
mod tree;

pub use directory::{Directory, Entry, EntryKind, FileId, ignore_file_names};
pub use error::{BadPattern, ContextError, IgnoreError};
pub use glob::Glob;
pub use ignore::{Matched, Patterns};
pub use tree::ContextTree;
