//! A merged index as a [`Tree`]: metadata from the index, content straight from the layer tars.
//!
//! Invariant: errors are errnos as the trait promises; damage is `EIO`. It holds one open file a
//! layer, so that layers may be removed from the store while it is in use.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::SystemTime;

use super::file::{IndexError, IndexFile};
use super::format::InodeRecord;
use crate::digest::DiffId;
use crate::tar::Xattr;
use crate::tree::{Attributes, DirectoryEntry, FileKind, Tree, TreeInode, XattrUse};

/// The merged read-only view of a stack of layers in a store.
#[derive(Debug)]
pub struct TreeIndex {
    index: IndexFile,
    /// The layer tars, in the order of the index.
    tars: Vec<File>,
    /// Keeps garbage collection off what is in use here.
    _lease: Option<Arc<dyn std::fmt::Debug + Send + Sync>>,
}

impl TreeIndex {
    /// Serves an index; `tars` are those of [`TreeIndex::layers`], `lease` is kept as long.
    pub(crate) fn new(
        index: IndexFile,
        tars: Vec<File>,
        lease: Option<Arc<dyn std::fmt::Debug + Send + Sync>>,
    ) -> Self {
        Self { index, tars, _lease: lease }
    }

    /// The layers that it was made of, lowest first.
    pub fn layers(&self) -> Vec<DiffId> {
        self.index.layers()
    }

    /// Which layer the content of a file lies in, counted from the lowest; `None` for what is no file.
    ///
    /// # Errors
    /// As for every function of a tree.
    pub fn layer_of(&self, inode: TreeInode) -> io::Result<Option<usize>> {
        let record = self.inode(inode)?;
        Ok((record.kind == FileKind::File).then_some(record.layer as usize))
    }

    /// When each layer came into the store, lowest first.
    ///
    /// # Errors
    /// If the file system does not say.
    pub fn arrivals(&self) -> io::Result<Vec<SystemTime>> {
        self.tars.iter().map(|tar| tar.metadata()?.modified()).collect()
    }

    fn inode(&self, inode: TreeInode) -> io::Result<InodeRecord> {
        if inode.0 == 0 || inode.0 > self.index.inode_count() {
            return Err(rustix::io::Errno::STALE.into());
        }
        self.index.inode(inode.0).map_err(damage)
    }

    fn directory(&self, inode: TreeInode) -> io::Result<InodeRecord> {
        let record = self.inode(inode)?;
        if record.kind == FileKind::Directory { Ok(record) } else { Err(rustix::io::Errno::NOTDIR.into()) }
    }

    fn file(&self, inode: TreeInode) -> io::Result<InodeRecord> {
        let record = self.inode(inode)?;
        match record.kind {
            FileKind::File => Ok(record),
            FileKind::Directory => Err(rustix::io::Errno::ISDIR.into()),
            _ => Err(rustix::io::Errno::INVAL.into()),
        }
    }

    /// Reads stored bytes, all of them.
    fn read_tar(&self, layer: u32, position: u64, buffer: &mut [u8]) -> io::Result<()> {
        let tar = self.tars.get(layer as usize).ok_or(rustix::io::Errno::IO)?;
        tar.read_exact_at(buffer, position).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput => rustix::io::Errno::IO.into(),
            _ => error,
        })
    }

    fn read_sparse(&self, file: &InodeRecord, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        buffer.fill(0);
        let end = offset + buffer.len() as u64; // within the file
        for number in self.first_extent(file, offset)?..file.count {
            let (start, size_bytes, position) = self.index.extent(file, number).map_err(damage)?;
            let stop = start.checked_add(size_bytes).ok_or(rustix::io::Errno::IO)?;
            if start >= end {
                break;
            }
            let (from, to) = (start.max(offset), stop.min(end));
            if from < to {
                let within = position.checked_add(from - start).ok_or(rustix::io::Errno::IO)?;
                // Both lie within the buffer's range of the file.
                let part = &mut buffer[(from - offset) as usize..(to - offset) as usize];
                self.read_tar(file.layer, within, part)?;
            }
        }
        Ok(())
    }

    /// The first extent that ends behind `offset`.
    fn first_extent(&self, file: &InodeRecord, offset: u64) -> io::Result<u32> {
        let (mut low, mut high) = (0, file.count);
        while low < high {
            let middle = low + (high - low) / 2;
            let (start, size_bytes, _) = self.index.extent(file, middle).map_err(damage)?;
            if start.saturating_add(size_bytes) > offset { high = middle } else { low = middle + 1 }
        }
        Ok(low)
    }
}

/// Damage is `EIO`: callers of a file system have no better word for it.
fn damage(error: IndexError) -> io::Error {
    tracing::error!(%error, "a merged index is damaged");
    rustix::io::Errno::IO.into()
}

impl Tree for TreeIndex {
    fn lookup(&self, directory: TreeInode, name: &[u8]) -> io::Result<Option<TreeInode>> {
        let record = self.directory(directory)?;
        let entry = self.index.find(directory.0, &record, name).map_err(damage)?;
        Ok(entry.map(|entry| TreeInode(u64::from(entry.inode))))
    }

    fn attributes(&self, inode: TreeInode) -> io::Result<Attributes> {
        let record = self.inode(inode)?;
        let has_device = matches!(record.kind, FileKind::CharacterDevice | FileKind::BlockDevice);
        Ok(Attributes {
            kind: record.kind,
            mode: u32::from(record.mode),
            uid: record.uid,
            gid: record.gid,
            links: record.links,
            size_bytes: record.size_bytes,
            data_bytes: record.data_bytes,
            modified: record.modified,
            // The halves of 64 bits.
            device: if has_device { ((record.first >> 32) as u32, record.first as u32) } else { (0, 0) },
        })
    }

    fn entries(&self, directory: TreeInode, start: u64, limit: usize) -> io::Result<Vec<DirectoryEntry>> {
        let record = self.directory(directory)?;
        let start = u32::try_from(start).unwrap_or(u32::MAX);
        let positions = (start..record.count).take(limit);
        let entries = positions.map(|position| {
            let entry = self.index.entry(directory.0, &record, position).map_err(damage)?;
            let kind = entry.kind.ok_or(rustix::io::Errno::IO)?;
            Ok(DirectoryEntry { name: entry.name.to_vec(), inode: TreeInode(u64::from(entry.inode)), kind })
        });
        entries.collect()
    }

    fn read_at(&self, inode: TreeInode, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let file = self.file(inode)?;
        let left = usize::try_from(file.size_bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
        let count = left.min(buffer.len());
        let buffer = &mut buffer[..count];
        if file.count == 0 && file.data_bytes > 0 {
            let position = file.first.checked_add(offset).ok_or(rustix::io::Errno::IO)?;
            self.read_tar(file.layer, position, buffer)?;
        } else {
            self.read_sparse(&file, offset, buffer)?;
        }
        Ok(count)
    }

    fn data_extents(&self, inode: TreeInode) -> io::Result<Vec<(u64, u64)>> {
        let file = self.file(inode)?;
        if file.count == 0 {
            return Ok(if file.data_bytes > 0 { vec![(0, file.size_bytes)] } else { Vec::new() });
        }
        let extents = (0..file.count).map(|at| self.index.extent(&file, at).map(|(offset, size, _)| (offset, size)));
        extents.collect::<Result<_, _>>().map_err(damage)
    }

    fn read_link(&self, inode: TreeInode) -> io::Result<Vec<u8>> {
        let link = self.inode(inode)?;
        if link.kind != FileKind::Symlink {
            return Err(rustix::io::Errno::INVAL.into());
        }
        self.index.name(link.first, link.size_bytes).map(<[u8]>::to_vec).map_err(damage)
    }

    fn xattrs(&self, inode: TreeInode) -> io::Result<Vec<Xattr>> {
        self.index.xattrs(&self.inode(inode)?).map_err(damage)
    }

    fn xattr_use(&self) -> XattrUse {
        self.index.xattr_use()
    }

    fn last_inode(&self) -> TreeInode {
        TreeInode(self.index.inode_count())
    }
}
