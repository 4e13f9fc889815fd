//! The changes of a writable layer against the tree below it: what the tar of a new layer will hold.
//!
//! Invariant: the result is a function of what the union shows, sorted by path, and not of how it came to be: a touched
//! but equal file adds nothing, an opaque directory becomes the whiteouts of what it hides, a renamed directory of
//! the tree is listed whole. Only the upper is walked, and parts of the tree only where they were renamed or where a
//! copied-up hard link has names left in it. Nothing is written.

mod links;
mod walk;

use std::{fs::File, os::fd::OwnedFd};

use self::links::{LinkIndex, open_below};
use crate::{
    tree::{FileKind, Time, Tree, TreeInode},
    union::MarkNamespace,
};

/// One entry of a new layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// From the root, without a slash at either end; empty for the root directory itself.
    pub path: Vec<u8>,
    /// What is there now.
    pub kind: ChangeKind,
    /// Permission, set-id and sticky bits; 0 for a whiteout, as all that follows.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of content.
    pub modified: Time,
    /// Extended attributes, sorted by name, without the marks of the upper's format.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a change makes of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangeKind {
    /// What the tree has there, a file or a directory with all below it, is gone.
    Whiteout,
    /// A file of this many bytes; [`Changes::open`] gives its content where it is in the upper.
    File {
        /// Where its content is.
        content: Content,
        /// Length of the content.
        size_bytes: u64,
    },
    /// A further name of the file that an earlier change has at this path.
    HardLink(Vec<u8>),
    /// A directory.
    Directory,
    /// A symbolic link with this target.
    Symlink(Vec<u8>),
    /// A character device with its major and minor number.
    CharacterDevice(u32, u32),
    /// A block device with its major and minor number.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
}

/// Where the content of a changed file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// In the upper, at the path of the change.
    Upper,
    /// In the upper's index of copied-up hard links.
    Index(TreeInode),
    /// In the tree: a file in a renamed directory, or one of which only the metadata changed.
    Tree(TreeInode),
}

/// Why changes could not be determined.
#[derive(Debug, thiserror::Error)]
pub enum ChangesError {
    /// A system call failed, or the upper is damaged.
    #[error("{action} /{} in the copy-on-write layer failed", path.escape_ascii())]
    System {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: Vec<u8>,
        /// The errno.
        #[source]
        source: rustix::io::Errno,
    },
    /// A file has a name that means something else in a layer.
    #[error("/{} cannot be stored in an image layer: names that start with \".wh.\" are whiteouts there", path.escape_ascii())]
    ReservedName {
        /// The file.
        path: Vec<u8>,
    },
}

/// The changes of an upper, in the order of their paths.
#[derive(Debug)]
pub struct Changes {
    upper: OwnedFd,
    index: LinkIndex,
    entries: Vec<Change>,
}

impl Changes {
    /// The entries of the new layer, sorted by the bytes of their paths.
    pub fn entries(&self) -> &[Change] {
        &self.entries
    }

    /// Opens the content of a changed file that is in the upper; `None` for anything else. No link is followed.
    pub fn open(&self, change: &Change) -> Result<Option<File>, ChangesError> {
        let opened = match &change.kind {
            ChangeKind::File { content: Content::Upper, .. } => open_below(&self.upper, &change.path, FileKind::File),
            ChangeKind::File { content: Content::Index(inode), .. } => self.index.open(*inode, FileKind::File),
            _ => return Ok(None),
        };
        let handle =
            opened.map_err(|source| ChangesError::System { action: "opening", path: change.path.clone(), source })?;
        Ok(Some(File::from(handle.into_fd())))
    }
}

/// Compares an upper with the tree that it was made over. Both are open directories. What was written through a mount
/// must have been synced; what goes away while it is looked at counts as gone, and whoever opens its content later may
/// not find it.
///
/// Sockets are left out, as they cannot be in a layer. If one name of a hard-linked file changed, all its names are
/// listed, so that they stay links of each other without leading to a file of another layer.
pub fn changes<T: Tree>(
    tree: &T,
    upper: OwnedFd,
    work: &OwnedFd,
    marks: MarkNamespace,
) -> Result<Changes, ChangesError> {
    let failed = |source| ChangesError::System { action: "reading the hard links of", path: Vec::new(), source };
    let index = LinkIndex::read(tree, work, marks).map_err(failed)?;
    let entries = walk::walk(tree, &upper, &index, marks)?;
    Ok(Changes { upper, index, entries })
}
