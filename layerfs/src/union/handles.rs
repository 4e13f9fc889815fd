//! Open files of the upper, a bounded number of them kept for the next operation.
//!
//! Invariant: a handle refers to the file itself, so it stays right over renames; the cache never holds
//! more than its capacity, whatever is created, forgotten or removed.

use std::{
    collections::{HashMap, VecDeque},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex},
};

use rustix::{
    fs::{AtFlags, Gid, Mode, OFlags, Stat, Timestamps, Uid, XattrFlags},
    io::{Errno, Result},
};

use super::{
    NodeId,
    grants::{self, Moment},
    node::lock,
};

/// Greatest size of an xattr value and of a list of names in Linux (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const XATTR_BYTES: usize = 64 << 10;

/// An open file of the upper. Symbolic links and special files are opened as a path only.
#[derive(Debug)]
pub(crate) struct Handle {
    fd: OwnedFd,
    path_only: bool,
    read_only: bool,
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Handle {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self { fd, path_only: false, read_only: false }
    }

    /// A handle opened with `O_PATH`.
    pub(crate) fn path_only(fd: OwnedFd) -> Self {
        Self { fd, path_only: true, read_only: false }
    }

    /// A handle of a file that could not be opened for writing.
    pub(crate) fn read_only(fd: OwnedFd) -> Self {
        Self { fd, path_only: false, read_only: true }
    }

    /// The same file with a handle for writing, where this one is none.
    pub(crate) fn for_writing(&self) -> Result<Option<Self>> {
        if !self.read_only {
            return Ok(None);
        }
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let open = || rustix::fs::open(self.magic_path(), flags, Mode::empty());
        self.granted(0o600, open).map(|fd| Some(Self::new(fd)))
    }

    /// Does something with this file that its mode may forbid its owner, who we are then: without CAP_DAC_OVERRIDE the
    /// mode has these bits for a moment. What users may do was decided by the kernel, when they asked.
    pub(crate) fn granted<T>(&self, bits: u32, act: impl Fn() -> Result<T>) -> Result<T> {
        match act() {
            Err(Errno::ACCESS) => {}
            done => return done,
        }
        let mut moment = Moment::begin();
        let stat = self.stat()?;
        let mode = stat.st_mode & 0o7777;
        // Somebody granted it to us meanwhile.
        if mode | bits == mode {
            return act();
        }
        moment.note(&stat);
        // The file of somebody else.
        if self.change_mode(mode | bits).is_err() {
            return act();
        }
        let done = act();
        self.change_mode(mode).and(done)
    }

    pub(crate) fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// The kernel's own name of this open file: the one way to reach what was opened with `O_PATH`
    /// from calls that take a path and would follow a link.
    pub(crate) fn magic_path(&self) -> String {
        format!("/proc/self/fd/{}", self.fd.as_raw_fd())
    }

    pub(crate) fn stat(&self) -> Result<Stat> {
        rustix::fs::fstat(&self.fd)
    }

    pub(crate) fn set_mode(&self, mode: u32) -> Result<()> {
        let _others = grants::others();
        self.change_mode(mode)
    }

    fn change_mode(&self, mode: u32) -> Result<()> {
        let mode = Mode::from_raw_mode(mode);
        if self.path_only {
            return rustix::fs::chmodat(rustix::fs::CWD, self.magic_path(), mode, AtFlags::empty());
        }
        rustix::fs::fchmod(&self.fd, mode)
    }

    pub(crate) fn set_owner(&self, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        rustix::fs::chownat(&self.fd, "", uid.map(Uid::from_raw), gid.map(Gid::from_raw), AtFlags::EMPTY_PATH)
    }

    pub(crate) fn set_times(&self, times: &Timestamps) -> Result<()> {
        if self.path_only {
            return rustix::fs::utimensat(&self.fd, "", times, AtFlags::EMPTY_PATH);
        }
        rustix::fs::futimens(&self.fd, times)
    }

    pub(crate) fn xattr(&self, name: &[u8]) -> Result<Option<Vec<u8>>> {
        read_xattr(|buffer| {
            if self.path_only {
                rustix::fs::getxattr(self.magic_path(), name, buffer)
            } else {
                rustix::fs::fgetxattr(&self.fd, name, buffer)
            }
        })
    }

    /// An extended attribute of what is in this directory under a name: one system call, where opening takes three.
    pub(crate) fn xattr_of(&self, child: &[u8], name: &[u8]) -> Result<Option<Vec<u8>>> {
        let mut path = self.magic_path().into_bytes();
        path.push(b'/');
        path.extend_from_slice(child);
        match read_xattr(|buffer| rustix::fs::lgetxattr(&path[..], name, buffer)) {
            Err(Errno::ACCESS) => {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let child = Self::path_only(rustix::fs::openat(&self.fd, child, flags, Mode::empty())?);
                child.granted(0o400, || child.xattr(name))
            }
            read => read,
        }
    }

    pub(crate) fn set_xattr(&self, name: &[u8], value: &[u8], flags: XattrFlags) -> Result<()> {
        if self.path_only {
            return rustix::fs::setxattr(self.magic_path(), name, value, flags);
        }
        rustix::fs::fsetxattr(&self.fd, name, value, flags)
    }

    pub(crate) fn remove_xattr(&self, name: &[u8]) -> Result<()> {
        if self.path_only {
            return rustix::fs::removexattr(self.magic_path(), name);
        }
        rustix::fs::fremovexattr(&self.fd, name)
    }

    /// The names of all extended attributes, sorted.
    pub(crate) fn xattr_names(&self) -> Result<Vec<Vec<u8>>> {
        let mut buffer = vec![0; XATTR_BYTES];
        let listed = if self.path_only {
            rustix::fs::listxattr(self.magic_path(), &mut buffer[..])
        } else {
            rustix::fs::flistxattr(&self.fd, &mut buffer[..])
        };
        let length = match listed {
            Err(Errno::OPNOTSUPP) => 0,
            other => other?,
        };
        let names = buffer[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
        let mut names: Vec<Vec<u8>> = names.map(<[u8]>::to_vec).collect();
        names.sort();
        Ok(names)
    }
}

pub(super) fn read_xattr(read: impl Fn(&mut [u8]) -> Result<usize>) -> Result<Option<Vec<u8>>> {
    // Nearly all values are short; the rest is read again with room for the longest.
    let mut short = [0; 256];
    match read(&mut short) {
        Ok(length) => Ok(Some(short[..length].to_vec())),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(Errno::RANGE) => {
            let mut long = vec![0; XATTR_BYTES];
            let length = read(&mut long)?;
            long.truncate(length);
            Ok(Some(long))
        }
        Err(error) => Err(error),
    }
}

/// Recently used handles by node: second-chance replacement.
#[derive(Debug)]
pub(super) struct Handles {
    capacity: usize,
    cached: Mutex<Cached>,
}

#[derive(Debug, Default)]
struct Cached {
    by_node: HashMap<NodeId, Slot>,
    /// Nodes with the stamp of their slot, oldest first; pairs that match no slot are ignored.
    order: VecDeque<(NodeId, u64)>,
    stamp: u64,
}

#[derive(Debug)]
struct Slot {
    handle: Arc<Handle>,
    stamp: u64,
    used: bool,
}

impl Handles {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, cached: Mutex::default() }
    }

    pub(super) fn find(&self, node: NodeId) -> Option<Arc<Handle>> {
        let mut cached = lock(&self.cached);
        let slot = cached.by_node.get_mut(&node)?;
        slot.used = true;
        Some(Arc::clone(&slot.handle))
    }

    pub(super) fn insert(&self, node: NodeId, handle: &Arc<Handle>) {
        let mut cached = lock(&self.cached);
        let cached = &mut *cached;
        cached.stamp += 1;
        let stamp = cached.stamp;
        cached.by_node.insert(node, Slot { handle: Arc::clone(handle), stamp, used: false });
        cached.order.push_back((node, stamp));
        while cached.by_node.len() > self.capacity || cached.order.len() > 2 * self.capacity {
            let Some((id, stamp)) = cached.order.pop_front() else { break };
            match cached.by_node.get_mut(&id) {
                Some(slot) if slot.stamp == stamp && slot.used => {
                    slot.used = false;
                    cached.order.push_back((id, stamp));
                }
                Some(slot) if slot.stamp == stamp => drop(cached.by_node.remove(&id)),
                _ => {}
            }
        }
    }

    pub(super) fn remove(&self, node: NodeId) -> Option<Arc<Handle>> {
        lock(&self.cached).by_node.remove(&node).map(|slot| slot.handle)
    }
}
