//! What is mounted where: a record beside each upper that was ever mounted, so that other runs of the program find it.
//!
//! Invariant: a record names a server as long as that server has not ended by itself. Whether it still lives is told by
//! the lock on its upper, which the kernel releases, never by its number.
//!
//! ```text
//! uppers/<id>/scratch/mount.json   the record
//! uppers/<id>/scratch/log          what its server had to say
//! uppers/<id>/lock                 held by the server
//! ```

use std::fs::{File, TryLockError};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use builder::{ImageConfig, StoredImage};
use layerfs::{DiffId, Layer, Plane};
use oci_spec::image::Descriptor;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};
use walkdir::WalkDir;

use crate::report::Hinted;

/// A mount, and all that a commit of it needs: the names of its image may go meanwhile.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The image as it was named.
    pub(crate) image: String,
    /// Its manifest.
    pub(crate) manifest: Descriptor,
    /// Its configuration.
    pub(crate) config: ImageConfig,
    /// Its layers, the lowest first.
    pub(crate) layers: Vec<(DiffIdText, Descriptor)>,
    /// Where it is mounted, or was last.
    pub(crate) directory: PathBuf,
    /// Whether nothing can be changed.
    pub(crate) read_only: bool,
    /// Who serves it.
    #[serde(default)]
    pub(crate) plane: Plane,
    /// Who serves it; none once that has ended by itself.
    pub(crate) server: Option<Server>,
}

/// A diff id as text.
type DiffIdText = String;

/// A process that could be told from a later one of the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Server {
    /// The process to send signals to.
    pub(crate) pid: i32,
    /// When it started, in clock ticks since the machine did: field 22 of /proc/PID/stat.
    started_ticks: u64,
}

/// A record that was found.
#[derive(Debug)]
pub(crate) struct Mounted {
    /// The id of the upper.
    pub(crate) id: String,
    /// Its directory in the store.
    pub(crate) place: PathBuf,
    pub(crate) record: Record,
    /// Whether its server lives.
    pub(crate) is_live: bool,
}

impl Record {
    /// A record of an image that `server` is about to serve.
    pub(crate) fn new(
        image: &StoredImage,
        name: &str,
        directory: &Path,
        read_only: bool,
        server: Option<Server>,
    ) -> Self {
        let layer = |layer: &Layer| (layer.diff_id.to_string(), layer.descriptor.clone());
        Self {
            image: name.to_owned(),
            manifest: image.manifest.clone(),
            config: image.config.clone(),
            layers: image.layers.iter().map(layer).collect(),
            directory: directory.to_owned(),
            read_only,
            plane: Plane::Fuse,
            server,
        }
    }

    /// The image that was mounted.
    pub(crate) fn stored_image(&self) -> anyhow::Result<StoredImage> {
        let layer = |(diff_id, descriptor): &(DiffIdText, Descriptor)| {
            let diff_id: DiffId =
                diff_id.parse().with_context(|| format!("the record of {} is damaged", self.image))?;
            Ok(Layer { diff_id, descriptor: descriptor.clone() })
        };
        let layers = self.layers.iter().map(layer).collect::<anyhow::Result<_>>()?;
        Ok(StoredImage { manifest: self.manifest.clone(), config: self.config.clone(), layers })
    }

    /// Writes the record into the scratch directory of its upper, whole or not at all.
    pub(crate) fn write(&self, scratch: &Path) -> anyhow::Result<()> {
        let write = || {
            let mut file = tempfile::NamedTempFile::new_in(scratch)?;
            serde_json::to_writer(&mut file, self)?;
            file.persist(scratch.join("mount.json")).map_err(|error| error.error)?;
            Ok::<_, std::io::Error>(())
        };
        write().with_context(|| format!("cannot write the record of the mount on {}", self.directory.display()))
    }
}

impl Server {
    /// A process that runs now.
    pub(crate) fn of(pid: i32) -> anyhow::Result<Self> {
        let started_ticks = started_ticks(pid).with_context(|| format!("cannot look at process {pid}"))?;
        Ok(Self { pid, started_ticks })
    }

    /// Asks it to unmount and end.
    pub(crate) fn terminate(self) -> anyhow::Result<()> {
        // A later process of the same number started at another time.
        let pid = Pid::from_raw(self.pid).filter(|_| started_ticks(self.pid) == Some(self.started_ticks));
        let pid = pid.with_context(|| format!("the server, process {}, cannot be seen from here", self.pid))?;
        rustix::process::kill_process(pid, Signal::TERM)
            .with_context(|| format!("cannot end the server, process {}", self.pid))
    }
}

fn started_ticks(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; after it comes field 3.
    let after_name = &stat[stat.rfind(')')? + 1..];
    after_name.split_whitespace().nth(22 - 3)?.parse().ok()
}

impl Mounted {
    /// Waits until its server has ended, and with it the lock; says whether it has. What was written goes to the disk
    /// first, which may take its time. A mount namespace that copied the mount keeps it in use, and then the server
    /// goes on for whoever is there.
    pub(crate) fn wait_for_server(&self, longest: Duration) -> anyhow::Result<bool> {
        /// Short beside what a person notices.
        const STEP: Duration = Duration::from_millis(5);
        let path = self.place.join("lock");
        let file = match File::open(&path) {
            Ok(file) => file,
            // It took its upper away.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(true),
            Err(error) => return Err(error).with_context(|| format!("cannot open {}", path.display())),
        };
        let start = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(true),
                Err(TryLockError::WouldBlock) if start.elapsed() < longest => std::thread::sleep(STEP),
                Err(TryLockError::WouldBlock) => return Ok(false),
                Err(TryLockError::Error(error)) => {
                    return Err(error)
                        .with_context(|| format!("cannot wait for the server of {}", self.record.directory.display()));
                }
            }
        }
    }

    /// Whether it is a mount that takes no changes, and never had an upper that could.
    pub(crate) fn has_no_changes(&self) -> bool {
        self.record.read_only && !self.place.join("stack").exists()
    }

    /// Has a live mount put into its upper what was written so far. The files of an overlay are those of the upper, with
    /// what the kernel caches of them.
    pub(crate) fn flush(&self) -> anyhow::Result<()> {
        if self.record.plane != Plane::Fuse {
            return Ok(());
        }
        let directory = &self.record.directory;
        flush(directory, &self.place.join("upper")).with_context(|| format!("cannot sync {}", directory.display()))
    }

    /// Whether a mount of ours, served or dead, lies on its directory, as this process sees it.
    pub(crate) fn is_visible(&self) -> anyhow::Result<bool> {
        let table = std::fs::read("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
        let ours = [(&b"fuse.nacre"[..], &b"nacre"[..]), (b"overlay", b"nacre")];
        Ok(topmost(&table, &self.record.directory).is_some_and(|mount| ours.contains(&mount)))
    }
}

/// Has the kernel hand over what it still caches of a mount. After `syncfs` each file that was written is in the upper,
/// but FUSE does not wait there for the content, as it does with `fsync`.
fn flush(directory: &Path, upper: &Path) -> std::io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory: OwnedFd = rustix::fs::open(directory, flags, Mode::empty())?;
    rustix::fs::syncfs(&directory)?;
    for entry in WalkDir::new(upper) {
        let entry = match entry {
            Err(error) if error.io_error().is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound) => {
                continue;
            }
            other => other?,
        };
        let Some(path) = entry.path().strip_prefix(upper).ok().filter(|_| entry.file_type().is_file()) else {
            continue;
        };
        // Not a pipe that has taken the file's place meanwhile.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat2(
            &directory,
            path,
            flags,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
        ) {
            Ok(file) => rustix::fs::fsync(&file)?,
            // It was removed or replaced since.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The type and the source of the topmost mount on a directory:
/// <https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html>.
fn topmost<'a>(table: &'a [u8], directory: &Path) -> Option<(&'a [u8], &'a [u8])> {
    let lines = table.split(|byte| *byte == b'\n').rev();
    lines.into_iter().find_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let point = unescaped(fields.nth(4)?);
        let mut after_options = fields.skip_while(|field| *field != b"-").skip(1);
        let is_there = point == directory.as_os_str().as_bytes();
        is_there.then(|| after_options.next().zip(after_options.next()))?
    })
}

/// Blanks and backslashes stand there as `\040`.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

/// All records of a store, sorted by their directories.
pub(crate) fn all(root: &Path) -> anyhow::Result<Vec<Mounted>> {
    let uppers = root.join("uppers");
    let entries = match std::fs::read_dir(&uppers) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("cannot list {}", uppers.display()))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let place = entry.with_context(|| format!("cannot list {}", uppers.display()))?.path();
        // An upper of a build step has none, and one that is just removed has none any more.
        let Ok(bytes) = std::fs::read(place.join("scratch/mount.json")) else { continue };
        let record =
            serde_json::from_slice(&bytes).with_context(|| format!("the record in {} is damaged", place.display()))?;
        let id = place.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_live = is_locked(&place.join("lock"))?;
        found.push(Mounted { id, place, record, is_live });
    }
    found.sort_by(|a, b| (&a.record.directory, &a.id).cmp(&(&b.record.directory, &b.id)));
    Ok(found)
}

fn is_locked(path: &Path) -> anyhow::Result<bool> {
    let file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        file => file.with_context(|| format!("cannot open {}", path.display()))?,
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot look at the lock {}", path.display()))
        }
    }
}

/// Finds what is mounted on a directory, or the upper of an id.
pub(crate) fn find(root: &Path, target: &Path) -> anyhow::Result<Mounted> {
    let directory = absolute(target);
    let mut on_directory = None;
    let mut of_id = None;
    for mounted in all(root)? {
        let is_there = directory.as_ref().is_ok_and(|directory| *directory == mounted.record.directory);
        if is_there && (mounted.is_live || (on_directory.is_none() && mounted.record.server.is_some())) {
            on_directory = Some(mounted);
        } else if Path::new(&mounted.id) == target {
            of_id = Some(mounted);
        }
    }
    on_directory.or(of_id).ok_or_else(|| {
        let hint = "`nacre mount --all` lists mounts and kept uppers; --root names another store";
        Hinted::error(format!("{} is neither a mount of this store nor the id of an upper", target.display()), hint)
    })
}

/// The path of a directory without links. One whose server was killed cannot be looked at, but its parent can.
pub(crate) fn absolute(directory: &Path) -> anyhow::Result<PathBuf> {
    let failed = || format!("cannot find the directory {}", directory.display());
    match directory.canonicalize() {
        Err(error) if error.raw_os_error() == Some(Errno::NOTCONN.raw_os_error()) => {
            let whole = std::path::absolute(directory).with_context(failed)?;
            let (parent, name) = whole.parent().zip(whole.file_name()).with_context(failed)?;
            Ok(parent.canonicalize().with_context(failed)?.join(std::ffi::OsString::from_vec(name.as_bytes().to_vec())))
        }
        path => path.with_context(failed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_mount_of_a_directory_counts() {
        let table = b"1 0 0:1 / /a\\040b rw - ext4 x rw\n2 1 0:2 / /a\\040b rw shared:1 - fuse.nacre nacre rw\n3 1 0:3 / /c rw - tmpfs x rw\n";
        assert_eq!(topmost(table, Path::new("/a b")), Some((&b"fuse.nacre"[..], &b"nacre"[..])));
        assert_eq!(topmost(table, Path::new("/c")), Some((&b"tmpfs"[..], &b"x"[..])));
        assert_eq!(topmost(table, Path::new("/d")), None);
    }

    #[test]
    fn a_process_is_told_from_a_later_one_of_its_number() {
        let own = i32::try_from(std::process::id()).expect("a small number");
        let server = Server::of(own).expect("this process runs");
        let later = Server { started_ticks: server.started_ticks + 1, ..server };
        assert!(later.terminate().is_err(), "or this test would have ended");
    }
}
