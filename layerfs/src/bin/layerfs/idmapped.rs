//! Whether layers lie on idmapped mounts.
//!
//! Invariant: ids are translated once. containers/storage hands over layers on idmapped mounts, which show the ids of
//! the container's user namespace already, together with an upper that has these ids on the disk, and still asks for
//! `uidmapping`. It changes no mount.

use std::os::fd::OwnedFd;

use anyhow::{Context as _, bail};
use rustix::fs::{AtFlags, StatxFlags};

/// Whether all of these directories, or none, are on idmapped mounts. A mixture has no right answer.
pub(crate) fn are_idmapped(directories: &[OwnedFd]) -> anyhow::Result<bool> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    let mut idmapped = 0;
    for directory in directories {
        let found = rustix::fs::statx(directory, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID);
        let mount = found.context("cannot find the mount of a lower directory")?.stx_mnt_id;
        idmapped += usize::from(mounts.lines().any(|line| is_idmapped(line, mount)));
    }
    match idmapped {
        0 => Ok(false),
        all if all == directories.len() => Ok(true),
        some => bail!("{some} of {} lower directories are on idmapped mounts; all or none can be", directories.len()),
    }
}

/// Whether a line is about this mount, and has its flag among the options of the mount, the sixth field:
/// <https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html>.
fn is_idmapped(line: &str, mount: u64) -> bool {
    let mut fields = line.split(' ');
    fields.next().and_then(|field| field.parse().ok()) == Some(mount)
        && fields.nth(4).is_some_and(|options| options.split(',').any(|option| option == "idmapped"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idmapped_mount_is_known_by_its_own_options() {
        let line = "46 44 254:0 /idmapped /mnt rw,noatime,idmapped shared:1 - ext4 /dev/vda rw";
        assert!(is_idmapped(line, 46));
        assert!(!is_idmapped(line, 44));
        assert!(!is_idmapped(&line.replace(",idmapped", ""), 46));
        assert!(!is_idmapped("", 0));
    }
}
