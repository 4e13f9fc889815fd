//! The root file system: finding paths inside it, and making it `/`.
//!
//! Invariant: a path of the image is only ever resolved by `openat2` with `RESOLVE_IN_ROOT`, so that no link in the
//! image leads out of it.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags};

use super::{During as _, Failure};

/// Opens the root directory itself.
pub(super) fn open(root: &Path) -> Result<OwnedFd, Failure> {
    rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .during(|| format!("open the root directory {}", root.display()))
}

/// Opens `path` inside `root` without reading it, following links inside the root. The plain error, for callers that
/// tell "missing" from the rest.
pub(super) fn find(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    find_with(root, path, OFlags::empty())
}

/// As [`find`], with more flags, as `OFlags::NOFOLLOW`.
pub(super) fn find_with(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    // The kernel asks to try again when a rename anywhere raced with `..`; a limit, because a hostile one could go on.
    // https://man7.org/linux/man-pages/man2/openat2.2.html
    let mut last = Errno::AGAIN;
    for _ in 0..128 {
        match rustix::fs::openat2(
            root,
            path,
            OFlags::PATH | OFlags::CLOEXEC | flags,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        ) {
            Err(error @ (Errno::AGAIN | Errno::INTR)) => last = error,
            other => return other,
        }
    }
    Err(last)
}

/// Mounts the root directory on itself, so that it can become `/`, and opens it there.
pub(super) fn attach(root: &Path) -> Result<OwnedFd, Failure> {
    let action = || format!("mount the root directory {}", root.display());
    let tree = rustix::mount::open_tree(
        CWD,
        root,
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE,
    )
    .during(action)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH
        | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS
        | MoveMountFlags::MOVE_MOUNT_T_AUTOMOUNTS;
    rustix::mount::move_mount(tree.as_fd(), c"", CWD, root, flags).during(action)?;
    Ok(tree)
}

/// Makes the mount `root` the `/` of this mount namespace, and lets go of all mounts outside it.
pub(super) fn pivot(root: OwnedFd) -> Result<(), Failure> {
    rustix::process::fchdir(&root).during(|| "enter the root directory".into())?;
    // The old root ends up mounted on top of the new one, and goes at once: pivot_root(2), "pivot_root(".", ".")".
    rustix::process::pivot_root(c".", c".").during(|| "make the root directory `/`".into())?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH).during(|| "let go of the old root".into())?;
    rustix::process::chdir(c"/").during(|| "enter the new root".into())
}
