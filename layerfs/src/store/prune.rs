//! Garbage collection: mark what is reachable, sweep the rest.
//!
//! Invariant: under the store's exclusive lock, so that no session leases or publishes anything between marking and
//! sweeping. Roots are the names, the leases of live sessions, the stacks of uppers, and the step records unless they
//! go too; a referrer is none, it lives as long as its subject. Every digest in a reachable document is reachable;
//! a manifest that cannot be followed ends the collection before an image loses anything.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;

use oci_spec::image::ImageIndex;
use serde_json::Value;

use super::create::kept_extensions;
use super::error::{AtPath, Result, StoreError};
use super::files::{read_if_present, remove_if_present, taken_bytes};
use super::lock::Lock;
use super::names::{beside_of, name_of};
use super::{Store, lease, uppers};
use crate::digest::{DiffId, Digest};
use crate::index::{IndexFile, Subject};

/// Manifests and configurations are no larger: twice what registries permit. Whoever puts one into a store keeps to it.
pub const DOCUMENT_MAX_BYTES: u64 = 8 << 20;

/// What a collection spares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PruneOptions {
    /// Keep the records of the build cache, and the layers that they name.
    pub keep_steps: bool,
    /// Keep the directories of cache mounts.
    pub keep_cache_mounts: bool,
}

/// What a collection removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pruned {
    /// Blobs.
    pub blobs: u64,
    /// Uncompressed layers.
    pub layers: u64,
    /// Build-cache records.
    pub steps: u64,
    /// Abandoned uppers.
    pub uppers: u64,
    /// Cache mounts.
    pub cache_mounts: u64,
    /// Bytes of disk that all of them took.
    pub freed_bytes: u64,
}

/// An entry of the list that is no root: it lives as long as its subject, or the image that it lies beside. Both in
/// hexadecimal.
struct Referrer {
    digest: String,
    subject: String,
}

impl Store {
    /// Removes what nothing needs. Waits for other processes' short steps, not for their sessions.
    ///
    /// # Errors
    /// What the system gives; everything that is still there is whole.
    pub fn prune(&self, options: PruneOptions) -> Result<Pruned> {
        let path = self.root.join("lock");
        if self.lease.is_read_only() {
            // This session holds the lock itself.
            return Err(io::Error::from(io::ErrorKind::ReadOnlyFilesystem)).at("collecting garbage under", &path);
        }
        // In the order in which whoever changes a name takes them.
        let _index_lock = Lock::exclusive(&self.root.join("index.lock"))?;
        let _lock = Lock::exclusive(&path)?;
        let mut pruned = Pruned::default();
        let mut marked = lease::live(&self.root)?;
        for path in uppers::directories(&self.root)? {
            if uppers::is_abandoned(&path)? {
                let taken_bytes = taken_bytes(&path);
                uppers::remove_forced(&path)?;
                pruned.freed_bytes += taken_bytes;
                pruned.uppers += 1;
            } else {
                marked.extend(uppers::stack_of(&path)?.unwrap_or_default().iter().map(DiffId::hex));
            }
        }
        let index = self.read_index()?;
        let (mut roots, referrers) = self.roots(&index)?;
        if options.keep_steps {
            for path in files_in(&self.root.join("steps"))? {
                let mut digests = Vec::new();
                collect_digests(&read_if_present(&path)?.unwrap_or_default(), &mut digests);
                roots.extend(digests.into_iter().map(Reached::anything));
            }
        }
        roots.extend(marked.drain().map(Reached::anything));
        self.mark(roots, &mut marked)?;
        self.mark_referrers(&referrers, &mut marked)?;
        if referrers.iter().any(|referrer| !marked.contains(&referrer.digest)) {
            let is_stale = |digest: &Digest| {
                let of_list = referrers.iter().any(|referrer| referrer.digest == digest.digest());
                of_list && !marked.contains(digest.digest())
            };
            self.remove_unnamed(index, is_stale)?;
        }
        self.sweep(&marked, options, &mut pruned)?;
        Ok(pruned)
    }

    /// What the list of manifests leads to, but for the referrers in it.
    fn roots(&self, index: &ImageIndex) -> Result<(Vec<Reached>, Vec<Referrer>)> {
        let (mut roots, mut referrers) = (Vec::new(), Vec::new());
        for entry in index.manifests() {
            let digest = entry.digest().digest().to_owned();
            let subject = match (name_of(entry), beside_of(entry)) {
                (Some(_), _) => None,
                (None, None) => self.subject_of(&digest)?,
                (None, beside) => beside,
            };
            match subject {
                Some(subject) => referrers.push(Referrer { digest, subject }),
                None => {
                    let is_document = name_of(entry).is_some() || is_document_type(entry.media_type().as_ref());
                    roots.push(Reached { digest, is_document });
                }
            }
        }
        Ok((roots, referrers))
    }

    fn subject_of(&self, digest: &str) -> Result<Option<String>> {
        let path = self.root.join("blobs/sha256").join(digest);
        if !fs::metadata(&path).is_ok_and(|found| found.len() <= DOCUMENT_MAX_BYTES) {
            return Ok(None);
        }
        let document: Value = serde_json::from_slice(&read_if_present(&path)?.unwrap_or_default()).unwrap_or_default();
        Ok(document["subject"]["digest"].as_str().and_then(hex_of))
    }

    /// A referrer is needed if what it refers to is, which may be a referrer.
    fn mark_referrers(&self, referrers: &[Referrer], marked: &mut HashSet<String>) -> Result<()> {
        loop {
            let is_due =
                |referrer: &&Referrer| marked.contains(&referrer.subject) && !marked.contains(&referrer.digest);
            let reached = |referrer: &Referrer| Reached { digest: referrer.digest.clone(), is_document: true };
            let due: Vec<Reached> = referrers.iter().filter(is_due).map(reached).collect();
            if due.is_empty() {
                return Ok(());
            }
            self.mark(due, marked)?;
        }
    }

    /// Adds to `marked` all that is reachable from some digests.
    fn mark(&self, mut pending: Vec<Reached>, marked: &mut HashSet<String>) -> Result<()> {
        let mut followed = HashSet::new();
        while let Some(Reached { digest, is_document }) = pending.pop() {
            let is_new = marked.insert(digest.clone());
            let path = self.root.join("blobs/sha256").join(&digest);
            if is_document && followed.insert(digest.clone()) {
                pending.extend(read_document(&path)?.iter().flat_map(reached_from));
            }
            if !is_new {
                continue;
            }
            // A layer blob keeps its layer, and a layer its blobs.
            let mut is_layer = false;
            for extension in ["diff".to_owned(), "blob".to_owned()].into_iter().chain(kept_extensions()) {
                let path = self.root.join("layers").join(format!("{digest}.{extension}"));
                let text = read_if_present(&path)?.and_then(|bytes| String::from_utf8(bytes).ok());
                is_layer |= text.is_some();
                pending.extend(text.and_then(|text| hex_of(&text)).map(Reached::anything));
            }
            let is_small = fs::metadata(&path).is_ok_and(|found| found.len() <= DOCUMENT_MAX_BYTES);
            if is_small && !is_layer && !is_document {
                let bytes = read_if_present(&path)?.unwrap_or_default();
                pending.extend(parsed(&bytes).iter().flat_map(reached_from));
            }
        }
        Ok(())
    }

    fn sweep(&self, marked: &HashSet<String>, options: PruneOptions, pruned: &mut Pruned) -> Result<()> {
        for path in files_in(&self.root.join("blobs/sha256"))? {
            if !is_marked(&path, marked) {
                pruned.freed_bytes += remove_if_present(&path)?;
                pruned.blobs += 1;
            }
        }
        for path in files_in(&self.root.join("layers"))? {
            if !is_marked(&path, marked) {
                pruned.freed_bytes += remove_if_present(&path)?;
                pruned.layers += u64::from(path.extension().is_some_and(|extension| extension == "tar"));
            }
        }
        for path in files_in(&self.root.join("trees"))? {
            let layers = IndexFile::open(&path, Subject::Tree).map(|index| index.layers());
            let is_needed = layers.is_ok_and(|layers| layers.iter().all(|layer| marked.contains(&layer.hex())));
            if !is_needed {
                pruned.freed_bytes += remove_if_present(&path)?;
            }
        }
        for path in files_in(&self.root.join("partial"))? {
            pruned.freed_bytes += remove_if_present(&path)?;
        }
        if !options.keep_steps {
            for path in files_in(&self.root.join("steps"))? {
                pruned.freed_bytes += remove_if_present(&path)?;
                pruned.steps += 1;
            }
            for path in files_in(&self.root.join("notes"))? {
                pruned.freed_bytes += remove_if_present(&path)?;
            }
        }
        if !options.keep_cache_mounts {
            for path in files_in(&self.root.join("cache-mounts"))? {
                // One that a step writes to stays.
                if let Some(_lock) = Lock::try_exclusive(&path.join("lock"))? {
                    let taken_bytes = taken_bytes(&path);
                    uppers::remove_forced(&path)?;
                    pruned.freed_bytes += taken_bytes;
                    pruned.cache_mounts += 1;
                }
            }
        }
        Ok(())
    }
}

pub(super) fn files_in(directory: &Path) -> Result<Vec<std::path::PathBuf>> {
    let entries = fs::read_dir(directory).at("listing", directory)?;
    entries.map(|entry| entry.map(|entry| entry.path()).at("listing", directory)).collect()
}

fn is_marked(path: &Path, marked: &HashSet<String>) -> bool {
    path.file_stem().and_then(|stem| stem.to_str()).is_some_and(|stem| marked.contains(stem))
}

fn hex_of(text: &str) -> Option<String> {
    let digest = Digest::try_from(text.trim()).ok()?;
    (digest.algorithm().as_ref() == "sha256").then(|| digest.digest().to_owned())
}

/// Adds the hexadecimal part of every SHA-256 digest in a JSON document; nothing from what is none.
pub(super) fn collect_digests(document: &[u8], digests: &mut Vec<String>) {
    digests.extend(parsed(document).iter().flat_map(reached_from).map(|reached| reached.digest));
}

/// What a digest was found to lead to.
struct Reached {
    /// In hexadecimal.
    digest: String,
    /// Whether it is said to be a manifest or an index, without which what it holds up is unknown. A configuration that
    /// cannot be read makes its image useless, and holds up nothing that the manifest does not.
    is_document: bool,
}

impl Reached {
    fn anything(digest: String) -> Self {
        Self { digest, is_document: false }
    }
}

fn is_document_type(media_type: &str) -> bool {
    [
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    ]
    .contains(&media_type)
}

/// A document that others hang on; `None` if it is not there.
fn read_document(path: &Path) -> Result<Option<Value>> {
    let Ok(metadata) = fs::metadata(path) else { return Ok(None) };
    if metadata.len() > DOCUMENT_MAX_BYTES {
        let what = format!("the document {}", path.display());
        return Err(StoreError::BlobTooLarge { what, size_bytes: metadata.len(), limit_bytes: DOCUMENT_MAX_BYTES });
    }
    let Some(bytes) = read_if_present(path)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|source| StoreError::Json { path: path.to_owned(), source })
}

/// A JSON document; nothing if it is none.
fn parsed(document: &[u8]) -> Option<Value> {
    // Layers of others are told from documents by their first byte.
    document.trim_ascii_start().starts_with(b"{").then(|| serde_json::from_slice(document).ok())?
}

/// Every SHA-256 digest in a document, and what is said there of what it names.
fn reached_from(document: &Value) -> Vec<Reached> {
    let (mut reached, mut pending) = (Vec::new(), vec![(document, false)]);
    while let Some((value, is_document)) = pending.pop() {
        match value {
            Value::String(text) => reached.extend(hex_of(text).map(|digest| Reached { digest, is_document })),
            Value::Array(values) => pending.extend(values.iter().map(|value| (value, false))),
            Value::Object(fields) => {
                let is_described = fields.get("mediaType").and_then(Value::as_str).is_some_and(is_document_type);
                pending.extend(fields.iter().map(|(key, value)| (value, is_described && key == "digest")));
            }
            _ => {}
        }
    }
    reached
}
