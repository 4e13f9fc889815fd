//! A mount from its options: opening the layers, mounting, serving, and the end.
//!
//! Invariant: everything that can fail by a mistake of the caller fails before the mount is there; the mount is gone
//! when the process ends by itself or by a signal.

use std::{
    ffi::CString,
    fmt::Write as _,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context as _, bail};
use layerfs::{DirectoryStack, IdMapping, MarkNamespace, Mount, MountOptions, Union, UpperOptions};
use rustix::{
    fs::{Mode, OFlags, XattrFlags},
    mount::{MountFlags, UnmountFlags},
    process::{Resource, Rlimit},
};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1},
    iterator::Signals,
};

use crate::{background, handover, idmapped, options::Options};

/// What /proc/mounts shows: containers/storage looks for the magic number only, people for the name.
const FILE_SYSTEM: &str = "fuse.layerfs";

/// Descriptors that are kept for layers and upper together where the limit allows it. More are no faster: each saves
/// two system calls at the next use.
const OPEN_FILES: u64 = 4096;

/// What statfs(2) calls every FUSE file system.
const FUSE_MAGIC: i64 = 0x6573_5546;

/// Signals that ask for the end.
const ENDING: [i32; 3] = [SIGTERM, SIGINT, SIGHUP];

/// A union that is mounted and served.
pub(crate) struct Served {
    mount: Mount,
    directory: PathBuf,
    /// Those that came since before the mount was there.
    signals: Signals,
}

impl Served {
    /// Opens, mounts, and begins to serve.
    pub(crate) fn mount(options: &Options, target: &Path) -> anyhow::Result<Self> {
        let signals = Signals::new(ENDING.into_iter().chain([SIGUSR1])).context("cannot listen for signals")?;
        let open_files = raise_open_files();
        // Modes of what is made are those that the kernel asks for.
        rustix::process::umask(Mode::empty());
        let directory = target.canonicalize().with_context(|| format!("cannot mount on {}", target.display()))?;
        let (mut union, ids) = open(options, open_files)?;
        if options.ignores_acls {
            union.ignore_acls();
        }
        let mount = if rustix::process::geteuid().is_root() {
            mount_directly(union, options, ids, &directory)?
        } else {
            mount_as_user(union, options, &directory)?
        };
        Ok(Self { mount, directory, signals })
    }

    /// Serves until someone unmounts, or a signal asks for the end.
    pub(crate) fn until_unmounted(self, in_background: bool) -> anyhow::Result<()> {
        unmount_on_signal(self.signals, self.directory)?;
        if in_background {
            background::detach()?;
        }
        Ok(self.mount.wait()?)
    }
}

/// Gives a mount that is there other flags. Its server goes on.
pub(crate) fn remount(options: &Options, target: &Path) -> anyhow::Result<()> {
    let failed = || format!("cannot remount {}", target.display());
    let stat = rustix::fs::statfs(target).with_context(failed)?;
    if stat.f_type != FUSE_MAGIC {
        bail!("{} is no FUSE mount, so it cannot be remounted", target.display());
    }
    rustix::mount::mount_remount(target, options.flags | MountFlags::NOATIME, c"").with_context(failed)
}

/// The first signal unmounts; what is in use is detached, and served to its end. The second ends the process. `SIGUSR1`
/// asks to make room for another server if nobody can use this one.
fn unmount_on_signal(mut signals: Signals, directory: PathBuf) -> anyhow::Result<()> {
    let was_asked = Arc::new(AtomicBool::new(false));
    for signal in ENDING {
        let second = signal_hook::flag::register_conditional_default(signal, Arc::clone(&was_asked));
        second.context("cannot listen for signals")?;
    }
    std::thread::spawn(move || {
        let is_end = |signal: i32| signal != SIGUSR1 || handover::is_alone();
        if signals.forever().any(is_end) {
            was_asked.store(true, Ordering::Relaxed);
            if let Err(error) = unmount(&directory) {
                tracing::warn!(%error, "unmounting at a signal failed");
            }
        }
    });
    Ok(())
}

fn unmount(directory: &Path) -> anyhow::Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(layerfs::unmount(directory)?);
    }
    Ok(layerfs::unmount_as_user(directory, true)?)
}

/// Opens layers and upper, and says how ids are shown. The descriptors that are kept are at most `open_files`.
fn open(options: &Options, open_files: usize) -> anyhow::Result<(Union<Arc<DirectoryStack>>, IdMapping)> {
    let directory = |path: &Path, what| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(path, flags, Mode::empty());
        opened.with_context(|| format!("cannot open the {what} directory {}", path.display()))
    };
    let layers = options.lower.iter().map(|path| directory(path, "lower")).collect::<anyhow::Result<Vec<_>>>()?;
    let ids = if options.ids != IdMapping::default() && idmapped::are_idmapped(&layers)? {
        options.squashed_ids()
    } else {
        // As with fuse-overlayfs: podman 5 makes the places of its mounts as root, whoever root is inside.
        options.ids.clone().with_strangers()
    };
    let tree = DirectoryStack::new(layers, open_files / 2).context("cannot read the lower directories")?;
    let tree = Arc::new(tree);
    let Some((upper, work)) = &options.upper else { return Ok((Union::read_only(tree), ids)) };
    let (upper, work) = (directory(upper, "upper")?, directory(work, "work")?);
    let marks =
        if !options.user_marks && has_trusted_xattrs(&work) { MarkNamespace::Trusted } else { MarkNamespace::User };
    let upper_options = UpperOptions {
        marks,
        open_files: open_files / 2,
        renames_directories: options.renames_directories,
        durable: options.durable,
        adopts_root: false,
        // containers/storage, and the kernel's overlayfs after us, look for content in the upper.
        splits_metadata: false,
        has_aufs_marks: true,
        has_overrides: options.has_overrides,
    };
    handover::retry(&work, || {
        Union::open(Arc::clone(&tree), upper.try_clone()?, work.try_clone()?, upper_options).map_err(Into::into)
    })
    .map(|union| (union, ids))
}

/// Whether we may keep marks where the kernel's overlayfs, mounted by root, looks for them. That needs a capability
/// outside of all user namespaces, which is best found out by trying.
fn has_trusted_xattrs(work: &OwnedFd) -> bool {
    const PROBE: &str = "trusted.overlay.layerfs";
    let open = rustix::fs::openat(work, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    open.is_ok_and(|open| {
        rustix::fs::fsetxattr(&open, PROBE, b"y", XattrFlags::empty()).is_ok()
            && rustix::fs::fremovexattr(&open, PROBE).is_ok()
    })
}

/// As root, or root of a user namespace: the kernel is asked, and lets all users in.
fn mount_directly(
    union: Union<Arc<DirectoryStack>>,
    options: &Options,
    ids: IdMapping,
    directory: &Path,
) -> anyhow::Result<Mount> {
    let failed = || format!("cannot mount on {}", directory.display());
    let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .context("cannot open /dev/fuse")?;
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let mut data = format!("fd={},rootmode=40000,user_id={uid},group_id={gid}", device.as_raw_fd());
    data.push_str(",allow_other,default_permissions");
    for context in &options.contexts {
        write!(data, ",{context}").expect("writing to a string cannot fail");
    }
    let data = CString::new(data).context("a context holds a NUL")?;
    let read_only = if union.is_read_only() { MountFlags::RDONLY } else { MountFlags::empty() };
    // Each read would move a time of access that nothing keeps, and cost a request.
    let flags = options.flags | read_only | MountFlags::NOATIME;
    let source = options.source.as_deref().unwrap_or("layerfs".as_ref());
    rustix::mount::mount(source, directory, FILE_SYSTEM, flags, &*data).with_context(failed)?;
    layerfs::serve(union, device, directory, ids).with_context(failed).inspect_err(|_| {
        if let Err(error) = rustix::mount::unmount(directory, UnmountFlags::DETACH) {
            tracing::warn!(%error, "taking back a mount failed");
        }
    })
}

/// As an ordinary user, for this user alone: `fusermount3` mounts, and allows what it allows.
fn mount_as_user(union: Union<Arc<DirectoryStack>>, options: &Options, directory: &Path) -> anyhow::Result<Mount> {
    if options.ids != IdMapping::default() {
        bail!("showing other owners needs root, or root of a user namespace");
    }
    if !options.contexts.is_empty() {
        bail!("a security context needs root, or root of a user namespace");
    }
    let read_only = options.flags.contains(MountFlags::RDONLY);
    Ok(layerfs::mount(union, directory, MountOptions { read_only, ..MountOptions::default() })?)
}

/// Raises the limit of open files as far as it goes, and returns how many may be kept open.
fn raise_open_files() -> usize {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    // As it was is enough to work with.
    _ = rustix::process::setrlimit(Resource::Nofile, raised);
    let limit = rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    // The other half is for files that are open without a name.
    usize::try_from(OPEN_FILES.min(limit / 2)).expect("a few thousand")
}
