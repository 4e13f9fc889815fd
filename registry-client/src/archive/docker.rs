//! `docker-archive:` what `docker save` writes and `docker load` reads.
//!
//! Invariant: layers lie uncompressed in a written archive, named by diff id and checked against the config; a read
//! archive's manifest is made from its files, and its blobs are those files.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use oci_spec::image::{Descriptor, Digest, MediaType};
use serde::{Deserialize, Serialize};

use super::tar_files::{Compression, TarFiles, TarWriter, compression, most_layer_bytes, too_much};
use crate::digest::{Digester, VerifyingReader, digest_of};
use crate::draft::{Draft, Staging, parent, pour};
use crate::error::{Cause, Error};
use crate::layout::{Directory, Files, missing_or, read_small};
use crate::manifest::{Manifest, ManifestContent};
use crate::place::{Content, Destination, Source, Stored};
use crate::reference::Reference;

/// One image in the `manifest.json` of an archive.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// The part of an image's config that an archive needs.
#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<Digest>,
}

/// An image in a `docker-archive:` that exists.
#[derive(Debug)]
pub struct DockerArchiveSource {
    files: TarFiles,
    words: String,
    manifest: Manifest,
    /// Descriptor and file name of each blob.
    blobs: Vec<(Descriptor, String)>,
}

impl DockerArchiveSource {
    /// Reads the archive's headers and makes the image's manifest; layers that lie compressed in it are read once.
    ///
    /// # Errors
    /// If it cannot be read, is no such archive, or does not hold (only) the image.
    pub fn open(file: &Path, reference: Option<&Reference>) -> Result<Self, Error> {
        let words = words(file, reference);
        let files = TarFiles::open(file)?;
        let fail = |cause| Error::local(format!("read {words}"), cause);
        let item = find(&files, &words, reference)?;
        let config = read_small(&files, &words, &item.config)?;
        let diff_ids = diff_ids(&config).map_err(fail)?;
        if diff_ids.len() != item.layers.len() {
            let what = format!("{} layers, but {} diff ids in its config", item.layers.len(), diff_ids.len());
            return Err(fail(Cause::Malformed(what)));
        }
        let config_descriptor = Descriptor::new(MediaType::ImageConfig, config.len() as u64, digest_of(&config));
        let mut blobs = vec![(config_descriptor, item.config)];
        for (name, diff_id) in item.layers.into_iter().zip(diff_ids) {
            let doing = format!("read the layer {name} of {words}");
            let descriptor = describe(&files, &name, diff_id).map_err(|error| missing_or(doing, &name, error))?;
            blobs.push((descriptor, name));
        }
        let descriptors: Vec<&Descriptor> = blobs.iter().map(|(descriptor, _)| descriptor).collect();
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptors[0],
            "layers": &descriptors[1..],
        });
        let manifest = Manifest::new(None, manifest.to_string().into_bytes()).map_err(fail)?;
        Ok(Self { files, words, manifest, blobs })
    }
}

impl Source for DockerArchiveSource {
    fn name(&self) -> String {
        self.words.clone()
    }

    fn manifest(&self, digest: Option<&Digest>) -> Result<Manifest, Error> {
        if digest.is_none_or(|digest| digest == self.manifest.digest()) {
            return Ok(self.manifest.clone());
        }
        let what = "a docker-archive holds single images".to_owned();
        Err(Error::local(format!("read another manifest of {}", self.words), Cause::Missing(what)))
    }

    fn open_blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>, Error> {
        let doing = format!("open the blob {} of {}", descriptor.digest(), self.words);
        let Some((_, name)) = self.blobs.iter().find(|(known, _)| known.digest() == descriptor.digest()) else {
            return Err(Error::local(doing, Cause::Missing("it is not there".to_owned())));
        };
        let (content, _) = self.files.open(name).map_err(|error| missing_or(doing, name, error))?;
        Ok(Box::new(VerifyingReader::new(content, descriptor)?))
    }

    fn distrust(&self, _: &Descriptor) {}
}

/// The names that images have in an archive.
pub(super) fn names(files: &TarFiles, words: &str) -> Result<Vec<Reference>, Error> {
    let all = items(files, words)?;
    Ok(all.iter().flat_map(tags_of).filter_map(|tag| tag.parse().ok()).collect())
}

fn tags_of(item: &Item) -> Vec<String> {
    item.repo_tags.clone().unwrap_or_default()
}

fn items(files: &TarFiles, words: &str) -> Result<Vec<Item>, Error> {
    let fail = |cause| Error::local(format!("find the image in {words}"), cause);
    if !files.has("manifest.json") {
        return Err(fail(Cause::Malformed("it has no manifest.json: not made by docker save".to_owned())));
    }
    let bytes = read_small(files, words, "manifest.json")?;
    serde_json::from_slice(&bytes)
        .map_err(|error| fail(Cause::Malformed(format!("its manifest.json is not understood: {error}"))))
}

/// Finds the image of a reference; without one the only image.
fn find(files: &TarFiles, words: &str, reference: Option<&Reference>) -> Result<Item, Error> {
    let fail = |cause| Error::local(format!("find the image in {words}"), cause);
    let mut items = items(files, words)?;
    let Some(reference) = reference else {
        if items.len() == 1 {
            return Ok(items.remove(0));
        }
        let names: Vec<String> = items.iter().flat_map(tags_of).collect();
        return Err(fail(Cause::Input(format!("it holds {} images; name one of: {}", items.len(), names.join(", ")))));
    };
    let is_wanted =
        |item: &Item| tags_of(item).iter().any(|tag| tag.parse::<Reference>().is_ok_and(|t| t == *reference));
    let missing = || fail(Cause::Missing(format!("it holds no image named {}", reference.familiar())));
    items.into_iter().find(is_wanted).ok_or_else(missing)
}

fn diff_ids(config: &[u8]) -> Result<Vec<Digest>, Cause> {
    let config: Config = serde_json::from_slice(config)
        .map_err(|error| Cause::Malformed(format!("its config is not understood: {error}")))?;
    Ok(config.rootfs.diff_ids)
}

/// The descriptor of a layer file: an uncompressed one has its diff id for a digest.
fn describe(files: &TarFiles, name: &str, diff_id: Digest) -> io::Result<Descriptor> {
    let (mut content, size_bytes) = files.open(name)?;
    let mut start = [0; 4];
    let read = read_full(&mut content, &mut start)?;
    let media_type = match compression(&start[..read]) {
        Compression::None => return Ok(Descriptor::new(MediaType::ImageLayer, size_bytes, diff_id)),
        Compression::Gzip => MediaType::ImageLayerGzip,
        Compression::Zstd => MediaType::ImageLayerZstd,
    };
    let mut digesting = Digesting::new(io::Cursor::new(start).take(read as u64).chain(content));
    pour(&mut digesting, &mut io::sink())?;
    Ok(Descriptor::new(media_type, size_bytes, digesting.finish().0))
}

/// A `docker-archive:` to be made, or replaced, with one image.
#[derive(Debug)]
pub struct DockerArchiveDestination {
    file: PathBuf,
    words: String,
    references: Vec<Reference>,
    /// The archive's files in a directory, instead of the archive.
    is_directory: bool,
    staging: Staging,
    /// Uncompressed digest and size of each blob that was put.
    plain: std::sync::Mutex<Vec<(Digest, Plain)>>,
}

#[derive(Debug, Clone)]
struct Plain {
    digest: Digest,
    size_bytes: u64,
}

impl DockerArchiveDestination {
    /// Prepares the archive beside its place; it appears there with its manifest.
    ///
    /// # Errors
    /// If nothing can be written there.
    pub fn create(file: &Path, reference: Option<Reference>) -> Result<Self, Error> {
        let words = words(file, reference.as_ref());
        let staging = Staging::new_in(parent(file))
            .map_err(|error| Error::disk(format!("write {words}"), parent(file), error))?;
        let references = reference.into_iter().collect();
        let plain = std::sync::Mutex::default();
        Ok(Self { file: file.to_owned(), words, references, is_directory: false, staging, plain })
    }

    /// Gives the image one more name.
    #[must_use]
    pub fn also_named(mut self, reference: Reference) -> Self {
        self.references.push(reference);
        self
    }

    /// Writes the files of the archive into a directory of its name instead.
    #[must_use]
    pub fn as_directory(mut self) -> Self {
        self.is_directory = true;
        self
    }

    fn plain(&self, digest: &Digest) -> Option<Plain> {
        let plain = self.plain.lock().unwrap_or_else(|poison| poison.into_inner());
        plain.iter().find(|(known, _)| known == digest).map(|(_, plain)| plain.clone())
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.staging.path().join(digest.digest())
    }

    /// Writes a blob's uncompressed content.
    fn write_blob(&self, blob: &Descriptor, content: &mut (dyn Read + Send)) -> io::Result<Plain> {
        let (digest, size_bytes) = (blob.digest(), blob.size());
        let mut start = [0; 4];
        let read = read_full(content, &mut start)?;
        let rest = io::Cursor::new(start).take(read as u64).chain(content);
        let plain: Box<dyn Read> = match compression(&start[..read]) {
            Compression::None => Box::new(rest),
            Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(rest)),
            Compression::Zstd => Box::new(zstd::stream::read::Decoder::new(rest)?),
        };
        let most_bytes = most_layer_bytes(size_bytes);
        // A byte more, to tell content that is as long as it may be from what goes on.
        let mut digesting = Digesting::new(plain.take(most_bytes + 1));
        let mut file = File::create(self.blob_path(digest))?;
        pour(&mut digesting, &mut file)?;
        if digesting.size_bytes > most_bytes {
            return Err(Error::new(format!("decompress the blob {digest}"), too_much(most_bytes)).into());
        }
        let (digest, size_bytes) = digesting.finish();
        Ok(Plain { digest, size_bytes })
    }

    /// The entries of the archive: name, size and file, and what `manifest.json` says of them.
    fn pack(&self, config: &Descriptor, layers: &[Descriptor]) -> Result<(), Error> {
        let fail = |cause| Error::local(format!("write {}", self.words), cause);
        let missing = |digest: &Digest| fail(Cause::Missing(format!("the blob {digest} was not put there")));
        let disk = |error| Error::disk(format!("write {}", self.words), &self.file, error);
        let config_bytes = read_small(&Directory(self.staging.path()), &self.words, config.digest().digest())?;
        let diff_ids = diff_ids(&config_bytes).map_err(fail)?;
        let mut entries = vec![(format!("{}.json", config.digest().digest()), config.size(), config.digest().clone())];
        let mut names = Vec::new();
        for (number, layer) in layers.iter().enumerate() {
            let plain = self.plain(layer.digest()).ok_or_else(|| missing(layer.digest()))?;
            if diff_ids.get(number) != Some(&plain.digest) {
                let what = format!("the layer {} is not the one that the config describes", layer.digest());
                return Err(fail(Cause::Malformed(what)));
            }
            let name = format!("{}.tar", plain.digest.digest());
            names.push(name.clone());
            entries.push((name, plain.size_bytes, layer.digest().clone()));
        }
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        entries.dedup_by(|a, b| a.0 == b.0);
        let item =
            Item { config: format!("{}.json", config.digest().digest()), repo_tags: self.repo_tags(), layers: names };
        let manifest = serde_json::to_vec(&[item]).expect("strings have a JSON text");
        let written = match self.is_directory {
            true => self.write_directory(&entries, &manifest),
            false => self.write_archive(&entries, &manifest),
        };
        written.map_err(disk)
    }

    fn write_directory(&self, entries: &[(String, u64, Digest)], manifest: &[u8]) -> io::Result<()> {
        std::fs::create_dir_all(&self.file)?;
        let put = |name: &str, content: &mut dyn Read| {
            let mut draft = Draft::new_in(&self.file)?;
            pour(content, &mut draft)?;
            draft.publish(&self.file.join(name))
        };
        for (name, _, digest) in entries {
            put(name, &mut File::open(self.blob_path(digest))?)?;
        }
        put("manifest.json", &mut &*manifest)
    }

    fn write_archive(&self, entries: &[(String, u64, Digest)], manifest: &[u8]) -> io::Result<()> {
        let out = Draft::beside(&self.file)?;
        let mut tar = TarWriter::new(io::BufWriter::new(out));
        for (name, size_bytes, digest) in entries {
            tar.file(name, *size_bytes, File::open(self.blob_path(digest))?)?;
        }
        tar.file("manifest.json", manifest.len() as u64, manifest)?;
        tar.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?.publish(&self.file)
    }

    /// `docker load` gives the image these names; always with their tags.
    fn repo_tags(&self) -> Option<Vec<String>> {
        let named = self.references.iter().filter(|reference| reference.digest().is_none());
        let with_tag = |reference: &Reference| {
            let familiar = reference.familiar();
            let has_tag = familiar.rsplit('/').next().is_some_and(|last| last.contains(':'));
            if has_tag { familiar } else { format!("{familiar}:latest") }
        };
        Some(named.map(with_tag).collect::<Vec<_>>()).filter(|names| !names.is_empty())
    }
}

impl Destination for DockerArchiveDestination {
    fn name(&self) -> String {
        self.words.clone()
    }

    fn has_blob(&self, descriptor: &Descriptor) -> Result<bool, Error> {
        Ok(self.plain(descriptor.digest()).is_some())
    }

    fn put_blob(&self, descriptor: &Descriptor, content: &dyn Content) -> Result<Stored, Error> {
        let mut content = content.open()?;
        let doing = format!("write the blob {} to {}", descriptor.digest(), self.words);
        let plain = self
            .write_blob(descriptor, &mut content)
            .map_err(|error| Error::from_io(doing, self.staging.path(), error))?;
        self.plain.lock().unwrap_or_else(|poison| poison.into_inner()).push((descriptor.digest().clone(), plain));
        Ok(Stored::Sent)
    }

    fn put_manifest(&self, manifest: &Manifest, is_top: bool) -> Result<(), Error> {
        match manifest.content() {
            ManifestContent::Image { config, layers } if is_top => self.pack(&config, &layers),
            _ => {
                let what = "a docker-archive holds one platform; choose one".to_owned();
                Err(Error::local(format!("write {}", self.words), Cause::Input(what)))
            }
        }
    }
}

fn words(file: &Path, reference: Option<&Reference>) -> String {
    let reference = reference.map_or(String::new(), |reference| format!(":{reference}"));
    format!("docker-archive:{}{reference}", file.display())
}

fn read_full(content: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match content.read(&mut buffer[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}

/// Digests and counts what passes.
struct Digesting<R> {
    inner: R,
    digester: Digester,
    size_bytes: u64,
}

impl<R: Read> Digesting<R> {
    fn new(inner: R) -> Self {
        Self { inner, digester: Digester::sha256(), size_bytes: 0 }
    }

    fn finish(self) -> (Digest, u64) {
        (self.digester.finish(), self.size_bytes)
    }
}

impl<R: Read> Read for Digesting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.digester.update(&buffer[..count]);
        self.size_bytes += count as u64;
        Ok(count)
    }
}
