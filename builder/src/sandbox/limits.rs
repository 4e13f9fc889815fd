//! What bounds a step: resource limits of the process, and limits of the step as a whole.
//!
//! Invariant: a limit that cannot be set is an error that names it; none is ever ignored. Cgroups are `cgroup.rs`.

use rustix::process::{Resource, Rlimit};
use serde::{Deserialize, Serialize};

use super::{During as _, Failure};

/// Limits of a step as a whole; `None` is no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory of all processes together.
    pub memory_bytes: Option<u64>,
    /// Memory and swap of all processes together; `None` is twice the memory, as with Docker. It needs a memory limit.
    pub memory_swap: Option<SwapLimit>,
    /// Processor time, in thousandths of one processor.
    pub cpu_millis: Option<u64>,
    /// The share of processor time under load, 2 to 262144; who asks for nothing has 1024.
    pub cpu_shares: Option<u64>,
    /// The processors that may be used, as `0-2,4`.
    pub cpuset_cpus: Option<String>,
    /// Number of processes and threads.
    pub pids: Option<u64>,
    /// The group below which the step's group is made: from the top of the hierarchy if it begins with a slash, else
    /// from our own group.
    pub parent: Option<String>,
}

/// How much memory and swap together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SwapLimit {
    /// This much.
    Bytes(u64),
    /// All the swap of the machine.
    Unlimited,
}

/// One resource limit of a process, as `--ulimit name=soft:hard`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// The name without `RLIMIT_`, in lower case: `nofile`.
    pub name: String,
    /// The limit in force; `None` is unlimited.
    pub soft: Option<u64>,
    /// What the process may raise it to; `None` is unlimited.
    pub hard: Option<u64>,
}

impl Ulimit {
    /// What the key of a step has of it; another word is another key.
    pub(crate) fn key_word(&self) -> String {
        let show = |limit: Option<u64>| limit.map_or("unlimited".to_owned(), |limit| limit.to_string());
        format!("ulimit {} {} {}", self.name, show(self.soft), show(self.hard))
    }

    /// Sets the limit on this process.
    pub(super) fn apply(&self) -> Result<(), Failure> {
        let Self { name, soft, hard } = self;
        let action = || {
            let show = |value: &Option<u64>| value.map_or("unlimited".into(), |value| value.to_string());
            format!("set the limit {name}={}:{}", show(soft), show(hard))
        };
        let resource = resource(name).ok_or_else(|| Failure::new(action(), "there is no limit of this name"))?;
        rustix::process::setrlimit(resource, Rlimit { current: *soft, maximum: *hard }).during(action)
    }
}

fn resource(name: &str) -> Option<Resource> {
    Some(match name {
        "as" => Resource::As,
        "core" => Resource::Core,
        "cpu" => Resource::Cpu,
        "data" => Resource::Data,
        "fsize" => Resource::Fsize,
        "locks" => Resource::Locks,
        "memlock" => Resource::Memlock,
        "msgqueue" => Resource::Msgqueue,
        "nice" => Resource::Nice,
        "nofile" => Resource::Nofile,
        "nproc" => Resource::Nproc,
        "rss" => Resource::Rss,
        "rtprio" => Resource::Rtprio,
        "rttime" => Resource::Rttime,
        "sigpending" => Resource::Sigpending,
        "stack" => Resource::Stack,
        _ => return None,
    })
}
