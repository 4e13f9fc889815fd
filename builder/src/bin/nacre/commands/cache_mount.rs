//! `nacre cache-mount`.

use std::process::ExitCode;

use anyhow::Context;
use registry_client::{ImageName, open_destination, open_source};

use crate::format::{Format, Table};
use crate::report::Usage;
use crate::session::Session;
use crate::units::human_size;

/// Carry the directories of RUN --mount=type=cache from machine to machine
#[derive(clap::Args)]
#[command(
    after_help = "The id of a cache mount is the id= of RUN --mount=type=cache, else its target. Places are written \
    as `nacre copy` has them: docker://NAME, oci:DIR[:TAG], oci-archive:FILE.\n\n\
    Examples:\n  nacre cache-mount import /root/.cache docker://ghcr.io/me/app:go-cache\n  \
    nacre build -t app .\n  nacre cache-mount export /root/.cache docker://ghcr.io/me/app:go-cache"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: CacheMountVerb,
}

/// What is done with cache mounts.
#[derive(clap::Subcommand)]
enum CacheMountVerb {
    /// List the cache mounts of the store
    #[command(visible_alias = "ls")]
    List {
        /// How to print them
        #[arg(long, value_enum, default_value = "table")]
        format: Format,
    },
    /// Copy a cache mount to a registry, a layout or an archive
    Export {
        /// Its id
        id: String,
        /// Where it goes
        #[arg(value_name = "PLACE")]
        to: ImageName,
    },
    /// Fill a cache mount with what was exported, in place of what it holds
    Import {
        /// Its id
        id: String,
        /// Where it is
        #[arg(value_name = "PLACE")]
        from: ImageName,
    },
    /// Empty cache mounts
    #[command(visible_alias = "rm")]
    Remove {
        /// Their ids
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
    },
}

/// Does it.
pub(crate) fn run(session: &Session, args: &Args) -> anyhow::Result<ExitCode> {
    let store = session.store()?;
    let progress = session.display.as_ref();
    match &args.verb {
        CacheMountVerb::List { format } => list(session, &builder::cache_mounts(&store)?, *format)?,
        CacheMountVerb::Export { id, to } => {
            let destination = open_destination(&session.client, to)?.ok_or_else(|| no_place(to))?;
            let threads = std::thread::available_parallelism().map_or(1, usize::from);
            builder::export_cache_mount(&store, id, destination.as_ref(), threads, progress)?;
        }
        CacheMountVerb::Import { id, from } => {
            let source = open_source(&session.client, from)?.ok_or_else(|| no_place(from))?;
            builder::import_cache_mount(&store, id, source.as_ref(), progress)?;
        }
        CacheMountVerb::Remove { ids } => {
            for id in ids {
                builder::remove_cache_mount(&store, id)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn no_place(name: &ImageName) -> Usage {
    Usage(format!("{name} is no place for a cache mount: docker://NAME, oci:DIR or oci-archive:FILE"))
}

fn list(session: &Session, mounts: &[builder::CacheMount], format: Format) -> anyhow::Result<()> {
    if format == Format::Json {
        let one = |mount: &builder::CacheMount| serde_json::json!({"id": mount.id, "size_bytes": mount.size_bytes});
        let all: Vec<_> = mounts.iter().map(one).collect();
        return session.print(&serde_json::to_string_pretty(&all).context("cannot show cache mounts")?);
    }
    let mut table = Table::new(["ID", "SIZE"]);
    for mount in mounts {
        table.push([mount.id.clone(), human_size(mount.size_bytes)]);
    }
    session.print(&table.to_string())
}
