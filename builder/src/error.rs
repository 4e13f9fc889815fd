//! Why a build failed: what happened, at which place of the Dockerfile, and whose fault it is.

use std::path::PathBuf;

use registry_client::in_full;

use crate::causes::full_disk;
use crate::dockerfile::{DockerfileError, Source, Span};

/// A failed build.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The Dockerfile is wrong, or an instruction cannot be carried out.
    #[error(transparent)]
    Dockerfile(#[from] DockerfileError),
    /// The command of a RUN step ended with an error.
    #[error("{at}")]
    Step {
        /// Where, and in words what.
        at: Box<DockerfileError>,
        /// The exit code; 128 + n for signal n.
        exit_code: i32,
        /// The last lines that it wrote.
        tail: Vec<String>,
    },
    /// An image could not be had from, or given to, a registry, layout or archive.
    #[error("{}{source}", at.as_ref().map(|at| format!("{at}: ")).unwrap_or_default())]
    Image {
        /// The instruction that wanted it.
        at: Option<Box<DockerfileError>>,
        /// Why.
        source: registry_client::Error,
    },
    /// A git repository could not be had.
    #[error("{}{source}", at.as_ref().map(|at| format!("{at}: ")).unwrap_or_default())]
    Git {
        /// The instruction that wanted it.
        at: Option<Box<DockerfileError>>,
        /// Why.
        source: GitError,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] layerfs::StoreError),
    /// A layer could not be made.
    #[error(transparent)]
    Commit(#[from] crate::commit::CommitError),
    /// What was asked for makes no sense: a flag, a name, a file that is not there.
    #[error("{0}")]
    Request(String),
    /// It ended because another part of the build failed, whose error this is not.
    #[error("stopped because another part of the build failed")]
    Stopped,
    /// A file outside of the store could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// The verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Why git did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// There is no git.
    #[error("git was not found, and is needed for git sources")]
    Missing,
    /// The process could not be run.
    #[error("cannot run git {verb}: {source}")]
    Run {
        /// The subcommand.
        verb: String,
        /// Why.
        source: std::io::Error,
    },
    /// git said no.
    #[error("git {verb} failed for {repository}: {said}")]
    Failed {
        /// The subcommand.
        verb: String,
        /// The repository, without secrets.
        repository: String,
        /// The end of what it wrote.
        said: String,
    },
    /// The repository is not as it was said to be.
    #[error("{repository}: {what}")]
    Repository {
        /// The repository, without secrets.
        repository: String,
        /// What is wrong.
        what: String,
    },
}

impl GitError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Missing => Some("install the package git, or give an archive of the repository instead"),
            Self::Failed { said, .. }
                if said.contains("Authentication failed") || said.contains("could not read Username") =>
            {
                Some("give a token: --secret id=GIT_AUTH_TOKEN,env=VARIABLE")
            }
            _ => None,
        }
    }

    /// Whether the other side, or the way to it, is at fault.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        matches!(self, Self::Failed { .. })
    }
}

impl From<GitError> for BuildError {
    fn from(source: GitError) -> Self {
        Self::Git { at: None, source }
    }
}

impl BuildError {
    /// Makes errors about one file: `map_err(BuildError::file("read", path))`.
    pub fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}

/// An instruction's site in its Dockerfile: turns what went wrong there into an error.
#[derive(Clone)]
pub(crate) struct Site {
    pub(crate) source: Source,
    pub(crate) span: Span,
}

impl Site {
    /// The same file, at a part of the instruction.
    pub(crate) fn at(&self, span: Span) -> Self {
        Self { source: self.source.clone(), span }
    }

    /// `message` at this place.
    pub(crate) fn error(&self, message: impl Into<String>) -> DockerfileError {
        self.source.error(self.span, message)
    }

    /// Adds this place to an error that has none yet.
    pub(crate) fn of(&self) -> impl FnOnce(BuildError) -> BuildError {
        let place = Box::new(self.error(""));
        move |error| match error {
            BuildError::Image { at: None, source } => BuildError::Image { at: Some(place), source },
            BuildError::Git { at: None, source } => BuildError::Git { at: Some(place), source },
            BuildError::Request(message) => DockerfileError { message, ..*place }.into(),
            other => other,
        }
    }

    /// Adds this place to any error, and what there is to do where the disk is full.
    pub(crate) fn because<E: Into<Box<dyn std::error::Error>>>(&self) -> impl FnOnce(E) -> BuildError {
        let site = self.clone();
        move |error| {
            let error = error.into();
            let hint = full_disk(&*error).map(str::to_owned);
            DockerfileError { hint, ..site.error(in_full(&*error)) }.into()
        }
    }
}
