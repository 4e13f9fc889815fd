//! What ADD takes a word for.

use super::fetched::RemotePlace;
use super::git::{GitReference, GitUrlError};

/// What a source of ADD is, by its text alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SourceKind {
    /// A path of the build context.
    Local,
    /// A file at a web server.
    Web,
    /// A git repository.
    Git(GitReference),
}

impl SourceKind {
    /// As BuildKit tells them apart. `github.com/...` is a path here.
    pub(crate) fn of(text: &str) -> Result<Self, GitUrlError> {
        Ok(match RemotePlace::parse(text)? {
            Some(RemotePlace::Git(reference)) if !reference.is_like_a_path => Self::Git(reference),
            Some(RemotePlace::Web(_)) => Self::Web,
            _ => Self::Local,
        })
    }
}
