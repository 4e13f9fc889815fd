//! A new layer: entries go in, and tar, diff id, compressed blob and its digest come out of one pass.
//!
//! Invariant: the same entries give the same layer, bit for bit. The index is made from the tar as it
//! was written, by the same code that reads layers of others, so that both agree.

use std::io::{self, BufWriter, Write};

use oci_spec::image::Descriptor;

use super::blobs::layer_media_type;
use super::error::{AtPath, Result, StoreError};
use super::files::Draft;
use super::ingest::{LayerDraft, finish_index};
use super::{Layer, Store};
use crate::compression::{Compression, Encoder};
use crate::digest::{Digester, Digesting};
use crate::index::index_tar;
use crate::tar::{TarError, TarReader, TarWriter};

/// Headers are small: they are gathered before they are digested, stored and compressed.
const GATHER_BYTES: usize = 256 * 1024;

/// Where the tar of a new layer goes.
pub struct LayerSink(BufWriter<Split>);

/// Writes a tar to its file and to the compressed blob.
struct Split {
    digester: Digester,
    tar: Draft,
    /// `None` where the blob is the tar itself.
    blob: Option<Encoder<Digesting<Draft>>>,
    size_bytes: u64,
}

impl Store {
    /// Makes a layer of what `write` appends, compressed with up to `threads` threads, whose number does
    /// not show in the result.
    ///
    /// # Errors
    /// What `write` returns, or what writing gives; nothing is stored then.
    pub fn create_layer<E: From<StoreError>>(
        &self,
        compression: Compression,
        threads: usize,
        write: impl FnOnce(&mut TarWriter<LayerSink>) -> Result<(), E>,
    ) -> Result<Layer, E> {
        let mut writer = TarWriter::new(self.layer_sink(compression, threads)?);
        write(&mut writer)?;
        let sink = writer.finish().map_err(StoreError::from)?;
        Ok(self.publish_layer(self.draft_layer(sink, compression)?)?)
    }

    fn layer_sink(&self, compression: Compression, threads: usize) -> Result<LayerSink> {
        let tar = Draft::new(self.lease.directory())?;
        let blob = match compression {
            Compression::None => None,
            _ => {
                let draft = Digesting::new(Draft::new(self.lease.directory())?);
                Some(Encoder::new(draft, compression, threads).at("starting to compress to", tar.path())?)
            }
        };
        let split = Split { digester: Digester::new(), tar, blob, size_bytes: 0 };
        Ok(LayerSink(BufWriter::with_capacity(GATHER_BYTES, split)))
    }

    fn draft_layer(&self, sink: LayerSink, compression: Compression) -> Result<LayerDraft> {
        let split = sink.0.into_inner().map_err(io::IntoInnerError::into_error);
        let Split { digester, tar, blob, size_bytes } = split.at("writing a layer in", self.lease.directory())?;
        let diff_id = digester.diff_id();
        let (blob, digest, size_bytes) = match blob {
            None => (None, diff_id.into(), size_bytes),
            Some(encoder) => {
                let packed = encoder.finish().at("compressing a layer in", self.lease.directory())?;
                let size_bytes = packed.size_bytes();
                let (draft, digester) = packed.into_parts();
                (Some(draft), digester.digest(), size_bytes)
            }
        };
        let mut reader = TarReader::of_file(tar.reopen()?);
        let builder = index_tar(&mut reader).map_err(StoreError::from)?;
        let index = finish_index("the new layer", builder, diff_id)?;
        tar.sync()?;
        if let Some(blob) = &blob {
            blob.sync()?;
        }
        let descriptor = Descriptor::new(layer_media_type(compression), size_bytes, digest);
        Ok(LayerDraft { layer: Layer { diff_id, descriptor }, blob, tar, index })
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
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Write for Split {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.tar.write_all(bytes)?;
        self.digester.update(bytes);
        self.size_bytes += bytes.len() as u64;
        if let Some(blob) = &mut self.blob {
            blob.write_all(bytes)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
