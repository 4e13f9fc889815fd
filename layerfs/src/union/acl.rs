//! POSIX access control lists: what a new file gets from its directory.
//!
//! Invariant: the kernel enforces lists and this union stores them; only their inheritance is worked out here, because
//! a new file may be made outside of its directory, and moved. Rules:
//! <https://man7.org/linux/man-pages/man5/acl.5.html>, "Object creation and default ACLs". Format of the attributes:
//! `include/uapi/linux/posix_acl_xattr.h`: the version, then tag, permissions and id of each entry, little-endian.

use rustix::{fs::XattrFlags, io::Result};

use super::handles::Handle;

pub(crate) const ACCESS: &[u8] = b"system.posix_acl_access";
pub(super) const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: [u8; 4] = [2, 0, 0, 0];
const ENTRY_BYTES: usize = 8;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// What a new file gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Inherited {
    /// Its permission bits.
    pub(super) mode: u32,
    /// Its own list, where that says more than the mode.
    access: Option<Vec<u8>>,
    /// What a directory gives on.
    default: Vec<u8>,
}

impl Inherited {
    /// From the default list of the directory, for a file that is made with `mode`; `None` for a list that is none.
    pub(super) fn new(default: &[u8], mode: u32) -> Option<Self> {
        let entries = default.strip_prefix(&VERSION)?;
        if entries.is_empty() || !entries.len().is_multiple_of(ENTRY_BYTES) {
            return None;
        }
        let mut access = default.to_vec();
        let mut allowed = 0;
        let (has_mask, mut is_more_than_mode) = (tags(entries).any(|tag| tag == MASK), false);
        for (at, tag) in tags(entries).enumerate() {
            let shift = match tag {
                USER_OBJ => 6,
                MASK => 3,
                GROUP_OBJ if !has_mask => 3,
                OTHER => 0,
                USER | GROUP | GROUP_OBJ => {
                    is_more_than_mode = true;
                    continue;
                }
                _ => return None,
            };
            // What the list gives and the mode asks for. The permissions are the low bits of the third byte.
            let permissions = &mut access[VERSION.len() + at * ENTRY_BYTES + 2];
            *permissions &= u8::try_from(mode >> shift & 7).expect("three bits");
            allowed |= u32::from(*permissions) << shift;
        }
        let mode = mode & !0o777 | allowed;
        let access = (has_mask || is_more_than_mode).then_some(access);
        Some(Self { mode, access, default: default.to_vec() })
    }

    pub(super) fn give(&self, file: &Handle, is_directory: bool) -> Result<()> {
        if let Some(access) = &self.access {
            file.set_xattr(ACCESS, access, XattrFlags::empty())?;
        }
        if is_directory {
            file.set_xattr(DEFAULT, &self.default, XattrFlags::empty())?;
        }
        Ok(())
    }
}

/// Whether setting an attribute makes a list that says more than the mode does. `cp -p` and `install` set the mode of
/// every file by a list of its three classes, which the file system below keeps as a mode.
pub(super) fn matters(name: &[u8], value: &[u8]) -> bool {
    let is_mode = |entries: &[u8]| tags(entries).all(|tag| matches!(tag, USER_OBJ | GROUP_OBJ | OTHER));
    name == DEFAULT || name == ACCESS && !value.strip_prefix(&VERSION).is_some_and(is_mode)
}

/// A list with other ids; `map` is told whether an id is that of a group. What is no list stays as it is.
pub(crate) fn map_ids(list: &[u8], map: impl Fn(u32, bool) -> Result<u32>) -> Result<Vec<u8>> {
    let mut mapped = list.to_vec();
    if let Some(entries) = list.strip_prefix(&VERSION) {
        for (at, tag) in tags(entries).enumerate().filter(|(_, tag)| matches!(*tag, USER | GROUP)) {
            let id = &mut mapped[VERSION.len() + at * ENTRY_BYTES + 4..][..4];
            let number = u32::from_le_bytes([id[0], id[1], id[2], id[3]]);
            id.copy_from_slice(&map(number, tag == GROUP)?.to_le_bytes());
        }
    }
    Ok(mapped)
}

fn tags(entries: &[u8]) -> impl Iterator<Item = u16> {
    entries.chunks_exact(ENTRY_BYTES).map(|entry| u16::from_le_bytes([entry[0], entry[1]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[(u16, u8)]) -> Vec<u8> {
        let entries = entries.iter().flat_map(|(tag, perm)| [*tag as u8, 0, *perm, 0, 1, 0, 0, 0]);
        VERSION.into_iter().chain(entries).collect()
    }

    #[test]
    fn a_new_file_gets_what_both_the_list_and_its_mode_permit() {
        let minimal = list(&[(USER_OBJ, 7), (GROUP_OBJ, 5), (OTHER, 4)]);
        let inherited = Inherited::new(&minimal, 0o4666).expect("a list");
        assert_eq!((inherited.mode, inherited.access, inherited.default), (0o4644, None, minimal));
        let named = list(&[(USER_OBJ, 7), (USER, 7), (GROUP_OBJ, 5), (MASK, 7), (OTHER, 0)]);
        let inherited = Inherited::new(&named, 0o644).expect("a list");
        let access = list(&[(USER_OBJ, 6), (USER, 7), (GROUP_OBJ, 5), (MASK, 4), (OTHER, 0)]);
        assert_eq!((inherited.mode, inherited.access), (0o640, Some(access)));
    }

    #[test]
    fn a_list_of_the_three_classes_is_a_mode() {
        let mode = list(&[(USER_OBJ, 7), (GROUP_OBJ, 5), (OTHER, 4)]);
        let named = list(&[(USER_OBJ, 7), (USER, 7), (GROUP_OBJ, 5), (MASK, 7), (OTHER, 0)]);
        assert!(!matters(ACCESS, &mode));
        assert!(matters(DEFAULT, &mode), "new files get it instead of the umask");
        assert!(matters(ACCESS, &named));
        assert!(matters(ACCESS, b"no list"));
        assert!(!matters(b"user.x", &named));
    }

    #[test]
    fn what_is_no_list_gives_nothing() {
        for bytes in [&b""[..], &VERSION, b"\x02\0\0\0\x01\0\x07", b"\x03\0\0\0\x01\0\x07\0\0\0\0\0", &list(&[(3, 7)])]
        {
            assert_eq!(Inherited::new(bytes, 0o644), None, "{bytes:?}");
        }
    }
}
