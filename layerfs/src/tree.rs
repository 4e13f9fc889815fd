//! The merged read-only view of a stack of layers, as the union filesystem and the builder see it.
//!
//! [`Tree`] is the seam between what stores layers (an index over tar files, a stack of plain
//! directories) and what uses them. A tree never changes while it is open. Whiteouts and opaque
//! marks are resolved away: a tree has no deleted entries.

use std::io;
use std::sync::Arc;

use rustix::io::Errno;

/// An inode of a tree: 1 is the root, and the numbers are dense and the same for every opening
/// of an equal tree. Names that are hard links of one file share one `TreeInode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TreeInode(pub u64);

impl TreeInode {
    /// The root directory of every tree.
    pub const ROOT: Self = Self(1);
}

/// What an inode is. Hard links are names, not a kind of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharacterDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A socket. Layers as tar files cannot hold one; directories can.
    Socket,
}

/// A point in time: whole seconds since 1970 and nanoseconds below one second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Time {
    /// Seconds since the epoch; negative before it.
    pub seconds: i64,
    /// Nanoseconds after `seconds`, below 1,000,000,000.
    pub nanoseconds: u32,
}

/// The metadata of an inode, as `stat` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// What it is.
    pub kind: FileKind,
    /// Permission, set-id and sticky bits: `0o7777` at most.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// How many names it has; for a directory 2 plus its subdirectories.
    pub links: u32,
    /// Bytes of content of a file; length of the target of a symbolic link; 0 otherwise.
    pub size_bytes: u64,
    /// Bytes that hold data, holes left out.
    pub data_bytes: u64,
    /// Last change of the content.
    pub modified: Time,
    /// Major and minor number of a device; (0, 0) otherwise.
    pub device: (u32, u32),
}

/// One name in a directory of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// The name: no slash, no NUL, not empty, not `.` or `..`.
    pub name: Vec<u8>,
    /// Where it leads.
    pub inode: TreeInode,
    /// What is there.
    pub kind: FileKind,
}

/// What the extended attributes of a tree are used for, as far as that is known without looking at every inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum XattrUse {
    /// No inode has any.
    Unused,
    /// There may be some, but no access control lists.
    Plain,
    /// There may be access control lists, which the kernel is to enforce.
    Acls,
}

/// The beginning of the names of POSIX access control lists: `_access` and `_default` follow.
pub(crate) const ACL_PREFIX: &[u8] = b"system.posix_acl_";

/// The next data at or behind an offset, or the next hole, of a file with these extents ([`Tree::data_extents`]);
/// `ENXIO` behind the end, as `lseek` has it. Extents come from indexes that nobody has checked.
pub(crate) fn seek(extents: &[(u64, u64)], size_bytes: u64, offset: u64, hole: bool) -> rustix::io::Result<u64> {
    if offset >= size_bytes {
        return Err(Errno::NXIO);
    }
    let mut at = offset;
    for (start, length) in extents {
        let end = start.saturating_add(*length).min(size_bytes);
        if end <= at {
            continue;
        }
        match hole {
            false => return Ok(at.max(*start)),
            true if *start > at => return Ok(at),
            true => at = end,
        }
    }
    if hole { Ok(at.min(size_bytes)) } else { Err(Errno::NXIO) }
}

/// A merged read-only view of layers. Every call is safe from many threads at once.
///
/// Errors are the errno of the failing system call; damage in what a tree is stored in is `EIO`,
/// an inode of the wrong kind is `ENOTDIR`, `EISDIR` or `EINVAL`, an unknown inode is `ESTALE`.
/// No input makes an implementation panic.
pub trait Tree: Send + Sync {
    /// The inode that `name` leads to in `directory`; `None` where there is no such name.
    fn lookup(&self, directory: TreeInode, name: &[u8]) -> io::Result<Option<TreeInode>>;

    /// The metadata of an inode.
    fn attributes(&self, inode: TreeInode) -> io::Result<Attributes>;

    /// At most `limit` names of a directory in byte order, from the one with number `start` on
    /// (0 is the first); fewer than `limit` only at the end. `.` and `..` are not among them.
    fn entries(&self, directory: TreeInode, start: u64, limit: usize) -> io::Result<Vec<DirectoryEntry>>;

    /// Reads a file's content from `offset` into `buffer` and returns the number of bytes read:
    /// less than the buffer's length only at the end of the file. Holes read as zeros.
    fn read_at(&self, inode: TreeInode, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;

    /// The parts of a file that hold data, as (offset, length), ascending and not overlapping;
    /// the rest are holes.
    fn data_extents(&self, inode: TreeInode) -> io::Result<Vec<(u64, u64)>>;

    /// The target of a symbolic link.
    fn read_link(&self, inode: TreeInode) -> io::Result<Vec<u8>>;

    /// All extended attributes of an inode, sorted by name.
    fn xattrs(&self, inode: TreeInode) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>>;

    /// The value of one extended attribute.
    fn xattr(&self, inode: TreeInode, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(self.xattrs(inode)?.into_iter().find(|(n, _)| n == name).map(|(_, value)| value))
    }

    /// The SHA-256 of a file's content, where the tree knows it better than by having it read; `None` where not.
    fn content_digest(&self, inode: TreeInode) -> io::Result<Option<[u8; 32]>> {
        let _ = inode;
        Ok(None)
    }

    /// What extended attributes are there for. `Plain` where nobody says otherwise.
    fn xattr_use(&self) -> XattrUse {
        XattrUse::Plain
    }

    /// The greatest inode number that is in use.
    fn last_inode(&self) -> TreeInode;
}

impl<T: Tree + ?Sized> Tree for Arc<T> {
    fn lookup(&self, directory: TreeInode, name: &[u8]) -> io::Result<Option<TreeInode>> {
        (**self).lookup(directory, name)
    }

    fn attributes(&self, inode: TreeInode) -> io::Result<Attributes> {
        (**self).attributes(inode)
    }

    fn entries(&self, directory: TreeInode, start: u64, limit: usize) -> io::Result<Vec<DirectoryEntry>> {
        (**self).entries(directory, start, limit)
    }

    fn read_at(&self, inode: TreeInode, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        (**self).read_at(inode, offset, buffer)
    }

    fn data_extents(&self, inode: TreeInode) -> io::Result<Vec<(u64, u64)>> {
        (**self).data_extents(inode)
    }

    fn read_link(&self, inode: TreeInode) -> io::Result<Vec<u8>> {
        (**self).read_link(inode)
    }

    fn xattrs(&self, inode: TreeInode) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        (**self).xattrs(inode)
    }

    fn xattr(&self, inode: TreeInode, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
        (**self).xattr(inode, name)
    }

    fn content_digest(&self, inode: TreeInode) -> io::Result<Option<[u8; 32]>> {
        (**self).content_digest(inode)
    }

    fn xattr_use(&self) -> XattrUse {
        (**self).xattr_use()
    }

    fn last_inode(&self) -> TreeInode {
        (**self).last_inode()
    }
}
