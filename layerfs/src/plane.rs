//! The planes that serve a union, and the one of the kernel: its overlayfs over our read-only FUSE tree.
//!
//! Invariant: both planes show the same, and leave the same changes, wherever the overlay may use `trusted.` attributes
//! and file handles. In a user namespace it may not: there it splits the hard links of the tree when it copies one up,
//! and cannot rename a directory of the tree. So `auto` does not take it there, and only who asks for it gets it.
//!
//! ```text
//! DIR   overlay   lower: FUSE, `fuse/lower.rs`, mounted nowhere     upper, work: directories of the store
//! ```
//!
//! The FUSE mount is seen for a moment only: the overlay holds it, and it ends with the overlay. So an overlay is
//! unmounted, detached or left behind by a killed server as a FUSE mount of ours is, and by the same means.

use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
        fsconfig_set_string, fsmount, fsopen, move_mount,
    },
};

use serde::{Deserialize, Serialize};

use crate::{
    fuse::{Lower, Session},
    mount::{Mount, MountError, MountOptions, MountedBy, detach, serve_directly},
    tree::Tree,
    union::{KernelFault, KernelUpper, MarkNamespace, Union},
};

/// Who serves a union.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Plane {
    /// Our union, through FUSE: works wherever /dev/fuse does.
    #[default]
    Fuse,
    /// The kernel's overlayfs over our tree: writes as fast as the file system of the upper, where the host allows it.
    Overlay,
    /// The overlay where that works and shows the same in every case, else FUSE.
    Auto,
}

impl std::fmt::Display for Plane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Fuse => "fuse",
            Self::Overlay => "overlay",
            Self::Auto => "auto",
        })
    }
}

/// Why a union cannot be on the overlay plane.
#[derive(Debug, thiserror::Error)]
pub enum PlaneFault {
    /// An overlay without an upper has nothing to lay over the tree.
    #[error("an overlay needs a writable layer")]
    NoUpper,
    /// The upper was written by the fuse plane.
    #[error(
        "its writable layer was written on the fuse plane, and the kernel's overlayfs does not know how that keeps hard links"
    )]
    WrittenByFuse,
    /// The upper holds hard links that an overlay has copied up.
    #[error("its writable layer has hard links that an earlier overlay copied up, and a later one does not find again")]
    HardLinks,
    /// Mounts are made by `fusermount3`, which makes no overlay.
    #[error("only root, or root of a user namespace, can mount an overlay")]
    NotRoot,
    /// In a user namespace an overlay differs from the fuse plane.
    #[error("in a user namespace an overlay splits hard links, and cannot rename the directories of an image")]
    Differs,
    /// The kernel fell back to an overlay without an index.
    #[error("the overlay would split hard links: the file system of its writable layer has no file handles")]
    NoIndex,
    /// The tree below could not be mounted.
    #[error(transparent)]
    Tree(Box<MountError>),
    /// A call failed.
    #[error("{action} failed: {source}")]
    System {
        /// What was tried, on what.
        action: &'static str,
        /// The errno.
        source: Errno,
    },
}

/// Mounts the tree of a union as the lower of an overlay. The union itself only holds its upper meanwhile; after an
/// error nobody else has it.
pub(crate) fn mount_overlay<T: Tree + 'static>(
    union: &Arc<Union<T>>,
    directory: &Path,
    options: MountOptions,
) -> Result<Mount, PlaneFault> {
    let session = try_overlay(union, directory, options)?;
    Ok(Mount::new(Arc::clone(union), session, directory.to_owned(), MountedBy::Kernel, Plane::Overlay))
}

fn try_overlay<T: Tree + 'static>(
    union: &Arc<Union<T>>,
    directory: &Path,
    options: MountOptions,
) -> Result<Session, PlaneFault> {
    let system = |action| move |source| PlaneFault::System { action, source };
    if !rustix::process::geteuid().is_root() {
        return Err(PlaneFault::NotRoot);
    }
    let upper = union.kernel_upper().map_err(|fault| match fault {
        KernelFault::NoUpper => PlaneFault::NoUpper,
        KernelFault::WrittenByUnion => PlaneFault::WrittenByFuse,
        KernelFault::HardLinks => PlaneFault::HardLinks,
        KernelFault::System(source) => system("preparing the work directory")(source),
    })?;
    if options.plane == Plane::Auto && upper.marks == MarkNamespace::User {
        return Err(PlaneFault::Differs);
    }
    let lower = |device| Lower::new(Arc::clone(union), upper.marks, options.forgoes_xattrs, device);
    let session = serve_directly(lower, directory, true).map_err(|error| PlaneFault::Tree(Box::new(error)))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let tree = rustix::fs::open(directory, flags, Mode::empty()).map_err(system("opening the mounted tree"));
    let overlay = tree.and_then(|tree| overlay_once_free(&tree, &upper, options.read_only));
    // From here on the overlay alone holds the tree.
    detach(directory);
    let moved = overlay.and_then(|overlay| {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&overlay, "", CWD, directory, flags).map_err(system("attaching the overlay"))
    });
    match moved {
        Ok(()) => Ok(session),
        Err(fault) => {
            if let Err(error) = session.join() {
                tracing::debug!(%error, "ending the tree below an overlay failed");
            }
            Err(fault)
        }
    }
}

/// How long an upper is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// As [`overlay`]. An overlay that was unmounted lets go of its upper only when nobody looks at it any more: a process
/// that copied its mounts in that moment holds it for as long as it takes to give them up.
fn overlay_once_free(tree: &OwnedFd, upper: &KernelUpper<'_>, read_only: bool) -> Result<OwnedFd, PlaneFault> {
    let start = Instant::now();
    loop {
        match overlay(tree, upper, read_only) {
            Err(PlaneFault::System { source: Errno::BUSY, .. }) if start.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(5));
            }
            made => return made,
        }
    }
}

/// An overlay over a mounted tree, mounted nowhere yet.
///
/// Directories are named by descriptors: a path could hold what means something else in these options.
/// <https://docs.kernel.org/filesystems/overlayfs.html>
fn overlay(tree: &OwnedFd, upper: &KernelUpper<'_>, read_only: bool) -> Result<OwnedFd, PlaneFault> {
    let system = |action| move |source| PlaneFault::System { action, source };
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(system("opening overlayfs"))?;
    let set = |key: &str, value: &str| {
        fsconfig_set_string(&context, key, value).map_err(system("setting an option of overlayfs"))
    };
    let path = |descriptor: &dyn AsFd| format!("/proc/self/fd/{}", descriptor.as_fd().as_raw_fd());
    set("source", "nacre")?;
    set("lowerdir", &path(tree))?;
    set("upperdir", &path(&upper.upper))?;
    set("workdir", &path(&upper.work))?;
    // Numbers stay the same over copy-up, as on the fuse plane.
    set("xino", "on")?;
    match upper.marks {
        MarkNamespace::Trusted => {
            // Hard links stay hard links.
            set("index", "on")?;
            set("redirect_dir", "on")?;
            set("metacopy", "on")?;
        }
        MarkNamespace::User => {
            fsconfig_set_flag(&context, "userxattr").map_err(system("setting userxattr of overlayfs"))?;
        }
    }
    if !upper.durable {
        fsconfig_set_flag(&context, "volatile").map_err(system("setting volatile of overlayfs"))?;
    }
    if read_only {
        fsconfig_set_flag(&context, "ro").map_err(system("setting ro of overlayfs"))?;
    }
    fsconfig_create(&context).map_err(system("mounting overlayfs"))?;
    let has_index = rustix::fs::statat(&upper.work, "index", AtFlags::SYMLINK_NOFOLLOW).is_ok();
    if upper.marks == MarkNamespace::Trusted && !has_index {
        return Err(PlaneFault::NoIndex);
    }
    let attributes = MountAttrFlags::MOUNT_ATTR_NOATIME;
    let attributes = if read_only { attributes | MountAttrFlags::MOUNT_ATTR_RDONLY } else { attributes };
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(system("mounting overlayfs"))
}
