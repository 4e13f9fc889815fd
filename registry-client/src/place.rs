//! Where an image lies: the contracts that registries, layouts, archives and stores fulfil, and that `copy` joins.
//!
//! Invariant: content is checked against its digest on the way out of a [`Source`], so that a [`Destination`] that
//! publishes only after a clean end of the content never publishes a wrong blob. Who asks for unverified content checks
//! it himself, and fails with [`Cause::DigestMismatch`].

use std::io::{self, Read};
use std::sync::Arc;

use oci_spec::image::{Descriptor, Digest};

use crate::draft::{Draft, pour, pour_watched};
use crate::error::{Cause, Error};
use crate::growing::GrowingBlob;
use crate::manifest::Manifest;
use crate::progress::Progress;
use crate::referrers::bare;

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

    /// The digest of what the place names.
    ///
    /// # Errors
    /// As [`Self::manifest`].
    fn digest(&self) -> Result<Digest, Error> {
        Ok(self.manifest(None)?.digest().clone())
    }

    /// The content of a blob from its begin. The reader verifies: it fails instead of handing out the last bytes
    /// of content that is not what the descriptor says. It may be opened any number of times.
    ///
    /// # Errors
    /// If the blob is missing or the place cannot be reached.
    fn open_blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>, Error>;

    /// The content of a blob as it comes: for who digests it anyway, and publishes nothing that does not fit. May be
    /// verified all the same.
    ///
    /// # Errors
    /// As [`Self::open_blob`].
    fn open_unverified_blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>, Error> {
        self.open_blob(descriptor)
    }

    /// Fills an empty draft with the content of a blob, whole and verified. `watch` hears how many bytes have come, and
    /// may end it. Content that lies in a file of its own by then may become the draft in place of being copied.
    ///
    /// # Errors
    /// As [`Self::open_blob`], if the content is not what the descriptor says, that of `watch`, or if the draft cannot
    /// be written.
    fn fill_draft(
        &self,
        descriptor: &Descriptor,
        draft: &mut Draft,
        watch: &mut dyn FnMut(u64) -> io::Result<()>,
    ) -> io::Result<()> {
        pour_watched(&mut *self.open_blob(descriptor)?, draft, watch)
    }

    /// The content of a blob that came last was not what it should be: whoever else has it is asked next. Of a place
    /// that has it once nothing is asked; there is no such default, which a place that stands before another would
    /// be given unnoticed.
    fn distrust(&self, descriptor: &Descriptor);

    /// The repository where a blob of this image lies, if it is one at a registry.
    fn origin(&self, descriptor: &Descriptor) -> Option<Origin> {
        let _ = descriptor;
        None
    }

    /// What the place names `tag` beside this image, where it can hold more than one: in the same repository or layout.
    ///
    /// # Errors
    /// As [`Self::manifest`].
    fn tagged(&self, tag: &str) -> Result<Option<Manifest>, Error> {
        let _ = tag;
        Ok(None)
    }

    /// The GPG signatures of a manifest, from where they lie: files of the place, or of a store that is named for it.
    /// They are anyone's, and bounded in size and number.
    ///
    /// # Errors
    /// If they cannot be read, or are too many.
    fn gpg_signatures(&self, subject: &Digest) -> Result<Vec<Vec<u8>>, Error> {
        let _ = subject;
        Ok(Vec::new())
    }

    /// The manifests that refer to `subject` (signatures, bills of material), as the place lists them.
    ///
    /// # Errors
    /// If the place keeps no such list, or cannot be read.
    fn referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>, Error> {
        let what = "it keeps no list of what refers to an image; registries and layouts do".to_owned();
        Err(Error::local(format!("list what refers to {subject} in {}", self.name()), Cause::Input(what)))
    }

    /// The same with nothing but digest, size and types told of each: for who looks for some among very many.
    ///
    /// # Errors
    /// As [`Self::referrers`].
    fn bare_referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>, Error> {
        Ok(self.referrers(subject)?.iter().map(bare).collect())
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

    /// The same as it comes, for a destination that digests it anyway: [`Source::open_unverified_blob`].
    ///
    /// # Errors
    /// As [`Source::open_blob`].
    fn open_unverified(&self) -> Result<Box<dyn Read + Send + '_>, Error> {
        self.open()
    }

    /// Fills an empty draft with it, as [`Source::fill_draft`] does.
    ///
    /// # Errors
    /// As [`Source::fill_draft`].
    fn fill(&self, draft: &mut Draft) -> io::Result<()> {
        pour(&mut *self.open()?, draft)
    }

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
    /// The registry had it, or took it from the content's origin: nothing was sent.
    Unsent,
}

/// A place that an image can be put to, named when the value is made. Blobs come first, from several threads at
/// once, then the manifests that point to them, then the one that the place names.
pub trait Destination: Send + Sync {
    /// The place in words, as a person would type it; for messages.
    fn name(&self) -> String;

    /// What the place names now, where that can be told without reading it; `None` if nothing.
    ///
    /// # Errors
    /// If the place cannot be reached.
    fn named(&self) -> Result<Option<Digest>, Error> {
        Ok(None)
    }

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

    /// Puts a blob that is still being made, ahead of the image that it belongs to, and tells what it became; `None`
    /// where only what is whole can be put.
    ///
    /// # Errors
    /// If the blob comes to nothing, or as [`Self::put_blob`].
    fn put_growing_blob(
        &self,
        blob: &Arc<GrowingBlob>,
        progress: &dyn Progress,
    ) -> Result<Option<(Descriptor, Stored)>, Error> {
        let _ = (blob, progress);
        Ok(None)
    }

    /// Puts a manifest whose blobs (or manifests) were put before, byte for byte; one that `is_top` becomes what
    /// the place names, and completes it. One with a subject is listed among what refers to that.
    ///
    /// # Errors
    /// If the place refuses it.
    fn put_manifest(&self, manifest: &Manifest, is_top: bool) -> Result<(), Error>;

    /// Whether the place, or a store that is named for it, keeps GPG signatures of images.
    ///
    /// # Errors
    /// If it does not.
    fn keeps_gpg_signatures(&self) -> Result<(), Error> {
        let what =
            "the image has GPG signatures, and these have no place there; --remove-signatures leaves them behind";
        Err(Error::local(format!("copy to {}", self.name()), Cause::Input(what.to_owned())))
    }

    /// Puts GPG signatures of a manifest, ahead of that; `is_top` as of the manifest. Those that are there stay, but for a
    /// place of one image that was another's.
    ///
    /// # Errors
    /// If they cannot be written, or as [`Self::keeps_gpg_signatures`].
    fn put_gpg_signatures(&self, subject: &Digest, is_top: bool, signatures: &[Vec<u8>]) -> Result<(), Error> {
        let _ = (subject, is_top, signatures);
        self.keeps_gpg_signatures()
    }

    /// The same place to be read, for what lies beside the image: its tags and referrers. A place that holds one image
    /// only takes none of these.
    ///
    /// # Errors
    /// If it is such a place.
    fn beside(&self) -> Result<Box<dyn Source + '_>, Error> {
        let what = "it holds one image; registries, layouts and the store hold more".to_owned();
        Err(Error::local(format!("put what refers to the image in {}", self.name()), Cause::Input(what)))
    }

    /// Puts a manifest whose blobs were put before under a tag of its own, beside the image and before that; what was
    /// under the tag is there no more.
    ///
    /// # Errors
    /// If the place refuses it, or as [`Self::beside`].
    fn put_tagged(&self, manifest: &Manifest, tag: &str) -> Result<(), Error> {
        let _ = (manifest, tag);
        self.beside().map(drop)
    }
}
