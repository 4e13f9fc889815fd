//! Inode numbers of the tree from those on disk, and metadata from `stat`.
//!
//! Invariant: a number depends on the inode numbers of the file and of its layer's root alone, wherever these fit. The
//! layer's place in the stack is left out, so that an upper which is mounted over other layers does not take one file
//! for another; and device numbers, which change with every boot.

use rustix::fs::Stat;

use crate::{
    tree::{Attributes, TreeInode},
    union::{kind_of, time_of},
};

/// No number is greater, whatever is read later.
pub(super) const LAST: TreeInode = TreeInode(1 << 56);

/// Bits of an inode number on disk that are used as they are. Beyond lie stacked file systems and some of the network.
const INODE_BITS: u32 = 44;

/// Tags of layers. Two layers may share one: on one device their files have different inode numbers all the same.
const TAGS: u64 = 1 << 11;

/// 0 is no inode and 1 is the root.
const FIRST: u64 = 2;

/// Numbers from here on are made from a digest.
const MIXED: u64 = 1 << 55;

/// A file on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    layer: usize,
    device: u64,
    inode: u64,
}

impl Identity {
    pub(super) fn of(layer: usize, stat: &Stat) -> Self {
        Self { layer, device: stat.st_dev, inode: stat.st_ino }
    }

    pub(super) fn is(&self, stat: &Stat) -> bool {
        (self.device, self.inode) == (stat.st_dev, stat.st_ino)
    }

    /// The numbers that this file may have, in the order to be tried: the first that no other file has.
    pub(super) fn numbers(self, root: Root) -> impl Iterator<Item = TreeInode> {
        let layer = mix(root.inode);
        let is_plain = self.device == root.device && self.inode < (1 << INODE_BITS) - FIRST;
        let plain = is_plain.then(|| TreeInode(((layer % TAGS) << INODE_BITS | self.inode) + FIRST));
        let foreign = if self.device == root.device { 0 } else { self.device };
        let mixed = mix(mix(layer ^ self.inode) ^ foreign);
        let rest = (0..MIXED).map(move |step| TreeInode(MIXED + mixed.wrapping_add(step) % MIXED));
        plain.into_iter().chain(rest)
    }
}

/// The root directory of a layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Root {
    device: u64,
    inode: u64,
}

impl Root {
    pub(super) fn of(stat: &Stat) -> Self {
        Self { device: stat.st_dev, inode: stat.st_ino }
    }
}

/// The finaliser of splitmix64: <https://prng.di.unimi.it/splitmix64.c>. Numbers must not change between versions.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

/// What `stat` shows as a tree gives it.
pub(super) fn attributes_of(stat: &Stat) -> Attributes {
    let kind = kind_of(stat);
    let has_size = matches!(kind, crate::FileKind::File | crate::FileKind::Symlink);
    Attributes {
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        links: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        size_bytes: if has_size { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 },
        data_bytes: u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512),
        modified: time_of(stat.st_mtime, stat.st_mtime_nsec),
        device: (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)),
    }
}
