//! All mounts of a step, in the order in which they are made, below a root that is attached but not yet `/`.
//!
//! Invariant: every target is found inside the root by `root::find`, and mounted on by descriptor, never by path.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::{During as _, EtcFiles, Failure, MountSource, Process, Security, devices, root, stubs};
use crate::sys;

/// The directories that every step has, on mounts of their own.
pub(super) const BUILT_IN: [&str; 3] = ["/dev", "/proc", "/sys"];

/// What Docker hides: https://github.com/moby/moby/blob/master/daemon/pkg/oci/defaults.go
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// What Docker makes read-only.
pub(super) const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What a mount point must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    /// A directory that everybody may write to: of a tmpfs, which takes the mode of what it covers.
    Shared,
    File,
}

/// What the mount point of `source` must be.
pub(super) fn kind_of(source: &MountSource) -> Result<Kind, Failure> {
    match source {
        MountSource::Tmpfs { .. } => Ok(Kind::Shared),
        MountSource::Bind { path, .. } => {
            let stat = rustix::fs::stat(path).during(|| format!("find the mount source {}", path.display()))?;
            Ok(kind_of_mode(stat.st_mode))
        }
    }
}

fn kind_of_mode(mode: u32) -> Kind {
    if FileType::from_raw_mode(mode) == FileType::Directory { Kind::Directory } else { Kind::File }
}

/// The files of /etc that are ours during a step, and their content.
pub(super) fn generated_files(process: &Process) -> Vec<(&'static str, String)> {
    let name = &process.hostname;
    let mut hosts = match process.etc_files {
        EtcFiles::Step => format!("127.0.0.1\tlocalhost {name}\n::1\tlocalhost ip6-localhost ip6-loopback\n"),
        EtcFiles::Container => format!(
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n\
             ff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n127.0.0.1\t{name}\n"
        ),
    };
    for (address, name) in &process.extra_hosts {
        hosts.push_str(&format!("{address}\t{name}\n"));
    }
    let mut files = vec![("/etc/hosts", hosts)];
    files.extend(process.resolv_conf.clone().map(|content| ("/etc/resolv.conf", content)));
    files
}

/// Makes every mount of `process` below `root`.
pub(super) fn make_all(root: BorrowedFd<'_>, process: &Process) -> Result<(), Failure> {
    // Sources are paths of the caller: opened first, before anything covers them.
    let sources = process
        .mounts
        .iter()
        .map(|mount| Ok((mount, Opened::new(&mount.source, process.security)?)))
        .collect::<Result<Vec<_>, Failure>>()?;

    let proc = built_in(root, "/proc")?;
    let Singles { files, nodes } = Singles::make(&proc, &generated_files(process))?;
    for (name, file) in files {
        if process.etc_files == EtcFiles::Step {
            let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY;
            sys::set_attributes(file.as_fd(), read_only).during(|| format!("make {name} read-only"))?;
        }
        attach(&file, target(root, Path::new(name), Kind::File)?.as_fd(), name)?;
    }
    let flags =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mount = new_mount("proc", &[], flags).during(|| "mount proc on /proc".into())?;
    attach(&mount, proc.as_fd(), "/proc")?;
    mount_sys(root, process.security)?;
    devices::make_all(root, process, nodes)?;
    if process.security == Security::Sandbox {
        confine(root)?;
    }
    for (mount, source) in sources {
        source.attach(root, &mount.target)?;
    }
    Ok(())
}

/// A source that no later mount can cover any more.
enum Opened {
    /// The mount, not yet attached.
    Tree(OwnedFd),
    Tmpfs {
        size_bytes: Option<u64>,
        mode: Option<u32>,
        read_only: bool,
    },
}

impl Opened {
    fn new(source: &MountSource, security: Security) -> Result<Self, Failure> {
        match source {
            MountSource::Bind { path, read_only } => {
                let tree = clone_tree(path)?;
                let mut attributes = MountAttrFlags::empty();
                attributes.set(MountAttrFlags::MOUNT_ATTR_RDONLY, *read_only);
                // A step of root's may make device files there.
                attributes.set(MountAttrFlags::MOUNT_ATTR_NODEV, security == Security::Sandbox);
                let action = || format!("set the attributes of the mount of {}", path.display());
                sys::set_attributes(tree.as_fd(), attributes).during(action)?;
                Ok(Self::Tree(tree))
            }
            &MountSource::Tmpfs { size_bytes, mode, read_only } => Ok(Self::Tmpfs { size_bytes, mode, read_only }),
        }
    }

    fn attach(self, root: BorrowedFd<'_>, place: &Path) -> Result<(), Failure> {
        let name = place.display().to_string();
        let looking = || format!("look at {name}");
        match self {
            Self::Tree(tree) => {
                let kind = kind_of_mode(rustix::fs::fstat(&tree).during(looking)?.st_mode);
                attach(&tree, target(root, place, kind)?.as_fd(), &name)
            }
            Self::Tmpfs { size_bytes, mode, read_only } => {
                let point = target(root, place, Kind::Shared)?;
                let covered = rustix::fs::fstat(&point).during(looking)?.st_mode & 0o7777;
                let mode = format!("{:o}", mode.unwrap_or(covered));
                let size = size_bytes.map(|size| size.to_string());
                let mut options = vec![("mode", mode.as_str())];
                options.extend(size.as_deref().map(|size| ("size", size)));
                let mut flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
                flags.set(MountAttrFlags::MOUNT_ATTR_RDONLY, read_only);
                let tree = new_mount("tmpfs", &options, flags).during(|| "make a tmpfs".into())?;
                attach(&tree, point.as_fd(), &name)
            }
        }
    }
}

/// A new file system that is not attached anywhere yet.
pub(super) fn new_mount(kind: &str, options: &[(&str, &str)], flags: MountAttrFlags) -> Result<OwnedFd, Errno> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        fsconfig_set_string(context.as_fd(), *key, *value)?;
    }
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags)
}

/// A second mount of what is at `path`, with all mounts below it.
pub(super) fn clone_tree(path: &Path) -> Result<OwnedFd, Failure> {
    clone_at(CWD, path).during(|| format!("open the mount source {}", path.display()))
}

pub(super) fn clone_at(directory: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(directory, path, flags)
}

/// Attaches a mount to a target that was found inside the root.
pub(super) fn attach(mount: &OwnedFd, target: BorrowedFd<'_>, name: &str) -> Result<(), Failure> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount.as_fd(), c"", target, c"", flags).during(|| format!("mount on {name}"))
}

/// Finds a mount point. One below an earlier mount may still be missing, and is made there.
pub(super) fn target(root: BorrowedFd<'_>, path: &Path, kind: Kind) -> Result<OwnedFd, Failure> {
    let action = || format!("find the mount point {}", path.display());
    let found = match root::find(root, path) {
        Err(Errno::NOENT) => {
            let mut resolved = stubs::resolve(root, path)?;
            let last = resolved.missing.len();
            for (position, name) in (1..).zip(&resolved.missing) {
                let kind = if position == last { kind } else { Kind::Directory };
                let parent = root::find_with(root, &resolved.existing, OFlags::DIRECTORY).during(action)?;
                stubs::make_at(parent.as_fd(), name, kind)
                    .during(|| format!("make the mount point {}", path.display()))?;
                resolved.existing.push(name);
            }
            root::find(root, &resolved.existing).during(action)?
        }
        other => other.during(action)?,
    };
    let is = kind_of_mode(rustix::fs::fstat(&found).during(action)?.st_mode);
    match (kind, is) {
        (Kind::Directory | Kind::Shared, Kind::File) => Err(Errno::NOTDIR).during(action),
        (Kind::File, Kind::Directory | Kind::Shared) => Err(Errno::ISDIR).during(action),
        _ => Ok(found),
    }
}

/// One of the fixed directories, which must not be a link: what is inside would then be found by another name.
pub(super) fn built_in(root: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Failure> {
    root::find_with(root, Path::new(name), OFlags::NOFOLLOW | OFlags::DIRECTORY).map_err(|error| Failure {
        action: format!("mount on {name}"),
        cause: match error {
            Errno::NOTDIR | Errno::LOOP => "the image has something else than a directory there".into(),
            other => other.to_string(),
        },
        errno: Some(error.raw_os_error()),
    })
}

/// Mounts of single files in memory that are not attached yet, by their names.
struct Singles<'a> {
    /// Those of /etc.
    files: Vec<(&'a str, OwnedFd)>,
    /// Those of /dev.
    nodes: Vec<(&'static str, OwnedFd)>,
}

impl<'a> Singles<'a> {
    /// Makes `files` with their content, and the device nodes that every step has.
    ///
    /// The kernel clones a file's mount only while it is attached, so this happens on `place` before its own mount
    /// covers it.
    fn make(place: &OwnedFd, files: &[(&'a str, String)]) -> Result<Self, Failure> {
        let tmpfs = new_mount("tmpfs", &[("size", "1m"), ("mode", "755")], MountAttrFlags::MOUNT_ATTR_NOSUID)
            .during(|| "make a tmpfs for /etc/hosts".into())?;
        attach(&tmpfs, place.as_fd(), "/proc")?;
        let mut mounts = Vec::new();
        for (number, (name, content)) in files.iter().enumerate() {
            let action = || format!("write {name} for the step");
            let file = number.to_string();
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            let written = rustix::fs::openat(&tmpfs, &file, flags, Mode::from_raw_mode(0o644)).during(action)?;
            std::io::Write::write_all(&mut std::fs::File::from(written), content.as_bytes()).during(action)?;
            mounts.push((*name, clone_at(tmpfs.as_fd(), Path::new(&file)).during(action)?));
        }
        let nodes = devices::nodes(tmpfs.as_fd())?;
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&tmpfs));
        rustix::mount::unmount(path, UnmountFlags::DETACH).during(|| "let go of the tmpfs for /etc/hosts".into())?;
        Ok(Self { files: mounts, nodes })
    }
}

/// /sys: a new one where this user namespace owns the network namespace, else that of the caller.
fn mount_sys(root: BorrowedFd<'_>, security: Security) -> Result<(), Failure> {
    let place = built_in(root, "/sys")?;
    let mut flags =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    if security == Security::Sandbox {
        flags |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    let mount = match new_mount("sysfs", &[], flags) {
        Err(Errno::PERM) => {
            let tree = clone_tree(Path::new("/sys"))?;
            sys::set_attributes(tree.as_fd(), MountAttrFlags::MOUNT_ATTR_RDONLY)
                .during(|| "make /sys read-only".into())?;
            tree
        }
        other => other.during(|| "mount sysfs on /sys".into())?,
    };
    attach(&mount, place.as_fd(), "/sys")
}

/// Hides and write-protects what Docker does; what this kernel does not have needs no hiding.
fn confine(root: BorrowedFd<'_>) -> Result<(), Failure> {
    for name in READ_ONLY {
        let Some(place) = find_if_there(root, name)? else { continue };
        let action = || format!("make {name} read-only");
        let again = clone_at(place.as_fd(), Path::new("")).during(action)?;
        sys::set_attributes(again.as_fd(), MountAttrFlags::MOUNT_ATTR_RDONLY).during(action)?;
        attach(&again, place.as_fd(), name)?;
    }
    let null = root::find(root, Path::new("/dev/null")).during(|| "find /dev/null".into())?;
    for name in masked() {
        let Some(place) = find_if_there(root, &name)? else { continue };
        let action = || format!("hide {name}");
        let mask = match kind_of_mode(rustix::fs::fstat(&place).during(action)?.st_mode) {
            Kind::Directory | Kind::Shared => {
                new_mount("tmpfs", &[("size", "0"), ("nr_inodes", "1")], MountAttrFlags::MOUNT_ATTR_RDONLY)
                    .during(action)?
            }
            Kind::File => clone_at(null.as_fd(), Path::new("")).during(action)?,
        };
        attach(&mask, place.as_fd(), &name)?;
    }
    Ok(())
}

/// What is hidden on this machine.
pub(super) fn masked() -> impl Iterator<Item = String> {
    MASKED.iter().map(|name| (*name).to_owned()).chain(thermal_counters())
}

/// Per processor, they tell what others on the machine do:
/// https://github.com/moby/moby/security/advisories/GHSA-6fw5-f8r9-fgfm
fn thermal_counters() -> Vec<String> {
    let Ok(processors) = std::fs::read_dir("/sys/devices/system/cpu") else { return Vec::new() };
    let counters = processors.flatten().map(|processor| processor.path().join("thermal_throttle"));
    counters.filter(|path| path.is_dir()).map(|path| path.display().to_string()).collect()
}

fn find_if_there(root: BorrowedFd<'_>, name: &str) -> Result<Option<OwnedFd>, Failure> {
    match root::find(root, Path::new(name)) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error).during(|| format!("find {name}")),
    }
}
