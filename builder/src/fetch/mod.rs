//! Files from elsewhere: git repositories, archives, files of the web.
//!
//! Invariant: what was fetched is a layer of the store or a blob, so that it is read, kept and collected as all others.
//! Nothing here knows the Dockerfile language.

mod fetched;
mod git;
mod source;

pub(crate) use fetched::shown;
pub use fetched::{FetchAccess, Fetched, Fetcher, MOST_TEXT_BYTES, RemotePlace, is_archive};
pub(crate) use git::without_passwords;
pub use git::{GitReference, GitUrlError};
pub(crate) use source::SourceKind;
