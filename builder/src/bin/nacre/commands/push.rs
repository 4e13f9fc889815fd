//! `nacre push`.

use std::process::ExitCode;

use builder::StorePlace;
use registry_client::{CopyOptions, Destination, PlatformChoice, Reference, RegistryDestination};

use crate::repacking::Repacking;
use crate::session::{self, Session};
use crate::transfer::at_registry;

/// Push an image of the store to a registry
#[derive(clap::Args)]
#[command(after_help = "An index is pushed with the images of all its platforms.")]
pub(crate) struct Args {
    /// The image of the store
    #[arg(value_name = "NAME")]
    name: String,
    /// Where to push it, if not to its own name
    #[arg(value_name = "DESTINATION", value_parser = at_registry)]
    destination: Option<Reference>,
    /// Blobs in flight at once
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    jobs: u16,
    /// Also what refers to the image: signatures, bills of material; what cosign keeps under tags too
    #[arg(long, conflicts_with = "compression")]
    referrers: bool,
    #[command(flatten)]
    repacking: Repacking,
    /// Show no progress
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// Pushes an image and prints its digest.
pub(crate) fn run(session: &Session, args: &Args) -> anyhow::Result<ExitCode> {
    let store = session.store()?;
    let manifest = session::lookup_own(&store, &args.name)?;
    let reference = match &args.destination {
        Some(destination) => destination.clone(),
        None => args.name.parse()?,
    };
    let source = StorePlace::existing(&store, &args.name, manifest);
    let destination = RegistryDestination::new(&session.client, &reference)?;
    let platforms = PlatformChoice::All;
    let options =
        CopyOptions { platforms, jobs: usize::from(args.jobs), referrers: args.referrers, ..CopyOptions::default() };
    let copied = args.repacking.copy(session, &source, &destination, &options)?;
    session.display.copied(&args.name, &Destination::name(&destination), &copied);
    session.print(copied.manifest.digest().as_ref())?;
    Ok(ExitCode::SUCCESS)
}
