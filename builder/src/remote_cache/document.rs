//! What a cache says: which steps gave which of a manifest's layers.
//!
//! The words stand in a configuration beside `rootfs.diff_ids`, which names the manifest's layers in their order: in
//! that of a cache, which holds nothing else, or in that of an image with an inline cache. Hence one reader for both.
//!
//! Invariant: one set of steps has one document. What is read is checked: a step names a layer that is there.

use std::collections::BTreeMap;

use layerfs::{DiffId, Layer, Packing};
use oci_spec::image::{Descriptor, MediaType};
use serde::{Deserialize, Serialize};

use super::StepResult;
use crate::image::{ImageConfig, RootFs};

/// The field of a configuration.
const FIELD: &str = "nacre.buildcache.v1";
/// BuildKit's: a base image's would describe layers that its child does not have.
const BUILDKIT_FIELD: &str = "moby.buildkit.cache.v0";
/// A cache's configuration: no image, so that nobody runs it.
const MEDIA_TYPE: &str = "application/vnd.nacre.buildcache.v1+json";

/// Which steps gave which layers.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Steps {
    /// How the layers are packed: a name of `Packing::format`.
    #[serde(default)]
    packing: String,
    /// A layer's number in the manifest, by the key of its step.
    steps: BTreeMap<String, usize>,
}

/// The part of a configuration that a cache is in.
#[derive(Debug, Serialize, Deserialize)]
struct CacheConfig {
    #[serde(default)]
    rootfs: RootFs,
    #[serde(rename = "nacre.buildcache.v1", default)]
    cache: Option<Steps>,
}

/// A layer that a cache offers for a step.
#[derive(Debug, Clone)]
pub(super) struct Offered {
    pub(super) descriptor: Descriptor,
    pub(super) diff_id: DiffId,
}

/// What a cache offers.
#[derive(Debug, Default)]
pub(super) struct Offers {
    /// Layers by the keys of their steps.
    pub(super) layers: BTreeMap<String, Offered>,
    /// How they are packed, if that is a way of this version.
    pub(super) packing: Option<Packing>,
}

/// Takes away what a base image says of caches.
pub(super) fn forget(config: &mut ImageConfig) {
    config.rest.remove(FIELD);
    config.rest.remove(BUILDKIT_FIELD);
}

/// Says in an image's configuration which steps gave its layers.
pub(super) fn describe(config: &mut ImageConfig, layers: &[Layer], steps: &[StepResult], packing: Packing) {
    let numbers: BTreeMap<DiffId, usize> =
        layers.iter().enumerate().map(|(number, layer)| (layer.diff_id, number)).collect();
    let found = |step: &StepResult| Some((step.key.clone(), *numbers.get(&step.diff_id)?));
    let steps = Steps { packing: packing.format(), steps: steps.iter().filter_map(found).collect() };
    let value = serde_json::to_value(steps).expect("keys are strings");
    config.rest.insert(FIELD.to_owned(), value);
}

/// The configuration of a cache of its own; the manifest's layers are those given, in that order.
pub(super) fn cache_config(layers: &[Layer], steps: BTreeMap<String, usize>, packing: Packing) -> (MediaType, Vec<u8>) {
    let diff_ids = layers.iter().map(|layer| layer.diff_id.to_string()).collect();
    let rootfs = RootFs { diff_ids, ..RootFs::default() };
    let document = CacheConfig { rootfs, cache: Some(Steps { packing: packing.format(), steps }) };
    let bytes = serde_json::to_vec(&document).expect("keys are strings");
    (MediaType::from(MEDIA_TYPE), bytes)
}

/// Reads a configuration whose manifest has these layers. Steps that make no sense are left out; the number of these
/// comes second.
///
/// # Errors
/// In words, if there is no cache in it.
pub(super) fn read(config: &[u8], layers: &[Descriptor]) -> Result<(Offers, usize), String> {
    let config: CacheConfig =
        serde_json::from_slice(config).map_err(|error| format!("it is not understood: {error}"))?;
    let steps = config.cache.ok_or("it holds no cache of ours")?;
    let diff_ids = &config.rootfs.diff_ids;
    if diff_ids.len() != layers.len() {
        return Err(format!("it describes {} layers, but has {}", diff_ids.len(), layers.len()));
    }
    let mut offers = Offers { packing: Packing::of_format(&steps.packing), ..Offers::default() };
    let mut left_out = 0;
    for (key, number) in steps.steps {
        let offered = layers.get(number).zip(diff_ids.get(number)).and_then(|(descriptor, diff_id)| {
            Some(Offered { descriptor: descriptor.clone(), diff_id: diff_id.parse().ok()? })
        });
        // A key is the hexadecimal digest that `StepKey` makes.
        let is_key = key.len() == 64 && key.bytes().all(|byte| byte.is_ascii_hexdigit());
        match offered.filter(|_| is_key) {
            Some(offered) => _ = offers.layers.insert(key, offered),
            None => left_out += 1,
        }
    }
    Ok((offers, left_out))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn layer(byte: u8) -> Layer {
        let hex = format!("{byte:02x}").repeat(32);
        let digest = oci_spec::image::Digest::try_from(format!("sha256:{hex}").as_str()).expect("a digest");
        let diff_id = format!("sha256:{hex}").parse().expect("a diff id");
        Layer { diff_id, descriptor: Descriptor::new(MediaType::ImageLayerGzip, 7, digest) }
    }

    fn step(key: char, layer: &Layer) -> StepResult {
        StepResult { key: key.to_string().repeat(64), diff_id: layer.diff_id }
    }

    #[test]
    fn an_inline_cache_names_only_layers_of_its_image() {
        let [base, own, other] = [1, 2, 3].map(layer);
        let mut config = ImageConfig::default();
        config.rest.insert(BUILDKIT_FIELD.to_owned(), "old".into());
        config.rootfs.diff_ids = [&base, &own].map(|layer| layer.diff_id.to_string()).into();
        forget(&mut config);
        describe(&mut config, &[base.clone(), own.clone()], &[step('a', &own), step('b', &other)], Packing::default());
        assert!(!config.rest.contains_key(BUILDKIT_FIELD));
        let (offers, left_out) = read(&config.to_bytes(), &[base.descriptor, own.descriptor.clone()]).expect("read");
        assert_eq!((offers.layers.len(), left_out), (1, 0));
        assert_eq!(offers.layers[&"a".repeat(64)].descriptor, own.descriptor);
    }

    #[test]
    fn steps_that_make_no_sense_are_left_out() {
        let own = layer(1);
        let text = serde_json::json!({
            "rootfs": {"type": "layers", "diff_ids": [own.diff_id]},
            FIELD: {"steps": {"a".repeat(64): 0, "b".repeat(64): 1, "../x": 0}},
        });
        let (offers, left_out) = read(text.to_string().as_bytes(), &[own.descriptor]).expect("read");
        assert_eq!((offers.layers.len(), left_out), (1, 2));
        assert!(read(text.to_string().as_bytes(), &[]).is_err(), "another number of layers");
        assert!(read(b"{}", &[]).is_err(), "no cache");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes, &[]);
        }
    }
}
