//! `nacre pull`.

use std::process::ExitCode;

use builder::StorePlace;
use registry_client::{CopyOptions, Platform, PlatformChoice, Reference, RegistrySource, copy};

use crate::session::Session;

/// Arguments of `nacre pull`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The image, such as debian:bookworm or ghcr.io/me/app@sha256:...
    #[arg(value_name = "NAME")]
    name: Reference,
    /// Which image of an index [default: this machine's]
    #[arg(long, conflicts_with = "all_platforms")]
    platform: Option<Platform>,
    /// The index with the images of all platforms
    #[arg(long)]
    all_platforms: bool,
    /// Blobs in flight at once
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    jobs: u16,
}

/// Pulls an image and prints its digest.
pub(crate) fn run(session: &Session, args: &Args) -> anyhow::Result<ExitCode> {
    let store = session.store()?;
    let source = RegistrySource::new(&session.client, &args.name)?;
    let platforms = match (&args.platform, args.all_platforms) {
        (_, true) => PlatformChoice::All,
        (Some(platform), false) => PlatformChoice::One(platform.clone()),
        (None, false) => PlatformChoice::One(Platform::host()),
    };
    let options = CopyOptions { platforms, jobs: usize::from(args.jobs) };
    let name = args.name.familiar();
    let copied = copy(&source, &StorePlace::new(&store, Some(&name)), &options, session.display.as_ref())?;
    session.print(copied.manifest.digest().as_ref())?;
    Ok(ExitCode::SUCCESS)
}
