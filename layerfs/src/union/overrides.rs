//! Owner, mode and kind that containers/storage keeps in an attribute of a file, where its store gives all files one mode
//! (`force_mask`): read in the layers below, and translated in an upper to what the file system itself says.
//!
//! Invariant: the attribute goes only once the file is what it says; and it says nothing unless the layer's root directory
//! has one, or the mount was asked to look. Format:
//! <https://github.com/containers/storage/blob/main/pkg/idtools/idtools.go>, `FormatContainersOverrideXattrDevice`.

use std::os::fd::{AsFd, AsRawFd};

use rustix::{
    fs::{FileType, Timespec, Timestamps, XattrFlags},
    io::{Errno, Result},
};

use super::{
    CAPABILITY,
    copy_up::restore_times,
    create::make_special,
    handles::{Handle, read_xattr},
    kind_of,
    upper::{Upper, open_at},
};
use crate::tree::{Attributes, FileKind};

/// What attributes of this kind are called; no user of a mount sets one.
pub(crate) const PREFIX: &[u8] = b"user.containers.override_";

const NAME: &[u8] = b"user.containers.override_stat";

/// What a file is to be shown as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Override {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mode: u32,
    /// What a regular file stands for, with the numbers of a device.
    pub(crate) special: Option<(FileKind, (u32, u32))>,
}

impl Override {
    /// `None` for what is none.
    fn parse(value: &[u8]) -> Option<Self> {
        let mut fields = std::str::from_utf8(value).ok()?.split(':');
        let mut number = |radix| u32::from_str_radix(fields.next()?, radix).ok();
        let (uid, gid, mode) = (number(10)?, number(10)?, number(8)? & 0o7777);
        let device = |numbers: &str| {
            let mut numbers = numbers.split('-').map(|number| number.parse().ok());
            Some((numbers.next()??, numbers.next()??))
        };
        let special = match fields.next() {
            Some("pipe") => Some((FileKind::Fifo, (0, 0))),
            Some("socket") => Some((FileKind::Socket, (0, 0))),
            Some(kind) => match kind.split_once('-') {
                Some(("block", numbers)) => Some((FileKind::BlockDevice, device(numbers)?)),
                // One that would be a whiteout stays a file.
                Some(("char", numbers)) => {
                    Some((FileKind::CharacterDevice, device(numbers)?)).filter(|(_, device)| *device != (0, 0))
                }
                _ => None,
            },
            None => None,
        };
        (uid != u32::MAX && gid != u32::MAX).then_some(Self { uid, gid, mode, special })
    }

    /// The attributes of a file with this put over them.
    pub(crate) fn over(&self, below: Attributes) -> Attributes {
        let shown = Attributes { uid: self.uid, gid: self.gid, mode: self.mode, ..below };
        match self.special.filter(|_| below.kind == FileKind::File) {
            Some((kind, device)) => Attributes { kind, device, size_bytes: 0, data_bytes: 0, ..shown },
            None => shown,
        }
    }

    /// That of what is in a directory under a name, which may be `.`.
    pub(crate) fn of(directory: impl AsFd, name: &[u8]) -> Result<Option<Self>> {
        let mut path = format!("/proc/self/fd/{}/", directory.as_fd().as_raw_fd()).into_bytes();
        path.extend_from_slice(name);
        match read_xattr(|buffer| rustix::fs::lgetxattr(&path[..], NAME, buffer)) {
            // Of a file that we may not read it is not for us.
            Err(Errno::ACCESS) => Ok(None),
            value => Ok(value?.and_then(|value| Self::parse(&value))),
        }
    }
}

impl Upper {
    /// Makes what is in a directory what the attributes say.
    pub(super) fn translate_overrides(&self, directory: &Handle) -> Result<()> {
        if !self.has_overrides {
            return Ok(());
        }
        for entry in rustix::fs::Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") || entry.file_type() == FileType::Symlink {
                continue;
            }
            if let Some(wanted) = directory.xattr_of(name, NAME)?.and_then(|value| Override::parse(&value)) {
                match self.translate(directory, name, &wanted) {
                    // Nobody here can own it: a user namespace has other ids. It is shown as it is.
                    Err(Errno::PERM | Errno::INVAL) => {
                        tracing::warn!(name = %name.escape_ascii(), "a file cannot be given the owner that its store keeps for it");
                    }
                    other => other?,
                }
            }
        }
        Ok(())
    }

    /// As [`Self::translate_overrides`], for the root itself as well.
    pub(super) fn translate_root_overrides(&self) -> Result<()> {
        if self.has_overrides
            && let Some(wanted) = self.root.xattr(NAME)?.and_then(|value| Override::parse(&value))
        {
            translate_handle(&self.root, &wanted)?;
        }
        self.translate_overrides(&self.root)
    }

    fn translate(&self, directory: &Handle, name: &[u8], wanted: &Override) -> Result<()> {
        let stat = rustix::fs::statat(directory, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
        let Some((kind, device)) = wanted.special.filter(|_| kind_of(&stat) == FileKind::File) else {
            return translate_handle(&open_at(directory, name, kind_of(&stat))?, wanted);
        };
        let before = directory.stat()?;
        let temporary = self.temporary_name();
        make_special(&self.temporary, temporary.as_bytes(), kind, b"", device)?;
        let made = open_at(&self.temporary, temporary.as_bytes(), kind).and_then(|made| {
            made.set_owner(Some(wanted.uid), Some(wanted.gid))?;
            made.set_mode(wanted.mode)?;
            let time = Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec.cast_signed() };
            made.set_times(&Timestamps { last_access: time, last_modification: time })?;
            rustix::fs::renameat(&self.temporary, &*temporary, directory, name)
        });
        made.inspect_err(|_| self.discard(&temporary))?;
        restore_times(directory, &before)
    }
}

/// Owner first, a change of which takes set-id bits and the capability.
fn translate_handle(file: &Handle, wanted: &Override) -> Result<()> {
    let capability = file.xattr(CAPABILITY)?;
    file.set_owner(Some(wanted.uid), Some(wanted.gid))?;
    if let Some(value) = capability {
        file.set_xattr(CAPABILITY, &value, XattrFlags::empty())?;
    }
    file.set_mode(wanted.mode)?;
    file.granted(0o200, || file.remove_xattr(NAME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_containers_storage_writes_is_understood_and_nothing_else() {
        let plain = Override { uid: 5, gid: 6, mode: 0o4711, special: None };
        for value in ["5:6:4711", "5:6:104711", "5:6:4711:file", "5:6:4711:dir", "5:6:4711:later:more"] {
            assert_eq!(Override::parse(value.as_bytes()), Some(plain), "{value}");
        }
        assert_eq!(Override::parse(b"5:6:4711:char-0-0"), Some(plain));
        let special = |value: &str| Override::parse(value.as_bytes()).and_then(|parsed| parsed.special);
        assert_eq!(special("0:0:0644:pipe"), Some((FileKind::Fifo, (0, 0))));
        assert_eq!(special("0:0:0600:block-8-1"), Some((FileKind::BlockDevice, (8, 1))));
        assert_eq!(special("0:0:0666:char-1-3-later"), Some((FileKind::CharacterDevice, (1, 3))));
        for value in [
            "",
            "5",
            "5:6",
            "5:6:",
            "a:6:644",
            "-1:6:644",
            "5:4294967295:644",
            "5:6:9",
            "0:0:644:char-1",
            "5:6:644:block-x-1",
        ] {
            assert_eq!(Override::parse(value.as_bytes()), None, "{value}");
        }
        assert_eq!(Override::parse(b"5:6:\xff"), None);
    }
}
