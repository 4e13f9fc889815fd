//! A remote cache as a build reads it: the documents first, a layer when its step comes up.
//!
//! Invariant: nothing here fails a build but the store: a cache that is not there, cannot be read or offers what it
//! does not have, or that the policy does not let in, is told once and then left alone.

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};

use layerfs::{DiffId, Layer, Store};
use registry_client::{
    Cause, Client, Error, Manifest, ManifestContent, OciLayout, Policy, RegistrySource, Source, copy_blob,
};

use super::document::{self, Offered, Offers};
use crate::cache;
use crate::error::BuildError;
use crate::events::Events;
use crate::media::compression;
use crate::place::{MOST_CONFIG_BYTES, StorePlace};
use crate::request::{CacheImport, CachePlace};

/// Images of an index that are looked into for inline caches; no build has more platforms.
const MOST_IMAGES: usize = 64;

/// One cache, or the inline cache of one image.
pub(super) struct Imported {
    source: Box<dyn Source>,
    offers: Offers,
    /// Set when something of it could not be had: the next step does not wait for it again.
    is_broken: AtomicBool,
}

/// Reads all caches of a place; what cannot be read is a warning.
pub(super) fn read(import: &CacheImport, trust: &Policy, client: &Client, events: &dyn Events) -> Vec<Imported> {
    let CacheImport(place) = import;
    let manifests = match manifests(place, trust, client) {
        Ok(manifests) => manifests,
        Err(error) => {
            events.warning(&format!("the cache {place} is not used: {error}"));
            return Vec::new();
        }
    };
    let mut imported = Vec::new();
    for manifest in manifests {
        match read_one(place, client, &manifest) {
            Ok((cache, 0)) => imported.push(cache),
            Ok((cache, left_out)) => {
                events.warning(&format!("the cache {place} has {left_out} steps that make no sense"));
                imported.push(cache);
            }
            Err(error) => events.warning(&format!("the cache {place} is not used: {error}")),
        }
    }
    imported
}

fn open(place: &CachePlace, client: &Client) -> Result<Box<dyn Source>, Error> {
    Ok(match place {
        CachePlace::Registry(reference) => Box::new(RegistrySource::new(client, reference)?),
        CachePlace::Local { directory, name } => Box::new(OciLayout::new(directory, Some(name.clone()))),
    })
}

/// What is let in of a place: its manifest or, of an index, those of all images.
fn manifests(place: &CachePlace, trust: &Policy, client: &Client) -> Result<Vec<Manifest>, Error> {
    let source = trust.guard(open(place, client)?, &place.image_name(), false)?;
    let top = source.manifest(None)?;
    let ManifestContent::Index(entries) = top.content() else { return Ok(vec![top]) };
    let manifests = entries.iter().take(MOST_IMAGES).map(|entry| source.manifest(Some(entry.digest())));
    manifests.collect()
}

fn read_one(place: &CachePlace, client: &Client, manifest: &Manifest) -> Result<(Imported, usize), Error> {
    let malformed = |what: String| Error::new(format!("read the cache {place}"), Cause::Malformed(what));
    let ManifestContent::Image { config, layers } = manifest.content() else {
        return Err(malformed("it is an index of indexes".to_owned()));
    };
    if config.size() > MOST_CONFIG_BYTES {
        return Err(malformed(format!("its configuration is larger than {MOST_CONFIG_BYTES} bytes")));
    }
    let source = open(place, client)?;
    let mut bytes = Vec::new();
    let read = source.open_blob(&config)?.take(MOST_CONFIG_BYTES).read_to_end(&mut bytes);
    read.map_err(|error| Error::from_io(format!("read the cache {place}"), config.digest().digest(), error))?;
    let (offers, left_out) = document::read(&bytes, &layers).map_err(malformed)?;
    Ok((Imported { source, offers, is_broken: AtomicBool::new(false) }, left_out))
}

impl Imported {
    /// The layer of a step, fetched if the store does not have it, and recorded as the step's.
    pub(super) fn fetch(&self, key: &str, store: &Store, events: &dyn Events) -> Result<Option<DiffId>, BuildError> {
        let Some(offered) = self.offers.layers.get(key) else { return Ok(None) };
        if self.is_broken.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let layer = match self.take(offered, store, events) {
            Ok(layer) => layer,
            Err(why) => {
                self.is_broken.store(true, Ordering::Relaxed);
                let digest = offered.descriptor.digest();
                events.warning(&format!("the cache {} is not used: its layer {digest}: {why}", self.source.name()));
                return Ok(None);
            }
        };
        // Blobs of other packings are no part of an image: its digest may not depend on where a layer came from.
        if let Some(packing) = self.offers.packing.filter(|p| compression(&layer.descriptor) == Some(p.compression())) {
            store.adopt_blob(&layer, packing)?;
        }
        cache::record(store, key, layer.diff_id)?;
        Ok(Some(layer.diff_id))
    }

    fn take(&self, offered: &Offered, store: &Store, events: &dyn Events) -> Result<Layer, String> {
        let Offered { descriptor, diff_id } = offered;
        let known = store.layer_of_blob(descriptor.digest()).map_err(|error| error.to_string())?;
        let layer = match known {
            Some(layer) => layer,
            None => {
                let kept = copy_blob(&*self.source, &StorePlace::new(store, None), descriptor, events.transfers());
                kept.map_err(|error| error.to_string())?;
                // What the blob is tells its media type, whatever the cache says.
                let stored = store.layer_of_blob(descriptor.digest()).map_err(|error| error.to_string())?;
                stored.ok_or("it is gone again")?
            }
        };
        if layer.diff_id != *diff_id || layer.descriptor.size() != descriptor.size() {
            return Err(format!("it is not the layer {diff_id} of {} bytes", descriptor.size()));
        }
        Ok(layer)
    }
}
