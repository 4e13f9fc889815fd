//! Limits as files of a control group, in either version. No file is touched here.
//!
//! Version 2: <https://docs.kernel.org/admin-guide/cgroup-v2.html#controllers>, version 1:
//! <https://docs.kernel.org/admin-guide/cgroup-v1/index.html>.

use super::{Failure, Limits, SwapLimit};

/// The period of a processor quota, in microseconds: the kernel's own default.
pub(super) const PERIOD_US: u64 = 100_000;

/// Which of the kernel's two interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    One,
    Two,
}

/// The limits of one controller.
#[derive(Debug)]
pub(super) struct Setting {
    pub(super) controller: &'static str,
    one: Vec<Write>,
    two: Vec<Write>,
}

/// One value for one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) name: &'static str,
    pub(super) value: String,
    /// Nobody asked for it: a kernel without the file goes on without the limit.
    pub(super) is_optional: bool,
}

impl Setting {
    /// What to write, in this order.
    pub(super) fn files(&self, version: Version) -> &[Write] {
        match version {
            Version::One => &self.one,
            Version::Two => &self.two,
        }
    }
}

fn write(name: &'static str, value: impl ToString) -> Write {
    Write { name, value: value.to_string(), is_optional: false }
}

/// What the limits are in each controller that they need. A parent alone needs the controllers that bound a step.
pub(super) fn settings(limits: &Limits) -> Result<Vec<Setting>, Failure> {
    let mut settings = Vec::new();
    let mut push = |controller, one: Vec<Write>, two: Vec<Write>| settings.push(Setting { controller, one, two });
    if limits.memory_bytes.is_some() || limits.memory_swap.is_some() {
        let (one, two) = memory(limits)?;
        push("memory", one, two);
    }
    let cpu = cpu(limits);
    if !cpu.0.is_empty() {
        push("cpu", cpu.0, cpu.1);
    }
    if let Some(cpus) = &limits.cpuset_cpus {
        push("cpuset", vec![write("cpuset.cpus", cpus)], vec![write("cpuset.cpus", cpus)]);
    }
    if let Some(pids) = limits.pids {
        push("pids", vec![write("pids.max", pids)], vec![write("pids.max", pids)]);
    }
    if settings.is_empty() && limits.parent.is_some() {
        let bare = |controller| Setting { controller, one: Vec::new(), two: Vec::new() };
        settings.extend(["memory", "cpu", "pids"].map(bare));
    }
    Ok(settings)
}

/// Version 1 counts memory and swap together, version 2 swap alone. Without a word about swap, it is as much as memory:
/// <https://docs.docker.com/engine/containers/resource_constraints/#--memory-swap-details>
fn memory(limits: &Limits) -> Result<(Vec<Write>, Vec<Write>), Failure> {
    let wrong = |cause: &str| Failure::new("limit memory and swap", cause);
    let Some(memory) = limits.memory_bytes else {
        return Err(wrong("--memory-swap counts both, and needs --memory"));
    };
    let (both, swap) = match limits.memory_swap {
        Some(SwapLimit::Unlimited) => ("-1".to_owned(), "max".to_owned()),
        Some(SwapLimit::Bytes(both)) => {
            let swap = both.checked_sub(memory);
            let swap = swap.ok_or_else(|| wrong("--memory-swap counts both, and is below --memory"))?;
            (both.to_string(), swap.to_string())
        }
        None => (memory.saturating_mul(2).to_string(), memory.to_string()),
    };
    let is_optional = limits.memory_swap.is_none();
    let of_swap = |name, value| Write { name, value, is_optional };
    Ok((
        vec![write("memory.limit_in_bytes", memory), of_swap("memory.memsw.limit_in_bytes", both)],
        vec![write("memory.max", memory), of_swap("memory.swap.max", swap)],
    ))
}

fn cpu(limits: &Limits) -> (Vec<Write>, Vec<Write>) {
    let (mut one, mut two) = (Vec::new(), Vec::new());
    if let Some(millis) = limits.cpu_millis {
        let quota_us = millis.saturating_mul(PERIOD_US / 1000);
        one.extend([write("cpu.cfs_period_us", PERIOD_US), write("cpu.cfs_quota_us", quota_us)]);
        two.push(write("cpu.max", format!("{quota_us} {PERIOD_US}")));
    }
    if let Some(shares) = limits.cpu_shares {
        one.push(write("cpu.shares", shares));
        two.push(write("cpu.weight", weight(shares)));
    }
    (one, two)
}

/// Shares of version 1 as a weight of version 2: 2 is 1, 1024 is 100, 262144 is 10000, a parabola between their
/// logarithms.
/// <https://github.com/opencontainers/cgroups/blob/main/utils.go>, `ConvertCPUSharesToCgroupV2Value`
fn weight(shares: u64) -> u64 {
    let log = (shares.clamp(2, 262_144) as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    10_f64.powf(exponent).ceil() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(limits: &Limits, version: Version) -> Vec<(&'static str, String)> {
        let settings = settings(limits).expect("they make sense");
        settings.iter().flat_map(|setting| setting.files(version)).map(|w| (w.name, w.value.clone())).collect()
    }

    fn text(pairs: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
        pairs.iter().map(|(name, value)| (*name, (*value).to_owned())).collect()
    }

    #[test]
    fn limits_are_files_of_either_version() {
        let limits = Limits {
            memory_bytes: Some(100),
            memory_swap: Some(SwapLimit::Bytes(150)),
            cpu_millis: Some(500),
            cpu_shares: Some(1024),
            cpuset_cpus: Some("0-1".into()),
            pids: Some(7),
            parent: None,
        };
        let one = [
            ("memory.limit_in_bytes", "100"),
            ("memory.memsw.limit_in_bytes", "150"),
            ("cpu.cfs_period_us", "100000"),
            ("cpu.cfs_quota_us", "50000"),
            ("cpu.shares", "1024"),
            ("cpuset.cpus", "0-1"),
            ("pids.max", "7"),
        ];
        assert_eq!(values(&limits, Version::One), text(&one));
        let two = [
            ("memory.max", "100"),
            ("memory.swap.max", "50"),
            ("cpu.max", "50000 100000"),
            ("cpu.weight", "100"),
            ("cpuset.cpus", "0-1"),
            ("pids.max", "7"),
        ];
        assert_eq!(values(&limits, Version::Two), text(&two));
    }

    #[test]
    fn swap_is_as_much_as_memory_unless_it_is_named() {
        let mut limits = Limits { memory_bytes: Some(100), ..Limits::default() };
        assert_eq!(values(&limits, Version::One)[1].1, "200");
        assert_eq!(values(&limits, Version::Two)[1].1, "100");
        limits.memory_swap = Some(SwapLimit::Unlimited);
        assert_eq!(values(&limits, Version::One)[1].1, "-1");
        assert_eq!(values(&limits, Version::Two)[1].1, "max");
        limits.memory_swap = Some(SwapLimit::Bytes(99));
        assert!(settings(&limits).is_err());
        assert!(settings(&Limits { memory_bytes: None, ..limits }).is_err());
    }

    #[test]
    fn weights_have_the_ends_and_the_middle_of_shares() {
        assert_eq!([2, 1024, 262_144].map(weight), [1, 100, 10_000]);
    }
}
