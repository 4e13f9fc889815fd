//! Manifests and indexes: the bytes as they came, and what they point to.
//!
//! Invariant: a [`Manifest`] keeps its bytes unchanged, so its digest is the same wherever it goes, and is what points to it.

use std::collections::BTreeMap;

use oci_spec::image::{Descriptor, Digest, MediaType};
use serde::Deserialize;
use serde_json::Value;

use crate::digest::{check, digest_of};
use crate::error::Cause;

/// The media types of manifests that are understood, OCI's first.
pub(crate) const MANIFEST_MEDIA_TYPES: [&str; 4] = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST];

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// No larger manifest is read; registries accept 4 MiB.
pub const MANIFEST_LIMIT_BYTES: u64 = 8 << 20;

/// A manifest or index, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    media_type: String,
    bytes: Vec<u8>,
    digest: Digest,
}

/// What a manifest points to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManifestContent {
    /// One image (or artifact): its config and its layers, the lowest first.
    Image {
        /// The config blob.
        config: Box<Descriptor>,
        /// The layer blobs.
        layers: Vec<Descriptor>,
    },
    /// Other manifests, mostly one a platform.
    Index(Vec<Descriptor>),
}

impl Manifest {
    /// Takes the bytes of a manifest. The media type is the one in the document, else the one given.
    ///
    /// # Errors
    /// If it is not a manifest that we understand.
    pub fn new(media_type: Option<&str>, bytes: Vec<u8>) -> Result<Self, Cause> {
        if bytes.len() as u64 > MANIFEST_LIMIT_BYTES {
            return Err(Cause::Malformed(format!("the manifest is larger than {MANIFEST_LIMIT_BYTES} bytes")));
        }
        let document = Document::parse(&bytes)?;
        if !serde_json::from_slice(&bytes).is_ok_and(|document| is_of_objects(&document)) {
            return Err(Cause::Malformed("it is not a valid manifest: it has a list in place of an object".to_owned()));
        }
        if document.schema_version == Some(1) {
            let what = "it is an image of the obsolete schema 1; have its owner push it again".to_owned();
            return Err(Cause::Malformed(what));
        }
        // A document that is both could be read differently by two tools (CVE-2021-41190).
        if document.manifests.is_some() && (document.config.is_some() || document.layers.is_some()) {
            return Err(Cause::Malformed("it is a manifest and an index at once".to_owned()));
        }
        let given = media_type.filter(|given| MANIFEST_MEDIA_TYPES.contains(given)).map(str::to_owned);
        let inferred = if document.manifests.is_some() { OCI_INDEX } else { OCI_MANIFEST };
        let media_type = document.media_type.or(given).unwrap_or_else(|| inferred.to_owned());
        let is_index = matches!(media_type.as_str(), OCI_INDEX | DOCKER_LIST);
        if !MANIFEST_MEDIA_TYPES.contains(&media_type.as_str()) {
            return Err(Cause::Malformed(format!("its media type {media_type} is not supported")));
        }
        if is_index != document.manifests.is_some() {
            return Err(Cause::Malformed(format!("it does not hold what its media type {media_type} says")));
        }
        if !is_index && document.config.is_none() {
            return Err(Cause::Malformed("it has no config".to_owned()));
        }
        let digest = digest_of(&bytes);
        Ok(Self { media_type, bytes, digest })
    }

    /// Takes the bytes of a manifest that is known by this digest, of whatever algorithm: it goes on under the same.
    ///
    /// # Errors
    /// If it is not what the digest says, or not a manifest that we understand.
    pub fn known_as(digest: &Digest, media_type: Option<&str>, bytes: Vec<u8>) -> Result<Self, Cause> {
        check(&bytes, digest)?;
        Ok(Self { digest: digest.clone(), ..Self::new(media_type, bytes)? })
    }

    /// The media type.
    pub fn media_type(&self) -> &str {
        &self.media_type
    }

    /// The bytes as they came.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The digest by which it is known: that of SHA-256, unless it was asked for by another.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// A descriptor of it, without platform.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor::new(MediaType::from(self.media_type.as_str()), self.bytes.len() as u64, self.digest.clone())
    }

    /// A descriptor of it as lists of referrers have it: with the type of the artifact and its annotations.
    pub fn listed(&self) -> Descriptor {
        let mut descriptor = self.descriptor();
        descriptor.set_artifact_type(self.artifact_type().map(|text| MediaType::from(text.as_str())));
        let annotations = self.annotations();
        descriptor.set_annotations((!annotations.is_empty()).then(|| annotations.into_iter().collect()));
        descriptor
    }

    /// The manifest that it is about, for an artifact.
    pub fn subject(&self) -> Option<Descriptor> {
        self.document().subject.and_then(|subject| serde_json::from_value(subject).ok())
    }

    /// What kind of artifact it is: its own word, or the type of its config.
    pub fn artifact_type(&self) -> Option<String> {
        let document = self.document();
        let of_config = document.config.map(|config| config.media_type().to_string());
        let own = document.artifact_type.as_ref().and_then(Value::as_str).filter(|text| !text.is_empty());
        own.map(str::to_owned).or(of_config)
    }

    /// Its annotations, sorted.
    pub fn annotations(&self) -> BTreeMap<String, String> {
        let annotations = self.document().annotations.and_then(|annotations| serde_json::from_value(annotations).ok());
        annotations.unwrap_or_default()
    }

    /// The versions of the systems that the entries of an index are for, which the vocabulary's descriptors leave out:
    /// they look for `os_version`.
    pub(crate) fn os_versions(&self) -> Vec<Option<String>> {
        let document: Value = serde_json::from_slice(&self.bytes).unwrap_or_default();
        let entries = document["manifests"].as_array().map(Vec::as_slice).unwrap_or_default();
        let version = |entry: &Value| entry.pointer("/platform/os.version").and_then(Value::as_str).map(str::to_owned);
        entries.iter().map(version).collect()
    }

    fn document(&self) -> Document {
        Document::parse(&self.bytes).expect("the bytes were parsed when this was made")
    }

    /// What it points to.
    pub fn content(&self) -> ManifestContent {
        let document = self.document();
        match (document.manifests, document.config) {
            (Some(manifests), _) => ManifestContent::Index(manifests),
            (None, Some(config)) => {
                ManifestContent::Image { config: Box::new(config), layers: document.layers.unwrap_or_default() }
            }
            (None, None) => unreachable!("a manifest without config is refused when this is made"),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: Option<u64>,
    media_type: Option<String>,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    // Of no meaning for moving an image, so a wrong one is no reason to refuse it.
    subject: Option<Value>,
    artifact_type: Option<Value>,
    annotations: Option<Value>,
}

impl Document {
    fn parse(bytes: &[u8]) -> Result<Self, Cause> {
        serde_json::from_slice(bytes).map_err(|error| Cause::Malformed(format!("it is not a valid manifest: {error}")))
    }
}

/// serde takes a list for a structure, too, field by field. No other tool does, and who changes a document counts on
/// objects.
fn is_of_objects(document: &Value) -> bool {
    let is_object_or_none = |value: &Value| value.is_object() || value.is_null();
    let is_descriptor = |value: &Value| {
        value.is_object() && is_object_or_none(&value["platform"]) && is_object_or_none(&value["annotations"])
    };
    let mut listed = ["manifests", "layers"].iter().flat_map(|key| document[*key].as_array()).flatten();
    let config = &document["config"];
    document.is_object() && (config.is_null() || is_descriptor(config)) && listed.all(is_descriptor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn new(media_type: Option<&str>, json: &str) -> Result<Manifest, Cause> {
        Manifest::new(media_type, json.as_bytes().to_vec())
    }

    fn descriptor() -> String {
        format!(r#"{{"mediaType":"m","digest":"{DIGEST}","size":0}}"#)
    }

    #[test]
    fn the_media_type_is_in_the_document_or_given_or_inferred() {
        let config = descriptor();
        let image = |extra: &str| format!(r#"{{{extra}"config":{config},"layers":[{config}]}}"#);
        assert_eq!(new(None, &image("")).expect("valid").media_type(), OCI_MANIFEST);
        assert_eq!(new(Some(DOCKER_MANIFEST), &image("")).expect("valid").media_type(), DOCKER_MANIFEST);
        assert_eq!(new(Some("text/plain"), &image("")).expect("valid").media_type(), OCI_MANIFEST);
        let own = image(&format!(r#""mediaType":"{DOCKER_MANIFEST}","#));
        assert_eq!(new(Some(OCI_MANIFEST), &own).expect("valid").media_type(), DOCKER_MANIFEST);
        assert!(
            matches!(new(None, &image("")).expect("valid").content(), ManifestContent::Image { layers, .. } if layers.len() == 1)
        );
    }

    #[test]
    fn lists_in_place_of_objects_are_refused() {
        let descriptor = format!(r#"["{OCI_MANIFEST}","{DIGEST}",7]"#);
        for json in [
            format!(r#"{{"schemaVersion":2,"config":{descriptor}}}"#),
            format!(r#"{{"schemaVersion":2,"manifests":[{descriptor}]}}"#),
            "[2,null,[],null,null,null,null,null]".to_owned(),
        ] {
            assert!(new(Some(OCI_INDEX), &json).is_err(), "{json}");
        }
    }

    #[test]
    fn documents_that_two_tools_could_read_differently_are_refused() {
        let config = descriptor();
        assert!(new(None, &format!(r#"{{"manifests":[],"config":{config}}}"#)).is_err());
        assert!(new(None, &format!(r#"{{"mediaType":"{OCI_INDEX}","config":{config}}}"#)).is_err());
        assert!(new(Some(OCI_MANIFEST), r#"{"manifests":[]}"#).is_err());
        assert!(new(None, "{}").is_err());
        assert!(new(None, r#"{"schemaVersion":1}"#).is_err());
        assert!(new(None, r#"{"config":{"mediaType":"m","digest":"sha256:../../x","size":1}}"#).is_err());
        assert!(new(None, r#"{"config":{"mediaType":"m","digest":"sha256:aa","size":-1}}"#).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Manifest::new(None, bytes);
        }
    }
}
