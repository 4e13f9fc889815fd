//! From names to nodes: lookup, metadata, and reading directories.
//!
//! Invariant: a name leads to the upper's file where the upper has one, to nothing where it has a whiteout, and
//! to the tree's otherwise; which of these is decided under the lock of the directory's names. Damage in an upper
//! (a redirect that leads nowhere, two directories that claim one of the tree) is `EIO` for that name, not more.

use std::sync::Arc;

use rustix::{
    fs::{AtFlags, Stat},
    io::{Errno, Result},
};

use super::{
    Metadata, NodeId, Union, errno,
    handles::Handle,
    marks::{self, MarkNamespace, Opacity},
    metadata::kind_of,
    names::{Names, Origin, UPPER_POSITIONS, UpperName},
    node::{Node, State},
    rename::tree_path,
    upper::{Upper, open_at},
};
use crate::{
    tar::WHITEOUT_PREFIX,
    tree::{FileKind, Tree, TreeInode},
};

/// Longest name in a directory on Linux.
const NAME_BYTES: usize = 255;
/// `.` and `..` come first in every listing.
const DOTS: u64 = 2;

/// One name of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The name; `.` and `..` come first.
    pub name: Vec<u8>,
    /// Passed back to go on after this name. Positions never change while the name exists.
    pub position: u64,
    /// The node number, which is also `d_ino`. No reference is taken.
    pub id: NodeId,
    /// What it is.
    pub kind: FileKind,
}

/// What a name leads to, before there is a node for it.
#[derive(Debug, Clone)]
pub(super) struct Child {
    pub(super) id: NodeId,
    pub(super) kind: FileKind,
    pub(super) lower: Option<TreeInode>,
    /// Its file in the upper, under this name or through the index.
    pub(super) upper: Option<u64>,
    pub(super) indexed: bool,
    is_split: bool,
    /// The upper has this name.
    pub(super) in_upper: bool,
    redirect: Option<Vec<u8>>,
}

impl Child {
    fn of_tree(inode: TreeInode, kind: FileKind) -> Self {
        let id = NodeId(inode.0);
        Self {
            id,
            kind,
            lower: Some(inode),
            upper: None,
            indexed: false,
            is_split: false,
            in_upper: false,
            redirect: None,
        }
    }

    fn of_upper(id: NodeId, stat: &Stat, lower: Option<TreeInode>) -> Self {
        let (kind, upper) = (kind_of(stat), Some(stat.st_ino));
        Self { id, kind, lower, upper, indexed: false, is_split: false, in_upper: true, redirect: None }
    }
}

/// Refuses what no directory can hold.
pub(super) fn check_name(name: &[u8]) -> Result<()> {
    match name {
        b"" | b"." | b".." => Err(Errno::INVAL),
        _ if name.len() > NAME_BYTES => Err(Errno::NAMETOOLONG),
        _ if name.iter().any(|byte| matches!(byte, b'/' | 0)) => Err(Errno::INVAL),
        _ => Ok(()),
    }
}

impl Upper {
    /// Refuses what no new name can be: where others leave marks of AUFS, a file would be taken for one.
    pub(super) fn check_new_name(&self, name: &[u8]) -> Result<()> {
        check_name(name)?;
        if self.has_aufs_marks && name.starts_with(WHITEOUT_PREFIX) { Err(Errno::INVAL) } else { Ok(()) }
    }
}

impl<T: Tree> Union<T> {
    /// What `name` leads to in a directory; `None` where there is nothing. Takes a reference for [`Union::forget`].
    pub fn lookup(&self, directory: NodeId, name: &[u8]) -> Result<Option<Metadata>> {
        check_name(name)?;
        let directory = self.node(directory)?;
        let mut names = directory.names()?;
        let Some(child) = self.resolve(&directory, &mut names, name)? else { return Ok(None) };
        self.enter(&directory, name, child).map(Some)
    }

    /// What `stat` shows of a node.
    pub fn metadata(&self, node: NodeId) -> Result<Metadata> {
        let node = self.node(node)?;
        self.metadata_of(&node)
    }

    /// Whether a file has no name any more, and can get none.
    pub fn is_removed(&self, node: NodeId) -> Result<bool> {
        let node = self.node(node)?;
        let is_unnamed = node.state().is_unnamed;
        Ok(node.kind == FileKind::File && !is_unnamed && self.metadata_of(&node)?.links == 0)
    }

    /// The target of a symbolic link.
    pub fn read_link(&self, node: NodeId) -> Result<Vec<u8>> {
        let node = self.node(node)?;
        match node.lower {
            _ if node.kind != FileKind::Symlink => Err(Errno::INVAL),
            Some(inode) if !node.in_upper() => self.tree.read_link(inode).map_err(errno),
            _ => Ok(rustix::fs::readlinkat(&*self.upper_handle(&node)?, "", Vec::new())?.into_bytes()),
        }
    }

    /// At most `limit` names of a directory after the one at `after`, 0 for the beginning; none at the end only.
    pub fn read_directory(&self, directory: NodeId, after: u64, limit: usize) -> Result<Vec<Listed>> {
        let directory = self.node(directory)?;
        let mut listed = self.dots(&directory, after);
        let limit = limit.max(listed.len() + 1) - listed.len();
        listed.extend(self.children(&directory, after, limit)?.into_iter().map(|(position, name, child)| Listed {
            name,
            position,
            id: child.id,
            kind: child.kind,
        }));
        Ok(listed)
    }

    /// As [`Union::read_directory`], with metadata and a reference taken for every name but `.` and `..`.
    pub fn read_directory_plus(&self, directory: NodeId, after: u64, limit: usize) -> Result<Vec<(Listed, Metadata)>> {
        let directory = self.node(directory)?;
        let mut listed = Vec::new();
        for dot in self.dots(&directory, after) {
            let metadata = self.metadata(dot.id)?;
            listed.push((dot, metadata));
        }
        let limit = limit.max(listed.len() + 1) - listed.len();
        for (position, name, child) in self.children(&directory, after, limit)? {
            let (id, kind) = (child.id, child.kind);
            match self.enter(&directory, &name, child) {
                Ok(metadata) => listed.push((Listed { name, position, id, kind }, metadata)),
                Err(error) if is_lost(error) => skip(&name, error),
                // What was found is handed out with its references; the error comes with the next page.
                Err(_) if !listed.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(listed)
    }

    fn dots(&self, directory: &Node, after: u64) -> Vec<Listed> {
        let parent = directory.state().links.first().map_or(NodeId::ROOT, |link| link.parent.id);
        let dots = [(&b"."[..], 1, directory.id), (b"..", DOTS, parent)];
        let rest = dots.into_iter().filter(|(_, position, _)| *position > after);
        rest.map(|(name, position, id)| Listed { name: name.to_vec(), position, id, kind: FileKind::Directory })
            .collect()
    }

    /// At most `limit` children with their positions: the tree's names in its order, then those that only the upper
    /// has.
    pub(super) fn children(
        &self,
        directory: &Arc<Node>,
        after: u64,
        limit: usize,
    ) -> Result<Vec<(u64, Vec<u8>, Child)>> {
        let mut names = directory.names()?;
        self.load(directory, &mut names)?;
        let mut found = Vec::with_capacity(limit);
        if let Some(lower) = directory.lower.filter(|_| after < UPPER_POSITIONS) {
            let mut start = after.saturating_sub(DOTS);
            while found.len() < limit {
                let page = self.tree.entries(lower, start, limit).map_err(errno)?;
                let ended = page.len() < limit;
                for (entry, position) in page.into_iter().zip(start + DOTS + 1..) {
                    let child = match names.find(&entry.name) {
                        None => self.tree_only(entry.inode, entry.kind)?,
                        Some(_) => match self.resolve(directory, &mut names, &entry.name) {
                            Ok(Some(child)) => child,
                            Ok(None) => continue,
                            Err(error) if is_lost(error) => {
                                skip(&entry.name, error);
                                continue;
                            }
                            Err(error) => return Err(error),
                        },
                    };
                    if found.len() < limit {
                        found.push((position, entry.name, child));
                    }
                }
                start += limit as u64;
                if ended {
                    break;
                }
            }
        }
        let start = (after + 1).max(UPPER_POSITIONS);
        for (position, name) in names.upper_only(start, limit - found.len()) {
            match self.resolve(directory, &mut names, &name) {
                Ok(child) => found.extend(child.map(|child| (position, name.to_vec(), child))),
                Err(error) if is_lost(error) => skip(&name, error),
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// Makes a child a node with one more reference.
    pub(super) fn enter(&self, directory: &Arc<Node>, name: &[u8], child: Child) -> Result<Metadata> {
        if let Some(inode) = child.lower.filter(|_| child.upper.is_none() && child.kind != FileKind::Directory) {
            let attributes = self.tree.attributes(inode).map_err(errno)?;
            let is_plain = attributes.links == 1 && attributes.kind == child.kind;
            if is_plain && self.table.acquire_plain(child.id, child.kind, directory, name) {
                return Ok(Metadata::of_tree(child.id, &attributes));
            }
        }
        let node = self.acquire(directory, name, child)?;
        self.metadata_of(&node).inspect_err(|_| self.forget(node.id, 1))
    }

    pub(super) fn acquire(&self, directory: &Arc<Node>, name: &[u8], child: Child) -> Result<Arc<Node>> {
        let Child { id, kind, lower, upper, indexed, is_split, in_upper, redirect } = child;
        let node = self.table.acquire(id, || {
            Node::new(id, kind, lower, State { upper, indexed, is_split, redirect, ..State::default() })
        });
        let conflict = node.kind != kind
            || node.is_directory() && node.state().links.iter().any(|link| !link.is(directory, name))
            || in_upper && node.state().upper != upper;
        if conflict {
            self.forget(id, 1);
            return Err(Errno::IO);
        }
        self.table.add_link(&node, directory, name, in_upper);
        Ok(node)
    }

    /// What a name leads to, with the names of its directory locked.
    pub(super) fn resolve(&self, directory: &Arc<Node>, names: &mut Names, name: &[u8]) -> Result<Option<Child>> {
        self.load(directory, names)?;
        match names.find(name) {
            Some(UpperName::Whiteout) => Ok(None),
            Some(UpperName::Present(origin)) => {
                if let Some(child) = names.node(name).and_then(|id| self.known_child(directory, name, id)) {
                    return Ok(Some(child));
                }
                let handle = self.upper_handle(directory)?;
                let stat = rustix::fs::statat(&*handle, name, AtFlags::SYMLINK_NOFOLLOW)?;
                let child = match kind_of(&stat) {
                    FileKind::Directory => self.upper_directory(directory, &handle, name, &stat)?,
                    _ => self.upper_file(directory, names, &handle, name, &stat, origin)?,
                };
                names.set_node(name, child.id);
                Ok(Some(child))
            }
            None => match self.tree_child(directory, name)? {
                Some(inode) => {
                    let kind = self.tree.attributes(inode).map_err(errno)?.kind;
                    self.tree_only(inode, kind).map(Some)
                }
                None => Ok(None),
            },
        }
    }

    /// What a name of the upper leads to, without a system call, where its node is in use and still has that name.
    fn known_child(&self, directory: &Node, name: &[u8], id: NodeId) -> Option<Child> {
        let node = self.table.find(id)?;
        let state = node.state();
        let in_upper = state.links.iter().any(|link| link.in_upper && link.is(directory, name));
        (in_upper && state.upper.is_some()).then(|| Child {
            id,
            kind: node.kind,
            lower: node.lower,
            upper: state.upper,
            indexed: state.indexed,
            is_split: state.is_split,
            in_upper,
            redirect: state.redirect.clone(),
        })
    }

    /// The tree's file under a name, whatever the upper says about it.
    pub(super) fn tree_child(&self, directory: &Node, name: &[u8]) -> Result<Option<TreeInode>> {
        directory.lower.map_or(Ok(None), |lower| self.tree.lookup(lower, name).map_err(errno))
    }

    /// A name that only the tree has. Its file may have been copied up under another name.
    fn tree_only(&self, inode: TreeInode, kind: FileKind) -> Result<Child> {
        let mut child = Child::of_tree(inode, kind);
        if let Some(upper) = &self.upper
            && kind != FileKind::Directory
            && upper.groups.find(inode).is_copied
        {
            child.upper = Some(upper.groups.stat(inode)?.st_ino);
            child.indexed = true;
            child.is_split = kind == FileKind::File
                && self.table.find(child.id).is_none()
                && upper.marks.is_split(&upper.groups.open_file(inode, kind)?)?;
        }
        Ok(child)
    }

    fn upper_directory(&self, parent: &Node, handle: &Arc<Handle>, name: &[u8], stat: &Stat) -> Result<Child> {
        let upper = self.writable()?;
        let opened = Arc::new(open_at(&**handle, name, FileKind::Directory)?);
        opened.granted(0o700, || upper.translate_overrides(&opened))?;
        let (lower, redirect) = match opened.granted(0o700, || upper.translate_aufs_marks(&opened))? {
            true => (None, None),
            false => lower_directory(&self.tree, upper.marks, parent.lower, name, &opened)?,
        };
        let redirect = redirect.map(|path| match path.starts_with(b"/") {
            true => path,
            false => [&tree_path(parent)[..], b"/", &path].concat(),
        });
        let id = lower.map_or_else(|| self.upper_id(stat.st_ino), |inode| Ok(NodeId(inode.0)))?;
        upper.handles.insert(id, &opened);
        Ok(Child { redirect, ..Child::of_upper(id, stat, lower) })
    }

    fn upper_file(
        &self,
        directory: &Node,
        names: &mut Names,
        handle: &Arc<Handle>,
        name: &[u8],
        stat: &Stat,
        origin: Origin,
    ) -> Result<Child> {
        let upper = self.writable()?;
        let origin = match origin {
            Origin::Unknown => {
                let mark = match upper.marks.origin_of(handle, name)? {
                    None if upper.is_foreign => upper.marks.kernel_origin_of(handle, name)?,
                    mark => mark,
                };
                let found = match mark.filter(|inode| self.is_origin(*inode, stat)) {
                    None if upper.is_foreign || may_be_hollow(stat) => {
                        self.content_origin(directory, handle, name, stat)?
                    }
                    found => found,
                };
                let origin = found.map_or(Origin::Upper, Origin::Tree);
                names.set(name, UpperName::Present(origin), false);
                origin
            }
            known => known,
        };
        if let Origin::Tree(inode) = origin {
            let indexed = upper.groups.find(inode).is_copied;
            let known = self.table.find(NodeId(inode.0));
            if known.as_ref().is_none_or(|node| node.state().upper == Some(stat.st_ino)) {
                let is_split =
                    known.is_none() && kind_of(stat) == FileKind::File && upper.marks.is_split_at(handle, name)?;
                let child = Child::of_upper(NodeId(inode.0), stat, Some(inode));
                return Ok(Child { indexed, is_split, ..child });
            }
        }
        if origin != Origin::Upper && upper.marks.is_split_at(handle, name)? {
            // Its content cannot be told: zeros would be a lie.
            return Err(Errno::IO);
        }
        Ok(Child::of_upper(self.upper_id(stat.st_ino)?, stat, None))
    }

    /// The tree's file that holds the content of one in the upper whose origin is not known otherwise. `EIO` where that
    /// cannot be told: zeros would be a lie.
    fn content_origin(&self, directory: &Node, handle: &Handle, name: &[u8], stat: &Stat) -> Result<Option<TreeInode>> {
        if kind_of(stat) != FileKind::File {
            return Ok(None);
        }
        let found = content_below(&self.tree, self.writable()?.marks, directory.lower, handle, name)?;
        match found {
            Some(inode) if !self.is_origin(inode, stat) => Err(Errno::IO),
            found => Ok(found),
        }
    }

    /// Whether a mark may be believed: the tree may be another one, and the mark may have been copied along with a
    /// file.
    fn is_origin(&self, inode: TreeInode, stat: &Stat) -> bool {
        let Some(upper) = &self.upper else { return false };
        let Ok(attributes) = self.tree.attributes(inode) else { return false };
        let is_group = attributes.links > 1;
        inode <= self.tree.last_inode()
            && attributes.kind == kind_of(stat)
            && upper.groups.find(inode).is_copied == is_group
            && (!is_group || upper.groups.stat(inode).is_ok_and(|copy| copy.st_ino == stat.st_ino))
    }

    pub(super) fn metadata_of(&self, node: &Arc<Node>) -> Result<Metadata> {
        let group = |inode| self.upper.as_ref().map(|upper| upper.groups.find(inode)).unwrap_or_default();
        if !node.in_upper() {
            let inode = node.lower.ok_or(Errno::STALE)?;
            let mut metadata = Metadata::of_tree(node.id, &self.tree.attributes(inode).map_err(errno)?);
            let state = node.state();
            metadata.links = match metadata.kind {
                FileKind::Directory => {
                    if state.removed {
                        0
                    } else {
                        metadata.links
                    }
                }
                _ if metadata.links > 1 => group(inode).remaining(metadata.links),
                _ => metadata.links.min(u32::try_from(state.links.len()).unwrap_or(1)),
            };
            return Ok(metadata);
        }
        let mut metadata = Metadata::of_upper(node.id, &self.upper_stat(node)?);
        if let Some(inode) = node.lower.filter(|_| !node.is_complete()) {
            metadata.blocks = Metadata::blocks_of_tree(&self.tree.attributes(inode).map_err(errno)?);
        }
        match node.lower {
            Some(_) if node.is_directory() => metadata.links = metadata.links.min(1),
            Some(inode) if node.state().indexed => {
                let links = self.tree.attributes(inode).map_err(errno)?.links;
                // One link of the copy is the index itself.
                metadata.links = metadata.links.saturating_sub(1) + group(inode).remaining(links);
            }
            _ => {}
        }
        Ok(metadata)
    }

    /// Reads what the upper says about a directory, once.
    pub(super) fn load(&self, directory: &Arc<Node>, names: &mut Names) -> Result<()> {
        let Some(upper) = self.upper.as_ref().filter(|_| !names.is_loaded && directory.in_upper()) else {
            return Ok(());
        };
        let handle = self.upper_handle(directory)?;
        let opacity = upper.marks.opacity(&handle)?;
        for (name, is_whiteout) in handle.granted(0o500, || read_names(upper.marks, &handle, opacity))? {
            let in_tree = self.tree_child(directory, &name)?.is_some();
            // What is left of the marks of AUFS shows nothing either.
            let is_whiteout = is_whiteout || upper.has_aufs_marks && name.starts_with(WHITEOUT_PREFIX);
            let what = if is_whiteout { UpperName::Whiteout } else { UpperName::Present(Origin::Unknown) };
            names.set(&name, what, in_tree);
        }
        names.has_xattr_whiteouts = opacity == Opacity::XattrWhiteouts;
        names.is_loaded = true;
        Ok(())
    }
}

/// The names in a directory of an upper, and whether each is a whiteout.
pub(crate) fn read_names(marks: MarkNamespace, directory: &Handle, opacity: Opacity) -> Result<Vec<(Vec<u8>, bool)>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let is_whiteout = match entry.file_type() {
            rustix::fs::FileType::Directory | rustix::fs::FileType::Symlink => false,
            rustix::fs::FileType::RegularFile if opacity != Opacity::XattrWhiteouts => false,
            _ => {
                let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
                marks::is_whiteout(&stat)
                    || opacity == Opacity::XattrWhiteouts
                        && marks::may_be_xattr_whiteout(&stat)
                        && marks.has_whiteout(&open_at(directory, name, FileKind::File)?)?
            }
        };
        names.push((name.to_vec(), is_whiteout));
    }
    Ok(names)
}

/// The directory of the tree that an upper directory is merged with, and its redirect if it has one: from the root of
/// the tree, or without a slash from the directory that the parent is merged with.
pub(crate) fn lower_directory<T: Tree>(
    tree: &T,
    marks: MarkNamespace,
    parent: Option<TreeInode>,
    name: &[u8],
    directory: &Handle,
) -> Result<(Option<TreeInode>, Option<Vec<u8>>)> {
    if marks.opacity(directory)? == Opacity::Opaque {
        return Ok((None, None));
    }
    let is_directory = |inode: TreeInode| {
        tree.attributes(inode).map(|attributes| attributes.kind == FileKind::Directory).map_err(errno)
    };
    let (found, redirect) = match marks.redirect(directory)? {
        Some(path) if path.starts_with(b"/") => (lower_at(tree, TreeInode::ROOT, &path)?, Some(path)),
        Some(path) => (parent.map_or(Ok(None), |parent| lower_at(tree, parent, &path))?, Some(path)),
        None => (parent.map_or(Ok(None), |parent| tree.lookup(parent, name).map_err(errno))?, None),
    };
    match found {
        Some(inode) if is_directory(inode)? => Ok((Some(inode), redirect)),
        _ => Ok((None, None)),
    }
}

/// The file of the tree that holds the content of one in a directory of the upper, for which the upper has metadata
/// only; `None` for any other. `EIO` where it cannot be told.
pub(crate) fn content_below<T: Tree>(
    tree: &T,
    marks: MarkNamespace,
    parent: Option<TreeInode>,
    directory: &Handle,
    name: &[u8],
) -> Result<Option<TreeInode>> {
    if !marks.is_split_at(directory, name)? {
        return Ok(None);
    }
    let file = open_at(directory, name, FileKind::File)?;
    let found = match (marks.origin(&file)?, marks.redirect(&file)?) {
        (Some(inode), _) => Some(inode),
        (None, Some(path)) if path.starts_with(b"/") => lower_at(tree, TreeInode::ROOT, &path)?,
        (None, Some(path)) => parent.map_or(Ok(None), |parent| lower_at(tree, parent, &path))?,
        (None, None) => parent.map_or(Ok(None), |parent| tree.lookup(parent, name).map_err(errno))?,
    };
    let inode = found.ok_or(Errno::IO)?;
    let is_file = tree.attributes(inode).is_ok_and(|attributes| attributes.kind == FileKind::File);
    if is_file { Ok(Some(inode)) } else { Err(Errno::IO) }
}

/// Whether a file may have no data of its own: the kernel's overlayfs may have had the upper after us, and have left
/// the content of a file in the tree. Marks may take a block.
fn may_be_hollow(stat: &Stat) -> bool {
    let taken = stat.st_blocks * 512;
    kind_of(stat) == FileKind::File && stat.st_size > 0 && (taken < stat.st_size || taken <= stat.st_blksize)
}

/// What a redirect leads to in the tree. Links are not followed.
fn lower_at<T: Tree>(tree: &T, from: TreeInode, path: &[u8]) -> Result<Option<TreeInode>> {
    let mut inode = from;
    for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
        check_name(name).map_err(|_| Errno::IO)?;
        match tree.lookup(inode, name) {
            Ok(Some(next)) => inode = next,
            Ok(None) => return Ok(None),
            Err(error) if errno_is(&error, Errno::NOTDIR) => return Ok(None),
            Err(error) => return Err(errno(error)),
        }
    }
    Ok(Some(inode))
}

/// Whether an error is about one name only, which then does not hide the others of its directory.
fn is_lost(error: Errno) -> bool {
    matches!(error, Errno::IO | Errno::NOENT | Errno::STALE | Errno::ACCESS)
}

fn skip(name: &[u8], error: Errno) {
    tracing::debug!(name = %name.escape_ascii(), %error, "a damaged name is left out of a listing");
}

fn errno_is(error: &std::io::Error, wanted: Errno) -> bool {
    error.raw_os_error() == Some(wanted.raw_os_error())
}
