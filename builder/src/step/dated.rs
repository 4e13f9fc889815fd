//! The tree of a stage for a step that has a cache: files of the build's own layers are as new as their layers.
//!
//! Invariant: only times differ from the tree below, and no layer holds them. In layers all that is new has one time, and
//! what an earlier build left in a cache is newer than that: make and cargo would take a changed source for the one that
//! they compiled, and the image would hold what the sources before made.

use std::io;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use layerfs::{Attributes, DirectoryEntry, Time, Tree, TreeIndex, TreeInode, XattrUse};

/// A tree with times that tell what is new.
pub(crate) struct Dated {
    tree: Arc<TreeIndex>,
    /// The time that stands for all that is new.
    epoch_seconds: i64,
    /// When each layer came into the store; `None` for those of the base image, whose files keep their times.
    arrivals: Vec<Option<Time>>,
}

impl Dated {
    /// `base_layers` of the tree are the base image's.
    ///
    /// # Errors
    /// If the file system does not say how old a layer is.
    pub(crate) fn new(tree: Arc<TreeIndex>, base_layers: usize, epoch_seconds: i64) -> io::Result<Self> {
        let arrivals = tree.arrivals()?.into_iter().enumerate().map(|(number, time)| {
            let age = time.duration_since(UNIX_EPOCH).ok().filter(|_| number >= base_layers)?;
            Some(Time { seconds: i64::try_from(age.as_secs()).ok()?, nanoseconds: age.subsec_nanos() })
        });
        let arrivals = arrivals.collect();
        Ok(Self { tree, epoch_seconds, arrivals })
    }
}

impl Tree for Dated {
    fn attributes(&self, inode: TreeInode) -> io::Result<Attributes> {
        let attributes = self.tree.attributes(inode)?;
        // What is older came with its time out of an archive, and keeps it.
        if attributes.modified != (Time { seconds: self.epoch_seconds, nanoseconds: 0 }) {
            return Ok(attributes);
        }
        let arrival = self.tree.layer_of(inode)?.and_then(|layer| self.arrivals.get(layer).copied().flatten());
        Ok(Attributes { modified: arrival.unwrap_or(attributes.modified), ..attributes })
    }

    fn lookup(&self, directory: TreeInode, name: &[u8]) -> io::Result<Option<TreeInode>> {
        self.tree.lookup(directory, name)
    }

    fn entries(&self, directory: TreeInode, start: u64, limit: usize) -> io::Result<Vec<DirectoryEntry>> {
        self.tree.entries(directory, start, limit)
    }

    fn read_at(&self, inode: TreeInode, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.tree.read_at(inode, offset, buffer)
    }

    fn data_extents(&self, inode: TreeInode) -> io::Result<Vec<(u64, u64)>> {
        self.tree.data_extents(inode)
    }

    fn read_link(&self, inode: TreeInode) -> io::Result<Vec<u8>> {
        self.tree.read_link(inode)
    }

    fn xattrs(&self, inode: TreeInode) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        self.tree.xattrs(inode)
    }

    fn xattr(&self, inode: TreeInode, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.tree.xattr(inode, name)
    }

    fn content_digest(&self, inode: TreeInode) -> io::Result<Option<[u8; 32]>> {
        self.tree.content_digest(inode)
    }

    fn xattr_use(&self) -> XattrUse {
        self.tree.xattr_use()
    }

    fn last_inode(&self) -> TreeInode {
        self.tree.last_inode()
    }
}
