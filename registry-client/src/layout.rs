//! OCI image layouts (<https://github.com/opencontainers/image-spec/blob/main/image-layout.md>) as places.
//!
//! Invariant: every file appears whole: written without a name, or where a transfer keeps it to go on with, synced,
//! named. `index.json` changes under a lock, last, so that it never names what is not there.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use oci_spec::image::{Descriptor, Digest};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::digest::VerifyingReader;
use crate::draft::{Draft, parent};
use crate::error::{Cause, Error};
use crate::index::EntryChange;
use crate::manifest::{MANIFEST_LIMIT_BYTES, Manifest, ManifestContent};
use crate::place::{Content, Destination, Source, Stored};
use crate::reference::{Reference, position_of};
use crate::referrers;
use crate::signature::companion_subject;

/// The annotation by which an `index.json` names its images.
const NAME: &str = "org.opencontainers.image.ref.name";
/// The same in containerd and in what `docker save` writes: the full name.
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// What tells a store from any other layout. Only the builder writes to one.
const STORE_MARKER: &str = "nacre-store";

/// One image of a layout directory, by its name; without a name the only one.
#[derive(Debug, Clone)]
pub struct OciLayout {
    directory: PathBuf,
    tag: Option<String>,
    /// What `index.json` says of the image besides its name.
    entry: EntryChange,
}

impl OciLayout {
    /// Names an image; as a destination the directory is made when something is put there.
    pub fn new(directory: impl Into<PathBuf>, tag: Option<String>) -> Self {
        Self { directory: directory.into(), tag, entry: EntryChange::default() }
    }

    /// As a destination, also writes this beside the image's name in `index.json`.
    #[must_use]
    pub fn described(mut self, entry: EntryChange) -> Self {
        self.entry = entry;
        self
    }

    /// The names of its images.
    ///
    /// # Errors
    /// If there is no layout, or its index is none.
    pub fn names(&self) -> Result<Vec<String>, Error> {
        let all = listed(&Directory(&self.directory), &self.words())?;
        Ok(all.iter().filter_map(|descriptor| annotation(descriptor, NAME)).collect())
    }

    fn disk(&self, path: &Path, source: io::Error) -> Error {
        Error::from_io(format!("write to {}", Destination::name(self)), path, source)
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.directory.join(blob_name(digest))
    }

    /// Makes the directory for a digest's blobs, and the layout around it.
    fn prepare(&self, digest: &Digest) -> Result<PathBuf, Error> {
        check_name(self.tag.as_deref(), &self.words())?;
        // It looks like a layout, but its list has another lock, and its blobs hang together with more.
        if self.directory.join(STORE_MARKER).exists() {
            let what = "it is the store of nacre, whose images are named without a prefix".to_owned();
            return Err(Error::local(format!("write to {}", Destination::name(self)), Cause::Input(what)));
        }
        let blobs = self.directory.join("blobs").join(digest.algorithm().as_ref());
        std::fs::create_dir_all(&blobs).map_err(|error| self.disk(&blobs, error))?;
        let marker = self.directory.join("oci-layout");
        if !marker.exists() {
            // The names of new directories must survive a crash as what is put into them does.
            File::open(parent(&blobs)).and_then(|all| all.sync_all()).map_err(|error| self.disk(&blobs, error))?;
            replace(&marker, br#"{"imageLayoutVersion":"1.0.0"}"#).map_err(|error| self.disk(&marker, error))?;
        }
        Ok(blobs)
    }

    fn write_blob(&self, digest: &Digest, fill: impl FnOnce(&mut Draft) -> io::Result<()>) -> Result<(), Error> {
        let directory = self.prepare(digest)?;
        let path = self.blob_path(digest);
        let write = || {
            let mut draft = Draft::new_in(&directory)?;
            fill(&mut draft)?;
            draft.publish(&path)
        };
        write().map_err(|error| self.disk(&path, error))
    }

    /// Lists `manifest` in `index.json`: as what this place names, or as a referrer, which has no name.
    fn list_manifest(&self, manifest: &Manifest, is_named: bool) -> Result<(), Error> {
        let path = self.directory.join("index.json");
        let lock = File::open(&self.directory).map_err(|error| self.disk(&self.directory, error))?;
        // Held until `lock` is dropped: another process's change must not be lost.
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
            .map_err(|error| self.disk(&self.directory, error.into()))?;
        let mut index = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| self.malformed(&error.to_string()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []})
            }
            Err(error) => return Err(self.disk(&path, error)),
        };
        let manifests = index.get_mut("manifests").and_then(Value::as_array_mut);
        let manifests = manifests.ok_or_else(|| self.malformed("it has no list of manifests"))?;
        let name_of = |entry: &Value| entry.pointer("/annotations")?.get(NAME)?.as_str().map(str::to_owned);
        let is_referrer = |entry: &Value| entry.get("artifactType").is_some() && name_of(entry).is_none();
        let is_same = |entry: &Value| entry.get("digest").and_then(Value::as_str) == Some(manifest.digest().as_ref());
        let entry = if is_named {
            manifests.retain(|entry| is_referrer(entry) || name_of(entry) != self.tag);
            let mut entry = json!({
                "mediaType": manifest.media_type(), "digest": manifest.digest().as_ref(),
                "size": manifest.bytes().len(),
            });
            self.entry.apply(&mut entry);
            if let Some(tag) = &self.tag {
                entry["annotations"][NAME] = tag.as_str().into();
            }
            entry
        } else {
            manifests.retain(|entry| !(is_referrer(entry) && is_same(entry)));
            referrers::entry_of(manifest)
        };
        manifests.push(entry);
        replace(&path, index.to_string().as_bytes()).map_err(|error| self.disk(&path, error))
    }

    fn malformed(&self, what: &str) -> Error {
        let cause = Cause::Malformed(format!("{}/index.json is not an index: {what}", self.directory.display()));
        Error::local(format!("write to {}", Destination::name(self)), cause)
    }

    fn words(&self) -> String {
        let tag = self.tag.as_ref().map_or(String::new(), |tag| format!(":{tag}"));
        format!("oci:{}{tag}", self.directory.display())
    }
}

impl Source for OciLayout {
    fn name(&self) -> String {
        self.words()
    }

    fn manifest(&self, digest: Option<&Digest>) -> Result<Manifest, Error> {
        read_manifest(&Directory(&self.directory), &self.words(), self.tag.as_deref(), digest)
    }

    fn open_blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>, Error> {
        open_blob(&Directory(&self.directory), &self.words(), descriptor)
    }

    fn distrust(&self, _: &Descriptor) {}

    fn tagged(&self, tag: &str) -> Result<Option<Manifest>, Error> {
        read_tagged(&Directory(&self.directory), &self.words(), tag)
    }

    fn referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>, Error> {
        read_referrers(&Directory(&self.directory), &self.words(), subject)
    }
}

impl Destination for OciLayout {
    fn name(&self) -> String {
        self.words()
    }

    fn named(&self) -> Result<Option<Digest>, Error> {
        match find(&Directory(&self.directory), &self.words(), self.tag.as_deref()) {
            Ok(named) => Ok(Some(named.digest().clone())),
            Err(error) if matches!(error.cause(), Cause::Missing(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn has_blob(&self, descriptor: &Descriptor) -> Result<bool, Error> {
        let path = self.blob_path(descriptor.digest());
        match std::fs::metadata(&path) {
            Ok(metadata) => Ok(metadata.is_file() && metadata.len() == descriptor.size()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(self.disk(&path, error)),
        }
    }

    fn put_blob(&self, descriptor: &Descriptor, content: &dyn Content) -> Result<Stored, Error> {
        self.write_blob(descriptor.digest(), |draft| content.fill(draft))?;
        Ok(Stored::Sent)
    }

    fn put_manifest(&self, manifest: &Manifest, is_top: bool) -> Result<(), Error> {
        self.write_blob(manifest.digest(), |draft| draft.write_all(manifest.bytes()))?;
        if is_top || manifest.subject().is_some() { self.list_manifest(manifest, is_top) } else { Ok(()) }
    }

    fn beside(&self) -> Result<Box<dyn Source + '_>, Error> {
        Ok(Box::new(self.clone()))
    }

    fn put_tagged(&self, manifest: &Manifest, tag: &str) -> Result<(), Error> {
        Self::new(&self.directory, Some(tag.to_owned())).put_manifest(manifest, true)
    }
}

/// Where an image goes it has a name, and no number.
pub(crate) fn check_name(tag: Option<&str>, words: &str) -> Result<(), Error> {
    match tag.and_then(position_of) {
        None => Ok(()),
        Some(_) => {
            let what = "a number names an image that is there already; give it a name".to_owned();
            Err(Error::local(format!("write to {words}"), Cause::Input(what)))
        }
    }
}

/// The files of a layout, in a directory or an archive.
pub(crate) trait Files {
    /// Opens a regular file of this name, `/`-separated, with its size.
    fn open(&self, name: &str) -> io::Result<(Box<dyn Read + Send>, u64)>;
}

/// Files in a directory.
pub(crate) struct Directory<'a>(pub(crate) &'a Path);

impl Files for Directory<'_> {
    fn open(&self, name: &str) -> io::Result<(Box<dyn Read + Send>, u64)> {
        let path = self.0.join(name);
        // Looked at before it is opened: opening a named pipe would wait for ever.
        if !std::fs::metadata(&path)?.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        let file = File::open(&path)?;
        let size_bytes = file.metadata()?.len();
        Ok((Box::new(file), size_bytes))
    }
}

/// A whole file of at most [`MANIFEST_LIMIT_BYTES`].
pub(crate) fn read_small(files: &dyn Files, place: &str, name: &str) -> Result<Vec<u8>, Error> {
    let doing = || format!("read {name} of {place}");
    let (content, size_bytes) = files.open(name).map_err(|error| missing_or(doing(), name, error))?;
    if size_bytes > MANIFEST_LIMIT_BYTES {
        let what = format!("it is larger than {MANIFEST_LIMIT_BYTES} bytes");
        return Err(Error::local(doing(), Cause::Malformed(what)));
    }
    let mut bytes = Vec::new();
    content.take(MANIFEST_LIMIT_BYTES).read_to_end(&mut bytes).map_err(|error| Error::disk(doing(), name, error))?;
    Ok(bytes)
}

/// The manifest that a layout names `tag`, or one of a digest.
pub(crate) fn read_manifest(
    files: &dyn Files,
    place: &str,
    tag: Option<&str>,
    digest: Option<&Digest>,
) -> Result<Manifest, Error> {
    let (digest, media_type) = match digest {
        Some(digest) => (digest.clone(), None),
        None => {
            let named = find(files, place, tag)?;
            (named.digest().clone(), Some(named.media_type().to_string()))
        }
    };
    let bytes = read_small(files, place, &blob_name(&digest))?;
    Manifest::known_as(&digest, media_type.as_deref(), bytes)
        .map_err(|cause| Error::local(format!("read the manifest {digest} of {place}"), cause))
}

/// The manifest that a layout names `tag`, if it does.
pub(crate) fn read_tagged(files: &dyn Files, place: &str, tag: &str) -> Result<Option<Manifest>, Error> {
    match read_manifest(files, place, Some(tag), None) {
        Err(error) if matches!(error.cause(), Cause::Missing(_)) => Ok(None),
        read => read.map(Some),
    }
}

/// A blob of a layout, verifying.
pub(crate) fn open_blob(
    files: &dyn Files,
    place: &str,
    descriptor: &Descriptor,
) -> Result<Box<dyn Read + Send>, Error> {
    let name = blob_name(descriptor.digest());
    let (content, _) =
        files.open(&name).map_err(|error| missing_or(format!("open {name} of {place}"), &name, error))?;
    Ok(Box::new(VerifyingReader::new(content, descriptor)?))
}

pub(crate) fn missing_or(doing: String, name: &str, error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::NotFound {
        return Error::local(doing, Cause::Missing("it is not there".to_owned()));
    }
    Error::disk(doing, name, error)
}

#[derive(Deserialize)]
struct IndexFile {
    manifests: Vec<Descriptor>,
}

/// What `index.json` lists.
fn listed(files: &dyn Files, place: &str) -> Result<Vec<Descriptor>, Error> {
    let bytes = read_small(files, place, "index.json")?;
    let index: Result<IndexFile, _> = serde_json::from_slice(&bytes);
    index.map(|index| index.manifests).map_err(|error| {
        let what = format!("index.json is not an index: {error}");
        Error::local(format!("find the image in {place}"), Cause::Malformed(what))
    })
}

fn annotation(descriptor: &Descriptor, key: &str) -> Option<String> {
    descriptor.annotations().as_ref()?.get(key).cloned()
}

/// What a layout lists as referring to `subject`: manifests without a name as oras and we write them, and what is under
/// the tag for its referrers as regctl writes it.
pub(crate) fn read_referrers(files: &dyn Files, place: &str, subject: &Digest) -> Result<Vec<Descriptor>, Error> {
    let mut candidates = listed(files, place)?;
    let tag = referrers::fallback_tag(subject);
    if let Some(list) = candidates.iter().find(|entry| annotation(entry, NAME).as_ref() == Some(&tag)) {
        let list = read_manifest(files, place, None, Some(list.digest()))?;
        if let ManifestContent::Index(entries) = list.content() {
            candidates.extend(entries);
        }
    }
    let mut found: Vec<Descriptor> = Vec::new();
    for candidate in candidates {
        let manifest = read_manifest(files, place, None, Some(candidate.digest()))?;
        let refers = manifest.subject().is_some_and(|about| about.digest() == subject);
        if refers && found.iter().all(|known| known.digest() != candidate.digest()) {
            found.push(candidate);
        }
    }
    Ok(found)
}

/// The images that have a full name, with what finds them: containerd's annotation, or a name that is more than a tag.
pub(crate) fn full_names(files: &dyn Files, place: &str) -> Result<Vec<(String, Reference)>, Error> {
    let full = |entry: &Descriptor| {
        let name =
            annotation(entry, NAME).filter(|name| name.contains(['/', ':']) && companion_subject(name).is_none());
        let name = annotation(entry, CONTAINERD_NAME).or(name)?;
        Some((name.clone(), name.parse().ok()?))
    };
    Ok(listed(files, place)?.iter().filter_map(full).collect())
}

fn find(files: &dyn Files, place: &str, tag: Option<&str>) -> Result<Descriptor, Error> {
    let fail = |cause| Error::local(format!("find the image in {place}"), cause);
    let all = listed(files, place)?;
    let is_referrer =
        |descriptor: &Descriptor| descriptor.artifact_type().is_some() && annotation(descriptor, NAME).is_none();
    let is_companion =
        |descriptor: &Descriptor| annotation(descriptor, NAME).is_some_and(|name| companion_subject(&name).is_some());
    let Some(tag) = tag else {
        let is_image = |descriptor: &&Descriptor| !is_referrer(descriptor) && !is_companion(descriptor);
        let images: Vec<&Descriptor> = all.iter().filter(is_image).collect();
        return match images.as_slice() {
            [only] => Ok((*only).clone()),
            [] => Err(fail(Cause::Missing("it holds no image".to_owned()))),
            many => {
                let names: Vec<String> = many.iter().filter_map(|descriptor| annotation(descriptor, NAME)).collect();
                let what = format!("it holds {} images; name one of: {}", many.len(), names.join(", "));
                Err(fail(Cause::Input(what)))
            }
        };
    };
    let is_named = |descriptor: &&Descriptor, key| annotation(descriptor, key).as_deref() == Some(tag);
    if let Some(position) = position_of(tag) {
        let missing = || fail(Cause::Missing(format!("it holds {} images, counted from @0", all.len())));
        return all.get(position).cloned().ok_or_else(missing);
    }
    // No tag has a colon: what has one is a digest, and names itself.
    let found = all.iter().find(|descriptor| descriptor.digest().as_ref() == tag);
    let found = found.or_else(|| all.iter().find(|descriptor| is_named(descriptor, NAME)));
    let found = found.or_else(|| all.iter().find(|descriptor| is_named(descriptor, CONTAINERD_NAME)));
    found.cloned().ok_or_else(|| fail(Cause::Missing(format!("it holds no image named {tag}"))))
}

/// `blobs/sha256/<hex>`: the grammar of a digest has neither slash nor `..`.
pub(crate) fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.digest())
}

/// Writes a small file whole.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut draft = Draft::beside(path)?;
    draft.write_all(bytes)?;
    draft.publish(path)
}
