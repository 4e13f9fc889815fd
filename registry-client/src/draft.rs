//! What is being written and has no name of its own yet: files that appear whole or not at all.
//!
//! Invariant: whoever is killed leaves nothing that stays. A draft has no name where the file system can do that
//! (`O_TMPFILE`); what needs a name, because the file system cannot or because it is a directory, is listed in [`NAMED`]
//! as long as it is there, so that a program that ends at once can remove it ([`abandon_drafts`]). A directory is locked
//! as long as its maker lives: who makes the next one beside it removes those that nobody holds. A file that a draft
//! takes over keeps its name for those who would go on with it, until it has the one under which it is published.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};

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
    /// Where a file lies that was taken over.
    taken_from: Option<PathBuf>,
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
            Ok(file) => Ok(Self { file: file.into(), name: None, taken_from: None }),
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
        Ok(Self { file, name: Some(Named(path)), taken_from: None })
    }

    /// Whether another file can be the draft: it can have its name where this one could, and looks as this one does.
    pub(crate) fn can_take(&self, other: &File) -> bool {
        let (here, there) = (standing(&self.file), standing(other));
        // Where a draft needs a name, files cannot be linked either.
        self.name.is_none() && here.is_some() && here == there
    }

    /// Makes a finished file the draft, which nothing was written to; the name that it has goes when it is published.
    ///
    /// # Errors
    /// If its mode cannot be changed.
    pub(crate) fn take_over(&mut self, file: File, path: PathBuf) -> io::Result<()> {
        file.set_permissions(self.file.metadata()?.permissions())?;
        (self.file, self.taken_from) = (file, Some(path));
        Ok(())
    }

    /// Gives the finished file its name, in place of what has it, so that it survives a crash whole or not at all.
    ///
    /// # Errors
    /// If it cannot be brought to the disk, or not be named; the old file is then as it was.
    pub fn publish(self, path: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        match (&self.name, &self.taken_from) {
            (Some(Named(draft)), _) => std::fs::rename(draft, path)?,
            (None, None) => self.link(path)?,
            (None, Some(former)) => match self.link(path) {
                Ok(()) => unname(&self.file, former),
                // Somebody deleted it, or it can have no name there after all.
                Err(_) => {
                    let copy = self.copied(parent(path))?;
                    copy.publish(path)?;
                    unname(&self.file, former);
                    return Ok(());
                }
            },
        }
        File::open(parent(path))?.sync_all()
    }

    /// The same bytes as a draft of its own.
    fn copied(&self, directory: &Path) -> io::Result<Self> {
        let (mut copy, mut from) = (Self::new_in(directory)?, &self.file);
        from.seek(io::SeekFrom::Start(0))?;
        io::copy(&mut from, &mut copy.file)?;
        Ok(copy)
    }

    /// The same where nothing has that name, else false.
    pub(crate) fn publish_new(self, path: &Path) -> io::Result<bool> {
        self.file.sync_all()?;
        let is_published = match &self.name {
            Some(Named(draft)) => match std::fs::hard_link(draft, path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
                linked => linked.map(|()| true)?,
            },
            None => self.has_linked(path)?,
        };
        File::open(parent(path))?.sync_all()?;
        Ok(is_published)
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

/// Copies all; with larger steps than `io::copy`, since each one passes decoders, digests and system calls.
pub(crate) fn pour(content: &mut dyn Read, out: &mut dyn Write) -> io::Result<()> {
    pour_watched(content, out, &mut |_| Ok(()))
}

/// The same for who wants to hear how many bytes have passed after each step, and may end it.
pub(crate) fn pour_watched(
    content: &mut dyn Read,
    out: &mut dyn Write,
    watch: &mut dyn FnMut(u64) -> io::Result<()>,
) -> io::Result<()> {
    let (mut buffer, mut passed_bytes) = (vec![0; 128 << 10], 0);
    loop {
        match content.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                out.write_all(&buffer[..count])?;
                passed_bytes += count as u64;
                watch(passed_bytes)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A directory for what is put together beside its place; removed with all that is in it.
#[derive(Debug)]
pub(crate) struct Staging {
    /// Around the directory: whoever writes there may have locks of its own.
    outer: PathBuf,
    path: PathBuf,
    /// The outer one, locked, where the file system has locks.
    _held: Option<File>,
}

const STAGING_PREFIX: &str = ".nacre-";
/// Nobody else enters it, so that what has this mode is nobody else's.
const STAGING_MODE: u32 = 0o700;

impl Staging {
    pub(crate) fn new_in(directory: &Path) -> io::Result<Self> {
        sweep(directory);
        let mut named = named();
        loop {
            let private = std::fs::Permissions::from_mode(STAGING_MODE);
            let made = tempfile::Builder::new().prefix(STAGING_PREFIX).permissions(private).tempdir_in(directory)?;
            let outer = made.keep();
            let held = hold(&outer);
            let path = outer.join("new");
            match std::fs::create_dir(&path) {
                // Another process took it for a leftover in the moment before it was locked.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                made => made?,
            }
            named.insert(outer.clone());
            return Ok(Self { outer, path, _held: held });
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        _ = std::fs::remove_dir_all(&self.outer);
        named().remove(&self.outer);
    }
}

/// Opens a directory and waits for its lock; `None` where there is none to be had, as on some file systems: then nobody
/// takes it for a leftover either.
fn hold(path: &Path) -> Option<File> {
    let held = open_directory(path).ok()?;
    held.lock().is_ok().then_some(held)
}

/// Removes what processes left that were killed. Whatever fails here is nobody's failure: it stays for the next time.
fn sweep(directory: &Path) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let is_ours = entry.file_name().to_str().is_some_and(is_staging_name);
        if is_ours && let Some(_held) = leftover(&entry.path()) {
            tracing::debug!(path = %entry.path().display(), "what a process left that was killed is removed");
            _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// As [`tempfile`] makes it: six letters and digits behind the prefix.
fn is_staging_name(name: &str) -> bool {
    let rest = name.strip_prefix(STAGING_PREFIX);
    rest.is_some_and(|rest| rest.len() == 6 && rest.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

/// The lock of a directory of this user that nobody holds.
fn leftover(path: &Path) -> Option<File> {
    let held = open_directory(path).ok()?;
    let metadata = held.metadata().ok()?;
    let is_private = metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o777 == STAGING_MODE;
    (is_private && held.try_lock().is_ok()).then_some(held)
}

fn open_directory(path: &Path) -> io::Result<File> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

/// What two files have in common of which one can stand where the other would: the mount, beyond which no name reaches
/// (<https://man7.org/linux/man-pages/man2/link.2.html>, EXDEV), and the owners; `None` where the kernel does not tell
/// (before 5.8).
fn standing(file: &File) -> Option<(u64, u32, u32)> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    let found = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, wanted).ok()?;
    let tells_mount = found.stx_mask & StatxFlags::MNT_ID.bits() != 0;
    tells_mount.then_some((found.stx_mnt_id, found.stx_uid, found.stx_gid))
}

/// Takes away a name that a file has, if it still is that file's. One that stays is a second name and a waste, nothing
/// else.
pub(crate) fn unname(file: &File, path: &Path) {
    if is_at(file, path).unwrap_or(false) {
        _ = std::fs::remove_file(path);
    }
}

/// Whether a path names this file, and no link to it.
pub(crate) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let (held, found) = (file.metadata()?, std::fs::symlink_metadata(path)?);
    Ok((held.dev(), held.ino()) == (found.dev(), found.ino()))
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
    fn a_file_that_was_taken_over_is_published_wherever_that_is_and_however_often() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut places = vec![directory.path().join("here")];
        std::fs::create_dir(&places[0]).expect("made");
        // Another file system: what cannot be linked is copied.
        let elsewhere = tempfile::tempdir_in("/dev/shm").ok();
        places.extend(elsewhere.as_ref().map(|place| place.path().to_owned()));
        for place in places {
            let (former, path) = (directory.path().join("former"), place.join("file"));
            for content in ["one", "two"] {
                std::fs::write(&former, content).expect("written");
                let mut draft = Draft::new_in(&place).expect("a draft");
                let file = File::options().read(true).write(true).open(&former).expect("there");
                assert_eq!(draft.can_take(&file), place.starts_with(directory.path()));
                draft.take_over(file, former.clone()).expect("taken");
                assert!(former.exists(), "a kill leaves it to be gone on with");
                draft.publish(&path).expect("published");
                assert_eq!(std::fs::read_to_string(&path).expect("there"), content);
                assert_eq!((former.exists(), names(&place).len()), (false, 1));
            }
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
    fn what_a_killed_process_left_is_removed_and_what_is_held_or_anothers_is_kept() {
        let directory = tempfile::tempdir().expect("a directory");
        let make = |name: &str, mode| {
            let path = directory.path().join(name);
            std::fs::create_dir(&path).expect("fresh");
            std::fs::write(path.join("index.json"), "{}").expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("changed");
        };
        let living = Staging::new_in(directory.path()).expect("a directory");
        make(".nacre-dead01", 0o700);
        make(".nacre-open01", 0o755);
        make(".nacre-of-a-person", 0o700);
        std::fs::write(directory.path().join(".nacre-file01"), "").expect("written");
        std::os::unix::fs::symlink("/", directory.path().join(".nacre-link01")).expect("linked");
        let next = Staging::new_in(directory.path()).expect("a directory");
        assert!(living.path().exists() && next.path().exists());
        let mut left = names(directory.path());
        left.retain(|name| ![&living.outer, &next.outer].iter().any(|path| path.ends_with(name)));
        assert_eq!(left, [".nacre-file01", ".nacre-link01", ".nacre-of-a-person", ".nacre-open01"]);
    }

    #[test]
    fn directories_that_are_made_at_once_are_taken_from_nobody() {
        let directory = tempfile::tempdir().expect("a directory");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let staging = Staging::new_in(directory.path()).expect("a directory");
                        std::fs::write(staging.path().join("index.json"), "{}").expect("it is still there");
                    }
                });
            }
        });
        assert_eq!(names(directory.path()).len(), 0);
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
