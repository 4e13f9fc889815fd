//! `nacre load`.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use registry_client::{CopyOptions, ImageName, archived, copy};

use crate::piped::Piped;
use crate::report::{Hinted, Usage};
use crate::session::Session;
use crate::transfer::Places;
use crate::trust::{self, TrustFlags};

/// Read images from a file into the store
#[derive(clap::Args)]
#[command(
    after_help = "The same as `nacre copy docker-archive:FILE:NAME NAME` (or oci-archive:) for each name in the \
    archive. It may be compressed with gzip or zstd."
)]
pub(crate) struct Args {
    /// The archive, as `nacre save`, docker and podman write it [default: standard input, if that is no terminal]
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
    #[command(flatten)]
    trust: TrustFlags,
    /// Show no progress
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// Brings the images of an archive into the store under the names that they have there, and prints these.
pub(crate) fn run(session: &Session, args: &Args) -> anyhow::Result<ExitCode> {
    let places = Places::new(session);
    let input = args.input.as_ref().filter(|file| *file != Path::new("-"));
    if input.is_none() && std::io::stdin().is_terminal() {
        return Err(Usage("there is no archive: name a file with --input, or pipe one".to_owned()).into());
    }
    let store = session.store()?;
    let piped = if input.is_none() { Some(Piped::new(&store)?) } else { None };
    piped.as_ref().map(Piped::read).transpose()?;
    let input = piped.as_ref().map(Piped::path).or(input.cloned()).unwrap_or_default();
    let found = archived(&input)?;
    if found.is_empty() {
        let file = input.display();
        let way = format!("`nacre copy docker-archive:{file} NAME` (or oci-archive:{file}) gives the only one a name");
        return Err(Hinted::error(format!("{file} holds no image with a name"), way));
    }
    let policy = args.trust.policy()?;
    for (archive, reference) in found {
        let name = reference.familiar();
        let source = trust::guard(&policy, places.source(&archive)?, &archive, false)?;
        let destination = places.destination(&ImageName::Store(name.clone()))?;
        let options = CopyOptions::default();
        let copied = copy(source.as_ref(), destination.as_ref(), &options, session.display.as_ref())?;
        let from = if piped.is_some() { "standard input".to_owned() } else { source.name() };
        session.display.copied(&from, &format!("{name} in the store"), &copied);
        session.print(&name)?;
    }
    Ok(ExitCode::SUCCESS)
}
