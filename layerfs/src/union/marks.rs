//! The upper's on-disk format, which is the kernel's: whiteouts, opaque directories, redirects, and one mark of our
//! own.
//!
//! Invariant: the kernel's overlayfs mounts what these functions write and shows the same tree; our own
//! mark has a name in the namespace that the kernel hides and ignores. Nothing here knows nodes.
//! Format: <https://docs.kernel.org/filesystems/overlayfs.html>

use std::borrow::Cow;

use rustix::{
    fs::{FileType, Stat, XattrFlags},
    io::{Errno, Result},
};

use super::{
    handles::Handle,
    kernel::{LinkBase, tree_inode},
};
use crate::tree::TreeInode;

/// Longest redirect that is believed: the kernel's `PATH_MAX`.
const REDIRECT_BYTES: usize = 4096;

/// What comes behind the prefix in an xattr of the user's that looks like a mark.
const ESCAPE: &[u8] = b"overlay.";

/// Where the marks are kept: the kernel reads `trusted.` where it was mounted by root of the machine,
/// and `user.` where the overlay has the option `userxattr`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MarkNamespace {
    /// `trusted.overlay.*`: needs `CAP_SYS_ADMIN` in the initial user namespace.
    Trusted,
    /// `user.overlay.*`.
    User,
}

/// How much an upper directory hides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opacity {
    /// It is merged with the tree.
    Merged,
    /// It is merged, and its whiteouts may be files with an xattr.
    XattrWhiteouts,
    /// It hides the tree's directory.
    Opaque,
}

impl MarkNamespace {
    fn prefix(self) -> &'static [u8] {
        match self {
            Self::Trusted => b"trusted.overlay.",
            Self::User => b"user.overlay.",
        }
    }

    fn name(self, mark: &str) -> Vec<u8> {
        [self.prefix(), mark.as_bytes()].concat()
    }

    fn read(self, file: &Handle, mark: &str) -> Result<Option<Vec<u8>>> {
        let name = self.name(mark);
        file.granted(0o400, || file.xattr(&name))
    }

    fn write(self, file: &Handle, mark: &str, value: &[u8]) -> Result<()> {
        let name = self.name(mark);
        file.granted(0o200, || file.set_xattr(&name, value, XattrFlags::empty()))
    }

    /// The name under which an xattr of the user's is stored: one that looks like a mark is escaped, as the kernel's
    /// overlayfs does since 6.7. <https://docs.kernel.org/filesystems/overlayfs.html#nesting-overlayfs-mounts>
    pub(crate) fn stored<'a>(self, shown: &'a [u8]) -> Cow<'a, [u8]> {
        match shown.strip_prefix(self.prefix()) {
            Some(rest) => Cow::Owned([self.prefix(), ESCAPE, rest].concat()),
            None => Cow::Borrowed(shown),
        }
    }

    /// The user's name of an xattr that is stored; `None` for a mark.
    pub(crate) fn shown<'a>(self, stored: &'a [u8]) -> Option<Cow<'a, [u8]>> {
        let Some(rest) = stored.strip_prefix(self.prefix()) else { return Some(Cow::Borrowed(stored)) };
        Some(Cow::Owned([self.prefix(), rest.strip_prefix(ESCAPE)?].concat()))
    }

    pub(crate) fn opacity(self, directory: &Handle) -> Result<Opacity> {
        Ok(match self.read(directory, "opaque")?.as_deref() {
            Some(b"y") => Opacity::Opaque,
            Some(b"x") => Opacity::XattrWhiteouts,
            _ => Opacity::Merged,
        })
    }

    pub(crate) fn set_opaque(self, directory: &Handle) -> Result<()> {
        self.write(directory, "opaque", b"y")
    }

    /// Marks a directory that holds whiteouts in their xattr form.
    pub(crate) fn set_xattr_whiteouts(self, directory: &Handle) -> Result<()> {
        self.write(directory, "opaque", b"x")
    }

    /// The path in the tree of the directory that is merged with this one, from the tree's root if it starts with a
    /// slash.
    pub(crate) fn redirect(self, directory: &Handle) -> Result<Option<Vec<u8>>> {
        match self.read(directory, "redirect")? {
            Some(path) if path.len() > REDIRECT_BYTES || path.is_empty() => Err(Errno::IO),
            other => Ok(other),
        }
    }

    pub(crate) fn set_redirect(self, directory: &Handle, path: &[u8]) -> Result<()> {
        if path.len() > REDIRECT_BYTES {
            return Err(Errno::NAMETOOLONG);
        }
        self.write(directory, "redirect", path)
    }

    /// How many names an overlay shows of what is in its index under a name, as a difference to a link count.
    pub(crate) fn link_difference(self, index: &Handle, name: &[u8]) -> Result<Option<(LinkBase, i64)>> {
        let value = index.xattr_of(name, &self.name("nlink"))?;
        let parsed = value.as_deref().and_then(|value| value.split_first()).and_then(|(base, number)| {
            let base = match base {
                b'U' => LinkBase::Upper,
                b'L' => LinkBase::Lower,
                _ => return None,
            };
            Some((base, std::str::from_utf8(number).ok()?.parse().ok()?))
        });
        Ok(parsed)
    }

    /// The tree's file that this one was copied from.
    pub(crate) fn origin(self, file: &Handle) -> Result<Option<TreeInode>> {
        match self.read(file, "nacre.origin")?.and_then(|value| parse_origin(&value)) {
            None => Ok(self.read(file, "origin")?.and_then(|handle| tree_inode(&handle))),
            ours => Ok(ours),
        }
    }

    /// As [`Self::origin`], for what is in a directory under a name.
    pub(crate) fn origin_of(self, directory: &Handle, name: &[u8]) -> Result<Option<TreeInode>> {
        Ok(directory.xattr_of(name, &self.name("nacre.origin"))?.and_then(|value| parse_origin(&value)))
    }

    /// The same, as the kernel's overlayfs wrote it down over a tree of ours.
    pub(crate) fn kernel_origin_of(self, directory: &Handle, name: &[u8]) -> Result<Option<TreeInode>> {
        Ok(directory.xattr_of(name, &self.name("origin"))?.and_then(|handle| tree_inode(&handle)))
    }

    /// Whether a file has no content of its own but that of the tree's file.
    pub(crate) fn is_split(self, file: &Handle) -> Result<bool> {
        Ok(self.read(file, "metacopy")?.is_some())
    }

    /// As [`Self::is_split`], for what is in a directory under a name.
    pub(crate) fn is_split_at(self, directory: &Handle, name: &[u8]) -> Result<bool> {
        Ok(directory.xattr_of(name, &self.name("metacopy"))?.is_some())
    }

    /// Marks a file as one with the metadata only; false where the file system has no room for marks.
    pub(crate) fn set_split(self, file: &Handle) -> Result<bool> {
        match self.write(file, "metacopy", b"") {
            Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => Ok(false),
            other => other.map(|()| true),
        }
    }

    pub(crate) fn clear_split(self, file: &Handle) -> Result<()> {
        file.granted(0o200, || file.remove_xattr(&self.name("metacopy")))
    }

    /// Records the origin. It only keeps `st_ino` stable over a remount, so where the file system or the
    /// kind of file has no room for it (`user.` xattrs of symbolic links), it is left out.
    pub(crate) fn set_origin(self, file: &Handle, origin: TreeInode) -> Result<()> {
        let value = origin.0.to_string();
        match self.write(file, "nacre.origin", value.as_bytes()) {
            Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => Ok(()),
            other => other,
        }
    }

    pub(crate) fn set_whiteout(self, file: &Handle) -> Result<()> {
        self.write(file, "whiteout", b"y")
    }

    pub(crate) fn has_whiteout(self, file: &Handle) -> Result<bool> {
        Ok(self.read(file, "whiteout")?.is_some())
    }
}

fn parse_origin(value: &[u8]) -> Option<TreeInode> {
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).map(TreeInode)
}

/// Whether this is a whiteout in its usual form, a character device 0:0.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Whether this may be a whiteout in its xattr form: an empty file.
pub(crate) fn may_be_xattr_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_size == 0
}
