//! The union of a read-only tree and a writable upper directory, as plain functions on numbered nodes.
//!
//! Invariant: the tree is never written, and the disk is the truth: what the kernel's overlayfs would show
//! of tree and upper is what every function here shows, at any moment and after any kill. There are no
//! FUSE types here (`fuse/` translates), no paths (names below directory handles only), and no
//! permission checks (the kernel makes them, mounted with `default_permissions`).
//!
//! ```text
//! lookup      names -> nodes; directory reading        names     what the upper says about a directory
//! create      new files, directories, links            node      the table of nodes, references
//! remove      unlink, rmdir                            handles   open files of the upper
//! rename      with NOREPLACE and EXCHANGE              upper     the way from a node to its upper file
//! content     read, write, holes                       marks     the on-disk format
//! attributes  setattr, xattrs, statfs                  groups    hard links of the tree, over copy-up
//! acl         what new files inherit
//! copy_up     the tree's file into the upper           metadata  what stat shows
//! kernel      the upper handed to the kernel's overlayfs, and back
//! ```
//!
//! The work directory holds `nacre/`, locked while in use: `tmp/`, emptied at every opening, and `index/` (see
//! `groups`), or `overlay/` (see `kernel`); the marks `acls` (there are lists, see `acl`) and `foreign` (others may
//! have written marks, see `upper`). Locks are taken in this order: `copying` of a file, names of a directory, then a
//! shard of the node table or the state of a node. Of the names of two directories those of the smaller number come
//! first; or of a parent and its child those of the parent, where the kernel holds both locked as well. Copy-up holds
//! only the `copying` lock of its file while it moves data.

mod acl;
mod attributes;
mod aufs;
mod content;
mod copy_up;
mod create;
mod grants;
mod groups;
mod handles;
mod kernel;
mod lookup;
mod marks;
mod metadata;
mod names;
mod node;
mod overrides;
mod remove;
mod rename;
mod upper;

use std::{
    os::fd::OwnedFd,
    sync::{Arc, atomic::Ordering},
};

use rustix::io::Errno;

pub(crate) use self::{
    acl::{ACCESS as ACCESS_ACL, map_ids},
    handles::Handle,
    kernel::{KernelFault, KernelUpper, kernel_index_entries, open_kernel_index, remaining_names},
    lookup::{content_below, lower_directory, read_names},
    metadata::{kind_of, time_of},
    overrides::{Override, PREFIX as OVERRIDE_PREFIX},
    upper::{open_at, open_quietly},
};
pub use self::{
    attributes::{Change as AttributeChange, SetTime, Space},
    create::{Making, Owner},
    lookup::Listed,
    marks::MarkNamespace,
    metadata::Metadata,
    rename::RenameMode,
};
use self::{
    node::{Node, State, Table},
    upper::Upper,
};
use crate::tree::{FileKind, Tree, TreeInode, XattrUse};

/// The number of a file in a union, which is its `st_ino`: that of the tree for what is or was there,
/// greater than all of those for what was created in the upper. 1 is the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The root directory.
    pub const ROOT: Self = Self(1);
}

/// How an upper is used.
#[derive(Debug, Clone, Copy)]
pub struct UpperOptions {
    /// Where overlay marks are kept.
    pub marks: MarkNamespace,
    /// How many files of the upper are kept open for the next operation. Files that are open
    /// in the mount and have no name any more come on top.
    pub open_files: usize,
    /// Whether a directory that the tree has can be renamed, which the upper records as a redirect. Otherwise that is
    /// `EXDEV`, on which programs copy and remove.
    pub renames_directories: bool,
    /// Whether `fsync`, and the end of the mount, write to the disk. An upper that is thrown away after use need not.
    pub durable: bool,
    /// Whether a change of metadata alone leaves the content of a file in the tree, until the first write. The kernel's
    /// overlayfs follows such files with the option `metacopy=on` only, so an upper that others read must do without.
    pub splits_metadata: bool,
    /// Whether an upper that was never used gets owner, mode, times and xattrs of the tree's root. Otherwise the
    /// upper's own count, as with the kernel's overlayfs.
    pub adopts_root: bool,
    /// Whether others may have left deletion marks of AUFS in the upper, as containers/storage does. They are
    /// translated.
    pub has_aufs_marks: bool,
    /// Whether files have owner and mode in an attribute, as containers/storage keeps them with `force_mask`. They are
    /// translated.
    pub has_overrides: bool,
}

/// Why a union could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A system call on the upper or work directory failed.
    #[error("{action} of the copy-on-write layer failed")]
    System {
        /// What was tried, on what.
        action: &'static str,
        /// The errno.
        #[source]
        source: Errno,
    },
    /// The work directory is locked by another union.
    #[error("the copy-on-write layer is in use by another mount")]
    InUse,
    /// Upper and work directory lie on different file systems, so that nothing can be renamed between them.
    #[error("the upper and the work directory of a copy-on-write layer must be on one file system")]
    SeparateFileSystems,
    /// One of upper and work directory is the other, or lies in it: what is in the making would be seen.
    #[error("the upper and the work directory of a copy-on-write layer must not lie in each other")]
    Nested,
}

/// A tree with an upper directory over it.
///
/// Every function is safe to call from many threads. Errors are errnos, those of kernel overlayfs in the
/// same place; every function that changes something gives `EROFS` where there is no upper.
/// A [`NodeId`] that comes from [`Union::lookup`], a listing or a creation stays valid until it was given back
/// to [`Union::forget`] as often; other numbers are `ESTALE`.
#[derive(Debug)]
pub struct Union<T> {
    tree: T,
    table: Table,
    root: Arc<Node>,
    upper: Option<Upper>,
    tree_has_acls: bool,
    ignores_acls: bool,
}

impl<T: Tree> Union<T> {
    /// A tree alone: nothing can be changed.
    pub fn read_only(tree: T) -> Self {
        let root = Arc::new(Node::new(NodeId::ROOT, FileKind::Directory, Some(TreeInode::ROOT), State::default()));
        let tree_has_acls = tree.xattr_use() == XattrUse::Acls;
        Self { tree, table: Table::new(Arc::clone(&root)), root, upper: None, tree_has_acls, ignores_acls: false }
    }

    /// A tree with a writable layer: `upper` and `work` are open directories on one file system.
    /// What a killed owner of the same directories left behind is cleaned away first.
    pub fn open(tree: T, upper: OwnedFd, work: OwnedFd, options: UpperOptions) -> Result<Self, OpenError> {
        let (upper, stat) = Upper::open(upper, work, options)?;
        let translated = upper.translate_aufs_marks(&upper.root);
        translated.map_err(|source| OpenError::System { action: "translating deletion marks", source })?;
        let translated = upper.translate_root_overrides();
        translated.map_err(|source| OpenError::System { action: "translating the owners of files", source })?;
        let state = State { upper: Some(stat.st_ino), ..State::default() };
        let root = Arc::new(Node::new(NodeId::ROOT, FileKind::Directory, Some(TreeInode::ROOT), state));
        let tree_has_acls = tree.xattr_use() == XattrUse::Acls;
        let union = Self {
            tree,
            table: Table::new(Arc::clone(&root)),
            root,
            upper: Some(upper),
            tree_has_acls,
            ignores_acls: false,
        };
        let started = union.adopt_root();
        started
            .map_err(|source| OpenError::System { action: "giving the root directory its owner and mode", source })?;
        if let Err(error) = union.recount_links() {
            // The next opening tries again; link counts may be one too high until then.
            tracing::warn!(%error, "counting the hard links of the copy-on-write layer failed");
        }
        Ok(union)
    }

    /// A new upper shows the tree's root directory with its owner, mode, times and xattrs.
    fn adopt_root(&self) -> rustix::io::Result<()> {
        let Some(upper) = self.upper.as_ref().filter(|upper| upper.is_new) else { return Ok(()) };
        let attributes = self.tree.attributes(TreeInode::ROOT).map_err(errno)?;
        // It need not be ours, as what is copied is.
        upper.root.set_owner(Some(attributes.uid), Some(attributes.gid))?;
        self.copy_metadata(upper, TreeInode::ROOT, &attributes, &upper.root).map(drop)
    }

    /// Writes everything in the upper to the disk.
    pub fn sync(&self) -> rustix::io::Result<()> {
        let durable = self.upper.as_ref().filter(|upper| upper.durable);
        durable.map_or(Ok(()), |upper| rustix::fs::syncfs(&*upper.root))
    }

    /// As [`Self::sync`], once nothing will change any more: another union may have the upper from now on, without
    /// waiting for the disk.
    pub fn close(&self) -> rustix::io::Result<()> {
        let settled = self.upper.as_ref().map_or(Ok(()), |upper| upper.groups.settle());
        if let Some(upper) = &self.upper {
            upper.unlock();
        }
        self.sync().and(settled)
    }

    /// Takes back `count` lookups of a node.
    pub fn forget(&self, node: NodeId, count: u64) {
        for gone in self.table.release(node, count) {
            if let Some(upper) = &self.upper {
                upper.handles.remove(gone);
            }
        }
    }

    /// Takes access control lists for attributes like any other: they are stored, and nobody heeds them.
    pub fn ignore_acls(&mut self) {
        self.ignores_acls = true;
    }

    /// Whether there are access control lists, as far as that is known: the kernel is then to enforce them.
    pub fn has_acls(&self) -> bool {
        let in_upper = self.upper.as_ref().is_some_and(|upper| upper.acls.load(Ordering::Relaxed));
        (in_upper || self.tree_has_acls) && !self.ignores_acls
    }

    /// Whether a new file in a directory gets its permissions from a list there, so that no umask counts.
    pub(crate) fn has_default_acl(&self, directory: NodeId) -> rustix::io::Result<bool> {
        Ok(self.default_acl(&self.node(directory)?)?.is_some())
    }

    /// The list that a directory has for new files, where lists are heeded. That there is none is remembered.
    fn default_acl(&self, directory: &Arc<Node>) -> rustix::io::Result<Option<Vec<u8>>> {
        if !self.has_acls() || directory.state().lacks_default_acl {
            return Ok(None);
        }
        let list = self.xattr(directory.id, acl::DEFAULT)?;
        directory.state().lacks_default_acl = list.is_none();
        Ok(list)
    }

    /// Whether there is no upper.
    pub fn is_read_only(&self) -> bool {
        self.upper.is_none()
    }

    /// How many nodes are held in memory.
    pub fn node_count(&self) -> usize {
        self.table.len()
    }

    /// The tree below.
    pub fn tree(&self) -> &T {
        &self.tree
    }

    /// The upper, where it may be written.
    fn writable(&self) -> rustix::io::Result<&Upper> {
        self.upper.as_ref().ok_or(Errno::ROFS)
    }

    fn node(&self, id: NodeId) -> rustix::io::Result<Arc<Node>> {
        if id == NodeId::ROOT {
            return Ok(Arc::clone(&self.root));
        }
        self.table.find(id).ok_or(Errno::STALE)
    }

    /// The number of a file that was created in the upper.
    fn upper_id(&self, inode: u64) -> rustix::io::Result<NodeId> {
        self.tree.last_inode().0.checked_add(inode).map(NodeId).ok_or(Errno::OVERFLOW)
    }
}

/// The xattr of a file capability, which the kernel takes from a file that is written to or changes its owner.
const CAPABILITY: &[u8] = b"security.capability";

/// The errno of an error from a tree.
pub(crate) fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
