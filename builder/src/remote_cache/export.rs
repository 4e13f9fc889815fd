//! The steps of a build as a cache for other machines.
//!
//! Invariant: the same steps and layers give the same manifest. Blobs come first, the name last, as of every image.

use std::collections::{BTreeMap, HashMap, HashSet};

use layerfs::DiffId;
use registry_client::{CopyOptions, Destination, OciLayout, PlatformChoice, RegistryDestination, copy};

use super::document;
use crate::built::Built;
use crate::error::BuildError;
use crate::manifest::store_manifest;
use crate::media::Types;
use crate::output::Delivery;
use crate::place::StorePlace;
use crate::request::{CacheExport, CachePlace, CacheScope};

/// Writes the steps of a build to a place. An inline cache is in the image and needs no writing.
///
/// # Errors
/// If it cannot be written; the caller knows whether that matters.
pub fn export_cache(built: &Built, export: &CacheExport, delivery: Delivery<'_>) -> Result<(), BuildError> {
    let CacheExport::To { place, scope, packing, .. } = export else { return Ok(()) };
    let Delivery { store, client, threads, .. } = delivery;
    let (layers, steps) = chosen(built, *scope);
    // Where the image is packed so, too, its blobs are these: stored once, here and at the registry.
    let layers =
        layers.iter().map(|diff_id| store.pack_layer(diff_id, *packing, threads)).collect::<Result<Vec<_>, _>>()?;
    let (media_type, bytes) = document::cache_config(&layers, steps, *packing);
    let config = store.put_blob_bytes(media_type, &bytes)?;
    let manifest = store_manifest(store, &config, &layers, Types::Cache, &BTreeMap::new())?.manifest;
    let destination: Box<dyn Destination> = match place {
        CachePlace::Registry(reference) => Box::new(RegistryDestination::new(client, reference)?),
        CachePlace::Local { directory, name } => Box::new(OciLayout::new(directory, Some(name.clone()))),
    };
    let source = StorePlace::existing(store, &format!("the cache for {place}"), manifest);
    let options = CopyOptions { platforms: PlatformChoice::All, ..CopyOptions::default() };
    copy(&source, destination.as_ref(), &options, delivery.progress)?;
    Ok(())
}

/// The layers of a scope, each once, and the keys of their steps with their numbers.
fn chosen(built: &Built, scope: CacheScope) -> (Vec<DiffId>, BTreeMap<String, usize>) {
    let of_result: HashSet<DiffId> = built.images.iter().flat_map(|image| image.image.diff_ids()).collect();
    let chosen = built.steps.iter().filter(|step| scope == CacheScope::All || of_result.contains(&step.diff_id));
    // By key: the order in which steps end is not that of the next build.
    let chosen: BTreeMap<&str, DiffId> = chosen.map(|step| (step.key.as_str(), step.diff_id)).collect();
    let (mut layers, mut numbers, mut by_key) = (Vec::new(), HashMap::new(), BTreeMap::new());
    for (key, diff_id) in chosen {
        let number = *numbers.entry(diff_id).or_insert_with(|| {
            layers.push(diff_id);
            layers.len() - 1
        });
        by_key.insert(key.to_owned(), number);
    }
    (layers, by_key)
}
