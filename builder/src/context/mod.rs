//! The build context: the files that a build may see, in a directory or fetched from elsewhere.
//!
//! Invariant: nothing outside the context's directory is ever opened, whatever links the directory holds, and what the
//! ignore file excludes does not exist. Nothing here knows the Dockerfile language.

mod directory;
mod error;
mod facts;
mod fetched;
mod git;
mod glob;
mod ignore;
mod tree;

pub use directory::{Directory, Entry, EntryKind, Identity, ignore_file_names};
pub use error::{BadPattern, ContextError, IgnoreError};
pub(crate) use fetched::shown;
pub use fetched::{FetchAccess, Fetched, Fetcher, MOST_TEXT_BYTES, RemotePlace, is_archive};
pub(crate) use git::without_passwords;
pub use git::{GitError, GitReference, GitUrlError};
pub use glob::Glob;
pub(crate) use ignore::clean as clean_path;
pub use ignore::{Matched, Patterns};
pub use tree::ContextTree;
