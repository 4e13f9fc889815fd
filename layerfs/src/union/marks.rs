//! The upper's on-disk format, which is the kernel's: whiteouts, opaque directories, redirects, and one mark of our own.
//!
//! Invariant: the kernel's overlayfs mounts what these functions write and shows the same tree; our own
//! mark has a name in the namespace that the kernel hides and ignores. Nothing here knows nodes.
//! Format: <https://docs.kernel.org/filesystems/overlayfs.html>

use rustix::{
    fs::{FileType, Stat, XattrFlags},
    io::{Errno, Result},
};

use super::handles::Handle;
use crate::tree::TreeInode;

/// Longest redirect that is believed: the kernel's `PATH_MAX`.
const REDIRECT_BYTES: usize = 4096;

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

    /// Whether an xattr belongs to the format and is not the user's.
    pub(crate) fn owns(self, name: &[u8]) -> bool {
        name.starts_with(self.prefix())
    }

    pub(crate) fn opacity(self, directory: &Handle) -> Result<Opacity> {
        Ok(match directory.xattr(&self.name("opaque"))?.as_deref() {
            Some(b"y") => Opacity::Opaque,
            Some(b"x") => Opacity::XattrWhiteouts,
            _ => Opacity::Merged,
        })
    }

    pub(crate) fn set_opaque(self, directory: &Handle) -> Result<()> {
        directory.set_xattr(&self.name("opaque"), b"y", XattrFlags::empty())
    }

    /// Marks a directory that holds whiteouts in their xattr form.
    pub(crate) fn set_xattr_whiteouts(self, directory: &Handle) -> Result<()> {
        directory.set_xattr(&self.name("opaque"), b"x", XattrFlags::empty())
    }

    /// The path in the tree of the directory that is merged with this one, from the tree's root if it starts with a slash.
    pub(crate) fn redirect(self, directory: &Handle) -> Result<Option<Vec<u8>>> {
        match directory.xattr(&self.name("redirect"))? {
            Some(path) if path.len() > REDIRECT_BYTES || path.is_empty() => Err(Errno::IO),
            other => Ok(other),
        }
    }

    pub(crate) fn set_redirect(self, directory: &Handle, path: &[u8]) -> Result<()> {
        directory.set_xattr(&self.name("redirect"), path, XattrFlags::empty())
    }

    /// The tree's file that this one was copied from.
    pub(crate) fn origin(self, file: &Handle) -> Result<Option<TreeInode>> {
        Ok(file.xattr(&self.name("nacre.origin"))?.and_then(|value| parse_origin(&value)))
    }

    /// As [`Self::origin`], for what is in a directory under a name.
    pub(crate) fn origin_of(self, directory: &Handle, name: &[u8]) -> Result<Option<TreeInode>> {
        Ok(directory.xattr_of(name, &self.name("nacre.origin"))?.and_then(|value| parse_origin(&value)))
    }

    /// Whether a file has no content of its own but that of the tree's file.
    pub(crate) fn is_split(self, file: &Handle) -> Result<bool> {
        Ok(file.xattr(&self.name("metacopy"))?.is_some())
    }

    /// As [`Self::is_split`], for what is in a directory under a name.
    pub(crate) fn is_split_at(self, directory: &Handle, name: &[u8]) -> Result<bool> {
        Ok(directory.xattr_of(name, &self.name("metacopy"))?.is_some())
    }

    /// Marks a file as one with the metadata only; false where the file system has no room for marks.
    pub(crate) fn set_split(self, file: &Handle) -> Result<bool> {
        match file.set_xattr(&self.name("metacopy"), b"", XattrFlags::empty()) {
            Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => Ok(false),
            other => other.map(|()| true),
        }
    }

    pub(crate) fn clear_split(self, file: &Handle) -> Result<()> {
        file.remove_xattr(&self.name("metacopy"))
    }

    /// Records the origin. It only keeps `st_ino` stable over a remount, so where the file system or the
    /// kind of file has no room for it (`user.` xattrs of symbolic links), it is left out.
    pub(crate) fn set_origin(self, file: &Handle, origin: TreeInode) -> Result<()> {
        let value = origin.0.to_string();
        match file.set_xattr(&self.name("nacre.origin"), value.as_bytes(), XattrFlags::empty()) {
            Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => Ok(()),
            other => other,
        }
    }

    pub(crate) fn set_whiteout(self, file: &Handle) -> Result<()> {
        file.set_xattr(&self.name("whiteout"), b"y", XattrFlags::empty())
    }

    pub(crate) fn has_whiteout(self, file: &Handle) -> Result<bool> {
        Ok(file.xattr(&self.name("whiteout"))?.is_some())
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
