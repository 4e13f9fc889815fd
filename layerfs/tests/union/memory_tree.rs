//! A tree in memory, read from a directory: what the union tests use in place of an index over tar files.
//!
//! Invariant: it holds everything that was in the directory, and numbers it in the order of the paths. No tests here.

use std::{
    collections::{BTreeMap, HashMap},
    fmt, io,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
    },
    path::Path,
    sync::Arc,
};

use layerfs::{Attributes, DirectoryEntry, FileKind, Time, Tree, TreeInode, XattrUse};

/// One inode of a [`MemoryTree`].
#[derive(Debug, Clone)]
struct Inode {
    attributes: Attributes,
    content: Vec<u8>,
    extents: Vec<(u64, u64)>,
    names: BTreeMap<Vec<u8>, TreeInode>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What happens before content is read: of which file, from where, and how much of it.
type BeforeRead = Arc<dyn Fn(TreeInode, u64, usize) -> io::Result<()> + Send + Sync>;

/// A tree that was read from a directory, with everything in it.
#[derive(Clone)]
pub(crate) struct MemoryTree {
    inodes: Vec<Inode>,
    before_read: Option<BeforeRead>,
}

impl fmt::Debug for MemoryTree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryTree").field("inodes", &self.inodes).finish_non_exhaustive()
    }
}

impl MemoryTree {
    /// Reads a directory. Files are numbered in the order of their paths.
    pub(crate) fn from_directory(path: &Path) -> Self {
        let mut tree = Self { inodes: Vec::new(), before_read: None };
        tree.add(path, &mut HashMap::new());
        tree
    }

    /// The same tree, with something that notes each read or has it fail.
    pub(crate) fn with_reads(
        &self,
        before_read: impl Fn(TreeInode, u64, usize) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self { before_read: Some(Arc::new(before_read)), ..self.clone() }
    }

    fn add(&mut self, path: &Path, known: &mut HashMap<u64, TreeInode>) -> TreeInode {
        let metadata = path.symlink_metadata().expect("the fixture is readable");
        if !metadata.is_dir()
            && let Some(inode) = known.get(&metadata.ino())
        {
            return *inode;
        }
        let number = TreeInode(self.inodes.len() as u64 + 1);
        known.insert(metadata.ino(), number);
        let (content, extents) = content_of(path, &metadata);
        let attributes = attributes_of(&metadata, content.len() as u64, &extents);
        let xattrs = xattrs_of(path);
        self.inodes.push(Inode { attributes, content, extents, names: BTreeMap::new(), xattrs });
        if metadata.is_dir() {
            let mut entries: Vec<_> =
                path.read_dir().expect("readable").map(|entry| entry.expect("readable")).collect();
            entries.sort_by_key(std::fs::DirEntry::file_name);
            for entry in entries {
                let child = self.add(&entry.path(), known);
                let index = usize::try_from(number.0).expect("small") - 1;
                self.inodes[index].names.insert(entry.file_name().as_bytes().to_vec(), child);
            }
        }
        number
    }

    fn inode(&self, inode: TreeInode) -> io::Result<&Inode> {
        let index = usize::try_from(inode.0).ok().and_then(|number| number.checked_sub(1));
        index.and_then(|index| self.inodes.get(index)).ok_or_else(|| rustix::io::Errno::STALE.into())
    }
}

fn content_of(path: &Path, metadata: &std::fs::Metadata) -> (Vec<u8>, Vec<(u64, u64)>) {
    if metadata.is_symlink() {
        return (path.read_link().expect("readable").as_os_str().as_bytes().to_vec(), Vec::new());
    }
    if !metadata.is_file() {
        return (Vec::new(), Vec::new());
    }
    let file = std::fs::File::open(path).expect("readable");
    let mut extents = Vec::new();
    let mut at = 0;
    while let Ok(start) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
        at = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(start)).expect("data ends");
        extents.push((start, at - start));
    }
    (std::fs::read(path).expect("readable"), extents)
}

fn attributes_of(metadata: &std::fs::Metadata, size_bytes: u64, extents: &[(u64, u64)]) -> Attributes {
    let file_type = metadata.file_type();
    let kind = match () {
        () if file_type.is_dir() => FileKind::Directory,
        () if file_type.is_symlink() => FileKind::Symlink,
        () if file_type.is_char_device() => FileKind::CharacterDevice,
        () if file_type.is_block_device() => FileKind::BlockDevice,
        () if file_type.is_fifo() => FileKind::Fifo,
        () if file_type.is_socket() => FileKind::Socket,
        () => FileKind::File,
    };
    Attributes {
        kind,
        mode: metadata.permissions().mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        links: u32::try_from(metadata.nlink()).expect("small"),
        size_bytes,
        data_bytes: extents.iter().map(|(_, length)| length).sum(),
        modified: Time {
            seconds: metadata.mtime(),
            nanoseconds: u32::try_from(metadata.mtime_nsec()).expect("below a second"),
        },
        device: (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev())),
    }
}

fn xattrs_of(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut list = vec![0; 65536];
    let length = rustix::fs::llistxattr(path, &mut list[..]).unwrap_or(0);
    let names = list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let mut xattrs: Vec<_> = names
        .map(|name| {
            let mut value = vec![0; 65536];
            let length = rustix::fs::lgetxattr(path, name, &mut value[..]).expect("listed");
            (name.to_vec(), value[..length].to_vec())
        })
        .collect();
    xattrs.sort();
    xattrs
}

impl Tree for MemoryTree {
    fn lookup(&self, directory: TreeInode, name: &[u8]) -> io::Result<Option<TreeInode>> {
        Ok(self.inode(directory)?.names.get(name).copied())
    }

    fn attributes(&self, inode: TreeInode) -> io::Result<Attributes> {
        Ok(self.inode(inode)?.attributes)
    }

    fn entries(&self, directory: TreeInode, start: u64, limit: usize) -> io::Result<Vec<DirectoryEntry>> {
        let names = self.inode(directory)?.names.iter().skip(usize::try_from(start).expect("small")).take(limit);
        names
            .map(|(name, inode)| {
                Ok(DirectoryEntry { name: name.clone(), inode: *inode, kind: self.inode(*inode)?.attributes.kind })
            })
            .collect()
    }

    fn read_at(&self, inode: TreeInode, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.before_read.iter().try_for_each(|before_read| before_read(inode, offset, buffer.len()))?;
        let content = &self.inode(inode)?.content;
        let rest = content.get(usize::try_from(offset).unwrap_or(usize::MAX)..).unwrap_or_default();
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }

    fn data_extents(&self, inode: TreeInode) -> io::Result<Vec<(u64, u64)>> {
        Ok(self.inode(inode)?.extents.clone())
    }

    fn read_link(&self, inode: TreeInode) -> io::Result<Vec<u8>> {
        Ok(self.inode(inode)?.content.clone())
    }

    fn xattrs(&self, inode: TreeInode) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        Ok(self.inode(inode)?.xattrs.clone())
    }

    fn xattr_use(&self) -> XattrUse {
        let names = self.inodes.iter().flat_map(|inode| &inode.xattrs).map(|(name, _)| name);
        names.fold(XattrUse::Unused, |most, name| {
            most.max(if name.starts_with(b"system.posix_acl_") { XattrUse::Acls } else { XattrUse::Plain })
        })
    }

    fn last_inode(&self) -> TreeInode {
        TreeInode(self.inodes.len() as u64)
    }
}
