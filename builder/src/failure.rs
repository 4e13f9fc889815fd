//! What is done with a RUN step whose command failed, before its state is thrown away.

use std::fmt;

use crate::error::BuildError;
use crate::sandbox::{self, Process, Step, Streams};

/// Is told of a failed RUN step while its mount, with all changes, is still there. One at a time: others wait.
pub trait OnFailure: Send + Sync {
    /// Returns when the state is not needed any more; the build then fails with the step's error.
    fn step_failed(&self, failed: &FailedStep<'_>);
}

/// A RUN step whose command failed.
pub struct FailedStep<'a> {
    /// What the build will fail with.
    pub error: &'a BuildError,
    pub(crate) process: &'a Process,
    pub(crate) shell: String,
}

impl FailedStep<'_> {
    /// The program that runs the shell form of instructions: `/bin/sh`, or what SHELL says.
    #[must_use]
    pub fn shell(&self) -> &str {
        &self.shell
    }

    /// Starts that program exactly where the step failed: on the same mount, with the same environment, user,
    /// directory, mounts, network and limits. Standard input is a pseudo terminal, of the type `term` if one is named.
    ///
    /// # Errors
    /// If the sandbox cannot be started.
    pub fn start_shell(&self, term: Option<&str>, streams: Streams<'_>) -> Result<Step, sandbox::Error> {
        let mut process = self.process.clone();
        process.argv = vec![self.shell.clone()];
        process.terminal = true;
        if let Some(term) = term.filter(|_| !process.env.iter().any(|entry| entry.starts_with("TERM="))) {
            process.env.push(format!("TERM={term}"));
        }
        sandbox::run(&process, streams)
    }
}

impl fmt::Debug for FailedStep<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the process: its environment may hold secrets.
        f.debug_struct("FailedStep").field("error", &self.error).finish_non_exhaustive()
    }
}
