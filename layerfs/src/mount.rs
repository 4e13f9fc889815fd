//! Mounting a union, serving it in the background, and unmounting it.
//!
//! Invariant: a mount lives no longer than its [`Mount`], unless the process is killed; then it is dead but
//! can be cleared with [`unmount`]. As root, or as root of a user namespace, the kernel is asked directly; as an
//! ordinary user, `fusermount3` is. There is no file-system semantics here.

use std::{
    ffi::CString,
    fmt::Write as _,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    mount::{MountFlags, UnmountFlags},
    net::{AddressFamily, SocketFlags, SocketType},
};

use crate::{
    fuse::{Served, Server, Session},
    fusermount,
    ids::IdMapping,
    plane::{self, Plane, PlaneFault},
    tree::Tree,
    union::Union,
};

/// What `mount` and /proc/mounts show as the type of our mounts.
const FILE_SYSTEM: &str = "fuse.nacre";

/// How a union is mounted.
#[derive(Debug, Clone, Copy, Default)]
pub struct MountOptions {
    /// Nothing can be changed; always so for a tree without an upper.
    pub read_only: bool,
    /// Who serves it.
    pub plane: Plane,
    /// On the overlay plane, where no file of the tree has extended attributes: what stays in the layers says that it knows
    /// none (`EOPNOTSUPP`, as file systems without them), instead of that there are none. The kernel then never asks for
    /// any, which is four of the five requests that `cp -a` makes for a file.
    pub forgoes_xattrs: bool,
}

/// Why a mount or unmount failed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// There is no FUSE device, or it may not be opened.
    #[error("opening /dev/fuse failed")]
    Device(#[source] io::Error),
    /// The kernel or `fusermount3` refused.
    #[error("mounting on {directory} failed")]
    Mount {
        /// Where to.
        directory: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// `fusermount3`, which mounts for ordinary users, is missing or refused.
    #[error("fusermount3 failed on {directory}")]
    Fusermount {
        /// Where.
        directory: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// The kernel refused to unmount.
    #[error("unmounting {directory} failed")]
    Unmount {
        /// Where.
        directory: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The plane that was asked for is not possible here, or not with this upper.
    #[error("the overlay plane cannot be used for {directory}")]
    Plane {
        /// Where to.
        directory: PathBuf,
        /// Why not.
        #[source]
        source: PlaneFault,
    },
    /// Serving ended with an error, or what was written could not be stored.
    #[error("serving {directory} failed")]
    Serve {
        /// Where.
        directory: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A union that is mounted and served by threads of this process. Dropping it unmounts.
pub struct Mount {
    directory: PathBuf,
    session: Option<Session>,
    mounted_by: MountedBy,
    plane: Plane,
    sync: Box<dyn Fn() -> rustix::io::Result<()> + Send + Sync>,
    close: Box<dyn Fn() -> rustix::io::Result<()> + Send + Sync>,
}

/// Who mounted, and so can unmount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MountedBy {
    /// This process, by the system call.
    Kernel,
    /// This process, by `fusermount3`.
    Fusermount,
    /// Another process, perhaps in a mount namespace that this one does not see.
    Other,
}

impl std::fmt::Debug for Mount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mount").field("directory", &self.directory).finish_non_exhaustive()
    }
}

/// Mounts a union on a directory and serves it until the handle is dropped, unmounted, or someone else unmounts it.
///
/// Ownership and permissions are checked by the kernel, for all users where we are root of some kind.
pub fn mount<T: Tree + 'static>(union: Union<T>, directory: &Path, options: MountOptions) -> Result<Mount, MountError> {
    let failed = |source| MountError::Mount { directory: directory.to_owned(), source };
    let directory = directory.canonicalize().map_err(failed)?;
    let options = MountOptions { read_only: options.read_only || union.is_read_only(), ..options };
    let mut union = Arc::new(union);
    if options.plane != Plane::Fuse {
        match plane::mount_overlay(&union, &directory, options) {
            Ok(mount) => return Ok(mount),
            Err(fault) if options.plane == Plane::Auto => tracing::debug!(%fault, "the overlay plane cannot be used"),
            Err(source) => return Err(MountError::Plane { directory, source }),
        }
    }
    let alone = Arc::get_mut(&mut union).ok_or_else(|| failed(io::Error::other("an overlay that failed is served")))?;
    alone.take_over().map_err(|error| failed(error.into()))?;
    let (device, mounted_by) = if rustix::process::geteuid().is_root() {
        (mount_directly(&directory, options.read_only)?, MountedBy::Kernel)
    } else {
        (mount_as_user(&directory, options)?, MountedBy::Fusermount)
    };
    start(union, device, directory.clone(), IdMapping::default(), mounted_by).inspect_err(|_| match mounted_by {
        MountedBy::Fusermount => {
            if let Err(error) = fusermount::unmount_as_user(&directory, true) {
                tracing::debug!(directory = %directory.display(), %error, "taking back a mount failed");
            }
        }
        _ => detach(&directory),
    })
}

/// Serves a union on a device that another process mounted on `directory`, until it is unmounted. The ids of the image
/// are shown to the kernel, and taken from it, as `ids` says.
///
/// Such a mount is waited for; dropping it neither unmounts nor ends it.
pub fn serve<T: Tree + 'static>(
    mut union: Union<T>,
    device: OwnedFd,
    directory: &Path,
    ids: IdMapping,
) -> Result<Mount, MountError> {
    let failed = |source| MountError::Serve { directory: directory.to_owned(), source };
    union.take_over().map_err(|error| failed(error.into()))?;
    start(Arc::new(union), device, directory.to_owned(), ids, MountedBy::Other)
}

fn start<T: Tree + 'static>(
    union: Arc<Union<T>>,
    device: OwnedFd,
    directory: PathBuf,
    ids: IdMapping,
    mounted_by: MountedBy,
) -> Result<Mount, MountError> {
    let started = device.try_clone().and_then(|unasked| {
        let served = Served::new(Arc::clone(&union), ids, unasked);
        Session::start(served, device)
    });
    let session = started.map_err(|source| MountError::Serve { directory: directory.clone(), source })?;
    Ok(Mount::new(union, session, directory, mounted_by, Plane::Fuse))
}

/// Mounts by a system call; whoever reads from the device serves it.
fn mount_directly(directory: &Path, read_only: bool) -> Result<OwnedFd, MountError> {
    let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| MountError::Device(error.into()))?;
    let mut data = String::new();
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    write!(
        data,
        "fd={},rootmode=40000,user_id={uid},group_id={gid},allow_other,default_permissions",
        device.as_raw_fd()
    )
    .expect("writing to a string cannot fail");
    let data = CString::new(data).expect("numbers and words hold no NUL");
    let flags = if read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    rustix::mount::mount("nacre", directory, FILE_SYSTEM, flags | MountFlags::NOATIME, &*data)
        .map_err(|error| MountError::Mount { directory: directory.to_owned(), source: error.into() })?;
    Ok(device)
}

/// Mounts what a server answers for by a system call; it is made with another handle of the mount's device.
pub(crate) fn serve_directly<S: Server>(
    server: impl FnOnce(OwnedFd) -> S,
    directory: &Path,
    read_only: bool,
) -> Result<Session, MountError> {
    let device = mount_directly(directory, read_only)?;
    let started = device.try_clone().and_then(|unasked| Session::start(server(unasked), device));
    started.map_err(|source| {
        detach(directory);
        MountError::Serve { directory: directory.to_owned(), source }
    })
}

/// For this user alone: `fusermount3` mounts, and hands the device back.
fn mount_as_user(directory: &Path, options: MountOptions) -> Result<OwnedFd, MountError> {
    let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(|error| MountError::Device(error.into()))?;
    fusermount::mount_for_server(theirs, directory, options.read_only, false)?;
    fusermount::receive_device(ours.as_fd())
}

impl Mount {
    /// A mount that is served already.
    pub(crate) fn new<T: Tree + 'static>(
        union: Arc<Union<T>>,
        session: Session,
        directory: PathBuf,
        mounted_by: MountedBy,
        plane: Plane,
    ) -> Self {
        let again = Arc::clone(&union);
        let (sync, close) = (Box::new(move || union.sync()), Box::new(move || again.close()));
        Self { directory, session: Some(session), mounted_by, plane, sync, close }
    }

    /// Who serves it: `Fuse` or `Overlay`.
    pub fn plane(&self) -> Plane {
        self.plane
    }

    /// Where the union is mounted.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Unmounts what this process mounted, waits for the serving threads, and writes the upper to the disk. What is
    /// still in use is detached: it goes on being served until it is closed.
    pub fn unmount(mut self) -> Result<(), MountError> {
        self.end()
    }

    /// Waits until someone else unmounts, then writes the upper to the disk.
    pub fn wait(mut self) -> Result<(), MountError> {
        match self.session.take() {
            Some(session) => self.finish(session),
            None => Ok(()),
        }
    }

    fn end(&mut self) -> Result<(), MountError> {
        let Some(session) = self.session.take() else { return Ok(()) };
        match self.mounted_by {
            // Threads of a mount that is only detached end when its last user does, which may be our caller.
            MountedBy::Kernel if unmount_or_detach(&self.directory)? => self.sync_upper(),
            MountedBy::Kernel => self.finish(session),
            MountedBy::Fusermount => {
                if fusermount::unmount_as_user(&self.directory, false).is_ok() {
                    return self.finish(session);
                }
                fusermount::unmount_as_user(&self.directory, true)?;
                self.sync_upper()
            }
            MountedBy::Other => self.sync_upper(),
        }
    }

    fn finish(&self, session: Session) -> Result<(), MountError> {
        let served = session.join().map_err(|source| MountError::Serve { directory: self.directory.clone(), source });
        // Whatever the threads ended with, what was written is to be on the disk.
        self.written((self.close)()).and(served)
    }

    fn sync_upper(&self) -> Result<(), MountError> {
        self.written((self.sync)())
    }

    fn written(&self, result: rustix::io::Result<()>) -> Result<(), MountError> {
        result.map_err(|error| MountError::Serve { directory: self.directory.clone(), source: error.into() })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::warn!(directory = %self.directory.display(), %error, "a mount could not be ended");
        }
    }
}

/// Clears a mount of ours from a directory, whether it is served or its server was killed. A mount that is in use is
/// detached, so that the directory is free at once. `EINVAL` where nothing is mounted.
pub fn unmount(directory: &Path) -> Result<(), MountError> {
    unmount_or_detach(directory).map(drop)
}

/// Unmounts, and says whether the mount had to be detached because it is in use.
fn unmount_or_detach(directory: &Path) -> Result<bool, MountError> {
    let unmounted = match rustix::mount::unmount(directory, UnmountFlags::NOFOLLOW) {
        Err(Errno::BUSY) => {
            rustix::mount::unmount(directory, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH).map(|()| true)
        }
        other => other.map(|()| false),
    };
    unmounted.map_err(|error| MountError::Unmount { directory: directory.to_owned(), source: error.into() })
}

/// Takes back a mount that never came to be served.
pub(crate) fn detach(directory: &Path) {
    if let Err(error) = rustix::mount::unmount(directory, UnmountFlags::DETACH) {
        tracing::debug!(directory = %directory.display(), %error, "taking back a mount failed");
    }
}
