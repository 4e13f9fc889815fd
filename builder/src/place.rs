//! The store as a place that images are copied from and to: layers are inflated and indexed while
//! they come in, and nothing gets a name before all of it is there and fits together.
//!
//! Invariant: a referrer (a signature, a bill of material) is listed after it is there whole. It lives as long as what
//! it refers to does.

use std::io::Read;

use layerfs::{DOCUMENT_MAX_BYTES, DiffId, Layer, Store, StoreError};
use oci_spec::image::{Descriptor, Digest};
use registry_client::{
    Cause, Content, Destination, Error, MANIFEST_LIMIT_BYTES, Manifest, ManifestContent, Origin, Source, Stored,
    VerifyingReader, companion_subject,
};

use crate::image::ImageConfig;
use crate::schedule::Stop;

/// Configurations are small; what is larger is no configuration.
pub(crate) const MOST_CONFIG_BYTES: u64 = DOCUMENT_MAX_BYTES;
/// Indexes in indexes: as deep as any copy goes.
const MOST_INDEXES_DEEP: usize = 4;
// What comes in must be followed by whoever clears up.
const _: () = assert!(MANIFEST_LIMIT_BYTES <= DOCUMENT_MAX_BYTES);

/// A statement in the store, and the image that it is about.
pub(crate) type Attached = (Digest, Descriptor);

/// An image of the store, or the place of one that comes.
#[derive(Debug, Clone)]
pub struct StorePlace<'a> {
    store: &'a Store,
    name: Option<String>,
    manifest: Option<Descriptor>,
    origin: Option<Origin>,
    stop: Stop,
    /// The referrers that count, and what each is about; `None` for all that the store has.
    referrers: Option<Vec<Attached>>,
}

impl<'a> StorePlace<'a> {
    /// An image that is there, by its manifest; `name` is for messages.
    pub fn existing(store: &'a Store, name: &str, manifest: Descriptor) -> Self {
        Self { name: Some(name.to_owned()), manifest: Some(manifest), ..Self::new(store, None) }
    }

    /// Where an image goes; `None` gives it no name.
    pub fn new(store: &'a Store, name: Option<&str>) -> Self {
        let name = name.map(str::to_owned);
        Self { store, name, manifest: None, origin: None, stop: Stop::default(), referrers: None }
    }

    /// The same place, with the repository that its blobs came from: a registry may take them from there.
    pub(crate) fn that_came_from(self, origin: Option<Origin>) -> Self {
        Self { origin, ..self }
    }

    /// The same place, whose transfers end when the mark is set.
    pub(crate) fn until(self, stop: Stop) -> Self {
        Self { stop, ..self }
    }

    /// The same place, as if nothing else referred to its images.
    pub(crate) fn with_no_referrers_but(self, referrers: Vec<Attached>) -> Self {
        Self { referrers: Some(referrers), ..self }
    }

    fn error(&self, doing: &str, error: StoreError) -> Error {
        match error {
            // The stream that the store read from failed, not the store.
            StoreError::Receive { what, source } => {
                Error::from_io(format!("receive {what}"), self.store.root(), source)
            }
            error => Error::new(format!("{doing} in the store"), Cause::Place(Box::new(error))),
        }
    }

    /// Where it is.
    pub(crate) fn store(&self) -> &'a Store {
        self.store
    }

    /// Whether all is there that a manifest leads to. What cannot be read is not there.
    pub(crate) fn is_whole(&self, manifest: &Descriptor) -> bool {
        self.is_whole_at(manifest, 0)
    }

    /// Whether a manifest is there, and one of several.
    pub(crate) fn is_index(&self, manifest: &Descriptor) -> bool {
        matches!(self.content_of(manifest), Some(ManifestContent::Index(_)))
    }

    fn content_of(&self, manifest: &Descriptor) -> Option<ManifestContent> {
        let bytes = self.store.read_blob(manifest.digest(), MANIFEST_LIMIT_BYTES).ok()?;
        Manifest::new(None, bytes).ok().map(|manifest| manifest.content())
    }

    fn is_whole_at(&self, manifest: &Descriptor, depth: usize) -> bool {
        match self.content_of(manifest) {
            Some(ManifestContent::Image { config, layers }) => {
                layers.iter().chain([&*config]).all(|blob| Destination::has_blob(self, blob).unwrap_or(false))
            }
            Some(ManifestContent::Index(entries)) if depth < MOST_INDEXES_DEEP => {
                entries.iter().all(|entry| self.is_whole_at(entry, depth + 1))
            }
            _ => false,
        }
    }

    fn check_image(&self, manifest: &Manifest) -> Result<(), Error> {
        let ManifestContent::Image { config, layers } = manifest.content() else { return Ok(()) };
        let checked = |error| self.error("check the image", error);
        let config = self.store.read_blob(config.digest(), MOST_CONFIG_BYTES).map_err(checked)?;
        // An artifact's config is no image configuration; it has no layers to compare.
        let Ok(config) = serde_json::from_slice::<ImageConfig>(&config) else { return Ok(()) };
        if !layers.iter().all(is_layer) {
            return Ok(());
        }
        let wanted = &config.rootfs.diff_ids;
        let mut found = Vec::new();
        for layer in &layers {
            let layer = self.store.layer_of_blob(layer.digest()).map_err(checked)?;
            found.extend(layer.map(|layer| layer.diff_id.to_string()));
        }
        if *wanted == found {
            return Ok(());
        }
        let what = format!("its layers have the diff ids {found:?}, but its configuration says {wanted:?}");
        Err(Error::new(format!("accept the image {}", Source::name(self)), Cause::Malformed(what)))
    }
}

impl Source for StorePlace<'_> {
    fn name(&self) -> String {
        self.name.clone().unwrap_or_else(|| "the store".to_owned())
    }

    fn manifest(&self, digest: Option<&Digest>) -> Result<Manifest, Error> {
        let name = Source::name(self);
        let missing = || Error::new(format!("find {name}"), Cause::Missing("it is not in the store".to_owned()));
        let digest = digest.or(self.manifest.as_ref().map(Descriptor::digest)).ok_or_else(missing)?;
        let bytes =
            self.store.read_blob(digest, MANIFEST_LIMIT_BYTES).map_err(|error| self.error("read a manifest", error))?;
        let media_type = self.manifest.as_ref().map(|descriptor| descriptor.media_type().to_string());
        Manifest::new(media_type.as_deref(), bytes).map_err(|cause| Error::new(format!("read {name}"), cause))
    }

    fn open_blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>, Error> {
        let blob = self.store.open_blob(descriptor.digest()).map_err(|error| self.error("open a blob", error))?;
        Ok(Box::new(self.stop.ends(VerifyingReader::new(blob.file, descriptor)?)))
    }

    fn distrust(&self, _: &Descriptor) {}

    fn origin(&self, _: &Descriptor) -> Option<Origin> {
        self.origin.clone()
    }

    /// Only what lies beside an image; other tags are other images' names.
    fn tagged(&self, tag: &str) -> Result<Option<Manifest>, Error> {
        if self.referrers.is_some() {
            return Ok(None);
        }
        let found = self.store.beside(tag).map_err(|error| self.error("look for what lies beside an image", error))?;
        found.map(|manifest| Self::existing(self.store, tag, manifest).manifest(None)).transpose()
    }

    fn referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>, Error> {
        if let Some(referrers) = &self.referrers {
            let about = |(of, _): &&Attached| of == subject;
            return Ok(referrers.iter().filter(about).map(|(_, listed)| listed.clone()).collect());
        }
        let listed = self.store.unnamed().map_err(|error| self.error("list referrers", error))?;
        let refers = |entry: &Descriptor| {
            // What is too large, gone or no manifest refers to nothing.
            let bytes = self.store.read_blob(entry.digest(), MANIFEST_LIMIT_BYTES).ok()?;
            let about = Manifest::new(None, bytes).ok()?.subject()?;
            (about.digest() == subject).then_some(())
        };
        Ok(listed.into_iter().filter(|entry| refers(entry).is_some()).collect())
    }
}

impl Destination for StorePlace<'_> {
    fn name(&self) -> String {
        Source::name(self)
    }

    fn named(&self) -> Result<Option<Digest>, Error> {
        let Some(name) = &self.name else { return Ok(None) };
        let found = crate::names::find(self.store, &name.parse()?)?;
        Ok(found.filter(|manifest| self.is_whole(manifest)).map(|manifest| manifest.digest().clone()))
    }

    fn has_blob(&self, descriptor: &Descriptor) -> Result<bool, Error> {
        let looked = |error| self.error("look for a blob", error);
        if is_layer(descriptor) {
            return Ok(self.store.layer_of_blob(descriptor.digest()).map_err(looked)?.is_some());
        }
        self.store.has_blob(descriptor.digest()).map_err(looked)
    }

    fn put_blob(&self, descriptor: &Descriptor, content: &dyn Content) -> Result<Stored, Error> {
        // The store digests what it is given, and keeps nothing that does not fit.
        let reader = self.stop.ends(content.open_unverified()?);
        let stored = if is_layer(descriptor) {
            self.store.ingest_layer(reader, descriptor, None).map(drop)
        } else {
            self.store.put_blob(reader, descriptor)
        };
        let refused = |cause| Error::new(format!("keep the blob {}", descriptor.digest()), cause);
        stored.map_err(|error| match error {
            StoreError::DigestMismatch { found, .. } => {
                refused(Cause::DigestMismatch { expected: descriptor.digest().clone(), actual: found })
            }
            StoreError::SizeMismatch { expected_bytes, found_bytes, .. } => {
                let more = if found_bytes > expected_bytes { "at least " } else { "" };
                refused(Cause::SizeMismatch { expected_bytes, actual: format!("{more}{found_bytes} bytes") })
            }
            error => self.error("keep a blob", error),
        })?;
        Ok(Stored::Sent)
    }

    fn put_manifest(&self, manifest: &Manifest, is_top: bool) -> Result<(), Error> {
        self.check_image(manifest)?;
        let descriptor = manifest.descriptor();
        let kept = |error| self.error("keep a manifest", error);
        self.store.put_blob(manifest.bytes(), &descriptor).map_err(kept)?;
        match &self.name {
            Some(name) if is_top => crate::names::set(self.store, name, &descriptor),
            None if is_top => Ok(()),
            _ if manifest.subject().is_some() => {
                self.store.add_unnamed(&manifest.listed()).map_err(|error| self.error("list a referrer", error))
            }
            _ => Ok(()),
        }
    }

    fn beside(&self) -> Result<Box<dyn Source + '_>, Error> {
        Ok(Box::new(self.clone()))
    }

    fn put_tagged(&self, manifest: &Manifest, tag: &str) -> Result<(), Error> {
        let Some(subject) = companion_subject(tag) else {
            let what = "it is no tag of what lies beside an image".to_owned();
            return Err(Error::new(format!("keep {tag} in the store"), Cause::Input(what)));
        };
        StorePlace::new(self.store, None).put_manifest(manifest, false)?;
        let kept = self.store.set_beside(&subject, tag, &manifest.descriptor());
        kept.map_err(|error| self.error("keep what lies beside an image", error))
    }
}

/// An image of the store, opened: its configuration and its layers.
#[derive(Debug, Clone)]
pub struct StoredImage {
    /// The manifest's descriptor.
    pub manifest: Descriptor,
    /// The configuration.
    pub config: ImageConfig,
    /// The layers, the lowest first, each with the descriptor that the manifest has for it.
    pub layers: Vec<Layer>,
}

impl StoredImage {
    /// Opens an image by its manifest, and reads layers whose tar is missing from their blobs again.
    ///
    /// # Errors
    /// If something of it is missing or damaged.
    pub fn open(store: &Store, manifest: &Descriptor) -> Result<Self, Error> {
        let (config, layers) = described(store, manifest)?;
        let layers = layers
            .iter()
            .zip(&config.rootfs.diff_ids)
            .map(|(descriptor, diff_id)| {
                let diff_id: Option<DiffId> = diff_id.parse().ok();
                let found = store.layer_of_blob(descriptor.digest())?;
                let layer = match found {
                    Some(layer) => layer,
                    None => store.ingest_stored_layer(descriptor, diff_id.as_ref())?,
                };
                Ok(Layer { diff_id: layer.diff_id, descriptor: descriptor.clone() })
            })
            .collect::<Result<Vec<_>, StoreError>>()
            .map_err(|error| opening(store, manifest, error))?;
        Ok(Self { manifest: manifest.clone(), config, layers })
    }

    /// The diff ids of the layers.
    pub fn diff_ids(&self) -> Vec<DiffId> {
        self.layers.iter().map(|layer| layer.diff_id).collect()
    }
}

/// What an image says of itself: its configuration, and its layers as the manifest has them.
///
/// # Errors
/// If a document is missing or damaged, or it is no single image.
pub(crate) fn described(store: &Store, manifest: &Descriptor) -> Result<(ImageConfig, Vec<Descriptor>), Error> {
    let document = StorePlace::existing(store, manifest.digest().as_ref(), manifest.clone()).manifest(None)?;
    let ManifestContent::Image { config, layers } = document.content() else {
        let what = "it is an index of several images; name one of them".to_owned();
        return Err(Error::new(format!("open {}", manifest.digest()), Cause::Malformed(what)));
    };
    let bytes = store.read_blob(config.digest(), MOST_CONFIG_BYTES).map_err(|error| opening(store, manifest, error))?;
    let config = serde_json::from_slice(&bytes)
        .map_err(|error| Error::new("read the image's configuration", Cause::Malformed(error.to_string())))?;
    Ok((config, layers.clone()))
}

fn opening(store: &Store, manifest: &Descriptor, error: StoreError) -> Error {
    StorePlace::existing(store, manifest.digest().as_ref(), manifest.clone()).error("open an image", error)
}

/// Whether a blob is a layer that can be mounted.
fn is_layer(descriptor: &Descriptor) -> bool {
    let media_type = descriptor.media_type().to_string();
    media_type.starts_with("application/vnd.oci.image.layer.")
        || media_type.starts_with("application/vnd.docker.image.rootfs.")
}
