//! What the upper says about the names of one directory, read once and kept current.
//!
//! Invariant: once loaded it equals the upper directory on disk, so that absence and shadowing need no
//! system call; and the position of a name comes from the name, so that a reader of the directory sees every name that
//! was there all along exactly once, and comes to an end whatever is renamed and made again meanwhile.

use std::{
    collections::{BTreeMap, HashMap, btree_map},
    hash::{DefaultHasher, Hasher},
    sync::Arc,
};

use super::NodeId;
use crate::tree::TreeInode;

/// Positions of upper names lie above those of any tree directory.
pub(super) const UPPER_POSITIONS: u64 = 1 << 40;

/// What the upper holds under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UpperName {
    /// A mark that hides the tree's file.
    Whiteout,
    /// A file.
    Present(Origin),
}

/// Whether an upper file stands for a file of the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// Not read yet.
    Unknown,
    /// It was created in the upper.
    Upper,
    /// It was copied up.
    Tree(TreeInode),
}

/// The names of a directory that are in the upper.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) is_loaded: bool,
    /// Whiteouts of this directory may be files with an xattr.
    pub(super) has_xattr_whiteouts: bool,
    upper: HashMap<Arc<[u8]>, Named>,
    /// Names that the tree does not have, by position.
    order: BTreeMap<u64, Arc<[u8]>>,
}

/// A name in the upper.
#[derive(Debug)]
struct Named {
    what: UpperName,
    /// Its place in `order`, where it has one.
    position: Option<u64>,
    /// The node that it led to when it was last looked up, if nothing happened to the name since.
    node: Option<NodeId>,
}

impl Names {
    pub(super) fn find(&self, name: &[u8]) -> Option<UpperName> {
        self.upper.get(name).map(|named| named.what)
    }

    /// The node that a name led to; it may be gone.
    pub(super) fn node(&self, name: &[u8]) -> Option<NodeId> {
        self.upper.get(name)?.node
    }

    /// Remembers which node a name leads to.
    pub(super) fn set_node(&mut self, name: &[u8], node: NodeId) {
        if let Some(named) = self.upper.get_mut(name) {
            named.node = Some(node);
        }
    }

    /// Records what the upper now holds under `name`; `in_tree` where the tree has that name too,
    /// so that it is listed at the tree's position.
    pub(super) fn set(&mut self, name: &[u8], what: UpperName, in_tree: bool) {
        if let Some(named) = self.upper.get_mut(name) {
            (named.what, named.node) = (what, None);
            return;
        }
        let name: Arc<[u8]> = name.into();
        let position = (!in_tree).then(|| self.place(&name));
        self.upper.insert(name, Named { what, position, node: None });
    }

    /// Puts a name in order, at a position that another name has taken at most by chance.
    fn place(&mut self, name: &Arc<[u8]>) -> u64 {
        let mut hasher = DefaultHasher::new();
        hasher.write(name);
        // Positions are the kernel's signed 64 bits; the quarter of them leaves room above.
        let mut position = UPPER_POSITIONS + (hasher.finish() >> 2);
        loop {
            match self.order.entry(position) {
                btree_map::Entry::Vacant(free) => {
                    free.insert(Arc::clone(name));
                    return position;
                }
                btree_map::Entry::Occupied(_) => position += 1,
            }
        }
    }

    /// Records that the upper no longer holds anything under `name`.
    pub(super) fn clear(&mut self, name: &[u8]) {
        if let Some(Named { position: Some(position), .. }) = self.upper.remove(name) {
            self.order.remove(&position);
        }
    }

    /// At most `limit` names that only the upper has, from a position on, each with its position.
    pub(super) fn upper_only(&self, start: u64, limit: usize) -> Vec<(u64, Arc<[u8]>)> {
        let from = self.order.range(start..);
        let shown = from.filter(|(_, name)| matches!(self.find(name), Some(UpperName::Present(_))));
        shown.take(limit).map(|(position, name)| (*position, Arc::clone(name))).collect()
    }

    /// Whether any name in the upper is a file rather than a whiteout.
    pub(super) fn has_files(&self) -> bool {
        self.upper.values().any(|named| matches!(named.what, UpperName::Present(_)))
    }

    /// Whether the upper holds anything at all, whiteouts included.
    pub(super) fn is_empty(&self) -> bool {
        self.upper.is_empty()
    }
}
