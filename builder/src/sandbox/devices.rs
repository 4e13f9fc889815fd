//! /dev of a step: the nodes that every container has, pseudo terminals, shared memory and message queues.
//!
//! Invariant: nodes are made where the kernel lets us, else they are those of the host; mounted one by one, so that
//! /dev as a whole needs no devices.

use std::ffi::OsString;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, makedev};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use super::mounts::{Kind, attach, built_in, clone_at, clone_tree, new_mount};
use super::{During as _, Failure, Process, Security, root, stubs};

/// Name, major and minor number: the runtime specification's default devices.
/// https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#default-devices
const NODES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// What a step without a sandbox finds besides, as with BuildKit: block devices are `true`.
pub(super) const INSECURE_NODES: [(&str, bool, u32, u32); 14] = [
    ("kmsg", false, 1, 11),
    ("cuse", false, 10, 203),
    ("fuse", false, 10, 229),
    ("kvm", false, 10, 232),
    ("net/tun", false, 10, 200),
    ("loop-control", false, 10, 237),
    ("loop0", true, 7, 0),
    ("loop1", true, 7, 1),
    ("loop2", true, 7, 2),
    ("loop3", true, 7, 3),
    ("loop4", true, 7, 4),
    ("loop5", true, 7, 5),
    ("loop6", true, 7, 6),
    ("loop7", true, 7, 7),
];

/// https://github.com/opencontainers/runtime-spec/blob/main/runtime-linux.md#dev-symbolic-links
const LINKS: [(&str, &str); 5] = [
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// The group `tty` of every distribution: https://wiki.debian.org/SystemGroups
const TTY_GROUP: &str = "5";

/// The nodes that every container has, as mounts that are not attached yet: made in `directory` where the kernel lets
/// us, else those of the host. It must not forbid devices.
pub(super) fn nodes(directory: BorrowedFd<'_>) -> Result<Vec<(&'static str, OwnedFd)>, Failure> {
    let make = |&(name, major, minor): &(&'static str, u32, u32)| {
        let action = || format!("make /dev/{name}");
        let mode = Mode::from_raw_mode(0o666);
        let node = match rustix::fs::mknodat(directory, name, FileType::CharacterDevice, mode, makedev(major, minor)) {
            Ok(()) => {
                rustix::fs::chmodat(directory, name, mode, rustix::fs::AtFlags::empty()).during(action)?;
                clone_at(directory, Path::new(name)).during(action)?
            }
            Err(Errno::PERM) => clone_tree(&Path::new("/dev").join(name))?,
            Err(error) => return Err(error).during(action),
        };
        Ok((name, node))
    };
    NODES.iter().map(make).collect()
}

/// Mounts and fills /dev below `root`. But for the nodes that are mounted there, a confined step finds and makes no
/// device in it that it could open: as root it would get at every disk of the machine.
pub(super) fn make_all(
    root: BorrowedFd<'_>,
    process: &Process,
    nodes: Vec<(&'static str, OwnedFd)>,
) -> Result<(), Failure> {
    let mut flags = MountAttrFlags::MOUNT_ATTR_NOSUID;
    flags.set(MountAttrFlags::MOUNT_ATTR_NODEV, process.security == Security::Sandbox);
    let dev =
        new_mount("tmpfs", &[("mode", "755"), ("size", "65536k")], flags).during(|| "mount tmpfs on /dev".into())?;
    attach(&dev, built_in(root, "/dev")?.as_fd(), "/dev")?;
    for (name, node) in nodes {
        mount_file(root, &dev, name, &node)?;
    }
    if process.security == Security::Insecure {
        make_insecure(&dev)?;
    }
    for (name, to) in LINKS {
        rustix::fs::symlinkat(to, &dev, name).during(|| format!("make the link /dev/{name}"))?;
    }
    // Not every kernel has it.
    if root::find(root, Path::new("/proc/kcore")).is_ok() {
        rustix::fs::symlinkat("/proc/kcore", &dev, "core").during(|| "make the link /dev/core".into())?;
    }
    if process.terminal {
        let terminal = clone_tree(&terminal_path()?)?;
        mount_file(root, &dev, "console", &terminal)?;
    }
    let nosuid_noexec = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let size = process.shm_size_bytes.to_string();
    let shm_flags = nosuid_noexec | MountAttrFlags::MOUNT_ATTR_NODEV;
    let shm = new_mount("tmpfs", &[("mode", "1777"), ("size", &size)], shm_flags);
    mount_directory(root, &dev, "shm", shm)?;
    mount_directory(root, &dev, "mqueue", new_mount("mqueue", &[], shm_flags))?;
    mount_directory(root, &dev, "pts", new_terminals(nosuid_noexec))
}

/// The nodes of a step without a sandbox. A user namespace may have none of them: there they are left out.
fn make_insecure(dev: &OwnedFd) -> Result<(), Failure> {
    rustix::fs::mkdirat(dev, "net", Mode::from_raw_mode(0o755)).during(|| "make /dev/net".into())?;
    for (name, is_block, major, minor) in INSECURE_NODES {
        let kind = if is_block { FileType::BlockDevice } else { FileType::CharacterDevice };
        let mode = Mode::from_raw_mode(0o666);
        match rustix::fs::mknodat(dev, name, kind, mode, makedev(major, minor)) {
            Err(Errno::PERM) => return Ok(()),
            made => made.and_then(|()| rustix::fs::chmodat(dev, name, mode, rustix::fs::AtFlags::empty())),
        }
        .during(|| format!("make /dev/{name}"))?;
    }
    Ok(())
}

/// The name of the terminal on standard input. The open file itself is no mount source: its mount is in the namespace
/// of the caller, and the kernel only clones mounts of our own.
fn terminal_path() -> Result<PathBuf, Failure> {
    let path = rustix::termios::ttyname(rustix::stdio::stdin(), Vec::new())
        .during(|| "find the terminal on standard input".into())?;
    Ok(PathBuf::from(OsString::from_vec(path.into_bytes())))
}

/// A devpts of our own; without the group where that is not mapped.
fn new_terminals(flags: MountAttrFlags) -> Result<OwnedFd, Errno> {
    // Every mount is an instance of its own since Linux 4.7.
    let options = [("ptmxmode", "0666"), ("mode", "0620"), ("gid", TTY_GROUP)];
    match new_mount("devpts", &options, flags) {
        Err(Errno::INVAL) => new_mount("devpts", &options[..2], flags),
        other => other,
    }
}

fn mount_file(root: BorrowedFd<'_>, dev: &OwnedFd, name: &str, mount: &OwnedFd) -> Result<(), Failure> {
    mount_entry(root, dev, name, Kind::File, mount)
}

fn mount_directory(
    root: BorrowedFd<'_>,
    dev: &OwnedFd,
    name: &str,
    mount: Result<OwnedFd, Errno>,
) -> Result<(), Failure> {
    let mount = mount.during(|| format!("make the file system of /dev/{name}"))?;
    mount_entry(root, dev, name, Kind::Directory, &mount)
}

fn mount_entry(root: BorrowedFd<'_>, dev: &OwnedFd, name: &str, kind: Kind, mount: &OwnedFd) -> Result<(), Failure> {
    let path = Path::new("/dev").join(name);
    stubs::make_at(dev.as_fd(), name.as_ref(), kind).during(|| format!("make {}", path.display()))?;
    let place = root::find(root, &path).during(|| format!("find {}", path.display()))?;
    attach(mount, place.as_fd(), &path.display().to_string())
}
