//! A place that gives out only what a policy lets in.
//!
//! Invariant: a manifest leaves it only after its signature counted, or that of the index which it was read from and
//! which names it by its digest. What the place's name means is looked up once, so that what was verified is what is
//! copied, wherever the tag moves meanwhile.

use std::collections::HashSet;
use std::io::{self, Read};
use std::sync::{Mutex, OnceLock, PoisonError};

use oci_spec::image::{Descriptor, Digest};

use super::policy::{Demands, Policy};
use crate::draft::Draft;
use crate::error::Error;
use crate::manifest::{Manifest, ManifestContent};
use crate::place::{Origin, Source};
use crate::reference::ImageName;

impl Policy {
    /// The same place, which gives out only what this policy lets in from `name`. Where that is everything, nothing
    /// is asked.
    ///
    /// With `whole` an index must be signed itself. Without, where one image of it is wanted, the index or the image.
    ///
    /// # Errors
    /// As [`Policy::demands`].
    pub fn guard<'a>(
        &self,
        source: Box<dyn Source + 'a>,
        name: &ImageName,
        whole: bool,
    ) -> Result<Box<dyn Source + 'a>, Error> {
        let demands = self.demands(name)?;
        if demands.is_empty() {
            return Ok(source);
        }
        Ok(Box::new(Guarded { source, demands, whole, top: OnceLock::new(), companions: Mutex::default() }))
    }
}

struct Guarded<'a> {
    source: Box<dyn Source + 'a>,
    demands: Demands,
    whole: bool,
    top: OnceLock<Top>,
    /// What was told to refer to the image: copied with it, and never taken for it.
    companions: Mutex<HashSet<Digest>>,
}

struct Top {
    manifest: Manifest,
    /// Its signature counted.
    is_signed: bool,
}

impl Guarded<'_> {
    fn top(&self) -> Result<&Top, Error> {
        if let Some(top) = self.top.get() {
            return Ok(top);
        }
        let manifest = self.source.manifest(None)?;
        let is_index = matches!(manifest.content(), ManifestContent::Index(_));
        let is_signed = match self.demands.check(self.source.as_ref(), &manifest) {
            Ok(_) => true,
            // Then each image that is taken from it must be signed.
            Err(_) if is_index && !self.whole => false,
            Err(error) => return Err(error),
        };
        // Of two that came here at once, both verified what they found, and one of it is kept.
        Ok(self.top.get_or_init(|| Top { manifest, is_signed }))
    }

    fn is_companion(&self, digest: &Digest) -> bool {
        self.companions.lock().unwrap_or_else(PoisonError::into_inner).contains(digest)
    }
}

impl Source for Guarded<'_> {
    fn name(&self) -> String {
        self.source.name()
    }

    fn manifest(&self, digest: Option<&Digest>) -> Result<Manifest, Error> {
        let top = self.top()?;
        let Some(digest) = digest.filter(|digest| *digest != top.manifest.digest()) else {
            return Ok(top.manifest.clone());
        };
        let manifest = self.source.manifest(Some(digest))?;
        let is_index = matches!(manifest.content(), ManifestContent::Index(_));
        if top.is_signed || self.is_companion(digest) || (is_index && !self.whole) {
            return Ok(manifest);
        }
        self.demands.check(self.source.as_ref(), &manifest)?;
        Ok(manifest)
    }

    fn digest(&self) -> Result<Digest, Error> {
        Ok(self.top()?.manifest.digest().clone())
    }

    fn open_blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>, Error> {
        self.source.open_blob(descriptor)
    }

    fn distrust(&self, descriptor: &Descriptor) {
        self.source.distrust(descriptor);
    }

    fn open_unverified_blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>, Error> {
        self.source.open_unverified_blob(descriptor)
    }

    fn fill_draft(
        &self,
        descriptor: &Descriptor,
        draft: &mut Draft,
        watch: &mut dyn FnMut(u64) -> io::Result<()>,
    ) -> io::Result<()> {
        self.source.fill_draft(descriptor, draft, watch)
    }

    fn origin(&self, descriptor: &Descriptor) -> Option<Origin> {
        self.source.origin(descriptor)
    }

    fn tagged(&self, tag: &str) -> Result<Option<Manifest>, Error> {
        self.source.tagged(tag)
    }

    fn gpg_signatures(&self, subject: &Digest) -> Result<Vec<Vec<u8>>, Error> {
        self.source.gpg_signatures(subject)
    }

    fn referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>, Error> {
        let found = self.source.referrers(subject)?;
        let mut companions = self.companions.lock().unwrap_or_else(PoisonError::into_inner);
        companions.extend(found.iter().map(|one| one.digest().clone()));
        Ok(found)
    }
}
