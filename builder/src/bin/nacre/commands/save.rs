//! `nacre save`.

use std::path::PathBuf;
use std::process::ExitCode;

use registry_client::{CopyOptions, ImageName, Reference, copy};

use crate::session::Session;
use crate::transfer::Places;

/// Arguments of `nacre save`.
#[derive(clap::Args)]
#[command(after_help = "The same as `nacre copy NAME docker-archive:FILE:NAME`, which has more ways.")]
pub(crate) struct Args {
    /// The image of the store
    #[arg(value_name = "NAME")]
    name: Reference,
    /// The archive to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
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

/// Writes an image of the store to a file, and prints its digest.
pub(crate) fn run(session: &Session, args: &Args) -> anyhow::Result<ExitCode> {
    let places = Places::new(session);
    let (file, name) = (args.output.clone(), args.name.familiar());
    let source = places.source(&ImageName::Store(name.clone()))?;
    let archive = match args.format {
        Form::DockerArchive => ImageName::DockerArchive { file, reference: Some(args.name.clone()) },
        Form::OciArchive => ImageName::OciArchive { file, tag: Some(args.name.to_string()) },
    };
    let destination = places.destination(&archive)?;
    let options = CopyOptions::default();
    let copied = copy(source.as_ref(), destination.as_ref(), &options, session.display.as_ref())?;
    session.display.copied(&name, &destination.name(), &copied);
    session.print(copied.manifest.digest().as_ref())?;
    Ok(ExitCode::SUCCESS)
}
