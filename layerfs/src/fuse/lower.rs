//! A tree alone, served through FUSE to be the one lower layer of a kernel overlay.
//!
//! Invariant: a node is an inode of the tree and nothing else, so that nothing is remembered between requests, and its
//! number is the same in every mount. Nothing can be changed here, and no mark of the overlay's format ever reaches the
//! kernel from a layer: a layer that carries such an attribute would otherwise steer the overlay.

use std::{os::fd::OwnedFd, sync::Arc};

use rustix::io::{Errno, Result};

use super::{
    ahead::Ahead,
    channel::DATA_BYTES,
    dispatch::{FOR_EVER, LISTED_NAMES, attributes, directory_kind, is_hole, sized},
    reply::{Attributes, DirectoryEntry, Reply},
    request::{Header, Operation, flag},
    session::Server,
};
use crate::{
    tree::{Tree, TreeInode, XattrUse, seek},
    union::{MarkNamespace, Metadata, NodeId, Union, errno},
};

/// Positions of `.` and `..` in a listing.
const DOTS: u64 = 2;

const BLOCK_BYTES: u32 = 4096;

/// The tree of a union as the kernel's counterpart.
pub(crate) struct Lower<T: Tree + 'static> {
    union: Arc<Union<T>>,
    marks: MarkNamespace,
    xattr_use: XattrUse,
    /// Whether the kernel is told never to ask for attributes, if there are none.
    forgoes_xattrs: bool,
    ahead: Ahead<T>,
}

impl<T: Tree> Lower<T> {
    /// The tree under a union, for an overlay that keeps its marks in `marks`. `device` is another handle of the device
    /// whose requests are answered.
    pub(crate) fn new(union: Arc<Union<T>>, marks: MarkNamespace, forgoes_xattrs: bool, device: OwnedFd) -> Self {
        let (xattr_use, ahead) = (union.tree().xattr_use(), Ahead::new(Arc::clone(&union), device));
        Self { union, marks, xattr_use, forgoes_xattrs, ahead }
    }

    fn tree(&self) -> &T {
        self.union.tree()
    }

    fn metadata(&self, inode: TreeInode) -> Result<Metadata> {
        Ok(Metadata::of_tree(NodeId(inode.0), &self.tree().attributes(inode).map_err(errno)?))
    }

    fn find(&self, parent: TreeInode, name: &[u8]) -> Result<Option<Metadata>> {
        let found = self.tree().lookup(parent, name).map_err(errno)?;
        found.map(|inode| self.metadata(inode)).transpose()
    }

    /// Gives names with their numbers and positions to `add`, until that says that there is no more room.
    fn list(&self, directory: TreeInode, offset: u64, mut add: impl FnMut(Metadata, u64, &[u8]) -> bool) -> Result<()> {
        for (position, name) in [(1, &b"."[..]), (DOTS, b"..")].into_iter().skip(usize::try_from(offset).unwrap_or(2)) {
            // Nobody looks at the number of a parent: the overlay has its own.
            if add(self.metadata(directory)?, position, name) {
                return Ok(());
            }
        }
        let start = offset.saturating_sub(DOTS);
        let page = self.tree().entries(directory, start, LISTED_NAMES).map_err(errno)?;
        for (entry, position) in page.into_iter().zip(start + DOTS + 1..) {
            if add(self.metadata(entry.inode)?, position, &entry.name) {
                break;
            }
        }
        Ok(())
    }

    /// The next data or hole at or behind an offset, so that copy-up keeps holes.
    fn seek(&self, inode: TreeInode, offset: u64, hole: bool) -> Result<u64> {
        let size = self.tree().attributes(inode).map_err(errno)?.size_bytes;
        seek(&self.tree().data_extents(inode).map_err(errno)?, size, offset, hole)
    }
}

impl<T: Tree + 'static> Server for Lower<T> {
    fn agree(&mut self, offered: u64) -> u64 {
        // Not EXPORT_SUPPORT, with which the overlay would find again what it copied up in an earlier mount: since 6.16
        // the kernel takes what it found so for outdated at once (`d_time` is never set there), which ends in ESTALE.
        let wanted = flag::ASYNC_READ
            | flag::MAX_PAGES
            | flag::PARALLEL_DIROPS
            | flag::DO_READDIRPLUS
            | flag::READDIRPLUS_AUTO
            | flag::CACHE_SYMLINKS
            | flag::ASYNC_DIO;
        offered & if self.xattr_use == XattrUse::Acls { wanted | flag::POSIX_ACL } else { wanted }
    }

    fn answer(&self, header: &Header, operation: Operation<'_>, reply: &mut Reply) -> Result<()> {
        let inode = TreeInode(header.node);
        match operation {
            Operation::Lookup { name } => match self.find(inode, name)? {
                Some(found) => reply.entry(found.id.0, FOR_EVER, FOR_EVER, &attributes(&found)),
                None => reply.entry(0, FOR_EVER, FOR_EVER, &Attributes::default()),
            },
            Operation::GetAttributes => reply.attributes(FOR_EVER, &attributes(&self.metadata(inode)?)),
            Operation::ReadLink => reply.bytes(&self.tree().read_link(inode).map_err(errno)?),
            Operation::Read { offset, size } => {
                let size = (size as usize).min(DATA_BYTES);
                if offset == 0 {
                    self.ahead.note(inode);
                }
                reply.filled(size, |buffer| self.tree().read_at(inode, offset, buffer)).map_err(errno)?;
            }
            Operation::ReadDirectory { offset, size, with_attributes } => {
                self.list(inode, offset, |metadata, position, name| {
                    let attributes = with_attributes.then(|| (FOR_EVER, FOR_EVER, attributes(&metadata)));
                    let (node, kind) = (metadata.id.0, directory_kind(metadata.kind));
                    !reply.directory_entry(size as usize, &DirectoryEntry { node, position, kind, name, attributes })
                })?;
            }
            // The overlay shows the upper's.
            Operation::StatFs => reply.space([0, 0, 0, self.tree().last_inode().0, 0], BLOCK_BYTES),
            // "Never ask again": also the removal of an attribute that is not there then ends in EOPNOTSUPP.
            Operation::Xattr { .. } | Operation::XattrNames { .. }
                if self.xattr_use == XattrUse::Unused && self.forgoes_xattrs =>
            {
                return Err(Errno::NOSYS);
            }
            Operation::Xattr { .. } if self.xattr_use == XattrUse::Unused => return Err(Errno::NODATA),
            Operation::Xattr { name, size } => {
                let name = self.marks.shown(name).ok_or(Errno::NODATA)?;
                let value = self.tree().xattr(inode, &name).map_err(errno)?.ok_or(Errno::NODATA)?;
                sized(&value, size, reply)?;
            }
            Operation::XattrNames { size } => {
                let xattrs = self.tree().xattrs(inode).map_err(errno)?;
                let names = xattrs.iter().map(|(name, _)| self.marks.stored(name));
                let list: Vec<u8> = names.flat_map(|name| name.into_owned().into_iter().chain([0])).collect();
                sized(&list, size, reply)?;
            }
            Operation::Seek { offset, whence } => reply.u64(self.seek(inode, offset, is_hole(whence)?)?),
            // "Never ask again": the kernel then opens by itself and keeps its cache.
            _ => return Err(Errno::NOSYS),
        }
        Ok(())
    }

    fn forget(&self, _node: u64, _count: u64) {}
}
