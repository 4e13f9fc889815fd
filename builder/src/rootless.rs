//! Becoming root of a user namespace, for an ordinary user: from there on, everything is the same code as for root.
//!
//! Invariant: after [`enter`] says `Inside`, the effective user is 0 in a namespace in which it may mount. The mapping
//! is 0 -> the user, 1 and up -> the ranges of /etc/subuid and /etc/subgid, set by newuidmap and newgidmap. The process
//! that was started waits outside and only passes on signals and the exit code. Nothing here reads the environment.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::mount::MountPropagationFlags;
use rustix::pipe::PipeFlags;
use rustix::process::{DumpableBehavior, Gid, Pid, Signal, Uid, WaitOptions};
use rustix::thread::{CapabilitySet, UnshareFlags};

use crate::sys::{self, Forked};

/// What the program wants to be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Also as root, go into a mount namespace of our own, in which mounts end with the program.
    pub private_mounts: bool,
    /// Which ids an ordinary user gets.
    pub mapping: Mapping,
}

/// Which ids exist in the user namespace of an ordinary user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// The user as 0, and the subordinate ids from 1; an error where there are none.
    Ranges,
    /// Only the user, as 0. Files of other owners cannot be made, which breaks most package managers.
    SingleId,
}

/// On which side of the namespace this process goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entered {
    /// Root, possibly of a user namespace: go on with the program.
    Inside(Identity),
    /// The program ran to its end in a child; end with this code.
    Finished(u8),
}

/// Who runs the program, seen from outside its user namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The user that is 0 inside.
    pub uid: u32,
    /// The group that is 0 inside.
    pub gid: u32,
    /// Whether this is a user namespace other than the first one.
    pub in_user_namespace: bool,
}

/// Why the namespace cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("cannot {action}")]
    System {
        /// Verb and object.
        action: String,
        /// Why.
        source: io::Error,
    },
    /// No range for this user. Hint: `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 NAME`.
    #[error("no subordinate ids for user {user} in {file}")]
    NoRange {
        /// Name or number.
        user: String,
        /// /etc/subuid or /etc/subgid.
        file: &'static str,
    },
    /// The program that maps ids is missing. Hint: install the package `uidmap` (Debian) or `shadow-utils`.
    #[error("cannot run {program}, which maps the ids of a user namespace")]
    NoMapper {
        /// newuidmap or newgidmap.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The program that maps ids refused.
    #[error("{program} refused to map the ids {arguments}: {message}")]
    Mapper {
        /// newuidmap or newgidmap.
        program: &'static str,
        /// What it was asked.
        arguments: String,
        /// What it wrote.
        message: String,
    },
    /// The kernel or its policy forbids user namespaces, or root has no CAP_SYS_ADMIN.
    #[error("cannot make a {kind} namespace")]
    Forbidden {
        /// user or mount.
        kind: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl Error {
    /// What the user can do about it, where we know.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::NoRange { user, .. } => {
                Some(format!("as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}"))
            }
            Error::NoMapper { .. } => {
                Some("install newuidmap and newgidmap: package uidmap (Debian, Ubuntu) or shadow-utils (Fedora)".into())
            }
            Error::Forbidden { kind: "user", .. } => Some(
                "allow user namespaces: sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, \
                 kernel.apparmor_restrict_unprivileged_userns; in a container, a seccomp profile that permits unshare"
                    .into(),
            ),
            Error::Forbidden { .. } => Some("run as an ordinary user, or as root with CAP_SYS_ADMIN".into()),
            _ => None,
        }
    }
}

trait During<T> {
    fn during(self, action: &str) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> During<T> for Result<T, E> {
    fn during(self, action: &str) -> Result<T, Error> {
        self.map_err(|error| Error::System { action: action.into(), source: error.into() })
    }
}

/// Makes this process root where it can mount, if it is not yet. Call it before any thread is started.
///
/// For an ordinary user the process forks: the child goes on, `Inside`; the parent returns `Finished` when the child
/// has ended.
pub fn enter(options: Options) -> Result<Entered, Error> {
    if rustix::process::geteuid().is_root() && may_mount()? {
        if options.private_mounts {
            sys::unshare(UnshareFlags::NEWNS).map_err(|source| Error::Forbidden { kind: "mount", source })?;
            leave_the_host_alone()?;
        }
        return Ok(Entered::Inside(identity()?));
    }
    let maps = match options.mapping {
        Mapping::Ranges => Some(Maps::of_this_user()?),
        Mapping::SingleId => None,
    };
    let (ready, ready_writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).during("make a pipe")?;
    let (mapped, mapped_writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).during("make a pipe")?;
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    match sys::fork().during("start a child in a user namespace")? {
        Forked::Child => {
            drop((ready, mapped_writer));
            become_root(maps.is_none().then_some((uid, gid)), ready_writer, &mapped)?;
            Ok(Entered::Inside(identity()?))
        }
        Forked::Parent(child) => {
            drop((ready_writer, mapped));
            let outcome = map(child, maps, &ready, mapped_writer);
            // A child that could not make the namespace says so itself; one that gets no mapping ends in silence.
            let code = wait_for(child)?;
            outcome.map(|()| Entered::Finished(code))
        }
    }
}

/// Whether root here can mount; root of a container without CAP_SYS_ADMIN cannot.
fn may_mount() -> Result<bool, Error> {
    let sets = rustix::thread::capabilities(None).during("read the capabilities")?;
    Ok(sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

/// Mounts made here stay here; unmounting on the host reaches us, so that we pin none of its mounts.
fn leave_the_host_alone() -> Result<(), Error> {
    rustix::mount::mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .during("separate our mounts from those of the host")
}

/// The child: makes the namespace, waits for its mapping (or sets a single id), and becomes 0 in it.
fn become_root(single: Option<(Uid, Gid)>, ready: OwnedFd, mapped: &OwnedFd) -> Result<(), Error> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).during("tie the child to its parent")?;
    sys::unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS)
        .map_err(|source| Error::Forbidden { kind: "user", source })?;
    // Gaining capabilities made us undumpable, so that /proc/PID belongs to root and newuidmap would refuse.
    rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable).during("make the child visible to newuidmap")?;
    if let Some((uid, gid)) = single {
        let write = |file: &str, text: String| std::fs::write(file, text).during(&format!("write {file}"));
        write("/proc/self/uid_map", format!("0 {} 1", uid.as_raw()))?;
        write("/proc/self/setgroups", "deny".into())?;
        write("/proc/self/gid_map", format!("0 {} 1", gid.as_raw()))?;
    }
    rustix::io::write(&ready, b"r").during("tell the parent")?;
    // Also notices a parent that died before the death signal was set. One that lives tells the user what went wrong.
    if rustix::io::read(mapped, &mut [0]).during("wait for the mapping")? != 1 {
        sys::exit_now(1);
    }
    if single.is_none() {
        rustix::thread::set_thread_groups(&[]).during("drop the supplementary groups")?;
    }
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)
        .during("become group 0 of the user namespace")?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)
        .during("become user 0 of the user namespace")?;
    // Changing ids cleared it.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).during("tie the child to its parent")?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable).during("make the child visible in /proc")?;
    leave_the_host_alone()
}

/// The parent: sets the mapping when the child has made its namespace.
fn map(child: Pid, maps: Option<Maps>, ready: &OwnedFd, mapped: OwnedFd) -> Result<(), Error> {
    if rustix::io::read(ready, &mut [0]).during("wait for the child")? != 1 {
        // It could not make the namespace, and reports that itself.
        return Ok(());
    }
    if let Some(maps) = maps {
        maps.apply(child)?;
    }
    // What comes once the program runs is meant for it; before that, and in newuidmap, a signal ends all of it.
    sys::block_all_signals().during("block signals")?;
    rustix::io::write(&mapped, b"m").during("tell the child")?;
    Ok(())
}

/// Waits for the child, passing on signals; gives its exit code, or 128 + n for signal n.
fn wait_for(child: Pid) -> Result<u8, Error> {
    sys::block_all_signals().during("block signals")?;
    loop {
        // Looked at first: the child may have ended before signals were blocked here.
        if let Some((_, status)) =
            rustix::process::waitpid(Some(child), WaitOptions::NOHANG).during("wait for the child")?
        {
            let code = status.exit_status().or_else(|| status.terminating_signal().map(|number| 128 + number));
            return Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1));
        }
        let received = sys::wait_for_signal().during("wait for a signal")?;
        // What the kernel sends to the whole process group of a terminal, the child has got already.
        let is_for_child = received.number != Signal::CHILD.as_raw() && !received.from_kernel;
        if let Some(signal) = Signal::from_named_raw(received.number).filter(|_| is_for_child) {
            _ = rustix::process::kill_process(child, signal);
        }
    }
}

/// Who we are outside, from the mapping of id 0.
pub fn identity() -> Result<Identity, Error> {
    let read = |file: &str| std::fs::read_to_string(file).during(&format!("read {file}"));
    let (uids, gids) = (read("/proc/self/uid_map")?, read("/proc/self/gid_map")?);
    Ok(Identity {
        uid: outside_zero(&uids).unwrap_or(0),
        gid: outside_zero(&gids).unwrap_or(0),
        in_user_namespace: !is_first_namespace(&uids),
    })
}

/// Whether a `uid_map` is that of the machine's own user namespace: it maps every id to itself, and no other can.
pub(crate) fn is_first_namespace(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// The id outside for id 0 inside: a line holds the first id inside, the first outside, and their number.
fn outside_zero(map: &str) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        (fields.next()? == "0").then(|| fields.next()?.parse().ok())?
    })
}

/// Some following ids that belong to the user outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    first: u32,
    count: u32,
}

/// The two mappings to set.
struct Maps {
    uids: Vec<Range>,
    gids: Vec<Range>,
}

impl Maps {
    /// The user's own ids and the subordinate ones.
    fn of_this_user() -> Result<Self, Error> {
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let name = user_name(&passwd, uid);
        let ranges = |file: &'static str, own: u32| {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            let mut ranges = vec![Range { first: own, count: 1 }];
            ranges.extend(ranges_of(&text, name, uid));
            if ranges.len() == 1 {
                return Err(Error::NoRange { user: name.map_or(uid.to_string(), str::to_owned), file });
            }
            Ok(ranges)
        };
        Ok(Self { uids: ranges("/etc/subuid", uid)?, gids: ranges("/etc/subgid", gid)? })
    }

    /// Has both mappings set for `child`, at the same time.
    fn apply(&self, child: Pid) -> Result<(), Error> {
        let uids = Mapper::start("newuidmap", child, &self.uids)?;
        let gids = Mapper::start("newgidmap", child, &self.gids)?;
        let outcome = uids.finish();
        gids.finish().and(outcome)
    }
}

/// newuidmap or newgidmap, running.
struct Mapper {
    program: &'static str,
    arguments: Vec<String>,
    process: std::process::Child,
}

impl Mapper {
    fn start(program: &'static str, child: Pid, ranges: &[Range]) -> Result<Self, Error> {
        let mut inside = 0;
        let mut arguments = vec![child.as_raw_nonzero().to_string()];
        for range in ranges {
            arguments.extend([inside.to_string(), range.first.to_string(), range.count.to_string()]);
            inside += u64::from(range.count);
        }
        // Installed setuid, so it is looked for where the system puts programs, not where the user's PATH leads.
        let directories = ["/usr/bin", "/bin", "/usr/local/bin", "/run/wrappers/bin"];
        let paths = directories.map(|directory| Path::new(directory).join(program));
        let path = paths.iter().find(|path| path.exists()).unwrap_or(&paths[0]);
        let process = Command::new(path)
            .args(&arguments)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| Error::NoMapper { program, source })?;
        Ok(Self { program, arguments, process })
    }

    fn finish(self) -> Result<(), Error> {
        let Self { program, arguments, process } = self;
        let Output { status, stderr, .. } = process.wait_with_output().during(&format!("wait for {program}"))?;
        if status.success() {
            return Ok(());
        }
        let message = String::from_utf8_lossy(&stderr).trim().to_owned();
        Err(Error::Mapper { program, arguments: arguments[1..].join(" "), message })
    }
}

/// The name of user `uid` in the text of /etc/passwd: https://man7.org/linux/man-pages/man5/passwd.5.html
fn user_name(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    })
}

/// The ranges of a user, who may be named or numbered: https://man7.org/linux/man-pages/man5/subuid.5.html
fn ranges_of(text: &str, name: Option<&str>, uid: u32) -> Vec<Range> {
    let mut ranges = Vec::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.trim().split(':').collect();
        let [owner, first, count] = fields[..] else { continue };
        let is_ours = Some(owner) == name || owner.parse() == Ok(uid);
        if let (true, Ok(first), Ok(count)) = (is_ours, first.parse::<u32>(), count.parse::<u32>()) {
            // Twice the same line is common, and the kernel refuses overlapping ranges.
            let is_new = |range: &Range| {
                range.first.saturating_add(range.count) <= first || first.saturating_add(count) <= range.first
            };
            if count > 0 && first.checked_add(count).is_some() && ranges.iter().all(is_new) {
                ranges.push(Range { first, count });
            }
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_name_and_by_number() {
        let text = "alice:100000:65536\n1001:500000:10\nbob:1:2\nalice:100000:65536\nalice:x:y\n\nalice:4294967295:5\n";
        let found = ranges_of(text, Some("alice"), 1001);
        assert_eq!(found, [Range { first: 100_000, count: 65536 }, Range { first: 500_000, count: 10 }]);
        assert_eq!(ranges_of(text, None, 7), []);
    }

    #[test]
    fn outside_identity_is_read_from_the_mapping() {
        assert_eq!(outside_zero("         0       1000          1\n         1     100000      65536\n"), Some(1000));
        assert_eq!(outside_zero("1 5 1\n"), None);
    }

    #[test]
    fn user_name_is_found_by_number() {
        assert_eq!(user_name("root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/:/bin/sh\n", 1000), Some("ann"));
    }
}
