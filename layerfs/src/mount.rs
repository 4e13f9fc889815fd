//! Mounting a union, serving it in the background, and unmounting it.
//!
//! Invariant: a mount lives no longer than its [`Mount`], unless the process is killed; then it is dead but
//! can be cleared with [`unmount`]. As root, or as root of a user namespace, the kernel is asked directly; as an
//! ordinary user, `fusermount3` is. There is no file-system semantics here.

use std::{
    ffi::CString,
    fmt::Write as _,
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    mount::{MountFlags, UnmountFlags},
};

use crate::{fuse::Served, ids::IdMapping, tree::Tree, union::Union};

/// What `mount` and /proc/mounts show as the type of our mounts.
const FILE_SYSTEM: &str = "fuse.nacre";

/// Threads that answer requests: two for a machine's worth of short ones (a single one was four times slower at
/// creating files), and two more because copy-up, fsync and the removal of large files can hold a thread on the disk.
const THREADS: usize = 4;

/// How a union is mounted.
#[derive(Debug, Clone, Copy, Default)]
pub struct MountOptions {
    /// Nothing can be changed; always so for a tree without an upper.
    pub read_only: bool,
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
    session: Option<BackgroundSession>,
    mounted_by: MountedBy,
    sync: Box<dyn Fn() -> rustix::io::Result<()> + Send + Sync>,
}

/// Who mounted, and so can unmount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MountedBy {
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
    let options = MountOptions { read_only: options.read_only || union.is_read_only() };
    let union = Arc::new(union);
    let served = Served::new(Arc::clone(&union), IdMapping::default());
    if rustix::process::geteuid().is_root() {
        let session = mount_directly(served, &directory, options)?;
        start(union, session, directory, MountedBy::Kernel)
    } else {
        let session = mount_as_user(served, &directory, options)?;
        start(union, session, directory, MountedBy::Fusermount)
    }
}

/// Serves a union on a device that another process mounted on `directory`, until it is unmounted. The ids of the image
/// are shown to the kernel, and taken from it, as `ids` says.
///
/// Such a mount is waited for; dropping it neither unmounts nor ends it.
pub fn serve<T: Tree + 'static>(
    union: Union<T>,
    device: OwnedFd,
    directory: &Path,
    ids: IdMapping,
) -> Result<Mount, MountError> {
    let union = Arc::new(union);
    let served = Served::new(Arc::clone(&union), ids);
    // Whom the kernel lets in was settled by whoever mounted.
    let session = Session::from_fd(served, device, SessionACL::All, config(SessionACL::All));
    let session = session.map_err(|source| MountError::Serve { directory: directory.to_owned(), source })?;
    start(union, session, directory.to_owned(), MountedBy::Other)
}

fn start<T: Tree + 'static>(
    union: Arc<Union<T>>,
    session: Session<Served<T>>,
    directory: PathBuf,
    mounted_by: MountedBy,
) -> Result<Mount, MountError> {
    let started = session.spawn();
    let session = started.map_err(|source| MountError::Serve { directory: directory.clone(), source })?;
    Ok(Mount { directory, session: Some(session), mounted_by, sync: Box::new(move || union.sync()) })
}

fn config(acl: SessionACL) -> Config {
    let mut config = Config::default();
    config.acl = acl;
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    config
}

fn mount_directly<T: Tree + 'static>(
    served: Served<T>,
    directory: &Path,
    options: MountOptions,
) -> Result<Session<Served<T>>, MountError> {
    let failed = |source| MountError::Mount { directory: directory.to_owned(), source };
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
    let flags = if options.read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    rustix::mount::mount("nacre", directory, FILE_SYSTEM, flags | MountFlags::NOATIME, &*data)
        .map_err(|error| failed(error.into()))?;
    Session::from_fd(served, device, SessionACL::All, config(SessionACL::All)).map_err(|source| {
        detach(directory);
        failed(source)
    })
}

fn mount_as_user<T: Tree + 'static>(
    served: Served<T>,
    directory: &Path,
    options: MountOptions,
) -> Result<Session<Served<T>>, MountError> {
    let mut config = config(SessionACL::Owner);
    config.mount_options = vec![
        MountOption::FSName("nacre".into()),
        MountOption::Subtype("nacre".into()),
        MountOption::DefaultPermissions,
        MountOption::NoAtime,
    ];
    if options.read_only {
        config.mount_options.push(MountOption::RO);
    }
    Session::new(served, directory, &config)
        .map_err(|source| MountError::Mount { directory: directory.to_owned(), source })
}

impl Mount {
    /// Where the union is mounted.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Unmounts what this process mounted, waits for the serving threads, and writes the upper to the disk. What is still in use is
    /// detached: it goes on being served until it is closed.
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
                let ended = session.umount_and_join();
                ended.map_err(|source| MountError::Unmount { directory: self.directory.clone(), source })?;
                self.sync_upper()
            }
            MountedBy::Other => self.sync_upper(),
        }
    }

    fn finish(&self, session: BackgroundSession) -> Result<(), MountError> {
        session.join().map_err(|source| MountError::Serve { directory: self.directory.clone(), source })?;
        self.sync_upper()
    }

    fn sync_upper(&self) -> Result<(), MountError> {
        (self.sync)().map_err(|error| MountError::Serve { directory: self.directory.clone(), source: error.into() })
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
fn detach(directory: &Path) {
    if let Err(error) = rustix::mount::unmount(directory, UnmountFlags::DETACH) {
        tracing::debug!(directory = %directory.display(), %error, "taking back a mount failed");
    }
}
