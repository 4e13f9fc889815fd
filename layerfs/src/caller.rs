//! Who makes a request: what the kernel tells of a caller is its user, its group and its process.
//!
//! Invariant: what is read here decides about keeping a set-group-id bit and nothing else, because a process may end,
//! and its number be used again, while it is read. Whoever cannot be seen is in no group but its own.

/// Whether the process `pid`, whose file-system group is `own`, is in `group`. Ids are the kernel's.
pub(crate) fn is_member(pid: u32, own: u32, group: u32) -> bool {
    own == group || std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| lists(&status, group))
}

/// Whether a group is among the supplementary ones: <https://man7.org/linux/man-pages/man5/proc_pid_status.5.html>.
fn lists(status: &str, group: u32) -> bool {
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:"));
    groups.is_some_and(|groups| groups.split_whitespace().any(|word| word.parse() == Ok(group)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn supplementary_groups_are_listed_whole() {
        let status = "Name:\tx\nGid:\t5\t5\t5\t5\nGroups:\t27 100 \nNStgid:\t7\n";
        assert!(lists(status, 27) && lists(status, 100));
        assert!(!lists(status, 7) && !lists(status, 10) && !lists(status, 5));
    }

    #[test]
    fn a_process_that_is_gone_is_in_its_own_group_only() {
        assert!(is_member(u32::MAX, 5, 5));
        assert!(!is_member(u32::MAX, 5, 0));
    }
}
