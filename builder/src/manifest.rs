//! A stage to an image in the store: configuration and manifest, each with one serialisation.
//! <https://github.com/opencontainers/image-spec/blob/main/manifest.md>

use std::collections::BTreeMap;

use layerfs::{Layer, Store};
use oci_spec::image::{Descriptor, MediaType};
use registry_client::Platform;
use serde::Serialize;

use crate::built::BuiltImage;
use crate::error::BuildError;
use crate::image::ImageConfig;
use crate::media::Types;
use crate::place::StoredImage;

/// The documents of one image, in the store.
pub(crate) struct Documents {
    pub(crate) manifest: Descriptor,
    pub(crate) config: Descriptor,
    /// The layers, as the manifest describes them.
    pub(crate) layers: Vec<Layer>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest<'a> {
    schema_version: u32,
    media_type: MediaType,
    config: &'a Descriptor,
    layers: Vec<&'a Descriptor>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index<'a> {
    schema_version: u32,
    media_type: MediaType,
    manifests: Vec<IndexEntry<'a>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
struct IndexEntry<'a> {
    #[serde(flatten)]
    descriptor: &'a Descriptor,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
    platform: IndexPlatform<'a>,
}

impl<'a> IndexEntry<'a> {
    fn of((built, annotations): &'a (&BuiltImage, BTreeMap<String, String>)) -> Self {
        let asked = &built.platform;
        let (architecture, os, os_version) = (asked.architecture(), asked.os(), asked.os_version());
        let platform = IndexPlatform { architecture, os, os_version, variant: asked.variant() };
        Self { descriptor: &built.image.manifest, annotations, platform }
    }
}

#[derive(Serialize)]
struct IndexPlatform<'a> {
    architecture: &'a str,
    os: &'a str,
    #[serde(rename = "os.version", skip_serializing_if = "Option::is_none")]
    os_version: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    variant: Option<&'a str>,
}

/// Stores the documents of an image whose layers are there.
pub(crate) fn store_image(
    store: &Store,
    platform: Platform,
    config: ImageConfig,
    layers: &[Layer],
    base_layers: usize,
) -> Result<BuiltImage, BuildError> {
    let config_descriptor = store.put_blob_bytes(MediaType::ImageConfig, &config.to_bytes())?;
    let documents = store_manifest(store, &config_descriptor, layers, Types::Oci, &BTreeMap::new())?;
    let image = StoredImage { manifest: documents.manifest, config, layers: documents.layers };
    Ok(BuiltImage { platform, config: config_descriptor, image, base_layers, predicates: Vec::new() })
}

/// Stores the manifest of a configuration and layers that are there.
pub(crate) fn store_manifest(
    store: &Store,
    config: &Descriptor,
    layers: &[Layer],
    types: Types,
    annotations: &BTreeMap<String, String>,
) -> Result<Documents, BuildError> {
    let layers = layers.iter().map(|layer| types.layer(layer)).collect::<Result<Vec<_>, _>>()?;
    let mut config = config.clone();
    config.set_media_type(types.config(&config));
    let document = Manifest {
        schema_version: 2,
        media_type: types.manifest(),
        config: &config,
        layers: layers.iter().map(|layer| &layer.descriptor).collect(),
        annotations,
    };
    let bytes = serde_json::to_vec(&document).expect("a manifest has string keys only");
    let manifest = store.put_blob_bytes(types.manifest(), &bytes)?;
    Ok(Documents { manifest, config, layers })
}

/// Stores the index of several images, in their order, each with the annotations of its entry.
/// <https://github.com/opencontainers/image-spec/blob/main/image-index.md>
pub(crate) fn store_index(
    store: &Store,
    images: &[(&BuiltImage, BTreeMap<String, String>)],
    types: Types,
    annotations: &BTreeMap<String, String>,
) -> Result<Descriptor, BuildError> {
    let document = Index {
        schema_version: 2,
        media_type: types.index(),
        manifests: images.iter().map(IndexEntry::of).collect(),
        annotations,
    };
    let bytes = serde_json::to_vec(&document).expect("an index has string keys only");
    Ok(store.put_blob_bytes(types.index(), &bytes)?)
}

/// A time in seconds since 1970 as RFC 3339; `None` is now.
pub(crate) fn timestamp(seconds: Option<i64>) -> String {
    let time = match seconds {
        Some(seconds) => jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH),
        None => jiff::Timestamp::now(),
    };
    time.to_string()
}

/// The seconds since 1970 of an RFC 3339 text.
pub(crate) fn seconds_of(text: Option<&str>) -> Option<i64> {
    text.and_then(|text| text.parse::<jiff::Timestamp>().ok()).map(jiff::Timestamp::as_second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_go_there_and_back() {
        assert_eq!(timestamp(Some(0)), "1970-01-01T00:00:00Z");
        assert_eq!(seconds_of(Some("2024-02-29T12:00:00.5+01:00")), Some(1_709_204_400));
        assert_eq!(seconds_of(Some("yesterday")), None);
    }
}
