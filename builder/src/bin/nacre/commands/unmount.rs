//! `nacre unmount`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use builder::rootless::{self, Entered, Mapping};
use layerfs::StoreError;
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::args::Global;
use crate::record::{self, Mounted};
use crate::report::{self, Hinted};
use crate::server;
use crate::session::{self, print};

/// Unmount a directory
#[derive(clap::Args)]
#[command(visible_alias = "umount")]
#[command(after_help = "Changes are kept, and the id of the upper that holds them is printed: mount it again with \
    `nacre mount --upper ID DIR`, make an image with `nacre commit ID NAME`, or drop it with `nacre unmount --discard ID`. \
    Where nothing was changed, nothing is kept.")]
pub(crate) struct Args {
    /// The directory; or the id of an upper that was kept
    #[arg(value_name = "DIR")]
    target: PathBuf,
    /// Drop the changes
    #[arg(long)]
    discard: bool,
}

/// Unmounts, and waits until the server has stored what was written.
pub(crate) fn run(global: &Global, args: &Args) -> anyhow::Result<ExitCode> {
    let root = session::root(global)?;
    let mounted = record::find(&root, &args.target)?;
    detach(&mounted)?;
    /// As long as anyone would wait for a disk.
    const LONGEST_WAIT: Duration = Duration::from_secs(60);
    if !mounted.wait_for_server(LONGEST_WAIT)? {
        let what = format!(
            "unmounted {}, but its server has not ended: another mount namespace may use it",
            args.target.display()
        );
        let hint = format!("when that has ended: nacre unmount {}", mounted.id);
        return Err(Hinted::error(what, hint));
    }
    if mounted.record.read_only {
        // Of a server that was killed; the directory around it is pruned.
        _ = std::fs::remove_file(mounted.place.join("scratch/mount.json"));
    }
    // Only the owner of all files in an upper can look at it and remove it.
    let options = rootless::Options { private_mounts: false, mapping: Mapping::Ranges };
    if let Entered::Finished(code) = rootless::enter(options)? {
        return Ok(ExitCode::from(code));
    }
    let store = session::open_store(&root)?;
    let upper = match store.open_upper(&mounted.id) {
        // The server has removed it, because nothing was changed, or it never was to be kept.
        Err(StoreError::NotFound { .. }) => return Ok(ExitCode::SUCCESS),
        upper => upper?,
    };
    let mut record = mounted.record;
    record.server = None;
    record.write(&upper.scratch()?)?;
    if let Some(id) = server::settle(&store, upper, args.discard)? {
        print(&id)?;
        report::show(&format!("hint: the changes are kept: nacre mount --upper {id} DIR, or nacre commit {id} NAME\n"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Takes the mount away where this process sees it, else has its server do so.
fn detach(mounted: &Mounted) -> anyhow::Result<()> {
    let directory = &mounted.record.directory;
    let Some(server) = mounted.record.server else { return Ok(()) };
    if !mounted.is_visible()? {
        return if mounted.is_live { server.terminate() } else { Ok(()) };
    }
    let in_use = || {
        let hint = format!("`fuser -vm {}` shows by which processes", directory.display());
        Hinted::error(format!("cannot unmount {}: it is in use", directory.display()), hint)
    };
    if !server::may_mount()? {
        return match layerfs::unmount_as_user(directory, !mounted.is_live) {
            Err(error) if std::error::Error::source(&error).is_some_and(|cause| cause.to_string().contains("busy")) => {
                Err(in_use())
            }
            unmounted => Ok(unmounted?),
        };
    }
    // What nobody serves, nobody can lose.
    let flags = if mounted.is_live { UnmountFlags::empty() } else { UnmountFlags::DETACH };
    match rustix::mount::unmount(directory, flags | UnmountFlags::NOFOLLOW) {
        Err(Errno::BUSY) => Err(in_use()),
        // A mount that came into this namespace with it cannot be taken away here.
        Err(Errno::INVAL | Errno::PERM) if mounted.is_live => server.terminate(),
        unmounted => unmounted.with_context(|| format!("cannot unmount {}", directory.display())),
    }
}
