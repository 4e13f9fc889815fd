//! `nacre commit`.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use builder::CommitRequest;
use layerfs::Plane;
use registry_client::Reference;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use walkdir::WalkDir;

use crate::args::Global;
use crate::flags;
use crate::interrupt::Interrupts;
use crate::progress::Display;
use crate::record::{self, Mounted};
use crate::report::Usage;
use crate::session::{self, print};

/// Arguments of `nacre commit`.
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
    if mounted.record.read_only && !mounted.place.join("stack").exists() {
        return Err(Usage(format!("{} is mounted read-only: there is nothing to commit", args.target.display())).into());
    }
    let interrupts = Interrupts::catch(&root, &Arc::new(Display::new(global.progress)), None, false)?;
    let store = session::open_store(&root)?;
    // Who holds the upper reads it alone; a live mount is read beside its server.
    let held = if mounted.is_live { None } else { Some(store.open_upper(&mounted.id)?) };
    let (upper, work) = (mounted.place.join("upper"), mounted.place.join("work"));
    // The files of an overlay are those of the upper, with what the kernel caches of them.
    if held.is_none() && mounted.record.plane == Plane::Fuse {
        flush(&mounted, &upper).with_context(|| format!("cannot sync {}", mounted.record.directory.display()))?;
    }
    let request = CommitRequest {
        author: args.author.clone(),
        message: args.message.clone(),
        epoch: flags::epoch(args.source_date_epoch.as_deref())?,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
    };
    let built = builder::commit_image(&store, &mounted.record.stored_image()?, &upper, &work, &request)?;
    builder::set(&store, &args.name.familiar(), &built.manifest)?;
    interrupts.hold();
    print(built.manifest.digest().as_ref())?;
    Ok(ExitCode::SUCCESS)
}

/// Has the kernel hand over what it still caches of a mount. After `syncfs` each file that was written is in the upper,
/// but FUSE does not wait there for the content, as it does with `fsync`.
fn flush(mounted: &Mounted, upper: &Path) -> std::io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory: OwnedFd = rustix::fs::open(&mounted.record.directory, flags, Mode::empty())?;
    rustix::fs::syncfs(&directory)?;
    for entry in WalkDir::new(upper) {
        let entry = match entry {
            Err(error) if error.io_error().is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound) => {
                continue;
            }
            other => other?,
        };
        let Some(path) = entry.path().strip_prefix(upper).ok().filter(|_| entry.file_type().is_file()) else {
            continue;
        };
        // Not a pipe that has taken the file's place meanwhile.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat2(
            &directory,
            path,
            flags,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
        ) {
            Ok(file) => rustix::fs::fsync(&file)?,
            // It was removed or replaced since.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
