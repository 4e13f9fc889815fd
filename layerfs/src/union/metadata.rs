//! What `stat` shows of a node, from a file of the upper or of the tree.
//!
//! Invariant: number, kind and owner are the same before and after copy-up. Nothing here is cached.

use rustix::fs::{FileType, Stat};

use super::NodeId;
use crate::tree::{Attributes, FileKind, Time};

/// The metadata of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metadata {
    /// The node, which is `st_ino`.
    pub id: NodeId,
    /// What it is.
    pub kind: FileKind,
    /// Permission, set-id and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names; 0 for a file that is only open. 1 for a directory that is merged from tree and upper,
    /// which `find` and others take for "unknown".
    pub links: u32,
    /// Size of content or link target.
    pub size_bytes: u64,
    /// Blocks of 512 bytes in use.
    pub blocks: u64,
    /// Last access; that of a file in the tree is its last change.
    pub accessed: Time,
    /// Last change of content.
    pub modified: Time,
    /// Last change of metadata.
    pub changed: Time,
    /// Major and minor number of a device.
    pub device: (u32, u32),
}

impl Metadata {
    pub(crate) fn of_tree(id: NodeId, attributes: &Attributes) -> Self {
        Self {
            id,
            kind: attributes.kind,
            mode: attributes.mode & 0o7777,
            uid: attributes.uid,
            gid: attributes.gid,
            links: attributes.links,
            size_bytes: attributes.size_bytes,
            blocks: Self::blocks_of_tree(attributes),
            accessed: attributes.modified,
            modified: attributes.modified,
            changed: attributes.modified,
            device: attributes.device,
        }
    }

    /// Blocks of a file of the tree.
    pub(super) fn blocks_of_tree(attributes: &Attributes) -> u64 {
        attributes.data_bytes.div_ceil(512)
    }

    pub(super) fn of_upper(id: NodeId, stat: &Stat) -> Self {
        Self {
            id,
            kind: kind_of(stat),
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            links: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
            size_bytes: u64::try_from(stat.st_size).unwrap_or(0),
            blocks: u64::try_from(stat.st_blocks).unwrap_or(0),
            accessed: time_of(stat.st_atime, stat.st_atime_nsec),
            modified: time_of(stat.st_mtime, stat.st_mtime_nsec),
            changed: time_of(stat.st_ctime, stat.st_ctime_nsec),
            device: (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)),
        }
    }
}

/// What a file of the upper is.
pub(crate) fn kind_of(stat: &Stat) -> FileKind {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Symlink,
        FileType::CharacterDevice => FileKind::CharacterDevice,
        FileType::BlockDevice => FileKind::BlockDevice,
        FileType::Fifo => FileKind::Fifo,
        FileType::Socket => FileKind::Socket,
        FileType::RegularFile | FileType::Unknown => FileKind::File,
    }
}

/// A time as `stat` gives it.
pub(crate) fn time_of(seconds: i64, nanoseconds: u64) -> Time {
    Time { seconds, nanoseconds: u32::try_from(nanoseconds).unwrap_or(0) }
}
