//! `nacre copy`.

use std::process::ExitCode;

use anyhow::Context;
use builder::StorePlace;
use registry_client::{ImageName, copy, open_destination, open_source};

use crate::session::{self, Session};
use crate::transfer::Transfer;

/// Arguments of `nacre copy`.
#[derive(clap::Args)]
#[command(after_help = "Places are written as skopeo writes them: docker://NAME, oci:DIR[:TAG], \
    oci-archive:FILE[:TAG], docker-archive:FILE[:NAME]; a bare name is the store.\n\n\
    Examples:\n  nacre copy docker://debian:bookworm oci:layout:debian\n  nacre copy app docker-archive:app.tar:app:latest")]
pub(crate) struct Args {
    /// Where the image is
    #[arg(value_name = "SOURCE")]
    source: ImageName,
    /// Where it goes
    #[arg(value_name = "DESTINATION")]
    destination: ImageName,
    #[command(flatten)]
    transfer: Transfer,
}

/// Copies an image and prints its digest.
pub(crate) fn run(session: &Session, args: &Args) -> anyhow::Result<ExitCode> {
    let store = session.store()?;
    let source = match (open_source(&session.client, &args.source)?, &args.source) {
        (None, ImageName::Store(name)) => Box::new(StorePlace::existing(&store, name, session::lookup(&store, name)?)),
        (opened, _) => opened.context("this place cannot be copied from")?,
    };
    let destination = match (open_destination(&session.client, &args.destination)?, &args.destination) {
        (None, ImageName::Store(name)) => Box::new(StorePlace::new(&store, Some(name))),
        (opened, _) => opened.context("this place cannot be copied to")?,
    };
    let options = args.transfer.options();
    let copied = copy(source.as_ref(), destination.as_ref(), &options, session.display.as_ref())?;
    session.print(copied.manifest.digest().as_ref())?;
    Ok(ExitCode::SUCCESS)
}
