//! Changing metadata, extended attributes, and the space that is left.
//!
//! Invariant: the marks of the upper's format can be neither seen nor changed through the mount; an attribute of the
//! user's with such a name is stored under another one, as the kernel's overlayfs does.

use rustix::{
    fs::{Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, XattrFlags},
    io::{Errno, Result},
};

use super::{CAPABILITY, Metadata, NodeId, Union, acl, copy_up::timespec, errno, node::lock, overrides};
use crate::tree::{FileKind, Time, Tree};

/// A time to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// The moment of the call.
    Now,
    /// This time.
    At(Time),
}

/// What to change; the rest stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Change {
    /// Permission, set-id and sticky bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size of a file.
    pub size_bytes: Option<u64>,
    /// Last access.
    pub accessed: Option<SetTime>,
    /// Last change of content.
    pub modified: Option<SetTime>,
}

impl Change {
    fn is_of_owner_and_mode(&self) -> bool {
        (self.size_bytes, self.accessed, self.modified) == (None, None, None)
    }
}

/// The space of the file system of the upper, in units of `block_bytes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Unit of the counts.
    pub block_bytes: u64,
    /// All blocks.
    pub blocks: u64,
    /// Free blocks.
    pub free: u64,
    /// Blocks that an ordinary user may use.
    pub available: u64,
    /// All inodes.
    pub files: u64,
    /// Free inodes.
    pub free_files: u64,
}

impl<T: Tree> Union<T> {
    /// Changes metadata, and returns it as it is then. Owner, mode, size and times are set in this order.
    pub fn set_attributes(&self, node: NodeId, change: Change) -> Result<Metadata> {
        self.writable()?;
        let node = self.node(node)?;
        match (change.size_bytes, node.kind) {
            (None, _) if change.is_of_owner_and_mode() && !node.in_upper() => {
                if let Some(metadata) = self.copy_up_changed(&node, &change)? {
                    return Ok(metadata);
                }
            }
            (None, _) => self.copy_up_metadata(&node)?,
            (Some(size), FileKind::File) => self.copy_up_to(&node, size)?,
            (Some(_), FileKind::Directory) => return Err(Errno::ISDIR),
            (Some(_), _) => return Err(Errno::INVAL),
        }
        let handle = if change.size_bytes.is_some() { self.writing_handle(&node) } else { self.upper_handle(&node) }?;
        // Not while content is copied into the file, or a name into the directory, which puts back what that moves.
        let _copying = lock(&node.copying);
        let _names = node.is_directory().then(|| node.names()).transpose()?;
        if change.uid.is_some() || change.gid.is_some() {
            handle.set_owner(change.uid, change.gid)?;
        }
        if let Some(mode) = change.mode {
            if node.kind == FileKind::Symlink {
                return Err(Errno::OPNOTSUPP);
            }
            handle.set_mode(mode & 0o7777)?;
        }
        if let Some(size) = change.size_bytes {
            rustix::fs::ftruncate(&*handle, size)?;
        }
        if change.accessed.is_some() || change.modified.is_some() {
            let times =
                Timestamps { last_access: set_time(change.accessed), last_modification: set_time(change.modified) };
            handle.set_times(&times)?;
        }
        self.metadata_of(&node)
    }

    /// Takes the set-id bits from a file, as a write by someone else than root does. A set-group-id bit without the
    /// group's execute bit stays where `is_member` says so of the file's group: it never made anyone another.
    pub fn drop_set_id(&self, node: NodeId, is_member: impl FnOnce(u32) -> bool) -> Result<()> {
        const SET_USER_ID: u32 = 0o4000;
        const SET_GROUP_ID: u32 = 0o2000;
        const GROUP_EXECUTES: u32 = 0o010;
        let Metadata { mode, gid, .. } = self.metadata(node)?;
        let mut dropped = mode & SET_USER_ID;
        if mode & SET_GROUP_ID != 0 && (mode & GROUP_EXECUTES != 0 || !is_member(gid)) {
            dropped |= SET_GROUP_ID;
        }
        if dropped == 0 {
            return Ok(());
        }
        let change = Change { mode: Some(mode & !dropped), ..Change::default() };
        self.set_attributes(node, change).map(drop)
    }

    /// The value of an extended attribute; `None` where there is no such attribute.
    pub fn xattr(&self, node: NodeId, name: &[u8]) -> Result<Option<Vec<u8>>> {
        let node = self.node(node)?;
        if name == CAPABILITY && node.state().lacks_capability {
            return Ok(None);
        }
        if let Some(upper) = self.upper.as_ref().filter(|_| node.in_upper()) {
            return self.upper_handle(&node)?.xattr(&upper.marks.stored(name));
        }
        self.tree.xattr(node.lower.ok_or(Errno::STALE)?, name).map_err(errno)
    }

    /// The names of all extended attributes, sorted.
    pub fn xattr_names(&self, node: NodeId) -> Result<Vec<Vec<u8>>> {
        let node = self.node(node)?;
        if let Some(upper) = self.upper.as_ref().filter(|_| node.in_upper()) {
            let stored = self.upper_handle(&node)?.xattr_names()?;
            let mut names: Vec<_> =
                stored.iter().filter_map(|name| Some(upper.marks.shown(name)?.into_owned())).collect();
            names.sort();
            return Ok(names);
        }
        let xattrs = self.tree.xattrs(node.lower.ok_or(Errno::STALE)?).map_err(errno)?;
        Ok(xattrs.into_iter().map(|(name, _)| name).collect())
    }

    /// Sets an extended attribute.
    pub fn set_xattr(&self, node: NodeId, name: &[u8], value: &[u8], flags: XattrFlags) -> Result<()> {
        let upper = self.writable()?;
        if upper.has_aufs_marks && name.starts_with(overrides::PREFIX) {
            // A later mount would take it for what the store says.
            return Err(Errno::PERM);
        }
        let stored = upper.marks.stored(name);
        let node = self.node(node)?;
        let exists = || -> Result<bool> { Ok(self.xattr(node.id, name)?.is_some()) };
        // Before anything is copied for nothing.
        if flags.contains(XattrFlags::CREATE) && exists()? {
            return Err(Errno::EXIST);
        }
        if flags.contains(XattrFlags::REPLACE) && !exists()? {
            return Err(Errno::NODATA);
        }
        if acl::matters(name, value) {
            upper.note_acls()?;
        }
        self.copy_up_metadata(&node)?;
        let _copying = lock(&node.copying);
        match name {
            CAPABILITY => node.state().lacks_capability = false,
            acl::DEFAULT => node.state().lacks_default_acl = false,
            _ => {}
        }
        self.upper_handle(&node)?.set_xattr(&stored, value, flags)
    }

    /// Removes an extended attribute; `ENODATA` where there is no such attribute.
    pub fn remove_xattr(&self, node: NodeId, name: &[u8]) -> Result<()> {
        let stored = self.writable()?.marks.stored(name);
        let node = self.node(node)?;
        if self.xattr(node.id, name)?.is_none() {
            return Err(Errno::NODATA);
        }
        self.copy_up_metadata(&node)?;
        let _copying = lock(&node.copying);
        self.upper_handle(&node)?.remove_xattr(&stored)
    }

    /// The space of the upper's file system; of a tree alone, nothing and none free.
    pub fn space(&self) -> Result<Space> {
        let Some(upper) = &self.upper else {
            let files = self.tree.last_inode().0;
            return Ok(Space { block_bytes: 4096, blocks: 0, free: 0, available: 0, files, free_files: 0 });
        };
        let stat = rustix::fs::fstatvfs(&*upper.root)?;
        Ok(Space {
            block_bytes: stat.f_frsize,
            blocks: stat.f_blocks,
            free: stat.f_bfree,
            available: stat.f_bavail,
            files: stat.f_files,
            free_files: stat.f_ffree,
        })
    }
}

fn set_time(time: Option<SetTime>) -> Timespec {
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        Some(SetTime::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        Some(SetTime::At(time)) => timespec(time),
    }
}
