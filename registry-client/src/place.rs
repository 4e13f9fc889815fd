//! Where an image lies: the contracts that registries, layouts, archives and stores fulfil, and that `copy` joins.
//!
//! Invariant: content is checked against its digest on the way out of a [`Source`], so that a [`Destination`] that
//! publishes only after a clean end of the content never publishes a wrong blob.

use std::io::Read;

use oci_spec::image::{Descriptor, Digest};

use crate::error::Error;
use crate::manifest::Manifest;

/// A place that holds one image (or index), named when the value is made.
pub trait Source: Send + Sync {
    /// The place in words, as a person would type it; for messages.
    fn name(&self) -> String;

    /// The manifest that the place names, or with a digest a manifest that this one points to.
    /// The bytes are as stored, and match `digest` where one is given.
    ///
    /// # Errors
    /// If it is missing, not readable or not a manifest.
    fn manifest(&self, digest: Option<&Digest>) -> Result<Manifest, Error>;

    /// The content of a blob from its begin. The reader verifies: it fails instead of handing out the last bytes
    /// of content that is not what the descriptor says. It may be opened any number of times.
    ///
    /// # Errors
    /// If the blob is missing or the place cannot be reached.
    fn open_blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>, Error>;

    /// The repository where the blobs of this image lie, if it is one at a registry.
    fn origin(&self) -> Option<Origin> {
        None
    }
}

/// A repository from which a registry may take blobs by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The registry as in references.
    pub registry: String,
    /// The repository at it.
    pub repository: String,
}

/// A blob on its way to a [`Destination`].
pub trait Content: Sync {
    /// The content from its begin, verifying as [`Source::open_blob`] says. Opened again for each new try.
    ///
    /// # Errors
    /// As [`Source::open_blob`].
    fn open(&self) -> Result<Box<dyn Read + Send + '_>, Error>;

    /// Where a registry might have it already.
    fn origin(&self) -> Option<Origin> {
        None
    }
}

/// How a blob came to be at its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// Its content was read and kept.
    Sent,
    /// The registry took it from the content's origin; nothing was read.
    Mounted,
}

/// A place that an image can be put to, named when the value is made. Blobs come first, from several threads at
/// once, then the manifests that point to them, then the one that the place names.
pub trait Destination: Send + Sync {
    /// The place in words, as a person would type it; for messages.
    fn name(&self) -> String;

    /// Whether the blob is there, whole.
    ///
    /// # Errors
    /// If the place cannot be reached.
    fn has_blob(&self, descriptor: &Descriptor) -> Result<bool, Error>;

    /// Puts a blob. It is published only after the content ended without an error; after an error nothing is.
    /// Putting a blob that is there is harmless.
    ///
    /// # Errors
    /// If the content fails, or the place refuses it.
    fn put_blob(&self, descriptor: &Descriptor, content: &dyn Content) -> Result<Stored, Error>;

    /// Puts a manifest whose blobs (or manifests) were put before, byte for byte; one that `is_top` becomes what
    /// the place names, and completes it.
    ///
    /// # Errors
    /// If the place refuses it.
    fn put_manifest(&self, manifest: &Manifest, is_top: bool) -> Result<(), Error>;
}
