//! The fields of one entry, from its header and from what extends it.
//!
//! Invariant: an extended header wins over a long name of GNU, and both over the header's own fields;
//! what comes out is validated. It reads no bytes of a tar itself.

use std::ops::Range;

use super::entry::{Entry, EntryKind, Mark, Xattr};
use super::error::EntryFault;
use super::header::{DEVICE_MAJOR, DEVICE_MINOR, GID, Header, LINK_NAME, MODE, MODIFIED, SIZE, TYPE, UID};
use super::path::EntryPath;
use super::pax::{Records, parse_decimal, parse_time};
use crate::tree::Time;

/// The longest symbolic link of Linux, `PATH_MAX` without its NUL.
const SYMLINK_MAX_BYTES: usize = 4095;
/// The largest device numbers of Linux: 12 bits and 20 bits.
const MAJOR_MAX: u32 = (1 << 12) - 1;
const MINOR_MAX: u32 = (1 << 20) - 1;
/// What of an extended header an entry is made of, but for the extended attributes and the maps of sparse files.
pub(super) const KEYS: [&[u8]; 6] = [b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime"];

/// What the headers before an entry's own say about it.
#[derive(Default)]
pub(super) struct Extended {
    pub(super) records: Records,
    pub(super) long_name: Option<Vec<u8>>,
    pub(super) long_link: Option<Vec<u8>>,
}

/// A header together with what extends it.
pub(super) struct Fields<'a> {
    pub(super) header: &'a Header,
    pub(super) extended: &'a Extended,
    pub(super) global: &'a Records,
}

impl Fields<'_> {
    fn record(&self, key: &[u8]) -> Option<&[u8]> {
        self.extended.records.value(key).or_else(|| self.global.value(key))
    }

    pub(super) fn name(&self) -> Vec<u8> {
        let sparse = self.extended.records.value(b"GNU.sparse.name");
        let extended = sparse.or_else(|| self.record(b"path")).or(self.extended.long_name.as_deref());
        extended.map_or_else(|| self.header.full_name(), <[u8]>::to_vec)
    }

    fn link_name(&self) -> &[u8] {
        let extended = self.record(b"linkpath").or(self.extended.long_link.as_deref());
        extended.unwrap_or_else(|| self.header.text(LINK_NAME))
    }

    pub(super) fn stored_bytes(&self) -> Result<u64, EntryFault> {
        let size = match self.record(b"size") {
            Some(text) => parse_decimal(text),
            None => self.header.number(SIZE).and_then(|n| u64::try_from(n).ok()),
        };
        // Positions in a tar stay far from overflow.
        size.filter(|&size| size < 1 << 62).ok_or(EntryFault::Number("size"))
    }

    fn id(&self, key: &'static str, field: Range<usize>) -> Result<u32, EntryFault> {
        let id = match self.record(key.as_bytes()) {
            Some(text) => parse_decimal(text).and_then(|id| u32::try_from(id).ok()),
            None => self.header.number(field).and_then(|id| u32::try_from(id).ok()),
        };
        // The highest number means "nobody in particular" to every system call: no file is owned by it.
        id.filter(|&id| id != u32::MAX).ok_or(EntryFault::Number(key))
    }

    fn modified(&self) -> Result<Time, EntryFault> {
        let time = match self.record(b"mtime") {
            Some(text) => parse_time(text),
            None => self.header.number(MODIFIED).map(|seconds| Time { seconds, nanoseconds: 0 }),
        };
        time.ok_or(EntryFault::Number("modification time"))
    }

    fn xattrs(&self) -> Result<Vec<Xattr>, EntryFault> {
        let mut xattrs = self.global.xattrs()?;
        xattrs.extend(self.extended.records.xattrs()?);
        // The last record of a name wins: it comes first in its run, and the rest goes.
        xattrs.reverse();
        xattrs.sort_by(|(a, _), (b, _)| a.cmp(b));
        xattrs.dedup_by(|next, kept| next.0 == kept.0);
        Ok(xattrs)
    }

    /// The entry; `None` where the name has no meaning for a layer.
    pub(super) fn entry(&self, raw_name: &[u8]) -> Result<Option<Entry>, EntryFault> {
        let (path, mark) = match Mark::of(EntryPath::parse(raw_name)?)? {
            Mark::Aufs => return Ok(None),
            Mark::Plain(path) => (path, None),
            Mark::Whiteout(path) => (path, Some(EntryKind::Whiteout)),
            Mark::Opaque(path) => (path, Some(EntryKind::Opaque)),
        };
        let kind = self.kind(raw_name)?;
        let kind = mark.unwrap_or(kind);
        if path.is_root() && !matches!(kind, EntryKind::Directory | EntryKind::Opaque) {
            return Err(EntryFault::Root);
        }
        let mode =
            self.header.number(MODE).and_then(|mode| u32::try_from(mode).ok()).ok_or(EntryFault::Number("mode"))?;
        let (uid, gid) = (self.id("uid", UID)?, self.id("gid", GID)?);
        let (modified, xattrs) = (self.modified()?, self.xattrs()?);
        Ok(Some(Entry { path, kind, mode: mode & 0o7777, uid, gid, modified, xattrs }))
    }

    fn kind(&self, raw_name: &[u8]) -> Result<EntryKind, EntryFault> {
        Ok(match self.header.0[TYPE] {
            // Tars from before POSIX mark a directory by its slash alone.
            0 if raw_name.ends_with(b"/") => EntryKind::Directory,
            b'0' | 0 | b'7' | b'S' => EntryKind::File { size_bytes: 0 },
            b'1' => EntryKind::HardLink { target: self.link_target()? },
            b'2' => EntryKind::Symlink { target: self.symlink_target()? },
            b'3' => EntryKind::CharacterDevice { major: self.major()?, minor: self.minor()? },
            b'4' => EntryKind::BlockDevice { major: self.major()?, minor: self.minor()? },
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            other => return Err(EntryFault::Type(other)),
        })
    }

    fn link_target(&self) -> Result<EntryPath, EntryFault> {
        EntryPath::parse(self.link_name()).map_err(EntryFault::LinkTarget)
    }

    fn symlink_target(&self) -> Result<Vec<u8>, EntryFault> {
        let target = self.link_name();
        let is_valid = (1..=SYMLINK_MAX_BYTES).contains(&target.len()) && !target.contains(&0);
        if is_valid { Ok(target.to_vec()) } else { Err(EntryFault::SymlinkTarget) }
    }

    fn major(&self) -> Result<u32, EntryFault> {
        self.device(DEVICE_MAJOR, MAJOR_MAX)
    }

    fn minor(&self) -> Result<u32, EntryFault> {
        self.device(DEVICE_MINOR, MINOR_MAX)
    }

    fn device(&self, field: Range<usize>, most: u32) -> Result<u32, EntryFault> {
        let number = self.header.number(field).and_then(|n| u32::try_from(n).ok());
        number.filter(|&number| number <= most).ok_or(EntryFault::Number("device"))
    }
}
