//! Deletion marks of AUFS in an upper that others write as well: they become marks of the kernel's overlayfs, but for
//! that of an opaque directory where the file system has no attributes. It stays then, and is made for new ones.
//!
//! Invariant: a mark goes only once what stands for it is there, so that nothing hidden shows through at any moment;
//! and the directory keeps its times. containers/storage unpacks layers with such marks and mounts them as uppers.

use std::sync::Arc;

use rustix::{
    fs::{AtFlags, FileType, Mode},
    io::{Errno, Result},
};

use super::{
    copy_up::restore_times,
    handles::Handle,
    marks::Opacity,
    names::Names,
    upper::{Upper, open_at},
};
use crate::{
    tar::{OPAQUE_NAME, WHITEOUT_PREFIX},
    tree::FileKind,
};

impl Upper {
    /// Translates the marks in one directory, where there may be any. Whether one stays that makes it opaque.
    pub(super) fn translate_aufs_marks(&self, directory: &Arc<Handle>) -> Result<bool> {
        if !self.has_aufs_marks {
            return Ok(false);
        }
        let marks = aufs_marks(directory)?;
        if marks.is_empty() {
            return Ok(false);
        }
        let before = directory.stat()?;
        let opacity = self.marks.opacity(directory)?;
        let is_opaque = opacity == Opacity::Opaque || marks.iter().any(|(mark, _)| mark == OPAQUE_NAME);
        let stays = is_opaque && self.set_opaque(directory)?;
        let mut names = Names::default();
        names.has_xattr_whiteouts = opacity == Opacity::XattrWhiteouts;
        for (mark, is_directory) in marks {
            if mark != OPAQUE_NAME {
                self.hide(&mut names, directory, &mark[WHITEOUT_PREFIX.len()..], is_opaque)?;
            } else if stays {
                continue;
            }
            let flags = if is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
            match rustix::fs::unlinkat(&**directory, mark, flags) {
                // What somebody keeps in it is not ours to remove; it is not shown.
                Ok(()) | Err(Errno::NOTEMPTY) => {}
                Err(error) => return Err(error),
            }
        }
        restore_times(&**directory, &before)?;
        Ok(stays)
    }

    /// Marks a directory as opaque; true where that is by a name in it, which is hidden as a whiteout is.
    pub(super) fn set_opaque(&self, directory: &Handle) -> Result<bool> {
        match self.marks.set_opaque(directory) {
            Err(Errno::OPNOTSUPP) if self.has_aufs_marks => {
                let mode = Mode::RUSR | Mode::WUSR;
                match rustix::fs::mknodat(directory, OPAQUE_NAME, FileType::RegularFile, mode, 0) {
                    Ok(()) | Err(Errno::EXIST) => Ok(true),
                    Err(error) => Err(error),
                }
            }
            set => set.map(|()| false),
        }
    }

    /// Hides what the tree has under a name; what the upper has there stays, without the tree's directory below.
    fn hide(&self, names: &mut Names, directory: &Arc<Handle>, name: &[u8], is_opaque: bool) -> Result<()> {
        match rustix::fs::statat(&**directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) if is_opaque => Ok(()),
            Err(Errno::NOENT) => self.put_whiteout(names, directory, name, None),
            Err(error) => Err(error),
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                self.set_opaque(&open_at(&**directory, name, FileKind::Directory)?).map(drop)
            }
            Ok(_) => Ok(()),
        }
    }
}

/// The marks in a directory, and whether each is a directory itself.
fn aufs_marks(directory: &Handle) -> Result<Vec<(Vec<u8>, bool)>> {
    let mut marks = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        // `.wh..` and `.wh...` would name the directory itself and its parent.
        let is_name = |hidden: &[u8]| !matches!(hidden, b"" | b"." | b"..") && !hidden.starts_with(WHITEOUT_PREFIX);
        let is_mark = name == OPAQUE_NAME || name.strip_prefix(WHITEOUT_PREFIX).is_some_and(is_name);
        if is_mark {
            marks.push((name.to_vec(), entry.file_type() == FileType::Directory));
        }
    }
    Ok(marks)
}
