//! Names in a layer, validated.
//!
//! Invariant: an [`EntryPath`] is relative, clean and short enough for Linux, so that joining it to
//! a directory can not lead out of it by name. It says nothing about symbolic links.

use std::fmt;

use super::entry::WHITEOUT_PREFIX;

/// The longest path, as `PATH_MAX` of Linux.
const PATH_MAX_BYTES: usize = 4096;
/// The longest name of one file, as `NAME_MAX` of Linux.
const NAME_MAX_BYTES: usize = 255;

/// A path of an entry relative to the root of the image; the empty path is the root itself.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct EntryPath(Vec<u8>);

/// Why a name cannot be the path of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathFault {
    /// It leads above the root by `..`.
    #[error("the name leads out of the root")]
    Escape,
    /// It holds a NUL byte.
    #[error("the name holds a NUL byte")]
    Nul,
    /// It, or one of its components, is longer than Linux permits.
    #[error("the name is too long (4096 bytes, 255 between slashes)")]
    Long,
    /// A whiteout of nothing, of `.` or of `..`, or an entry below a whiteout.
    #[error("names that start with `.wh.` mark deletions, and this is no valid mark")]
    Whiteout,
}

impl EntryPath {
    /// The root.
    pub fn root() -> Self {
        Self::default()
    }

    /// Reads a name as tars have it. Leading slashes and `.` fall away and `..` is resolved by name,
    /// as docker and containerd do.
    ///
    /// # Errors
    /// A name that leads above the root, holds NUL or is too long.
    pub fn parse(name: &[u8]) -> Result<Self, PathFault> {
        if name.contains(&0) {
            return Err(PathFault::Nul);
        }
        let mut clean: Vec<u8> = Vec::with_capacity(name.len());
        for component in name.split(|&b| b == b'/') {
            match component {
                b"" | b"." => {}
                b".." if clean.is_empty() => return Err(PathFault::Escape),
                b".." => clean.truncate(clean.iter().rposition(|&b| b == b'/').unwrap_or(0)),
                long if long.len() > longest(long) => return Err(PathFault::Long),
                plain => {
                    if !clean.is_empty() {
                        clean.push(b'/');
                    }
                    clean.extend_from_slice(plain);
                }
            }
        }
        if clean.len() > PATH_MAX_BYTES {
            return Err(PathFault::Long);
        }
        Ok(Self(clean))
    }

    /// The bytes, without a leading or trailing slash.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether this is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The names on the way from the root.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|&b| b == b'/').filter(|component| !component.is_empty())
    }

    /// The last name; empty for the root.
    pub fn name(&self) -> &[u8] {
        self.0.rsplit(|&b| b == b'/').next().unwrap_or_default()
    }

    /// The directory that it lies in; the root lies in itself.
    pub fn parent(&self) -> Self {
        Self(self.parent_bytes().to_vec())
    }

    pub(crate) fn parent_bytes(&self) -> &[u8] {
        let end = self.0.iter().rposition(|&b| b == b'/').unwrap_or(0);
        &self.0[..end]
    }

    /// The path of `name` in this directory.
    ///
    /// # Errors
    /// As [`EntryPath::parse`].
    pub fn join(&self, name: &[u8]) -> Result<Self, PathFault> {
        Self::parse(&[&self.0, name].join(&b'/'))
    }
}

/// How long a name may be: the mark of a whiteout comes on top of the name that it removes.
fn longest(name: &[u8]) -> usize {
    if name.starts_with(WHITEOUT_PREFIX) { NAME_MAX_BYTES + WHITEOUT_PREFIX.len() } else { NAME_MAX_BYTES }
}

impl fmt::Display for EntryPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.0.escape_ascii())
    }
}

impl fmt::Debug for EntryPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EntryPath({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(name: &str) -> Result<String, PathFault> {
        EntryPath::parse(name.as_bytes()).map(|path| String::from_utf8(path.as_bytes().to_vec()).unwrap())
    }

    #[test]
    fn names_are_cleaned_as_docker_cleans_them() {
        for (name, clean) in [
            ("a/b", "a/b"),
            ("./a//b/", "a/b"),
            ("/etc/passwd", "etc/passwd"),
            ("a/../b", "b"),
            ("a/b/..", "a"),
            (".", ""),
            ("", ""),
            ("/", ""),
            ("a/..", ""),
        ] {
            assert_eq!(parsed(name).as_deref(), Ok(clean), "{name}");
        }
    }

    #[test]
    fn names_that_lead_out_or_are_too_long_are_refused() {
        for name in ["..", "../a", "a/../../b", "/../a"] {
            assert_eq!(parsed(name), Err(PathFault::Escape), "{name}");
        }
        assert_eq!(parsed("a\0b"), Err(PathFault::Nul));
        assert_eq!(parsed(&"a".repeat(256)), Err(PathFault::Long));
        assert_eq!(parsed(&"a/".repeat(2049)), Err(PathFault::Long));
        assert!(parsed(&"a".repeat(255)).is_ok());
    }

    #[test]
    fn parent_and_name_take_a_path_apart() {
        let path = EntryPath::parse(b"usr/bin/env").unwrap();
        assert_eq!(path.name(), b"env");
        assert_eq!(path.parent(), EntryPath::parse(b"usr/bin").unwrap());
        assert_eq!(EntryPath::parse(b"usr").unwrap().parent(), EntryPath::root());
        assert_eq!(path.parent().join(b"env"), Ok(path));
    }
}
