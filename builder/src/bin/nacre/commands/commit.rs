//! `nacre commit`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use builder::CommitRequest;
use registry_client::Reference;

use crate::args::Global;
use crate::flags;
use crate::interrupt::Interrupts;
use crate::progress::Display;
use crate::record;
use crate::report::Usage;
use crate::session::{self, print};

/// Make an image of what was changed in a mount
#[derive(clap::Args)]
#[command(after_help = "A mount stays as it is, and what was written to it so far is in the image. A program that is \
    writing meanwhile may be caught in the middle of it: end it first, or unmount and commit the id that is printed.")]
pub(crate) struct Args {
    /// The directory of a mount; or the id of an upper that was kept
    #[arg(value_name = "DIR")]
    target: PathBuf,
    /// The name of the new image
    #[arg(value_name = "NAME")]
    name: Reference,
    /// What was changed, for the image's history
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// Who changed it
    #[arg(short, long, value_name = "NAME")]
    author: Option<String>,
    /// The time of the image, and the newest time in its new layer [default: now, and real times]
    #[arg(long, env = "SOURCE_DATE_EPOCH", value_name = "SECONDS", allow_hyphen_values = true)]
    source_date_epoch: Option<String>,
}

/// Makes an image of what a mount changed, and prints its digest.
pub(crate) fn run(global: &Global, args: &Args) -> anyhow::Result<ExitCode> {
    if args.name.digest().is_some() {
        return Err(Usage(format!("{}: a name to give has no digest", args.name.familiar())).into());
    }
    let root = session::root(global)?;
    let mounted = record::find(&root, &args.target)?;
    if mounted.has_no_changes() {
        return Err(Usage(format!("{} is mounted read-only: there is nothing to commit", args.target.display())).into());
    }
    let interrupts = Interrupts::catch(&root, &Arc::new(Display::new(global.progress)), None, false)?;
    let store = session::open_store(&root)?;
    // Who holds the upper reads it alone; a live mount is read beside its server.
    let held = if mounted.is_live { None } else { Some(store.open_upper(&mounted.id)?) };
    let (upper, work) = (mounted.place.join("upper"), mounted.place.join("work"));
    if held.is_none() {
        mounted.flush()?;
    }
    let request = CommitRequest {
        author: args.author.clone(),
        message: args.message.clone(),
        epoch: flags::epoch(args.source_date_epoch.as_deref())?,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
    };
    let built = builder::commit_image(&store, &mounted.record.stored_image()?, &upper, &work, &request)?;
    builder::names::set(&store, &args.name.familiar(), &built.manifest)?;
    interrupts.hold();
    print(built.manifest.digest().as_ref())?;
    Ok(ExitCode::SUCCESS)
}
