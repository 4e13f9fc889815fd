//! A build context as a tree, so that COPY and bind mounts treat it like a stage or an image.
//!
//! Invariant: the tree is the directory as it was when it was walked, less what the patterns exclude. Contents are read
//! later: a file that has changed its length meanwhile is an error, never a half of each.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use layerfs::{Attributes, DirectoryEntry, FileKind, Time, Tree, TreeInode};

use super::directory::{Directory, Entry, EntryKind, Identity};
use super::error::ContextError;

/// The files of a context.
pub struct ContextTree {
    directory: Directory,
    inodes: Vec<Inode>,
    /// The file that was read last: files are read from begin to end, one after the other.
    open: Mutex<Option<(TreeInode, Arc<File>)>>,
}

struct Inode {
    entry: Entry,
    children: Vec<DirectoryEntry>,
    links: u32,
}

impl ContextTree {
    /// Walks a directory.
    ///
    /// # Errors
    /// Something in it cannot be read.
    pub fn new(directory: Directory) -> Result<Self, ContextError> {
        let root = directory.entry(Path::new(""))?;
        let mut tree = Self {
            directory,
            inodes: vec![Inode { entry: root, children: Vec::new(), links: 2 }],
            open: Mutex::default(),
        };
        let mut by_path: HashMap<std::path::PathBuf, usize> = HashMap::from([("".into(), 0)]);
        let mut by_identity: HashMap<Identity, usize> = HashMap::new();
        for entry in tree.directory.walk(Path::new(""))? {
            // No layer can hold a socket: docker leaves it out, too.
            if entry.path.as_os_str().is_empty() || entry.kind == EntryKind::Socket {
                continue;
            }
            let parent = entry.path.parent().and_then(|parent| by_path.get(parent)).copied().unwrap_or(0);
            let name = entry.path.file_name().unwrap_or_default().as_bytes().to_vec();
            let kind = kind(&entry.kind);
            let known = (entry.link_count > 1 && kind != FileKind::Directory)
                .then(|| by_identity.get(&entry.identity))
                .flatten();
            let index = match known.copied() {
                Some(index) => {
                    tree.inodes[index].links += 1;
                    index
                }
                None => {
                    let index = tree.inodes.len();
                    if kind == FileKind::Directory {
                        by_path.insert(entry.path.clone(), index);
                        tree.inodes[parent].links += 1;
                    } else if entry.link_count > 1 {
                        by_identity.insert(entry.identity, index);
                    }
                    let links = if kind == FileKind::Directory { 2 } else { 1 };
                    tree.inodes.push(Inode { entry, children: Vec::new(), links });
                    index
                }
            };
            tree.inodes[parent].children.push(DirectoryEntry { name, inode: TreeInode(index as u64 + 1), kind });
        }
        for inode in &mut tree.inodes {
            // The walk is sorted by whole paths, in which `a.b` comes before `a/b`.
            inode.children.sort_by(|a, b| a.name.cmp(&b.name));
        }
        Ok(tree)
    }

    fn inode(&self, inode: TreeInode) -> io::Result<&Inode> {
        let index = usize::try_from(inode.0).ok().and_then(|number| number.checked_sub(1));
        let stale = || io::Error::from(io::ErrorKind::StaleNetworkFileHandle);
        index.and_then(|index| self.inodes.get(index)).ok_or_else(stale)
    }

    fn file(&self, inode: TreeInode) -> io::Result<Arc<File>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((number, file)) = &*open
            && *number == inode
        {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(self.directory.open_file(&self.inode(inode)?.entry.path).map_err(io_error)?);
        *open = Some((inode, Arc::clone(&file)));
        Ok(file)
    }
}

impl Tree for ContextTree {
    fn lookup(&self, directory: TreeInode, name: &[u8]) -> io::Result<Option<TreeInode>> {
        let inode = self.inode(directory)?;
        if inode.entry.kind != EntryKind::Directory {
            return Err(io::Error::from(io::ErrorKind::NotADirectory));
        }
        let found = inode.children.binary_search_by(|child| child.name.as_slice().cmp(name));
        Ok(found.ok().map(|index| inode.children[index].inode))
    }

    fn attributes(&self, inode: TreeInode) -> io::Result<Attributes> {
        let Inode { entry, links, .. } = self.inode(inode)?;
        let size_bytes = match &entry.kind {
            EntryKind::File { size_bytes } => *size_bytes,
            EntryKind::Symlink { target } => target.as_os_str().len() as u64,
            _ => 0,
        };
        let device = match entry.kind {
            EntryKind::CharacterDevice { major, minor } | EntryKind::BlockDevice { major, minor } => (major, minor),
            _ => (0, 0),
        };
        let modified = Time { seconds: entry.mtime_seconds, nanoseconds: entry.mtime_nanoseconds };
        let kind = kind(&entry.kind);
        // Owners on this machine mean nothing in an image: everything in a context is root's.
        Ok(Attributes {
            kind,
            mode: entry.mode,
            uid: 0,
            gid: 0,
            links: *links,
            size_bytes,
            data_bytes: size_bytes,
            modified,
            device,
        })
    }

    fn entries(&self, directory: TreeInode, start: u64, limit: usize) -> io::Result<Vec<DirectoryEntry>> {
        let inode = self.inode(directory)?;
        if inode.entry.kind != EntryKind::Directory {
            return Err(io::Error::from(io::ErrorKind::NotADirectory));
        }
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        Ok(inode.children.iter().skip(start).take(limit).cloned().collect())
    }

    fn read_at(&self, inode: TreeInode, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let EntryKind::File { size_bytes } = self.inode(inode)?.entry.kind else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        };
        let wanted = size_bytes.saturating_sub(offset).min(buffer.len() as u64) as usize;
        let file = self.file(inode)?;
        let mut done = 0;
        while done < wanted {
            match file.read_at(&mut buffer[done..wanted], offset + done as u64) {
                Ok(0) => {
                    let path = &self.inode(inode)?.entry.path;
                    return Err(io::Error::other(format!("{} was cut short during the build", path.display())));
                }
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn data_extents(&self, inode: TreeInode) -> io::Result<Vec<(u64, u64)>> {
        let attributes = self.attributes(inode)?;
        Ok(if attributes.size_bytes == 0 { Vec::new() } else { vec![(0, attributes.size_bytes)] })
    }

    fn read_link(&self, inode: TreeInode) -> io::Result<Vec<u8>> {
        match &self.inode(inode)?.entry.kind {
            EntryKind::Symlink { target } => Ok(target.as_os_str().as_bytes().to_vec()),
            _ => Err(io::Error::from(io::ErrorKind::InvalidInput)),
        }
    }

    fn xattrs(&self, inode: TreeInode) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let xattrs = self.directory.xattrs(&self.inode(inode)?.entry).map_err(io_error)?;
        Ok(xattrs.into_iter().map(|(name, value)| (name.into_bytes(), value)).collect())
    }

    fn last_inode(&self) -> TreeInode {
        TreeInode(self.inodes.len() as u64)
    }
}

fn kind(kind: &EntryKind) -> FileKind {
    match kind {
        EntryKind::File { .. } => FileKind::File,
        EntryKind::Directory => FileKind::Directory,
        EntryKind::Symlink { .. } => FileKind::Symlink,
        EntryKind::Fifo => FileKind::Fifo,
        EntryKind::Socket => FileKind::Socket,
        EntryKind::CharacterDevice { .. } => FileKind::CharacterDevice,
        EntryKind::BlockDevice { .. } => FileKind::BlockDevice,
    }
}

/// The trait speaks errno, the error speaks of the path: both are kept.
fn io_error(error: ContextError) -> io::Error {
    let kind = match &error {
        ContextError::Io { source, .. } => source.kind(),
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}
