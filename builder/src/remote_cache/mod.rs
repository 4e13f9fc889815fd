//! The build cache of other machines: at a registry, in a directory, or inside an image.
//!
//! Invariant: a step key is made of content, so it means the same on every machine. What a remote cache says is only
//! ever "this step gave this layer", and the layer is taken if its blob, size and diff id are those that it names; what
//! cannot be read or does not fit is a warning and a step carried out. A cache holds layers and keys, nothing of a
//! step's secrets.
//!
//! ```text
//! document.rs   the documents of a cache                           what is at the registry
//! import.rs     finding a step's layer in them                     before a step
//! export.rs     writing the steps of a build                       after the build
//! ```
//!
//! A cache is a manifest whose layers are the image's own blobs, so that a registry keeps and gets them once.

mod document;
mod export;
mod import;

use std::sync::{Mutex, OnceLock, PoisonError};

use layerfs::{DiffId, Layer, Store};
use registry_client::Client;

pub use self::export::export_cache;
use crate::built::StepResult;
use crate::error::BuildError;
use crate::events::Events;
use crate::image::ImageConfig;
use crate::request::BuildRequest;

/// The remote caches of one build, and what there is to tell them. May be used from several threads.
pub(crate) struct RemoteCaches<'a> {
    request: &'a BuildRequest,
    store: &'a Store,
    client: &'a Client,
    events: &'a dyn Events,
    /// Read when the first step is not in the store.
    imported: OnceLock<Vec<import::Imported>>,
    steps: Mutex<Vec<StepResult>>,
}

impl<'a> RemoteCaches<'a> {
    pub(crate) fn new(request: &'a BuildRequest, store: &'a Store, client: &'a Client, events: &'a dyn Events) -> Self {
        Self { request, store, client, events, imported: OnceLock::new(), steps: Mutex::default() }
    }

    /// The layer of a step that another machine carried out, brought into the store.
    pub(crate) fn find(&self, key: &str) -> Result<Option<DiffId>, BuildError> {
        let imported = self.imported.get_or_init(|| {
            let imports = self.request.cache.imports.iter();
            imports.flat_map(|place| import::read(place, &self.request.trust, self.client, self.events)).collect()
        });
        for cache in imported {
            if let Some(diff_id) = cache.fetch(key, self.store, self.events)? {
                return Ok(Some(diff_id));
            }
        }
        Ok(None)
    }

    /// Takes down what a step gave, carried out or found.
    pub(crate) fn note(&self, key: &str, diff_id: DiffId) {
        let step = StepResult { key: key.to_owned(), diff_id };
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).push(step);
    }

    /// What was noted so far.
    pub(crate) fn steps(&self) -> Vec<StepResult> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Removes what the base image says of caches from a configuration, and adds what this build does if it is asked
    /// for.
    pub(crate) fn describe(&self, config: &mut ImageConfig, layers: &[Layer]) {
        document::forget(config);
        if self.request.cache.is_inline {
            document::describe(config, layers, &self.steps(), self.request.packing);
        }
    }
}
