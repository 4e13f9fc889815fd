//! The walk through an upper that finds what of it differs from the tree.
//!
//! Invariant: whatever goes away meanwhile counts as gone; a directory is opened below the upper, name by name, and no
//! link is followed.

use std::{
    collections::{BTreeSet, HashMap},
    os::fd::OwnedFd,
};

use rustix::{
    fs::{AtFlags, Stat},
    io::Errno,
};

use super::{
    Change, ChangeKind, ChangesError, Content,
    links::{Found, LinkIndex, link_groups, open_below},
};
use crate::{
    tar::WHITEOUT_PREFIX,
    tree::{Attributes, FileKind, Time, Tree, TreeInode},
    union::{Handle, MarkNamespace, content_below, errno, kind_of, lower_directory, open_at, read_names, time_of},
};

/// Content is compared in pieces of this size.
const CHUNK_BYTES: usize = 128 << 10;

/// Entries of a directory of the tree that are read at once.
const PAGE: usize = 256;

/// All changes, sorted by path.
pub(super) fn walk<T: Tree>(
    tree: &T,
    upper: &OwnedFd,
    index: &LinkIndex,
    marks: MarkNamespace,
) -> Result<Vec<Change>, ChangesError> {
    let root = Some(TreeInode::ROOT);
    let pending = vec![Pending { path: Vec::new(), in_upper: true, merged: root, below: root }];
    let mut walk = Walk { tree, upper, index, marks, found: Vec::new(), pending, last: None };
    let failed = |source| ChangesError::System { action: "comparing", path: Vec::new(), source };
    walk.visit_root().map_err(failed)?;
    while let Some(next) = walk.pending.pop() {
        walk.visit(&next)?;
    }
    Ok(link_groups(walk.found))
}

/// A directory that is still to be compared.
struct Pending {
    path: Vec<u8>,
    in_upper: bool,
    /// The directory of the tree that it shows.
    merged: Option<TreeInode>,
    /// The directory that the tree has at its path.
    below: Option<TreeInode>,
}

/// Where a visible file is. What is in the upper may have its content in a file of the tree.
enum Object {
    Upper(Handle, Stat, Option<TreeInode>),
    Index(TreeInode, Handle, Stat, Option<TreeInode>),
    Tree(TreeInode, Attributes),
}

struct Walk<'a, T> {
    tree: &'a T,
    upper: &'a OwnedFd,
    index: &'a LinkIndex,
    marks: MarkNamespace,
    found: Vec<Found>,
    pending: Vec<Pending>,
    /// The directory of the upper that was visited last.
    last: Option<(Vec<u8>, Handle)>,
}

impl<T: Tree> Walk<'_, T> {
    fn visit_root(&mut self) -> rustix::io::Result<()> {
        let handle = open_at(self.upper, b".", FileKind::Directory)?;
        let stat = handle.stat()?;
        let root = Object::Upper(handle, stat, None);
        let change = self.describe(&root, b"")?;
        if !self.is_same(&root, &change, TreeInode::ROOT)? {
            self.found.push(Found { change, group: None, is_changed: true });
        }
        Ok(())
    }

    fn visit(&mut self, at: &Pending) -> Result<(), ChangesError> {
        let failed = |source| ChangesError::System { action: "comparing", path: at.path.clone(), source };
        let opened = at.in_upper.then(|| self.open_directory(&at.path)).transpose();
        let handle = match opened {
            Err(Errno::NOENT) => return Ok(()),
            opened => opened.map_err(failed)?,
        };
        let mut in_upper = HashMap::new();
        if let Some(handle) = &handle {
            let opacity = self.marks.opacity(handle).map_err(failed)?;
            in_upper.extend(read_names(self.marks, handle, opacity).map_err(failed)?);
        }
        let mut names: BTreeSet<Vec<u8>> = in_upper.keys().cloned().collect();
        if at.merged != at.below || !self.index.split.is_empty() {
            names.extend(self.tree_names(at.merged).map_err(failed)?);
        }
        if at.merged != at.below {
            names.extend(self.tree_names(at.below).map_err(failed)?);
        }
        for name in names {
            let path = if at.path.is_empty() { name.clone() } else { [&at.path[..], b"/", &name].concat() };
            let is_whiteout = in_upper.get(&name).copied();
            self.visit_name(at, handle.as_ref(), &name, &path, is_whiteout).map_err(|source| ChangesError::System {
                action: "comparing",
                path: path.clone(),
                source,
            })?;
            let changed = self.found.last().filter(|found| found.change.path == path && found.is_changed);
            if name.starts_with(WHITEOUT_PREFIX) && changed.is_some() {
                return Err(ChangesError::ReservedName { path });
            }
        }
        self.last = handle.map(|handle| (at.path.clone(), handle));
        Ok(())
    }

    /// A directory is mostly visited after the one that it is in: from there it is one step, however deep it lies.
    fn open_directory(&self, path: &[u8]) -> rustix::io::Result<Handle> {
        if let Some((above, handle)) = &self.last
            && let Some(rest) = path.strip_prefix(&above[..]).and_then(|rest| rest.strip_prefix(b"/"))
        {
            return open_below(handle, rest, FileKind::Directory);
        }
        open_below(self.upper, path, FileKind::Directory)
    }

    fn tree_names(&self, directory: Option<TreeInode>) -> rustix::io::Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        let Some(directory) = directory else { return Ok(names) };
        loop {
            let page = self.tree.entries(directory, names.len() as u64, PAGE).map_err(errno)?;
            let is_last = page.len() < PAGE;
            names.extend(page.into_iter().map(|entry| entry.name));
            if is_last {
                return Ok(names);
            }
        }
    }

    fn lookup(&self, directory: Option<TreeInode>, name: &[u8]) -> rustix::io::Result<Option<TreeInode>> {
        directory.map_or(Ok(None), |directory| self.tree.lookup(directory, name).map_err(errno))
    }

    fn visit_name(
        &mut self,
        at: &Pending,
        directory: Option<&Handle>,
        name: &[u8],
        path: &[u8],
        is_whiteout: Option<bool>,
    ) -> rustix::io::Result<()> {
        let below = self.lookup(at.below, name)?;
        let object = match (is_whiteout, directory) {
            (Some(false), Some(directory)) => match self.upper_object(at, directory, name) {
                Err(Errno::NOENT) => None,
                found => Some(found?),
            },
            (Some(_), _) => None,
            (None, _) => self.lookup(at.merged, name)?.map(|inode| self.tree_object(inode)).transpose()?,
        };
        let Some(object) = object.filter(|object| object.kind() != FileKind::Socket) else {
            if below.is_some() {
                self.found.push(Found { change: whiteout(path), group: None, is_changed: true });
            }
            return Ok(());
        };
        let change = self.describe(&object, path)?;
        let is_changed = match below {
            Some(below) => !self.is_same(&object, &change, below)?,
            None => true,
        };
        if object.kind() == FileKind::Directory {
            self.descend(at, &object, name, path, below)?;
        }
        let group = object.group();
        if is_changed || group.is_some() {
            self.found.push(Found { change, group, is_changed });
        }
        Ok(())
    }

    fn upper_object(&self, at: &Pending, directory: &Handle, name: &[u8]) -> rustix::io::Result<Object> {
        let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let content = match kind_of(&stat) {
            FileKind::File => content_below(self.tree, self.marks, at.merged, directory, name)?,
            _ => None,
        };
        Ok(Object::Upper(open_at(directory, name, kind_of(&stat))?, stat, content))
    }

    fn tree_object(&self, inode: TreeInode) -> rustix::io::Result<Object> {
        let attributes = self.tree.attributes(inode).map_err(errno)?;
        if !self.index.split.contains(&inode) {
            return Ok(Object::Tree(inode, attributes));
        }
        let handle = self.index.open(inode, attributes.kind)?;
        let (stat, is_split) = (handle.stat()?, self.marks.is_split(&handle)?);
        Ok(Object::Index(inode, handle, stat, is_split.then_some(inode)))
    }

    fn descend(
        &mut self,
        at: &Pending,
        object: &Object,
        name: &[u8],
        path: &[u8],
        below: Option<TreeInode>,
    ) -> rustix::io::Result<()> {
        let is_directory =
            |inode: &TreeInode| self.tree.attributes(*inode).is_ok_and(|found| found.kind == FileKind::Directory);
        let below = below.filter(is_directory);
        let (in_upper, merged) = match object {
            Object::Upper(handle, ..) => (true, lower_directory(self.tree, self.marks, at.merged, name, handle)?.0),
            Object::Tree(inode, _) | Object::Index(inode, ..) => (false, Some(*inode)),
        };
        if in_upper || merged != below || !self.index.split.is_empty() {
            self.pending.push(Pending { path: path.to_vec(), in_upper, merged, below });
        }
        Ok(())
    }

    fn describe(&self, object: &Object, path: &[u8]) -> rustix::io::Result<Change> {
        let (mode, uid, gid, modified, size_bytes, device) = match object {
            Object::Upper(_, stat, _) | Object::Index(_, _, stat, _) => {
                let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                (
                    stat.st_mode & 0o7777,
                    stat.st_uid,
                    stat.st_gid,
                    time_of(stat.st_mtime, stat.st_mtime_nsec),
                    size,
                    device,
                )
            }
            Object::Tree(_, tree) => (tree.mode, tree.uid, tree.gid, tree.modified, tree.size_bytes, tree.device),
        };
        let kind = match object.kind() {
            FileKind::File => ChangeKind::File { content: object.content(), size_bytes },
            FileKind::Directory => ChangeKind::Directory,
            FileKind::Symlink => ChangeKind::Symlink(match object {
                Object::Tree(inode, _) => self.tree.read_link(*inode).map_err(errno)?,
                Object::Upper(handle, ..) | Object::Index(_, handle, ..) => {
                    rustix::fs::readlinkat(handle, "", Vec::new())?.into_bytes()
                }
            }),
            FileKind::CharacterDevice => ChangeKind::CharacterDevice(device.0, device.1),
            FileKind::BlockDevice => ChangeKind::BlockDevice(device.0, device.1),
            FileKind::Fifo | FileKind::Socket => ChangeKind::Fifo,
        };
        let xattrs = match object {
            Object::Tree(inode, _) => self.tree.xattrs(*inode).map_err(errno)?,
            Object::Upper(handle, ..) | Object::Index(_, handle, ..) => self.xattrs(handle)?,
        };
        Ok(Change { path: path.to_vec(), kind, mode, uid, gid, modified, xattrs })
    }

    fn xattrs(&self, handle: &Handle) -> rustix::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut xattrs = Vec::new();
        for stored in handle.xattr_names()? {
            if let Some(name) = self.marks.shown(&stored) {
                xattrs.push((name.into_owned(), handle.xattr(&stored)?.unwrap_or_default()));
            }
        }
        xattrs.sort();
        Ok(xattrs)
    }

    /// Whether what is visible equals what the tree has at the same path, times aside.
    fn is_same(&self, object: &Object, change: &Change, below: TreeInode) -> rustix::io::Result<bool> {
        if matches!(object, Object::Tree(inode, _) if *inode == below) {
            return Ok(true);
        }
        let attributes = self.tree.attributes(below).map_err(errno)?;
        let old = self.describe(&Object::Tree(below, attributes), &change.path)?;
        // A symbolic link has no mode of its own.
        let same_mode = old.mode == change.mode || object.kind() == FileKind::Symlink;
        if !same_mode || (old.uid, old.gid, &old.xattrs) != (change.uid, change.gid, &change.xattrs) {
            return Ok(false);
        }
        match (&old.kind, &change.kind) {
            (ChangeKind::File { size_bytes: old, .. }, ChangeKind::File { size_bytes: new, .. }) => {
                Ok(old == new && self.has_content(object, below, *new)?)
            }
            (old, new) => Ok(old == new),
        }
    }

    fn has_content(&self, object: &Object, below: TreeInode, size: u64) -> rustix::io::Result<bool> {
        let content = object.content();
        if content == Content::Tree(below) {
            return Ok(true);
        }
        let (mut old, mut new) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
        let mut offset = 0;
        while offset < size {
            let wanted = usize::try_from(size - offset).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
            let read = self.tree.read_at(below, offset, &mut old[..wanted]).map_err(errno)?;
            let again = match (object, &content) {
                (_, Content::Tree(inode)) => self.tree.read_at(*inode, offset, &mut new[..wanted]).map_err(errno)?,
                (Object::Upper(handle, ..) | Object::Index(_, handle, ..), _) => {
                    read_full(handle, &mut new[..wanted], offset)?
                }
                (Object::Tree(..), _) => return Err(Errno::STALE),
            };
            if read != again || read == 0 || old[..read] != new[..read] {
                return Ok(false);
            }
            offset += read as u64;
        }
        Ok(true)
    }
}

impl Object {
    fn kind(&self) -> FileKind {
        match self {
            Self::Upper(_, stat, _) | Self::Index(_, _, stat, _) => kind_of(stat),
            Self::Tree(_, attributes) => attributes.kind,
        }
    }

    fn content(&self) -> Content {
        match self {
            Self::Tree(inode, _) | Self::Upper(.., Some(inode)) | Self::Index(.., Some(inode)) => Content::Tree(*inode),
            Self::Upper(.., None) => Content::Upper,
            Self::Index(inode, .., None) => Content::Index(*inode),
        }
    }

    /// What its other names have in common with it, where it can have others.
    fn group(&self) -> Option<(bool, u64)> {
        match self {
            Self::Upper(_, stat, _) | Self::Index(_, _, stat, _) => {
                (stat.st_nlink > 1 && kind_of(stat) != FileKind::Directory).then_some((true, stat.st_ino))
            }
            Self::Tree(inode, attributes) => {
                (attributes.links > 1 && attributes.kind != FileKind::Directory).then_some((false, inode.0))
            }
        }
    }
}

fn whiteout(path: &[u8]) -> Change {
    let (path, kind) = (path.to_vec(), ChangeKind::Whiteout);
    Change { path, kind, mode: 0, uid: 0, gid: 0, modified: Time::default(), xattrs: Vec::new() }
}

fn read_full(handle: &Handle, buffer: &mut [u8], offset: u64) -> rustix::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match rustix::io::pread(handle, &mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
