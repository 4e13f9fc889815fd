//! An upper that another server still holds: one that is about to end, or one that nobody can reach any more.
//!
//! Invariant: two servers never write one upper. A server ends at another's request only where no other process shares
//! its mount namespace, so that its mount can be seen by nobody but itself: what a rootless `buildah unshare` leaves
//! behind that mounted and went away. It would live for ever, because it keeps its own namespace alive. Only the server
//! itself can tell: the next one is in another user namespace, from which it may not look.

use std::{fs, os::fd::OwnedFd, time::Duration};

use anyhow::Context as _;
use layerfs::OpenError;
use rustix::{
    fs::{AtFlags, StatxFlags},
    process::{Pid, Signal},
};

use crate::background::CHILD;

/// How long a server may take to end after its mount: a slow disk, and much that was written.
const PATIENCE_MS: u64 = 10_000;
const STEP_MS: u64 = 10;

/// Opens an upper with this work directory, as soon as nobody else has it.
pub(crate) fn retry<T>(work: &OwnedFd, open: impl Fn() -> anyhow::Result<T>) -> anyhow::Result<T> {
    for step in 0..PATIENCE_MS / STEP_MS {
        match open() {
            Err(error) if is_in_use(&error) => {}
            other => return other,
        }
        if step == 0
            && let Some(server) = holder(work).filter(|server| serves_in_background(*server))
        {
            // One of another user is left alone, and waited for like any other.
            _ = rustix::process::kill_process(server, Signal::USR1);
        }
        std::thread::sleep(Duration::from_millis(STEP_MS));
    }
    let server = holder(work).map_or_else(|| "another server".into(), |pid| format!("process {pid}"));
    open().with_context(|| format!("the upper directory is mounted elsewhere, by {server}"))
}

fn is_in_use(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(OpenError::InUse))
}

/// Who holds the lock of a work directory: <https://man7.org/linux/man-pages/man5/proc_locks.5.html>.
fn holder(work: &OwnedFd) -> Option<Pid> {
    let stat = rustix::fs::statat(work, "nacre", AtFlags::SYMLINK_NOFOLLOW).ok()?;
    // Where a file system shows devices of its own (btrfs), the list has that of the mount.
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mount = rustix::fs::statx(work, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).ok();
    let device = mount.and_then(|mount| device_of(&mounts, mount.stx_mnt_id));
    let (major, minor) = device.unwrap_or((rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev)));
    let file = format!("{major:02x}:{minor:02x}:{}", stat.st_ino);
    let locks = fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| locker(line, &file)).and_then(Pid::from_raw)
}

/// The device of a mount: <https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html>.
fn device_of(mounts: &str, id: u64) -> Option<(u32, u32)> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let is_it = fields.next()?.parse() == Ok(id);
        let (major, minor) = fields.nth(1).filter(|_| is_it)?.split_once(':')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    })
}

fn locker(line: &str, file: &str) -> Option<i32> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    match fields[..] {
        [_, "FLOCK", _, "WRITE", process, locked, ..] if locked == file => process.parse().ok(),
        _ => None,
    }
}

/// Whether a process is one of ours that understands the question; the signal would end any other.
fn serves_in_background(process: Pid) -> bool {
    let words = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    words.split(|byte| *byte == 0).nth(1) == Some(CHILD.as_bytes())
}

/// Whether no other process is in the mount namespace of this one.
pub(crate) fn is_alone() -> bool {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
    let (Some(own), Ok(processes)) = (namespace("self"), fs::read_dir("/proc")) else { return false };
    let this = std::process::id().to_string();
    let mut names = processes.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    // Those that we may not look at are of other user namespaces, which have mount namespaces of their own.
    let shares = |name: &str| namespace(name).is_some_and(|other| other == own);
    !names.any(|name| name != this && name.bytes().all(|byte| byte.is_ascii_digit()) && shares(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_of_a_mount_is_that_of_its_line() {
        let mounts = "21 1 254:0 / / rw - ext4 /dev/vda rw\n210 21 0:44 /sub /mnt rw - btrfs /dev/vdb rw\n";
        assert_eq!(device_of(mounts, 210), Some((0, 44)));
        assert_eq!(device_of(mounts, 2), None);
        assert_eq!(device_of("210\n210 x y\n", 210), None);
    }

    #[test]
    fn the_process_that_holds_a_lock_is_found_by_the_file() {
        let line = "3: FLOCK  ADVISORY  WRITE 4711 fe:00:1234 0 EOF";
        assert_eq!(locker(line, "fe:00:1234"), Some(4711));
        assert_eq!(locker(line, "fe:00:123"), None);
        assert_eq!(locker("3: -> FLOCK  ADVISORY  WRITE 4711 fe:00:1234 0 EOF", "fe:00:1234"), None);
        assert_eq!(locker(&line.replace("FLOCK", "POSIX"), "fe:00:1234"), None);
    }
}
