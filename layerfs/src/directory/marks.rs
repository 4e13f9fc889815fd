//! What hides names in plain directories: the marks of the kernel's overlayfs, of fuse-overlayfs, and of AUFS.
//!
//! Invariant: marks are read, never written, and never shown.
//! Formats: <https://docs.kernel.org/filesystems/overlayfs.html>,
//! <https://github.com/opencontainers/image-spec/blob/main/layer.md#whiteouts>.

use std::os::fd::AsFd;

use rustix::{
    fs::{AtFlags, FileType, Stat},
    io::{Errno, Result},
};

use crate::{
    tar::{OPAQUE_NAME, WHITEOUT_PREFIX},
    union::Handle,
};

/// Prefixes of extended attributes that belong to a union and not to the file.
const PREFIXES: [&[u8]; 3] = [b"trusted.overlay.", b"user.overlay.", b"user.fuseoverlayfs."];

/// Longest redirect that is believed: the kernel's `PATH_MAX`.
pub(super) const REDIRECT_BYTES: usize = 4096;

/// What the extended attributes of a directory say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct DirectoryMarks {
    /// It hides the directories below it.
    pub(super) is_opaque: bool,
    /// Files in it may be whiteouts by an extended attribute.
    pub(super) has_xattr_whiteouts: bool,
    /// Where the directory that it is merged with lies in the layers below: from the root if it starts with a slash,
    /// else beside it.
    pub(super) redirect: Option<Vec<u8>>,
}

/// What a name in a directory of a layer is.
#[derive(Debug)]
pub(super) enum Mark {
    /// A file.
    File,
    /// It hides this name in the layers below.
    Whiteout(Vec<u8>),
    /// It hides everything in the layers below.
    Opaque,
    /// AUFS's own; neither a file nor a whiteout.
    Foreign,
}

pub(super) fn is_mark(name: &[u8]) -> bool {
    PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

fn xattr(file: impl AsFd, name: &str) -> Result<Option<Vec<u8>>> {
    let mut value = vec![0; REDIRECT_BYTES];
    match rustix::fs::fgetxattr(file, name, &mut value[..]) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(Errno::RANGE) => Err(Errno::IO),
        Err(error) => Err(error),
    }
}

/// Reads the marks of an open directory. A redirect that could not have been made by an overlay is `EIO`.
pub(super) fn read(directory: impl AsFd) -> Result<DirectoryMarks> {
    let mut marks = DirectoryMarks::default();
    // Nearly all directories have no extended attributes at all: one call tells.
    match rustix::fs::flistxattr(&directory, &mut [0; 256][..]) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(marks),
        Ok(_) | Err(Errno::RANGE) => {}
        Err(error) => return Err(error),
    }
    for name in ["trusted.overlay.opaque", "user.overlay.opaque", "user.fuseoverlayfs.opaque"] {
        match xattr(&directory, name)?.as_deref() {
            Some(b"y") => marks.is_opaque = true,
            Some(b"x") => marks.has_xattr_whiteouts = true,
            _ => {}
        }
    }
    for name in ["trusted.overlay.redirect", "user.overlay.redirect"] {
        if let Some(path) = xattr(&directory, name)? {
            if !is_redirect(&path) {
                return Err(Errno::IO);
            }
            marks.redirect = Some(path);
            break;
        }
    }
    Ok(marks)
}

/// One name, or a path from the root, of names that lead down only.
fn is_redirect(path: &[u8]) -> bool {
    let names = path.strip_prefix(b"/").unwrap_or(path);
    let has_slash = names.contains(&b'/');
    let is_name = |name: &[u8]| !matches!(name, b"" | b"." | b"..") && !name.contains(&0) && name.len() <= 255;
    (path.starts_with(b"/") || !has_slash) && names.split(|byte| *byte == b'/').all(is_name)
}

/// What a name with this `stat` is; `has_xattr_whiteouts` as its directory says.
pub(super) fn of(directory: impl AsFd, name: &[u8], stat: &Stat, has_xattr_whiteouts: bool) -> Result<Mark> {
    if name == OPAQUE_NAME {
        return Ok(Mark::Opaque);
    }
    if let Some(hidden) = name.strip_prefix(WHITEOUT_PREFIX) {
        let is_name = !matches!(hidden, b"" | b"." | b"..") && !hidden.starts_with(WHITEOUT_PREFIX);
        return Ok(if is_name { Mark::Whiteout(hidden.to_vec()) } else { Mark::Foreign });
    }
    let is_whiteout = match FileType::from_raw_mode(stat.st_mode) {
        FileType::CharacterDevice => stat.st_rdev == 0,
        FileType::RegularFile => has_xattr_whiteouts && stat.st_size == 0 && has_whiteout(directory, name)?,
        _ => false,
    };
    Ok(if is_whiteout { Mark::Whiteout(name.to_vec()) } else { Mark::File })
}

fn has_whiteout(directory: impl AsFd, name: &[u8]) -> Result<bool> {
    use rustix::fs::{Mode, OFlags};
    let file = rustix::fs::openat(directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let file = Handle::path_only(file);
    Ok(file.xattr(b"trusted.overlay.whiteout")?.is_some() || file.xattr(b"user.overlay.whiteout")?.is_some())
}

/// Whether a file holds metadata only, and its content is in a layer below.
pub(super) fn has_metacopy(file: impl AsFd) -> Result<bool> {
    Ok(xattr(&file, "trusted.overlay.metacopy")?.is_some() || xattr(&file, "user.overlay.metacopy")?.is_some())
}

/// `stat` of a name that is not followed; `None` where it is gone.
pub(super) fn stat(directory: impl AsFd, name: &[u8]) -> Result<Option<Stat>> {
    match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_leads_down_only() {
        for good in [&b"name"[..], b"/a", b"/a/b"] {
            assert!(is_redirect(good), "{}", good.escape_ascii());
        }
        let long = [&b"/"[..], &[b'x'; 256]].concat();
        for bad in [&b""[..], b"/", b"a/b", b"..", b"/..", b"/a/../b", b"/a//b", b"/a/", b"a\0b", &long] {
            assert!(!is_redirect(bad), "{}", bad.escape_ascii());
        }
    }
}
