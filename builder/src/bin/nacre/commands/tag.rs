//! `nacre tag`.

use std::process::ExitCode;

use registry_client::Reference;

use crate::session::{self, Session};

/// Give an image further names
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The image: a name, a digest, or the beginning of one
    #[arg(value_name = "SOURCE")]
    source: String,
    /// Its further names
    #[arg(required = true, value_name = "NAME")]
    names: Vec<Reference>,
}

/// Gives an image more names: all of them, or with a name that cannot be, none.
pub(crate) fn run(session: &Session, args: &Args) -> anyhow::Result<ExitCode> {
    let store = session.store()?;
    let manifest = session::lookup(&store, &args.source)?;
    for name in &args.names {
        if name.digest().is_some() {
            return Err(crate::report::Usage(format!("{}: a name to give has no digest", name.familiar())).into());
        }
    }
    for name in &args.names {
        builder::names::set(&store, &name.familiar(), &manifest)?;
    }
    Ok(ExitCode::SUCCESS)
}
