//! Layers become blobs, and blobs go to registries, while later steps run.
//!
//! Invariant: what happens here ahead of time changes no result: whoever needs a blob asks for it and gets the error,
//! if there is one; a transfer that failed is done again by the push, which moves the manifest last.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};

use layerfs::{DiffId, Layer, Packing, Store, StoreError};
use oci_spec::image::Descriptor;
use registry_client::{Origin, Progress, RegistryDestination, copy_blob};

use crate::flights::Flights;
use crate::place::StorePlace;
use crate::schedule::{Schedule, Stop};

/// Blobs of a build.
pub(crate) struct Packer<'a> {
    store: &'a Store,
    packing: Packing,
    threads: usize,
    blobs: Flights<DiffId, Layer>,
    /// `None` once nothing more is done ahead.
    orders: Mutex<Option<Sender<Order>>>,
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

/// A blob that can be uploaded, and the repository where a registry may have it already.
pub(crate) type Finished = (Descriptor, Option<Origin>);

impl<'a> Packer<'a> {
    /// Blobs in a store, compressed by up to `threads` threads; and what comes of [`Packer::order`].
    pub(crate) fn new(store: &'a Store, packing: Packing, threads: usize) -> (Self, Receiver<Order>) {
        let (orders, incoming) = channel();
        (Self { store, packing, threads, blobs: Flights::new(), orders: Mutex::new(Some(orders)) }, incoming)
    }

    /// The layer with its blob.
    pub(crate) fn pack(&self, diff_id: DiffId) -> Result<Layer, StoreError> {
        self.blobs.once(&diff_id, || self.store.pack_layer(&diff_id, self.packing, self.threads))
    }

    /// Has something done in the background, soon.
    pub(crate) fn order(&self, order: Order) {
        if let Some(orders) = &*self.orders.lock().unwrap_or_else(PoisonError::into_inner) {
            _ = orders.send(order); // nobody listens any more: it is done when it is needed
        }
    }

    /// Takes no more orders once the result is dropped.
    pub(crate) fn closing(&self) -> Closing<'_, 'a> {
        Closing(self)
    }

    /// Packs what was ordered, until there are no more, and passes on what can be uploaded. Before the first new layer
    /// nothing is: a build without changes asks its registry one question only.
    pub(crate) fn work(&self, orders: Receiver<Order>, schedule: &Schedule, finished: Sender<Finished>) {
        let (mut waiting, mut is_new) = (Vec::new(), false);
        for order in orders {
            is_new |= matches!(order, Order::Pack(_, Age::New));
            let blob = match order {
                _ if schedule.is_stopped() => return,
                Order::Upload(blob, origin) => (*blob, origin),
                Order::Pack(diff_id, _) => match self.pack(diff_id) {
                    Ok(layer) => (layer.descriptor, None),
                    // Whoever needs it tries again and tells.
                    Err(_) => continue,
                },
            };
            waiting.push(blob);
            if is_new {
                // Without registries nobody waits for them.
                waiting.drain(..).for_each(|blob| _ = finished.send(blob));
            }
        }
    }

    /// Uploads blobs as they are finished, one after the other, until the build ends: the push does what is left.
    pub(crate) fn upload(
        &self,
        finished: Receiver<Finished>,
        to: &[RegistryDestination],
        progress: &dyn Progress,
        stop: &Stop,
    ) {
        let is_open = || self.orders.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        for (blob, origin) in finished {
            let source = StorePlace::existing(self.store, blob.digest().as_ref(), blob.clone()).that_came_from(origin);
            let source = source.until(stop.clone());
            for registry in to.iter().take_while(|_| is_open()) {
                if let Err(error) = copy_blob(&source, registry, &blob, progress) {
                    tracing::debug!("cannot upload {} ahead of the push: {error}", blob.digest());
                    return;
                }
            }
        }
    }
}

/// Ends the work ahead of time when it is dropped, also by a panic.
pub(crate) struct Closing<'p, 'a>(&'p Packer<'a>);

impl Drop for Closing<'_, '_> {
    fn drop(&mut self) {
        *self.0.orders.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
