//! `nacre pull`.

use std::process::ExitCode;

use builder::StorePlace;
use registry_client::Reference;

use crate::session::Session;
use crate::transfer::{Transfer, at_registry};
use crate::trust::TrustFlags;

/// Pull an image from a registry into the store
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The image, such as debian:bookworm or ghcr.io/me/app@sha256:...
    #[arg(value_name = "NAME", value_parser = at_registry)]
    name: Reference,
    #[command(flatten)]
    transfer: Transfer,
    #[command(flatten)]
    trust: TrustFlags,
    /// Show no progress
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// Pulls an image and prints its digest.
pub(crate) fn run(session: &Session, args: &Args) -> anyhow::Result<ExitCode> {
    let store = session.store()?;
    let (policy, options) = (args.trust.policy()?, args.transfer.options());
    let display = session.display.as_ref();
    let place = StorePlace::new(&store, Some(&args.name.familiar()));
    let pulled = builder::pull(&place, &session.client, &args.name, &policy, &options, display)?;
    let (from, to) = (format!("docker://{}", args.name), format!("{} in the store", args.name.familiar()));
    match &pulled.copied {
        Some(copied) => display.copied(&from, &to, copied),
        None => display.unchanged(&from, &to),
    }
    session.print(pulled.manifest.digest().as_ref())?;
    Ok(ExitCode::SUCCESS)
}
