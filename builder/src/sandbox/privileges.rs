//! Giving up power: capabilities, the seccomp filter, groups and user.
//!
//! Invariant: after `drop_to`, a program run as root has exactly Docker's default capabilities and any other user none,
//! and no program can gain one outside that set. As with `docker build`, no-new-privileges is *not* set: su, sudo and
//! other setuid programs work.

use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::{During as _, Failure, Process, Security, User, seccomp};
use crate::sys;

/// Docker's default set: https://github.com/moby/profiles and `docker run --help`, "Runtime privilege and
/// capabilities".
pub(super) const DOCKER_DEFAULT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::AUDIT_WRITE)
    .union(CapabilitySet::SETFCAP);

/// The kernel has room for 64, and refuses a number it does not know with EINVAL.
const MOST_CAPABILITIES: u32 = 64;

/// Makes this process what `process` asks for. The filter comes first: without no-new-privileges it needs
/// CAP_SYS_ADMIN.
pub(super) fn drop_to(process: &Process) -> Result<(), Failure> {
    if process.security == Security::Sandbox {
        seccomp::install()?;
        drop_bounding_set()?;
    }
    become_user(&process.user)?;
    if process.security == Security::Insecure {
        return Ok(());
    }
    let kept = if process.user.uid == 0 { DOCKER_DEFAULT } else { CapabilitySet::empty() };
    let sets = rustix::thread::capabilities(None).during(|| "read the capabilities".into())?;
    let kept = kept & sets.permitted;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).during(|| "drop capabilities".into())
}

fn drop_bounding_set() -> Result<(), Failure> {
    for number in 0..MOST_CAPABILITIES {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if DOCKER_DEFAULT.contains(capability) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error).during(|| format!("drop capability {number}")),
        }
    }
    rustix::thread::clear_ambient_capability_set().during(|| "clear the ambient capabilities".into())
}

fn become_user(user: &User) -> Result<(), Failure> {
    let groups: Vec<Gid> = user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    match rustix::thread::set_thread_groups(&groups) {
        // With a single mapped id the kernel forbids setgroups for good, and there is no group to drop or to add.
        Err(Errno::PERM) if groups.is_empty() && setgroups_is_denied() => {}
        other => other.during(|| format!("set the supplementary groups {:?}", user.groups))?,
    }
    let gid = Gid::from_raw(user.gid);
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(|e| unmapped(e, "group", user.gid))?;
    let uid = Uid::from_raw(user.uid);
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(|e| unmapped(e, "user", user.uid))
}

fn setgroups_is_denied() -> bool {
    std::fs::read_to_string("/proc/self/setgroups").is_ok_and(|text| text.trim() == "deny")
}

fn unmapped(error: Errno, what: &str, id: u32) -> Failure {
    let cause = match error {
        Errno::INVAL => "this id is not mapped in the user namespace (see /etc/subuid and /etc/subgid)".into(),
        other => other.to_string(),
    };
    Failure { action: format!("become {what} {id}"), cause, errno: Some(error.raw_os_error()) }
}

/// Runs `sys::close_on_exec_from` on all but the standard streams: nothing of ours reaches the program.
pub(super) fn keep_only_standard_streams() -> Result<(), Failure> {
    sys::close_on_exec_from(3).during(|| "close all descriptors but the standard streams".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_set_is_the_number_that_docker_shows() {
        assert_eq!(DOCKER_DEFAULT.bits(), 0xa804_25fb);
    }
}
