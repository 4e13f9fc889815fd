//! A control group for one step, where the host lets us make one: version 2, or the single hierarchies of version 1.
//!
//! Invariant: every limit that was asked for is in force before the step runs, or there is an error that names the file;
//! the groups are removed after the step. A step without limits makes no group.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::process::{Pid, Signal};

use super::{During as _, Failure, Limits};

/// Where every distribution mounts the groups: https://systemd.io/CGROUP_DELEGATION/
const MOUNT: &str = "/sys/fs/cgroup";

/// The period of a processor quota, in microseconds: the kernel's own default.
const PERIOD_US: u64 = 100_000;

/// The groups of one step: one with version 2, one a controller with version 1.
#[derive(Debug)]
pub(super) struct Cgroup(Vec<PathBuf>);

/// One limit as one file.
struct Setting {
    controller: &'static str,
    file: &'static str,
    value: String,
}

impl Cgroup {
    /// Makes the groups that `limits` need; none for none.
    pub(super) fn make(limits: &Limits) -> Result<Option<Self>, Failure> {
        if *limits == Limits::default() {
            return Ok(None);
        }
        let own = fs::read_to_string("/proc/self/cgroup").during(|| "read /proc/self/cgroup".into())?;
        let mount = Path::new(MOUNT);
        let is_version_2 = mount.join("cgroup.controllers").exists();
        let settings = if is_version_2 { version_2(limits) } else { version_1(limits) };
        let name = format!("nacre-{}", std::process::id());
        let mut group = Cgroup(Vec::new());
        for setting in settings {
            let made = group.set(&setting, mount, &own, &name, is_version_2);
            if let Err(failure) = made {
                // The failure that brought us here is the one to tell.
                _ = group.remove();
                return Err(failure);
            }
        }
        Ok(Some(group))
    }

    fn set(
        &mut self,
        setting: &Setting,
        mount: &Path,
        own: &str,
        name: &str,
        is_version_2: bool,
    ) -> Result<(), Failure> {
        let controller = if is_version_2 { "" } else { setting.controller };
        let above = own_group(own, controller).ok_or_else(|| {
            let what = format!("limit the step with {}", setting.file);
            Failure::new(what, format!("this host has no cgroup controller {}", setting.controller))
        })?;
        let above = mount.join(controller).join(above.trim_start_matches('/'));
        let directory = above.join(name);
        match fs::create_dir(&directory) {
            Ok(()) => self.0.push(directory.clone()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).during(|| format!("make the cgroup {}", directory.display())),
        }
        let file = directory.join(setting.file);
        if is_version_2 && !file.exists() {
            let control = above.join("cgroup.subtree_control");
            fs::write(&control, format!("+{}", setting.controller))
                .during(|| format!("enable the cgroup controller {} in {}", setting.controller, control.display()))?;
        }
        fs::write(&file, &setting.value).during(|| format!("write {} to {}", setting.value, file.display()))
    }

    /// Puts a process into the groups, and with it all it will start.
    pub(super) fn add(&self, pid: Pid) -> Result<(), Failure> {
        self.0.iter().try_for_each(|directory| {
            let file = directory.join("cgroup.procs");
            fs::write(&file, pid.as_raw_nonzero().to_string()).during(|| format!("write to {}", file.display()))
        })
    }

    /// Removes the groups; their processes have ended.
    pub(super) fn remove(self) -> Result<(), Failure> {
        self.0.iter().try_for_each(|directory| {
            // A group keeps its last processes for a moment after they were reaped (EBUSY). Reading its list waits for the
            // lock they hold; the number of tries only bounds a kernel that never lets go.
            for _ in 0..1000 {
                match fs::remove_dir(directory) {
                    Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => kill_all(directory),
                    other => return other.during(|| format!("remove the cgroup {}", directory.display())),
                }
            }
            Err(Errno::BUSY).during(|| format!("remove the cgroup {}", directory.display()))
        })
    }
}

/// Kills what a group still holds, and lets it run to its end.
fn kill_all(directory: &Path) {
    let list = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    for pid in list.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)) {
        _ = rustix::process::kill_process(pid, Signal::KILL);
    }
    std::thread::yield_now();
}

/// https://docs.kernel.org/admin-guide/cgroup-v2.html#controllers
fn version_2(limits: &Limits) -> Vec<Setting> {
    let mut settings = Vec::new();
    if let Some(bytes) = limits.memory_bytes {
        settings.push(Setting { controller: "memory", file: "memory.max", value: bytes.to_string() });
    }
    if let Some(millis) = limits.cpu_millis {
        settings.push(Setting {
            controller: "cpu",
            file: "cpu.max",
            value: format!("{} {PERIOD_US}", quota_us(millis)),
        });
    }
    if let Some(pids) = limits.pids {
        settings.push(Setting { controller: "pids", file: "pids.max", value: pids.to_string() });
    }
    settings
}

/// https://docs.kernel.org/admin-guide/cgroup-v1/index.html
fn version_1(limits: &Limits) -> Vec<Setting> {
    let mut settings = Vec::new();
    if let Some(bytes) = limits.memory_bytes {
        settings.push(Setting { controller: "memory", file: "memory.limit_in_bytes", value: bytes.to_string() });
    }
    if let Some(millis) = limits.cpu_millis {
        settings.push(Setting { controller: "cpu", file: "cpu.cfs_period_us", value: PERIOD_US.to_string() });
        settings.push(Setting { controller: "cpu", file: "cpu.cfs_quota_us", value: quota_us(millis).to_string() });
    }
    if let Some(pids) = limits.pids {
        settings.push(Setting { controller: "pids", file: "pids.max", value: pids.to_string() });
    }
    settings
}

fn quota_us(cpu_millis: u64) -> u64 {
    cpu_millis.saturating_mul(PERIOD_US / 1000)
}

/// Our own group in the hierarchy of `controller`, the empty name being version 2: lines are `number:controllers:path`.
/// https://man7.org/linux/man-pages/man7/cgroups.7.html
fn own_group<'a>(own: &'a str, controller: &str) -> Option<&'a str> {
    own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        controllers.split(',').any(|name| name == controller).then_some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_group_is_found_by_controller() {
        let own = "4:memory:/a:b\n3:cpu,cpuacct:/c\n0::/user.slice\n";
        assert_eq!(own_group(own, "memory"), Some("/a:b"));
        assert_eq!(own_group(own, "cpu"), Some("/c"));
        assert_eq!(own_group(own, ""), Some("/user.slice"));
        assert_eq!(own_group(own, "pids"), None);
    }

    #[test]
    fn half_a_processor_is_half_the_period() {
        let limits = Limits { cpu_millis: Some(500), ..Limits::default() };
        assert_eq!(version_2(&limits)[0].value, "50000 100000");
    }
}
