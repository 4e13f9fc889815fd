//! A build context as a tree, so that COPY and bind mounts treat it like a stage or an image.
//!
//! Invariant: the tree is the directory as it was when it was walked, less what the patterns exclude. Contents are read
//! later: a file that has changed meanwhile is an error, never a half of each.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use layerfs::{Attributes, Digester, DirectoryEntry, FileKind, Time, Tree, TreeInode};

use super::directory::{Directory, Entry, EntryKind, FileId};
use super::error::ContextError;
use super::facts::{self, Facts, KnownFacts, Status};
use crate::sys;

/// The files of a context.
pub struct ContextTree {
    directory: Directory,
    inodes: Vec<Inode>,
    /// The file that was read last: files are read from begin to end, one after the other.
    open: Mutex<Option<(TreeInode, Arc<File>)>>,
    /// What an earlier build learned.
    known: KnownFacts,
    /// By the number of a file system, whether the pages of its files can be clean.
    clean: Mutex<HashMap<u64, bool>>,
    /// Files that were or were to be written back.
    written_back: AtomicUsize,
}

struct Inode {
    entry: Entry,
    children: Vec<DirectoryEntry>,
    links: u32,
    /// Of a file that was read, or whose status an earlier build knew.
    facts: OnceLock<Learned>,
}

#[derive(Clone, Copy)]
struct Learned {
    facts: Facts,
    /// Whether they may be kept for another build.
    is_settled: bool,
    /// Whether this build found them out.
    is_new: bool,
}

impl ContextTree {
    /// Walks a directory with some threads. `facts` is what [`ContextTree::facts`] gave in an earlier build, or
    /// nothing.
    ///
    /// # Errors
    /// Something in it cannot be read.
    pub fn new(directory: Directory, facts: Vec<u8>, threads: usize) -> Result<Self, ContextError> {
        let root = directory.entry(Path::new(""))?;
        let mut tree = Self {
            directory,
            inodes: vec![Inode { entry: root, children: Vec::new(), links: 2, facts: OnceLock::new() }],
            open: Mutex::default(),
            known: KnownFacts::decode(facts),
            clean: Mutex::default(),
            written_back: AtomicUsize::new(0),
        };
        let mut by_identity: HashMap<FileId, usize> = HashMap::new();
        // The directories that lead to the last entry: where their paths end, and their inodes.
        let mut above = vec![(0, 0)];
        let entries = tree.directory.walk(Path::new(""), threads)?;
        tree.inodes.reserve_exact(entries.len());
        for entry in entries.into_iter().skip(1) {
            let path = entry.path.as_os_str().as_bytes();
            let start = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
            let name = path[start..].to_vec();
            while above.last().is_some_and(|(end, _)| *end > start.saturating_sub(1)) {
                above.pop();
            }
            let parent = above.last().map_or(0, |(_, parent)| *parent);
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
                        above.push((path.len(), index));
                        tree.inodes[parent].links += 1;
                    } else if entry.link_count > 1 {
                        by_identity.insert(entry.identity, index);
                    }
                    let links = if kind == FileKind::Directory { 2 } else { 1 };
                    tree.inodes.push(Inode { entry, children: Vec::new(), links, facts: OnceLock::new() });
                    index
                }
            };
            tree.inodes[parent].children.push(DirectoryEntry { name, inode: TreeInode(index as u64 + 1), kind });
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
        self.check_unchanged(inode, &file)?;
        *open = Some((inode, Arc::clone(&file)));
        Ok(file)
    }

    /// An error if a file is not the one that was walked over any more: the key of a step must not say one thing and
    /// its layer hold another.
    fn check_unchanged(&self, inode: TreeInode, file: &File) -> io::Result<()> {
        let walked = &self.inode(inode)?.entry;
        let found = self.directory.entry_of(file, &walked.path).map_err(io_error)?;
        // Not ctime: other programs may give a file one more name at any time.
        let content = |entry: &Entry| {
            (entry.identity, entry.kind.clone(), entry.mode, entry.mtime_seconds, entry.mtime_nanoseconds)
        };
        if content(&found) == content(walked) {
            return Ok(());
        }
        Err(io::Error::other(format!("{} was changed during the build", walked.path.display())))
    }

    /// What is known about a file, which is read for it if need be.
    fn facts_of(&self, inode: TreeInode) -> io::Result<Option<Facts>> {
        let found = self.inode(inode)?;
        let Some(status) = Status::of(&found.entry) else { return Ok(None) };
        if let Some(learned) = found.facts.get() {
            return Ok(Some(learned.facts));
        }
        let learned = match self.known.find(&status) {
            Some(facts) => Learned { facts, is_settled: true, is_new: false },
            None => self.learn(inode, &status)?,
        };
        Ok(Some(found.facts.get_or_init(|| learned).facts))
    }

    fn learn(&self, inode: TreeInode, status: &Status) -> io::Result<Learned> {
        /// Read at a time: enough for sequential reading to cost no more than that.
        const READ_BYTES: usize = 256 << 10;
        let reading = SystemTime::now();
        let path = &self.inode(inode)?.entry.path;
        let mut file = self.directory.open_file(path).map_err(io_error)?;
        let has_xattrs = self.directory.has_xattrs(&file, path).map_err(io_error)?;
        let can_be_kept = status.is_settled(reading) && self.is_clean(&file, status, reading);
        let mut digester = Digester::new();
        let mut buffer = vec![0; READ_BYTES.min(status.size_bytes() as usize + 1)];
        loop {
            match io::Read::read(&mut file, &mut buffer) {
                Ok(0) => break,
                Ok(read) => digester.update(&buffer[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.check_unchanged(inode, &file)?;
        let after = self.directory.entry_of(&file, path).map_err(io_error)?;
        let is_settled = can_be_kept && Status::of(&after) == Some(*status);
        Ok(Learned { facts: Facts { content: digester.sum(), has_xattrs }, is_settled, is_new: true })
    }

    /// Whether the content is clean, or was made so, before it is read.
    fn is_clean(&self, file: &File, status: &Status, reading: SystemTime) -> bool {
        let mut clean = self.clean.lock().unwrap_or_else(PoisonError::into_inner);
        let can_be = *clean.entry(status.device()).or_insert_with(|| facts::has_clean_pages(file));
        drop(clean);
        can_be
            && (status.is_long_past(reading)
                || self.written_back.fetch_add(1, Ordering::Relaxed) >= facts::MOST_WRITTEN_BACK
                || sys::write_back(file.as_fd()).is_ok())
    }

    /// What this build knows about the files and another one may rely on; `None` if that is nothing new.
    pub fn facts(&self) -> Option<Vec<u8>> {
        let settled = |inode: &Inode| {
            let status = Status::of(&inode.entry)?;
            match inode.facts.get() {
                Some(learned) => learned.is_settled.then_some((status, learned.facts)),
                // Not needed this time, but as true as before.
                None => self.known.find(&status).map(|facts| (status, facts)),
            }
        };
        let is_new = self.inodes.iter().any(|inode| inode.facts.get().is_some_and(|l| l.is_new && l.is_settled));
        is_new.then(|| facts::encode(self.inodes.iter().filter_map(settled)))
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
        let size_bytes = match self.inode(inode)?.entry.kind {
            EntryKind::File { size_bytes } => size_bytes,
            EntryKind::Socket => 0,
            _ => return Err(io::Error::from(io::ErrorKind::InvalidInput)),
        };
        let wanted = size_bytes.saturating_sub(offset).min(buffer.len() as u64) as usize;
        if wanted == 0 {
            return Ok(0);
        }
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
        if wanted > 0 && offset + done as u64 == size_bytes {
            // What was read before may be of another version than the last bytes.
            self.check_unchanged(inode, &file)?;
        }
        Ok(done)
    }

    fn content_digest(&self, inode: TreeInode) -> io::Result<Option<[u8; 32]>> {
        Ok(self.facts_of(inode)?.map(|facts| facts.content))
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
        let found = self.inode(inode)?;
        if found.facts.get().is_some_and(|learned| !learned.facts.has_xattrs) {
            return Ok(Vec::new());
        }
        let xattrs = self.directory.xattrs(&found.entry).map_err(io_error)?;
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
        // No layer can hold a socket: BuildKit makes an empty file of it.
        EntryKind::Socket => FileKind::File,
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd;

    use super::*;
    use crate::context::Patterns;

    fn tree(directory: &Path, facts: Vec<u8>) -> ContextTree {
        ContextTree::new(Directory::open(directory, Patterns::default()).expect("opened"), facts, 2).expect("walked")
    }

    fn file(tree: &ContextTree) -> TreeInode {
        tree.lookup(TreeInode::ROOT, b"a").expect("a directory").expect("there")
    }

    /// A directory on a disk: that of temporary files may be in memory, the program may lie on an overlay.
    fn on_disk() -> tempfile::TempDir {
        const OVERLAYFS: u64 = 0x794c_7630;
        let program = std::env::current_exe().expect("a program");
        let beside = tempfile::tempdir_in(program.parent().expect("in a directory")).expect("a directory");
        let kind = rustix::fs::statfs(beside.path()).expect("a file system").f_type;
        if kind.cast_unsigned() == OVERLAYFS { tempfile::tempdir().expect("a directory") } else { beside }
    }

    fn digest(bytes: &[u8]) -> Option<[u8; 32]> {
        let mut digester = Digester::new();
        digester.update(bytes);
        Some(digester.sum())
    }

    /// A file whose times are past; ctime follows the clock, so the clock has to pass.
    fn settled(directory: &Path) {
        fs::write(directory.join("a"), "content").expect("written");
        settle(directory);
    }

    fn settle(directory: &Path) {
        let is_settled = || {
            let entry = Directory::open(directory, Patterns::default()).expect("opened").entry(Path::new("a"));
            Status::of(&entry.expect("there")).expect("a file").is_settled(SystemTime::now())
        };
        while !is_settled() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_file_of_a_known_status_is_not_opened_again() {
        let directory = on_disk();
        settled(directory.path());
        let first = tree(directory.path(), Vec::new());
        let content = first.content_digest(file(&first)).expect("read");
        assert_eq!(content, digest(b"content"));
        let facts = first.facts().expect("something new");
        let second = tree(directory.path(), facts);
        fs::remove_file(directory.path().join("a")).expect("removed");
        assert_eq!(second.content_digest(file(&second)).expect("known"), content);
        assert_eq!(second.xattrs(file(&second)).expect("known"), []);
        assert_eq!(second.facts(), None, "nothing new");
    }

    /// Writes a file through a mapping before a build and again after it; what the next build takes it for.
    fn mapped(directory: &Path) -> (Option<[u8; 32]>, Option<Vec<u8>>) {
        fs::write(directory.join("a"), "content").expect("written");
        let opened = File::options().read(true).write(true).open(directory.join("a")).expect("opened");
        let mut byte = crate::sys::SharedByte::of(opened.as_fd()).expect("mapped");
        byte.write(b'C');
        settle(directory);
        let first = tree(directory, Vec::new());
        assert_eq!(first.content_digest(file(&first)).expect("read"), digest(b"Content"));
        let facts = first.facts();
        byte.write(b'K');
        let second = tree(directory, facts.clone().unwrap_or_default());
        (second.content_digest(file(&second)).expect("read"), facts)
    }

    #[test]
    fn a_change_through_a_mapping_that_was_written_before_is_seen() {
        let (content, facts) = mapped(on_disk().path());
        assert_eq!(content, digest(b"Kontent"));
        assert!(facts.is_some(), "it was clean when it was read");
    }

    #[test]
    fn nothing_is_remembered_of_a_file_in_memory() {
        let directory = tempfile::tempdir_in("/dev/shm").expect("a directory");
        assert_eq!(mapped(directory.path()), (digest(b"Kontent"), None));
    }

    #[test]
    fn a_file_that_changes_after_the_walk_is_an_error() {
        let directory = tempfile::tempdir().expect("a directory");
        settled(directory.path());
        let tree = tree(directory.path(), Vec::new());
        fs::write(directory.path().join("a"), "CONTENT").expect("written");
        let mut buffer = [0; 100];
        let said = tree.read_at(file(&tree), 0, &mut buffer).expect_err("changed").to_string();
        assert_eq!(said, "a was changed during the build");
        assert!(tree.content_digest(file(&tree)).is_err());
    }
}
