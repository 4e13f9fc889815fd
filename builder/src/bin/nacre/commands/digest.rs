//! `nacre digest`.

use std::process::ExitCode;

use registry_client::{ImageName, Platform, choose_image};

use crate::session::{self, Session};
use crate::transfer::Places;

/// Print the digest that a name leads to
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The image of the store: a name, a digest, or the beginning of one; elsewhere: docker://NAME, oci:DIR:TAG
    #[arg(value_name = "NAME")]
    name: ImageName,
    /// Of an index, the image for this platform [default: the index itself]
    #[arg(long)]
    platform: Option<Platform>,
}

/// Prints the digest of what a name leads to. A registry is asked for no more than that.
pub(crate) fn run(session: &Session, args: &Args) -> anyhow::Result<ExitCode> {
    let places = Places::new(session);
    if let ImageName::Store(name) = &args.name {
        session::lookup(places.store()?, name)?;
    }
    let source = places.source(&args.name)?;
    let digest = match &args.platform {
        Some(platform) => choose_image(source.as_ref(), platform)?.digest().clone(),
        None => source.digest()?,
    };
    session.print(digest.as_ref())?;
    Ok(ExitCode::SUCCESS)
}
