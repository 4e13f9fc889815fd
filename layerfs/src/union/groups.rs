//! Hard links of the tree over copy-up: one file with several names stays one file.
//!
//! Invariant: once a file with several names in the tree is copied up, `index/<number>` is a further link of
//! the copy, so that every name finds it, whichever was used to change it; and `index/<number>.links` says how
//! many names are still the tree's own, so that `st_nlink` is right. This is what the kernel does with
//! `index=on`, in a directory of our own. Names that the upper has are not counted here.
//!
//! A name and its count change one after the other. `index/counting` is there from before the first of these changes
//! until the union is closed with all counts written; found at an opening, it says that a kill or a full disk may have
//! come in between, and the names are counted again.

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::{
    fs::{AtFlags, Stat},
    io::{Errno, Result},
};

use super::{
    Union, errno,
    handles::Handle,
    node::lock,
    upper::{Upper, exists, make_directory, open_at},
};
use crate::tree::{FileKind, Tree, TreeInode};

/// There while counts may be wrong.
const COUNTING: &str = "counting";

/// Names that are looked at together when they are counted.
const PAGE: usize = 256;

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
    is_counting: Mutex<bool>,
    /// A count could not be written, so that they are to be counted again.
    is_wrong: AtomicBool,
}

impl Groups {
    pub(super) fn open(index: OwnedFd) -> Result<Self> {
        let known = Mutex::new(read(&index)?);
        let is_counting = Mutex::new(exists(&index, COUNTING)?);
        Ok(Self { index, known, is_counting, is_wrong: AtomicBool::new(false) })
    }

    /// Called before a name of a group changes hands.
    pub(super) fn begin(&self) -> Result<()> {
        let mut is_counting = lock(&self.is_counting);
        if !*is_counting {
            make_directory(&self.index, COUNTING)?;
            *is_counting = true;
        }
        Ok(())
    }

    /// Called where the name is gone, and what was to follow failed.
    pub(super) fn distrust(&self) {
        self.is_wrong.store(true, Ordering::Relaxed);
    }

    /// Called when no more counts will change.
    pub(super) fn settle(&self) -> Result<()> {
        let mut is_counting = lock(&self.is_counting);
        if *is_counting && !self.is_wrong.load(Ordering::Relaxed) {
            rustix::fs::unlinkat(&self.index, COUNTING, AtFlags::REMOVEDIR)?;
            *is_counting = false;
        }
        Ok(())
    }

    /// Reads again what lies in the index.
    pub(super) fn reload(&mut self) -> Result<()> {
        self.known = Mutex::new(read(&self.index)?);
        Ok(())
    }

    /// Whether nothing happened to any group.
    pub(super) fn is_empty(&self) -> bool {
        lock(&self.known).is_empty()
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
        self.write_remaining(inode, remaining)
    }

    /// Corrects how many names are the tree's own.
    fn set_remaining(&self, inode: TreeInode, remaining: u32) -> Result<()> {
        let mut known = lock(&self.known);
        let group = known.entry(inode).or_default();
        if group.remaining == Some(remaining) {
            return Ok(());
        }
        group.remaining = Some(remaining);
        self.write_remaining(inode, remaining)
    }

    /// The groups of which something is known.
    fn known(&self) -> Vec<TreeInode> {
        lock(&self.known).keys().copied().collect()
    }

    /// Writes down how many names of a group are the tree's own.
    pub(super) fn write_remaining(&self, inode: TreeInode, remaining: u32) -> Result<()> {
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

impl<T: Tree> Union<T> {
    /// Counts the names of all groups again if a kill may have left a wrong count.
    pub(super) fn recount_links(&self) -> Result<()> {
        let Some(upper) = self.upper.as_ref().filter(|upper| *lock(&upper.groups.is_counting)) else { return Ok(()) };
        let recounted = self.recount_groups(upper);
        if recounted.is_err() {
            upper.groups.distrust();
        }
        recounted.and_then(|()| upper.groups.settle())
    }

    /// Numbers of a tree may be far apart, so they are not gone through: a group has names that are left, or something
    /// is known of it, or it cannot be reached.
    fn recount_groups(&self, upper: &Upper) -> Result<()> {
        let mut counts = self.count_tree_names()?;
        for inode in upper.groups.known() {
            let remaining = counts.remove(&inode).unwrap_or(0);
            upper.groups.set_remaining(inode, remaining)?;
        }
        for (inode, remaining) in counts {
            if self.tree.attributes(inode).map_err(errno)?.links != remaining {
                upper.groups.set_remaining(inode, remaining)?;
            }
        }
        Ok(())
    }

    /// How many names each file of the tree still has that the upper neither hides nor has itself; of files with one
    /// name nothing is said.
    fn count_tree_names(&self) -> Result<HashMap<TreeInode, u32>> {
        let mut counts = HashMap::new();
        let mut pending = vec![Arc::clone(&self.root)];
        while let Some(directory) = pending.pop() {
            let mut after = 0;
            loop {
                let page = self.children(&directory, after, PAGE)?;
                let Some((last, ..)) = page.last() else { break };
                after = *last;
                for (_, name, child) in page {
                    match child.lower {
                        _ if child.kind == FileKind::Directory => {
                            pending.push(self.acquire(&directory, &name, child)?);
                        }
                        Some(inode) if !child.in_upper && self.tree.attributes(inode).map_err(errno)?.links > 1 => {
                            *counts.entry(inode).or_default() += 1;
                        }
                        _ => {}
                    }
                }
            }
            if directory.id != self.root.id {
                self.forget(directory.id, 1);
            }
        }
        Ok(counts)
    }
}

fn read(index: &OwnedFd) -> Result<HashMap<TreeInode, Group>> {
    let mut known: HashMap<TreeInode, Group> = HashMap::new();
    for entry in rustix::fs::Dir::read_from(index)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        let (number, is_count) = name.strip_suffix(".links").map_or((name, false), |number| (number, true));
        let Ok(number) = number.parse() else { continue };
        let group = known.entry(TreeInode(number)).or_default();
        if is_count {
            let count = rustix::fs::readlinkat(index, entry.file_name(), Vec::new())?;
            group.remaining = count.to_str().ok().and_then(|text| text.parse().ok());
        } else {
            group.is_copied = true;
        }
    }
    Ok(known)
}
