//! A stack of plain directories as a [`Tree`]: what other tools unpacked layers into, merged on demand.
//!
//! Invariant: nothing of a layer is written, and nothing outside it is reached: files are opened by one name below the
//! descriptor of their directory, and links are never followed. What was read once is remembered for the life of the
//! stack, so a layer that others change underneath goes on showing what was there, or gives `ESTALE`. It knows no
//! upper.
//!
//! ```text
//! marks    what hides: whiteouts of three kinds, opaque directories, redirects
//! merge    one directory of every layer -> the names of a directory of the tree
//! places   directories of layers, and their descriptors
//! numbers  inode on disk -> TreeInode
//! ```

mod marks;
mod merge;
mod numbers;
mod places;

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, OnceLock, PoisonError, RwLock},
};

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

use self::{
    merge::{Child, Merged},
    numbers::Identity,
    places::{Descriptors, PlaceId, Places},
};
use crate::{
    tree::{Attributes, DirectoryEntry, FileKind, Tree, TreeInode, XattrUse},
    union::{Handle, OVERRIDE_PREFIX, Override, open_quietly},
};

/// Extended attributes of one file, sorted by name.
type Xattrs = Box<[(Vec<u8>, Vec<u8>)]>;

/// Lower directories, merged as the kernel's overlayfs merges them.
///
/// A directory is read when it is first looked into. A [`TreeInode`] is made from the inode numbers on disk of the file
/// and of its layer's root, so it is the same in every mount; only where inode numbers go beyond 44 bits, layers lie on
/// several devices, or other file systems are mounted inside a layer, can two files that compete for a number swap
/// theirs. A number is known once a name that leads to it was read; before, it is `ESTALE`. Files with several names in
/// one layer are one inode. The number of links of a directory is 1 where it is merged from several layers, which
/// programs take for "unknown".
#[derive(Debug)]
pub struct DirectoryStack {
    places: Places,
    inodes: RwLock<HashMap<TreeInode, Arc<Inode>>>,
    files: Descriptors<TreeInode>,
    xattr_use: XattrUse,
    /// The layers whose files have owner and mode in an attribute, as that of their root directory says.
    overridden: Box<[bool]>,
}

#[derive(Debug)]
struct Inode {
    identity: Identity,
    attributes: Attributes,
    /// The directory that it is in, in its layer, and its name there.
    place: PlaceId,
    name: Arc<[u8]>,
    directory: Option<Directory>,
    xattrs: OnceLock<Xattrs>,
}

#[derive(Debug)]
struct Directory {
    parent: TreeInode,
    /// Where it may come from, topmost layer first; opaque marks and redirects are not yet regarded.
    candidates: Vec<PlaceId>,
    merged: Mutex<Option<Arc<Merged>>>,
}

impl DirectoryStack {
    /// Opens a stack of directories, the topmost first. The descriptors may be `O_PATH`; at most about `open_files`
    /// more are kept open.
    ///
    /// # Errors
    /// If there is no directory, or one cannot be read.
    pub fn new(layers: Vec<OwnedFd>, open_files: usize) -> io::Result<Self> {
        let places = Places::new(layers, open_files / 2)?;
        let candidates: Vec<PlaceId> = (0..places.layer_count()).map(Places::root).collect();
        let top = *candidates.first().ok_or(Errno::INVAL)?;
        let stat = rustix::fs::fstat(&*places.open(top)?)?;
        let overrides = candidates.iter().map(|layer| Ok(Override::of(&*places.open(*layer)?, b".")?));
        let overrides = overrides.collect::<io::Result<Vec<_>>>()?;
        let mut attributes = numbers::attributes_of(&stat);
        attributes = overrides[0].map_or(attributes, |wanted| wanted.over(attributes));
        if candidates.len() > 1 {
            attributes.links = 1;
        }
        let overridden = overrides.iter().map(Option::is_some).collect();
        let root = Inode {
            identity: Identity::of(0, &stat),
            attributes,
            place: top,
            name: Arc::default(),
            directory: Some(Directory {
                parent: TreeInode::ROOT,
                candidates: candidates.clone(),
                merged: Mutex::default(),
            }),
            xattrs: OnceLock::new(),
        };
        let inodes = RwLock::new(HashMap::from([(TreeInode::ROOT, Arc::new(root))]));
        let mut xattr_use = XattrUse::Plain;
        for layer in candidates {
            if holds_acls(&Handle::path_only(rustix::io::fcntl_dupfd_cloexec(&*places.open(layer)?, 0)?))? {
                xattr_use = XattrUse::Acls;
            }
        }
        Ok(Self { places, inodes, files: Descriptors::new(open_files / 2), xattr_use, overridden })
    }

    fn inode(&self, inode: TreeInode) -> io::Result<Arc<Inode>> {
        let inodes = self.inodes.read().unwrap_or_else(PoisonError::into_inner);
        inodes.get(&inode).cloned().ok_or_else(|| Errno::STALE.into())
    }

    fn merged(&self, directory: TreeInode) -> io::Result<Arc<Merged>> {
        let inode = self.inode(directory)?;
        let own = inode.directory.as_ref().ok_or(Errno::NOTDIR)?;
        let mut merged = own.merged.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(merged) = &*merged {
            return Ok(Arc::clone(merged));
        }
        let read = Arc::new(self.merge(directory, own)?);
        *merged = Some(Arc::clone(&read));
        Ok(read)
    }

    /// A file, open for reading.
    fn file(&self, number: TreeInode) -> io::Result<Arc<OwnedFd>> {
        let inode = self.inode(number)?;
        match inode.attributes.kind {
            FileKind::File => {}
            FileKind::Directory => return Err(Errno::ISDIR.into()),
            _ => return Err(Errno::INVAL.into()),
        }
        if let Some(file) = self.files.find(number) {
            return Ok(file);
        }
        let directory = self.places.open(inode.place)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = open_quietly(&*directory, &inode.name, flags)?;
        inode.check(&file)?;
        if marks::has_metacopy(&file)? {
            tracing::warn!(name = %inode.name.escape_ascii(), "a file of a lower layer has its content elsewhere (metacopy), which is not supported");
            return Err(Errno::IO.into());
        }
        let file = Arc::new(file);
        self.files.insert(number, &file);
        Ok(file)
    }

    /// Anything, open for its extended attributes.
    fn handle(&self, number: TreeInode, inode: &Inode) -> io::Result<Handle> {
        let handle = match (inode.attributes.kind, &inode.directory) {
            (FileKind::File, _) => Handle::new(rustix::io::fcntl_dupfd_cloexec(&*self.file(number)?, 0)?),
            (_, Some(directory)) => {
                Handle::path_only(rustix::io::fcntl_dupfd_cloexec(&*self.places.open(directory.candidates[0])?, 0)?)
            }
            _ => {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let directory = self.places.open(inode.place)?;
                Handle::path_only(rustix::fs::openat(&*directory, &*inode.name, flags, Mode::empty())?)
            }
        };
        inode.check(&handle)?;
        Ok(handle)
    }

    fn read_xattrs(&self, number: TreeInode, inode: &Inode) -> io::Result<Xattrs> {
        let handle = self.handle(number, inode)?;
        let mut xattrs = Vec::new();
        for name in handle.xattr_names()? {
            let is_override = self.overridden[self.places.layer(inode.place)] && name.starts_with(OVERRIDE_PREFIX);
            if is_override || marks::is_mark(&name) {
                continue;
            }
            match handle.xattr(&name) {
                Ok(value) => xattrs.extend(value.map(|value| (name, value))),
                // Listed, but not for us to read: security modules do this.
                Err(Errno::PERM | Errno::ACCESS) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(xattrs.into())
    }

    fn with_xattrs<T>(&self, number: TreeInode, take: impl FnOnce(&Xattrs) -> T) -> io::Result<T> {
        let inode = self.inode(number)?;
        if let Some(xattrs) = inode.xattrs.get() {
            return Ok(take(xattrs));
        }
        let xattrs = self.read_xattrs(number, &inode)?;
        Ok(take(inode.xattrs.get_or_init(|| xattrs)))
    }
}

impl Inode {
    /// That an open file is this one.
    fn check(&self, file: impl AsFd) -> io::Result<()> {
        let stat = rustix::fs::fstat(file)?;
        if self.identity.is(&stat) { Ok(()) } else { Err(Errno::STALE.into()) }
    }
}

impl Tree for DirectoryStack {
    fn lookup(&self, directory: TreeInode, name: &[u8]) -> io::Result<Option<TreeInode>> {
        Ok(self.merged(directory)?.find(name).map(|child| child.inode))
    }

    fn attributes(&self, inode: TreeInode) -> io::Result<Attributes> {
        Ok(self.inode(inode)?.attributes)
    }

    fn entries(&self, directory: TreeInode, start: u64, limit: usize) -> io::Result<Vec<DirectoryEntry>> {
        let merged = self.merged(directory)?;
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        let entry = |child: &Child| DirectoryEntry { name: child.name.to_vec(), inode: child.inode, kind: child.kind };
        Ok(merged.children.iter().skip(start).take(limit).map(entry).collect())
    }

    fn read_at(&self, inode: TreeInode, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let file = self.file(inode)?;
        let mut filled = 0;
        while filled < buffer.len() {
            match rustix::io::pread(&*file, &mut buffer[filled..], offset.saturating_add(filled as u64)) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(filled)
    }

    fn data_extents(&self, inode: TreeInode) -> io::Result<Vec<(u64, u64)>> {
        let file = self.file(inode)?;
        let size = self.inode(inode)?.attributes.size_bytes;
        let mut extents = Vec::new();
        let mut at = 0;
        while at < size {
            let start = match rustix::fs::seek(&*file, rustix::fs::SeekFrom::Data(at)) {
                Ok(start) => start,
                // Behind the last data.
                Err(Errno::NXIO) => break,
                Err(error) => return Err(error.into()),
            };
            let end = rustix::fs::seek(&*file, rustix::fs::SeekFrom::Hole(start))?.min(size);
            if start >= end {
                break;
            }
            extents.push((start, end - start));
            at = end;
        }
        Ok(extents)
    }

    fn read_link(&self, inode: TreeInode) -> io::Result<Vec<u8>> {
        let inode = self.inode(inode)?;
        if inode.attributes.kind != FileKind::Symlink {
            return Err(Errno::INVAL.into());
        }
        let directory = self.places.open(inode.place)?;
        Ok(rustix::fs::readlinkat(&*directory, &*inode.name, Vec::new())?.into_bytes())
    }

    fn xattrs(&self, inode: TreeInode) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        self.with_xattrs(inode, |xattrs| xattrs.to_vec())
    }

    fn xattr(&self, inode: TreeInode, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.with_xattrs(inode, |xattrs| {
            let at = xattrs.binary_search_by(|(known, _)| known.as_slice().cmp(name)).ok();
            at.map(|at| xattrs[at].1.clone())
        })
    }

    fn xattr_use(&self) -> XattrUse {
        self.xattr_use
    }

    fn last_inode(&self) -> TreeInode {
        numbers::LAST
    }
}

/// Whether there may be access control lists where a layer lies. Which of its files have one would take a look at each.
fn holds_acls(root: &Handle) -> rustix::io::Result<bool> {
    match rustix::fs::getxattr(root.magic_path(), "system.posix_acl_access", &mut [0; 0]) {
        Err(Errno::OPNOTSUPP) => Ok(false),
        Ok(_) | Err(Errno::NODATA | Errno::RANGE | Errno::PERM | Errno::ACCESS) => Ok(true),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
