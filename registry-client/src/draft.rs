//! What is being written and has no name of its own yet: files that appear whole or not at all.
//!
//! Invariant: whoever is killed leaves nothing. A draft has no name where the file system can do that (`O_TMPFILE`);
//! what needs a name, because the file system cannot or because it is a directory, is listed in [`NAMED`] as long as it
//! is there, so that a program that ends at once can remove it ([`abandon_drafts`]).

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};

/// Files and directories of this process that are to be removed when it ends.
static NAMED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn named() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    NAMED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// For a program that ends at once, whatever its threads are doing: what it then has to remove. From here on no draft
/// gets or loses a name in this process; whoever tries waits for the end.
pub fn abandon_drafts() -> Vec<PathBuf> {
    let named = named();
    let paths = named.iter().cloned().collect();
    // Never unlocked.
    std::mem::forget(named);
    paths
}

/// A file to be filled and then published; until then nobody else sees it, and it goes with this value or its process.
#[derive(Debug)]
pub struct Draft {
    file: File,
    name: Option<Named>,
}

/// A name that goes with this value.
#[derive(Debug)]
struct Named(PathBuf);

impl Drop for Named {
    fn drop(&mut self) {
        // What was published is not under this name any more.
        _ = std::fs::remove_file(&self.0);
        named().remove(&self.0);
    }
}

impl Draft {
    /// An empty one on the file system of a path, whose directory is there.
    ///
    /// # Errors
    /// If the directory cannot be written.
    pub fn beside(path: &Path) -> io::Result<Self> {
        Self::new_in(parent(path))
    }

    /// An empty one on the file system of a directory; readable as the user's umask allows, unlike usual temporary
    /// files.
    ///
    /// # Errors
    /// If the directory cannot be written.
    pub fn new_in(directory: &Path) -> io::Result<Self> {
        Self::with_mode(directory, 0o666)
    }

    /// The same, readable as `mode` and the umask allow.
    pub(crate) fn with_mode(directory: &Path, mode: u32) -> io::Result<Self> {
        use rustix::io::Errno;
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        match rustix::fs::open(directory, flags, Mode::from_raw_mode(mode)) {
            Ok(file) => Ok(Self { file: file.into(), name: None }),
            // NFS and some FUSE file systems; EISDIR is said by kernels that do not know of it.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => Self::named_in(directory, mode),
            Err(error) => Err(error.into()),
        }
    }

    fn named_in(directory: &Path, mode: u32) -> io::Result<Self> {
        let mut named = named();
        let permissions = std::fs::Permissions::from_mode(mode);
        let file = tempfile::Builder::new().prefix(".new-").permissions(permissions).tempfile_in(directory)?;
        let (file, path) = file.keep().map_err(|error| error.error)?;
        named.insert(path.clone());
        Ok(Self { file, name: Some(Named(path)) })
    }

    /// Gives the finished file its name, in place of what has it, so that it survives a crash whole or not at all.
    ///
    /// # Errors
    /// If it cannot be brought to the disk, or not be named; the old file is then as it was.
    pub fn publish(self, path: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        match &self.name {
            Some(Named(draft)) => std::fs::rename(draft, path)?,
            None => self.link(path)?,
        }
        File::open(parent(path))?.sync_all()
    }

    /// No system call puts a nameless file in the place of another one: that takes a name beside it, for a moment.
    fn link(&self, path: &Path) -> io::Result<()> {
        if self.has_linked(path)? {
            return Ok(());
        }
        let mut beside = OsString::from(".new-");
        beside.push(path.file_name().unwrap_or_default());
        let beside = path.with_file_name(beside);
        let mut named = named();
        named.insert(beside.clone());
        let result = self.put(&beside, path);
        named.remove(&beside);
        result
    }

    fn put(&self, beside: &Path, path: &Path) -> io::Result<()> {
        loop {
            if !self.has_linked(beside)? {
                // Of a process that was killed in this moment; or of one that is in it, and then tries again.
                absent_is_fine(std::fs::remove_file(beside))?;
                continue;
            }
            match std::fs::rename(beside, path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                renamed => return renamed,
            }
        }
    }

    /// Gives the file a name, unless that is taken.
    fn has_linked(&self, path: &Path) -> io::Result<bool> {
        let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        match rustix::fs::linkat(CWD, own.as_str(), CWD, path, AtFlags::SYMLINK_FOLLOW) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::EXIST) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// A directory for what is put together beside its place; removed with all that is in it.
#[derive(Debug)]
pub(crate) struct Staging(PathBuf);

impl Staging {
    pub(crate) fn new_in(directory: &Path) -> io::Result<Self> {
        let mut named = named();
        let path = tempfile::Builder::new().prefix(".nacre-").tempdir_in(directory)?.keep();
        named.insert(path.clone());
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        _ = std::fs::remove_dir_all(&self.0);
        named().remove(&self.0);
    }
}

fn absent_is_fine(removed: io::Result<()>) -> io::Result<()> {
    removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// The directory of a file; `.` for a bare name.
pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(directory).expect("a directory");
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_draft_is_seen_when_it_is_published_and_replaces_what_was_there() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        for make in [Draft::new_in, |directory: &Path| Draft::named_in(directory, 0o666)] {
            for content in ["one", "two"] {
                let mut draft = make(directory.path()).expect("a draft");
                draft.write_all(content.as_bytes()).expect("written");
                draft.publish(&path).expect("published");
                assert_eq!(std::fs::read_to_string(&path).expect("there"), content);
                assert_eq!(names(directory.path()), ["file"]);
            }
            drop(make(directory.path()).expect("a draft"));
            assert_eq!(names(directory.path()), ["file"]);
            std::fs::remove_file(&path).expect("removed");
        }
    }

    #[test]
    fn a_draft_has_no_name_or_one_that_is_listed() {
        let directory = tempfile::tempdir().expect("a directory");
        let nameless = Draft::new_in(directory.path()).expect("a draft");
        assert_eq!((names(directory.path()).len(), nameless.name.is_none()), (0, true));
        let draft = Draft::named_in(directory.path(), 0o600).expect("a draft");
        let staging = Staging::new_in(directory.path()).expect("a directory");
        let listed = || named().iter().filter(|path| path.starts_with(directory.path())).count();
        assert_eq!((listed(), names(directory.path()).len()), (2, 2));
        drop((draft, staging));
        assert_eq!((listed(), names(directory.path()).len()), (0, 0));
    }

    #[test]
    fn what_a_killed_process_left_in_the_moment_of_publishing_is_in_nobodys_way() {
        let directory = tempfile::tempdir().expect("a directory");
        for name in ["file", ".new-file"] {
            std::fs::write(directory.path().join(name), "old").expect("written");
        }
        let mut draft = Draft::new_in(directory.path()).expect("a draft");
        draft.write_all(b"new").expect("written");
        draft.publish(&directory.path().join("file")).expect("published");
        assert_eq!(names(directory.path()), ["file"]);
    }
}
