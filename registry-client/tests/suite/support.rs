//! What the tests of this crate share: an image in memory, and options that never wait long.

use std::collections::BTreeMap;
use std::io::{Cursor, Read, Write};
use std::sync::Mutex;
use std::time::Duration;

use oci_spec::image::{Descriptor, Digest, MediaType};
use registry_client::*;

pub(crate) use fixtures::{noise, this_test};

/// Options for tests: retries without noticeable waits.
pub(crate) fn quick() -> ClientOptions {
    let wait = Duration::from_millis(1);
    let retry = RetryPolicy { tries: 4, base_wait: wait, longest_wait: Duration::from_secs(2) };
    ClientOptions { retry, ..ClientOptions::default() }
}

/// An image in memory: the simplest place.
#[derive(Default)]
pub(crate) struct MemoryImage {
    blobs: Mutex<BTreeMap<String, Vec<u8>>>,
    manifests: Mutex<BTreeMap<String, Manifest>>,
    top: Mutex<Option<Manifest>>,
    tags: Mutex<BTreeMap<String, Manifest>>,
}

impl MemoryImage {
    pub(crate) fn empty() -> Self {
        Self::default()
    }

    /// An image of a config and two layers, the second larger than any buffer; the same for the same `seed`.
    pub(crate) fn sample(seed: &str) -> Self {
        let image = Self::empty();
        let config = format!(
            r#"{{"architecture":"{}","os":"linux","config":{{"Labels":{{"seed":"{seed}"}}}},"rootfs":{{"type":"layers","diff_ids":[]}}}}"#,
            Platform::host().architecture()
        );
        let config = image.add_blob(MediaType::ImageConfig, config.into_bytes());
        let small = image.add_blob(MediaType::ImageLayer, format!("not really a tar: {seed}").into_bytes());
        let large = image.add_blob(MediaType::ImageLayer, noise(seed, 3_000_000));
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config, "layers": [small, large], "annotations": {"z": "kept", "a": "in this order"},
        });
        // Spaces that no serialiser would make: they must survive.
        let bytes = format!(" {manifest}\n").into_bytes();
        image.set_top(Manifest::new(None, bytes).expect("a manifest"));
        image
    }

    /// An image of real tars, one layer each plain, gzip and zstd, that says what it is in its config.
    pub(crate) fn of_tars(seed: &str) -> Self {
        Self::of_layers(seed, &[MediaType::ImageLayer, MediaType::ImageLayerGzip, MediaType::ImageLayerZstd])
    }

    /// An image of real tars in layers of these types.
    pub(crate) fn of_layers(seed: &str, types: &[MediaType]) -> Self {
        let image = Self::empty();
        let (mut diff_ids, mut layers) = (Vec::new(), Vec::new());
        for (number, media_type) in types.iter().enumerate() {
            let tar = tar_of(&format!("{seed}{number}"));
            diff_ids.push(digest_of(&tar).to_string());
            let bytes = match media_type {
                MediaType::ImageLayerGzip => {
                    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                    gzip.write_all(&tar).expect("compressed");
                    gzip.finish().expect("compressed")
                }
                MediaType::ImageLayerZstd => zstd::encode_all(&tar[..], 1).expect("compressed"),
                _ => tar,
            };
            layers.push(image.add_blob(media_type.clone(), bytes));
        }
        let config = serde_json::json!({
            "architecture": Platform::host().architecture(), "os": "linux", "config": {"Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = image.add_blob(MediaType::ImageConfig, config.to_string().into_bytes());
        let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": layers,
            "mediaType": "application/vnd.oci.image.manifest.v1+json"});
        image.set_top(Manifest::new(None, manifest.to_string().into_bytes()).expect("a manifest"));
        image
    }

    /// An index of images for these platforms.
    pub(crate) fn index(platforms: &[&str]) -> Self {
        let image = Self::empty();
        let mut entries = Vec::new();
        for platform in platforms {
            let single = Self::sample(platform);
            let manifest = single.top().expect("it has a manifest");
            let mut entry = serde_json::to_value(manifest.descriptor()).expect("a descriptor has a text");
            let parts: Vec<&str> = platform.split('/').collect();
            entry["platform"] = serde_json::json!({"os": parts[0], "architecture": parts[1]});
            entry["platform"]["variant"] = parts.get(2).copied().into();
            entries.push(entry);
            image.add_manifest(manifest);
            image.blobs.lock().expect("no panic").extend(single.blobs());
        }
        let index = serde_json::json!({"schemaVersion": 2, "manifests": entries,
            "mediaType": "application/vnd.oci.image.index.v1+json"});
        image.set_top(Manifest::new(None, index.to_string().into_bytes()).expect("an index"));
        image
    }

    pub(crate) fn layers(&self) -> Vec<Descriptor> {
        match self.top().expect("it has a manifest").content() {
            ManifestContent::Image { layers, .. } => layers,
            ManifestContent::Index(manifests) => manifests,
        }
    }

    /// The layers' tars, however they are compressed.
    pub(crate) fn plain_layers(&self) -> Vec<Vec<u8>> {
        let blobs = self.blobs();
        let plain = |layer: Descriptor| {
            let bytes = &blobs[layer.digest().as_ref()];
            let mut plain = Vec::new();
            match bytes.get(..2) {
                Some([0x1f, 0x8b]) => {
                    flate2::read::GzDecoder::new(&bytes[..]).read_to_end(&mut plain).expect("gzip");
                }
                Some([0x28, 0xb5]) => plain = zstd::decode_all(&bytes[..]).expect("zstd"),
                _ => plain = bytes.clone(),
            }
            plain
        };
        self.layers().into_iter().map(plain).collect()
    }

    pub(crate) fn add_blob(&self, media_type: MediaType, bytes: Vec<u8>) -> Descriptor {
        let descriptor = Descriptor::new(media_type, bytes.len() as u64, digest_of(&bytes));
        self.blobs.lock().expect("no panic").insert(descriptor.digest().to_string(), bytes);
        descriptor
    }

    pub(crate) fn set_top(&self, manifest: Manifest) {
        self.manifests.lock().expect("no panic").insert(manifest.digest().to_string(), manifest.clone());
        *self.top.lock().expect("no panic") = Some(manifest);
    }

    pub(crate) fn add_manifest(&self, manifest: Manifest) {
        self.manifests.lock().expect("no panic").insert(manifest.digest().to_string(), manifest);
    }

    /// What lies beside the image under a tag of its own.
    pub(crate) fn tag(&self, tag: &str) -> Option<Manifest> {
        self.tags.lock().expect("no panic").get(tag).cloned()
    }

    pub(crate) fn digest(&self) -> Digest {
        self.top().expect("it has a manifest").digest().clone()
    }

    pub(crate) fn top(&self) -> Option<Manifest> {
        self.top.lock().expect("no panic").clone()
    }

    pub(crate) fn blobs(&self) -> BTreeMap<String, Vec<u8>> {
        self.blobs.lock().expect("no panic").clone()
    }
}

impl Source for MemoryImage {
    fn name(&self) -> String {
        "memory".to_owned()
    }

    fn manifest(&self, digest: Option<&Digest>) -> Result<Manifest, Error> {
        let missing = || Error::new("read memory", Cause::Missing("no such manifest".to_owned()));
        match digest {
            None => self.top().ok_or_else(missing),
            Some(digest) => self.manifests.lock().expect("no panic").get(digest.as_ref()).cloned().ok_or_else(missing),
        }
    }

    fn open_blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>, Error> {
        let bytes = self.blobs.lock().expect("no panic").get(descriptor.digest().as_ref()).cloned();
        let missing = || Error::new("read memory", Cause::Missing("no such blob".to_owned()));
        Ok(Box::new(VerifyingReader::new(Cursor::new(bytes.ok_or_else(missing)?), descriptor)?))
    }

    fn distrust(&self, _: &Descriptor) {}

    fn tagged(&self, tag: &str) -> Result<Option<Manifest>, Error> {
        Ok(self.tag(tag))
    }

    fn referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>, Error> {
        let refers = |manifest: &&Manifest| manifest.subject().is_some_and(|about| about.digest() == subject);
        Ok(self.manifests.lock().expect("no panic").values().filter(refers).map(Manifest::listed).collect())
    }
}

/// An image of another owner, as a source.
pub(crate) struct Borrowed<'a>(pub(crate) &'a MemoryImage);

impl Source for Borrowed<'_> {
    fn name(&self) -> String {
        Source::name(self.0)
    }

    fn manifest(&self, digest: Option<&Digest>) -> Result<Manifest, Error> {
        self.0.manifest(digest)
    }

    fn open_blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>, Error> {
        self.0.open_blob(descriptor)
    }

    fn distrust(&self, descriptor: &Descriptor) {
        self.0.distrust(descriptor);
    }

    fn tagged(&self, tag: &str) -> Result<Option<Manifest>, Error> {
        self.0.tagged(tag)
    }

    fn referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>, Error> {
        self.0.referrers(subject)
    }
}

impl Destination for MemoryImage {
    fn name(&self) -> String {
        "memory".to_owned()
    }

    fn has_blob(&self, descriptor: &Descriptor) -> Result<bool, Error> {
        Ok(self.blobs.lock().expect("no panic").contains_key(descriptor.digest().as_ref()))
    }

    fn put_blob(&self, descriptor: &Descriptor, content: &dyn Content) -> Result<Stored, Error> {
        let mut bytes = Vec::new();
        content.open()?.read_to_end(&mut bytes).map_err(|error| Error::from_io("fill memory", "memory", error))?;
        self.blobs.lock().expect("no panic").insert(descriptor.digest().to_string(), bytes);
        Ok(Stored::Sent)
    }

    fn put_manifest(&self, manifest: &Manifest, is_top: bool) -> Result<(), Error> {
        if is_top {
            self.set_top(manifest.clone())
        } else {
            self.add_manifest(manifest.clone())
        }
        Ok(())
    }

    fn beside(&self) -> Result<Box<dyn Source + '_>, Error> {
        Ok(Box::new(Borrowed(self)))
    }

    fn put_tagged(&self, manifest: &Manifest, tag: &str) -> Result<(), Error> {
        self.tags.lock().expect("no panic").insert(tag.to_owned(), manifest.clone());
        Ok(())
    }
}

/// A tar with one file.
fn tar_of(seed: &str) -> Vec<u8> {
    let content = noise(seed, 50_000);
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_data(&mut header, format!("file-{seed}"), &content[..]).expect("appended");
    builder.into_inner().expect("finished")
}
