//! Docker's default seccomp profile as a BPF program.
//!
//! Invariant: what the profile does not allow fails with EPERM, as in Docker; clone3, whose flags a filter cannot see,
//! and calls newer than the profile fail with ENOSYS, so that programs fall back to what they know. 32-bit programs on
//! x86-64 have their own table; any other architecture is killed. The table of calls is `syscalls.rs`.

use std::collections::{BTreeMap, BTreeSet};

use rustix::io::Errno;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};

use super::syscalls::{ALLOWED, NEWEST};
use super::{During as _, Failure};
use crate::sys;

/// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET: what clone may not ask for.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;
/// PER_LINUX, PER_LINUX32, each also with UNAME26, and the value that only asks.
const PERSONALITIES: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];
/// The kernel's cryptography (a wide and rarely used surface), and sockets to the hypervisor, which lead out of any
/// container.
const FORBIDDEN_SOCKETS: [u64; 2] = [38, 40];

/// One system call interface of the machine.
struct Interface {
    /// AUDIT_ARCH_*, from linux/audit.h.
    audit_arch: u32,
    /// Its column in the table of calls.
    column: usize,
    clone: i64,
    clone3: u32,
    personality: i64,
    socket: i64,
}

#[cfg(target_arch = "x86_64")]
const INTERFACES: &[Interface] = &[
    Interface { audit_arch: 0xc000_003e, column: 0, clone: 56, clone3: 435, personality: 135, socket: 41 },
    Interface { audit_arch: 0x4000_0003, column: 1, clone: 120, clone3: 435, personality: 136, socket: 359 },
];
#[cfg(target_arch = "aarch64")]
const INTERFACES: &[Interface] =
    &[Interface { audit_arch: 0xc000_00b7, column: 2, clone: 220, clone3: 435, personality: 92, socket: 198 }];

/// Installs the filter on this process and all it starts.
pub(super) fn install() -> Result<(), Failure> {
    let program = program().map_err(|error| Failure::new("compile the seccomp filter", error.to_string()))?;
    sys::install_seccomp_filter(&program).during(|| "install the seccomp filter".into())
}

/// The same policy in the words of the runtime specification; what is newer than the profile fails with EPERM there.
pub(super) fn as_oci() -> serde_json::Value {
    use serde_json::json;
    #[cfg(target_arch = "x86_64")]
    const ARCHITECTURES: [&str; 2] = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"];
    #[cfg(target_arch = "aarch64")]
    const ARCHITECTURES: [&str; 2] = ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"];
    let names: Vec<&str> = ALLOWED.iter().map(|call| call.name).collect();
    let only = |name: &str, value: u64, operator: &str| {
        let mut argument = json!({"index": 0, "value": value, "op": format!("SCMP_CMP_{operator}")});
        if operator == "MASKED_EQ" {
            argument["valueTwo"] = 0.into();
        }
        json!({"names": [name], "action": "SCMP_ACT_ALLOW", "args": [argument]})
    };
    let [first, second] = FORBIDDEN_SOCKETS;
    let mut syscalls = vec![
        json!({"names": names, "action": "SCMP_ACT_ALLOW"}),
        json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": Errno::NOSYS.raw_os_error()}),
        only("clone", CLONE_NAMESPACES, "MASKED_EQ"),
        only("socket", first, "LT"),
        only("socket", first + 1, "EQ"),
        only("socket", second, "GT"),
    ];
    syscalls.extend(PERSONALITIES.iter().map(|value| only("personality", *value, "EQ")));
    json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": Errno::PERM.raw_os_error(),
        "architectures": ARCHITECTURES, "syscalls": syscalls,
    })
}

/// The whole filter: finds the interface of the call, then goes on with the part for it.
fn program() -> Result<BpfProgram, seccompiler::BackendError> {
    let mut parts: BpfProgram = vec![load(ARCH_OFFSET)];
    for interface in INTERFACES {
        let part = part(interface)?;
        // Not this interface: skip the jump and what it jumps over. A conditional jump is too short for that.
        let length = u32::try_from(part.len()).expect("a few thousand instructions");
        parts.push(jump_if_equal(interface.audit_arch, 1, 0));
        parts.push(jump(length));
        parts.extend(part);
    }
    parts.push(give(RET_KILL_PROCESS));
    Ok(parts)
}

/// What happens to the calls of one interface. Never falls through.
fn part(interface: &Interface) -> Result<BpfProgram, seccompiler::BackendError> {
    let no_such_call = give(RET_ERRNO | Errno::NOSYS.raw_os_error().cast_unsigned());
    let mut part = vec![
        load(NUMBER_OFFSET),
        jump_if_greater(NEWEST, 0, 1),
        no_such_call.clone(),
        jump_if_equal(interface.clone3, 0, 1),
        no_such_call,
    ];
    part.extend(allowed(interface));
    let eperm = SeccompAction::Errno(Errno::PERM.raw_os_error().cast_unsigned());
    // The architecture only picks the check in front, which is replaced by ours.
    let filter = SeccompFilter::new(rules(interface)?, eperm, SeccompAction::Allow, TargetArch::x86_64)?;
    let compiled: BpfProgram = filter.try_into()?;
    part.extend(compiled.into_iter().skip(ARCH_CHECK_LENGTH));
    Ok(part)
}

/// Allows the calls whose arguments do not matter, with the number loaded: three instructions for each run of numbers. A rule
/// for each call would make a program of two thousand, which the kernel compiles for every step.
fn allowed(interface: &Interface) -> BpfProgram {
    let numbers: BTreeSet<u32> =
        ALLOWED.iter().filter_map(|call| call.numbers[interface.column]).map(u32::from).collect();
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let run = |(first, last)| [jump_if_greater(last, 2, 0), jump_if_at_least(first, 0, 1), give(RET_ALLOW)];
    runs.into_iter().flat_map(run).collect()
}

/// What calls are allowed with some arguments.
fn rules(interface: &Interface) -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let first_argument =
        |operator, value| SeccompRule::new(vec![SeccompCondition::new(0, SeccompCmpArgLen::Dword, operator, value)?]);
    rules.insert(interface.clone, vec![first_argument(SeccompCmpOp::MaskedEq(CLONE_NAMESPACES), 0)?]);
    let other = |family: &u64| SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, *family);
    let others = FORBIDDEN_SOCKETS.iter().map(other).collect::<Result<_, _>>()?;
    rules.insert(interface.socket, vec![SeccompRule::new(others)?]);
    let personalities = PERSONALITIES.iter().map(|value| first_argument(SeccompCmpOp::Eq, *value));
    rules.insert(interface.personality, personalities.collect::<Result<_, _>>()?);
    Ok(rules)
}

/// Where `struct seccomp_data` has the number and the architecture: linux/seccomp.h.
const NUMBER_OFFSET: u32 = 0;
const ARCH_OFFSET: u32 = 4;
/// Load, compare, kill: what seccompiler puts in front. A test holds it.
const ARCH_CHECK_LENGTH: usize = 3;

/// Verdicts, with an error number in the low half: linux/seccomp.h.
const RET_KILL_PROCESS: u32 = 0x8000_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_ALLOW: u32 = 0x7fff_0000;

// Instructions of classic BPF: linux/bpf_common.h.

fn load(offset: u32) -> sock_filter {
    sock_filter { code: 0x20, jt: 0, jf: 0, k: offset }
}

fn jump(distance: u32) -> sock_filter {
    sock_filter { code: 0x05, jt: 0, jf: 0, k: distance }
}

fn jump_if_equal(value: u32, yes: u8, no: u8) -> sock_filter {
    sock_filter { code: 0x15, jt: yes, jf: no, k: value }
}

fn jump_if_greater(value: u32, yes: u8, no: u8) -> sock_filter {
    sock_filter { code: 0x25, jt: yes, jf: no, k: value }
}

fn jump_if_at_least(value: u32, yes: u8, no: u8) -> sock_filter {
    sock_filter { code: 0x35, jt: yes, jf: no, k: value }
}

fn give(action: u32) -> sock_filter {
    sock_filter { code: 0x06, jt: 0, jf: 0, k: action }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel would, on one call.
    fn verdict(arch: u32, number: u32, first_argument: u64) -> u32 {
        let program = program().unwrap();
        let word = |offset: u32| match offset {
            NUMBER_OFFSET => number,
            ARCH_OFFSET => arch,
            16 => first_argument as u32,
            20 => (first_argument >> 32) as u32,
            other => panic!("no rule looks at offset {other}"),
        };
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at].clone();
            at += 1;
            let mut branch = |taken: bool| at += usize::from(if taken { jt } else { jf });
            match code {
                0x20 => accumulator = word(k),
                0x54 => accumulator &= k,
                0x05 => at += k as usize,
                0x15 => branch(accumulator == k),
                0x25 => branch(accumulator > k),
                0x35 => branch(accumulator >= k),
                0x06 => return k,
                other => panic!("no such instruction is used: {other:#x}"),
            }
        }
    }

    const ALLOW: u32 = RET_ALLOW;
    const EPERM: u32 = RET_ERRNO | 1;
    const ENOSYS: u32 = RET_ERRNO | 38;

    #[test]
    fn seccompiler_still_starts_with_its_architecture_check() {
        let filter = SeccompFilter::new(
            BTreeMap::from([(1, vec![])]),
            SeccompAction::Trap,
            SeccompAction::Allow,
            TargetArch::x86_64,
        );
        let program: BpfProgram = filter.unwrap().try_into().unwrap();
        assert_eq!(program[0], load(ARCH_OFFSET));
        assert_eq!(program[2], give(RET_KILL_PROCESS));
        assert_eq!(program[3], load(NUMBER_OFFSET));
    }

    #[test]
    fn program_is_as_short_as_the_kernel_demands() {
        // BPF_MAXINSNS: linux/bpf_common.h.
        let length = program().unwrap().len();
        assert!(length <= 4096, "{length} instructions");
    }

    #[test]
    fn every_interface_allows_its_table_and_nothing_else() {
        for interface in INTERFACES {
            for number in 0..=NEWEST {
                let listed =
                    ALLOWED.iter().any(|call| call.numbers[interface.column].is_some_and(|n| u32::from(n) == number));
                let special = [interface.clone, interface.socket, interface.personality].contains(&i64::from(number));
                if special || number == interface.clone3 {
                    continue;
                }
                let expected = if listed { ALLOW } else { EPERM };
                assert_eq!(verdict(interface.audit_arch, number, 0), expected, "call {number}");
            }
            assert_eq!(verdict(interface.audit_arch, interface.clone3, 0), ENOSYS);
            assert_eq!(verdict(interface.audit_arch, NEWEST + 1, 0), ENOSYS);
            assert_eq!(verdict(interface.audit_arch, 0x4000_0000, 0), ENOSYS);
        }
        assert_eq!(verdict(0, 0, 0), RET_KILL_PROCESS);
    }

    #[test]
    fn arguments_decide_for_clone_socket_and_personality() {
        for interface in INTERFACES {
            let verdict =
                |number: i64, argument| verdict(interface.audit_arch, u32::try_from(number).unwrap(), argument);
            assert_eq!(verdict(interface.clone, 0x11), ALLOW);
            assert_eq!(verdict(interface.clone, 0x1000_0011), EPERM);
            assert_eq!(verdict(interface.clone, 0x0002_0011), EPERM);
            assert_eq!(verdict(interface.socket, 2), ALLOW);
            assert_eq!(verdict(interface.socket, 39), ALLOW);
            assert_eq!(verdict(interface.socket, 41), ALLOW);
            FORBIDDEN_SOCKETS.iter().for_each(|family| assert_eq!(verdict(interface.socket, *family), EPERM));
            assert_eq!(verdict(interface.personality, 0x2_0008), ALLOW);
            assert_eq!(verdict(interface.personality, 0x40000), EPERM);
        }
    }

    /// The names that a condition of the profile lets through for our capabilities and columns, arguments aside.
    fn names_of_the_profile() -> BTreeSet<&'static str> {
        /// Docker's default set without the others, as `privileges.rs` has it.
        const HELD: [&str; 1] = ["SYS_CHROOT"];
        /// Calls of an interface that has no column.
        const OTHER_INTERFACES: [&str; 9] = [
            "arm_fadvise64_64",
            "arm_sync_file_range",
            "breakpoint",
            "cacheflush",
            "recv",
            "riscv_hwprobe",
            "send",
            "set_tls",
            "sync_file_range2",
        ];
        let lines = include_str!("docker-profile.txt").lines().filter(|line| !line.starts_with('#'));
        let names = lines.filter_map(|line| {
            let (name, conditions) = line.split_once(' ').unwrap_or((line, ""));
            let is_met = conditions.split_whitespace().all(|condition| match condition.split_once('=') {
                Some(("cap", names)) => names.split(',').all(|name| HELD.contains(&name)),
                Some(("arch", names)) => names.split(',').any(|name| ["amd64", "x86", "arm64"].contains(&name)),
                Some(("nocap" | "args" | "errno", _)) => true,
                other => panic!("no such condition is known: {other:?}"),
            });
            (is_met && !OTHER_INTERFACES.contains(&name)).then_some(name)
        });
        names.collect()
    }

    #[test]
    fn table_and_special_calls_are_those_of_the_profile() {
        let special = ["clone", "clone3", "socket", "personality"];
        let ours: BTreeSet<&str> = ALLOWED.iter().map(|call| call.name).chain(special).collect();
        assert_eq!(ours, names_of_the_profile());
    }

    #[test]
    fn conditions_on_arguments_are_those_of_the_profile() {
        let lines: BTreeSet<&str> = include_str!("docker-profile.txt")
            .lines()
            .filter(|line| line.contains("args=") || line.contains("errno="))
            .filter(|line| !line.starts_with('#') && !line.contains("arch=s390"))
            .collect();
        let mut ours: BTreeSet<String> = PERSONALITIES.iter().map(|n| format!("personality args=0:eq:{n}")).collect();
        ours.insert(format!("clone nocap=SYS_ADMIN args=0:masked_eq:{CLONE_NAMESPACES}"));
        ours.insert("clone3 nocap=SYS_ADMIN errno=38".into());
        // All but the two: below the first, between them, above the second.
        let [first, second] = FORBIDDEN_SOCKETS;
        ours.insert(format!("socket args=0:lt:{first}"));
        ours.insert(format!("socket args=0:eq:{}", first + 1));
        ours.insert(format!("socket args=0:gt:{second}"));
        assert_eq!(ours, lines.into_iter().map(str::to_owned).collect());
    }

    #[test]
    fn numbers_are_those_of_the_c_headers() {
        let headers = [("unistd_64.h", 0), ("unistd_32.h", 1)];
        for (header, column) in headers {
            let Ok(text) = std::fs::read_to_string(format!("/usr/include/x86_64-linux-gnu/asm/{header}")) else {
                fixtures::left_out("the numbers of system calls: there are no C headers");
                continue;
            };
            let defined: BTreeMap<&str, u16> = text
                .lines()
                .filter_map(|line| line.strip_prefix("#define __NR_")?.split_once(' '))
                .filter_map(|(name, value)| Some((name, value.trim().parse().ok()?)))
                .collect();
            for call in ALLOWED {
                // Headers may be older than the table.
                if let (Some(defined), Some(ours)) = (defined.get(call.name), call.numbers[column]) {
                    assert_eq!(*defined, ours, "{}", call.name);
                } else {
                    assert!(!defined.contains_key(call.name), "{} lacks a number", call.name);
                }
            }
        }
    }
}
