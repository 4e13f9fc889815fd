//! `nacre prune`.

use std::process::ExitCode;

use layerfs::{PruneOptions, StoreError};

use crate::format::{Format, Table};
use crate::report::Hinted;
use crate::session::Session;
use crate::units::human_size;

/// Remove what no name leads to
#[derive(clap::Args)]
#[command(after_help = "Kept is what a name leads to, what a mount or a running command uses, the changes of uppers, \
    and unless --all is given the build cache with what it names, and cache mounts.")]
pub(crate) struct Args {
    /// Also the build cache and the cache mounts
    #[arg(short, long)]
    all: bool,
    /// Also the cache mounts that no step uses
    #[arg(long)]
    cache_mounts: bool,
    /// Always so: nothing is asked before it is removed
    #[arg(short, long)]
    force: bool,
    /// How to print what was removed
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

/// Removes what nothing needs, and tells how much that was.
pub(crate) fn run(session: &Session, args: &Args) -> anyhow::Result<ExitCode> {
    let options = PruneOptions { keep_steps: !args.all, keep_cache_mounts: !args.all && !args.cache_mounts };
    let pruned = session.store()?.prune(options).map_err(|error| match error {
        StoreError::Json { .. } | StoreError::BlobTooLarge { .. } => {
            let way = "`nacre verify` tells which images are damaged, `nacre remove` gives one up";
            Hinted::error(format!("cannot tell what is needed: {:#}", anyhow::Error::from(error)), way)
        }
        error => error.into(),
    })?;
    if args.format == Format::Json {
        let document = serde_json::json!({
            "blobs": pruned.blobs,
            "layers": pruned.layers,
            "steps": pruned.steps,
            "uppers": pruned.uppers,
            "cache_mounts": pruned.cache_mounts,
            "freed_bytes": pruned.freed_bytes,
        });
        session.print(&serde_json::to_string_pretty(&document)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["BLOBS", "LAYERS", "STEPS", "UPPERS", "CACHE MOUNTS", "FREED"]);
    let counts = [pruned.blobs, pruned.layers, pruned.steps, pruned.uppers, pruned.cache_mounts];
    let [blobs, layers, steps, uppers, cache_mounts] = counts.map(|count| count.to_string());
    table.push([blobs, layers, steps, uppers, cache_mounts, human_size(pruned.freed_bytes)]);
    session.print(&table.to_string())?;
    Ok(ExitCode::SUCCESS)
}
