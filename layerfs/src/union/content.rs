//! Reading and writing what is in files.
//!
//! Invariant: after the copy of a file is published no answer comes from the tree any more; before, the bytes are
//! equal, so that pages the kernel has cached stay right.

use std::sync::Arc;

use rustix::{
    fs::{FallocateFlags, SeekFrom, Timespec, Timestamps, UTIME_OMIT},
    io::{Errno, Result},
};

use super::{
    Metadata, NodeId, Union,
    copy_up::{timespec, write_all},
    errno,
    handles::Handle,
    node::{Node, lock},
};
use crate::{
    sys,
    tree::{self, FileKind, Tree},
};

/// Data is moved between two files in pieces of this size where the kernel cannot do it.
const CHUNK_BYTES: usize = 256 << 10;

/// A large file goes to the disk in pieces of this size while the rest of it is still written, so that the sync at its end
/// has little left to wait for: some milliseconds of a fast disk.
const EARLY_BYTES: u64 = 8 << 20;

/// Writes below this size do not tell of a large file that is written from its beginning to its end.
const LARGE_WRITE_BYTES: usize = 128 << 10;

impl<T: Tree> Union<T> {
    fn file(&self, id: NodeId) -> Result<Arc<Node>> {
        let node = self.node(id)?;
        match node.kind {
            FileKind::File => Ok(node),
            FileKind::Directory => Err(Errno::ISDIR),
            _ => Err(Errno::INVAL),
        }
    }

    /// Reads from a file; fewer bytes than asked for at the end only.
    pub fn read(&self, node: NodeId, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let node = self.file(node)?;
        self.read_node(&node, offset, buffer)
    }

    fn read_node(&self, node: &Arc<Node>, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        if !node.is_complete() {
            return self.tree.read_at(node.lower.ok_or(Errno::STALE)?, offset, buffer).map_err(errno);
        }
        let handle = self.upper_handle(node)?;
        let mut filled = 0;
        while filled < buffer.len() {
            match rustix::io::pread(&*handle, &mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    /// Writes all of `data` to a file.
    pub fn write(&self, node: NodeId, offset: u64, data: &[u8]) -> Result<()> {
        let node = self.file(node)?;
        self.copy_up(&node)?;
        let handle = self.writing_handle(&node)?;
        write_all(&handle, data, offset)?;
        self.begin_writing(&handle, offset, data.len())
    }

    /// As [`Self::write`], for bytes that the kernel kept for a while: it keeps the time of change as well, and tells
    /// it where it is not the one that it was told last. That one stays until then.
    pub fn write_back(&self, node: NodeId, offset: u64, data: &[u8]) -> Result<()> {
        let node = self.file(node)?;
        self.copy_up(&node)?;
        let handle = self.writing_handle(&node)?;
        {
            // The time of another write that has not put it back yet is none to keep, and one that is set is.
            let _alone = lock(&node.copying);
            let modified = Metadata::of_upper(node.id, &handle.stat()?).modified;
            write_all(&handle, data, offset)?;
            let last_access = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
            handle.set_times(&Timestamps { last_access, last_modification: timespec(modified) })?;
        }
        self.begin_writing(&handle, offset, data.len())
    }

    /// After a large write: has the kernel begin with the piece of the file that it completed.
    fn begin_writing(&self, handle: &Handle, offset: u64, length: usize) -> Result<()> {
        let complete = (offset + length as u64) / EARLY_BYTES * EARLY_BYTES;
        if length >= LARGE_WRITE_BYTES && complete > offset && self.writable()?.durable {
            // What the disk has to say is said to who syncs.
            _ = sys::begin_writing(handle, complete - EARLY_BYTES..complete);
        }
        Ok(())
    }

    /// Changes what a range of a file takes on the disk: `mode` as for `fallocate`.
    pub fn allocate(&self, node: NodeId, offset: u64, length: u64, mode: FallocateFlags) -> Result<()> {
        let node = self.file(node)?;
        self.copy_up(&node)?;
        rustix::fs::fallocate(&*self.writing_handle(&node)?, mode, offset, length)
    }

    /// The next data at or after `offset`, or the next hole; `ENXIO` behind the end.
    pub fn seek(&self, node: NodeId, offset: u64, hole: bool) -> Result<u64> {
        let node = self.file(node)?;
        if node.is_complete() {
            let position = if hole { SeekFrom::Hole(offset) } else { SeekFrom::Data(offset) };
            return rustix::fs::seek(&*self.upper_handle(&node)?, position);
        }
        let inode = node.lower.ok_or(Errno::STALE)?;
        let size = self.tree.attributes(inode).map_err(errno)?.size_bytes;
        tree::seek(&self.tree.data_extents(inode).map_err(errno)?, size, offset, hole)
    }

    /// Copies a range between two files, inside the file system where it can; returns how much was copied.
    pub fn copy_range(&self, from: NodeId, from_offset: u64, to: NodeId, to_offset: u64, length: u64) -> Result<u64> {
        let (from, to) = (self.file(from)?, self.file(to)?);
        self.copy_up(&to)?;
        let target = self.writing_handle(&to)?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if from.is_complete() {
            let source = self.upper_handle(&from)?;
            let (mut source_offset, mut target_offset) = (from_offset, to_offset);
            match rustix::fs::copy_file_range(
                &*source,
                Some(&mut source_offset),
                &*target,
                Some(&mut target_offset),
                length,
            ) {
                Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::NOSYS) => {}
                other => return other.map(|copied| copied as u64),
            }
        }
        let mut buffer = vec![0; length.min(CHUNK_BYTES)];
        let read = self.read_node(&from, from_offset, &mut buffer)?;
        write_all(&target, &buffer[..read], to_offset)?;
        Ok(read as u64)
    }

    /// Writes a file or directory to the disk; what is only in the tree is there already.
    pub fn sync_node(&self, node: NodeId, data_only: bool) -> Result<()> {
        let node = self.node(node)?;
        if !node.in_upper() || !self.writable()?.durable {
            return Ok(());
        }
        let handle = self.upper_handle(&node)?;
        if data_only { rustix::fs::fdatasync(&*handle) } else { rustix::fs::fsync(&*handle) }
    }
}
