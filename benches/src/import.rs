//! A gzip layer comes in: bare inflating, nacre's import, and what others do to have its files.
//!
//! The bare inflater is the floor: it reads the blob, inflates it with the library that nacre uses, and throws it away.

use std::fs::{self, File};
use std::io::{BufReader, copy, sink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::peers::{finish, timed};
use crate::table::{Table, median};

/// Arguments of `benches import`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// An OCI layout with one image, as `oci:DIR:TAG` names it
    #[arg(long)]
    layout: PathBuf,
    /// Its tag
    #[arg(long, default_value = "x")]
    tag: String,
    /// Its layer, a gzip blob
    #[arg(long)]
    blob: PathBuf,
    /// Where things are unpacked to
    #[arg(long, default_value = "/dev/shm")]
    scratch: PathBuf,
}

/// Imports and unpacks the layer with everybody.
pub(crate) fn run(nacre: &Path, rounds: usize, args: &Args) -> anyhow::Result<Table> {
    let mut table = Table::new(&["inflate", "nacre", "tar -x", "umoci"]);
    let mut times: [Vec<_>; 4] = Default::default();
    for _ in 0..rounds {
        times[0].push(timed(|| {
            let mut decoder =
                flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(1 << 18, File::open(&args.blob)?));
            copy(&mut decoder, &mut sink()).map(drop).map_err(Into::into)
        })?);
        let directory = tempfile::Builder::new().prefix("nacre-import-").tempdir_in(&args.scratch)?;
        let path = |name: &str| directory.path().join(name);
        let source = format!("{}:{}", args.layout.display(), args.tag);
        let import = |command: &mut Command| finish(command.arg(format!("oci:{source}")).arg("imported"));
        times[1].push(timed(|| import(Command::new(nacre).arg("--root").arg(path("store")).arg("copy")))?);
        fs::create_dir(path("tar"))?;
        times[2].push(timed(|| finish(Command::new("tar").arg("-xzf").arg(&args.blob).arg("-C").arg(path("tar"))))?);
        let unpack = ["raw", "unpack", "--image", &source];
        times[3].push(timed(|| finish(Command::new("umoci").args(unpack).arg(path("umoci"))))?);
    }
    table.push("import of a layer", times.into_iter().map(median).collect());
    Ok(table)
}
