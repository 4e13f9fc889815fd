//! One file of a layer, and the names that mark deletions.
//!
//! Invariant: a name that starts with `.wh.` never appears in an [`EntryPath`] of an entry read from
//! a tar; it became [`EntryKind::Whiteout`] or [`EntryKind::Opaque`].

use super::path::{EntryPath, PathFault};
use crate::tree::Time;

/// What starts the name of a file that removes another one below.
///
/// <https://github.com/opencontainers/image-spec/blob/main/layer.md#whiteouts>
pub const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// The name of the file that hides everything below in its directory.
pub(crate) const OPAQUE_NAME: &[u8] = b".wh..wh..opq";
/// What starts the names that AUFS used for itself; docker skips such entries, and so do we.
const AUFS_PREFIX: &[u8] = b".wh..wh.";

/// An extended attribute: name and value.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// One file of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it is. For a whiteout the path that is removed; for an opaque mark the directory.
    pub path: EntryPath,
    /// What it is.
    pub kind: EntryKind,
    /// Permission, set-id and sticky bits: `0o7777` at most.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of the content.
    pub modified: Time,
    /// Extended attributes, sorted by name, names unique.
    pub xattrs: Vec<Xattr>,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file with this many bytes of content, holes included.
    File {
        /// Length of the content.
        size_bytes: u64,
    },
    /// A directory.
    Directory,
    /// A symbolic link to any text.
    Symlink {
        /// The target: data, never followed while a layer is read.
        target: Vec<u8>,
    },
    /// Another name of a file of the same layer.
    HardLink {
        /// The earlier name.
        target: EntryPath,
    },
    /// A character device.
    CharacterDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// The path is removed from the layers below.
    Whiteout,
    /// Everything in the directory is removed from the layers below.
    Opaque,
}

impl Entry {
    /// An entry of root's, time 0, without xattrs, mode 0755 for a directory, 0777 for a symbolic link, else 0644.
    pub fn new(path: EntryPath, kind: EntryKind) -> Self {
        let mode = match kind {
            EntryKind::Directory => 0o755,
            EntryKind::Symlink { .. } => 0o777,
            _ => 0o644,
        };
        Self { path, kind, mode, uid: 0, gid: 0, modified: Time::default(), xattrs: Vec::new() }
    }

    /// The name in a tar, without the slash that ends a directory's: entries of a layer are sorted by it.
    pub fn tar_name(&self) -> Vec<u8> {
        match self.kind {
            EntryKind::Whiteout => {
                in_directory(self.path.parent_bytes(), &[WHITEOUT_PREFIX, self.path.name()].concat())
            }
            EntryKind::Opaque => in_directory(self.path.as_bytes(), OPAQUE_NAME),
            _ => self.path.as_bytes().to_vec(),
        }
    }
}

fn in_directory(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, name].join(&b'/') }
}

/// What a name in a tar says about deletions.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// An ordinary entry.
    Plain(EntryPath),
    /// The path is removed.
    Whiteout(EntryPath),
    /// The directory is opaque.
    Opaque(EntryPath),
    /// Leftover of AUFS, of no meaning.
    Aufs,
}

impl Mark {
    /// Reads the mark in a name.
    pub(crate) fn of(path: EntryPath) -> Result<Self, PathFault> {
        let components = path.components().count();
        for (position, component) in path.components().enumerate() {
            if component == OPAQUE_NAME && position + 1 == components {
                return Ok(Self::Opaque(path.parent()));
            }
            if component.starts_with(AUFS_PREFIX) {
                return Ok(Self::Aufs);
            }
            if let Some(removed) = component.strip_prefix(WHITEOUT_PREFIX) {
                // `.wh..` and `.wh...` would remove the directory itself or its parent; a file below a
                // whiteout has no meaning at all.
                if matches!(removed, b"" | b"." | b"..") || position + 1 < components {
                    return Err(PathFault::Whiteout);
                }
                return Ok(Self::Whiteout(path.parent().join(removed)?));
            }
        }
        Ok(Self::Plain(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> EntryPath {
        EntryPath::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn whiteout_names_become_the_path_they_remove() {
        assert_eq!(Mark::of(path("a/.wh.b")), Ok(Mark::Whiteout(path("a/b"))));
        assert_eq!(Mark::of(path(".wh.b")), Ok(Mark::Whiteout(path("b"))));
        assert_eq!(Mark::of(path("a/.wh..wh..opq")), Ok(Mark::Opaque(path("a"))));
        assert_eq!(Mark::of(path("a/.wh..wh.plnk/1.2")), Ok(Mark::Aufs));
        assert_eq!(Mark::of(path("a/.whb")), Ok(Mark::Plain(path("a/.whb"))));
    }

    #[test]
    fn whiteouts_of_nothing_or_of_the_directory_itself_are_refused() {
        for name in [".wh.", ".wh..", ".wh...", "a/.wh..", ".wh.a/b"] {
            assert_eq!(Mark::of(path(name)), Err(PathFault::Whiteout), "{name}");
        }
    }

    #[test]
    fn tar_name_is_what_mark_reads_back() {
        for (kind, name) in [(EntryKind::Whiteout, "a/.wh.b"), (EntryKind::Opaque, "a/b/.wh..wh..opq")] {
            assert_eq!(Entry::new(path("a/b"), kind).tar_name(), name.as_bytes());
        }
    }
}
