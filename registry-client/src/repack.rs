//! An image with its layers compressed otherwise than they are: same content, other blobs, so other manifests.
//!
//! Invariant: nothing but compression changes. Configs, and so diff ids, stay; what manifests say besides their layers
//! stays, but for words about the old bytes. A layer that is as wanted already stays as it is, byte for byte.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};

use oci_spec::image::{Descriptor, Digest, MediaType};
use serde_json::Value;

use crate::archive::tar_files::{Slice, most_layer_bytes, too_much};
use crate::copy::{Held, INDEX_DEPTH_LIMIT, PlatformChoice, choose_image, too_deep};
use crate::digest::{Digester, VerifyingReader};
use crate::draft::{Draft, pour_watched};
use crate::error::{Cause, Error};
use crate::growing::BlobMaker;
use crate::manifest::{DOCKER_LIST, DOCKER_MANIFEST, Manifest, ManifestContent, OCI_INDEX, OCI_MANIFEST};
use crate::place::{Destination, Origin, Source, Stored};
use crate::progress::Progress;
use crate::retry::twice_if_damaged;

/// How layers are compressed, as their media types say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerCompression {
    /// Not at all.
    None,
    /// gzip.
    Gzip,
    /// zstd, which Docker's own media types do not know.
    Zstd,
}

/// Compresses layers: the caller's, since this crate has no compressor.
pub trait Repacker: Sync {
    /// What comes out.
    fn compression(&self) -> LayerCompression;

    /// What its bytes depend on beside the content: `zstd:19`.
    fn name(&self) -> String;

    /// Writes the content of a layer anew; the layer comes compressed in any way.
    ///
    /// # Errors
    /// What reading, decompressing or writing gives.
    fn repack(&self, layer: &mut (dyn Read + Send), out: &mut (dyn Write + Send)) -> io::Result<()>;
}

/// How to repack.
pub struct RepackOptions<'a> {
    /// The compressor.
    pub repacker: &'a dyn Repacker,
    /// Whether layers that have the wanted compression are compressed again: at another level, say.
    pub is_forced: bool,
    /// Which images of an index.
    pub platforms: PlatformChoice,
    /// Layers at work at once.
    pub jobs: usize,
    /// Where the new layers lie until they are copied, in files without names.
    pub directory: &'a Path,
    /// Where the image goes: layers may be put there while they are compressed.
    pub ahead: Option<&'a dyn Destination>,
}

/// A source whose layers were compressed anew.
pub struct RepackedSource<'a> {
    source: &'a dyn Source,
    original: Digest,
    top: Manifest,
    manifests: HashMap<Digest, Manifest>,
    /// From the old digest of a manifest to the new one.
    renamed: HashMap<Digest, Digest>,
    blobs: HashMap<Digest, Arc<File>>,
    sent: usize,
}

/// A layer as it became.
struct Repacked {
    media_type: String,
    digest: Digest,
    size_bytes: u64,
    file: Arc<File>,
    /// Whether it was sent meanwhile.
    is_sent: bool,
}

/// A smaller layer is compressed before a registry has answered the first request of a stream.
const STREAMED_FROM_BYTES: u64 = 1 << 20;
/// Words about the bytes of a blob, which are other bytes now: the tables of contents of zstd:chunked and eStargz.
const ABOUT_BYTES: [&str; 3] =
    ["io.github.containers.zstd-chunked.", "containerd.io/snapshot/stargz/", "io.containers.estargz."];
/// BuildKit's attestations name in the index, by this annotation, the image that they are about.
const ATTESTED: &str = "vnd.docker.reference.digest";

impl<'a> RepackedSource<'a> {
    /// Compresses the layers of an image, or of all images of an index.
    ///
    /// # Errors
    /// If the source cannot be read, or the new layers cannot be written.
    pub fn new(source: &'a dyn Source, options: &RepackOptions<'_>, progress: &dyn Progress) -> Result<Self, Error> {
        let original = match &options.platforms {
            PlatformChoice::One(platform) => choose_image(source, platform)?,
            PlatformChoice::All => source.manifest(None)?,
        };
        let mut children = HashMap::new();
        let mut layers = Vec::new();
        collect(source, &original, options, 0, &mut children, &mut Held::default(), &mut layers)?;
        let repacked = repack_all(source, layers, options, progress)?;
        let mut rewriter = Rewriter { children, repacked: &repacked, made: HashMap::new(), renamed: HashMap::new() };
        let top = rewriter.rewrite(&original)?;
        let (manifests, renamed) = (rewriter.made, rewriter.renamed);
        let sent = repacked.values().filter(|layer| layer.is_sent).count();
        let blobs = repacked.into_values().map(|layer| (layer.digest, layer.file)).collect();
        Ok(Self { source, original: original.digest().clone(), top, manifests, renamed, blobs, sent })
    }

    /// How many layers went ahead to where the image goes, so that a copy finds them there.
    pub fn sent_ahead(&self) -> usize {
        self.sent
    }

    /// The digest before, if it is another one now.
    pub fn changed(&self) -> Option<&Digest> {
        (self.original != *self.top.digest()).then_some(&self.original)
    }
}

impl Source for RepackedSource<'_> {
    fn name(&self) -> String {
        self.source.name()
    }

    fn manifest(&self, digest: Option<&Digest>) -> Result<Manifest, Error> {
        match digest {
            None => Ok(self.top.clone()),
            Some(digest) => match self.manifests.get(digest) {
                Some(made) => Ok(made.clone()),
                None => self.source.manifest(Some(digest)),
            },
        }
    }

    fn open_blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>, Error> {
        match self.blobs.get(descriptor.digest()) {
            Some(file) => {
                let slice = Slice { file: Arc::clone(file), position: 0, end: descriptor.size() };
                Ok(Box::new(VerifyingReader::new(slice, descriptor)?))
            }
            None => self.source.open_blob(descriptor),
        }
    }

    fn open_unverified_blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>, Error> {
        match self.blobs.contains_key(descriptor.digest()) {
            true => self.open_blob(descriptor),
            false => self.source.open_unverified_blob(descriptor),
        }
    }

    fn fill_draft(
        &self,
        descriptor: &Descriptor,
        draft: &mut Draft,
        watch: &mut dyn FnMut(u64) -> io::Result<()>,
    ) -> io::Result<()> {
        match self.blobs.contains_key(descriptor.digest()) {
            true => pour_watched(&mut *self.open_blob(descriptor)?, draft, watch),
            false => self.source.fill_draft(descriptor, draft, watch),
        }
    }

    fn distrust(&self, descriptor: &Descriptor) {
        if !self.blobs.contains_key(descriptor.digest()) {
            self.source.distrust(descriptor);
        }
    }

    fn origin(&self, descriptor: &Descriptor) -> Option<Origin> {
        if self.blobs.contains_key(descriptor.digest()) { None } else { self.source.origin(descriptor) }
    }

    fn tagged(&self, tag: &str) -> Result<Option<Manifest>, Error> {
        self.source.tagged(tag)
    }

    /// Those of a manifest that is another one now are of no use, and nobody is to lose them unawares.
    fn gpg_signatures(&self, subject: &Digest) -> Result<Vec<Vec<u8>>, Error> {
        let Some((before, _)) = self.renamed.iter().find(|(_, after)| *after == subject) else {
            return self.source.gpg_signatures(subject);
        };
        if self.source.gpg_signatures(before)?.is_empty() {
            return Ok(Vec::new());
        }
        let what =
            "it has GPG signatures, which do not hold for its new digest; --remove-signatures leaves them behind";
        Err(Error::local(format!("compress the layers of {}", self.name()), Cause::Input(what.to_owned())))
    }

    fn referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>, Error> {
        self.source.referrers(subject)
    }

    fn bare_referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>, Error> {
        self.source.bare_referrers(subject)
    }
}

/// The manifests below `manifest`, and the layers that are to be compressed, each once.
fn collect(
    source: &dyn Source,
    manifest: &Manifest,
    options: &RepackOptions<'_>,
    depth: usize,
    children: &mut HashMap<Digest, Manifest>,
    held: &mut Held,
    layers: &mut Vec<Descriptor>,
) -> Result<(), Error> {
    match manifest.content() {
        ManifestContent::Image { layers: all, .. } => {
            let wanted = options.repacker.compression();
            for layer in all {
                let is_due = kind_of(layer.media_type().as_ref())
                    .is_some_and(|kind| options.is_forced || kind.compression != wanted);
                if is_due && layers.iter().all(|known| known.digest() != layer.digest()) {
                    layers.push(layer);
                }
            }
        }
        ManifestContent::Index(_) if depth >= INDEX_DEPTH_LIMIT => return Err(too_deep(source)),
        ManifestContent::Index(entries) => {
            for entry in entries {
                if !children.contains_key(entry.digest()) {
                    let child = source.manifest(Some(entry.digest()))?;
                    held.add(source, &child)?;
                    children.insert(entry.digest().clone(), child.clone());
                    collect(source, &child, options, depth + 1, children, held, layers)?;
                }
            }
        }
    }
    Ok(())
}

/// Compresses several layers at once.
fn repack_all(
    source: &dyn Source,
    layers: Vec<Descriptor>,
    options: &RepackOptions<'_>,
    progress: &dyn Progress,
) -> Result<HashMap<Digest, Repacked>, Error> {
    let workers = options.jobs.clamp(1, layers.len().max(1));
    let queue = Mutex::new(VecDeque::from(layers));
    // A function: in the head of the loop the lock would be held as long as its body.
    let next = || lock(&queue).pop_front();
    let done: Mutex<Result<HashMap<Digest, Repacked>, Error>> = Mutex::new(Ok(HashMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(layer) = next() {
                    let what = format!("compress the layer {}", layer.digest());
                    let outcome = twice_if_damaged(&what, progress, |is_second| {
                        if is_second {
                            source.distrust(&layer);
                        }
                        repack_one(source, &layer, options, progress)
                    });
                    let mut done = lock(&done);
                    match (outcome, &mut *done) {
                        (Ok(repacked), Ok(all)) => drop(all.insert(layer.digest().clone(), repacked)),
                        (Err(error), Ok(_)) => *done = Err(error),
                        (_, Err(_)) => {}
                    }
                    if done.is_err() {
                        lock(&queue).clear();
                    }
                }
            });
        }
    });
    done.into_inner().unwrap_or_else(|poison| poison.into_inner())
}

fn repack_one(
    source: &dyn Source,
    layer: &Descriptor,
    options: &RepackOptions<'_>,
    progress: &dyn Progress,
) -> Result<Repacked, Error> {
    let doing = || format!("compress the layer {} of {}", layer.digest(), source.name());
    let on_disk = |error| Error::from_io(doing(), options.directory, error);
    progress.blob_started(layer);
    let mut content = Watched { content: source.open_blob(layer)?, layer, position_bytes: 0, progress };
    let file = tempfile::tempfile_in(options.directory).map_err(on_disk)?;
    let recipe = format!("{} {}", layer.digest(), options.repacker.name());
    let maker = BlobMaker::new(file.try_clone().map_err(on_disk)?, &recipe);
    let write = |maker| {
        let most_bytes = most_layer_bytes(layer.size());
        let mut out = Digested { file, digester: Digester::sha256(), size_bytes: 0, most_bytes, maker };
        let repacked = options.repacker.repack(&mut content, &mut out);
        if repacked.as_ref().is_err_and(|error| error.get_ref().is_some_and(|inner| inner.is::<Error>())) {
            return repacked.map(|()| out);
        }
        // What lies behind the end of the compressed content has to be right too; and content that makes no sense was
        // mostly damaged on its way.
        io::copy(&mut content, &mut io::sink())?;
        repacked.map(|()| out)
    };
    let kind = kind_of(layer.media_type().as_ref()).expect("only known kinds are collected");
    let media_type = kind.with(options.repacker.compression());
    std::thread::scope(|scope| {
        let ahead = options.ahead.filter(|_| layer.size() >= STREAMED_FROM_BYTES).map(|ahead| {
            let blob = Arc::clone(maker.blob());
            scope.spawn(move || ahead.put_growing_blob(&blob, progress))
        });
        let written: io::Result<Digested> = write(maker);
        let Digested { file, digester, size_bytes, maker, .. } = written.map_err(on_disk)?;
        let digest = digester.finish();
        maker.finish(&Descriptor::new(MediaType::from(media_type.as_str()), size_bytes, digest.clone()));
        progress.blob_done(layer.digest());
        let put = ahead.map(|ahead| ahead.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        let is_sent = match put {
            Some(Ok(put)) => put.is_some_and(|(_, stored)| stored == Stored::Sent),
            // The copy does what is left, and tells what fails.
            Some(Err(error)) => {
                tracing::debug!(%error, "a layer is sent when all are compressed");
                false
            }
            None => false,
        };
        Ok(Repacked { media_type, digest, size_bytes, file: Arc::new(file), is_sent })
    })
}

/// Makes manifests anew, those below first.
struct Rewriter<'a> {
    children: HashMap<Digest, Manifest>,
    repacked: &'a HashMap<Digest, Repacked>,
    made: HashMap<Digest, Manifest>,
    /// From the old digest of a manifest to the new one.
    renamed: HashMap<Digest, Digest>,
}

impl Rewriter<'_> {
    fn rewrite(&mut self, manifest: &Manifest) -> Result<Manifest, Error> {
        let mut document: Value =
            serde_json::from_slice(manifest.bytes()).expect("the bytes were parsed when this was made");
        let is_changed = match manifest.content() {
            ManifestContent::Image { .. } => self.rewrite_image(&mut document),
            ManifestContent::Index(entries) => self.rewrite_index(&mut document, &entries)?,
        };
        if !is_changed {
            return Ok(manifest.clone());
        }
        let fail = |cause| Error::local("make the manifest of compressed layers", cause);
        let made = Manifest::new(Some(manifest.media_type()), document.to_string().into_bytes()).map_err(fail)?;
        self.renamed.insert(manifest.digest().clone(), made.digest().clone());
        self.made.insert(made.digest().clone(), made.clone());
        Ok(made)
    }

    fn rewrite_image(&self, document: &mut Value) -> bool {
        let mut is_changed = false;
        let mut needs_oci = false;
        for layer in document["layers"].as_array_mut().into_iter().flatten() {
            let Some(repacked) = digest_in(layer).and_then(|digest| self.repacked.get(&digest)) else { continue };
            needs_oci |= layer["mediaType"].as_str().is_some_and(|old| old.starts_with(DOCKER_LAYER))
                && !repacked.media_type.starts_with(DOCKER_LAYER);
            layer["mediaType"] = repacked.media_type.as_str().into();
            layer["digest"] = repacked.digest.as_ref().into();
            layer["size"] = repacked.size_bytes.into();
            if let Some(annotations) = layer.get_mut("annotations").and_then(Value::as_object_mut) {
                annotations.retain(|key, _| !ABOUT_BYTES.iter().any(|prefix| key.starts_with(prefix)));
            }
            is_changed = true;
        }
        if needs_oci {
            into_oci(document);
        }
        is_changed
    }

    fn rewrite_index(&mut self, document: &mut Value, entries: &[Descriptor]) -> Result<bool, Error> {
        let mut is_changed = false;
        let listed = entries.iter().zip(document["manifests"].as_array_mut().into_iter().flatten());
        for (entry, value) in listed {
            let Some(child) = self.children.get(entry.digest()).cloned() else { continue };
            let made = self.rewrite(&child)?;
            if made.digest() != entry.digest() {
                value["mediaType"] = made.media_type().into();
                value["digest"] = made.digest().as_ref().into();
                value["size"] = made.bytes().len().into();
                is_changed = true;
            }
        }
        for value in document["manifests"].as_array_mut().into_iter().flatten() {
            let attested = value.pointer("/annotations").and_then(|all| all.get(ATTESTED)).and_then(Value::as_str);
            let renamed = attested.and_then(|text| self.renamed.get(&Digest::try_from(text).ok()?));
            if let Some(renamed) = renamed {
                value["annotations"][ATTESTED] = renamed.as_ref().into();
            }
        }
        let is_oci = |entry: &Value| entry["mediaType"] == OCI_MANIFEST;
        if document["mediaType"] == DOCKER_LIST
            && document["manifests"].as_array().is_some_and(|all| all.iter().any(is_oci))
        {
            document["mediaType"] = OCI_INDEX.into();
        }
        Ok(is_changed)
    }
}

const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.";
const DOCKER_PLAIN_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

/// A kind of layer that can be compressed otherwise.
struct Kind {
    is_docker: bool,
    compression: LayerCompression,
}

/// `None` for what is no layer, and for layers that lie at their owner's.
fn kind_of(media_type: &str) -> Option<Kind> {
    let (is_docker, rest) = match media_type.strip_prefix(OCI_LAYER) {
        Some(rest) => (false, rest),
        None => (true, media_type.strip_prefix(DOCKER_PLAIN_LAYER)?),
    };
    let compression = match (rest, is_docker) {
        ("", _) => LayerCompression::None,
        ("+gzip", false) | (".gzip", true) => LayerCompression::Gzip,
        ("+zstd", false) => LayerCompression::Zstd,
        _ => return None,
    };
    Some(Kind { is_docker, compression })
}

impl Kind {
    fn with(&self, compression: LayerCompression) -> String {
        match (self.is_docker, compression) {
            (true, LayerCompression::None) => DOCKER_PLAIN_LAYER.to_owned(),
            (true, LayerCompression::Gzip) => format!("{DOCKER_PLAIN_LAYER}.gzip"),
            (false, LayerCompression::None) => OCI_LAYER.to_owned(),
            (false, LayerCompression::Gzip) => format!("{OCI_LAYER}+gzip"),
            (_, LayerCompression::Zstd) => format!("{OCI_LAYER}+zstd"),
        }
    }
}

/// Docker's media types of a manifest in OCI's words, one for one
/// (<https://github.com/opencontainers/image-spec/blob/main/media-types.md#compatibility-matrix>).
fn into_oci(document: &mut Value) {
    document["mediaType"] = OCI_MANIFEST.into();
    let in_oci = |media_type: &str| {
        Some(match media_type {
            "application/vnd.docker.container.image.v1+json" => MediaType::ImageConfig.to_string(),
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => {
                MediaType::ImageLayerNonDistributableGzip.to_string()
            }
            other => {
                let kind = kind_of(other).filter(|kind| kind.is_docker)?;
                Kind { is_docker: false, ..kind }.with(kind.compression)
            }
        })
    };
    let translate = |value: &mut Value| {
        if let Some(translated) = value["mediaType"].as_str().and_then(in_oci) {
            value["mediaType"] = translated.into();
        }
    };
    translate(&mut document["config"]);
    document["layers"].as_array_mut().into_iter().flatten().for_each(translate);
    debug_assert_ne!(document["mediaType"], DOCKER_MANIFEST);
}

fn digest_in(value: &Value) -> Option<Digest> {
    Digest::try_from(value["digest"].as_str()?).ok()
}

/// Tells the progress of a layer that is read.
struct Watched<'a> {
    content: Box<dyn Read + Send + 'a>,
    layer: &'a Descriptor,
    position_bytes: u64,
    progress: &'a dyn Progress,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.content.read(buffer)?;
        self.position_bytes += count as u64;
        self.progress.blob_moved(self.layer.digest(), self.position_bytes);
        Ok(count)
    }
}

/// Digests what is written to a file, and tells how much it is.
struct Digested {
    file: File,
    digester: Digester,
    size_bytes: u64,
    most_bytes: u64,
    maker: BlobMaker,
}

impl Write for Digested {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.size_bytes + bytes.len() as u64 > self.most_bytes {
            return Err(Error::new("compress a layer", too_much(self.most_bytes)).into());
        }
        let count = self.file.write(bytes)?;
        self.digester.update(&bytes[..count]);
        self.size_bytes += count as u64;
        self.maker.grew(self.size_bytes);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Queue and results are whole between any two statements that change them.
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;
    use crate::digest::digest_of;
    use crate::progress::Silent;

    /// An image of two layers.
    struct Image(Manifest, [&'static [u8]; 2]);

    impl Image {
        fn new() -> Self {
            let layers: [&[u8]; 2] = [b"one", b"two"];
            let described = |bytes: &[u8], media_type: &str| serde_json::json!({"mediaType": media_type, "digest": digest_of(bytes), "size": bytes.len()});
            let manifest = serde_json::json!({
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": described(b"{}", "application/vnd.oci.image.config.v1+json"),
                "layers": layers.map(|layer| described(layer, OCI_LAYER)),
            });
            Self(Manifest::new(None, manifest.to_string().into_bytes()).expect("a manifest"), layers)
        }
    }

    impl Source for Image {
        fn name(&self) -> String {
            "an image".to_owned()
        }

        fn manifest(&self, _: Option<&Digest>) -> Result<Manifest, Error> {
            Ok(self.0.clone())
        }

        fn open_blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>, Error> {
            let found = self.1.iter().find(|bytes| digest_of(bytes) == *descriptor.digest());
            Ok(Box::new(*found.expect("one of the layers")))
        }

        fn distrust(&self, _: &Descriptor) {}
    }

    /// Fails, or not, once two layers are at work.
    struct Together(Barrier, bool);

    impl Repacker for Together {
        fn compression(&self) -> LayerCompression {
            LayerCompression::Gzip
        }

        fn name(&self) -> String {
            "together".to_owned()
        }

        fn repack(&self, layer: &mut (dyn Read + Send), out: &mut (dyn Write + Send)) -> io::Result<()> {
            self.0.wait();
            if self.1 { Err(io::Error::other("no compressor today")) } else { io::copy(layer, out).map(drop) }
        }
    }

    #[test]
    fn layers_are_compressed_side_by_side_and_a_failure_ends_it() {
        let (image, directory) = (Image::new(), tempfile::tempdir().expect("a directory"));
        let repacked = |fails| {
            let options = RepackOptions {
                repacker: &Together(Barrier::new(2), fails),
                is_forced: false,
                platforms: PlatformChoice::All,
                jobs: 2,
                directory: directory.path(),
                ahead: None,
            };
            RepackedSource::new(&image, &options, &Silent).map(|source| source.changed().is_some())
        };
        assert!(repacked(false).expect("compressed"));
        let error = repacked(true).expect_err("it fails");
        assert!(std::error::Error::source(&error).is_some() || error.to_string().contains("no compressor"), "{error}");
    }
}
