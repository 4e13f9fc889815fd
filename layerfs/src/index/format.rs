//! The bytes of an index: records and sections, little-endian, written by [`Output`].
//!
//! Invariant: a change of anything here needs another [`VERSION`]; files of another version are
//! rebuilt, not read.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

use crate::digest::DiffId;
use crate::tree::{FileKind, Time};

pub(super) const MAGIC: &[u8; 8] = b"NACREIDX";
/// Raised by any change of the format, or of what layers mean.
pub(super) const VERSION: u32 = 1;
pub(super) const HEADER_BYTES: usize = 128;
pub(super) const INODE_BYTES: usize = 64;
pub(super) const ENTRY_BYTES: usize = 12;
pub(super) const EXTENT_BYTES: usize = 24;
pub(super) const LAYER_BYTES: usize = 32;
pub(super) const SECTIONS: usize = 6;

/// Which section of the file.
#[derive(Debug, Clone, Copy)]
pub(super) enum Section {
    Layers,
    Inodes,
    Entries,
    Names,
    Xattrs,
    Extents,
}

/// What an index file describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subject {
    /// One layer, with whiteouts.
    Layer,
    /// A merged stack, without.
    Tree,
}

impl Subject {
    pub(super) fn code(self) -> u32 {
        match self {
            Self::Layer => 1,
            Self::Tree => 2,
        }
    }
}

/// The names in the directory in the layers below are hidden.
pub(super) const FLAG_OPAQUE: u8 = 1;
/// No entry of the layer describes the directory; it is only on the way to others.
pub(super) const FLAG_IMPLIED: u8 = 2;
/// The directory replaces whatever was below, so that it inherits no attributes either.
pub(super) const FLAG_NEW: u8 = 4;
/// In the kind of an entry: the name is removed from the layers below.
pub(super) const WHITEOUT_CODE: u8 = 0xff;
/// In place of an offset in the xattrs: there are none.
pub(super) const NO_XATTRS: u32 = u32::MAX;

pub(super) fn kind_code(kind: FileKind) -> u8 {
    match kind {
        FileKind::File => 1,
        FileKind::Directory => 2,
        FileKind::Symlink => 3,
        FileKind::CharacterDevice => 4,
        FileKind::BlockDevice => 5,
        FileKind::Fifo => 6,
        FileKind::Socket => 7,
    }
}

pub(super) fn kind_of_code(code: u8) -> Option<FileKind> {
    Some(match code {
        1 => FileKind::File,
        2 => FileKind::Directory,
        3 => FileKind::Symlink,
        4 => FileKind::CharacterDevice,
        5 => FileKind::BlockDevice,
        6 => FileKind::Fifo,
        7 => FileKind::Socket,
        _ => return None,
    })
}

/// An inode as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InodeRecord {
    pub(super) kind: FileKind,
    pub(super) flags: u8,
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) links: u32,
    /// File: content. Symbolic link: target.
    pub(super) size_bytes: u64,
    pub(super) modified: Time,
    /// File: which of the index's layers holds the content.
    pub(super) layer: u32,
    /// File without extents: position in the tar; with extents: number of the first one. Directory:
    /// number of its first entry. Symbolic link: offset of the target in the names. Device: its number.
    pub(super) first: u64,
    /// File: number of extents, 0 if the content is in one piece. Directory: number of entries.
    pub(super) count: u32,
    pub(super) xattrs: u32,
    pub(super) data_bytes: u64,
}

impl InodeRecord {
    /// A directory of root's that nothing describes.
    pub(super) fn implied_directory() -> Self {
        Self {
            kind: FileKind::Directory,
            flags: FLAG_IMPLIED,
            mode: 0o755,
            uid: 0,
            gid: 0,
            links: 2,
            size_bytes: 0,
            modified: Time::default(),
            layer: 0,
            first: 0,
            count: 0,
            xattrs: NO_XATTRS,
            data_bytes: 0,
        }
    }

    fn to_bytes(self) -> [u8; INODE_BYTES] {
        let mut bytes = Vec::with_capacity(INODE_BYTES);
        bytes.extend_from_slice(&[kind_code(self.kind), self.flags]);
        bytes.extend_from_slice(&self.mode.to_le_bytes());
        for value in [self.uid, self.gid, self.links] {
            bytes.extend_from_slice(&value.to_le_bytes());
        }
        bytes.extend_from_slice(&self.size_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.modified.seconds.to_le_bytes());
        bytes.extend_from_slice(&self.modified.nanoseconds.to_le_bytes());
        bytes.extend_from_slice(&self.layer.to_le_bytes());
        bytes.extend_from_slice(&self.first.to_le_bytes());
        bytes.extend_from_slice(&self.count.to_le_bytes());
        bytes.extend_from_slice(&self.xattrs.to_le_bytes());
        bytes.extend_from_slice(&self.data_bytes.to_le_bytes());
        bytes.try_into().expect("the fields add up to the size of the record")
    }

    /// `None` for a record that no index of ours has.
    pub(super) fn from_bytes(bytes: &[u8; INODE_BYTES]) -> Option<Self> {
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        let record = Self {
            kind: kind_of_code(bytes[0])?,
            flags: bytes[1],
            mode: u16::from_le_bytes([bytes[2], bytes[3]]),
            uid: u32_at(4),
            gid: u32_at(8),
            links: u32_at(12),
            size_bytes: u64_at(16),
            modified: Time { seconds: u64_at(24).cast_signed(), nanoseconds: u32_at(32) },
            layer: u32_at(36),
            first: u64_at(40),
            count: u32_at(48),
            xattrs: u32_at(52),
            data_bytes: u64_at(56),
        };
        let is_valid = record.mode <= 0o7777 && record.modified.nanoseconds < 1_000_000_000;
        is_valid.then_some(record)
    }
}

/// An extent as it is stored: offset in the file, length, position in the tar.
pub(super) fn extent_bytes((offset, size_bytes, position): (u64, u64, u64)) -> [u8; EXTENT_BYTES] {
    let mut bytes = [0; EXTENT_BYTES];
    bytes[..8].copy_from_slice(&offset.to_le_bytes());
    bytes[8..16].copy_from_slice(&size_bytes.to_le_bytes());
    bytes[16..].copy_from_slice(&position.to_le_bytes());
    bytes
}

/// An index in the making.
#[derive(Default)]
pub(super) struct Output {
    inodes: Vec<u8>,
    entries: Vec<u8>,
    names: Vec<u8>,
    xattrs: Vec<u8>,
    extents: Vec<u8>,
    /// Where each blob of xattrs begins, and how long it is.
    xattr_blobs: HashTable<(u32, u32)>,
    sums: RandomState,
}

/// An index file as the pieces that it consists of: one after the other they are all of it. They are not joined in
/// memory, where they are the largest thing there is.
#[derive(Debug)]
pub(crate) struct IndexBytes(Vec<Vec<u8>>);

impl IndexBytes {
    /// The pieces, in their order.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(Vec::as_slice)
    }

    /// The file in one piece.
    pub(crate) fn concat(self) -> Vec<u8> {
        self.0.concat()
    }
}

/// A section would pass 4 GiB, or more inodes than 32 bits count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many files, names or attributes for one index")]
pub struct TooLarge;

impl Output {
    /// Adds an inode and returns its number, from 1.
    pub(super) fn add_inode(&mut self, record: InodeRecord) -> Result<u32, TooLarge> {
        self.inodes.extend_from_slice(&record.to_bytes());
        u32::try_from(self.inodes.len() / INODE_BYTES).map_err(|_| TooLarge)
    }

    /// Replaces an inode that was added.
    pub(super) fn set_inode(&mut self, inode: u32, record: InodeRecord) {
        let start = (inode as usize - 1) * INODE_BYTES;
        self.inodes[start..start + INODE_BYTES].copy_from_slice(&record.to_bytes());
    }

    /// Counts one more name of an inode that was added.
    pub(super) fn add_link(&mut self, inode: u32) {
        let mut record = self.inode(inode);
        record.links += 1;
        self.set_inode(inode, record);
    }

    /// An inode that was added.
    pub(super) fn inode(&self, inode: u32) -> InodeRecord {
        let start = (inode as usize - 1) * INODE_BYTES;
        let bytes = self.inodes[start..].first_chunk().expect("the inode was added");
        InodeRecord::from_bytes(bytes).expect("it was written by to_bytes")
    }

    /// How many entries there are.
    pub(super) fn entry_count(&self) -> u64 {
        (self.entries.len() / ENTRY_BYTES) as u64
    }

    /// How many inodes there are.
    pub(super) fn inode_count(&self) -> u32 {
        (self.inodes.len() / INODE_BYTES) as u32 // add_inode saw to it
    }

    /// Names and link targets so far.
    pub(super) fn names(&self) -> &[u8] {
        &self.names
    }

    /// Gives inodes the numbers that stand for them in `numbers`, which are those from 1 to `kept`, and drops those
    /// with 0.
    pub(super) fn number_inodes(&mut self, mut numbers: Vec<u32>, kept: u32) {
        let mut dropped = kept;
        for number in numbers.iter_mut().filter(|number| **number == 0) {
            dropped += 1;
            *number = dropped;
        }
        let (records, _) = self.inodes.as_chunks_mut::<INODE_BYTES>();
        // Every swap brings one to its place.
        for at in 0..numbers.len() {
            while numbers[at] as usize - 1 != at {
                let place = numbers[at] as usize - 1;
                records.swap(at, place);
                numbers.swap(at, place);
            }
        }
        self.inodes.truncate(kept as usize * INODE_BYTES);
    }

    /// Adds an entry to the directory that is being written: where its name is, and how long it is.
    pub(super) fn add_entry(&mut self, (offset, length): (u32, u16), inode: u32, kind_code: u8) {
        self.entries.extend_from_slice(&offset.to_le_bytes());
        self.entries.extend_from_slice(&inode.to_le_bytes());
        self.entries.extend_from_slice(&length.to_le_bytes());
        self.entries.extend_from_slice(&[kind_code, 0]);
    }

    /// The place of a new name for [`Self::add_entry`].
    pub(super) fn add_entry_name(&mut self, name: &[u8]) -> Result<(u32, u16), TooLarge> {
        let length = u16::try_from(name.len()).map_err(|_| TooLarge)?;
        u32::try_from(self.add_name(name)).map(|offset| (offset, length)).map_err(|_| TooLarge)
    }

    /// Adds a name or a link target and returns where it is.
    pub(super) fn add_name(&mut self, name: &[u8]) -> u64 {
        self.names.extend_from_slice(name);
        (self.names.len() - name.len()) as u64
    }

    /// Adds a blob of xattrs if there is none like it, and returns where it is.
    pub(super) fn add_xattrs(&mut self, blob: Option<&[u8]>) -> Result<u32, TooLarge> {
        let Some(blob) = blob else { return Ok(NO_XATTRS) };
        let Self { xattrs, xattr_blobs, sums, .. } = self;
        let range = |&(start, length): &(u32, u32)| start as usize..start as usize + length as usize;
        let sum = sums.hash_one(blob);
        if let Some(found) = xattr_blobs.find(sum, |found| &xattrs[range(found)] == blob) {
            return Ok(found.0);
        }
        let offset = u32::try_from(xattrs.len()).ok().filter(|&offset| offset != NO_XATTRS).ok_or(TooLarge)?;
        let length = u32::try_from(blob.len()).map_err(|_| TooLarge)?;
        xattrs.extend_from_slice(blob);
        xattr_blobs.insert_unique(sum, (offset, length), |other| sums.hash_one(&xattrs[range(other)]));
        Ok(offset)
    }

    /// Adds extents and returns the number of the first.
    pub(super) fn add_extents(&mut self, extents: impl IntoIterator<Item = (u64, u64, u64)>) -> u64 {
        let first = (self.extents.len() / EXTENT_BYTES) as u64;
        self.extents.extend(extents.into_iter().flat_map(extent_bytes));
        first
    }

    /// The whole file.
    pub(super) fn into_bytes(self, subject: Subject, layers: &[DiffId]) -> IndexBytes {
        let layers: Vec<u8> = layers.iter().flat_map(|layer| *layer.as_bytes()).collect();
        let sections = [layers, self.inodes, self.entries, self.names, self.xattrs, self.extents];
        let length = HEADER_BYTES + sections.iter().map(Vec::len).sum::<usize>();
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&subject.code().to_le_bytes());
        bytes.extend_from_slice(&(length as u64).to_le_bytes());
        let mut offset = HEADER_BYTES as u64;
        for section in &sections {
            bytes.extend_from_slice(&offset.to_le_bytes());
            bytes.extend_from_slice(&(section.len() as u64).to_le_bytes());
            offset += section.len() as u64;
        }
        bytes.resize(HEADER_BYTES, 0);
        IndexBytes([bytes].into_iter().chain(sections).collect())
    }
}

/// A blob of xattrs: count, then (length of name, length of value, name, value), sorted by name.
pub(super) fn xattr_blob(xattrs: &[(Vec<u8>, Vec<u8>)]) -> Option<Vec<u8>> {
    if xattrs.is_empty() {
        return None;
    }
    let mut blob = (xattrs.len() as u32).to_le_bytes().to_vec(); // the tar reader limits them far below
    for (name, value) in xattrs {
        blob.extend_from_slice(&(name.len() as u16).to_le_bytes()); // 255 at most
        blob.extend_from_slice(&(value.len() as u32).to_le_bytes()); // 64 KiB at most
        blob.extend_from_slice(name);
        blob.extend_from_slice(value);
    }
    Some(blob)
}
