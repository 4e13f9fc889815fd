//! `nacre completions`.

use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Cli;
use crate::session::print;

/// Print a script that completes command lines
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  nacre completions bash > /etc/bash_completion.d/nacre\n  \
    nacre completions zsh > ~/.zfunc/_nacre\n  nacre completions fish > ~/.config/fish/completions/nacre.fish")]
pub(crate) struct Args {
    /// For which shell
    #[arg(value_enum, value_name = "SHELL")]
    shell: Shell,
}

/// Prints the script that completes command lines of this program.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "nacre", &mut script);
    print(String::from_utf8_lossy(&script).trim_end())?;
    Ok(ExitCode::SUCCESS)
}
