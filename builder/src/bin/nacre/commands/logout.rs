//! `nacre logout`.

use std::process::ExitCode;

use crate::report;
use crate::session::{Session, login_file};

/// Forget the credentials for a registry
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The registry [default: docker.io]
    #[arg(value_name = "REGISTRY")]
    registry: Option<String>,
}

/// Forgets a credential. As with docker, none to forget is no failure; other tools' files are theirs.
pub(crate) fn run(session: &Session, args: &Args) -> anyhow::Result<ExitCode> {
    let registry = super::login::registry(args.registry.as_deref())?;
    let was_known = session.credentials.erase(&login_file()?, &registry)?;
    session.print(&if was_known {
        format!("logged out of {registry}")
    } else {
        format!("not logged in to {registry}")
    })?;
    for path in session.credentials.files_with(&registry)? {
        report::show(&format!("warning: {} still holds credentials for {registry}\n", path.display()));
    }
    Ok(ExitCode::SUCCESS)
}
