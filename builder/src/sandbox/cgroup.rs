//! A control group for one step, where the host lets us make one: each controller in version 2 or 1, as it is mounted.
//!
//! Invariant: every limit that was asked for is in force before the step runs, or there is an error that names the
//! file; the groups are removed after the step. A step without limits makes no group. What a limit is as files is
//! `cgroup_files.rs`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::process::{Pid, Signal};

use super::cgroup_files::{Setting, Version, settings};
use super::{During as _, Failure, Limits};

/// The groups of one step: one with version 2, one a controller with version 1.
#[derive(Debug, Default)]
pub(super) struct Cgroup {
    /// Made by us, in this order; the last of each hierarchy holds the step.
    made: Vec<PathBuf>,
    /// Those that hold the step.
    leaves: Vec<PathBuf>,
}

/// One mounted hierarchy.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    version: Version,
    /// Those of version 1; version 2 says it in a file.
    controllers: Vec<String>,
    /// Its top as we see it.
    top: PathBuf,
    /// Our own group.
    own: PathBuf,
}

impl Cgroup {
    /// Makes the groups that `limits` need; none for none.
    pub(super) fn make(limits: &Limits) -> Result<Option<Self>, Failure> {
        if *limits == Limits::default() {
            return Ok(None);
        }
        let read = |file: &str| fs::read_to_string(file).during(|| format!("read {file}"));
        let hierarchies = hierarchies(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?);
        let name = format!("nacre-{}", std::process::id());
        let mut group = Cgroup::default();
        match group.make_all(limits, &hierarchies, &name) {
            Ok(()) => Ok(Some(group)),
            Err(failure) => {
                // The failure that brought us here is the one to tell.
                _ = group.remove();
                Err(failure)
            }
        }
    }

    /// The groups that an OCI runtime made for a container, wherever runtimes make them: below our own group, at the
    /// top, or below the one that was asked for.
    pub(super) fn of_runtime(limits: &Limits, id: &str) -> Option<Self> {
        let read = |file: &str| fs::read_to_string(file).ok();
        let parent = limits.parent.as_deref().unwrap_or_default().trim_start_matches('/');
        let places = hierarchies(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?)
            .into_iter()
            .flat_map(|hierarchy| [hierarchy.own.join(parent).join(id), hierarchy.top.join(parent).join(id)]);
        Some(Self { made: Vec::new(), leaves: places.filter(|place| place.is_dir()).collect() })
    }

    fn make_all(&mut self, limits: &Limits, hierarchies: &[Hierarchy], name: &str) -> Result<(), Failure> {
        let settings = settings(limits)?;
        let unified = hierarchies.iter().find(|hierarchy| hierarchy.version == Version::Two);
        let mut of_unified = Vec::new();
        for setting in &settings {
            let controller = setting.controller;
            let is_there = |hierarchy: &&Hierarchy| hierarchy.controllers.iter().any(|name| name == controller);
            if let Some(hierarchy) = hierarchies.iter().find(is_there) {
                let parent = self.parent(hierarchy, limits)?;
                let directory = self.directory(&parent, name)?;
                set(setting, Version::One, &directory)?;
            } else if unified.is_some_and(|hierarchy| has_word(&hierarchy.top.join("cgroup.controllers"), controller)) {
                of_unified.push(setting);
            } else {
                let cause = "this host has no such cgroup controller; leave the limit out, or boot with it enabled";
                return Err(Failure::new(format!("limit the step with the cgroup controller {controller}"), cause));
            }
        }
        match unified {
            Some(hierarchy) if !of_unified.is_empty() => self.make_unified(hierarchy, &of_unified, limits, name),
            _ => Ok(()),
        }
    }

    /// A group with processes cannot have controllers for groups below it, so that ours is beside our own group where
    /// it cannot be below. <https://docs.kernel.org/admin-guide/cgroup-v2.html#no-internal-process-constraint>
    fn make_unified(
        &mut self,
        hierarchy: &Hierarchy,
        settings: &[&Setting],
        limits: &Limits,
        name: &str,
    ) -> Result<(), Failure> {
        let mut places = vec![self.parent(hierarchy, limits)?];
        if limits.parent.is_none() && hierarchy.own != hierarchy.top {
            places.extend(hierarchy.own.parent().map(Path::to_owned));
        }
        let mut first = None;
        for place in places {
            let made = settings.iter().try_for_each(|setting| enable(&place, setting.controller));
            match made.and_then(|()| self.directory(&place, name)) {
                Ok(directory) => return settings.iter().try_for_each(|setting| set(setting, Version::Two, &directory)),
                Err(failure) => first = first.or(Some(failure)),
            }
        }
        Err(first.expect("there was a place to try"))
    }

    /// The group below which ours comes to lie; one that was asked for is made.
    fn parent(&mut self, hierarchy: &Hierarchy, limits: &Limits) -> Result<PathBuf, Failure> {
        let Some(parent) = &limits.parent else { return Ok(hierarchy.own.clone()) };
        let mut path = if parent.starts_with('/') { hierarchy.top.clone() } else { hierarchy.own.clone() };
        for name in parent.split('/').filter(|name| !name.is_empty() && *name != ".") {
            if name == ".." {
                let cause = "it must not lead up with `..`";
                return Err(Failure::new(format!("use the parent cgroup {parent}"), cause));
            }
            path = path.join(name);
            self.make_directory(&path)?;
        }
        Ok(path)
    }

    fn directory(&mut self, parent: &Path, name: &str) -> Result<PathBuf, Failure> {
        let directory = parent.join(name);
        self.make_directory(&directory)?;
        if !self.leaves.contains(&directory) {
            self.leaves.push(directory.clone());
        }
        Ok(directory)
    }

    fn make_directory(&mut self, path: &Path) -> Result<(), Failure> {
        match fs::create_dir(path) {
            Ok(()) => {
                self.made.push(path.to_owned());
                inherit_cpuset(path)
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(denied(&error)).during(|| format!("make the cgroup {}", path.display())),
        }
    }

    /// Puts a process into the groups, and with it all it will start.
    pub(super) fn add(&self, pid: Pid) -> Result<(), Failure> {
        self.leaves.iter().try_for_each(|directory| {
            let file = directory.join("cgroup.procs");
            fs::write(&file, pid.as_raw_nonzero().to_string())
                .map_err(|error| denied(&error))
                .during(|| format!("write to {}", file.display()))
        })
    }

    /// Whether the kernel killed a process of the step for its memory.
    pub(super) fn is_out_of_memory(&self) -> bool {
        let has_killed = |text: String| {
            text.lines().filter_map(|line| line.strip_prefix("oom_kill ")).any(|count| count.trim() != "0")
        };
        let files = self.leaves.iter().flat_map(|leaf| [leaf.join("memory.events"), leaf.join("memory.oom_control")]);
        files.filter_map(|file| fs::read_to_string(file).ok()).any(has_killed)
    }

    /// Removes the groups; their processes have ended.
    pub(super) fn remove(self) -> Result<(), Failure> {
        self.made.iter().rev().try_for_each(|directory| {
            // A group keeps its last processes for a moment after they were reaped (EBUSY). Reading its list waits for
            // the lock they hold; the number of tries only bounds a kernel that never lets go.
            for _ in 0..1000 {
                match fs::remove_dir(directory) {
                    Err(error) if error.raw_os_error() != Some(Errno::BUSY.raw_os_error()) => {
                        return Err(error).during(|| format!("remove the cgroup {}", directory.display()));
                    }
                    Ok(()) => return Ok(()),
                    // A parent that we made may be in use by another step by now, which leaves it to the last.
                    Err(_) if !self.leaves.contains(directory) => return Ok(()),
                    Err(_) => kill_all(directory),
                }
            }
            Err(Errno::BUSY).during(|| format!("remove the cgroup {}", directory.display()))
        })
    }
}

/// Writes one limit.
fn set(setting: &Setting, version: Version, directory: &Path) -> Result<(), Failure> {
    for write in setting.files(version) {
        let file = directory.join(write.name);
        if !file.exists() {
            if write.is_optional {
                continue;
            }
            let cause = "this kernel does not have that file (swap limits need swap accounting: swapaccount=1)";
            return Err(Failure::new(format!("write {} to {}", write.value, file.display()), cause));
        }
        fs::write(&file, &write.value)
            .map_err(|error| denied(&error))
            .during(|| format!("write {} to {}", write.value, file.display()))?;
    }
    Ok(())
}

/// Lets groups below `place` use a controller.
fn enable(place: &Path, controller: &str) -> Result<(), Failure> {
    let control = place.join("cgroup.subtree_control");
    if has_word(&control, controller) {
        return Ok(());
    }
    fs::write(&control, format!("+{controller}"))
        .map_err(|error| denied(&error))
        .during(|| format!("enable the cgroup controller {controller} in {}", control.display()))
}

fn has_word(file: &Path, word: &str) -> bool {
    fs::read_to_string(file).is_ok_and(|text| text.split_whitespace().any(|other| other == word))
}

/// In version 1 a new group has no processors and no memory nodes, and takes no process until it has both. The files of
/// version 2 are empty as well, and mean those of the group above.
fn inherit_cpuset(directory: &Path) -> Result<(), Failure> {
    let Some(parent) = directory.parent().filter(|_| directory.join("cpuset.effective_cpus").exists()) else {
        return Ok(());
    };
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let file = directory.join(name);
        let value = fs::read_to_string(parent.join(name)).during(|| format!("read {name} of {}", parent.display()))?;
        fs::write(&file, value.trim()).during(|| format!("write {} to {}", value.trim(), file.display()))?;
    }
    Ok(())
}

/// The next step for a person whom the host does not let make groups.
fn denied(error: &io::Error) -> io::Error {
    let is_denied = matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
        || error.raw_os_error() == Some(Errno::BUSY.raw_os_error());
    if !is_denied {
        return error.raw_os_error().map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error);
    }
    io::Error::other(format!(
        "{error} (limits need a cgroup that is ours: run as root, or `systemd-run --user --scope -p Delegate=yes nacre ...`, \
         or leave the limit out)"
    ))
}

/// Kills what a group still holds, and lets it run to its end.
fn kill_all(directory: &Path) {
    let list = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    for pid in list.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)) {
        _ = rustix::process::kill_process(pid, Signal::KILL);
    }
    std::thread::yield_now();
}

/// The hierarchies that are mounted, and where we are in each. Mounts are
/// `id parent device root target options tags... - type source super-options`, groups `number:controllers:path`.
/// <https://man7.org/linux/man-pages/man7/cgroups.7.html>
fn hierarchies(mountinfo: &str, groups: &str) -> Vec<Hierarchy> {
    mountinfo.lines().filter_map(|line| hierarchy(line, groups)).collect()
}

fn hierarchy(line: &str, groups: &str) -> Option<Hierarchy> {
    let (mount, kind) = line.split_once(" - ")?;
    let mut kind = kind.split(' ');
    let version = match kind.next()? {
        "cgroup" => Version::One,
        "cgroup2" => Version::Two,
        _ => return None,
    };
    let options: Vec<&str> = kind.nth(1)?.split(',').collect();
    let mut mount = mount.split(' ').skip(3);
    let (root, top) = (mount.next()?, PathBuf::from(mount.next()?));
    let mut group = None;
    for fields in groups.lines().map(|line| line.splitn(3, ':').collect::<Vec<_>>()) {
        let [number, controllers, path] = fields[..] else { continue };
        let is_this = match version {
            Version::Two => number == "0" && controllers.is_empty(),
            Version::One => !controllers.is_empty() && controllers.split(',').all(|name| options.contains(&name)),
        };
        if is_this {
            group = Some((controllers, path));
        }
    }
    let (controllers, path) = group?;
    // Of a group that does not lie below what is mounted here, as in a container, the top is all that we see.
    let below = Path::new(path).strip_prefix(root).ok().filter(|below| !below.starts_with(".."));
    let own = below.map(|below| top.join(below)).filter(|own| own.exists()).unwrap_or_else(|| top.clone());
    let controllers = controllers.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    Some(Hierarchy { version, controllers, top, own })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found_with_our_place_in_them() {
        let mountinfo = "30 24 0:26 / / rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
            31 24 0:27 /docker/x /usr rw - cgroup cgroup rw,memory\n\
            32 24 0:28 / /usr rw - cgroup2 cgroup2 rw,nsdelegate\n33 24 0:29 / /proc rw - proc proc rw\n";
        let groups = "4:memory:/docker/x/bin\n3:cpu,cpuacct:/usr\n0::/../lib\n";
        let found = hierarchies(mountinfo, groups);
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let one = |version, controllers: &[&str], top: &str, own: &str| Hierarchy {
            version,
            controllers: names(controllers),
            top: top.into(),
            own: own.into(),
        };
        assert_eq!(
            found,
            [
                one(Version::One, &["cpu", "cpuacct"], "/", "/usr"),
                one(Version::One, &["memory"], "/usr", "/usr/bin"),
                one(Version::Two, &[], "/usr", "/usr"),
            ]
        );
    }

    #[test]
    fn a_parent_must_not_lead_up() {
        let hierarchy = Hierarchy { version: Version::Two, controllers: vec![], top: "/n".into(), own: "/n".into() };
        let limits = Limits { parent: Some("../x".into()), ..Limits::default() };
        let failure = Cgroup::default().parent(&hierarchy, &limits).expect_err("refused");
        assert!(failure.to_string().contains("../x"), "{failure}");
    }
}
