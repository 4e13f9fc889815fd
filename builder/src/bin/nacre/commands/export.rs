//! `nacre export`.

use std::io::{BufWriter, ErrorKind, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;

use crate::report::{OutputClosed, Usage};
use crate::session::{self, Session};

/// Write the files of an image as one tar
#[derive(clap::Args)]
#[command(
    after_help = "The tar has the files of all layers as a container would see them, sorted, and is the same each \
    time. `nacre save` writes the image itself, with its layers and configuration."
)]
pub(crate) struct Args {
    /// The image of the store
    #[arg(value_name = "NAME")]
    name: String,
    /// The tar to write [default: standard output, if that is no terminal]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Writes the files of an image as one tar.
pub(crate) fn run(session: &Session, args: &Args) -> anyhow::Result<ExitCode> {
    let output = args.output.as_ref().filter(|file| *file != Path::new("-"));
    if output.is_none() && std::io::stdout().is_terminal() {
        return Err(Usage("a tar would go to the terminal: name a file with --output, or pipe it".to_owned()).into());
    }
    let store = session.store()?;
    let image = session::open_image(&store, &args.name)?;
    let Some(path) = output else { return write_to_standard_output(&store, &image) };
    builder::write_whole(path, |writer| builder::write_files(&store, &image, writer))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn write_to_standard_output(store: &layerfs::Store, image: &builder::StoredImage) -> anyhow::Result<ExitCode> {
    const BUFFER_BYTES: usize = 1 << 20;
    let mut writer = BufWriter::with_capacity(BUFFER_BYTES, std::io::stdout().lock());
    match builder::write_files(store, image, &mut writer).and_then(|()| writer.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(OutputClosed.into()),
        written => written.map(|()| ExitCode::SUCCESS).context("cannot write to standard output"),
    }
}
