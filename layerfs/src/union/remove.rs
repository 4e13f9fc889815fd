//! Removing names: unlink and rmdir.
//!
//! Invariant: a name of the tree gets a whiteout and nothing is copied; a file that loses its last name stays
//! readable, writable and changeable for whoever has it open, until the kernel forgets it.

use std::sync::{Arc, atomic::Ordering};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, RenameFlags},
    io::{Errno, Result},
};

use super::{
    NodeId, Union, errno,
    handles::Handle,
    lookup::{Child, check_name},
    names::{Names, UpperName},
    node::{Node, lock},
    upper::Upper,
};
use crate::tree::{FileKind, Tree};

impl<T: Tree> Union<T> {
    /// Removes the name of a file that is not a directory.
    pub fn unlink(&self, directory: NodeId, name: &[u8]) -> Result<()> {
        check_name(name)?;
        let upper = self.writable()?;
        let parent = self.node(directory)?;
        self.copy_up_directory(&parent)?;
        let mut names = parent.names()?;
        let child = self.resolve(&parent, &mut names, name)?.ok_or(Errno::NOENT)?;
        if child.kind == FileKind::Directory {
            return Err(Errno::ISDIR);
        }
        let node = self.acquire(&parent, name, child.clone())?;
        let removed = self.unlink_node(upper, &parent, &mut names, name, &node, &child);
        drop(names);
        self.forget(node.id, 1);
        removed
    }

    fn unlink_node(
        &self,
        upper: &Upper,
        parent: &Arc<Node>,
        names: &mut Names,
        name: &[u8],
        node: &Arc<Node>,
        child: &Child,
    ) -> Result<()> {
        let handle = self.upper_handle(parent)?;
        let in_tree = self.tree_child(parent, name)?.is_some();
        self.before_losing(node, parent, name)?;
        if in_tree {
            upper.put_whiteout(names, &handle, name, child.in_upper.then_some(child.kind))?;
        } else {
            rustix::fs::unlinkat(&*handle, name, AtFlags::empty())?;
        }
        if in_tree {
            names.set(name, UpperName::Whiteout, true);
        } else {
            names.clear(name);
        }
        self.after_losing(upper, node, parent, name, child.in_upper);
        Ok(())
    }

    /// Keeps open what is about to lose the last name by which it can be reached.
    pub(super) fn before_losing(&self, node: &Arc<Node>, parent: &Node, name: &[u8]) -> Result<()> {
        if let (Some(inode), Some(upper)) = (node.lower, &self.upper)
            && !node.is_directory()
            && self.tree.attributes(inode).map_err(errno)?.links > 1
        {
            upper.groups.begin()?;
        }
        let others = node.state().links.iter().any(|link| link.in_upper && !link.is(parent, name));
        if others || node.state().indexed { Ok(()) } else { self.pin(node) }
    }

    /// Does the accounts of hard links once a name is gone. That has happened: an error here is no answer to whoever
    /// removed the name, and the links are counted anew when the upper is next opened.
    pub(super) fn after_losing(&self, upper: &Upper, node: &Arc<Node>, parent: &Node, name: &[u8], in_upper: bool) {
        self.table.remove_link(node, parent, name);
        if let Err(error) = self.count_lost_name(upper, node, in_upper) {
            tracing::warn!(%error, "counting the hard links of a removed file failed");
            upper.groups.distrust();
        }
    }

    fn count_lost_name(&self, upper: &Upper, node: &Arc<Node>, in_upper: bool) -> Result<()> {
        let Some(inode) = node.lower else { return Ok(()) };
        let links = self.tree.attributes(inode).map_err(errno)?.links;
        if links <= 1 {
            return Ok(());
        }
        if !in_upper {
            upper.groups.lose_name(inode, links)?;
        }
        let group = upper.groups.find(inode);
        if node.state().indexed && group.remaining(links) == 0 && upper.groups.stat(inode)?.st_nlink <= 1 {
            self.pin(node)?;
            node.state().indexed = false;
            upper.groups.drop_copy(inode)?;
        }
        Ok(())
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, directory: NodeId, name: &[u8]) -> Result<()> {
        check_name(name)?;
        let upper = self.writable()?;
        let parent = self.node(directory)?;
        self.copy_up_directory(&parent)?;
        let mut names = parent.names()?;
        let child = self.resolve(&parent, &mut names, name)?.ok_or(Errno::NOENT)?;
        if child.kind != FileKind::Directory {
            return Err(Errno::NOTDIR);
        }
        let in_upper = child.in_upper;
        let node = self.acquire(&parent, name, child)?;
        let removed = self.rmdir_node(upper, &parent, &mut names, name, &node, in_upper);
        drop(names);
        self.forget(node.id, 1);
        removed
    }

    fn rmdir_node(
        &self,
        upper: &Upper,
        parent: &Arc<Node>,
        names: &mut Names,
        name: &[u8],
        node: &Arc<Node>,
        in_upper: bool,
    ) -> Result<()> {
        let mut own = node.names()?;
        if !self.is_empty(node, &mut own)? {
            return Err(Errno::NOTEMPTY);
        }
        let handle = self.upper_handle(parent)?;
        let in_tree = self.tree_child(parent, name)?.is_some();
        self.pin(node)?;
        if in_tree {
            upper.put_whiteout(names, &handle, name, in_upper.then_some(FileKind::Directory))?;
        } else if own.is_empty() {
            rustix::fs::unlinkat(&*handle, name, AtFlags::REMOVEDIR)?;
        } else {
            // Whiteouts of what a redirect leads to.
            let temporary = upper.temporary_name();
            rustix::fs::renameat(&*handle, name, &upper.temporary, &*temporary)?;
            upper.discard(&temporary);
        }
        if in_tree {
            names.set(name, UpperName::Whiteout, true);
        } else {
            names.clear(name);
        }
        node.state().removed = true;
        drop(own);
        self.table.remove_link(node, parent, name);
        Ok(())
    }

    /// Whether a directory shows no names, with its own names locked.
    pub(super) fn is_empty(&self, node: &Arc<Node>, names: &mut Names) -> Result<bool> {
        /// Read at once from a directory of the tree; whiteouts of most of a directory are rare.
        const PAGE: usize = 64;
        self.load(node, names)?;
        if names.has_files() {
            return Ok(false);
        }
        let Some(lower) = node.lower else { return Ok(true) };
        let mut start = 0;
        loop {
            let page = self.tree.entries(lower, start, PAGE).map_err(errno)?;
            if page.iter().any(|entry| names.find(&entry.name).is_none()) {
                return Ok(false);
            }
            if page.len() < PAGE {
                return Ok(true);
            }
            start += PAGE as u64;
        }
    }
}

impl Upper {
    /// Hides a name of the tree, in one step, in place of what the upper has there, if it is `taken`.
    pub(super) fn put_whiteout(
        &self,
        names: &mut Names,
        directory: &Arc<Handle>,
        name: &[u8],
        taken: Option<FileKind>,
    ) -> Result<()> {
        let Some(kind) = taken else { return self.make_whiteout(names, directory, &**directory, name) };
        let temporary = self.temporary_name();
        self.make_whiteout(names, directory, &self.temporary, temporary.as_bytes())?;
        if kind == FileKind::Directory {
            // It changes places with the whiteout.
            let flags = RenameFlags::EXCHANGE;
            let exchanged = rustix::fs::renameat_with(&self.temporary, &*temporary, &**directory, name, flags);
            self.discard(&temporary);
            return exchanged;
        }
        let renamed = rustix::fs::renameat(&self.temporary, &*temporary, &**directory, name);
        renamed.inspect_err(|_| self.discard(&temporary))
    }

    /// Makes a whiteout as one more link of a 0:0 device in `tmp`, which is cheaper than a device of its own to make
    /// and to remove. The kernel's overlayfs does so as well.
    fn link_whiteout(&self, at: impl std::os::fd::AsFd, name: &[u8]) -> Result<()> {
        let mut device = lock(&self.whiteout);
        if let Some(device) = &*device {
            match rustix::fs::linkat(&self.temporary, device, &at, name, AtFlags::empty()) {
                // It has all the links that it can have.
                Err(Errno::MLINK) => {}
                // The file system has no hard links, or does not allow them.
                Err(Errno::PERM | Errno::OPNOTSUPP) => return make_device(&at, name),
                other => return other,
            }
        }
        let next = self.temporary_name();
        make_device(&self.temporary, next.as_bytes())?;
        let linked = match rustix::fs::linkat(&self.temporary, &next, &at, name, AtFlags::empty()) {
            Err(Errno::PERM | Errno::OPNOTSUPP) => make_device(&at, name),
            other => other,
        };
        *device = Some(next);
        linked
    }

    /// Has a directory say that its whiteouts may be files with an xattr.
    pub(super) fn expect_xattr_whiteouts(&self, names: &mut Names, directory: &Handle) -> Result<()> {
        if !names.has_xattr_whiteouts {
            self.marks.set_xattr_whiteouts(directory)?;
            names.has_xattr_whiteouts = true;
        }
        Ok(())
    }

    /// Makes a whiteout as a 0:0 device, or as a file with an xattr where the kernel refuses devices.
    /// `directory` is where it is or will be, which must say that it has such files.
    pub(super) fn make_whiteout(
        &self,
        names: &mut Names,
        directory: &Arc<Handle>,
        at: impl std::os::fd::AsFd,
        name: &[u8],
    ) -> Result<()> {
        if !self.without_devices.load(Ordering::Relaxed) {
            match self.link_whiteout(&at, name) {
                Err(Errno::PERM | Errno::OPNOTSUPP | Errno::INVAL) => {
                    self.without_devices.store(true, Ordering::Relaxed)
                }
                other => return other,
            }
        }
        self.expect_xattr_whiteouts(names, directory)?;
        let temporary = self.temporary_name();
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.temporary, &*temporary, flags, Mode::empty()).map(Handle::new)?;
        let made = self.marks.set_whiteout(&file);
        let made = made.and_then(|()| rustix::fs::renameat(&self.temporary, &*temporary, &at, name));
        made.inspect_err(|_| self.discard(&temporary))
    }
}

fn make_device(at: impl std::os::fd::AsFd, name: &[u8]) -> Result<()> {
    rustix::fs::mknodat(at, name, FileType::CharacterDevice, Mode::empty(), 0)
}
