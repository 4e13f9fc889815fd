//! What can go wrong with a store. Every error says what was being done, to what, and why it failed.

use std::io;
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::index::IndexError;
use crate::tar::TarError;

/// Why something in a store did not work. Nothing was published where an error came back.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The system refused something.
    #[error("{verb} {path}")]
    Io {
        /// What was being done.
        verb: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The stream that a blob or layer came from failed.
    #[error("receiving {what}")]
    Receive {
        /// What was being received.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The store was made by another version.
    #[error("the store {path} has layout version {found:?}; this program knows version \"1\"")]
    LayoutVersion {
        /// Its directory.
        path: PathBuf,
        /// What it says.
        found: String,
    },
    /// Bytes are not what their digest says.
    #[error("{what} has the digest {found} where {expected} was expected")]
    DigestMismatch {
        /// The blob or layer.
        what: String,
        /// What was promised.
        expected: String,
        /// What came.
        found: String,
    },
    /// There are more or fewer bytes than announced.
    #[error("{what} has {found_bytes} bytes where {expected_bytes} were expected")]
    SizeMismatch {
        /// The blob.
        what: String,
        /// What was promised.
        expected_bytes: u64,
        /// What came: at least this many.
        found_bytes: u64,
    },
    /// A blob that is to be read into memory is larger than such blobs are.
    #[error("{what} has {size_bytes} bytes, more than the limit of {limit_bytes}")]
    BlobTooLarge {
        /// The blob.
        what: String,
        /// How large it is.
        size_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// A layer expands to more than is permitted.
    #[error("{what} expands to more than the limit of {limit_bytes} bytes")]
    LayerTooLarge {
        /// The layer.
        what: String,
        /// The limit.
        limit_bytes: u64,
    },
    /// A blob cannot be decompressed.
    #[error("decompressing {what}")]
    Decompress {
        /// The blob.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// A layer is not a tar that we accept.
    #[error("{what} cannot be used as a layer")]
    Layer {
        /// The layer.
        what: String,
        /// Why.
        source: TarError,
    },
    /// An index cannot be made or read.
    #[error("indexing {what}")]
    Index {
        /// The layer or the tree.
        what: String,
        /// Why.
        source: IndexError,
    },
    /// The digest is of an algorithm that the store does not use.
    #[error("{digest}: only SHA-256 digests are supported")]
    Algorithm {
        /// The digest.
        digest: Digest,
    },
    /// It is not in the store.
    #[error("{what} is not in the store {path}")]
    NotFound {
        /// What.
        what: String,
        /// The store.
        path: PathBuf,
    },
    /// A JSON document of the store is malformed.
    #[error("{path} is not valid")]
    Json {
        /// Which.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A name, key or id that cannot be used for a file or in an index.
    #[error("{name:?} cannot be used as {role}")]
    Name {
        /// What was given.
        name: String,
        /// For what.
        role: &'static str,
    },
    /// Someone else has it.
    #[error("{path} is in use by another process")]
    InUse {
        /// What.
        path: PathBuf,
    },
}

impl StoreError {
    /// Whether the system refused to write.
    pub(super) fn is_read_only(&self) -> bool {
        let refusals = [io::ErrorKind::ReadOnlyFilesystem, io::ErrorKind::PermissionDenied];
        matches!(self, Self::Io { source, .. } if refusals.contains(&source.kind()))
    }
}

/// The result of what the store does.
pub(super) type Result<T, E = StoreError> = std::result::Result<T, E>;

/// Gives I/O errors what was done to which path.
pub(super) trait AtPath<T> {
    fn at(self, verb: &'static str, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> AtPath<T> for Result<T, E> {
    fn at(self, verb: &'static str, path: &Path) -> Result<T> {
        self.map_err(|error| StoreError::Io { verb, path: path.to_owned(), source: error.into() })
    }
}
