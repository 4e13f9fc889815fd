//! A build context in a directory: a walk under an ignore file, and files opened below the root.
//!
//! Invariant: every system call starts at the root's descriptor and refuses symbolic links on the way
//! (openat2 with RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS), so that a link put there during the build leads nowhere.
//! Not here: following the links that docker follows; see `resolve`.

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, Stat};
use rustix::io::Errno;

use super::error::ContextError;
use super::ignore::{Matched, Patterns};

/// How often an opening is tried again that the kernel could not decide.
const MOST_ATTEMPTS: usize = 100;

/// What an entry is, with what only this kind has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File {
        /// Length of the content.
        size_bytes: u64,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// Where it points, as written.
        target: PathBuf,
    },
    /// A named pipe.
    Fifo,
    /// A socket, which no image can hold.
    Socket,
    /// A character device.
    CharacterDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

/// Which file it is, whatever its name: entries of one identity are hard links of each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    /// The file system's number.
    pub device: u64,
    /// The inode's number.
    pub inode: u64,
}

/// One file of a context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path below the root, without a leading slash; empty for the root itself.
    pub path: PathBuf,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits, among 0o7777.
    pub mode: u32,
    /// Owner on this machine.
    pub uid: u32,
    /// Group on this machine.
    pub gid: u32,
    /// Time of the last change of the content: whole seconds since 1970.
    pub mtime_seconds: i64,
    /// The rest of that time.
    pub mtime_nanoseconds: u32,
    /// Time of the last change of content or metadata, which nobody can set: whole seconds since 1970.
    pub ctime_seconds: i64,
    /// The rest of that time.
    pub ctime_nanoseconds: u32,
    /// Which file it is.
    pub identity: FileId,
    /// How many names the file has, in the context or elsewhere.
    pub link_count: u64,
}

/// The directory of a build context, less what its patterns exclude.
#[derive(Debug)]
pub struct Directory {
    root: OwnedFd,
    path: PathBuf,
    patterns: Patterns,
}

/// The names of the ignore file for a Dockerfile, the best first: `<Dockerfile>.dockerignore` beside the Dockerfile,
/// then `.dockerignore` in the context's root. Only the first that exists counts.
#[must_use]
pub fn ignore_file_names(dockerfile: &Path, context: &Path) -> [PathBuf; 2] {
    let mut own = dockerfile.as_os_str().to_owned();
    own.push(".dockerignore");
    [own.into(), context.join(".dockerignore")]
}

impl Directory {
    /// Opens the root. `patterns` excludes files from everything that follows.
    ///
    /// # Errors
    /// The path is no directory that can be read.
    pub fn open(path: &Path, patterns: Patterns) -> Result<Self, ContextError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root =
            rustix::fs::open(path, flags, Mode::empty()).map_err(ContextError::io("open the build context", path))?;
        Ok(Self { root, path: path.to_owned(), patterns })
    }

    /// The root's path as given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is excluded.
    #[must_use]
    pub fn patterns(&self) -> &Patterns {
        &self.patterns
    }

    fn open_at(&self, verb: &'static str, path: &Path, flags: OFlags) -> Result<OwnedFd, ContextError> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let name = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let open = || rustix::fs::openat2(&self.root, name, flags, Mode::empty(), resolve);
        // EAGAIN: something was renamed meanwhile, and the kernel could not tell whether the path left the root.
        let is_undecided = |result: &Result<_, Errno>| matches!(result, Err(Errno::AGAIN | Errno::INTR));
        let result = (1..MOST_ATTEMPTS).map(|_| open()).find(|result| !is_undecided(result));
        result.unwrap_or_else(open).map_err(ContextError::io(verb, path))
    }

    /// Opens a regular file for reading. Its path may not go through links; see [`Self::resolve`].
    ///
    /// # Errors
    /// The file is not there, is no regular file or cannot be read.
    pub fn open_file(&self, path: &Path) -> Result<File, ContextError> {
        // NONBLOCK: opening a pipe must not wait for a writer.
        let file = self.open_at("open", path, OFlags::RDONLY | OFlags::NONBLOCK)?;
        let stat = rustix::fs::fstat(&file).map_err(ContextError::io("stat", path))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Ok(file.into()),
            FileType::Directory => Err(ContextError::io("open", path)(Errno::ISDIR)),
            _ => Err(ContextError::io("open", path)(Errno::INVAL)),
        }
    }

    /// What a file that was opened at `path` is now.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub(super) fn entry_of(&self, file: &File, path: &Path) -> Result<Entry, ContextError> {
        let stat = rustix::fs::fstat(file).map_err(ContextError::io("stat", path))?;
        entry(path.to_owned(), &stat, || Ok(CString::default())).map_err(ContextError::io("stat", path))
    }

    /// Whether a file has any extended attribute.
    ///
    /// # Errors
    /// They cannot be listed.
    pub(super) fn has_xattrs(&self, file: &File, path: &Path) -> Result<bool, ContextError> {
        match rustix::fs::flistxattr(file, &mut [0_u8; 1]) {
            Ok(length) => Ok(length > 0),
            Err(Errno::RANGE) => Ok(true),
            Err(Errno::NOTSUP) => Ok(false),
            Err(error) => Err(ContextError::io("read the extended attributes of", path)(error)),
        }
    }

    /// The extended attributes of a file or directory, sorted by name. Other kinds have none that a context could
    /// carry.
    ///
    /// # Errors
    /// The file cannot be opened or its attributes cannot be read.
    pub fn xattrs(&self, entry: &Entry) -> Result<Vec<(CString, Vec<u8>)>, ContextError> {
        if !matches!(entry.kind, EntryKind::File { .. } | EntryKind::Directory) {
            return Ok(Vec::new());
        }
        let file = self.open_at("open", &entry.path, OFlags::RDONLY | OFlags::NONBLOCK)?;
        let error = || ContextError::io("read the extended attributes of", &entry.path);
        let mut names = match read_growing(|buffer| rustix::fs::flistxattr(&file, buffer)) {
            Err(Errno::NOTSUP) => return Ok(Vec::new()),
            names => names.map_err(error())?,
        };
        // Every name ends with a NUL.
        names.pop();
        let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        let mut attributes = Vec::new();
        for name in names {
            let value = read_growing(|buffer| rustix::fs::fgetxattr(&file, name, buffer)).map_err(error())?;
            attributes.push((CString::new(name).expect("split at every NUL"), value));
        }
        attributes.sort();
        Ok(attributes)
    }

    /// The entry of a path, excluded or not, without following links; `None` if nothing is there.
    pub(super) fn stat(&self, path: &Path) -> Result<Option<Entry>, ContextError> {
        let file = match self.open_at("stat", path, OFlags::PATH) {
            Ok(file) => file,
            Err(ContextError::Io { source, .. })
                if matches!(
                    source.raw_os_error().map(Errno::from_raw_os_error),
                    Some(Errno::NOENT | Errno::NOTDIR)
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let stat = rustix::fs::fstat(&file).map_err(ContextError::io("stat", path))?;
        let target = || rustix::fs::readlinkat(&file, "", Vec::new());
        entry(path.to_owned(), &stat, target).map(Some).map_err(ContextError::io("read the link", path))
    }

    /// The entry of a path that the ignore file leaves, without following links. A directory that is excluded itself
    /// counts where something below it is not.
    ///
    /// # Errors
    /// Nothing is there, or it is excluded; or it cannot be looked at.
    pub fn entry(&self, path: &Path) -> Result<Entry, ContextError> {
        let not_found = |is_ignored| ContextError::NotFound { path: path.to_owned(), is_ignored };
        let entry = self.stat(path)?.ok_or_else(|| not_found(false))?;
        let matched = self.matched(path);
        if matched.is_excluded() && (entry.kind != EntryKind::Directory || self.walk(path, 1)?.is_empty()) {
            return Err(not_found(true));
        }
        Ok(entry)
    }

    fn matched(&self, path: &Path) -> Matched {
        if path.as_os_str().is_empty() { Matched::default() } else { self.patterns.path(path.as_os_str().as_bytes()) }
    }

    /// Everything at and below `path` that the ignore file leaves, depth first: a directory before its content, the names
    /// in it by their bytes. A directory that is excluded itself is there if something below it is. Links are not
    /// followed. Up to `threads` threads walk.
    ///
    /// # Errors
    /// Nothing is at `path`, or a directory cannot be read.
    pub fn walk(&self, path: &Path, threads: usize) -> Result<Vec<Entry>, ContextError> {
        let Some(top) = self.stat(path)? else {
            return Err(ContextError::NotFound { path: path.to_owned(), is_ignored: false });
        };
        let walk = Walk::new(self);
        let mut begin = Vec::new();
        let top = walk.take(top, self.matched(path), &mut begin);
        walk.pending().unlisted = begin;
        let mut parts = std::thread::scope(|scope| {
            let helpers: Vec<_> = (1..threads.max(1)).map(|_| scope.spawn(|| walk.work())).collect();
            let own = walk.work();
            let helped = helpers.into_iter().map(|helper| helper.join().expect("a walk does not panic"));
            std::iter::once(own).chain(helped.collect::<Vec<_>>()).collect::<Result<Vec<_>, _>>()
        })?;
        let mut lists = HashMap::new();
        for (number, part) in parts.iter_mut().enumerate() {
            lists.extend(part.lists.drain(..).map(|(list, range)| (list, (number, range))));
        }
        let mut entries = Vec::with_capacity(parts.iter().map(|part| part.found.len()).sum::<usize>() + 1);
        if let Some(top) = top {
            gather(top, &lists, &mut parts, &mut entries);
        }
        Ok(entries)
    }

    /// Finds what lies right in a directory.
    fn list(&self, directory: &Path, mut found: impl FnMut(Entry)) -> Result<(), ContextError> {
        /// Enough that asking for names costs nothing beside looking at the files.
        const NAMES_BYTES: usize = 32 << 10;
        let file = self.open_at("open", directory, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut buffer = Vec::with_capacity(NAMES_BYTES);
        let mut names = RawDir::new(&file, buffer.spare_capacity_mut());
        while let Some(name) = names.next() {
            let name = name.map_err(ContextError::io("list", directory))?;
            let name = OsStr::from_bytes(name.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let path = directory.join(name);
            let stat = match rustix::fs::statat(&file, name, AtFlags::SYMLINK_NOFOLLOW) {
                // Removed since the directory was read.
                Err(Errno::NOENT) => continue,
                stat => stat.map_err(ContextError::io("stat", &path))?,
            };
            let target = || rustix::fs::readlinkat(&file, name, Vec::new());
            found(entry(path, &stat, target).map_err(|errno| unread_link(&directory.join(name), errno))?);
        }
        Ok(())
    }
}

fn unread_link(path: &Path, errno: Errno) -> ContextError {
    ContextError::io("read the link", path)(errno)
}

/// What a walk found under a name.
struct Found {
    entry: Entry,
    /// It counts only where something below it does.
    is_excluded: bool,
    /// The number of the list of what is in it, where that can be wanted.
    list: Option<usize>,
}

/// What one thread of a walk found: in one piece of memory, which goes back whole.
#[derive(Default)]
struct Part {
    /// `None` once it was taken.
    found: Vec<Option<Found>>,
    /// Lists by their number, each sorted.
    lists: Vec<(usize, Range<usize>)>,
}

/// A directory of which there is no list yet.
struct Unlisted {
    path: PathBuf,
    matched: Matched,
    list: usize,
}

/// A walk that several threads share.
struct Walk<'a> {
    directory: &'a Directory,
    /// How many lists there are or will be.
    lists: AtomicUsize,
    pending: Mutex<Pending>,
    changed: Condvar,
}

#[derive(Default)]
struct Pending {
    unlisted: Vec<Unlisted>,
    /// How many directories are being listed.
    busy: usize,
}

impl<'a> Walk<'a> {
    fn new(directory: &'a Directory) -> Self {
        Self { directory, lists: AtomicUsize::new(0), pending: Mutex::default(), changed: Condvar::new() }
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an entry into the walk; a directory is to be listed where anything below it can be wanted.
    fn take(&self, entry: Entry, matched: Matched, unlisted: &mut Vec<Unlisted>) -> Option<Found> {
        let path = entry.path.as_os_str().as_bytes();
        let is_excluded = matched.is_excluded();
        let is_wanted = || !is_excluded || self.directory.patterns.can_take_back_below(path, &matched);
        let is_listed = entry.kind == EntryKind::Directory && is_wanted();
        let list = is_listed.then(|| self.lists.fetch_add(1, Ordering::Relaxed));
        if let Some(list) = list {
            unlisted.push(Unlisted { path: entry.path.clone(), matched, list });
        }
        (!is_excluded || is_listed).then_some(Found { entry, is_excluded, list })
    }

    /// Lists directories until there are no more, or one fails; the others then come to an end, too.
    fn work(&self) -> Result<Part, ContextError> {
        let Part { mut found, mut lists } = Part::default();
        while let Some(next) = self.next() {
            let (begin, mut unlisted) = (found.len(), Vec::new());
            let listed = self.directory.list(&next.path, |entry| {
                let matched = self.directory.patterns.child(&next.matched, entry.path.as_os_str().as_bytes());
                found.extend(self.take(entry, matched, &mut unlisted).map(Some));
            });
            let mut pending = self.pending();
            pending.busy -= 1;
            pending.unlisted.append(&mut unlisted);
            if listed.is_err() {
                pending.unlisted.clear();
            }
            self.changed.notify_all();
            drop(pending);
            listed?;
            // All begin with the same directory.
            found[begin..].sort_unstable_by(|a, b| path_of(a).cmp(&path_of(b)));
            lists.push((next.list, begin..found.len()));
        }
        Ok(Part { found, lists })
    }

    fn next(&self) -> Option<Unlisted> {
        let mut pending = self.pending();
        loop {
            if let Some(next) = pending.unlisted.pop() {
                pending.busy += 1;
                return Some(next);
            }
            if pending.busy == 0 {
                return None;
            }
            pending = self.changed.wait(pending).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn path_of(found: &Option<Found>) -> Option<&OsStr> {
    found.as_ref().map(|found| found.entry.path.as_os_str())
}

/// Puts what was found, and all that is in it, behind each other.
fn gather(
    Found { entry, is_excluded, list }: Found,
    lists: &HashMap<usize, (usize, Range<usize>)>,
    parts: &mut [Part],
    entries: &mut Vec<Entry>,
) {
    entries.push(entry);
    let below = entries.len();
    if let Some((part, range)) = list.and_then(|list| lists.get(&list)) {
        for at in range.clone() {
            if let Some(found) = parts[*part].found[at].take() {
                gather(found, lists, parts, entries);
            }
        }
    }
    if is_excluded && entries.len() == below {
        entries.pop();
    }
}

fn entry(path: PathBuf, stat: &Stat, target: impl FnOnce() -> Result<CString, Errno>) -> Result<Entry, Errno> {
    let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => EntryKind::Directory,
        FileType::Symlink => EntryKind::Symlink { target: OsStr::from_bytes(target()?.as_bytes()).into() },
        FileType::Fifo => EntryKind::Fifo,
        FileType::Socket => EntryKind::Socket,
        FileType::CharacterDevice => EntryKind::CharacterDevice { major, minor },
        FileType::BlockDevice => EntryKind::BlockDevice { major, minor },
        _ => EntryKind::File { size_bytes: u64::try_from(stat.st_size).unwrap_or(0) },
    };
    Ok(Entry {
        path,
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime_seconds: stat.st_mtime,
        // The kernel keeps it below 10^9.
        mtime_nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        ctime_seconds: stat.st_ctime,
        ctime_nanoseconds: u32::try_from(stat.st_ctime_nsec).unwrap_or(0),
        identity: FileId { device: stat.st_dev, inode: stat.st_ino },
        link_count: stat.st_nlink,
    })
}

/// Calls with a longer buffer until the answer fits.
fn read_growing(mut read: impl FnMut(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    // XATTR_SIZE_MAX is 64 KiB, and so is XATTR_LIST_MAX.
    let mut buffer = vec![0; 256];
    loop {
        match read(&mut buffer) {
            Err(Errno::RANGE) if buffer.len() < 1 << 16 => buffer.resize(1 << 16, 0),
            result => {
                buffer.truncate(result?);
                return Ok(buffer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn paths(directory: &Path, patterns: &[&str]) -> Vec<String> {
        let patterns = Patterns::new(patterns.iter().copied()).expect("valid patterns");
        let entries = Directory::open(directory, patterns).expect("open").walk(Path::new(""), 2).expect("walk");
        entries.into_iter().map(|entry| entry.path.display().to_string()).collect()
    }

    fn tree(names: &[&str]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for name in names {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().expect("below the root")).expect("make directories");
            fs::write(path, name).expect("write");
        }
        directory
    }

    #[test]
    fn a_walk_is_depth_first_with_the_names_of_a_directory_sorted_by_bytes() {
        let directory = tree(&["a/x", "a/b/c", "a-b", "a.c", "B"]);
        assert_eq!(paths(directory.path(), &[]), ["", "B", "a", "a/b", "a/b/c", "a/x", "a-b", "a.c"]);
    }

    #[test]
    fn an_excluded_directory_is_there_only_for_what_is_taken_back_below() {
        let directory = tree(&["dir/sub/c", "dir/sub/d", "dir/e", "other/f"]);
        assert_eq!(paths(directory.path(), &["dir", "other", "!dir/sub/c"]), ["", "dir", "dir/sub", "dir/sub/c"]);
        assert_eq!(paths(directory.path(), &["dir", "!**/none"]), ["", "other", "other/f"]);
    }

    #[test]
    fn an_excluded_directory_is_never_opened() {
        let directory = tree(&["closed/a", "b"]);
        let context = Directory::open(directory.path(), Patterns::new(["closed", "!b"]).expect("valid")).expect("open");
        let matched = context.patterns.path(b"closed");
        assert!(!context.patterns.can_take_back_below(b"closed", &matched));
        assert_eq!(paths(directory.path(), &["closed", "!b"]), ["", "b"]);
    }

    #[test]
    fn links_are_entries_and_hard_links_share_their_identity() {
        let directory = tree(&["a"]);
        fs::hard_link(directory.path().join("a"), directory.path().join("b")).expect("link");
        std::os::unix::fs::symlink("/etc", directory.path().join("etc")).expect("link");
        rustix::fs::mknodat(rustix::fs::CWD, directory.path().join("pipe"), FileType::Fifo, Mode::RUSR, 0)
            .expect("pipe");
        let context = Directory::open(directory.path(), Patterns::default()).expect("open");
        let entries = context.walk(Path::new(""), 2).expect("walk");
        let [_, a, b, etc, pipe] = entries.as_slice() else { panic!("{entries:?}") };
        assert_eq!((a.identity, a.link_count), (b.identity, 2));
        assert_eq!(etc.kind, EntryKind::Symlink { target: "/etc".into() });
        assert_eq!(pipe.kind, EntryKind::Fifo);
        assert!(context.open_file(&pipe.path).expect_err("a pipe").to_string().starts_with("open pipe: "));
        assert!(context.walk(Path::new("etc/ssl"), 1).is_err(), "a walk does not go through links");
    }

    #[test]
    fn extended_attributes_are_read_on_demand() {
        let directory = tree(&["a"]);
        let value = vec![7; 1000];
        match rustix::fs::setxattr(directory.path().join("a"), "user.x", &value, rustix::fs::XattrFlags::empty()) {
            // Some file systems have none: there is nothing to read then.
            Err(Errno::NOTSUP) => return,
            result => result.expect("set the attribute"),
        }
        let context = Directory::open(directory.path(), Patterns::default()).expect("open");
        let entry = context.entry(Path::new("a")).expect("entry");
        let attributes = context.xattrs(&entry).expect("read");
        assert!(attributes.contains(&(c"user.x".to_owned(), value)));
    }
}
