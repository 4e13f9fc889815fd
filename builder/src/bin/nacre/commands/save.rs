//! `nacre save`.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use registry_client::{CopyOptions, ImageName, Reference, copy};

use crate::piped::Piped;
use crate::report::Usage;
use crate::session::Session;
use crate::transfer::Places;

/// Write an image of the store to a file
#[derive(clap::Args)]
#[command(after_help = "The same as `nacre copy NAME docker-archive:FILE:NAME`, which has more ways.")]
pub(crate) struct Args {
    /// The image of the store
    #[arg(value_name = "NAME")]
    name: Reference,
    /// The archive to write [default: standard output, if that is no terminal]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// What to write
    #[arg(long, value_enum, default_value = "docker-archive", value_name = "FORMAT")]
    format: Form,
    /// Show no progress
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// What podman calls so.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Form {
    /// As docker writes it.
    DockerArchive,
    /// An OCI layout in a tar.
    OciArchive,
}

/// Writes an image of the store to a file, and prints its digest; or to standard output.
pub(crate) fn run(session: &Session, args: &Args) -> anyhow::Result<ExitCode> {
    let places = Places::new(session);
    let output = args.output.as_ref().filter(|file| *file != Path::new("-"));
    if output.is_none() && std::io::stdout().is_terminal() {
        return Err(
            Usage("an archive would go to the terminal: name a file with --output, or pipe it".to_owned()).into()
        );
    }
    let store = session.store()?;
    let piped = if output.is_none() { Some(Piped::new(&store)?) } else { None };
    let file = piped.as_ref().map(Piped::path).or(output.cloned()).unwrap_or_default();
    let name = args.name.familiar();
    let source = places.source(&ImageName::Store(name.clone()))?;
    let archive = match args.format {
        Form::DockerArchive => ImageName::DockerArchive { file, reference: Some(args.name.clone()) },
        Form::OciArchive => ImageName::OciArchive { file, tag: Some(args.name.to_string()) },
    };
    let destination = places.destination(&archive)?;
    let options = CopyOptions::default();
    let copied = copy(source.as_ref(), destination.as_ref(), &options, session.display.as_ref())?;
    // An archive is there as a whole when its destination is done with.
    if let Some(piped) = piped {
        return piped.write().map(|()| ExitCode::SUCCESS);
    }
    session.display.copied(&name, &destination.name(), &copied);
    session.print(copied.manifest.digest().as_ref())?;
    Ok(ExitCode::SUCCESS)
}
