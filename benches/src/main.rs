//! Side-by-side runs against peers, in one run on one machine, printed as ratios.
//!
//! Nothing here is a test: a figure says something only beside the peer's figure of the same run.
//! What each row does and what was found is in README.md beside this crate.

mod build;
mod engine;
mod filesystem;
mod import;
mod link;
mod peers;
mod soak;
mod table;
mod transfer;
mod workloads;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Compares nacre with its peers. Run it as root, with nothing else running, on a release build.
#[derive(Parser)]
struct Cli {
    /// The program to measure
    #[arg(long, default_value = "target/release/nacre", global = true)]
    nacre: PathBuf,
    /// How often each thing is measured; the median counts
    #[arg(long, default_value_t = 3, global = true)]
    rounds: usize,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// File-system workloads: kernel overlayfs, fuse-overlayfs, a layerfs mount
    Filesystem(filesystem::Args),
    /// Builds: buildah, BuildKit and nacre, cold, unchanged, one file changed
    Build(build::Args),
    /// What the build engine costs by itself: a step, a large context, a large layer; peaks of memory on standard error
    Engine(engine::Args),
    /// Push and pull against a local registry: skopeo, podman and nacre
    Transfer(transfer::Args),
    /// Import of a layer: the bare inflater, nacre, tar and umoci
    Import(import::Args),
    /// Memory of a mount's server over minutes of work
    Soak(soak::Args),
}

fn main() -> anyhow::Result<()> {
    let mut cli = Cli::parse();
    cli.nacre = cli.nacre.canonicalize()?;
    let table = match &cli.what {
        What::Filesystem(args) => filesystem::run(&cli.nacre, cli.rounds, args)?,
        What::Build(args) => build::run(&cli.nacre, cli.rounds, args)?,
        What::Engine(args) => engine::run(&cli.nacre, cli.rounds, args)?,
        What::Transfer(args) => transfer::run(&cli.nacre, cli.rounds, args)?,
        What::Import(args) => import::run(&cli.nacre, cli.rounds, args)?,
        What::Soak(args) => return soak::run(&cli.nacre, args),
    };
    table.print()
}
