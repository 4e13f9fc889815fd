//! Copy-up: the tree's file becomes a file of the upper, at its first change.
//!
//! Invariant: the copy is complete, or marked as one with the metadata only, before any name leads to it, and it
//! appears under the name in one step; a failure leaves nothing behind but an entry in `tmp`. Only the `copying` lock
//! of the one file is held while data moves: everything else goes on, and reads of the file itself go on from the tree.

use std::sync::Arc;

use rustix::{
    fs::{AtFlags, Mode, OFlags, Stat, Timespec, Timestamps, XattrFlags},
    io::{Errno, Result},
};

use super::{
    AttributeChange, CAPABILITY, Metadata, Union, acl,
    create::make_special,
    errno,
    handles::Handle,
    names::{Origin, UpperName},
    node::{Link, Node, lock},
    upper::{Upper, open_at},
};
use crate::tree::{ACL_PREFIX, Attributes, FileKind, Time, Tree, TreeInode};

/// Data is copied in pieces of this size: one read from the tree each.
const CHUNK_BYTES: usize = 1 << 20;

/// How much of a file is wanted in the upper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Its metadata; the content may stay in the tree.
    Metadata,
    /// Everything, of the content this many bytes.
    Content(u64),
}

impl Node {
    fn has(&self, part: Part) -> bool {
        if part == Part::Metadata { self.in_upper() } else { self.is_complete() }
    }
}

/// What a new copy is reached by before it has its name.
enum Copy {
    /// A file that never had a name.
    Unnamed(Handle),
    /// A name in `tmp`.
    Temporary(String, Handle),
}

impl Copy {
    fn handle(&self) -> &Handle {
        match self {
            Self::Unnamed(handle) | Self::Temporary(_, handle) => handle,
        }
    }
}

impl<T: Tree> Union<T> {
    /// Makes sure that a node has its file in the upper, with all its content.
    pub(super) fn copy_up(&self, node: &Arc<Node>) -> Result<()> {
        self.copy_up_part(node, Part::Content(u64::MAX))
    }

    /// As [`Self::copy_up`], for a file that is about to be cut to `size` bytes: what lies behind need not be copied.
    pub(super) fn copy_up_to(&self, node: &Arc<Node>, size: u64) -> Result<()> {
        self.copy_up_part(node, Part::Content(size))
    }

    /// Makes sure that a node has a file in the upper for its metadata. The content may stay in the tree.
    pub(super) fn copy_up_metadata(&self, node: &Arc<Node>) -> Result<()> {
        let splits = self.writable()?.splits_metadata;
        self.copy_up_part(node, if splits { Part::Metadata } else { Part::Content(u64::MAX) })
    }

    /// As [`Self::copy_up_metadata`], and changes owner and mode before the copy is seen, which takes half the system
    /// calls. The metadata that are then shown, where this could be done; otherwise the change is still to be made.
    pub(super) fn copy_up_changed(&self, node: &Arc<Node>, change: &AttributeChange) -> Result<Option<Metadata>> {
        /// Bits that the kernel takes from a file that changes its owner.
        const SET_ID: u32 = 0o6000;
        let inode = node.lower.ok_or(Errno::STALE)?;
        let below = self.tree.attributes(inode).map_err(errno)?;
        let is_plain = below.kind == FileKind::File && below.links == 1 && below.mode & SET_ID == 0;
        if !is_plain || self.tree.xattr(inode, CAPABILITY).map_err(errno)?.is_some() {
            self.copy_up_metadata(node)?;
            return Ok(None);
        }
        let part = if self.writable()?.splits_metadata { Part::Metadata } else { Part::Content(u64::MAX) };
        let attributes = Attributes {
            mode: change.mode.map_or(below.mode, |mode| mode & 0o7777),
            uid: change.uid.unwrap_or(below.uid),
            gid: change.gid.unwrap_or(below.gid),
            ..below
        };
        let is_copied = self.copy_up_as(node, part, &attributes)?;
        is_copied.then(|| self.metadata_of(node)).transpose()
    }

    fn copy_up_part(&self, node: &Arc<Node>, part: Part) -> Result<()> {
        if node.is_directory() {
            return self.copy_up_directory(node);
        }
        if node.has(part) {
            return Ok(());
        }
        let attributes = self.tree.attributes(node.lower.ok_or(Errno::STALE)?).map_err(errno)?;
        self.copy_up_as(node, part, &attributes).map(drop)
    }

    /// Copies a file up, with these attributes; false where there was a copy already, whatever its attributes are.
    fn copy_up_as(&self, node: &Arc<Node>, part: Part, attributes: &Attributes) -> Result<bool> {
        let upper = self.writable()?;
        let _copying = lock(&node.copying);
        if node.has(part) {
            return Ok(false);
        }
        if node.in_upper() {
            return self.complete(upper, node, part).map(|()| false);
        }
        if attributes.kind == FileKind::CharacterDevice && attributes.device == (0, 0) {
            // The copy would be a whiteout, as a new one would.
            return Err(Errno::PERM);
        }
        let inode = node.lower.ok_or(Errno::STALE)?;
        // Parents first: without them nothing can be published, and no data need be moved to find out.
        let links = node.state().links.clone();
        for link in &links {
            self.copy_up_directory(&link.parent)?;
        }
        let (copy, stat, is_split) = self.copy(upper, inode, attributes, part)?;
        if attributes.data_bytes > 0 && !is_split && attributes.kind == FileKind::File {
            upper.settle_copy(copy.handle());
        }
        node.state().is_split = is_split;
        let published = self.publish(upper, node, inode, attributes, &copy, &stat);
        if let Copy::Temporary(name, _) = &copy
            && (published.is_err() || attributes.links > 1)
        {
            upper.discard(name);
        }
        published.inspect_err(|_| node.state().is_split = false)?;
        if attributes.links > 1 {
            self.link_known_names(node)?;
        }
        if let Copy::Unnamed(handle) = copy {
            upper.handles.insert(node.id, &Arc::new(handle));
        }
        Ok(true)
    }

    /// Copies into a file without a name: the copy, what `stat` shows of it, and whether it has the metadata only.
    fn copy(&self, upper: &Upper, inode: TreeInode, attributes: &Attributes, part: Part) -> Result<(Copy, Stat, bool)> {
        let mut is_split = false;
        let copy = if attributes.kind == FileKind::File {
            let copy = upper.unnamed_file(attributes.mode)?;
            is_split = part == Part::Metadata && attributes.data_bytes > 0 && upper.marks.set_split(copy.handle())?;
            let copied = match part {
                _ if is_split => rustix::fs::ftruncate(copy.handle(), attributes.size_bytes),
                Part::Content(size) => self.copy_data(inode, attributes.size_bytes.min(size), copy.handle()),
                Part::Metadata => self.copy_data(inode, attributes.size_bytes, copy.handle()),
            };
            if let (Err(_), Copy::Temporary(name, _)) = (&copied, &copy) {
                upper.discard(name);
            }
            copied.map(|()| copy)?
        } else {
            let name = upper.temporary_name();
            let target = match attributes.kind {
                FileKind::Symlink => self.tree.read_link(inode).map_err(errno)?,
                _ => Vec::new(),
            };
            make_special(&upper.temporary, name.as_bytes(), attributes.kind, &target, attributes.device)?;
            Copy::Temporary(name.clone(), open_at(&upper.temporary, name.as_bytes(), attributes.kind)?)
        };
        let finished = self.copy_metadata(upper, inode, attributes, copy.handle());
        if let (Err(_), Copy::Temporary(name, _)) = (&finished, &copy) {
            upper.discard(name);
        }
        finished.map(|stat| (copy, stat, is_split))
    }

    /// Gives a file that has its metadata only its content as well, in place. Until the mark is gone, the content is
    /// the tree's, whatever is in the file already.
    fn complete(&self, upper: &Upper, node: &Arc<Node>, part: Part) -> Result<()> {
        let inode = node.lower.ok_or(Errno::STALE)?;
        let handle = self.writing_handle(node)?;
        let stat = handle.stat()?;
        let capability = handle.xattr(CAPABILITY)?;
        let size = self.tree.attributes(inode).map_err(errno)?.size_bytes;
        let wanted = if let Part::Content(wanted) = part { wanted.min(size) } else { size };
        self.copy_data(inode, wanted, &handle)?;
        if let Some(value) = capability {
            handle.set_xattr(CAPABILITY, &value, XattrFlags::empty())?;
        }
        if handle.stat()?.st_mode != stat.st_mode {
            handle.set_mode(stat.st_mode & 0o7777)?;
        }
        restore_times(&*handle, &stat)?;
        upper.settle_copy(&handle);
        upper.marks.clear_split(&handle)?;
        node.state().is_split = false;
        Ok(())
    }

    fn copy_data(&self, inode: TreeInode, size: u64, to: &Handle) -> Result<()> {
        let mut buffer = Vec::new();
        for (start, length) in self.tree.data_extents(inode).map_err(errno)? {
            let end = start.saturating_add(length).min(size);
            let mut offset = start;
            while offset < end {
                let wanted = usize::try_from(end - offset).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
                buffer.resize(wanted, 0);
                let read = self.tree.read_at(inode, offset, &mut buffer).map_err(errno)?;
                if read == 0 {
                    return Err(Errno::IO);
                }
                write_all(to, &buffer[..read], offset)?;
                offset += read as u64;
            }
        }
        rustix::fs::ftruncate(to, size)
    }

    /// Owner first, a change of which cuts the mode and takes the capability. What is there at the end, which is mostly
    /// what was wanted.
    pub(super) fn copy_metadata(
        &self,
        upper: &Upper,
        inode: TreeInode,
        attributes: &Attributes,
        to: &Handle,
    ) -> Result<Stat> {
        if upper.passes_group || (attributes.uid, attributes.gid) != (upper.owner.uid, upper.owner.gid) {
            to.set_owner(Some(attributes.uid), Some(attributes.gid))?;
        }
        for (name, value) in self.tree.xattrs(inode).map_err(errno)? {
            if acl::matters(&name, &value) {
                upper.note_acls()?;
            }
            match to.set_xattr(&upper.marks.stored(&name), &value, XattrFlags::empty()) {
                // As the kernel's copy-up: what this file system cannot hold, or we may not set, stays below; but not what
                // says who may do what.
                Err(error @ Errno::OPNOTSUPP) if must_be_copied(&name) => return Err(error),
                Err(Errno::OPNOTSUPP | Errno::PERM) => {
                    tracing::debug!(name = %name.escape_ascii(), "an extended attribute cannot be copied up");
                }
                other => other?,
            }
        }
        // Before the mode, which may forbid the owner to set marks.
        if attributes.kind != FileKind::Directory {
            upper.marks.set_origin(to, inode)?;
        }
        to.set_times(&Timestamps {
            last_access: timespec(attributes.modified),
            last_modification: timespec(attributes.modified),
        })?;
        let stat = to.stat()?;
        if attributes.kind == FileKind::Symlink || stat.st_mode & 0o7777 == attributes.mode {
            return Ok(stat);
        }
        to.set_mode(attributes.mode)?;
        to.stat()
    }

    /// Gives the copy its name. The node may be renamed or removed meanwhile: the names are taken as they are
    /// once their directory is locked, and a file without any keeps its copy open.
    fn publish(
        &self,
        upper: &Upper,
        node: &Arc<Node>,
        inode: TreeInode,
        attributes: &Attributes,
        copy: &Copy,
        stat: &Stat,
    ) -> Result<()> {
        if attributes.links > 1 {
            let name = inode.0.to_string();
            match link_copy(upper, copy, upper.groups.directory(), name.as_bytes()) {
                // Left by a kill between the two steps; it is not the group's, or the node would have it.
                Err(Errno::EXIST) => {
                    rustix::fs::unlinkat(upper.groups.directory(), &*name, AtFlags::empty())?;
                    link_copy(upper, copy, upper.groups.directory(), name.as_bytes())?;
                }
                other => other?,
            }
            upper.groups.set_copied(inode);
            let mut state = node.state();
            state.indexed = true;
            state.upper = Some(stat.st_ino);
            return Ok(());
        }
        loop {
            let Some(link) = node.state().links.first().cloned() else {
                let handle = match copy {
                    Copy::Unnamed(handle) => rustix::io::dup(handle).map(Handle::new)?,
                    Copy::Temporary(name, _) => open_at(&upper.temporary, name.as_bytes(), node.kind)?,
                };
                let mut state = node.state();
                state.pinned = Some(Arc::new(handle));
                state.upper = Some(stat.st_ino);
                drop(state);
                if let Copy::Temporary(name, _) = copy {
                    upper.discard(name);
                }
                return Ok(());
            };
            self.copy_up_directory(&link.parent)?;
            let directory = self.upper_handle(&link.parent)?;
            let mut names = link.parent.names()?;
            self.load(&link.parent, &mut names)?;
            if !has_link(node, &link) {
                continue;
            }
            link_copy(upper, copy, &*directory, &link.name)?;
            names.set(&link.name, UpperName::Present(Origin::Tree(inode)), true);
            let mut state = node.state();
            state.upper = Some(stat.st_ino);
            state
                .links
                .iter_mut()
                .filter(|other| other.is(&link.parent, &link.name))
                .for_each(|link| link.in_upper = true);
            return Ok(());
        }
    }

    /// Gives a copied-up hard link of the tree those of its names that are known, so that the kernel's overlayfs
    /// would find it there as well.
    fn link_known_names(&self, node: &Arc<Node>) -> Result<()> {
        let links = node.state().links.clone();
        for link in links {
            self.copy_up_directory(&link.parent)?;
            let mut names = link.parent.names()?;
            self.load(&link.parent, &mut names)?;
            if has_link(node, &link) {
                self.link_up(node, &link.parent, &mut names, &link.name)?;
            }
        }
        Ok(())
    }

    /// Makes sure that a directory is in the upper, with those above it.
    pub(super) fn copy_up_directory(&self, node: &Arc<Node>) -> Result<()> {
        let upper = self.writable()?;
        let mut missing = Vec::new();
        let mut at = Arc::clone(node);
        while !at.in_upper() {
            let parent = at.state().links.first().map(|link| Arc::clone(&link.parent)).ok_or(Errno::NOENT)?;
            missing.push(std::mem::replace(&mut at, parent));
        }
        for node in missing.into_iter().rev() {
            let _copying = lock(&node.copying);
            while !node.in_upper() {
                let link = node.state().links.first().cloned().ok_or(Errno::NOENT)?;
                self.copy_one_directory(upper, &node, &link)?;
            }
        }
        Ok(())
    }

    fn copy_one_directory(&self, upper: &Upper, node: &Arc<Node>, link: &Link) -> Result<()> {
        let inode = node.lower.ok_or(Errno::STALE)?;
        let attributes = self.tree.attributes(inode).map_err(errno)?;
        let parent = self.upper_handle(&link.parent)?;
        let mut names = link.parent.names()?;
        self.load(&link.parent, &mut names)?;
        if !has_link(node, link) {
            return Ok(());
        }
        let name = upper.temporary_name();
        rustix::fs::mkdirat(&upper.temporary, &*name, Mode::RWXU)?;
        let made = open_at(&upper.temporary, name.as_bytes(), FileKind::Directory).and_then(|handle| {
            let stat = self.copy_metadata(upper, inode, &attributes, &handle)?;
            let before = parent.stat()?;
            rustix::fs::renameat(&upper.temporary, &*name, &*parent, &*link.name)?;
            // The directory above did not change as far as anyone can see.
            restore_times(&parent, &before)?;
            Ok((Arc::new(handle), stat))
        });
        let (handle, stat) = made.inspect_err(|_| upper.discard(&name))?;
        names.set(&link.name, UpperName::Present(Origin::Upper), true);
        upper.handles.insert(node.id, &handle);
        let mut state = node.state();
        state.upper = Some(stat.st_ino);
        state.links.iter_mut().for_each(|link| link.in_upper = true);
        Ok(())
    }

    /// Makes sure that the upper has this very name of a copied-up file, with the names of the directory locked
    /// by the caller: a hard link of the tree may be in the upper under another name only.
    pub(super) fn link_up(
        &self,
        node: &Arc<Node>,
        parent: &Arc<Node>,
        names: &mut super::names::Names,
        name: &[u8],
    ) -> Result<()> {
        let upper = self.writable()?;
        if names.find(name).is_some() {
            return Ok(());
        }
        let inode = node.lower.ok_or(Errno::STALE)?;
        let links = self.tree.attributes(inode).map_err(errno)?.links;
        let directory = self.upper_handle(parent)?;
        let before = directory.stat()?;
        upper.groups.begin()?;
        upper.groups.link_to(inode, &directory, name)?;
        restore_times(&directory, &before)?;
        names.set(name, UpperName::Present(Origin::Tree(inode)), true);
        self.table.add_link(node, parent, name, true);
        if let Err(error) = upper.groups.lose_name(inode, links) {
            // The name is there. The links are counted anew when the upper is next opened.
            tracing::warn!(%error, "counting the hard links of a copied file failed");
            upper.groups.distrust();
        }
        Ok(())
    }
}

impl Upper {
    /// A new file without a name, or with one in `tmp` where the file system has no `O_TMPFILE`. It has those
    /// permissions of `mode` that do not keep its owner from writing to it.
    fn unnamed_file(&self, mode: u32) -> Result<Copy> {
        match self.file_without_name(mode) {
            Err(Errno::OPNOTSUPP) => {
                let name = self.temporary_name();
                let flags = OFlags::RDWR | OFlags::NOATIME | OFlags::CLOEXEC;
                let created = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
                let fd = rustix::fs::openat(&self.temporary, &*name, created, Mode::RUSR | Mode::WUSR)?;
                Ok(Copy::Temporary(name, Handle::new(fd)))
            }
            other => other.map(Copy::Unnamed),
        }
    }

    /// Has the content of a copy on its way to the disk before it is seen: after a loss of power the name could be there
    /// without it, where it hides what the tree has. A journal that keeps content before the change that shows it (ext4's)
    /// then needs no more; elsewhere it is the time of one write to the disk in place of half a minute.
    fn settle_copy(&self, copy: &Handle) {
        if self.durable {
            // What the disk has to say is said to who syncs.
            _ = crate::sys::begin_writing(copy, 0..0);
        }
    }

    /// A new file without a name; `EOPNOTSUPP` where the file system has no such files.
    pub(super) fn file_without_name(&self, mode: u32) -> Result<Handle> {
        let flags = OFlags::RDWR | OFlags::NOATIME | OFlags::CLOEXEC | OFlags::TMPFILE;
        let permissions = Mode::from_raw_mode(mode & 0o777) | Mode::RUSR | Mode::WUSR;
        match rustix::fs::openat(&self.temporary, ".", flags, permissions) {
            // What kernels and file systems say that do not know the flag.
            Err(Errno::ISDIR | Errno::NOENT) => Err(Errno::OPNOTSUPP),
            other => other.map(Handle::new),
        }
    }
}

/// Whether a file without this attribute would permit something else. Labels of security modules are theirs to set.
fn must_be_copied(xattr: &[u8]) -> bool {
    xattr.starts_with(ACL_PREFIX) || xattr == CAPABILITY
}

fn has_link(node: &Node, wanted: &Link) -> bool {
    node.state().links.iter().any(|link| link.is(&wanted.parent, &wanted.name))
}

/// Gives a copy a name. The directory keeps its times: nothing changed as far as anyone can see.
fn link_copy(upper: &Upper, copy: &Copy, directory: impl std::os::fd::AsFd, name: &[u8]) -> Result<()> {
    let before = rustix::fs::fstat(&directory)?;
    match copy {
        Copy::Unnamed(handle) => {
            link_handle(handle, &directory, name)?;
        }
        Copy::Temporary(temporary, _) => {
            rustix::fs::linkat(&upper.temporary, &**temporary, &directory, name, AtFlags::empty())?;
            upper.discard(temporary);
        }
    }
    restore_times(&directory, &before)
}

/// Gives a file that is open another name.
pub(super) fn link_handle(file: &Handle, directory: impl std::os::fd::AsFd, name: &[u8]) -> Result<()> {
    // The short way takes a privilege, or since Linux 6.10 that we opened the file ourselves.
    match rustix::fs::linkat(file, "", &directory, name, AtFlags::EMPTY_PATH) {
        Err(Errno::NOENT | Errno::PERM) => {
            rustix::fs::linkat(rustix::fs::CWD, file.magic_path(), directory, name, AtFlags::SYMLINK_FOLLOW)
        }
        other => other,
    }
}

pub(super) fn restore_times(directory: impl std::os::fd::AsFd, before: &Stat) -> Result<()> {
    let times = Timestamps {
        last_access: Timespec { tv_sec: before.st_atime, tv_nsec: before.st_atime_nsec.cast_signed() },
        last_modification: Timespec { tv_sec: before.st_mtime, tv_nsec: before.st_mtime_nsec.cast_signed() },
    };
    rustix::fs::futimens(directory, &times)
}

pub(super) fn timespec(time: Time) -> Timespec {
    Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() }
}

pub(super) fn write_all(to: &Handle, mut data: &[u8], mut offset: u64) -> Result<()> {
    while !data.is_empty() {
        let written = rustix::io::pwrite(to, data, offset)?;
        if written == 0 {
            return Err(Errno::IO);
        }
        data = &data[written..];
        offset += written as u64;
    }
    Ok(())
}
