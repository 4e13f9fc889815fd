//! Mount points that the root lacks: made before the step, removed after it, so that no layer holds them.
//!
//! Invariant: only what was made here is removed, and only while it is still empty. As BuildKit leaves them, empty
//! /dev, /proc and /sys stay. The times of the directories around are put back. Runs in the mount namespace of the
//! caller.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timestamps};
use rustix::io::Errno;

use super::mounts::{BUILT_IN, Kind, kind_of};
use super::{During as _, Failure, Process, root};

/// As many links as the kernel follows in one path (MAXSYMLINKS).
const MOST_LINKS: usize = 40;

/// The mount points that were made, in order of making.
#[derive(Debug)]
pub(super) struct Stubs(Vec<Stub>);

#[derive(Debug)]
struct Stub {
    parent: OwnedFd,
    name: OsString,
    path: PathBuf,
    kind: Kind,
    inode: u64,
}

impl Stubs {
    /// Makes every mount point of `process` that is missing in `root`.
    pub(super) fn make(root: BorrowedFd<'_>, process: &Process) -> Result<Self, Failure> {
        let mut stubs = Stubs(Vec::new());
        stubs.make_all(root, process).inspect_err(|_| stubs.remove_quietly())?;
        Ok(stubs)
    }

    fn make_all(&mut self, root: BorrowedFd<'_>, process: &Process) -> Result<(), Failure> {
        for name in BUILT_IN {
            self.make_one(root, Path::new(name), Kind::Directory)?;
        }
        let mut covered: Vec<PathBuf> = BUILT_IN.iter().map(PathBuf::from).collect();
        for (name, _) in super::mounts::generated_files(process) {
            self.make_one(root, Path::new(name), Kind::File)?;
        }
        for mount in &process.mounts {
            // What lies below an earlier mount is made inside that mount, when it is there.
            let place = resolve(root, &mount.target)?.path();
            if place == Path::new("/") {
                return Err(Failure::new(
                    format!("mount on {}", mount.target.display()),
                    "the root cannot be mounted over",
                ));
            }
            if !covered.iter().any(|above| place.starts_with(above)) {
                self.make_one(root, &place, kind_of(&mount.source)?)?;
            }
            covered.push(place);
        }
        Ok(())
    }

    /// Makes `target` and the directories above it, as far as they are missing.
    fn make_one(&mut self, root: BorrowedFd<'_>, target: &Path, kind: Kind) -> Result<(), Failure> {
        let resolved = resolve(root, target)?;
        let mut path = resolved.existing;
        let last = resolved.missing.len();
        for (position, name) in (1..).zip(resolved.missing) {
            let action = || format!("make the mount point {}", target.display());
            let parent = root::find_with(root, &path, OFlags::DIRECTORY).during(action)?;
            path.push(&name);
            let kind = if position == last { kind } else { Kind::Directory };
            let inode = make_at(parent.as_fd(), &name, kind).during(action)?;
            self.0.push(Stub { parent, name, path: path.clone(), kind, inode });
        }
        Ok(())
    }

    /// Removes what was made and is still empty, but keeps /dev, /proc and /sys.
    pub(super) fn remove(self) -> Result<(), Failure> {
        // Reversed: what is inside goes first.
        self.0.iter().rev().filter(|stub| !BUILT_IN.iter().any(|kept| stub.path == Path::new(kept))).try_for_each(
            |stub| stub.remove().during(|| format!("remove the mount point {} again", stub.path.display())),
        )
    }

    fn remove_quietly(&mut self) {
        for stub in self.0.drain(..).rev() {
            // The failure that brought us here is the one to tell.
            _ = stub.remove();
        }
    }
}

impl Stub {
    fn remove(&self) -> Result<(), Errno> {
        let now = match rustix::fs::statat(&self.parent, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(()),
            other => other?,
        };
        let is_ours = now.st_ino == self.inode
            && match self.kind {
                Kind::Directory | Kind::Shared => FileType::from_raw_mode(now.st_mode) == FileType::Directory,
                Kind::File => FileType::from_raw_mode(now.st_mode) == FileType::RegularFile && now.st_size == 0,
            };
        if !is_ours {
            return Ok(());
        }
        let flags = match self.kind {
            Kind::Directory | Kind::Shared => AtFlags::REMOVEDIR,
            Kind::File => AtFlags::empty(),
        };
        keeping_times(self.parent.as_fd(), || match rustix::fs::unlinkat(&self.parent, &self.name, flags) {
            // The step put something there: it belongs to the layer.
            Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
            other => other,
        })
    }
}

/// Makes one empty file or directory, and gives its inode number.
pub(super) fn make_at(parent: BorrowedFd<'_>, name: &OsStr, kind: Kind) -> Result<u64, Errno> {
    keeping_times(parent, || {
        match kind {
            Kind::Directory => rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?,
            Kind::Shared => {
                rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
                // What the umask does not change.
                rustix::fs::chmodat(parent, name, Mode::from_raw_mode(0o1777), AtFlags::empty())?;
            }
            Kind::File => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
                drop(rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o644))?);
            }
        }
        Ok(rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?.st_ino)
    })
}

/// Runs `change` on the entries of `directory` so that its times do not show it.
fn keeping_times<T>(directory: BorrowedFd<'_>, change: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    let before = rustix::fs::fstat(directory)?;
    let result = change()?;
    let times = Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: before.st_atime as _, tv_nsec: before.st_atime_nsec as _ },
        last_modification: rustix::fs::Timespec { tv_sec: before.st_mtime as _, tv_nsec: before.st_mtime_nsec as _ },
    };
    rustix::fs::utimensat(directory, c"", &times, AtFlags::EMPTY_PATH)?;
    Ok(result)
}

/// A path inside the root with all links followed: what is there, and what is not.
pub(super) struct Resolved {
    /// Absolute inside the root, without links.
    pub(super) existing: PathBuf,
    /// The names that are missing below it.
    pub(super) missing: Vec<OsString>,
}

impl Resolved {
    fn path(&self) -> PathBuf {
        self.existing.iter().chain(self.missing.iter().map(OsString::as_os_str)).collect()
    }
}

/// Follows `target` inside `root` as far as it exists; unlike the kernel, also through links whose end is missing
/// (/etc/resolv.conf often points into an empty /run).
pub(super) fn resolve(root: BorrowedFd<'_>, target: &Path) -> Result<Resolved, Failure> {
    let action = || format!("find the mount point {}", target.display());
    let mut rest: Vec<OsString> = reversed_names(target);
    let mut resolved = Resolved { existing: "/".into(), missing: Vec::new() };
    let mut links = 0;
    while let Some(name) = rest.pop() {
        if name == ".." {
            if resolved.missing.pop().is_none() {
                resolved.existing.pop();
            }
            continue;
        }
        if !resolved.missing.is_empty() {
            resolved.missing.push(name);
            continue;
        }
        let path = resolved.existing.join(&name);
        let file = match root::find_with(root, &path, OFlags::NOFOLLOW) {
            Err(Errno::NOENT) => {
                resolved.missing.push(name);
                continue;
            }
            other => other.during(action)?,
        };
        let mode = rustix::fs::fstat(&file).during(action)?.st_mode;
        if FileType::from_raw_mode(mode) != FileType::Symlink {
            resolved.existing = path;
            continue;
        }
        links += 1;
        if links > MOST_LINKS {
            return Err(Errno::LOOP).during(action);
        }
        let link = rustix::fs::readlinkat(&file, c"", Vec::new()).during(action)?;
        let link = PathBuf::from(OsString::from_vec(link.into_bytes()));
        if link.is_absolute() {
            resolved.existing = "/".into();
        }
        rest.extend(reversed_names(&link));
    }
    Ok(resolved)
}

/// The names of a path, last first; `..` stays in.
fn reversed_names(path: &Path) -> Vec<OsString> {
    let names = path.components().rev().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    names.collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn resolved(links: &[(&str, &str)], target: &str) -> (PathBuf, Vec<OsString>) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("etc")).unwrap();
        for (name, to) in links {
            symlink(to, dir.path().join(name)).unwrap();
        }
        let root = root::open(dir.path()).unwrap();
        let resolved = resolve(root.as_fd(), Path::new(target)).unwrap();
        (resolved.existing, resolved.missing)
    }

    #[test]
    fn links_with_a_missing_end_lead_to_where_they_point_inside_the_root() {
        let link = [("etc/resolv.conf", "../run/systemd/stub.conf")];
        assert_eq!(
            resolved(&link, "/etc/resolv.conf"),
            ("/".into(), vec!["run".into(), "systemd".into(), "stub.conf".into()])
        );
    }

    #[test]
    fn no_number_of_parents_leaves_the_root() {
        let link = [("up", "../../../.."), ("host", "/../../etc")];
        assert_eq!(resolved(&link, "/up/etc/x"), ("/etc".into(), vec!["x".into()]));
        assert_eq!(resolved(&link, "/host/../../etc/y"), ("/etc".into(), vec!["y".into()]));
    }

    #[test]
    fn a_loop_of_links_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        symlink("b", dir.path().join("a")).unwrap();
        symlink("a", dir.path().join("b")).unwrap();
        let root = root::open(dir.path()).unwrap();
        let failure = resolve(root.as_fd(), Path::new("/a/x")).err().unwrap();
        assert_eq!(failure.errno, Some(Errno::LOOP.raw_os_error()));
    }
}
