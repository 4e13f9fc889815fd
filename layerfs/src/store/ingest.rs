//! A layer blob comes in: one pass over its bytes, and nothing is unpacked.
//!
//! Invariant: nothing is published unless the blob's digest and size, the diff id and every entry of
//! the tar are right. Two threads share the work: one receives, digests, stores and inflates, the
//! other digests and stores what comes out, and indexes it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use oci_spec::image::Descriptor;

use super::blobs::{Received, check_digest};
use super::error::{AtPath, Result, StoreError};
use super::files::{Draft, sync_directory_of};
use super::{Layer, Store};
use crate::compression::{Compression, Decoder};
use crate::digest::{DiffId, Digester};
use crate::index::{IndexBytes, IndexError, LayerBuilder, index_tar};
use crate::tar::TarReader;

/// What passes between the threads at a time; large against the cost of passing it, small against caches.
const CHUNK_BYTES: usize = 256 * 1024;
/// Chunks on their way: enough that neither thread waits for the other's odd slow one.
const CHUNKS: usize = 8;

/// A layer whose files are written and synced, but not yet published.
pub(super) struct LayerDraft {
    pub(super) layer: Layer,
    /// `None` where the blob is the tar itself, or is in the store already.
    pub(super) blob: Option<Draft>,
    pub(super) tar: Draft,
    pub(super) index: IndexBytes,
}

impl Store {
    /// Stores a layer that comes as the stream of its blob: blob, tar and index. If all of it is there
    /// already, nothing is read.
    ///
    /// # Errors
    /// A wrong digest, size or diff id, a blob that is no layer, what reading and writing give; nothing
    /// is stored then.
    pub fn ingest_layer(&self, source: impl Read, descriptor: &Descriptor, expected: Option<&DiffId>) -> Result<Layer> {
        super::blobs::check_algorithm(descriptor.digest())?;
        if let Some(layer) = self.layer_of_blob(descriptor.digest())? {
            check_diff_id(descriptor, expected, &layer.diff_id)?;
            return Ok(Layer { diff_id: layer.diff_id, descriptor: descriptor.clone() });
        }
        let blob = Draft::written_early(self.lease.directory())?;
        let draft = self.receive_layer(source, Some(blob), descriptor, expected)?;
        self.publish_layer(draft)
    }

    /// Makes the layer of a blob that is in the store, without copying the blob.
    ///
    /// # Errors
    /// As [`Store::ingest_layer`].
    pub fn ingest_stored_layer(&self, descriptor: &Descriptor, expected: Option<&DiffId>) -> Result<Layer> {
        if let Some(layer) = self.layer_of_blob(descriptor.digest())? {
            check_diff_id(descriptor, expected, &layer.diff_id)?;
            return Ok(Layer { diff_id: layer.diff_id, descriptor: descriptor.clone() });
        }
        let blob = self.open_blob(descriptor.digest())?;
        let draft = self.receive_layer(blob.file, None, descriptor, expected)?;
        self.publish_layer(draft)
    }

    fn receive_layer(
        &self,
        source: impl Read,
        mut blob: Option<Draft>,
        descriptor: &Descriptor,
        expected: Option<&DiffId>,
    ) -> Result<LayerDraft> {
        let what = format!("blob {}", descriptor.digest());
        let tar = Draft::written_early(self.lease.directory())?;
        let (chunks, incoming) = sync_channel(CHUNKS);
        let (used, empty) = channel();
        let (decoded, indexed) = std::thread::scope(|scope| {
            let what = &what;
            let indexing = scope.spawn(move || index_chunks(what, tar, incoming, used));
            let outlet =
                Outlet { chunks, empty, what, left_bytes: self.layer_max_bytes, limit_bytes: self.layer_max_bytes };
            let decoded = decode(source, blob.as_mut(), descriptor, outlet);
            (decoded, indexing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        let compression = match (decoded, indexed.as_ref()) {
            (Ok(Some(compression)), Ok(_)) => compression,
            // The other thread has stopped, or both are done: its error is the cause.
            (Ok(_), _) => {
                indexed?;
                return Err(StoreError::Receive { what, source: io::ErrorKind::Interrupted.into() });
            }
            (Err(error), _) => return Err(error),
        };
        let (tar, diff_id, builder) = indexed?;
        check_diff_id(descriptor, expected, &diff_id)?;
        let index = finish_index(&what, builder, diff_id)?;
        tar.sync()?;
        let blob = if compression == Compression::None { None } else { blob };
        if let Some(blob) = &blob {
            blob.sync()?;
        }
        Ok(LayerDraft { layer: Layer { diff_id, descriptor: descriptor.clone() }, blob, tar, index })
    }

    /// Gives the files of a layer their names: the index first, what says that all is there last.
    pub(super) fn publish_layer(&self, draft: LayerDraft) -> Result<Layer> {
        let LayerDraft { layer, blob, tar, index } = draft;
        let digest = layer.descriptor.digest();
        let blob_path = self.blob_path(digest);
        let diff_path = self.root.join("layers").join(format!("{}.diff", digest.digest()));
        self.lease.with([digest.digest(), &layer.diff_id.hex()], || {
            let directory = self.lease.directory();
            Draft::publish_derived(directory, index.pieces(), &self.layer_path(&layer.diff_id, "idx"))?;
            match blob {
                Some(blob) => blob.publish(&blob_path)?,
                None => tar.publish_also(&blob_path)?,
            }
            sync_directory_of(&blob_path)?;
            tar.publish(&self.layer_path(&layer.diff_id, "tar"))?;
            Draft::publish_derived(directory, [layer.diff_id.to_string().as_bytes()], &diff_path)?;
            let blob_of_layer = self.layer_path(&layer.diff_id, "blob");
            Draft::publish_derived(directory, [digest.to_string().as_bytes()], &blob_of_layer)?;
            sync_directory_of(&blob_of_layer)
        })?;
        Ok(layer)
    }
}

/// The index file of a layer whose entries are read.
pub(super) fn finish_index(what: &str, builder: LayerBuilder, diff_id: DiffId) -> Result<IndexBytes> {
    let bytes = builder.finish(diff_id);
    bytes.map_err(|error| StoreError::Index { what: what.to_owned(), source: IndexError::TooLarge(error) })
}

fn check_diff_id(descriptor: &Descriptor, expected: Option<&DiffId>, found: &DiffId) -> Result<()> {
    let Some(expected) = expected else { return Ok(()) };
    let what = format!("the uncompressed layer of blob {}", descriptor.digest());
    check_digest(what, &expected.to_string(), &found.to_string())
}

/// Where decoded bytes go.
struct Outlet<'a> {
    chunks: SyncSender<Vec<u8>>,
    empty: Receiver<Vec<u8>>,
    what: &'a str,
    left_bytes: u64,
    limit_bytes: u64,
}

/// Writes what passes through it to the blob's draft, too.
struct Tee<'a, R> {
    received: &'a mut Received<R>,
    blob: Option<&'a mut Draft>,
    /// An error of the draft: it is not one of the source.
    write_error: &'a mut Option<io::Error>,
}

impl<R: Read> Read for Tee<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.received.read(buffer)?;
        if let Some(blob) = &mut self.blob
            && let Err(error) = blob.write_all(&buffer[..count])
        {
            let kind = error.kind();
            *self.write_error = Some(error);
            return Err(kind.into());
        }
        Ok(count)
    }
}

/// Receives and inflates a blob, and checks it; `None` if nobody wants what comes out.
fn decode(
    source: impl Read,
    blob: Option<&mut Draft>,
    descriptor: &Descriptor,
    outlet: Outlet<'_>,
) -> Result<Option<Compression>> {
    let mut received = Received::new(source, descriptor);
    let mut write_error = None;
    let blob_path = blob.as_ref().map(|blob| blob.path().to_owned()).unwrap_or_default();
    let decoded = {
        let tee = Tee { received: &mut received, blob, write_error: &mut write_error };
        decode_into(BufReader::with_capacity(CHUNK_BYTES, tee), outlet)
    };
    if let Some(error) = write_error {
        return Err(error).at("writing", &blob_path);
    }
    let compression = match decoded {
        Ok(Some(compression)) => compression,
        Ok(None) => return check_rest(received, descriptor).map(|()| None),
        // Bytes beyond the announced size are the better news.
        Err(Decoded::Source(error)) => return Err(received.receive_error(error)),
        Err(Decoded::Refused(error @ StoreError::Decompress { .. })) => {
            check_rest(received, descriptor)?;
            return Err(error);
        }
        Err(Decoded::Refused(error)) => return Err(error),
    };
    received.check(descriptor)?;
    Ok(Some(compression))
}

/// A blob that makes no sense was mostly damaged on its way, and then that is the error to tell: it may come as it is
/// another time.
fn check_rest(mut received: Received<impl Read>, descriptor: &Descriptor) -> Result<()> {
    if let Err(error) = io::copy(&mut received, &mut io::sink()) {
        return Err(received.receive_error(error));
    }
    received.check(descriptor)
}

/// Why decoding stopped.
enum Decoded {
    Source(io::Error),
    Refused(StoreError),
}

fn decode_into<R: Read>(source: BufReader<Tee<'_, R>>, mut outlet: Outlet<'_>) -> Result<Option<Compression>, Decoded> {
    let mut decoder = Decoder::new(source).map_err(Decoded::Source)?;
    let compression = decoder.compression();
    loop {
        let mut chunk = outlet.empty.try_recv().unwrap_or_default();
        chunk.resize(CHUNK_BYTES, 0);
        let count = fill(&mut decoder, &mut chunk).map_err(|error| outlet.decode_error(compression, error))?;
        chunk.truncate(count);
        outlet.left_bytes = outlet.left_bytes.checked_sub(count as u64).ok_or_else(|| {
            Decoded::Refused(StoreError::LayerTooLarge {
                what: outlet.what.to_owned(),
                limit_bytes: outlet.limit_bytes,
            })
        })?;
        if count == 0 {
            break;
        }
        if outlet.chunks.send(chunk).is_err() {
            return Ok(None);
        }
    }
    // What follows the compressed data belongs to the blob all the same.
    io::copy(&mut decoder.into_inner(), &mut io::sink()).map_err(Decoded::Source)?;
    Ok(Some(compression))
}

impl Outlet<'_> {
    fn decode_error(&self, compression: Compression, source: io::Error) -> Decoded {
        // Decoders call what they cannot make sense of by these names; the rest comes from the source.
        use io::ErrorKind::{InvalidData, InvalidInput, Other, UnexpectedEof};
        let is_of_decoder = matches!(source.kind(), InvalidData | InvalidInput | UnexpectedEof | Other);
        if compression != Compression::None && is_of_decoder {
            return Decoded::Refused(StoreError::Decompress { what: self.what.to_owned(), source });
        }
        Decoded::Source(source)
    }
}

fn fill(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// The tar as it comes from the other thread: digested and stored chunk by chunk.
struct Chunks {
    incoming: Receiver<Vec<u8>>,
    used: Sender<Vec<u8>>,
    chunk: Vec<u8>,
    position: usize,
    digester: Digester,
    tar: Draft,
    /// An error of the draft: it is not one of the layer.
    write_error: Option<io::Error>,
}

impl BufRead for Chunks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.position == self.chunk.len()
            && let Ok(next) = self.incoming.recv()
        {
            self.digester.update(&next);
            if let Err(error) = self.tar.write_all(&next) {
                let kind = error.kind();
                self.write_error = Some(error);
                return Err(kind.into());
            }
            let _ = self.used.send(std::mem::replace(&mut self.chunk, next)); // nobody needs it at the end
            self.position = 0;
        }
        Ok(&self.chunk[self.position..])
    }

    fn consume(&mut self, count: usize) {
        self.position += count;
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

fn index_chunks(
    what: &str,
    tar: Draft,
    incoming: Receiver<Vec<u8>>,
    used: Sender<Vec<u8>>,
) -> Result<(Draft, DiffId, LayerBuilder)> {
    let digester = Digester::new();
    let chunks = Chunks { incoming, used, chunk: Vec::new(), position: 0, digester, tar, write_error: None };
    let mut reader = TarReader::new(chunks);
    let indexed = index_tar(&mut reader);
    let mut chunks = reader.into_inner();
    // The diff id is that of all bytes, also of those behind the end of the tar.
    while indexed.is_ok() && chunks.write_error.is_none() {
        chunks.position = chunks.chunk.len();
        // What fails here is the writing, as above.
        if chunks.fill_buf().is_ok_and(<[u8]>::is_empty) {
            break;
        }
    }
    if let Some(error) = chunks.write_error {
        return Err(error).at("writing", chunks.tar.path());
    }
    let builder = indexed.map_err(|source| StoreError::Layer { what: what.to_owned(), source })?;
    Ok((chunks.tar, chunks.digester.diff_id(), builder))
}
