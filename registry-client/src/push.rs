//! Pushing: a registry as a destination.
//!
//! Invariant: the tag moves last, when everything that its manifest points to is there.

use std::sync::Arc;

use oci_spec::image::{Descriptor, Digest};

use crate::client::Client;
use crate::error::{Answer, Cause, Error};
use crate::growing::GrowingBlob;
use crate::kept::KeptSession;
use crate::manifest::Manifest;
use crate::place::{Content, Destination, Source, Stored};
use crate::progress::Progress;
use crate::pull::{RegistrySource, selector};
use crate::reference::Reference;
use crate::repository::{Repository, Selector};

/// An image at a registry, to be copied to.
#[derive(Debug, Clone)]
pub struct RegistryDestination {
    repository: Repository,
    selector: Selector,
    reference: Reference,
}

impl RegistryDestination {
    /// The image of a reference. One with a digest takes only the manifest of that digest.
    ///
    /// # Errors
    /// If the registry's name is no host.
    pub fn new(client: &Client, reference: &Reference) -> Result<Self, Error> {
        let repository = client.repository(reference)?.for_push();
        Ok(Self { repository, selector: selector(reference), reference: reference.clone() })
    }
}

impl Destination for RegistryDestination {
    fn name(&self) -> String {
        format!("docker://{}", self.reference)
    }

    fn named(&self) -> Result<Option<Digest>, Error> {
        match self.repository.resolve(&self.selector) {
            Ok(descriptor) => Ok(Some(descriptor.digest().clone())),
            // Some registries hide with 401 or 403 that a repository is not there yet.
            Err(error) => match error.cause() {
                Cause::Answer(Answer { status: 401 | 403 | 404, .. }) | Cause::Unauthorized { .. } => Ok(None),
                _ => Err(error),
            },
        }
    }

    fn has_blob(&self, descriptor: &Descriptor) -> Result<bool, Error> {
        let is_there = self.repository.has_blob(descriptor)?;
        if let Some(directory) = self.repository.client().options().spool.as_ref().filter(|_| is_there) {
            KeptSession::forget_of_stored(directory, &self.repository.origin(), descriptor);
        }
        Ok(is_there)
    }

    fn put_blob(&self, descriptor: &Descriptor, content: &dyn Content) -> Result<Stored, Error> {
        self.repository.put_blob(descriptor, content)
    }

    fn put_growing_blob(
        &self,
        blob: &Arc<GrowingBlob>,
        progress: &dyn Progress,
    ) -> Result<Option<(Descriptor, Stored)>, Error> {
        self.repository.put_growing_blob(blob, progress).map(Some)
    }

    fn keeps_gpg_signatures(&self) -> Result<(), Error> {
        self.repository.client().signature_directory(&self.reference).map(drop)
    }

    fn put_gpg_signatures(&self, subject: &Digest, _: bool, signatures: &[Vec<u8>]) -> Result<(), Error> {
        self.repository.client().add_gpg_signatures(&self.reference, subject, signatures)
    }

    fn put_manifest(&self, manifest: &Manifest, is_top: bool) -> Result<(), Error> {
        if !is_top {
            return self.repository.put_manifest(manifest, &Selector::Digest(manifest.digest().clone()));
        }
        if let Selector::Digest(expected) = &self.selector {
            let wrong = |cause| Error::new(format!("push the manifest of {}", self.reference), cause);
            let known = Manifest::known_as(expected, Some(manifest.media_type()), manifest.bytes().to_vec());
            return self.repository.put_manifest(&known.map_err(wrong)?, &self.selector);
        }
        self.repository.put_manifest(manifest, &self.selector)
    }

    fn beside(&self) -> Result<Box<dyn Source + '_>, Error> {
        let Self { repository, selector, reference } = self.clone();
        Ok(Box::new(RegistrySource::at(repository, selector, reference)))
    }

    fn put_tagged(&self, manifest: &Manifest, tag: &str) -> Result<(), Error> {
        self.repository.put_manifest(manifest, &Selector::Tag(tag.to_owned()))
    }
}
