//! `nacre unshare`: looks at the files of an ordinary user's store as a build sees them.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::Context;

/// Run a command where builds run: in the user namespace, as its root
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Map only the caller, without subordinate ids
    #[arg(long)]
    pub(crate) single_id: bool,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Becomes the command.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (program, arguments) = args.command.split_first().context("no command is given")?;
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}
