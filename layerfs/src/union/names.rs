//! What the upper says about the names of one directory, read once and kept current.
//!
//! Invariant: once loaded it equals the upper directory on disk, so that absence and shadowing need no
//! system call; and the position of a name never changes while it exists, so that a reader of the
//! directory sees every name that was there all along exactly once.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

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
    upper: HashMap<Arc<[u8]>, (UpperName, Option<u64>)>,
    /// Names that the tree does not have, by position.
    order: BTreeMap<u64, Arc<[u8]>>,
    last: u64,
}

impl Names {
    pub(super) fn find(&self, name: &[u8]) -> Option<UpperName> {
        self.upper.get(name).map(|(found, _)| *found)
    }

    /// Records what the upper now holds under `name`; `in_tree` where the tree has that name too,
    /// so that it is listed at the tree's position.
    pub(super) fn set(&mut self, name: &[u8], what: UpperName, in_tree: bool) {
        if let Some((found, _)) = self.upper.get_mut(name) {
            *found = what;
            return;
        }
        let name: Arc<[u8]> = name.into();
        let position = (!in_tree).then(|| {
            self.last += 1;
            self.order.insert(UPPER_POSITIONS + self.last, Arc::clone(&name));
            UPPER_POSITIONS + self.last
        });
        self.upper.insert(name, (what, position));
    }

    /// Records that the upper no longer holds anything under `name`.
    pub(super) fn clear(&mut self, name: &[u8]) {
        if let Some((_, Some(position))) = self.upper.remove(name) {
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
        self.upper.values().any(|(what, _)| matches!(what, UpperName::Present(_)))
    }

    /// Whether the upper holds anything at all, whiteouts included.
    pub(super) fn is_empty(&self) -> bool {
        self.upper.is_empty()
    }
}
