//! What can be wrong with a layer tar: where, in which entry, and why.

use std::io;

use super::path::PathFault;

/// Why a tar cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The bytes do not come, or cannot be written.
    #[error("{verb} the layer tar at byte {position}")]
    Io {
        /// `reading` or `writing`.
        verb: &'static str,
        /// Where in the tar.
        position: u64,
        /// Why.
        source: io::Error,
    },
    /// An entry is wrong.
    #[error("layer entry {name:?} (header at byte {position} of the tar): {fault}")]
    Entry {
        /// Its name as far as it is known, escaped.
        name: String,
        /// Where its header starts.
        position: u64,
        /// What is wrong.
        fault: EntryFault,
    },
}

/// What is wrong with one entry.
#[derive(Debug, thiserror::Error)]
pub enum EntryFault {
    /// The sum in the header is not that of its bytes.
    #[error("the header's sum does not match: the tar is damaged, or this is no tar")]
    Checksum,
    /// A single zero block stands between entries.
    #[error("an entry follows a block of zeros")]
    LoneZeroBlock,
    /// The tar ends within the entry.
    #[error("the tar ends in the middle of it")]
    Truncated,
    /// A field is no number or too large a one.
    #[error("its {0} is not a valid number")]
    Number(&'static str),
    /// The name is not usable.
    #[error("{0}")]
    Path(#[from] PathFault),
    /// The target of a link is not usable.
    #[error("its link target is refused: {0}")]
    LinkTarget(PathFault),
    /// A symbolic link to nothing at all.
    #[error("a symbolic link needs a target of 1 to 4095 bytes without NUL")]
    SymlinkTarget,
    /// An extended header is malformed.
    #[error("its extended header is malformed: {0}")]
    Pax(&'static str),
    /// An extended attribute is malformed or too large.
    #[error("its extended attribute {0:?} is malformed or too large")]
    Xattr(String),
    /// The map of a sparse file makes no sense.
    #[error("its sparse map is malformed: {0}")]
    Sparse(&'static str),
    /// An extended header or a long name is larger than any real one.
    #[error("its {what} has {size_bytes} bytes, more than the limit of {limit_bytes}")]
    Oversized {
        /// What is too large.
        what: &'static str,
        /// How large it says it is.
        size_bytes: u64,
        /// What is permitted.
        limit_bytes: u64,
    },
    /// A type flag that layers do not have.
    #[error("entries of type {:?} are not supported in layers", char::from(*.0))]
    Type(u8),
    /// The root is something else than a directory.
    #[error("the root of a layer can only be a directory")]
    Root,
    /// What it lies in, or links to, is reached through more symbolic links than Linux follows.
    #[error("too many symbolic links on the way to it")]
    SymlinkLoop,
    /// It lies in something that is no directory.
    #[error("it lies in {0:?}, which is not a directory")]
    ParentNotDirectory(String),
    /// A hard link to what the layer does not have.
    #[error("it is a hard link to {0:?}, which is no file earlier in the layer")]
    LinkTargetMissing(String),
    /// The layer's metadata would fill the memory.
    #[error("the layer has too many files, names or attributes up to here")]
    TooLarge,
    /// The entry does not come after the one before it.
    #[error("entries must be written sorted by name, each once")]
    Order,
    /// The content is not as long as the entry says.
    #[error("its content is not {expected_bytes} bytes long: it changed while it was read")]
    ContentLength {
        /// What the entry says.
        expected_bytes: u64,
    },
    /// The content cannot be read.
    #[error("reading its content: {0}")]
    Content(#[source] io::Error),
}
