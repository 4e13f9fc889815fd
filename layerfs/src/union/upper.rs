//! The upper and work directories: opening them, and the way from a node to its file in the upper.
//!
//! Invariant: a file of the upper is reached through the handle of its directory and one name, and is used
//! only if its inode number is the one the node remembers, so that a rename that happens at the same time can
//! never lead to another file. No path is ever built.

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use rustix::{
    fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, Stat},
    io::{Errno, Result},
};

use super::{
    OpenError, Owner, Union, UpperOptions, grants,
    groups::Groups,
    handles::{Handle, Handles},
    marks::MarkNamespace,
    node::{Link, Node},
};
use crate::tree::{FileKind, Tree};

/// How often a lookup by name is repeated when a rename got in between; each try needs a new rename to fail.
const RACES: usize = 64;

/// In the work directory of an upper that has access control lists.
const ACLS: &str = "acls";

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);

const FILE: OFlags = OFlags::NOFOLLOW.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);

/// The writable layer.
#[derive(Debug)]
pub(super) struct Upper {
    pub(super) root: Arc<Handle>,
    /// `work/nacre/tmp`.
    pub(super) temporary: OwnedFd,
    pub(super) marks: MarkNamespace,
    pub(super) renames_directories: bool,
    pub(super) durable: bool,
    pub(super) splits_metadata: bool,
    pub(super) has_aufs_marks: bool,
    pub(super) has_overrides: bool,
    pub(super) handles: Handles,
    pub(super) groups: Groups,
    /// Set once the file system or the kernel refused a 0:0 device: whiteouts are xattrs from then on.
    pub(super) without_devices: AtomicBool,
    /// Nothing was in it when it was opened.
    pub(super) is_empty: bool,
    /// Nothing was ever in it, and it is to look like the tree's root.
    pub(super) is_new: bool,
    /// Someone else made it: it may hold what this union would not have written so.
    pub(super) is_foreign: bool,
    /// Whom the file system takes for the owner of what we make.
    pub(super) owner: Owner,
    /// The work directory passes its group on.
    pub(super) passes_group: bool,
    /// A file in `tmp` that whiteouts are links of.
    pub(super) whiteout: Mutex<Option<String>>,
    /// Something in it has an access control list, or may have; remembered in the work directory.
    pub(super) acls: AtomicBool,
    names: AtomicU64,
    /// Locked while this union is open.
    work: OwnedFd,
    /// Where modes that change for a moment are noted.
    _grants: Arc<OwnedFd>,
}

impl Drop for Upper {
    fn drop(&mut self) {
        // A child of this process that has not yet executed its program holds a copy of every descriptor,
        // and would keep the lock for a moment longer than this union.
        self.unlock();
    }
}

impl Upper {
    pub(super) fn open(
        upper: OwnedFd,
        work: OwnedFd,
        options: UpperOptions,
    ) -> std::result::Result<(Self, Stat), OpenError> {
        let failed = |action| move |source| OpenError::System { action, source };
        let stat = rustix::fs::fstat(&upper).map_err(failed("reading the upper directory"))?;
        let work_stat = rustix::fs::fstat(&work).map_err(failed("reading the work directory"))?;
        if stat.st_dev != work_stat.st_dev {
            return Err(OpenError::SeparateFileSystems);
        }
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Err(OpenError::System { action: "opening the upper directory", source: Errno::NOTDIR });
        }
        let reading = failed("reading the directories above");
        if is_within(&work, &stat).map_err(reading)? || is_within(&upper, &work_stat).map_err(reading)? {
            return Err(OpenError::Nested);
        }
        // The caller's descriptors may be O_PATH; ours must list, sync and carry xattrs.
        let root = open_quietly(&upper, b".", DIRECTORY).map_err(failed("opening the upper directory"))?;
        let is_empty = is_empty_directory(&root).map_err(failed("reading the upper directory"))?;
        let is_first = matches!(rustix::fs::statat(&work, "nacre", AtFlags::SYMLINK_NOFOLLOW), Err(Errno::NOENT));
        let is_new = options.adopts_root && is_empty && is_first;
        let own = make_directory(&work, "nacre").map_err(failed("preparing the work directory"))?;
        match rustix::fs::flock(&own, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Err(OpenError::InUse),
            other => other.map_err(failed("locking the work directory"))?,
        }
        let is_foreign = is_foreign(&own, is_first && !is_empty).map_err(failed("preparing the work directory"))?;
        let temporary = make_directory(&own, "tmp").map_err(failed("preparing the work directory"))?;
        empty_directory(&temporary).map_err(failed("cleaning the work directory"))?;
        let has_acls = exists(&own, ACLS).map_err(failed("preparing the work directory"))?;
        let index = make_directory(&own, "index").map_err(failed("preparing the work directory"))?;
        let grants = grants::restore(&own, &root, &index).map_err(failed("giving a file its mode back"))?;
        let groups = Groups::open(index).map_err(failed("reading the hard links in the work directory"))?;
        let upper = Self {
            root: Arc::new(Handle::new(root)),
            temporary,
            marks: options.marks,
            renames_directories: options.renames_directories,
            durable: options.durable,
            splits_metadata: options.splits_metadata,
            has_aufs_marks: options.has_aufs_marks,
            has_overrides: options.has_overrides,
            handles: Handles::new(options.open_files.max(8)),
            groups,
            without_devices: AtomicBool::new(false),
            is_empty,
            is_new,
            is_foreign,
            owner: Owner { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() },
            passes_group: work_stat.st_mode & Mode::SGID.as_raw_mode() != 0,
            whiteout: Mutex::default(),
            acls: AtomicBool::new(has_acls),
            names: AtomicU64::new(0),
            work: own,
            _grants: grants,
        };
        Ok((upper, stat))
    }

    /// Remembers that there are access control lists, before the first one is there.
    pub(super) fn note_acls(&self) -> Result<()> {
        if !self.acls.load(Ordering::Relaxed) {
            make_directory(&self.work, ACLS)?;
            self.acls.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Keeps what was opened for a node; `None` where it is another file.
    fn keep(&self, node: &Node, inode: u64, opened: Result<Handle>) -> Result<Option<Arc<Handle>>> {
        match opened {
            Ok(handle) if handle.stat()?.st_ino == inode => {
                let handle = Arc::new(handle);
                if matches!(node.kind, FileKind::File | FileKind::Directory) {
                    self.handles.insert(node.id, &handle);
                }
                Ok(Some(handle))
            }
            Ok(_) | Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::NXIO) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Lets another union have the directories.
    pub(super) fn unlock(&self) {
        if let Err(error) = rustix::fs::flock(&self.work, FlockOperation::Unlock) {
            tracing::debug!(%error, "unlocking the work directory failed");
        }
    }

    /// `work/nacre`.
    pub(super) fn work(&self) -> &OwnedFd {
        &self.work
    }

    /// A name in `tmp` that is free: `tmp` was emptied under a lock, and every name is given out once.
    pub(super) fn temporary_name(&self) -> String {
        format!("{:x}", self.names.fetch_add(1, Ordering::Relaxed))
    }

    /// Removes what is in `tmp` under a name, with everything below it. What fails stays for the next opening.
    pub(super) fn discard(&self, name: &str) {
        if let Err(Errno::ISDIR | Errno::PERM) = rustix::fs::unlinkat(&self.temporary, name, AtFlags::empty()) {
            let emptied = open_directory(&self.temporary, name.as_bytes()).and_then(|fd| empty_directory(&fd));
            let removed = emptied.and_then(|()| rustix::fs::unlinkat(&self.temporary, name, AtFlags::REMOVEDIR));
            if let Err(error) = removed {
                tracing::debug!(name, %error, "removing a temporary directory of the upper failed");
            }
        }
    }
}

/// Whether an upper was made by someone else, which is remembered in the work directory.
pub(super) fn is_foreign(own: &OwnedFd, is_found_so: bool) -> Result<bool> {
    if is_found_so {
        make_directory(own, "foreign")?;
    }
    exists(own, "foreign")
}

pub(super) fn exists(directory: &OwnedFd, name: &str) -> Result<bool> {
    match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

pub(super) fn make_directory(parent: &OwnedFd, name: &str) -> Result<OwnedFd> {
    match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => open_directory(parent, name.as_bytes()),
        Err(error) => Err(error),
    }
}

pub(super) fn open_directory(parent: impl std::os::fd::AsFd, name: &[u8]) -> Result<OwnedFd> {
    open_quietly(parent, name, DIRECTORY)
}

/// Opens so that reading leaves the time of access alone, which only the owner may ask for.
pub(crate) fn open_quietly(parent: impl std::os::fd::AsFd, name: &[u8], flags: OFlags) -> Result<OwnedFd> {
    let open = |flags| rustix::fs::openat(&parent, name, flags, Mode::empty());
    match open(flags | OFlags::NOATIME) {
        Err(Errno::PERM) => open(flags),
        other => other,
    }
}

/// Whether a directory is the one with these attributes, or lies in it.
fn is_within(directory: &OwnedFd, above: &Stat) -> Result<bool> {
    let mut at = open_quietly(directory, b".", DIRECTORY)?;
    let mut stat = rustix::fs::fstat(&at)?;
    loop {
        if (stat.st_dev, stat.st_ino) == (above.st_dev, above.st_ino) {
            return Ok(true);
        }
        at = match rustix::fs::openat(&at, "..", DIRECTORY | OFlags::PATH, Mode::empty()) {
            // Who may not look further up was given the directories by somebody who may.
            Err(Errno::ACCESS) => return Ok(false),
            found => found?,
        };
        let parent = rustix::fs::fstat(&at)?;
        // The root lies in itself.
        if (parent.st_dev, parent.st_ino) == (stat.st_dev, stat.st_ino) {
            return Ok(false);
        }
        stat = parent;
    }
}

fn is_empty_directory(directory: &OwnedFd) -> Result<bool> {
    for entry in rustix::fs::Dir::read_from(directory)? {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Removes everything in a directory. Works through one open directory a level, so depth is bounded by
/// what a directory can hold, and links are removed, not followed.
pub(super) fn empty_directory(directory: &OwnedFd) -> Result<()> {
    let mut levels = vec![(rustix::fs::openat(directory, ".", DIRECTORY, Mode::empty())?, None::<Vec<u8>>)];
    while let Some((level, _)) = levels.last() {
        let mut below = None;
        for entry in rustix::fs::Dir::read_from(level)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            match rustix::fs::unlinkat(level, name, AtFlags::empty()) {
                Ok(()) => {}
                Err(Errno::ISDIR | Errno::PERM) => {
                    below = Some(name.to_vec());
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(name) = below {
            levels.push((open_directory(level, &name)?, Some(name)));
            continue;
        }
        let name = levels.pop().and_then(|(_, name)| name);
        if let (Some(name), Some((parent, _))) = (name, levels.last()) {
            rustix::fs::unlinkat(parent, &name[..], AtFlags::REMOVEDIR)?;
        }
    }
    Ok(())
}

/// Opens one name for what can be done with its kind: files for reading and writing, or reading alone, directories for
/// listing, everything else as a path. Opening never blocks and never follows.
pub(crate) fn open_at(directory: impl std::os::fd::AsFd, name: &[u8], kind: FileKind) -> Result<Handle> {
    let path = || {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&directory, name, flags, Mode::empty()).map(Handle::path_only)
    };
    let open = |access| open_quietly(&directory, name, FILE.union(access));
    let opened = match kind {
        FileKind::Directory => open_directory(&directory, name).map(Handle::new),
        FileKind::File => match open(OFlags::RDWR) {
            // Without CAP_DAC_OVERRIDE the owner cannot write what is read-only, and mostly need not.
            Err(Errno::ACCESS | Errno::PERM | Errno::ROFS) => open(OFlags::RDONLY).map(Handle::read_only),
            other => other.map(Handle::new),
        },
        _ => path(),
    };
    match (opened, kind) {
        (Err(Errno::ACCESS), FileKind::Directory) => {
            path()?.granted(0o400, || open_directory(&directory, name)).map(Handle::new)
        }
        (Err(Errno::ACCESS), FileKind::File) => path()?.granted(0o600, || open(OFlags::RDWR)).map(Handle::new),
        (opened, _) => opened,
    }
}

/// Where the file of a node in the upper can be found.
enum Place {
    Pinned(Arc<Handle>),
    Indexed,
    Named(Link),
}

impl<T: Tree> Union<T> {
    /// The open file of a node in the upper; `ESTALE` where it has none.
    pub(super) fn upper_handle(&self, node: &Arc<Node>) -> Result<Arc<Handle>> {
        let upper = self.upper.as_ref().ok_or(Errno::STALE)?;
        if node.id == self.root.id {
            return Ok(Arc::clone(&upper.root));
        }
        if let Some(handle) = upper.handles.find(node.id) {
            return Ok(handle);
        }
        for _ in 0..RACES {
            if let Some(handle) = self.open_in_upper(upper, node)? {
                return Ok(handle);
            }
        }
        Err(Errno::STALE)
    }

    /// Opens the file of a node, and what is above it as far as that is not open; `None` where a rename got in
    /// between. Not by recursion: how deep directories lie is for users to say.
    fn open_in_upper(&self, upper: &Upper, node: &Arc<Node>) -> Result<Option<Arc<Handle>>> {
        let mut closed = Vec::new();
        let mut at = Arc::clone(node);
        let mut handle = loop {
            if at.id == self.root.id {
                break Arc::clone(&upper.root);
            }
            if let Some(handle) = upper.handles.find(at.id) {
                break handle;
            }
            let (inode, place) = self.place(&at)?;
            match place {
                Place::Pinned(handle) => break handle,
                Place::Indexed => {
                    let opened = upper.groups.open_file(at.lower.ok_or(Errno::STALE)?, at.kind);
                    match upper.keep(&at, inode, opened)? {
                        Some(handle) => break handle,
                        None => return Ok(None),
                    }
                }
                Place::Named(Link { parent, name, .. }) => {
                    closed.push((std::mem::replace(&mut at, parent), inode, name));
                }
            }
        };
        for (node, inode, name) in closed.into_iter().rev() {
            match upper.keep(&node, inode, open_at(&*handle, &name, node.kind))? {
                Some(opened) => handle = opened,
                None => return Ok(None),
            }
        }
        Ok(Some(handle))
    }

    /// As [`Self::upper_handle`], for writing to the file.
    pub(super) fn writing_handle(&self, node: &Arc<Node>) -> Result<Arc<Handle>> {
        let handle = self.upper_handle(node)?;
        let Some(writing) = handle.for_writing()? else { return Ok(handle) };
        let writing = Arc::new(writing);
        if let Some(pinned) = &mut node.state().pinned {
            *pinned = Arc::clone(&writing);
        }
        self.writable()?.handles.insert(node.id, &writing);
        Ok(writing)
    }

    /// What `stat` shows of the file of a node in the upper, without opening it where that can be avoided.
    pub(super) fn upper_stat(&self, node: &Arc<Node>) -> Result<Stat> {
        let upper = self.upper.as_ref().ok_or(Errno::STALE)?;
        if let Some(handle) = upper.handles.find(node.id) {
            return handle.stat();
        }
        if node.id != self.root.id
            && let (inode, Place::Named(link)) = self.place(node)?
            && let Ok(stat) =
                rustix::fs::statat(&*self.upper_handle(&link.parent)?, &*link.name, AtFlags::SYMLINK_NOFOLLOW)
            && stat.st_ino == inode
        {
            return Ok(stat);
        }
        self.upper_handle(node)?.stat()
    }

    fn place(&self, node: &Node) -> Result<(u64, Place)> {
        let state = node.state();
        let inode = state.upper.ok_or(Errno::STALE)?;
        let place = match (&state.pinned, state.indexed) {
            (Some(handle), _) => Place::Pinned(Arc::clone(handle)),
            (None, true) => Place::Indexed,
            (None, false) => Place::Named(state.links.iter().find(|link| link.in_upper).cloned().ok_or(Errno::STALE)?),
        };
        Ok((inode, place))
    }

    /// Keeps the upper file of a node open, because it is about to lose a name and may be in use without one.
    pub(super) fn pin(&self, node: &Arc<Node>) -> Result<()> {
        if node.in_upper() && node.state().pinned.is_none() {
            let handle = self.upper_handle(node)?;
            node.state().pinned = Some(handle);
        }
        Ok(())
    }
}
