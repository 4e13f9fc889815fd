//! `nacre pull`.

use std::process::ExitCode;

use builder::StorePlace;
use registry_client::{ImageName, Reference, RegistrySource, copy};

use crate::session::Session;
use crate::transfer::{Transfer, at_registry};
use crate::trust::TrustFlags;

/// Arguments of `nacre pull`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The image, such as debian:bookworm or ghcr.io/me/app@sha256:...
    #[arg(value_name = "NAME", value_parser = at_registry)]
    name: Reference,
    #[command(flatten)]
    transfer: Transfer,
    #[command(flatten)]
    trust: TrustFlags,
}

/// Pulls an image and prints its digest.
pub(crate) fn run(session: &Session, args: &Args) -> anyhow::Result<ExitCode> {
    let store = session.store()?;
    let options = args.transfer.options();
    let source = Box::new(RegistrySource::new(&session.client, &args.name)?);
    let source = args.trust.policy()?.guard(source, &ImageName::Registry(args.name.clone()), options.is_whole())?;
    let name = args.name.familiar();
    let copied = copy(source.as_ref(), &StorePlace::new(&store, Some(&name)), &options, session.display.as_ref())?;
    session.display.copied(&source.name(), &format!("{name} in the store"), &copied);
    session.print(copied.manifest.digest().as_ref())?;
    Ok(ExitCode::SUCCESS)
}
