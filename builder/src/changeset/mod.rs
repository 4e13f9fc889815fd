//! Changes on top of a tree, kept in memory until they are committed as one layer.
//!
//! COPY, ADD and WORKDIR never mount anything: they put entries into a [`ChangeSet`], from trees (`select.rs`, `copy.rs`) and
//! archives (`unpack.rs`), and the commit streams them into a layer. Invariant: every path in it is absolute without its leading
//! slash, clean, and free of symbolic links in all but its last component; so nothing here can
//! name a place outside the root.

pub(crate) mod copy;
pub(crate) mod select;
pub(crate) mod unpack;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use layerfs::{Attributes, FileKind, Time, Tree, TreeInode};

use crate::paths::{components, join, parent};

/// How many symbolic links one path may pass through: the kernel's own limit (`MAXSYMLINKS`).
const MOST_SYMLINKS: u32 = 40;

/// The longest path, as the kernel and the reader of layers have it.
const PATH_MAX_BYTES: usize = 4096;

/// Where the bytes of a file come from.
#[derive(Clone)]
pub(crate) enum Content {
    /// Bytes in memory: a here-document, a download, a generated file.
    Bytes(Arc<[u8]>),
    /// A file of a tree: the build context, another stage, an image.
    Tree(Arc<dyn Tree>, TreeInode),
    /// A part of a file, from an offset and so many bytes long: a member of an unpacked archive.
    Range(Arc<File>, u64, u64),
}

/// What stands at a path, with its metadata and the way to its bytes.
#[derive(Clone)]
pub(crate) struct Node {
    /// Kind, mode, owner, size and time. `links` has no meaning here.
    pub(crate) attributes: Attributes,
    /// The bytes of a regular file; `None` for everything else.
    pub(crate) content: Option<Content>,
    /// The target of a symbolic link; empty for everything else.
    pub(crate) target: Vec<u8>,
    /// Extended attributes, sorted by name.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// A directory that hides what the tree has below the same path.
    pub(crate) is_opaque: bool,
}

impl Node {
    /// A directory.
    pub(crate) fn directory(mode: u32, owner: Owner, modified: Time) -> Self {
        Self::plain(FileKind::Directory, mode, owner, modified)
    }

    /// A regular file with these bytes.
    pub(crate) fn file(bytes: Arc<[u8]>, mode: u32, owner: Owner, modified: Time) -> Self {
        let mut node = Self::plain(FileKind::File, mode, owner, modified);
        node.attributes.size_bytes = bytes.len() as u64;
        node.attributes.data_bytes = bytes.len() as u64;
        node.content = Some(Content::Bytes(bytes));
        node
    }

    /// What a tree has at `inode`, with the bytes of a file left where they are.
    pub(crate) fn of_tree(tree: &Arc<dyn Tree>, inode: TreeInode) -> io::Result<Self> {
        let attributes = tree.attributes(inode)?;
        Ok(Self {
            attributes,
            content: (attributes.kind == FileKind::File).then(|| Content::Tree(Arc::clone(tree), inode)),
            target: if attributes.kind == FileKind::Symlink { tree.read_link(inode)? } else { Vec::new() },
            xattrs: tree.xattrs(inode)?,
            is_opaque: false,
        })
    }

    fn plain(kind: FileKind, mode: u32, owner: Owner, modified: Time) -> Self {
        Self {
            attributes: Attributes {
                kind,
                mode,
                uid: owner.uid,
                gid: owner.gid,
                links: 1,
                size_bytes: 0,
                data_bytes: 0,
                modified,
                device: (0, 0),
            },
            content: None,
            target: Vec::new(),
            xattrs: Vec::new(),
            is_opaque: false,
        }
    }

    fn is_directory(&self) -> bool {
        self.attributes.kind == FileKind::Directory
    }
}

/// A numeric user and group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Names one node; two paths with the same `NodeId` are hard links of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NodeId(usize);

/// What a path leads to: something put here, or something of the tree below.
#[derive(Clone, Copy)]
enum Place {
    Changed(NodeId),
    Below(TreeInode),
}

/// Entries put on top of a tree. See the module's documentation.
pub(crate) struct ChangeSet {
    below: Arc<dyn Tree>,
    paths: BTreeMap<Vec<u8>, NodeId>,
    nodes: Vec<Node>,
}

impl ChangeSet {
    /// No changes on top of `below`.
    pub(crate) fn new(below: Arc<dyn Tree>) -> Self {
        Self { below, paths: BTreeMap::new(), nodes: Vec::new() }
    }

    /// The tree that the changes are made to.
    pub(crate) fn below(&self) -> &Arc<dyn Tree> {
        &self.below
    }

    /// All changed paths in byte order, each with its node.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&[u8], NodeId, &Node)> {
        self.paths.iter().map(|(path, id)| (path.as_slice(), *id, &self.nodes[id.0]))
    }

    /// What stands at a clean path, links in its last component not followed.
    pub(crate) fn stat(&self, path: &[u8]) -> io::Result<Option<Attributes>> {
        Ok(match self.place(path)? {
            None => None,
            Some(Place::Changed(id)) => Some(self.nodes[id.0].attributes),
            Some(Place::Below(inode)) => Some(self.below.attributes(inode)?),
        })
    }

    /// What the tree has at a clean path, changes left aside.
    pub(crate) fn below_at(&self, path: &[u8]) -> io::Result<Option<TreeInode>> {
        let mut inode = TreeInode::ROOT;
        for name in components(path) {
            match self.below.lookup(inode, name) {
                Ok(Some(next)) => inode = next,
                Ok(None) => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(Some(inode))
    }

    /// The whole content of a small regular file, links followed; `None` where there is none.
    pub(crate) fn read_file(&self, path: &[u8], most_bytes: u64) -> io::Result<Option<Vec<u8>>> {
        let path = self.resolve(path)?;
        let (content, size) = match self.place(&path)? {
            Some(Place::Changed(id)) => (self.nodes[id.0].content.clone(), self.nodes[id.0].attributes.size_bytes),
            Some(Place::Below(inode)) => {
                let attributes = self.below.attributes(inode)?;
                let is_file = attributes.kind == FileKind::File;
                (is_file.then(|| Content::Tree(Arc::clone(&self.below), inode)), attributes.size_bytes)
            }
            None => return Ok(None),
        };
        let Some(content) = content else { return Ok(None) };
        if size > most_bytes {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut content.reader(), &mut bytes)?;
        Ok(Some(bytes))
    }

    /// The path that `path` leads to inside the root once every symbolic link is followed. What
    /// does not exist is kept as it is written; `..` stops at the root, as `chroot` has it. A path that no system call
    /// would take is refused.
    pub(crate) fn resolve(&self, path: &[u8]) -> io::Result<Vec<u8>> {
        self.resolve_below(b"", path)
    }

    /// The same with the directory at the resolved path `top` as the root.
    pub(crate) fn resolve_below(&self, top: &[u8], path: &[u8]) -> io::Result<Vec<u8>> {
        let mut left: Vec<Vec<u8>> = components(path).rev().map(<[u8]>::to_vec).collect();
        let mut done = top.to_vec();
        let mut links = 0;
        while let Some(name) = left.pop() {
            if name == b".." {
                done.truncate(parent(&done).len().max(top.len()));
                continue;
            }
            let next = join(&done, &name);
            if next.len() > PATH_MAX_BYTES {
                return Err(rustix::io::Errno::NAMETOOLONG.into());
            }
            let Some(target) = self.link_target(&next)? else {
                done = next;
                continue;
            };
            links += 1;
            if links > MOST_SYMLINKS {
                return Err(rustix::io::Errno::LOOP.into());
            }
            if target.starts_with(b"/") {
                done.truncate(top.len());
            }
            left.extend(components(&target).rev().map(<[u8]>::to_vec));
        }
        Ok(done)
    }

    /// Puts `node` at a clean path whose parents exist, in place of what was there. A directory
    /// put over a directory replaces its metadata and keeps what is in it.
    pub(crate) fn put(&mut self, path: &[u8], mut node: Node) -> io::Result<NodeId> {
        let before = self.stat(path)?.map(|attributes| attributes.kind);
        if !node.is_directory() {
            self.forget_below(path);
        } else if before != Some(FileKind::Directory) && before.is_some() {
            // Something else was put over a directory of the tree: its old content stays hidden.
            node.is_opaque = true;
        } else if let Some(id) = self.paths.get(path) {
            node.is_opaque = self.nodes[id.0].is_opaque;
        }
        let id = NodeId(self.nodes.len());
        self.nodes.push(node);
        self.paths.insert(path.to_vec(), id);
        Ok(id)
    }

    /// Hides what the tree and the change set have at and below the directory at a clean path, so
    /// that something else can be put there.
    pub(crate) fn remove_directory(&mut self, path: &[u8]) {
        self.forget_below(path);
        self.paths.remove(path);
    }

    /// The node at a clean path, made a change first where it is the tree's.
    pub(crate) fn node_id(&mut self, path: &[u8]) -> io::Result<Option<NodeId>> {
        match self.place(path)? {
            None => Ok(None),
            Some(Place::Changed(id)) => Ok(Some(id)),
            Some(Place::Below(inode)) => {
                let node = Node::of_tree(&self.below, inode)?;
                self.put(path, node).map(Some)
            }
        }
    }

    /// Gives what stands at a clean path another mode.
    pub(crate) fn set_mode(&mut self, path: &[u8], mode: u32) -> io::Result<()> {
        if let Some(id) = self.node_id(path)? {
            self.nodes[id.0].attributes.mode = mode;
        }
        Ok(())
    }

    /// Gives what stands at a clean path another owner.
    pub(crate) fn set_owner(&mut self, path: &[u8], owner: Owner) -> io::Result<()> {
        if let Some(id) = self.node_id(path)? {
            let attributes = &mut self.nodes[id.0].attributes;
            (attributes.uid, attributes.gid) = (owner.uid, owner.gid);
        }
        Ok(())
    }

    /// Gives what stands at a clean path another time.
    pub(crate) fn set_modified(&mut self, path: &[u8], modified: Time) -> io::Result<()> {
        if let Some(id) = self.node_id(path)? {
            self.nodes[id.0].attributes.modified = modified;
        }
        Ok(())
    }

    /// Makes `path` one more name of a node that was put before.
    pub(crate) fn link(&mut self, path: &[u8], id: NodeId) {
        self.forget_below(path);
        self.paths.insert(path.to_vec(), id);
    }

    /// Makes the directories of a clean, resolved path that are missing, and returns the paths of
    /// those it made. `ENOTDIR` where something else is in the way.
    pub(crate) fn make_directories(&mut self, path: &[u8], like: &Node) -> io::Result<Vec<Vec<u8>>> {
        let mut made = Vec::new();
        let mut at = Vec::new();
        for name in components(path) {
            at = join(&at, name);
            match self.stat(&at)? {
                Some(attributes) if attributes.kind == FileKind::Directory => {}
                Some(_) => return Err(io::Error::from(io::ErrorKind::NotADirectory)),
                None => {
                    self.put(&at, like.clone())?;
                    made.push(at.clone());
                }
            }
        }
        Ok(made)
    }

    fn link_target(&self, path: &[u8]) -> io::Result<Option<Vec<u8>>> {
        match self.place(path)? {
            Some(Place::Changed(id)) => {
                let node = &self.nodes[id.0];
                Ok((node.attributes.kind == FileKind::Symlink).then(|| node.target.clone()))
            }
            Some(Place::Below(inode)) if self.below.attributes(inode)?.kind == FileKind::Symlink => {
                self.below.read_link(inode).map(Some)
            }
            _ => Ok(None),
        }
    }

    fn place(&self, path: &[u8]) -> io::Result<Option<Place>> {
        let mut below = Some(TreeInode::ROOT);
        let mut place = Some(Place::Below(TreeInode::ROOT));
        let mut at = Vec::new();
        for name in components(path) {
            at = join(&at, name);
            let changed = self.paths.get(&at).copied();
            let hides = changed.is_some_and(|id| !self.nodes[id.0].is_directory() || self.nodes[id.0].is_opaque);
            below = match below {
                Some(inode) if !hides => match self.below.lookup(inode, name) {
                    Err(error) if error.kind() == io::ErrorKind::NotADirectory => None,
                    found => found?,
                },
                _ => None,
            };
            place = changed.map(Place::Changed).or(below.map(Place::Below));
            if place.is_none() {
                return Ok(None);
            }
        }
        Ok(place)
    }

    fn forget_below(&mut self, path: &[u8]) {
        let prefix = join(path, b"");
        let gone: Vec<Vec<u8>> = self
            .paths
            .range(prefix.clone()..)
            .take_while(|(other, _)| other.starts_with(&prefix))
            .map(|(other, _)| other.clone())
            .collect();
        for other in gone {
            self.paths.remove(&other);
        }
    }
}

impl Content {
    /// How many bytes there are.
    pub(crate) fn size_bytes(&self) -> io::Result<u64> {
        Ok(match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Tree(tree, inode) => tree.attributes(*inode)?.size_bytes,
            Self::Range(_, _, size_bytes) => *size_bytes,
        })
    }

    /// Reads from an offset; less than the buffer's length only at the end, 0 behind it.
    pub(crate) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Bytes(bytes) => {
                let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)).unwrap_or_default();
                let length = rest.len().min(buffer.len());
                buffer[..length].copy_from_slice(&rest[..length]);
                Ok(length)
            }
            Self::Tree(tree, inode) => tree.read_at(*inode, offset, buffer),
            Self::Range(file, start, size) => {
                let rest = size.saturating_sub(offset).min(buffer.len() as u64) as usize;
                file.read_at(&mut buffer[..rest], start + offset)
            }
        }
    }

    /// A reader over the whole content.
    pub(crate) fn reader(&self) -> ContentReader<'_> {
        ContentReader { content: self, offset: 0 }
    }
}

/// Reads a [`Content`] from its beginning.
pub(crate) struct ContentReader<'a> {
    content: &'a Content,
    offset: u64,
}

impl io::Read for ContentReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.content.read_at(self.offset, buffer)?;
        self.offset += read as u64;
        Ok(read)
    }
}
