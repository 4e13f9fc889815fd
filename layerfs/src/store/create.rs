//! A new layer: entries go in, and its tar, diff id and index come out of one pass; blobs are made of the tar later.
//!
//! Invariant: the same entries give the same layer, and one layer with one compression the same blob, bit for bit: a
//! blob of somebody else's making is never taken for ours. The index is made from the tar as it was written, by the
//! same code that reads layers of others, so that both agree.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::image::Descriptor;

use super::blobs::{layer_media_type, read_text};
use super::error::{AtPath, Result, StoreError};
use super::files::{Draft, link, sync_directory_of};
use super::ingest::finish_index;
use super::{Layer, Store, packed};
use crate::compression::{Compression, Encoder, MadeBlock, Packing, version};
use crate::digest::{DiffId, Digest, Digesting};
use crate::index::index_tar;
use crate::tar::{TarError, TarReader, TarWriter};

/// Headers are small: they are gathered before they are digested and stored.
const GATHER_BYTES: usize = 256 * 1024;

/// Where the tar of a new layer goes.
pub struct LayerSink {
    tar: BufWriter<Digesting<Draft>>,
    /// Where it lies, for messages.
    directory: PathBuf,
}

/// Sees the blob of a layer while it is compressed ([`Store::pack_layer_watched`]).
pub trait PackingWatch {
    /// It begins: `blob` reads what is written, of a layer whose tar has so many bytes.
    fn began(&self, blob: File, tar_bytes: u64);

    /// The blob has so many bytes now.
    ///
    /// # Errors
    /// One ends the compression.
    fn grew(&self, blob_bytes: u64) -> io::Result<()>;
}

/// Nobody looks.
struct Unwatched;

impl PackingWatch for Unwatched {
    fn began(&self, _: File, _: u64) {}

    fn grew(&self, _: u64) -> io::Result<()> {
        Ok(())
    }
}

/// A blob that is written and watched.
struct Watched<'a> {
    packed: Digesting<Draft>,
    watch: &'a dyn PackingWatch,
}

impl Write for Watched<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.packed.write(bytes)?;
        self.watch.grew(self.packed.size_bytes())?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.packed.flush()
    }
}

impl Store {
    /// Makes a layer of what `write` appends: it can be mounted at once, and has no blob yet ([`Store::pack_layer`]).
    ///
    /// # Errors
    /// What `write` returns, or what writing gives; nothing is stored then.
    pub fn create_layer<E: From<StoreError>>(
        &self,
        write: impl FnOnce(&mut TarWriter<LayerSink>) -> Result<(), E>,
    ) -> Result<DiffId, E> {
        let directory = self.lease.directory().to_owned();
        let tar = BufWriter::with_capacity(GATHER_BYTES, Digesting::new(Draft::new(&directory)?));
        let mut writer = TarWriter::new(LayerSink { tar, directory }).limited(self.layer_max_bytes);
        write(&mut writer)?;
        let sink = writer.finish().map_err(StoreError::from)?;
        Ok(self.publish_tar(sink)?)
    }

    fn publish_tar(&self, sink: LayerSink) -> Result<DiffId> {
        let written = sink.tar.into_inner().map_err(io::IntoInnerError::into_error);
        let (tar, digester) = written.at("writing a layer in", self.lease.directory())?.into_parts();
        let diff_id = digester.diff_id();
        // Steps that change nothing all make the same layer.
        if self.has_layer(&diff_id)? {
            return Ok(diff_id);
        }
        let mut reader = TarReader::of_file(tar.reopen()?);
        let builder = index_tar(&mut reader).map_err(StoreError::from)?;
        let index = finish_index("the new layer", builder, diff_id)?;
        tar.sync()?;
        let path = self.layer_path(&diff_id, "tar");
        self.lease.with([diff_id.hex().as_str()], || {
            Draft::publish_derived(self.lease.directory(), index.pieces(), &self.layer_path(&diff_id, "idx"))?;
            tar.publish(&path)?;
            sync_directory_of(&path)
        })?;
        Ok(diff_id)
    }

    /// The blob of a layer that is here, compressed by us: the one that was made before, or a new one that up to
    /// `threads` threads make, whose number does not show in the result.
    ///
    /// # Errors
    /// If the layer is not here, or what reading and writing give.
    pub fn pack_layer(&self, diff_id: &DiffId, packing: impl Into<Packing>, threads: usize) -> Result<Layer> {
        self.pack_layer_watched(diff_id, packing, threads, &Unwatched)
    }

    /// The same, seen by `watch` while it is compressed; not at all where nothing has to be.
    ///
    /// # Errors
    /// As [`Store::pack_layer`], or what the watch says.
    pub fn pack_layer_watched(
        &self,
        diff_id: &DiffId,
        packing: impl Into<Packing>,
        threads: usize,
        watch: &dyn PackingWatch,
    ) -> Result<Layer> {
        let packing = packing.into();
        if let Some(layer) = self.packed_layer(diff_id, packing)? {
            return Ok(layer);
        }
        let directory = self.lease.directory();
        // A blob that is the tar itself has the tar's digest, and shares its bytes.
        let (draft, digest, blocks) = match packing.compression() {
            Compression::None => (None, (*diff_id).into(), Vec::new()),
            _ => {
                let (draft, digest, blocks) = self.compress_layer(diff_id, packing, threads, watch)?;
                (Some(draft), digest, blocks)
            }
        };
        let blob_path = self.blob_path(&digest);
        let diff_path = self.root.join("layers").join(format!("{}.diff", digest.digest()));
        let put = |text: String, path: &Path| Draft::publish_derived(directory, [text.as_bytes()], path);
        self.lease.with([digest.digest(), &diff_id.hex()], || {
            match draft {
                Some(draft) => draft.publish(&blob_path)?,
                None => link(&self.layer_path(diff_id, "tar"), &blob_path)?,
            }
            sync_directory_of(&blob_path)?;
            if !blocks.is_empty() {
                Draft::publish_derived(directory, [packed::encode(&blocks).as_slice()], &self.blocks_path(&digest))?;
            }
            put(diff_id.to_string(), &diff_path)?;
            put(digest.to_string(), &self.layer_path(diff_id, "blob"))?;
            put(digest.to_string(), &self.layer_path(diff_id, &extension(packing)))?;
            sync_directory_of(&diff_path)
        })?;
        self.packed_layer(diff_id, packing)?.ok_or_else(|| self.not_found(format!("blob {digest}")))
    }

    /// Takes a blob that came from elsewhere for the one that [`Store::pack_layer`] would make, because whoever gave it
    /// says so: packing it again would be the only proof.
    ///
    /// # Errors
    /// What writing gives.
    pub fn adopt_blob(&self, layer: &Layer, packing: Packing) -> Result<()> {
        let (digest, diff_id) = (layer.descriptor.digest(), &layer.diff_id);
        let link = self.layer_path(diff_id, &extension(packing));
        self.lease.with([digest.digest(), &diff_id.hex()], || {
            Draft::publish_derived(self.lease.directory(), [digest.to_string().as_bytes()], &link)
        })
    }

    fn compress_layer(
        &self,
        diff_id: &DiffId,
        packing: Packing,
        threads: usize,
        watch: &dyn PackingWatch,
    ) -> Result<(Draft, Digest, Vec<MadeBlock>)> {
        let directory = self.lease.directory();
        let tar = self.open_layer(diff_id)?;
        let draft = Draft::new(directory)?;
        let tar_bytes = tar.metadata().at("looking at a layer in", directory)?.len();
        watch.began(draft.reopen()?, tar_bytes);
        let packed = Watched { packed: Digesting::new(draft), watch };
        // zstd has no blocks that stand for themselves.
        let encoder = if packing.compression() == Compression::Gzip && tar_bytes >= packed::FROM_TAR_BYTES {
            Encoder::knowing(packed, packing, threads, Arc::new(self.packed_blocks()))
        } else {
            Encoder::new(packed, packing, threads)
        };
        let encoder = encoder.at("starting to compress in", directory)?;
        let (watched, blocks) = compress(tar, encoder).at("compressing a layer in", directory)?;
        let (draft, digester) = watched.packed.into_parts();
        draft.sync()?;
        Ok((draft, digester.digest(), blocks))
    }

    /// The blob of a layer that [`Store::pack_layer`] made, if it is still there.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn packed_layer(&self, diff_id: &DiffId, packing: impl Into<Packing>) -> Result<Option<Layer>> {
        let packing = packing.into();
        let text = read_text(&self.layer_path(diff_id, &extension(packing)))?;
        let Some(digest) = text.and_then(|text| text.parse::<Digest>().ok()) else { return Ok(None) };
        let found = self.layer_of_blob(&digest)?.filter(|layer| layer.diff_id == *diff_id);
        Ok(found.map(|layer| {
            let media_type = layer_media_type(packing.compression());
            Layer { descriptor: Descriptor::new(media_type, layer.descriptor.size(), digest), ..layer }
        }))
    }

    /// Whether the tar of a layer is here. If it is, it stays as long as this session lives.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn has_layer(&self, diff_id: &DiffId) -> Result<bool> {
        let path = self.layer_path(diff_id, "tar");
        self.lease.with([diff_id.hex().as_str()], || path.try_exists().at("looking for", &path))
    }
}

/// The extensions of the links that garbage collection keeps with their layers, and what these lead to; other levels it
/// keeps only where a manifest names them.
pub(super) fn kept_extensions() -> [String; 3] {
    [Compression::None, Compression::Gzip, Compression::Zstd].map(|compression| extension(compression.into()))
}

/// The extension of the link from a layer to the blob that we make of it: `gzip2` of the second format, `zstd1-19`.
fn extension(packing: Packing) -> String {
    let compression = packing.compression();
    let name = match compression {
        Compression::None => "plain".to_owned(),
        Compression::Gzip => format!("gzip{}", version(compression)),
        Compression::Zstd => format!("zstd{}", version(compression)),
    };
    if packing == compression.into() { name } else { format!("{name}-{}", packing.level()) }
}

fn compress<W: Write>(mut tar: impl Read, mut encoder: Encoder<W>) -> io::Result<(W, Vec<MadeBlock>)> {
    let mut buffer = vec![0; GATHER_BYTES];
    loop {
        match tar.read(&mut buffer) {
            Ok(0) => return encoder.finish_blocks(),
            Ok(count) => encoder.write_all(&buffer[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// For the closures that write new layers: `?` on what the writer gives is enough.
impl From<TarError> for StoreError {
    fn from(source: TarError) -> Self {
        Self::Layer { what: "the new layer".to_owned(), source }
    }
}

impl Write for LayerSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // The error of a full disk is of no use to anyone without the disk.
        let at_path = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", self.directory.display()));
        self.tar.write(bytes).map_err(at_path)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tar.flush()
    }
}
