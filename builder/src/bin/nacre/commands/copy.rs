//! `nacre copy`.

use std::process::ExitCode;

use registry_client::{CopyOptions, ImageName};

use crate::repacking::Repacking;
use crate::session::Session;
use crate::transfer::{Places, Transfer};

/// Arguments of `nacre copy`.
#[derive(clap::Args)]
#[command(after_help = "Places are written as skopeo writes them: docker://NAME, oci:DIR[:TAG], \
    dir:DIR, oci-archive:FILE[:TAG], docker-archive:FILE[:NAME]; a bare name is the store. Archives that are read may be \
    compressed with gzip or zstd.\n\n\
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
    /// Also what refers to the image: signatures, bills of material
    #[arg(long, conflicts_with = "compression")]
    referrers: bool,
    #[command(flatten)]
    repacking: Repacking,
}

/// Copies an image and prints its digest.
pub(crate) fn run(session: &Session, args: &Args) -> anyhow::Result<ExitCode> {
    let places = Places::new(session);
    let source = places.source(&args.source)?;
    let destination = places.destination(&args.destination)?;
    let options = CopyOptions { referrers: args.referrers, ..args.transfer.options() };
    let copied = args.repacking.copy(session, source.as_ref(), destination.as_ref(), &options)?;
    session.display.copied(&source.name(), &destination.name(), &copied);
    session.print(copied.manifest.digest().as_ref())?;
    Ok(ExitCode::SUCCESS)
}
