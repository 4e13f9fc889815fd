//! Flags that bound what a command may use, as docker has them, for builds and runs alike.
//!
//! Invariant: what is not understood is an error that names the flag and the value. What the host allows is found out
//! when the limit is set.

use builder::sandbox::{Limits, SwapLimit};

use crate::flags;
use crate::report::Usage;
use crate::units::parse_size;

/// Each flag has it: as the heading of what comes next it would be that of all other flags of a verb, too.
const HEADING: &str = "Limits of the commands, where the host's cgroups allow them";

/// Limits of a command as a whole, through cgroups.
#[derive(clap::Args)]
pub(crate) struct LimitFlags {
    /// The most memory of a command and all that it starts, such as 512m
    #[arg(help_heading = HEADING, short, long, value_name = "SIZE")]
    memory: Option<String>,
    /// The most memory and swap together; -1 for all the swap [default: twice the memory]
    #[arg(help_heading = HEADING, long, value_name = "SIZE|-1", allow_hyphen_values = true)]
    memory_swap: Option<String>,
    /// The most processors, such as 1.5
    #[arg(help_heading = HEADING, long, value_name = "NUMBER")]
    cpus: Option<String>,
    /// The share of the processors under load, 2 to 262144 [default: 1024]
    #[arg(help_heading = HEADING, long, short = 'c', value_name = "NUMBER")]
    cpu_shares: Option<u64>,
    /// The processors that may be used, such as 0-2,4
    #[arg(help_heading = HEADING, long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// The most processes and threads; -1 for no limit
    #[arg(help_heading = HEADING, long, value_name = "NUMBER", allow_hyphen_values = true)]
    pids_limit: Option<i64>,
    /// The cgroup below which the command's own is made
    #[arg(help_heading = HEADING, long, value_name = "GROUP")]
    cgroup_parent: Option<String>,
}

impl LimitFlags {
    /// What the flags ask for.
    pub(crate) fn limits(&self) -> anyhow::Result<Limits> {
        let memory_bytes = self.memory.as_deref().map(|text| parse_size("--memory", text)).transpose()?;
        let memory_swap = match self.memory_swap.as_deref() {
            None => None,
            Some("-1") => Some(SwapLimit::Unlimited),
            Some(text) => Some(SwapLimit::Bytes(parse_size("--memory-swap", text)?)),
        };
        match (memory_bytes, memory_swap) {
            (None, Some(_)) => return Err(Usage("--memory-swap needs --memory: it counts both".to_owned()).into()),
            (Some(memory), Some(SwapLimit::Bytes(both))) if both < memory => {
                return Err(Usage("--memory-swap counts memory and swap, and is below --memory".to_owned()).into());
            }
            _ => {}
        }
        if let Some(shares) = self.cpu_shares.filter(|shares| !(2..=262_144).contains(shares)) {
            return Err(Usage(format!("--cpu-shares {shares} is not from 2 to 262144")).into());
        }
        let is_list = |text: &&String| {
            !text.is_empty() && text.chars().all(|letter| letter.is_ascii_digit() || matches!(letter, '-' | ','))
        };
        if let Some(list) = self.cpuset_cpus.as_ref().filter(|list| !is_list(list)) {
            return Err(Usage(format!("--cpuset-cpus {list:?} is no list of processors such as 0-2,4")).into());
        }
        let pids = match self.pids_limit {
            // As docker has it, both are no limit.
            None | Some(-1 | 0) => None,
            Some(number) => Some(
                u64::try_from(number)
                    .map_err(|_| Usage(format!("--pids-limit {number} is neither a number of processes nor -1")))?,
            ),
        };
        Ok(Limits {
            memory_bytes,
            memory_swap,
            cpu_millis: self.cpus.as_deref().map(flags::processors).transpose()?,
            cpu_shares: self.cpu_shares,
            cpuset_cpus: self.cpuset_cpus.clone(),
            pids,
            parent: self.cgroup_parent.clone(),
        })
    }
}
