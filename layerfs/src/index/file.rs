//! Reads an index file.
//!
//! Invariant: opening looks at the header only, and every later access checks its bounds, so that a
//! file of any content gives answers or [`IndexError::Damaged`]. A directory's number is greater than
//! that of the one it lies in, which is checked too: a walk down always ends.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use super::format::{
    ENTRY_BYTES, EXTENT_BYTES, HEADER_BYTES, INODE_BYTES, InodeRecord, LAYER_BYTES, MAGIC, NO_XATTRS, SECTIONS,
    Section, Subject, TooLarge, VERSION, WHITEOUT_CODE, kind_of_code,
};
use crate::digest::DiffId;
use crate::sys::Mapping;
use crate::tar::Xattr;
use crate::tree::{ACL_PREFIX, FileKind, XattrUse};

/// Why an index cannot be used or made.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// It is not there, or cannot be read.
    #[error("reading the index {path}")]
    Io {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is of another version of the format.
    #[error("the index is of another format or version")]
    Version,
    /// Its bytes make no sense.
    #[error("the index is damaged: {0}")]
    Damaged(&'static str),
    /// It would be too large.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
}

/// The bytes of an index: of a file, or made just now.
#[derive(Debug)]
enum Bytes {
    Mapped(Mapping),
    Owned(Vec<u8>),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(mapping) => mapping,
            Self::Owned(bytes) => bytes,
        }
    }
}

/// An index of a layer or of a tree.
#[derive(Debug)]
pub(crate) struct IndexFile {
    bytes: Bytes,
    sections: [(usize, usize); SECTIONS],
}

/// One name in a directory of an index.
#[derive(Debug, Clone, Copy)]
pub(super) struct EntryRecord<'a> {
    pub(super) name: &'a [u8],
    pub(super) inode: u32,
    /// `None`: a whiteout.
    pub(super) kind: Option<FileKind>,
}

impl IndexFile {
    /// Maps the index in a file.
    pub(crate) fn open(path: &Path, subject: Subject) -> Result<Self, IndexError> {
        let error = |source| IndexError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(error)?;
        Self::check(Bytes::Mapped(Mapping::of_file(&file).map_err(error)?), subject)
    }

    /// An index in memory.
    pub(crate) fn from_bytes(bytes: Vec<u8>, subject: Subject) -> Result<Self, IndexError> {
        Self::check(Bytes::Owned(bytes), subject)
    }

    fn check(bytes: Bytes, subject: Subject) -> Result<Self, IndexError> {
        let header = bytes.first_chunk::<HEADER_BYTES>().ok_or(IndexError::Damaged("shorter than its header"))?;
        let u32_at = |at: usize| header[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        let u64_at = |at: usize| header[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        if &header[..8] != MAGIC || u32_at(8) != VERSION || u32_at(12) != subject.code() {
            return Err(IndexError::Version);
        }
        if u64_at(16) != bytes.len() as u64 {
            return Err(IndexError::Damaged("not as long as it says"));
        }
        let mut sections = [(0, 0); SECTIONS];
        for (number, section) in sections.iter_mut().enumerate() {
            let (offset, length) = (u64_at(24 + 16 * number), u64_at(32 + 16 * number));
            let end = offset.checked_add(length).filter(|&end| end <= bytes.len() as u64);
            let end = end.ok_or(IndexError::Damaged("a section lies outside of the file"))?;
            *section = (offset as usize, end as usize); // within the bytes
        }
        let index = Self { bytes, sections };
        match index.inode(1)?.kind {
            FileKind::Directory => Ok(index),
            _ => Err(IndexError::Damaged("the root is no directory")),
        }
    }

    fn section(&self, section: Section) -> &[u8] {
        let (start, end) = self.sections[section as usize];
        &self.bytes[start..end]
    }

    /// A record of a section; `None` behind its end.
    fn record<const BYTES: usize>(&self, section: Section, number: u64) -> Option<&[u8; BYTES]> {
        let start = usize::try_from(number).ok()?.checked_mul(BYTES)?;
        self.section(section).get(start..)?.first_chunk()
    }

    /// The diff ids of the layers whose tars hold the content, lowest first.
    pub(crate) fn layers(&self) -> Vec<DiffId> {
        self.section(Section::Layers).as_chunks::<LAYER_BYTES>().0.iter().map(|id| DiffId::from_bytes(*id)).collect()
    }

    /// How many inodes there are; the root is number 1.
    pub(super) fn inode_count(&self) -> u64 {
        (self.section(Section::Inodes).len() / INODE_BYTES) as u64
    }

    /// How many entries all directories have together.
    pub(super) fn entry_count(&self) -> u64 {
        (self.section(Section::Entries).len() / ENTRY_BYTES) as u64
    }

    /// An inode.
    pub(super) fn inode(&self, number: u64) -> Result<InodeRecord, IndexError> {
        let bytes = number.checked_sub(1).and_then(|at| self.record(Section::Inodes, at));
        let bytes = bytes.ok_or(IndexError::Damaged("an inode does not exist"))?;
        InodeRecord::from_bytes(bytes).ok_or(IndexError::Damaged("an inode makes no sense"))
    }

    /// Entry `position` of a directory; `number` is the directory's own.
    pub(super) fn entry(
        &self,
        number: u64,
        directory: &InodeRecord,
        position: u32,
    ) -> Result<EntryRecord<'_>, IndexError> {
        let damaged = IndexError::Damaged("an entry does not exist");
        let at = directory.first.checked_add(u64::from(position));
        let Some(bytes) = at.and_then(|at| self.record::<ENTRY_BYTES>(Section::Entries, at)) else {
            return Err(damaged);
        };
        let [a, b, c, d, e, f, g, h, i, j, code, _] = *bytes;
        let offset = u32::from_le_bytes([a, b, c, d]);
        let inode = u32::from_le_bytes([e, f, g, h]);
        let length = u16::from_le_bytes([i, j]);
        let name = self.name(u64::from(offset), u64::from(length))?;
        let is_valid_name = !matches!(name, b"" | b"." | b"..") && !name.iter().any(|&b| b == b'/' || b == 0);
        let kind = kind_of_code(code);
        let is_valid_kind = match kind {
            None => code == WHITEOUT_CODE,
            // Directories lie below what has a smaller number: no walk goes in circles.
            Some(FileKind::Directory) => u64::from(inode) > number,
            Some(_) => true,
        };
        if !is_valid_name || !is_valid_kind {
            return Err(IndexError::Damaged("an entry makes no sense"));
        }
        Ok(EntryRecord { name, inode, kind })
    }

    /// The entry with a name in a directory.
    pub(super) fn find(
        &self,
        number: u64,
        directory: &InodeRecord,
        name: &[u8],
    ) -> Result<Option<EntryRecord<'_>>, IndexError> {
        let (mut low, mut high) = (0, directory.count);
        while low < high {
            let middle = low + (high - low) / 2;
            let entry = self.entry(number, directory, middle)?;
            match entry.name.cmp(name) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Equal => return Ok(Some(entry)),
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        Ok(None)
    }

    /// Bytes among the names.
    pub(super) fn name(&self, offset: u64, length: u64) -> Result<&[u8], IndexError> {
        let names = self.section(Section::Names);
        let end = offset.checked_add(length).filter(|&end| end <= names.len() as u64);
        // Both lie within the names, so they fit.
        end.map(|end| &names[offset as usize..end as usize])
            .ok_or(IndexError::Damaged("a name lies outside of the file"))
    }

    /// Extent `number` of a file: (offset, size, position).
    pub(super) fn extent(&self, file: &InodeRecord, number: u32) -> Result<(u64, u64, u64), IndexError> {
        let at = file.first.checked_add(u64::from(number));
        let bytes = at.and_then(|at| self.record::<EXTENT_BYTES>(Section::Extents, at));
        let (numbers, _) = bytes.ok_or(IndexError::Damaged("an extent does not exist"))?.as_chunks::<8>();
        Ok((u64::from_le_bytes(numbers[0]), u64::from_le_bytes(numbers[1]), u64::from_le_bytes(numbers[2])))
    }

    /// The blob of an inode's xattrs, as it is stored.
    pub(super) fn xattr_blob(&self, inode: &InodeRecord) -> Result<Option<&[u8]>, IndexError> {
        if inode.xattrs == NO_XATTRS {
            return Ok(None);
        }
        let bytes = self.section(Section::Xattrs).get(inode.xattrs as usize..);
        let bytes = bytes.ok_or(IndexError::Damaged("xattrs lie outside of the file"))?;
        let mut rest = bytes;
        for _ in 0..take_count(&mut rest)? {
            take_xattr(&mut rest)?;
        }
        Ok(Some(&bytes[..bytes.len() - rest.len()]))
    }

    /// What the xattrs of all inodes are there for: equal ones are stored once, so this is a short list. Damage shows
    /// where the attributes are used.
    pub(super) fn xattr_use(&self) -> XattrUse {
        let mut rest = self.section(Section::Xattrs);
        let mut found = XattrUse::Unused;
        while !rest.is_empty() {
            found = XattrUse::Plain;
            let Ok(count) = take_count(&mut rest) else { return found };
            for _ in 0..count {
                match take_xattr(&mut rest) {
                    Ok((name, _)) if name.starts_with(ACL_PREFIX) => return XattrUse::Acls,
                    Ok(_) => {}
                    Err(_) => return found,
                }
            }
        }
        found
    }

    /// The xattrs of an inode, sorted by name.
    pub(super) fn xattrs(&self, inode: &InodeRecord) -> Result<Vec<Xattr>, IndexError> {
        let Some(mut blob) = self.xattr_blob(inode)? else { return Ok(Vec::new()) };
        let count = take_count(&mut blob)?;
        (0..count).map(|_| take_xattr(&mut blob).map(|(name, value)| (name.to_vec(), value.to_vec()))).collect()
    }
}

fn take_count(rest: &mut &[u8]) -> Result<u32, IndexError> {
    take(rest, 4).map(|bytes| bytes.iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte)))
}

fn take_xattr<'a>(rest: &mut &'a [u8]) -> Result<(&'a [u8], &'a [u8]), IndexError> {
    let name_length = take(rest, 2)?.iter().rev().fold(0, |value, &byte| value << 8 | usize::from(byte));
    let value_length = take_count(rest)? as usize;
    Ok((take(rest, name_length)?, take(rest, value_length)?))
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Result<&'a [u8], IndexError> {
    let (taken, left) = rest.split_at_checked(count).ok_or(IndexError::Damaged("xattrs lie outside of the file"))?;
    *rest = left;
    Ok(taken)
}
