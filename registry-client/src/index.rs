//! Indexes made by hand: images that lie at several places, under one name.
//!
//! Invariant: the same images in the same order give the same bytes; what an index that exists says of its entries,
//! known to us or not, stays as it is. Which image a machine takes from an index is not decided here but in
//! `platform.rs`.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read};
use std::sync::Mutex;

use oci_spec::image::{Descriptor, Digest};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::draft::Draft;
use crate::error::{Cause, Error};
use crate::manifest::{DOCKER_LIST, DOCKER_MANIFEST, MANIFEST_LIMIT_BYTES, Manifest, ManifestContent, OCI_INDEX};
use crate::place::{Origin, Source};
use crate::platform::{self, Platform};

/// An index that is being made.
pub struct IndexDraft<'a> {
    document: Value,
    entries: Vec<Value>,
    sources: Vec<Box<dyn Source + 'a>>,
}

/// What is to be said of an entry; what is left out stays as it is.
#[derive(Debug, Clone, Default)]
pub struct EntryChange {
    /// For which machines it is.
    pub platform: Option<Platform>,
    /// The version of the system, which Windows needs.
    pub os_version: Option<String>,
    /// What the system must have.
    pub os_features: Vec<String>,
    /// Added to its annotations.
    pub annotations: BTreeMap<String, String>,
}

/// An entry by what a person knows of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryChoice {
    /// The manifest's digest.
    Digest(Digest),
    /// The platform that it is for.
    Platform(Platform),
}

impl Default for IndexDraft<'_> {
    fn default() -> Self {
        Self { document: json!({ "schemaVersion": 2 }), entries: Vec::new(), sources: Vec::new() }
    }
}

impl<'a> IndexDraft<'a> {
    /// Goes on from an index that exists.
    ///
    /// # Errors
    /// If it cannot be read, or is an image.
    pub fn from_index(source: Box<dyn Source + 'a>) -> Result<Self, Error> {
        let manifest = source.manifest(None)?;
        let wrong = || {
            let what = "it is a single image, and no index".to_owned();
            Error::local(format!("change the index {}", source.name()), Cause::Input(what))
        };
        let mut document: Value = serde_json::from_slice(manifest.bytes()).map_err(|_| wrong())?;
        let entries = document.as_object_mut().and_then(|fields| fields.remove("manifests"));
        let Some(Value::Array(entries)) = entries else { return Err(wrong()) };
        if document.get("annotations").is_some_and(|annotations| !annotations.is_object()) {
            let what = "its annotations are no object".to_owned();
            return Err(Error::local(format!("change the index {}", source.name()), Cause::Malformed(what)));
        }
        Ok(Self { document, entries, sources: vec![source] })
    }

    /// Adds the image of a place, or all that an index there holds. An image for a platform that there is one for
    /// already replaces it, if it may.
    ///
    /// # Errors
    /// If the image cannot be read, or another one for its platform is there and may not be replaced.
    pub fn add(&mut self, source: Box<dyn Source + 'a>, change: &EntryChange, may_replace: bool) -> Result<(), Error> {
        let manifest = source.manifest(None)?;
        let fail = |what: String| Error::local(format!("add {} to the index", source.name()), Cause::Input(what));
        let new = match manifest.content() {
            ManifestContent::Image { config, .. } => vec![entry_of(&*source, &manifest, &config)?],
            ManifestContent::Index(_) if change.platform.is_some() => {
                return Err(fail("it is an index, whose images have platforms of their own".to_owned()));
            }
            ManifestContent::Index(_) => entries_of(&manifest),
        };
        for mut entry in new {
            change.apply(&mut entry);
            let same = self.entries.iter().position(|other| is_same(other, &entry));
            match same {
                Some(position) if may_replace || digest_in(&self.entries[position]) == digest_in(&entry) => {
                    self.entries[position] = entry;
                }
                Some(_) => {
                    let platform = shown_platform(&entry);
                    return Err(fail(format!("another image of it is for {platform} too, and hides this one")));
                }
                None => self.entries.push(entry),
            }
        }
        self.sources.push(source);
        Ok(())
    }

    /// Takes an entry out.
    ///
    /// # Errors
    /// If there is none, or several fit.
    pub fn remove(&mut self, choice: &EntryChoice) -> Result<(), Error> {
        let position = self.position(choice, "remove")?;
        self.entries.remove(position);
        Ok(())
    }

    /// Changes what the index says of an entry; the image itself stays.
    ///
    /// # Errors
    /// If there is none, or several fit.
    pub fn change(&mut self, choice: &EntryChoice, change: &EntryChange) -> Result<(), Error> {
        let position = self.position(choice, "change")?;
        change.apply(&mut self.entries[position]);
        Ok(())
    }

    /// Adds annotations of the index itself.
    pub fn annotate(&mut self, annotations: &BTreeMap<String, String>) {
        add_annotations(&mut self.document, annotations);
    }

    fn position(&self, choice: &EntryChoice, verb: &str) -> Result<usize, Error> {
        let fits = |entry: &&(usize, &Value)| match choice {
            EntryChoice::Digest(digest) => digest_in(entry.1) == Some(digest.as_ref()),
            EntryChoice::Platform(wanted) => platform_in(entry.1).as_ref() == Some(wanted),
        };
        let numbered: Vec<(usize, &Value)> = self.entries.iter().enumerate().collect();
        let found: Vec<&(usize, &Value)> = numbered.iter().filter(fits).collect();
        let what = match (found.as_slice(), choice) {
            ([(position, _)], _) => return Ok(*position),
            ([], EntryChoice::Digest(digest)) => format!("it holds no {digest}"),
            ([], EntryChoice::Platform(platform)) => format!("it holds no image for {platform}"),
            (many, _) => format!("{} of its entries fit; name one by its digest", many.len()),
        };
        Err(Error::local(format!("{verb} an entry of the index"), Cause::Input(what)))
    }

    /// The index as a place to copy from, with all its images.
    ///
    /// # Errors
    /// If it is too large.
    pub fn finish(self) -> Result<IndexSource<'a>, Error> {
        let all_docker =
            self.entries.iter().all(|entry| entry["mediaType"] == DOCKER_MANIFEST) && !self.entries.is_empty();
        let has_extras = ["annotations", "subject", "artifactType"].iter().any(|key| self.document.get(key).is_some());
        let mut document = self.document;
        // Docker's own list knows manifests of its own kind only, and no annotations.
        let media_type = if all_docker && !has_extras { DOCKER_LIST } else { OCI_INDEX };
        document["mediaType"] = media_type.into();
        document["manifests"] = self.entries.into();
        let manifest = Manifest::new(None, document.to_string().into_bytes())
            .map_err(|cause| Error::local("make an index", cause))?;
        Ok(IndexSource { manifest, sources: self.sources, owners: Mutex::default() })
    }
}

impl EntryChange {
    /// Writes it into an entry.
    pub(crate) fn apply(&self, entry: &mut Value) {
        if let Some(platform) = &self.platform {
            entry["platform"] = json!({ "architecture": platform.architecture(), "os": platform.os() });
            if let Some(variant) = platform.variant() {
                entry["platform"]["variant"] = variant.into();
            }
        }
        let of_platform = || self.platform.as_ref().and_then(Platform::os_version);
        if let Some(version) = self.os_version.as_deref().or_else(of_platform) {
            entry["platform"]["os.version"] = version.into();
        }
        if !self.os_features.is_empty() {
            entry["platform"]["os.features"] = json!(self.os_features);
        }
        add_annotations(entry, &self.annotations);
    }
}

fn add_annotations(document: &mut Value, annotations: &BTreeMap<String, String>) {
    for (key, value) in annotations {
        document["annotations"][key] = value.as_str().into();
    }
}

/// What an image's config says about the machines that it is for.
#[derive(Deserialize)]
struct ConfigPlatform {
    architecture: String,
    os: String,
    variant: Option<String>,
    #[serde(rename = "os.version")]
    os_version: Option<String>,
    #[serde(rename = "os.features")]
    os_features: Option<Vec<String>>,
}

/// An image as an index lists it. Artifacts, whose config is something else, have no platform.
fn entry_of(source: &dyn Source, manifest: &Manifest, config: &Descriptor) -> Result<Value, Error> {
    let doing = || format!("read the config of {}", source.name());
    if config.size() > MANIFEST_LIMIT_BYTES {
        let what = format!("it is larger than {MANIFEST_LIMIT_BYTES} bytes");
        return Err(Error::new(doing(), Cause::Malformed(what)));
    }
    let mut bytes = Vec::new();
    source
        .open_blob(config)?
        .read_to_end(&mut bytes)
        .map_err(|error| Error::from_io(doing(), config.digest().as_ref(), error))?;
    let mut entry = json!({
        "mediaType": manifest.media_type(), "digest": manifest.digest().as_ref(), "size": manifest.bytes().len(),
    });
    if let Ok(found) = serde_json::from_slice::<ConfigPlatform>(&bytes) {
        let mut platform = json!({ "architecture": found.architecture, "os": found.os });
        let texts = [("variant", found.variant), ("os.version", found.os_version)];
        for (key, text) in texts.into_iter().filter_map(|(key, text)| Some((key, text.filter(|t| !t.is_empty())?))) {
            platform[key] = text.into();
        }
        if let Some(features) = found.os_features.filter(|features| !features.is_empty()) {
            platform["os.features"] = json!(features);
        }
        entry["platform"] = platform;
    }
    Ok(entry)
}

fn entries_of(index: &Manifest) -> Vec<Value> {
    let document: Value = serde_json::from_slice(index.bytes()).expect("the bytes were parsed when this was made");
    document["manifests"].as_array().cloned().unwrap_or_default()
}

fn digest_in(entry: &Value) -> Option<&str> {
    entry.get("digest").and_then(Value::as_str)
}

fn descriptor_in(entry: &Value) -> Option<Descriptor> {
    Descriptor::deserialize(entry).ok()
}

fn platform_in(entry: &Value) -> Option<Platform> {
    Platform::of(&descriptor_in(entry)?)
}

fn shown_platform(entry: &Value) -> String {
    platform_in(entry).map_or_else(|| "no platform".to_owned(), |platform| platform.to_string())
}

/// Whether two entries are the same, or for the same machines; attestations are for none.
fn is_same(one: &Value, other: &Value) -> bool {
    if digest_in(one) == digest_in(other) {
        return true;
    }
    let is_image = |entry| descriptor_in(entry).is_some_and(|entry| !platform::is_attestation(&entry));
    let version = |entry: &Value| entry.pointer("/platform/os.version").cloned();
    let platform = platform_in(one);
    platform.is_some()
        && platform == platform_in(other)
        && version(one) == version(other)
        && is_image(one)
        && is_image(other)
}

/// An index that was made, with its images at the places where they lie.
pub struct IndexSource<'a> {
    manifest: Manifest,
    sources: Vec<Box<dyn Source + 'a>>,
    /// At which of the sources a blob or manifest lies, once it is known.
    owners: Mutex<HashMap<Digest, usize>>,
}

impl IndexSource<'_> {
    /// The source that has what is named so: the known one first, else all in order.
    fn at_owner<T>(
        &self,
        digest: &Digest,
        read: impl Fn(&dyn Source) -> Result<T, Error>,
    ) -> Result<(T, usize), Error> {
        if let Some(owner) = self.owner(digest) {
            return read(&*self.sources[owner]).map(|value| (value, owner));
        }
        let mut last = None;
        for (number, source) in self.sources.iter().enumerate() {
            match read(&**source) {
                Ok(value) => return Ok((value, number)),
                Err(error) => last = Some(error),
            }
        }
        let missing =
            || Error::new(format!("read {digest}"), Cause::Missing("no image of the index has it".to_owned()));
        Err(last.unwrap_or_else(missing))
    }

    fn source_of(&self, blob: &Descriptor) -> Result<&dyn Source, Error> {
        let missing = || Cause::Missing("no image of the index has it".to_owned());
        let owner = self.owner(blob.digest());
        let owner = owner.ok_or_else(|| Error::new(format!("open the blob {}", blob.digest()), missing()))?;
        Ok(&*self.sources[owner])
    }

    fn owner(&self, digest: &Digest) -> Option<usize> {
        self.owners.lock().unwrap_or_else(|poison| poison.into_inner()).get(digest).copied()
    }
}

impl Source for IndexSource<'_> {
    fn name(&self) -> String {
        "the new index".to_owned()
    }

    fn manifest(&self, digest: Option<&Digest>) -> Result<Manifest, Error> {
        let Some(digest) = digest.filter(|digest| *digest != self.manifest.digest()) else {
            return Ok(self.manifest.clone());
        };
        let (manifest, owner) = self.at_owner(digest, |source| source.manifest(Some(digest)))?;
        let mut owners = self.owners.lock().unwrap_or_else(|poison| poison.into_inner());
        let pointed = match manifest.content() {
            ManifestContent::Image { config, layers } => layers.into_iter().chain([*config]).collect(),
            ManifestContent::Index(manifests) => manifests,
        };
        for descriptor in pointed {
            owners.entry(descriptor.digest().clone()).or_insert(owner);
        }
        Ok(manifest)
    }

    fn open_blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>, Error> {
        self.source_of(descriptor)?.open_blob(descriptor)
    }

    fn open_unverified_blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>, Error> {
        self.source_of(descriptor)?.open_unverified_blob(descriptor)
    }

    fn fill_draft(
        &self,
        descriptor: &Descriptor,
        draft: &mut Draft,
        watch: &mut dyn FnMut(u64) -> io::Result<()>,
    ) -> io::Result<()> {
        self.source_of(descriptor)?.fill_draft(descriptor, draft, watch)
    }

    fn distrust(&self, descriptor: &Descriptor) {
        if let Ok(source) = self.source_of(descriptor) {
            source.distrust(descriptor);
        }
    }

    fn origin(&self, descriptor: &Descriptor) -> Option<Origin> {
        self.sources[self.owner(descriptor.digest())?].origin(descriptor)
    }

    fn gpg_signatures(&self, subject: &Digest) -> Result<Vec<Vec<u8>>, Error> {
        if subject == self.manifest.digest() {
            return Ok(Vec::new());
        }
        Ok(self.at_owner(subject, |source| source.gpg_signatures(subject))?.0)
    }

    fn referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>, Error> {
        if subject == self.manifest.digest() {
            return Ok(Vec::new());
        }
        Ok(self.at_owner(subject, |source| source.referrers(subject))?.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A place with a document and no blobs.
    struct Document(&'static str);

    impl Source for Document {
        fn name(&self) -> String {
            "a document".to_owned()
        }

        fn manifest(&self, _: Option<&Digest>) -> Result<Manifest, Error> {
            Manifest::new(None, self.0.into()).map_err(|cause| Error::local("read", cause))
        }

        fn open_blob(&self, _: &Descriptor) -> Result<Box<dyn Read + Send + '_>, Error> {
            unreachable!("an index is made without blobs")
        }

        fn distrust(&self, _: &Descriptor) {}
    }

    #[test]
    fn an_index_whose_annotations_are_none_is_refused() {
        let annotated = |text| {
            let mut draft = IndexDraft::from_index(Box::new(Document(text)))?;
            draft.annotate(&BTreeMap::from([("key".to_owned(), "value".to_owned())]));
            draft.finish().map(drop)
        };
        assert!(annotated(r#"{"schemaVersion":2,"manifests":[],"annotations":{"a":"b"}}"#).is_ok());
        for text in ["\"text\"", "[1]", "null"] {
            let text = format!(r#"{{"schemaVersion":2,"manifests":[],"annotations":{text}}}"#).leak();
            let error = annotated(text).expect_err(text).to_string();
            assert!(error.contains("a document"), "{error}");
        }
    }
}
