//! Ids of an image as ids of the kernel, where the server of a mount lives in another user namespace than the mount.
//!
//! Invariant: an id is translated at the edge to the kernel only; inside, all ids are those of the image. It makes no
//! user namespace and does not read one: the text of its maps is given.

use rustix::io::Errno;

use crate::{
    tree::ACL_PREFIX,
    union::{Owner, map_ids},
};

/// What the kernel shows for ids that it cannot express: `/proc/sys/kernel/overflowuid`.
const OVERFLOW: u32 = 65534;

/// How ids of an image are shown outside. The default shows them as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdMapping {
    users: Option<Ranges>,
    groups: Option<Ranges>,
    /// Shown as the owner of everything.
    only_user: Option<u32>,
    /// Shown as the group of everything.
    only_group: Option<u32>,
    /// What a process makes whose ids are not mapped belongs to nobody.
    takes_in_strangers: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Ranges(Vec<IdRange>);

/// Ids that are shown as others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// The first one in the image.
    pub inside: u32,
    /// What it is shown as.
    pub outside: u32,
    /// How many there are.
    pub count: u32,
}

impl IdMapping {
    /// Reads the content of `/proc/PID/uid_map` and `gid_map`:
    /// <https://man7.org/linux/man-pages/man7/user_namespaces.7.html>. `None` if one is no such map.
    pub fn parse(uid_map: &str, gid_map: &str) -> Option<Self> {
        Some(Self { users: Some(Ranges::parse(uid_map)?), groups: Some(Ranges::parse(gid_map)?), ..Self::default() })
    }

    /// A mapping of these users and groups; none at all where a list is empty.
    pub fn of_ranges(users: Vec<IdRange>, groups: Vec<IdRange>) -> Self {
        let ranges = |ranges: Vec<IdRange>| (!ranges.is_empty()).then_some(Ranges(ranges));
        Self { users: ranges(users), groups: ranges(groups), ..Self::default() }
    }

    /// Shows one user or one group as the owner of everything, whatever the image says. What is made or given away
    /// in the mount is recorded as ever.
    #[must_use]
    pub fn squashed(self, uid: Option<u32>, gid: Option<u32>) -> Self {
        Self { only_user: uid, only_group: gid, ..self }
    }

    /// Has processes whose ids are not mapped make files too, which then belong to nobody, where idmapped mounts refuse
    /// them.
    #[must_use]
    pub fn with_strangers(self) -> Self {
        Self { takes_in_strangers: true, ..self }
    }

    /// A user of the image as the kernel's; nobody if it is not mapped.
    pub(crate) fn user_outside(&self, uid: u32) -> u32 {
        let mapped = || self.users.as_ref().map_or(uid, |ranges| ranges.outside(uid));
        self.only_user.unwrap_or_else(mapped)
    }

    /// A group of the image as the kernel's; nogroup if it is not mapped.
    pub(crate) fn group_outside(&self, gid: u32) -> u32 {
        let mapped = || self.groups.as_ref().map_or(gid, |ranges| ranges.outside(gid));
        self.only_group.unwrap_or_else(mapped)
    }

    /// The value of an extended attribute of the image as the kernel is to see it: access control lists hold ids.
    pub(crate) fn xattr_outside(&self, name: &[u8], value: Vec<u8>) -> Vec<u8> {
        if !self.changes_xattr(name) {
            return value;
        }
        let outside = |ranges: &Option<Ranges>, id| ranges.as_ref().map_or(id, |ranges| ranges.outside(id));
        let map = |id, is_group| Ok(outside(if is_group { &self.groups } else { &self.users }, id));
        map_ids(&value, map).unwrap_or(value)
    }

    /// The value of an extended attribute of the kernel as the image's.
    pub(crate) fn xattr_inside(&self, name: &[u8], value: &[u8]) -> rustix::io::Result<Vec<u8>> {
        if !self.changes_xattr(name) {
            return Ok(value.to_vec());
        }
        map_ids(value, |id, is_group| if is_group { self.group_inside(id) } else { self.user_inside(id) })
    }

    fn changes_xattr(&self, name: &[u8]) -> bool {
        name.starts_with(ACL_PREFIX) && (self.users.is_some() || self.groups.is_some())
    }

    /// A user of the kernel as one of the image. As with idmapped mounts, one that is not mapped can own nothing.
    pub(crate) fn user_inside(&self, uid: u32) -> rustix::io::Result<u32> {
        self.users.as_ref().map_or(Ok(uid), |ranges| ranges.inside(uid))
    }

    /// A group of the kernel as one of the image.
    pub(crate) fn group_inside(&self, gid: u32) -> rustix::io::Result<u32> {
        self.groups.as_ref().map_or(Ok(gid), |ranges| ranges.inside(gid))
    }

    /// The owner in the image of what a process of the kernel's ids makes.
    pub(crate) fn owner_inside(&self, uid: u32, gid: u32) -> rustix::io::Result<Owner> {
        let owner = |found: rustix::io::Result<u32>| match found {
            Err(Errno::OVERFLOW) if self.takes_in_strangers => Ok(OVERFLOW),
            found => found,
        };
        Ok(Owner { uid: owner(self.user_inside(uid))?, gid: owner(self.group_inside(gid))? })
    }
}

impl Ranges {
    fn parse(map: &str) -> Option<Self> {
        let line = |line: &str| {
            let numbers: Vec<u32> = line.split_whitespace().map(|word| word.parse().ok()).collect::<Option<_>>()?;
            let [inside, outside, count] = numbers[..] else { return None };
            Some(IdRange { inside, outside, count })
        };
        let ranges: Vec<IdRange> = map.lines().map(line).collect::<Option<_>>()?;
        (!ranges.is_empty()).then_some(Self(ranges))
    }

    fn outside(&self, id: u32) -> u32 {
        let mapped = self.0.iter().find_map(|range| shift(id, range.inside, range.outside, range.count));
        mapped.unwrap_or(OVERFLOW)
    }

    fn inside(&self, id: u32) -> rustix::io::Result<u32> {
        let mapped = self.0.iter().find_map(|range| shift(id, range.outside, range.inside, range.count));
        mapped.ok_or(Errno::OVERFLOW)
    }
}

fn shift(id: u32, from: u32, to: u32, count: u32) -> Option<u32> {
    let offset = id.checked_sub(from).filter(|offset| *offset < count)?;
    to.checked_add(offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rootless() -> IdMapping {
        let map = "         0       1000          1\n         1     100000      65536\n";
        IdMapping::parse(map, map).expect("a map")
    }

    #[test]
    fn ids_go_out_and_come_back() {
        for (inside, outside) in [(0, 1000), (1, 100_000), (1000, 100_999), (65536, 165_535)] {
            assert_eq!(rootless().user_outside(inside), outside);
            assert_eq!(rootless().group_inside(outside), Ok(inside));
        }
    }

    #[test]
    fn ids_of_access_control_lists_go_out_and_come_back() {
        // user:1000, group:0, and an owner, whose entry has no id.
        let list = b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x02\0\x04\0\xe8\x03\0\0\x08\0\x04\0\0\0\0\0";
        let shown = rootless().xattr_outside(b"system.posix_acl_access", list.to_vec());
        assert_eq!((&shown[16..20], &shown[24..28]), (&100_999_u32.to_le_bytes()[..], &1000_u32.to_le_bytes()[..]));
        assert_eq!(rootless().xattr_inside(b"system.posix_acl_access", &shown).as_deref(), Ok(&list[..]));
        assert_eq!(rootless().xattr_outside(b"user.other", list.to_vec()), list);
        let foreign = rootless().xattr_inside(b"system.posix_acl_default", list);
        assert_eq!(foreign, Err(Errno::OVERFLOW), "0 is the group of nobody inside");
        for length in 0..list.len() {
            rootless().xattr_outside(b"system.posix_acl_access", list[..length].to_vec());
        }
    }

    #[test]
    fn an_id_that_is_not_mapped_shows_as_nobody_and_can_own_nothing() {
        assert_eq!(rootless().user_outside(70_000), OVERFLOW);
        assert_eq!(rootless().owner_inside(0, 1000).err(), Some(Errno::OVERFLOW));
        assert_eq!(rootless().user_inside(u32::MAX), Err(Errno::OVERFLOW));
    }

    #[test]
    fn the_first_namespace_maps_every_id_to_itself() {
        let all = IdMapping::parse("0 0 4294967295\n", "0 0 4294967295\n").expect("a map");
        assert_eq!(all.user_outside(70_000), 70_000);
        assert_eq!(IdMapping::default().user_inside(70_000), Ok(70_000));
    }

    #[test]
    fn squashed_ids_show_one_owner_and_record_the_real_one() {
        let squashed = rootless().squashed(Some(7), None);
        assert_eq!((squashed.user_outside(5), squashed.group_outside(0)), (7, 1000));
        assert_eq!(squashed.user_inside(1000), Ok(0));
    }

    #[test]
    fn what_is_no_map_is_refused() {
        for text in ["", "0 0\n", "0 0 1 1\n", "a 0 1\n", "0 -1 1\n"] {
            assert_eq!(IdMapping::parse(text, "0 0 1"), None, "{text:?}");
        }
    }
}
