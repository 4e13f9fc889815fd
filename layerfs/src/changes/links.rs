//! Hard links: where the copies of those of the tree lie, and which entries of a layer are links of each other.
//!
//! Invariant: the first name of a file, by path, is the file; all others are links to it.

use std::{
    collections::{HashMap, HashSet},
    os::fd::{AsFd, OwnedFd},
};

use rustix::{fs::AtFlags, io::Errno};

use super::{Change, ChangeKind};
use crate::{
    tree::{FileKind, Tree, TreeInode},
    union::{Handle, MarkNamespace, errno, kernel_index_entries, open_at, open_kernel_index, remaining_names},
};

/// A change, or an unchanged name of a file that may have changed names.
pub(super) struct Found {
    pub(super) change: Change,
    pub(super) group: Option<(bool, u64)>,
    pub(super) is_changed: bool,
}

/// The copied-up hard links of the tree in the work directory: in our index, or in the kernel's.
#[derive(Debug)]
pub(super) struct LinkIndex {
    ours: Option<OwnedFd>,
    kernel: Option<OwnedFd>,
    /// What is in the kernel's.
    kernel_names: HashMap<TreeInode, String>,
    /// Those with names that only the tree has.
    pub(super) split: HashSet<TreeInode>,
}

impl LinkIndex {
    pub(super) fn read<T: Tree>(tree: &T, work: &OwnedFd, marks: MarkNamespace) -> rustix::io::Result<Self> {
        let own = match open_below(work, b"nacre", FileKind::Directory) {
            Err(Errno::NOENT) => None,
            other => Some(other?.into_fd()),
        };
        let open = |own: &OwnedFd| match open_at(own, b"index", FileKind::Directory) {
            Err(Errno::NOENT) => Ok(None),
            other => other.map(|index| Some(index.into_fd())),
        };
        let ours = own.as_ref().map_or(Ok(None), open)?;
        let kernel = own.as_ref().map_or(Ok(None), open_kernel_index)?;
        let mut found = Self { ours, kernel, kernel_names: HashMap::new(), split: HashSet::new() };
        if let Some(index) = &found.ours {
            found.split = split_groups(index)?;
        }
        if let Some(index) = &found.kernel {
            for (inode, name) in kernel_index_entries(index)? {
                let links = tree.attributes(inode).map_err(errno)?.links;
                let copy = rustix::fs::statat(index, &*name, AtFlags::SYMLINK_NOFOLLOW)?;
                if remaining_names(marks, index, &name, copy.st_nlink, links)? > 0 {
                    found.split.insert(inode);
                }
                found.kernel_names.insert(inode, name);
            }
        }
        Ok(found)
    }

    /// Opens the copy of a hard link.
    pub(super) fn open(&self, inode: TreeInode, kind: FileKind) -> rustix::io::Result<Handle> {
        match (self.kernel_names.get(&inode), &self.kernel, &self.ours) {
            (Some(name), Some(index), _) => open_at(index, name.as_bytes(), kind),
            (_, _, Some(index)) => open_at(index, inode.0.to_string().as_bytes(), kind),
            _ => Err(Errno::STALE),
        }
    }
}

/// The copied-up hard links in our index with names that only the tree has.
fn split_groups(index: &OwnedFd) -> rustix::io::Result<HashSet<TreeInode>> {
    let mut split = HashSet::new();
    for entry in rustix::fs::Dir::read_from(index)? {
        let entry = entry?;
        let Some(number) = entry.file_name().to_str().ok().and_then(|name| name.parse().ok()) else { continue };
        let is_complete = match rustix::fs::readlinkat(index, format!("{number}.links"), Vec::new()) {
            Ok(remaining) => remaining.to_bytes() == b"0",
            Err(Errno::NOENT) => false,
            Err(error) => return Err(error),
        };
        if !is_complete {
            split.insert(TreeInode(number));
        }
    }
    Ok(split)
}

/// Sorts by path, and makes every further name of a changed file a link to its first.
pub(super) fn link_groups(mut found: Vec<Found>) -> Vec<Change> {
    found.sort_by(|a, b| a.change.path.cmp(&b.change.path));
    let changed: HashSet<_> = found.iter().filter(|found| found.is_changed).filter_map(|found| found.group).collect();
    let mut first = HashMap::new();
    let mut changes = Vec::with_capacity(found.len());
    for Found { mut change, group, is_changed } in found {
        if let Some(group) = group.filter(|group| changed.contains(group)) {
            match first.get(&group) {
                Some(path) => change.kind = ChangeKind::HardLink(Vec::clone(path)),
                None => drop(first.insert(group, change.path.clone())),
            }
        } else if !is_changed {
            continue;
        }
        changes.push(change);
    }
    changes
}

/// Opens what is at a path below a directory, name by name; no link is followed and nothing above can be reached.
pub(super) fn open_below(root: impl AsFd, path: &[u8], kind: FileKind) -> rustix::io::Result<Handle> {
    let mut at = open_at(root, b".", FileKind::Directory)?;
    let mut names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).peekable();
    while let Some(name) = names.next() {
        let kind = if names.peek().is_some() { FileKind::Directory } else { kind };
        at = open_at(at.as_fd(), name, kind)?;
    }
    Ok(at)
}
