//! Names of images: entries of `index.json` with the annotation that other tools use for a tag.
//!
//! Invariant: `index.json` is replaced whole, by one writer at a time. What other tools wrote into it stays.
//! <https://github.com/opencontainers/image-spec/blob/main/annotations.md#pre-defined-annotation-keys>

use std::collections::HashMap;

use oci_spec::image::{ANNOTATION_REF_NAME, Descriptor, ImageIndex};

use super::Store;
use super::error::{AtPath, Result, StoreError};
use super::files::Draft;
use super::lock::Lock;
use crate::digest::Digest;

/// Of an entry that lies beside an image: the tag under which registries have it there, and that image's digest.
const BESIDE: &str = "io.nacre.beside.tag";
const BESIDE_SUBJECT: &str = "io.nacre.beside.subject";

/// An image in the store under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedImage {
    /// Its name, as `skopeo copy oci:STORE:NAME` has it.
    pub name: String,
    /// Its manifest or index, without the annotation that holds the name.
    pub descriptor: Descriptor,
}

impl Store {
    /// All names, sorted.
    ///
    /// # Errors
    /// If `index.json` cannot be read or is malformed.
    pub fn images(&self) -> Result<Vec<NamedImage>> {
        let index = self.read_index()?;
        let mut images: Vec<_> = index.manifests().iter().filter_map(named_image).collect();
        images.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(images)
    }

    /// What a name leads to. Its manifest stays as long as this session lives; what hangs below it does
    /// as soon as it is asked for.
    ///
    /// # Errors
    /// If `index.json` cannot be read or is malformed.
    pub fn resolve(&self, name: &str) -> Result<Option<Descriptor>> {
        let found = self.images()?.into_iter().find(|image| image.name == name);
        let Some(NamedImage { descriptor, .. }) = found else { return Ok(None) };
        self.has_blob(descriptor.digest())?;
        Ok(Some(descriptor))
    }

    /// Gives a manifest or index that is in the store a name; whatever had the name loses it.
    ///
    /// # Errors
    /// A name with control characters or none at all, a blob that is not there, or what writing gives.
    pub fn set_name(&self, name: &str, descriptor: &Descriptor) -> Result<()> {
        self.set_name_over(name, descriptor, |_| false)
    }

    /// The same, and all names that `is_other_spelling` knows for it go, in the one change.
    ///
    /// # Errors
    /// As [`Store::set_name`].
    pub fn set_name_over(
        &self,
        name: &str,
        descriptor: &Descriptor,
        is_other_spelling: impl Fn(&str) -> bool,
    ) -> Result<()> {
        if name.is_empty() || name.chars().any(char::is_control) {
            return Err(StoreError::Name { name: name.to_owned(), role: "the name of an image" });
        }
        if !self.has_blob(descriptor.digest())? {
            return Err(self.not_found(format!("blob {}", descriptor.digest())));
        }
        self.change_index(|manifests| {
            let goes = |other: &str| other == name || is_other_spelling(other);
            manifests.retain(|manifest| !name_of(manifest).is_some_and(goes));
            let mut named = descriptor.clone();
            let mut annotations = named.annotations().clone().unwrap_or_default();
            annotations.insert(ANNOTATION_REF_NAME.to_owned(), name.to_owned());
            named.set_annotations(Some(annotations));
            manifests.push(named);
            manifests
                .sort_by(|a, b| name_of(a).cmp(&name_of(b)).then_with(|| a.digest().as_ref().cmp(b.digest().as_ref())));
            true
        })
        .map(drop)
    }

    /// Takes a name away, and tells whether there was one. What it led to stays until [`Store::prune`].
    ///
    /// # Errors
    /// If `index.json` cannot be read or written.
    pub fn remove_name(&self, name: &str) -> Result<bool> {
        self.change_index(|manifests| {
            let before = manifests.len();
            manifests.retain(|manifest| name_of(manifest) != Some(name));
            manifests.len() != before
        })
    }

    /// What the list holds without a name, as other tools write it and as referrers are kept.
    ///
    /// # Errors
    /// If `index.json` cannot be read or is malformed.
    pub fn unnamed(&self) -> Result<Vec<Descriptor>> {
        Ok(self.read_index()?.manifests().iter().filter(|manifest| name_of(manifest).is_none()).cloned().collect())
    }

    /// Lists a manifest that is in the store without a name. If it has a subject, it stays as long as that does.
    ///
    /// # Errors
    /// If it is not there, or `index.json` cannot be read or written.
    pub fn add_unnamed(&self, descriptor: &Descriptor) -> Result<()> {
        if !self.has_blob(descriptor.digest())? {
            return Err(self.not_found(format!("blob {}", descriptor.digest())));
        }
        let is_same = |entry: &Descriptor| name_of(entry).is_none() && entry.digest() == descriptor.digest();
        self.change_index(|manifests| {
            let is_new = !manifests.iter().any(is_same);
            manifests.extend(is_new.then(|| descriptor.clone()));
            is_new
        })
        .map(drop)
    }

    /// Keeps a manifest that is in the store beside the image `subject`, as registries do under a tag that is made of its
    /// digest; what was there under that tag goes. It has no name, and stays as long as the image does.
    ///
    /// # Errors
    /// If it is not there, or `index.json` cannot be read or written.
    pub fn set_beside(&self, subject: &Digest, tag: &str, descriptor: &Descriptor) -> Result<()> {
        if !self.has_blob(descriptor.digest())? {
            return Err(self.not_found(format!("blob {}", descriptor.digest())));
        }
        let mut entry = descriptor.clone();
        let annotations = [(BESIDE, tag), (BESIDE_SUBJECT, subject.as_ref())];
        entry.set_annotations(Some(annotations.map(|(key, value)| (key.to_owned(), value.to_owned())).into()));
        self.change_index(|manifests| {
            let has_changed = !manifests.contains(&entry);
            manifests.retain(|manifest| annotation(manifest, BESIDE) != Some(tag));
            manifests.push(entry);
            has_changed
        })
        .map(drop)
    }

    /// What lies beside an image under a tag.
    ///
    /// # Errors
    /// If `index.json` cannot be read or is malformed.
    pub fn beside(&self, tag: &str) -> Result<Option<Descriptor>> {
        let found = self.read_index()?.manifests().iter().find(|entry| annotation(entry, BESIDE) == Some(tag)).cloned();
        match found {
            Some(found) if self.has_blob(found.digest())? => Ok(Some(found)),
            _ => Ok(None),
        }
    }

    /// Takes entries without a name away. The caller holds both locks.
    pub(super) fn remove_unnamed(&self, mut index: ImageIndex, is_stale: impl Fn(&Digest) -> bool) -> Result<()> {
        let is_kept = |entry: &&Descriptor| name_of(entry).is_some() || !is_stale(entry.digest());
        index.set_manifests(index.manifests().iter().filter(is_kept).cloned().collect());
        self.write_index(&index)
    }

    pub(super) fn read_index(&self) -> Result<ImageIndex> {
        let path = self.root.join("index.json");
        let bytes = std::fs::read(&path).at("reading", &path)?;
        serde_json::from_slice(&bytes).map_err(|source| StoreError::Json { path, source })
    }

    /// Changes the list of manifests under the lock; written only if `change` says that it changed.
    fn change_index(&self, change: impl FnOnce(&mut Vec<Descriptor>) -> bool) -> Result<bool> {
        let _lock = Lock::exclusive(&self.root.join("index.lock"))?;
        let mut index = self.read_index()?;
        let mut manifests = index.manifests().clone();
        if !change(&mut manifests) {
            return Ok(false);
        }
        index.set_manifests(manifests);
        self.lease.with([], || self.write_index(&index))?;
        Ok(true)
    }

    fn write_index(&self, index: &ImageIndex) -> Result<()> {
        let path = self.root.join("index.json");
        let bytes = serde_json::to_vec(index).map_err(|source| StoreError::Json { path: path.clone(), source })?;
        Draft::publish_bytes(self.lease.directory(), &bytes, &path)
    }
}

pub(super) fn name_of(descriptor: &Descriptor) -> Option<&str> {
    annotation(descriptor, ANNOTATION_REF_NAME)
}

/// The image that an entry lies beside, in hexadecimal.
pub(super) fn beside_of(descriptor: &Descriptor) -> Option<String> {
    annotation(descriptor, BESIDE_SUBJECT).and_then(|digest| Some(digest.split_once(':')?.1.to_owned()))
}

fn annotation<'a>(descriptor: &'a Descriptor, key: &str) -> Option<&'a str> {
    descriptor.annotations().as_ref()?.get(key).map(String::as_str)
}

fn named_image(manifest: &Descriptor) -> Option<NamedImage> {
    let name = name_of(manifest)?.to_owned();
    let mut descriptor = manifest.clone();
    let mut annotations: HashMap<_, _> = descriptor.annotations().clone().unwrap_or_default();
    annotations.remove(ANNOTATION_REF_NAME);
    descriptor.set_annotations(if annotations.is_empty() { None } else { Some(annotations) });
    Some(NamedImage { name, descriptor })
}
