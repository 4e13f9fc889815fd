//! `nacre copy`.

use std::process::ExitCode;

use registry_client::{CopyOptions, ImageName};

use crate::repacking::Repacking;
use crate::session::Session;
use crate::transfer::{Places, Transfer};
use crate::trust::TrustFlags;

/// Copy an image between registries, layouts, archives and the store
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
    /// Without the GPG signatures of the image
    #[arg(long)]
    remove_signatures: bool,
    #[command(flatten)]
    transfer: Transfer,
    #[command(flatten)]
    repacking: Repacking,
    #[command(flatten)]
    trust: TrustFlags,
}

/// Copies an image and prints its digest.
pub(crate) fn run(session: &Session, args: &Args) -> anyhow::Result<ExitCode> {
    let places = Places::new(session);
    // The store keeps none: what is in it was checked when it came.
    let gpg_signatures = !args.remove_signatures && !matches!(args.destination, ImageName::Store(_));
    let options = CopyOptions { gpg_signatures, ..args.transfer.options() };
    let source = args.trust.guard(places.source(&args.source)?, &args.source, options.is_whole())?;
    let destination = places.destination(&args.destination)?;
    let copied = args.repacking.copy(session, source.as_ref(), destination.as_ref(), &options)?;
    session.display.copied(&source.name(), &destination.name(), &copied);
    session.print(copied.manifest.digest().as_ref())?;
    Ok(ExitCode::SUCCESS)
}
