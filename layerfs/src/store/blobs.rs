//! Blobs: bytes named by their digest.
//!
//! Invariant: what has a blob's name has its digest; nothing is published that was not digested on the way.

use std::fs::{self, File};
use std::io::{self, Read, Write};

use oci_spec::image::{Descriptor, DigestAlgorithm, MediaType};

use super::error::{AtPath, Result, StoreError};
use super::files::{Draft, sync_directory_of};
use super::{Layer, Store};
use crate::digest::{DiffId, Digest, Digesting, digest_of};

/// A blob that is open for reading.
#[derive(Debug)]
pub struct BlobSource {
    /// Its bytes, at their start.
    pub file: File,
    /// How many there are.
    pub size_bytes: u64,
}

impl Store {
    /// Whether a blob is there. If it is, it stays as long as this session lives.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn has_blob(&self, digest: &Digest) -> Result<bool> {
        check_algorithm(digest)?;
        let path = self.blob_path(digest);
        self.lease.with([digest.digest()], || path.try_exists().at("looking for", &path))
    }

    /// Opens a blob.
    ///
    /// # Errors
    /// If it is not there or cannot be read.
    pub fn open_blob(&self, digest: &Digest) -> Result<BlobSource> {
        check_algorithm(digest)?;
        let path = self.blob_path(digest);
        let file = self.lease.with([digest.digest()], || match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(self.not_found(format!("blob {digest}"))),
            opened => opened.at("opening", &path),
        })?;
        let size_bytes = file.metadata().at("looking at", &path)?.len();
        Ok(BlobSource { file, size_bytes })
    }

    /// Reads a small blob, such as a manifest, and checks its digest.
    ///
    /// # Errors
    /// If it is not there, larger than `max_bytes` or damaged.
    pub fn read_blob(&self, digest: &Digest, max_bytes: u64) -> Result<Vec<u8>> {
        let BlobSource { file, size_bytes } = self.open_blob(digest)?;
        let what = format!("blob {digest}");
        if size_bytes > max_bytes {
            return Err(StoreError::BlobTooLarge { what, size_bytes, limit_bytes: max_bytes });
        }
        let mut bytes = Vec::new();
        file.take(max_bytes).read_to_end(&mut bytes).at("reading", &self.blob_path(digest))?;
        check_digest(what, digest.as_ref(), digest_of(&bytes).as_ref())?;
        Ok(bytes)
    }

    /// Stores a blob that comes as a stream, if its digest and size are those of the descriptor. If it
    /// is there already, nothing is read.
    ///
    /// # Errors
    /// Another digest or size, or what reading and writing give; nothing is stored then.
    pub fn put_blob(&self, source: impl Read, descriptor: &Descriptor) -> Result<()> {
        let digest = descriptor.digest();
        if self.has_blob(digest)? {
            return Ok(());
        }
        let mut draft = Draft::new(self.lease.directory())?;
        let mut received = Received::new(source, descriptor);
        received.copy_to(&mut draft)?;
        received.check(descriptor)?;
        draft.sync()?;
        self.publish_blob(draft, digest)
    }

    /// Stores bytes at hand as a blob, and returns its descriptor.
    ///
    /// # Errors
    /// What writing gives.
    pub fn put_blob_bytes(&self, media_type: MediaType, bytes: &[u8]) -> Result<Descriptor> {
        let digest = digest_of(bytes);
        if !self.has_blob(&digest)? {
            let mut draft = Draft::new(self.lease.directory())?;
            draft.write_all(bytes).at("writing", draft.path())?;
            draft.sync()?;
            self.publish_blob(draft, &digest)?;
        }
        Ok(Descriptor::new(media_type, bytes.len() as u64, digest))
    }

    pub(super) fn publish_blob(&self, draft: Draft, digest: &Digest) -> Result<()> {
        let path = self.blob_path(digest);
        self.lease.with([digest.digest()], || draft.publish(&path))?;
        sync_directory_of(&path)
    }

    /// The layer that a blob carries, if it was read or made here and all of it is there.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn layer_of_blob(&self, digest: &Digest) -> Result<Option<Layer>> {
        check_algorithm(digest)?;
        let path = self.root.join("layers").join(format!("{}.diff", digest.digest()));
        let Some(diff_id) = read_text(&path)?.and_then(|text| text.parse::<DiffId>().ok()) else { return Ok(None) };
        let (blob, tar) = (self.blob_path(digest), self.layer_path(&diff_id, "tar"));
        let is_there = self.lease.with([digest.digest(), &diff_id.hex()], || {
            Ok(blob.try_exists().at("looking for", &blob)? && tar.try_exists().at("looking for", &tar)?)
        })?;
        if !is_there {
            return Ok(None);
        }
        let size = fs::metadata(&blob).at("looking at", &blob)?.len();
        // The media type is not the blob's own but that of who names it: this is the usual one.
        let start = File::open(&blob).and_then(|file| read_start(&file)).at("reading", &blob)?;
        let media_type = layer_media_type(crate::compression::Compression::detect(&start));
        Ok(Some(Layer { diff_id, descriptor: Descriptor::new(media_type, size, digest.clone()) }))
    }

    /// A blob that carries a layer: the one that was read or written last.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn blob_of_layer(&self, diff_id: &DiffId) -> Result<Option<Layer>> {
        let path = self.layer_path(diff_id, "blob");
        match read_text(&path)?.and_then(|text| text.parse::<Digest>().ok()) {
            Some(digest) => Ok(self.layer_of_blob(&digest)?.filter(|layer| layer.diff_id == *diff_id)),
            None => Ok(None),
        }
    }

    /// Opens the uncompressed tar of a layer.
    ///
    /// # Errors
    /// If it is not there or cannot be read.
    pub fn open_layer(&self, diff_id: &DiffId) -> Result<File> {
        let path = self.layer_path(diff_id, "tar");
        self.lease.with([diff_id.hex().as_str()], || match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(self.not_found(format!("layer {diff_id}"))),
            opened => opened.at("opening", &path),
        })
    }

    pub(super) fn not_found(&self, what: String) -> StoreError {
        StoreError::NotFound { what, path: self.root.to_path_buf() }
    }
}

/// The media type that a manifest gives a layer of ours.
pub(super) fn layer_media_type(compression: crate::compression::Compression) -> MediaType {
    match compression {
        crate::compression::Compression::None => MediaType::ImageLayer,
        crate::compression::Compression::Gzip => MediaType::ImageLayerGzip,
        crate::compression::Compression::Zstd => MediaType::ImageLayerZstd,
    }
}

fn read_start(mut file: &File) -> io::Result<Vec<u8>> {
    let mut start = vec![0; 4];
    let count = file.read(&mut start)?;
    start.truncate(count);
    Ok(start)
}

pub(super) fn read_text(path: &std::path::Path) -> Result<Option<String>> {
    Ok(super::files::read_if_present(path)?.and_then(|bytes| String::from_utf8(bytes).ok()))
}

/// A blob on its way in: digested, counted, and cut off where it is longer than announced.
pub(super) struct Received<R> {
    source: Digesting<R>,
    what: String,
    expected_bytes: u64,
}

impl<R: Read> Received<R> {
    pub(super) fn new(source: R, descriptor: &Descriptor) -> Self {
        let what = format!("blob {}", descriptor.digest());
        Self { source: Digesting::new(source), what, expected_bytes: descriptor.size() }
    }

    /// Copies all of it into a draft.
    fn copy_to(&mut self, draft: &mut Draft) -> Result<()> {
        let mut buffer = vec![0; 128 * 1024];
        loop {
            let count = match self.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(self.receive_error(source)),
            };
            draft.write_all(&buffer[..count]).at("writing", draft.path())?;
        }
    }

    /// What reading failed with, or that there is too much of it.
    pub(super) fn receive_error(&self, source: io::Error) -> StoreError {
        if self.is_too_long() { self.size_mismatch() } else { StoreError::Receive { what: self.what.clone(), source } }
    }

    fn is_too_long(&self) -> bool {
        self.source.size_bytes() > self.expected_bytes
    }

    fn size_mismatch(&self) -> StoreError {
        let (expected_bytes, found_bytes) = (self.expected_bytes, self.source.size_bytes());
        StoreError::SizeMismatch { what: self.what.clone(), expected_bytes, found_bytes }
    }

    /// Compares what came with what was announced.
    pub(super) fn check(self, descriptor: &Descriptor) -> Result<()> {
        if self.source.size_bytes() != self.expected_bytes {
            return Err(self.size_mismatch());
        }
        let found = self.source.into_parts().1.digest();
        check_digest(self.what, descriptor.digest().as_ref(), found.as_ref())
    }
}

impl<R: Read> Read for Received<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        if self.is_too_long() { Err(io::Error::other("more bytes came than were announced")) } else { Ok(count) }
    }
}

pub(super) fn check_digest(what: String, expected: &str, found: &str) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(StoreError::DigestMismatch { what, expected: expected.to_owned(), found: found.to_owned() })
}

pub(super) fn check_algorithm(digest: &Digest) -> Result<()> {
    match digest.algorithm() {
        DigestAlgorithm::Sha256 => Ok(()),
        _ => Err(StoreError::Algorithm { digest: digest.clone() }),
    }
}
