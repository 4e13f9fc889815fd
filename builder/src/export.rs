//! A tree to plain files: a directory, or one tar of the whole root.
//!
//! Invariant: nothing is written outside the destination: directories are made here and are opened
//! without following links. Nothing is removed but what makes way for the tree, and what was made here.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use layerfs::{Attributes, Entry, EntryKind, EntryPath, FileKind, Store, TarWriter, Tree, TreeInode};
use registry_client::Draft;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec, Timestamps};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::changeset::{ChangeSet, Content};
use crate::error::BuildError;
use crate::paths::{base_name, join};
use crate::place::StoredImage;

/// Directory entries read at a time.
const BATCH: usize = 4096;

/// Whose the exported files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ownership {
    /// As in the tree; needs root.
    Kept,
    /// The caller's.
    Own,
}

/// Writes what lies at `path` of a tree into an existing directory: what a directory holds, or a file under its name.
///
/// # Errors
/// If the path is not there, or something cannot be written.
pub(crate) fn to_directory(
    tree: &Arc<dyn Tree>,
    path: &[u8],
    directory: &Path,
    ownership: Ownership,
) -> Result<(), BuildError> {
    let failed = BuildError::file("export to", directory);
    let export = || {
        let top = ChangeSet::new(Arc::clone(tree)).below_at(path)?.ok_or(io::ErrorKind::NotFound)?;
        let root = File::open(directory)?;
        let mut exporter = Exporter { tree, ownership, links: HashMap::new(), root: root.as_fd() };
        match tree.attributes(top)?.kind {
            FileKind::Directory => exporter.children(root.as_fd(), top, &[]),
            _ => exporter.entry(root.as_fd(), base_name(path), top, base_name(path)),
        }
    };
    export().map_err(failed)
}

/// The paths of everything in a tree that is no directory.
///
/// # Errors
/// If the tree cannot be read.
pub(crate) fn files(tree: &Arc<dyn Tree>) -> io::Result<Vec<Vec<u8>>> {
    let mut found = Vec::new();
    let mut directories = vec![(TreeInode::ROOT, Vec::new())];
    while let Some((directory, path)) = directories.pop() {
        for entry in tree.entries(directory, 0, usize::MAX)? {
            let path = join(&path, &entry.name);
            match tree.attributes(entry.inode)?.kind {
                FileKind::Directory => directories.push((entry.inode, path)),
                _ => found.push(path),
            }
        }
    }
    Ok(found)
}

/// Removes from a directory whatever a tree does not have there: other names, and other kinds under the same name.
///
/// # Errors
/// The root of the file system, or what listing and removing give.
pub(crate) fn remove_others(tree: &Arc<dyn Tree>, directory: &Path) -> Result<(), BuildError> {
    let failed = BuildError::file("remove what is not in the result from", directory);
    let remove = || {
        let (top, root) = (File::open(directory)?, File::open("/")?);
        if rustix::fs::fstat(&top)?.st_ino == rustix::fs::fstat(&root)?.st_ino
            && rustix::fs::fstat(&top)?.st_dev == rustix::fs::fstat(&root)?.st_dev
        {
            return Err(io::Error::other("it is the root of this machine"));
        }
        keep_only(tree, Some(TreeInode::ROOT), top.as_fd())
    };
    remove().map_err(failed)
}

/// `wanted` is the directory of the tree; `None` keeps nothing.
fn keep_only(tree: &Arc<dyn Tree>, wanted: Option<TreeInode>, at: BorrowedFd<'_>) -> io::Result<()> {
    let entries = rustix::fs::Dir::read_from(at)?.collect::<Result<Vec<_>, _>>()?;
    for entry in entries {
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        let is_directory =
            FileType::from_raw_mode(rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode).is_dir();
        let inode = match wanted {
            Some(directory) => tree.lookup(directory, name)?,
            None => None,
        };
        let kind = inode.map(|inode| tree.attributes(inode)).transpose()?.map(|attributes| attributes.kind);
        let stays = kind.is_some_and(|kind| (kind == FileKind::Directory) == is_directory);
        if is_directory {
            keep_only(tree, inode.filter(|_| stays), open_directory(at, name)?.as_fd())?;
        }
        if !stays {
            let flags = if is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
            rustix::fs::unlinkat(at, name, flags)?;
        }
    }
    Ok(())
}

struct Exporter<'a> {
    tree: &'a Arc<dyn Tree>,
    ownership: Ownership,
    /// The first path of each file with several names.
    links: HashMap<TreeInode, Vec<u8>>,
    root: BorrowedFd<'a>,
}

impl Exporter<'_> {
    fn children(&mut self, at: BorrowedFd<'_>, directory: TreeInode, path: &[u8]) -> io::Result<()> {
        let mut start = 0;
        loop {
            let entries = self.tree.entries(directory, start, BATCH)?;
            for entry in &entries {
                let path = join(path, &entry.name);
                self.entry(at, &entry.name, entry.inode, &path).map_err(|error| with_path(&path, &error))?;
            }
            if entries.len() < BATCH {
                return Ok(());
            }
            start += entries.len() as u64;
        }
    }

    /// As BuildKit's `fsutil` has it, what is there under a name makes way for what comes, whatever its kind, and only
    /// once that is complete.
    fn entry(&mut self, at: BorrowedFd<'_>, name: &[u8], inode: TreeInode, path: &[u8]) -> io::Result<()> {
        let attributes = self.tree.attributes(inode)?;
        let there = match rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(status) => Some(FileType::from_raw_mode(status.st_mode)),
            Err(rustix::io::Errno::NOENT) => None,
            Err(error) => return Err(error.into()),
        };
        match attributes.kind {
            FileKind::Socket => return Ok(()),
            FileKind::Directory => {
                if there.is_some_and(|kind| !kind.is_dir()) {
                    rustix::fs::unlinkat(at, name, AtFlags::empty())?;
                }
                let directory = make_directory(at, name)?;
                self.children(directory.as_fd(), inode, path)?;
                return self.finish(at, name, &attributes);
            }
            _ => {}
        }
        let make = |name: &[u8]| self.make(at, name, inode, &attributes);
        let (draft, file) = match there {
            None => (name.to_vec(), make(name)?),
            Some(_) => under_a_free_name(make)?,
        };
        let written = self.fill(at, &draft, inode, &attributes, file).and_then(|()| match there {
            None => Ok(()),
            Some(kind) => {
                if kind.is_dir() {
                    remove_directory(self.tree, at, name)?;
                }
                Ok(rustix::fs::renameat(at, draft.as_slice(), at, name)?)
            }
        });
        if written.is_err() {
            // It was made here, and nothing is left as a part; what went wrong is told already.
            _ = rustix::fs::unlinkat(at, draft.as_slice(), AtFlags::empty());
        } else if attributes.links > 1 {
            self.links.entry(inode).or_insert_with(|| path.to_vec());
        }
        written
    }

    /// Makes what is no directory under a name that must be free; a file, which is given back, is still empty.
    fn make(
        &self,
        at: BorrowedFd<'_>,
        name: &[u8],
        inode: TreeInode,
        attributes: &Attributes,
    ) -> io::Result<Option<File>> {
        if let Some(first) = self.links.get(&inode) {
            rustix::fs::linkat(self.root, first.as_slice(), at, name, AtFlags::empty())?;
            return Ok(None);
        }
        match attributes.kind {
            FileKind::File => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                return Ok(Some(rustix::fs::openat(at, name, flags, Mode::RUSR | Mode::WUSR)?.into()));
            }
            FileKind::Symlink => rustix::fs::symlinkat(self.tree.read_link(inode)?.as_slice(), at, name)?,
            FileKind::Fifo => rustix::fs::mknodat(at, name, FileType::Fifo, Mode::RUSR, 0)?,
            kind => {
                let (major, minor) = attributes.device;
                let is_block = kind == FileKind::BlockDevice;
                let kind = if is_block { FileType::BlockDevice } else { FileType::CharacterDevice };
                rustix::fs::mknodat(at, name, kind, Mode::RUSR, rustix::fs::makedev(major, minor))?;
            }
        }
        Ok(None)
    }

    /// Gives what was just made its content and attributes; one more name of a file has them.
    fn fill(
        &self,
        at: BorrowedFd<'_>,
        name: &[u8],
        inode: TreeInode,
        attributes: &Attributes,
        file: Option<File>,
    ) -> io::Result<()> {
        if self.links.contains_key(&inode) {
            return Ok(());
        }
        if let Some(mut file) = file {
            io::copy(&mut Content::Tree(Arc::clone(self.tree), inode).reader(), &mut file)?;
        }
        self.finish(at, name, attributes)
    }

    /// Owner, mode and time, in the order in which none undoes another.
    fn finish(&self, at: BorrowedFd<'_>, name: &[u8], attributes: &Attributes) -> io::Result<()> {
        if self.ownership == Ownership::Kept {
            let (uid, gid) = (rustix::fs::Uid::from_raw(attributes.uid), rustix::fs::Gid::from_raw(attributes.gid));
            rustix::fs::chownat(at, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        if attributes.kind != FileKind::Symlink {
            rustix::fs::chmodat(at, name, Mode::from_raw_mode(attributes.mode), AtFlags::empty())?;
        }
        let time =
            Timespec { tv_sec: attributes.modified.seconds, tv_nsec: i64::from(attributes.modified.nanoseconds) };
        let times = Timestamps { last_access: time, last_modification: time };
        Ok(rustix::fs::utimensat(at, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }
}

/// Makes something under a name that nobody can foresee, and so occupy.
fn under_a_free_name<T>(make: impl Fn(&[u8]) -> io::Result<T>) -> io::Result<(Vec<u8>, T)> {
    /// Of names with 64 random bits not even the second is taken by chance.
    const TRIES: usize = 10;
    let mut tries = 0;
    loop {
        let mut random = [0; 8];
        getrandom(&mut random, GetRandomFlags::empty())?;
        let name = format!(".nacre-{:016x}", u64::from_ne_bytes(random)).into_bytes();
        tries += 1;
        match make(&name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && tries < TRIES => {}
            made => return Ok((name, made?)),
        }
    }
}

fn make_directory(at: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    match rustix::fs::mkdirat(at, name, Mode::RWXU) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    open_directory(at, name)
}

fn open_directory(at: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(at, name, flags, Mode::empty())?)
}

fn remove_directory(tree: &Arc<dyn Tree>, at: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    keep_only(tree, None, open_directory(at, name)?.as_fd())?;
    Ok(rustix::fs::unlinkat(at, name, AtFlags::REMOVEDIR)?)
}

/// Writes the files of an image of a store as one tar, as `docker export` does those of a container.
///
/// # Errors
/// If a layer cannot be read or the tar not be written.
pub fn write_files(store: &Store, image: &StoredImage, writer: impl Write) -> io::Result<()> {
    let tree: Arc<dyn Tree> = store.tree(&image.diff_ids()).map_err(io::Error::other)?;
    to_tar(&tree, writer)
}

/// A file that appears whole or not at all; but what is there and no file, as `/dev/stdout` or a named pipe, is written
/// to.
///
/// # Errors
/// What writing gives; nothing is left then.
pub fn write_whole(path: &Path, write: impl Fn(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    const BUFFER_BYTES: usize = 1 << 20;
    if std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        let mut file = BufWriter::with_capacity(BUFFER_BYTES, File::options().write(true).open(path)?);
        write(&mut file)?;
        return file.flush();
    }
    // A symbolic link to a file stays one.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mut draft = BufWriter::with_capacity(BUFFER_BYTES, Draft::beside(&path)?);
    write(&mut draft)?;
    draft.into_inner().map_err(io::IntoInnerError::into_error)?.publish(&path)
}

/// Writes a whole tree as one tar.
///
/// # Errors
/// If the tree cannot be read or the tar not be written.
pub(crate) fn to_tar(tree: &Arc<dyn Tree>, writer: impl Write) -> io::Result<()> {
    let mut writer = TarWriter::new(writer);
    append_tree(tree, &EntryPath::root(), &mut writer)?;
    writer.finish().map_err(io::Error::other)?.flush()
}

/// Writes trees as one tar, each below a directory of its own; the names are in order.
pub(crate) fn to_tar_of_several(trees: &[(String, Arc<dyn Tree>)], writer: impl Write) -> io::Result<()> {
    let mut writer = TarWriter::new(writer);
    for (name, tree) in trees {
        let top = EntryPath::root().join(name.as_bytes()).map_err(io::Error::other)?;
        append_tree(tree, &top, &mut writer)?;
    }
    writer.finish().map_err(io::Error::other)?.flush()
}

/// Writes all entries of a tree below `top`, which itself is written unless it is the root.
pub(crate) fn append_tree<W: Write>(
    tree: &Arc<dyn Tree>,
    top: &EntryPath,
    writer: &mut TarWriter<W>,
) -> io::Result<()> {
    let mut found = Vec::new();
    if *top != EntryPath::root() {
        found.push((top.clone(), TreeInode::ROOT));
    }
    collect(tree, TreeInode::ROOT, top, &mut found)?;
    // A tar is sorted by whole paths, in which `a.b` comes before `a/b`.
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut links: HashMap<TreeInode, EntryPath> = HashMap::new();
    for (path, inode) in found {
        let attributes = tree.attributes(inode)?;
        let (major, minor) = attributes.device;
        let kind = match attributes.kind {
            FileKind::Socket => continue,
            FileKind::Directory => EntryKind::Directory,
            _ if links.contains_key(&inode) => EntryKind::HardLink { target: links[&inode].clone() },
            FileKind::File => EntryKind::File { size_bytes: attributes.size_bytes },
            FileKind::Symlink => EntryKind::Symlink { target: tree.read_link(inode)? },
            FileKind::CharacterDevice => EntryKind::CharacterDevice { major, minor },
            FileKind::BlockDevice => EntryKind::BlockDevice { major, minor },
            FileKind::Fifo => EntryKind::Fifo,
        };
        if attributes.links > 1 && attributes.kind != FileKind::Directory {
            links.entry(inode).or_insert_with(|| path.clone());
        }
        let is_file = matches!(kind, EntryKind::File { .. });
        let Attributes { mode, uid, gid, modified, .. } = attributes;
        let entry = Entry { path, kind, mode, uid, gid, modified, xattrs: tree.xattrs(inode)? };
        let content = Content::Tree(Arc::clone(tree), inode);
        let appended = if is_file {
            writer.append(&entry, &mut content.reader())
        } else {
            writer.append(&entry, &mut io::empty())
        };
        appended.map_err(io::Error::other)?;
    }
    Ok(())
}

fn collect(
    tree: &Arc<dyn Tree>,
    directory: TreeInode,
    path: &EntryPath,
    found: &mut Vec<(EntryPath, TreeInode)>,
) -> io::Result<()> {
    for child in tree.entries(directory, 0, usize::MAX)? {
        let path = path.join(&child.name).map_err(io::Error::other)?;
        found.push((path.clone(), child.inode));
        if child.kind == FileKind::Directory {
            collect(tree, child.inode, &path, found)?;
        }
    }
    Ok(())
}

fn with_path(path: &[u8], error: &io::Error) -> io::Error {
    match error.get_ref() {
        Some(_) => io::Error::new(error.kind(), error.to_string()),
        None => io::Error::new(error.kind(), format!("/{}: {error}", path.escape_ascii())),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::context::{ContextTree, Directory, Patterns};

    fn tree(directory: &Path) -> Arc<dyn Tree> {
        let directory = Directory::open(directory, Patterns::default()).expect("opened");
        Arc::new(ContextTree::new(directory, Vec::new(), 1).expect("walked"))
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).expect("listed").map(|entry| entry.expect("an entry").file_name());
        let mut names: Vec<String> = entries.map(|name| name.into_string().expect("text")).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_of_another_is_neither_written_to_nor_removed() {
        let (from, to) = (tempfile::tempdir().expect("made"), tempfile::tempdir().expect("made"));
        fs::write(from.path().join("a"), "new").expect("written");
        std::os::unix::fs::symlink("new", from.path().join("b")).expect("linked");
        for name in ["a", "b"] {
            fs::write(to.path().join(name), "old").expect("written");
        }
        let other = format!(".nacre-{}", std::process::id());
        fs::write(to.path().join(&other), "another's").expect("written");
        to_directory(&tree(from.path()), b"", to.path(), Ownership::Own).expect("exported");
        assert_eq!(fs::read_to_string(to.path().join("a")).expect("there"), "new");
        assert_eq!(fs::read_to_string(to.path().join(&other)).expect("there"), "another's");
        assert_eq!(names(to.path()), [other.as_str(), "a", "b"]);
    }

    #[test]
    fn a_name_that_is_taken_makes_way_for_another_one() {
        let tried = std::cell::RefCell::new(Vec::new());
        let taken_at_first = |name: &[u8]| {
            tried.borrow_mut().push(name.to_vec());
            if tried.borrow().len() < 3 { Err(io::ErrorKind::AlreadyExists.into()) } else { Ok(()) }
        };
        let (name, ()) = under_a_free_name(taken_at_first).expect("made");
        let tried = tried.into_inner();
        assert!(tried[2] == name && tried[0] != tried[1] && tried[1] != name);
        let error = under_a_free_name(|_| io::Result::<()>::Err(io::ErrorKind::AlreadyExists.into()));
        assert_eq!(error.expect_err("never free").kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn an_export_that_fails_leaves_what_was_there_and_no_part() {
        let (from, to) = (tempfile::tempdir().expect("made"), tempfile::tempdir().expect("made"));
        fs::write(from.path().join("a"), "new").expect("written");
        let source = tree(from.path());
        fs::write(from.path().join("a"), "newer").expect("written");
        fs::write(to.path().join("a"), "old").expect("written");
        to_directory(&source, b"", to.path(), Ownership::Own).expect_err("it changed meanwhile");
        assert_eq!(names(to.path()), ["a"]);
        assert_eq!(fs::read_to_string(to.path().join("a")).expect("there"), "old");
        fs::remove_file(to.path().join("a")).expect("removed");
        to_directory(&source, b"", to.path(), Ownership::Own).expect_err("it changed meanwhile");
        assert!(names(to.path()).is_empty());
    }
}
