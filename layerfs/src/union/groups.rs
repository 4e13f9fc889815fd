//! Hard links of the tree over copy-up: one file with several names stays one file.
//!
//! Invariant: once a file with several names in the tree is copied up, `index/<number>` is a further link of
//! the copy, so that every name finds it, whichever was used to change it; and `index/<number>.links` says how
//! many names are still the tree's own, so that `st_nlink` is right. This is what the kernel does with
//! `index=on`, in a directory of our own. Names that the upper has are not counted here.

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
};

use rustix::{
    fs::{AtFlags, Stat},
    io::{Errno, Result},
};

use super::{handles::Handle, node::lock, upper::open_at};
use crate::tree::{FileKind, TreeInode};

/// What is known of a group; groups that nothing happened to are not kept.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) is_copied: bool,
    /// Names that the tree still shows; `None` for all.
    remaining: Option<u32>,
}

impl Group {
    pub(super) fn remaining(self, links: u32) -> u32 {
        self.remaining.unwrap_or(links)
    }
}

/// The hard-link groups of the tree that were changed.
#[derive(Debug)]
pub(super) struct Groups {
    index: OwnedFd,
    known: Mutex<HashMap<TreeInode, Group>>,
}

impl Groups {
    pub(super) fn open(index: OwnedFd) -> Result<Self> {
        let mut known: HashMap<TreeInode, Group> = HashMap::new();
        for entry in rustix::fs::Dir::read_from(&index)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            let (number, is_count) = name.strip_suffix(".links").map_or((name, false), |number| (number, true));
            let Ok(number) = number.parse() else { continue };
            let group = known.entry(TreeInode(number)).or_default();
            if is_count {
                let count = rustix::fs::readlinkat(&index, entry.file_name(), Vec::new())?;
                group.remaining = count.to_str().ok().and_then(|text| text.parse().ok());
            } else {
                group.is_copied = true;
            }
        }
        Ok(Self { index, known: Mutex::new(known) })
    }

    pub(super) fn find(&self, inode: TreeInode) -> Group {
        lock(&self.known).get(&inode).copied().unwrap_or_default()
    }

    pub(super) fn open_file(&self, inode: TreeInode, kind: FileKind) -> Result<Handle> {
        open_at(&self.index, inode.0.to_string().as_bytes(), kind)
    }

    pub(super) fn stat(&self, inode: TreeInode) -> Result<Stat> {
        rustix::fs::statat(&self.index, inode.0.to_string(), AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Where copy-up links the file of a group to, before any name of it appears.
    pub(super) fn directory(&self) -> &OwnedFd {
        &self.index
    }

    pub(super) fn set_copied(&self, inode: TreeInode) {
        lock(&self.known).entry(inode).or_default().is_copied = true;
    }

    /// One name fewer is the tree's own. `links` is how many it had to begin with.
    pub(super) fn lose_name(&self, inode: TreeInode, links: u32) -> Result<()> {
        let mut known = lock(&self.known);
        let group = known.entry(inode).or_default();
        let remaining = group.remaining(links).saturating_sub(1);
        group.remaining = Some(remaining);
        let (name, next) = (format!("{}.links", inode.0), format!("{}.next", inode.0));
        match rustix::fs::unlinkat(&self.index, &*next, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
        rustix::fs::symlinkat(remaining.to_string(), &self.index, &*next)?;
        rustix::fs::renameat(&self.index, &*next, &self.index, &*name)
    }

    /// Drops the copy of a group that has no name left; open handles keep it.
    pub(super) fn drop_copy(&self, inode: TreeInode) -> Result<()> {
        lock(&self.known).entry(inode).or_default().is_copied = false;
        rustix::fs::unlinkat(&self.index, inode.0.to_string(), AtFlags::empty())
    }

    /// Links a copied-up file to a name in the upper.
    pub(super) fn link_to(&self, inode: TreeInode, directory: &Arc<Handle>, name: &[u8]) -> Result<()> {
        rustix::fs::linkat(&self.index, inode.0.to_string(), &**directory, name, AtFlags::empty())
    }
}
