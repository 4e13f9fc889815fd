//! What the caller finds without any privilege: devices, programs, interpreters, and the file system of the store.
//!
//! Invariant: a file that a policy of the host is read from explains a finding, and never is one.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use registry_client::Platform;
use rustix::fs::{Mode, OFlags, XattrFlags};

use super::Finding;
use crate::machine;

/// Architectures that images are made for.
const ARCHITECTURES: [&str; 9] = ["amd64", "arm64", "arm", "386", "ppc64le", "s390x", "riscv64", "loong64", "mips64le"];

/// Less than this, and a build of any size ends in "no space left on device".
const LITTLE_SPACE_BYTES: u64 = 1 << 30;

/// Looks at devices, programs in `path`, and the directory of a store, which must exist.
pub fn outside(store: &Path, path: &[PathBuf]) -> Vec<Finding> {
    let mut findings = vec![device(), kernel()];
    if !rustix::process::geteuid().is_root() {
        findings.push(mappers());
        findings.push(fusermount(path));
    }
    findings.extend([foreign(), runtimes(path)]);
    findings.extend(file_system(store));
    findings
}

fn device() -> Finding {
    match File::options().read(true).write(true).open("/dev/fuse") {
        Ok(_) => Finding::works("/dev/fuse", "it can be opened"),
        Err(error) => {
            let next = "as root: modprobe fuse, chmod 666 /dev/fuse; in a container: docker run --device /dev/fuse";
            Finding::missing("/dev/fuse", error.to_string(), "nothing can be mounted, and no RUN step works", next)
        }
    }
}

/// Versions are shown because people ask for them, and decide nothing.
fn kernel() -> Finding {
    let uname = rustix::system::uname();
    let version = |path| if Path::new(path).exists() { "2" } else { "1" };
    let cgroups = version("/sys/fs/cgroup/cgroup.controllers");
    let policies: Vec<String> = [
        "kernel/unprivileged_userns_clone",
        "kernel/apparmor_restrict_unprivileged_userns",
        "user/max_user_namespaces",
    ]
    .iter()
    .filter_map(|name| Some((name, fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?)))
    .map(|(name, value)| format!("{}={}", name.replace('/', "."), value.trim()))
    .collect();
    let release = uname.release().to_string_lossy();
    Finding::works("kernel", format!("Linux {release}, cgroups version {cgroups}, {}", policies.join(", ")))
}

fn mappers() -> Finding {
    use std::os::unix::fs::MetadataExt;
    const WHAT: &str = "newuidmap, newgidmap";
    const COST: &str = "an ordinary user cannot build or run";
    for program in ["newuidmap", "newgidmap"] {
        let Some(file) = ["/usr/bin", "/bin", "/usr/local/bin", "/run/wrappers/bin"]
            .iter()
            .find_map(|directory| fs::metadata(Path::new(directory).join(program)).ok())
        else {
            let next = "install the package uidmap (Debian, Ubuntu) or shadow-utils (Fedora)";
            return Finding::missing(WHAT, format!("{program} is not there"), COST, next);
        };
        if file.mode() & 0o4000 == 0 && file.uid() == 0 {
            // File capabilities serve as well, and show when the ids are mapped.
            return Finding::works(WHAT, "they are there, without set-user-id bit");
        }
    }
    Finding::works(WHAT, "they are there")
}

fn fusermount(path: &[PathBuf]) -> Finding {
    const WHAT: &str = "fusermount3";
    if find_program(path, WHAT).is_none() {
        let next = "install the package fuse3";
        return Finding::limited(WHAT, "it is not there", "`nacre mount` cannot work; builds do", next);
    }
    let settings = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    if settings.lines().any(|line| line.trim() == "user_allow_other") {
        return Finding::works(WHAT, "other users can use a mount");
    }
    let next = "as root: add the line user_allow_other to /etc/fuse.conf";
    Finding::limited(WHAT, "other users cannot use a mount of `nacre mount`", "runtimes cannot run on one", next)
}

fn foreign() -> Finding {
    const WHAT: &str = "foreign architectures";
    let here = Platform::host();
    let runs = |architecture: &&str| machine::check(&Platform::new("linux", architecture, None), &here).is_ok();
    let (can, cannot): (Vec<&str>, Vec<&str>) = ARCHITECTURES.iter().partition(|architecture| runs(architecture));
    if cannot.is_empty() {
        return Finding::works(WHAT, "programs for all of them run");
    }
    let found = format!("programs run for {}, not for {}", can.join(", "), cannot.join(", "));
    let next = "as root: install qemu-user-static and binfmt-support, or build on such a machine";
    Finding::limited(WHAT, found, "RUN steps for those platforms are errors", next)
}

fn runtimes(path: &[PathBuf]) -> Finding {
    const WHAT: &str = "OCI runtimes";
    let version = |name: &str| {
        let program = find_program(path, name)?;
        let output = Command::new(&program).arg("--version").stdin(Stdio::null()).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout);
        Some(text.lines().next().unwrap_or(name).to_owned())
    };
    let found: Vec<String> = ["crun", "runc"].into_iter().filter_map(version).collect();
    if found.is_empty() {
        let next = "install the package crun or runc";
        return Finding::limited(WHAT, "neither crun nor runc is there", "--oci-runtime has nothing to take", next);
    }
    Finding::works(WHAT, found.join("; "))
}

fn find_program(path: &[PathBuf], name: &str) -> Option<PathBuf> {
    path.iter().map(|directory| directory.join(name)).find(|program| program.is_file())
}

/// The file system of the store: what it can hold, and how much.
fn file_system(store: &Path) -> Vec<Finding> {
    const WHAT: &str = "store";
    let trial = match tempfile::Builder::new().prefix(".doctor").tempdir_in(store) {
        Ok(trial) => trial,
        Err(error) => {
            let found = format!("{} cannot be written: {error}", store.display());
            return vec![Finding::missing(WHAT, found, "nothing works", "name another place with --root")];
        }
    };
    let mut findings = vec![space(store), xattrs(&trial.path().join("xattrs"))];
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    findings.push(match rustix::fs::open(trial.path(), flags, Mode::RUSR | Mode::WUSR) {
        Ok(_) => Finding::works("store: O_TMPFILE", "files can be made without a name"),
        Err(error) => Finding::limited(
            "store: O_TMPFILE",
            error.to_string(),
            "a file of the image that changes is made under a temporary name first: slower",
            "put the store on ext4, xfs, btrfs or tmpfs",
        ),
    });
    findings.push(reflink(trial.path()));
    findings
}

fn space(store: &Path) -> Finding {
    const WHAT: &str = "store: space";
    match rustix::fs::statvfs(store) {
        Ok(stat) => {
            let bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
            let found = format!("{} MiB and {} files are free in {}", bytes >> 20, stat.f_favail, store.display());
            if bytes < LITTLE_SPACE_BYTES {
                let next = "`nacre prune` removes what no image needs";
                return Finding::limited(WHAT, found, "larger images do not fit", next);
            }
            Finding::works(WHAT, found)
        }
        Err(error) => Finding::limited(WHAT, error.to_string(), "how much is free cannot be told", "see df"),
    }
}

fn xattrs(file: &Path) -> Finding {
    const WHAT: &str = "store: extended attributes";
    let set =
        fs::write(file, "").and_then(|()| Ok(rustix::fs::setxattr(file, "user.nacre", b"x", XattrFlags::empty())?));
    match set {
        Ok(()) => Finding::works(WHAT, "they can be set"),
        Err(error) => Finding::missing(
            WHAT,
            error.to_string(),
            "replaced directories, hard links and capabilities get lost",
            "put the store on a file system with extended attributes: ext4, xfs, btrfs, tmpfs since Linux 6.6",
        ),
    }
}

fn reflink(directory: &Path) -> Finding {
    const WHAT: &str = "store: reflinks";
    let clone = || {
        fs::write(directory.join("from"), vec![1; 1 << 16])?;
        let (from, to) = (File::open(directory.join("from"))?, File::create(directory.join("to"))?);
        Ok::<_, std::io::Error>(rustix::fs::ioctl_ficlone(&to, &from)?)
    };
    match clone() {
        Ok(()) => Finding::works(WHAT, "copies share their blocks"),
        Err(error) => {
            let cost = "copies of files take time and space";
            Finding::limited(WHAT, error.to_string(), cost, "put the store on btrfs, or xfs with reflink=1")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::State;

    #[test]
    fn a_store_that_is_not_there_is_a_lack_and_trials_leave_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let findings = file_system(&directory.path().join("missing"));
        assert_eq!(findings[0].state, State::Missing);
        let findings = outside(directory.path(), &[PathBuf::from("/nowhere")]);
        assert_eq!(fs::read_dir(directory.path()).expect("readable").count(), 0);
        for finding in findings {
            let is_lack = finding.state != State::Works;
            assert_eq!((finding.cost.is_some(), finding.next.is_some()), (is_lack, is_lack), "{finding:?}");
        }
    }
}
