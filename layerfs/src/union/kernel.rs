//! An upper in the hands of the kernel's overlayfs, and back in ours.
//!
//! Invariant: `work/nacre/overlay`, which is the kernel's work directory, is there as long as the kernel alone wrote
//! what is in the upper. What this union has written is never given to the kernel: it does not know our index of hard
//! links. The other way is open: its index is taken over, and the rest of the format is the same.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::{
    fs::AtFlags,
    io::{Errno, Result},
};

use super::{
    MarkNamespace, Union,
    groups::Groups,
    handles::Handle,
    upper::{empty_directory, is_foreign, make_directory, open_directory},
};
use crate::tree::{Attributes, Tree, TreeInode};

/// The kernel's work directory in ours.
const WORK: &str = "overlay";

/// The kernel's index of copied-up hard links below its work directory.
const INDEX: &str = "overlay/index";

/// What the kernel is given to write to.
#[derive(Debug)]
pub(crate) struct KernelUpper<'a> {
    pub(crate) upper: BorrowedFd<'a>,
    pub(crate) work: OwnedFd,
    pub(crate) marks: MarkNamespace,
    /// Whether `fsync` writes to the disk.
    pub(crate) durable: bool,
}

/// Why an upper cannot be given to the kernel.
#[derive(Debug)]
pub(crate) enum KernelFault {
    /// There is none.
    NoUpper,
    /// It holds what this union has written.
    WrittenByUnion,
    /// It holds hard links that the kernel has copied up in an earlier mount.
    HardLinks,
    /// Its work directory cannot be used.
    System(Errno),
}

impl From<Errno> for KernelFault {
    fn from(error: Errno) -> Self {
        Self::System(error)
    }
}

impl<T: Tree> Union<T> {
    /// The upper for the kernel, if it shows that as this union does.
    pub(crate) fn kernel_upper(&self) -> std::result::Result<KernelUpper<'_>, KernelFault> {
        let upper = self.upper.as_ref().ok_or(KernelFault::NoUpper)?;
        let work = match open_directory(upper.work(), WORK.as_bytes()) {
            Err(Errno::NOENT) if upper.is_empty && upper.groups.is_empty() => make_directory(upper.work(), WORK)?,
            Err(Errno::NOENT) => return Err(KernelFault::WrittenByUnion),
            work => work?,
        };
        // The kernel finds those from what their handles mean, which FUSE cannot tell it (see `fuse/lower.rs`).
        if let Some(index) = open_kernel_index(upper.work())?
            && !kernel_index_entries(&index)?.is_empty()
        {
            return Err(KernelFault::HardLinks);
        }
        Ok(KernelUpper { upper: upper.root.as_fd(), work, marks: upper.marks, durable: upper.durable })
    }

    /// Takes over an upper that the kernel wrote, before anything of it is looked at. A kill in the middle leaves
    /// the rest for the next time.
    pub(crate) fn take_over(&mut self) -> Result<()> {
        let Some(upper) = &mut self.upper else { return Ok(()) };
        let kernel = match open_directory(upper.work(), WORK.as_bytes()) {
            Err(Errno::NOENT) => return Ok(()),
            work => work?,
        };
        if let Some(index) = open_kernel_index(upper.work())? {
            for (inode, name) in kernel_index_entries(&index)? {
                // Of a tree that is no longer below.
                let Ok(Attributes { links, .. }) = self.tree.attributes(inode) else { continue };
                adopt_group(&upper.groups, upper.marks, &index, inode, &name, links)?;
            }
        }
        // What the kernel has let others set is not known without a look at every file.
        upper.note_acls()?;
        upper.is_foreign = is_foreign(upper.work(), true)?;
        upper.groups.reload()?;
        empty_directory(&kernel)?;
        rustix::fs::unlinkat(upper.work(), WORK, AtFlags::REMOVEDIR)
    }
}

/// Makes a copied-up hard link of the kernel's one of ours.
fn adopt_group(
    groups: &Groups,
    marks: MarkNamespace,
    index: &OwnedFd,
    inode: TreeInode,
    name: &str,
    links: u32,
) -> Result<()> {
    let stat = rustix::fs::statat(index, name, AtFlags::SYMLINK_NOFOLLOW)?;
    // A kill came in between, the last time.
    let is_linked = groups.stat(inode).is_ok_and(|ours| ours.st_ino == stat.st_ino);
    let copy_links = stat.st_nlink - u64::from(is_linked);
    let remaining = remaining_names(marks, index, name, copy_links, links)?;
    if !is_linked {
        rustix::fs::linkat(index, name, groups.directory(), inode.0.to_string(), AtFlags::empty())?;
    }
    groups.write_remaining(inode, remaining)?;
    rustix::fs::unlinkat(index, name, AtFlags::empty())
}

/// How many names of a copied-up hard link only the tree has. `copy_links` is the link count of the copy, which is in
/// the kernel's index under `name`; `links` is that of the tree's file.
///
/// What the overlay shows is the link count of one of both and a difference that it wrote down:
/// <https://docs.kernel.org/filesystems/overlayfs.html#non-standard-behavior>, `ovl_get_nlink` of `fs/overlayfs/util.c`.
pub(crate) fn remaining_names(
    marks: MarkNamespace,
    index: &OwnedFd,
    name: &str,
    copy_links: u64,
    links: u32,
) -> Result<u32> {
    let copy_links = i64::try_from(copy_links).unwrap_or(i64::MAX);
    let shown = match marks.link_difference(&Handle::new(rustix::io::dup(index)?), name.as_bytes())? {
        Some((LinkBase::Upper, difference)) => copy_links.saturating_add(difference),
        Some((LinkBase::Lower, difference)) => i64::from(links).saturating_add(difference),
        None => i64::from(links),
    };
    // One link of the copy is the index itself, the others are names in the upper.
    let remaining = shown.saturating_sub(copy_links - 1);
    Ok(u32::try_from(remaining).unwrap_or(0).min(links))
}

/// Which link count a [`MarkNamespace::link_difference`] is to be added to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkBase {
    /// That of the upper's file.
    Upper,
    /// That of the lower file.
    Lower,
}

/// The kernel's index of copied-up hard links in our work directory, if it made one.
pub(crate) fn open_kernel_index(own: impl AsFd) -> Result<Option<OwnedFd>> {
    match open_directory(own, INDEX.as_bytes()) {
        Ok(index) => Ok(Some(index)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The tree's files that the kernel's index holds copies of, and the names of these. What else is there is passed over.
pub(crate) fn kernel_index_entries(index: &OwnedFd) -> Result<Vec<(TreeInode, String)>> {
    let mut found = Vec::new();
    for entry in rustix::fs::Dir::read_from(index)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        let bytes =
            (0..name.len()).step_by(2).map(|at| name.get(at..at + 2).and_then(|d| u8::from_str_radix(d, 16).ok()));
        if let Some(inode) = bytes.collect::<Option<Vec<u8>>>().and_then(|handle| tree_inode(&handle)) {
            found.push((inode, name.to_owned()));
        }
    }
    Ok(found)
}

/// The inode of our tree that a file handle of the kernel's overlayfs means; `None` for one of another file system.
///
/// `struct ovl_fb` of `fs/overlayfs/overlayfs.h`, around the handle of `fs/fuse/inode.c`: version 0, magic, length,
/// flags (1: big-endian), type, 16 bytes of UUID (FUSE has none); then node number, high half first, and generation.
pub(crate) fn tree_inode(handle: &[u8]) -> Option<TreeInode> {
    /// `FILEID_INO64_GEN`.
    const TYPE: u8 = 0x81;
    const MAGIC: u8 = 0xfb;
    const BYTES: u8 = 33;
    let (head, rest) = handle.split_first_chunk::<5>()?;
    let [0, MAGIC, BYTES, flags, TYPE] = *head else { return None };
    let (uuid, rest) = rest.split_first_chunk::<16>()?;
    let numbers: [u8; 12] = rest.try_into().ok()?;
    let number = |at: usize| {
        let bytes = [numbers[at], numbers[at + 1], numbers[at + 2], numbers[at + 3]];
        if flags & 1 == 0 { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) }
    };
    let is_ours = *uuid == [0; 16] && number(8) == 0;
    is_ours.then(|| TreeInode(u64::from(number(0)) << 32 | u64::from(number(4))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_of_another_file_system_means_nothing() {
        let mut handle = vec![0, 0xfb, 33, 0, 0x81];
        handle.extend([0; 16]);
        handle.extend([1, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(tree_inode(&handle), Some(TreeInode(1 << 32 | 5)));
        let big: Vec<u8> = [&[0, 0xfb, 33, 1, 0x81][..], &[0; 16], &[0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0, 0]].concat();
        assert_eq!(tree_inode(&big), tree_inode(&handle));
        for changed in [0, 1, 2, 4, 10, 30] {
            let mut other = handle.clone();
            other[changed] ^= 0x40;
            assert_eq!(tree_inode(&other), None, "byte {changed}");
        }
        for length in 0..handle.len() {
            assert_eq!(tree_inode(&handle[..length]), None, "{length} bytes");
        }
        handle.push(0);
        assert_eq!(tree_inode(&handle), None);
    }
}
