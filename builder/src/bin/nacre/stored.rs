//! The store as a place that keeps what refers to its images: signatures, bills of material.
//!
//! Invariant: a referrer is listed in the store after it is there whole. It lives as long as what it refers to does.

use std::io::Read;

use builder::StorePlace;
use layerfs::Store;
use oci_spec::image::{Descriptor, Digest};
use registry_client::{
    Cause, Content, Destination, Error, MANIFEST_LIMIT_BYTES, Manifest, Origin, Source, Stored, companion_subject,
};

/// An image of the store with its referrers, or the place for one.
pub(crate) struct StoreWithReferrers<'a> {
    pub(crate) place: StorePlace<'a>,
    pub(crate) store: &'a Store,
}

impl StoreWithReferrers<'_> {
    fn failed(doing: String, error: layerfs::StoreError) -> Error {
        Error::new(doing, Cause::Place(Box::new(error)))
    }
}

impl Source for StoreWithReferrers<'_> {
    fn name(&self) -> String {
        Source::name(&self.place)
    }

    fn manifest(&self, digest: Option<&Digest>) -> Result<Manifest, Error> {
        self.place.manifest(digest)
    }

    fn open_blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>, Error> {
        self.place.open_blob(descriptor)
    }

    fn origin(&self, descriptor: &Descriptor) -> Option<Origin> {
        self.place.origin(descriptor)
    }

    /// Only what lies beside an image; other tags are other images' names.
    fn tagged(&self, tag: &str) -> Result<Option<Manifest>, Error> {
        let found = self.store.beside(tag).map_err(|error| Self::failed(format!("look for {tag}"), error))?;
        found.map(|manifest| StorePlace::existing(self.store, tag, manifest).manifest(None)).transpose()
    }

    fn referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>, Error> {
        let listed = self.store.unnamed();
        let listed = listed.map_err(|error| Self::failed(format!("list what refers to {subject}"), error))?;
        let mut found = Vec::new();
        for entry in listed {
            // What is too large, gone or no manifest refers to nothing.
            let bytes = self.store.read_blob(entry.digest(), MANIFEST_LIMIT_BYTES).ok();
            let manifest = bytes.and_then(|bytes| Manifest::new(None, bytes).ok());
            let about = manifest.and_then(|manifest| manifest.subject());
            if about.is_some_and(|about| about.digest() == subject) {
                found.push(entry);
            }
        }
        Ok(found)
    }
}

impl Destination for StoreWithReferrers<'_> {
    fn name(&self) -> String {
        Destination::name(&self.place)
    }

    fn named(&self) -> Result<Option<Digest>, Error> {
        self.place.named()
    }

    fn has_blob(&self, descriptor: &Descriptor) -> Result<bool, Error> {
        self.place.has_blob(descriptor)
    }

    fn put_blob(&self, descriptor: &Descriptor, content: &dyn Content) -> Result<Stored, Error> {
        self.place.put_blob(descriptor, content)
    }

    fn put_manifest(&self, manifest: &Manifest, is_top: bool) -> Result<(), Error> {
        self.place.put_manifest(manifest, is_top)?;
        if is_top || manifest.subject().is_none() {
            return Ok(());
        }
        let listed = self.store.add_unnamed(&manifest.listed());
        listed.map_err(|error| Self::failed(format!("list the referrer {}", manifest.digest()), error))
    }

    fn put_tagged(&self, manifest: &Manifest, tag: &str) -> Result<(), Error> {
        let doing = format!("keep {tag} in the store");
        let Some(subject) = companion_subject(tag) else {
            let what = "it is no tag of what lies beside an image".to_owned();
            return Err(Error::new(doing, Cause::Input(what)));
        };
        StorePlace::new(self.store, None).put_manifest(manifest, false)?;
        let kept = self.store.set_beside(&subject, tag, &manifest.descriptor());
        kept.map_err(|error| Self::failed(doing, error))
    }
}
