//! What can go wrong with a build context: always the verb and the path, never the cause alone.

use std::io;
use std::path::PathBuf;

/// A pattern that nobody can match against.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("syntax error in pattern {pattern:?}")]
pub struct BadPattern {
    /// The pattern as given.
    pub pattern: String,
}

/// An ignore file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {what}")]
pub struct IgnoreError {
    /// The file's name as given.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub what: String,
}

/// A build context that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// A system call failed.
    #[error("{verb} {}: {source}", path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// The path in the context, or the context's own.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Nothing of that name, or it is excluded by the ignore file.
    #[error("find {}: not found in the build context{}", path.display(), if *is_ignored { " (excluded by the ignore file)" } else { "" })]
    NotFound {
        /// The path as asked for.
        path: PathBuf,
        /// Whether it exists, but is excluded.
        is_ignored: bool,
    },
    /// A wildcard that cannot be used.
    #[error(transparent)]
    Pattern(#[from] BadPattern),
}

impl ContextError {
    pub(super) fn io(verb: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(rustix::io::Errno) -> Self {
        let path = path.into();
        move |errno| Self::Io { verb, path, source: errno.into() }
    }
}
