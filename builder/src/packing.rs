//! Layers become blobs, and blobs go to registries, while later steps run.
//!
//! Invariant: what happens here ahead of time changes no result: whoever needs a blob asks for it and gets the error,
//! if there is one; a transfer that failed is done again by the push, which moves the manifest last.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use layerfs::{DiffId, Layer, Packing, PackingWatch, Store, StoreError};
use oci_spec::image::{Descriptor, Digest};
use registry_client::{BlobMaker, Destination, Error, GrowingBlob, Origin, Progress, RegistryDestination, copy_blob};

use crate::error::BuildError;
use crate::flights::Flights;
use crate::place::StorePlace;
use crate::schedule::{Schedule, Stop};

/// Blobs of a build.
pub(crate) struct Packer<'a> {
    store: &'a Store,
    packing: Packing,
    threads: usize,
    stop: Stop,
    blobs: Flights<DiffId, Layer>,
    /// `None` once nothing more is done ahead.
    ahead: Mutex<Option<Ahead>>,
}

/// Where orders go.
struct Ahead {
    orders: Sender<Order>,
    uploads: Sender<Upload>,
}

/// What is ordered of a [`Packer`], for the threads that do it.
pub(crate) struct Ordered {
    pub(crate) orders: Receiver<Order>,
    pub(crate) uploads: Receiver<Upload>,
}

/// Something to do ahead of time.
pub(crate) enum Order {
    /// A layer of the result will need a blob; it may be one that this build made.
    Pack(DiffId, Age),
    /// A blob of the result, which came from there, will have to be at the registries.
    Upload(Box<Descriptor>, Option<Origin>),
}

/// When a layer was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Age {
    /// By this build.
    New,
    /// Before.
    Old,
}

/// A blob that can be uploaded.
pub(crate) enum Upload {
    /// It is there, and there may be a repository where a registry has it already.
    Whole(Box<Descriptor>, Option<Origin>),
    /// It is being compressed: until its digest is known, no registry can be asked whether it has it.
    Growing(Arc<GrowingBlob>),
}

/// A smaller layer is compressed before a registry has answered the first request of a stream.
const STREAMED_FROM_BYTES: u64 = 4 << 20;

impl<'a> Packer<'a> {
    /// Blobs in a store, compressed by up to `threads` threads until the build stops; and what comes of
    /// [`Packer::order`].
    pub(crate) fn new(store: &'a Store, packing: Packing, threads: usize, stop: Stop) -> (Self, Ordered) {
        let ((orders, ordered), (uploads, uploading)) = (channel(), channel());
        let ahead = Mutex::new(Some(Ahead { orders, uploads }));
        let packer = Self { store, packing, threads, stop, blobs: Flights::new(), ahead };
        (packer, Ordered { orders: ordered, uploads: uploading })
    }

    /// The layer with its blob. What is compressed for it can be uploaded meanwhile.
    pub(crate) fn pack(&self, diff_id: DiffId) -> Result<Layer, StoreError> {
        self.blobs.once(&diff_id, || {
            let watch = Watch { packer: self, diff_id, maker: OnceLock::new() };
            let layer = self.store.pack_layer_watched(&diff_id, self.packing, self.threads, &watch)?;
            if let Some(maker) = watch.maker.get() {
                maker.finish(&layer.descriptor);
            }
            Ok(layer)
        })
    }

    /// Has something done in the background, soon.
    pub(crate) fn order(&self, order: Order) {
        if let Some(ahead) = &*self.ahead() {
            _ = ahead.orders.send(order); // nobody listens any more: it is done when it is needed
        }
    }

    /// Takes no more orders once the result is dropped.
    pub(crate) fn closing(&self) -> Closing<'_, 'a> {
        Closing(self)
    }

    /// Packs what was ordered, until there are no more, and passes on what can be uploaded. What lies at a registry
    /// already is not, before the first new layer: a build without changes asks its registry one question only.
    pub(crate) fn work(&self, orders: Receiver<Order>) {
        let (mut waiting, mut is_new) = (Vec::new(), false);
        for order in orders {
            if self.stop.is_set() {
                return;
            }
            is_new |= matches!(order, Order::Pack(_, Age::New));
            match order {
                Order::Upload(blob, origin) => waiting.push(Upload::Whole(blob, origin)),
                Order::Pack(diff_id, _) => {
                    // The network need not wait for the compression of what comes after them.
                    self.upload_soon(is_new, &mut waiting);
                    // Whoever needs it tries again and tells of a failure.
                    waiting
                        .extend(self.pack(diff_id).ok().map(|layer| Upload::Whole(Box::new(layer.descriptor), None)));
                }
            }
            self.upload_soon(is_new, &mut waiting);
        }
    }

    fn upload_soon(&self, is_new: bool, waiting: &mut Vec<Upload>) {
        if let Some(ahead) = self.ahead().as_ref().filter(|_| is_new) {
            // Without registries nobody waits for them.
            waiting.drain(..).for_each(|upload| _ = ahead.uploads.send(upload));
        }
    }

    /// Uploads blobs one after the other, until the build ends: the push does what is left.
    pub(crate) fn upload(
        &self,
        uploads: Receiver<Upload>,
        to: &[RegistryDestination],
        progress: &dyn Progress,
        schedule: &Schedule,
    ) {
        let mut streamed = HashSet::new();
        for upload in uploads {
            let uploaded = match upload {
                Upload::Whole(blob, origin) => self.upload_whole(&blob, origin, to, progress, &streamed),
                Upload::Growing(blob) => self.upload_growing(&blob, to, progress, schedule, &mut streamed),
            };
            if let Err(error) = uploaded {
                tracing::debug!("cannot upload ahead of the push: {error}");
                return;
            }
        }
    }

    fn upload_whole(
        &self,
        blob: &Descriptor,
        origin: Option<Origin>,
        to: &[RegistryDestination],
        progress: &dyn Progress,
        streamed: &HashSet<Digest>,
    ) -> Result<(), Error> {
        let source = StorePlace::existing(self.store, blob.digest().as_ref(), blob.clone()).that_came_from(origin);
        let source = source.until(self.stop.clone());
        // What was streamed, the first registry has.
        let to = to.iter().skip(usize::from(streamed.contains(blob.digest())));
        for registry in to.take_while(|_| self.ahead().is_some()) {
            copy_blob(&source, registry, blob, progress)?;
        }
        Ok(())
    }

    /// To the first registry: the others get the blob when it is whole.
    fn upload_growing(
        &self,
        blob: &Arc<GrowingBlob>,
        to: &[RegistryDestination],
        progress: &dyn Progress,
        schedule: &Schedule,
        streamed: &mut HashSet<Digest>,
    ) -> Result<(), Error> {
        let Some(registry) = to.first().filter(|_| blob.is_growing()) else { return Ok(()) };
        let stopped = Arc::clone(blob);
        let _watched = schedule.watch(move || stopped.abandon());
        streamed.extend(registry.put_growing_blob(blob, progress)?.map(|(blob, _)| blob.digest().clone()));
        Ok(())
    }

    fn ahead(&self) -> MutexGuard<'_, Option<Ahead>> {
        // Whole between any two statements.
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Has a blob uploaded while it is compressed.
struct Watch<'p, 'a> {
    packer: &'p Packer<'a>,
    diff_id: DiffId,
    maker: OnceLock<BlobMaker>,
}

impl PackingWatch for Watch<'_, '_> {
    fn began(&self, blob: File, tar_bytes: u64) {
        if let Some(ahead) = self.packer.ahead().as_ref().filter(|_| tar_bytes >= STREAMED_FROM_BYTES) {
            let recipe = format!("{} {}", self.diff_id, self.packer.packing.format());
            let maker = self.maker.get_or_init(|| BlobMaker::new(blob, &recipe));
            _ = ahead.uploads.send(Upload::Growing(Arc::clone(maker.blob()))); // nobody listens any more: it is pushed
        }
    }

    fn grew(&self, blob_bytes: u64) -> io::Result<()> {
        if self.packer.stop.is_set() {
            return Err(io::Error::other(BuildError::Stopped.to_string()));
        }
        if let Some(maker) = self.maker.get() {
            maker.grew(blob_bytes);
        }
        Ok(())
    }
}

/// Ends the work ahead of time when it is dropped, also by a panic.
pub(crate) struct Closing<'p, 'a>(&'p Packer<'a>);

impl Drop for Closing<'_, '_> {
    fn drop(&mut self) {
        *self.0.ahead() = None;
    }
}
