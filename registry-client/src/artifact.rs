//! Artifacts that are no images: signatures, bills of material, any files; mostly attached to an image.
//!
//! Invariant: the same artifact has the same bytes, wherever and whenever it is made.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use oci_spec::image::{Descriptor, MediaType};
use serde_json::{Value, json};

use crate::digest::{Digester, VerifyingReader, digest_of};
use crate::error::{Cause, Error};
use crate::manifest::{Manifest, OCI_MANIFEST};
use crate::place::{Content, Destination};
use crate::repository::{Repository, Selector};

/// What is attached.
#[derive(Default)]
pub struct Artifact<'a> {
    /// What it is, as a media type: `application/spdx+json`.
    pub artifact_type: String,
    /// The manifest that it is about, if it is about one.
    pub subject: Option<Descriptor>,
    /// Its contents in order; each descriptor (media type, annotations) is written as it is.
    pub layers: Vec<(Descriptor, &'a dyn Content)>,
    /// Of the manifest; registries show them in the list of referrers.
    pub annotations: BTreeMap<String, String>,
}

/// The content that stands for none, of an artifact's configuration and of one without content
/// (<https://github.com/opencontainers/image-spec/blob/main/manifest.md#guidance-for-an-empty-descriptor>).
const EMPTY: &[u8] = b"{}";
const EMPTY_MEDIA_TYPE: &str = "application/vnd.oci.empty.v1+json";

impl Artifact<'_> {
    /// The manifest of the artifact.
    ///
    /// # Errors
    /// If the artifact type is no media type.
    pub fn manifest(&self) -> Result<Manifest, Error> {
        let fail = |cause| Error::local("make the manifest of an artifact", cause);
        if !is_media_type(&self.artifact_type) {
            return Err(fail(Cause::Input(format!("{:?} is no media type", self.artifact_type))));
        }
        let empty = json!({"mediaType": EMPTY_MEDIA_TYPE, "digest": digest_of(EMPTY).as_ref(), "size": EMPTY.len()});
        let mut layers: Vec<Value> = self.layers.iter().map(|(descriptor, _)| in_order(descriptor)).collect();
        if layers.is_empty() {
            layers.push(empty.clone());
        }
        let mut manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": self.artifact_type, "config": empty,
            "layers": layers,
        });
        if let Some(subject) = &self.subject {
            let bare = Descriptor::new(subject.media_type().clone(), subject.size(), subject.digest().clone());
            manifest["subject"] = in_order(&bare);
        }
        if !self.annotations.is_empty() {
            manifest["annotations"] = json!(self.annotations);
        }
        Manifest::new(None, manifest.to_string().into_bytes()).map_err(fail)
    }

    /// Puts the artifact to the place of what it is about, where it is listed among what refers to that.
    ///
    /// # Errors
    /// If a content fails, the artifact type is no media type, or the place refuses.
    pub fn put(&self, destination: &dyn Destination) -> Result<Manifest, Error> {
        let manifest = self.manifest()?;
        let empty =
            (Descriptor::new(MediaType::from(EMPTY_MEDIA_TYPE), EMPTY.len() as u64, digest_of(EMPTY)), EMPTY.to_vec());
        let own = std::iter::once((&empty.0, &empty.1 as &dyn Content));
        for (descriptor, content) in own.chain(self.layers.iter().map(|(descriptor, content)| (descriptor, *content))) {
            if !destination.has_blob(descriptor)? {
                destination.put_blob(descriptor, content)?;
            }
        }
        destination.put_manifest(&manifest, false)?;
        Ok(manifest)
    }
}

/// A descriptor with its annotations sorted: the library keeps them in no order.
fn in_order(descriptor: &Descriptor) -> Value {
    let mut value = serde_json::to_value(descriptor).expect("a descriptor has only text keys");
    if let Some(annotations) = descriptor.annotations() {
        value["annotations"] = json!(annotations.iter().collect::<BTreeMap<_, _>>());
    }
    value
}

/// RFC 6838 section 4.2: two names with a slash between.
fn is_media_type(text: &str) -> bool {
    let is_name = |name: &str| {
        let is_first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        let is_rest = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&byte));
        is_first && is_rest && name.len() <= 127
    };
    text.split_once('/').is_some_and(|(kind, name)| is_name(kind) && is_name(name))
}

impl Repository {
    /// Pushes an artifact under its digest, and under a tag if one is given; a registry without the referrers API gets
    /// its list updated. Pushing it again changes nothing.
    ///
    /// # Errors
    /// If a content fails, the artifact type is no media type, or the registry refuses.
    pub fn attach(&self, artifact: &Artifact<'_>, tag: Option<&str>) -> Result<Manifest, Error> {
        let manifest = artifact.manifest()?;
        let empty = EMPTY.to_vec();
        let descriptor = Descriptor::new(MediaType::from(EMPTY_MEDIA_TYPE), EMPTY.len() as u64, digest_of(EMPTY));
        let own = std::iter::once((&descriptor, &empty as &dyn Content));
        let repository = self.clone().for_push();
        for (descriptor, content) in
            own.chain(artifact.layers.iter().map(|(descriptor, content)| (descriptor, *content)))
        {
            if !repository.has_blob(descriptor)? {
                repository.put_blob(descriptor, content)?;
            }
        }
        let digest = || Selector::Digest(manifest.digest().clone());
        let selector = tag.map_or_else(digest, |tag| Selector::Tag(tag.to_owned()));
        repository.put_manifest(&manifest, &selector)?;
        Ok(manifest)
    }
}

/// Bytes in memory, which are what their descriptor was made from.
impl Content for Vec<u8> {
    fn open(&self) -> Result<Box<dyn Read + Send + '_>, Error> {
        Ok(Box::new(self.as_slice()))
    }
}

/// A file as content.
#[derive(Debug, Clone)]
pub struct FileContent {
    path: PathBuf,
    descriptor: Descriptor,
}

impl FileContent {
    /// Reads a file once to describe it.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn new(path: &Path, media_type: &str) -> Result<Self, Error> {
        let fail = |error| Error::disk("read a file to be attached", path, error);
        let mut file = File::open(path).map_err(fail)?;
        let (mut digester, mut size_bytes, mut buffer) = (Digester::sha256(), 0, vec![0; 128 << 10]);
        loop {
            let count = file.read(&mut buffer).map_err(fail)?;
            if count == 0 {
                break;
            }
            digester.update(&buffer[..count]);
            size_bytes += count as u64;
        }
        let descriptor = Descriptor::new(MediaType::from(media_type), size_bytes, digester.finish());
        Ok(Self { path: path.to_owned(), descriptor })
    }

    /// What it is, for the manifest.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }
}

impl Content for FileContent {
    /// Fails where the file is no longer what it was.
    fn open(&self) -> Result<Box<dyn Read + Send + '_>, Error> {
        let file =
            File::open(&self.path).map_err(|error| Error::disk("read a file to be attached", &self.path, error))?;
        Ok(Box::new(VerifyingReader::new(file, &self.descriptor)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_artifact_has_the_form_of_the_specification_and_always_the_same_bytes() {
        let content = b"content".to_vec();
        let mut layer = Descriptor::new(MediaType::from("text/plain"), 7, digest_of(&content));
        let names = ["c", "a", "b"].map(|name| (name.to_owned(), "x".to_owned()));
        layer.set_annotations(Some(names.clone().into_iter().collect()));
        let subject = Some(Descriptor::new(MediaType::ImageManifest, 3, digest_of(b"abc")));
        let make = || {
            let layers = vec![(layer.clone(), &content as &dyn Content)];
            let annotations = names.clone().into_iter().collect();
            Artifact { artifact_type: "text/x-note".to_owned(), subject: subject.clone(), layers, annotations }
        };
        let manifest = make().manifest().expect("valid");
        assert_eq!(manifest, make().manifest().expect("valid"));
        assert_eq!(manifest.artifact_type().as_deref(), Some("text/x-note"));
        assert_eq!(manifest.subject().expect("it has one").digest(), &digest_of(b"abc"));
        assert_eq!(manifest.annotations().len(), 3);
        let text = String::from_utf8_lossy(manifest.bytes());
        assert!(text.contains(r#""annotations":{"a":"x","b":"x","c":"x"}"#), "{text}");
    }

    #[test]
    fn an_artifact_without_content_has_the_empty_one_and_one_without_type_is_refused() {
        let artifact = |kind: &str| Artifact { artifact_type: kind.to_owned(), ..Artifact::default() }.manifest();
        let manifest = artifact("application/x").expect("valid");
        assert_eq!(String::from_utf8_lossy(manifest.bytes()).matches("44136fa355b3678a1146ad16f7e8649e").count(), 2);
        for kind in ["", "x", "a/", "/b", "a b/c", "a/b/c"] {
            assert!(artifact(kind).is_err(), "{kind}");
        }
    }
}
