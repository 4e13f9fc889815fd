//! A stage to an image in the store: configuration and manifest, each with one serialisation.
//! <https://github.com/opencontainers/image-spec/blob/main/manifest.md>

use layerfs::{Layer, Store};
use oci_spec::image::{Descriptor, MediaType};
use registry_client::Platform;
use serde::Serialize;

use crate::build::BuiltImage;
use crate::error::BuildError;
use crate::image::ImageConfig;
use crate::place::StoredImage;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest<'a> {
    schema_version: u32,
    media_type: MediaType,
    config: &'a Descriptor,
    layers: Vec<&'a Descriptor>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index<'a> {
    schema_version: u32,
    media_type: MediaType,
    manifests: Vec<IndexEntry<'a>>,
}

#[derive(Serialize)]
struct IndexEntry<'a> {
    #[serde(flatten)]
    descriptor: &'a Descriptor,
    platform: IndexPlatform<'a>,
}

impl<'a> IndexEntry<'a> {
    fn of(built: &'a BuiltImage) -> Self {
        let (architecture, os) = (built.platform.architecture(), built.platform.os());
        let platform = IndexPlatform { architecture, os, variant: built.platform.variant() };
        Self { descriptor: &built.image.manifest, platform }
    }
}

#[derive(Serialize)]
struct IndexPlatform<'a> {
    architecture: &'a str,
    os: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    variant: Option<&'a str>,
}

/// Stores the documents of an image whose layers are there.
pub(crate) fn store_image(
    store: &Store,
    platform: Platform,
    config: ImageConfig,
    layers: Vec<Layer>,
) -> Result<BuiltImage, BuildError> {
    let config_descriptor = store.put_blob_bytes(MediaType::ImageConfig, &config.to_bytes())?;
    let document = Manifest {
        schema_version: 2,
        media_type: MediaType::ImageManifest,
        config: &config_descriptor,
        layers: layers.iter().map(|layer| &layer.descriptor).collect(),
    };
    let bytes = serde_json::to_vec(&document).expect("a manifest has string keys only");
    let manifest = store.put_blob_bytes(MediaType::ImageManifest, &bytes)?;
    let image = StoredImage { manifest, config, layers };
    Ok(BuiltImage { platform, config: config_descriptor, image })
}

/// Stores the index of several images, in their order.
/// <https://github.com/opencontainers/image-spec/blob/main/image-index.md>
pub(crate) fn store_index(store: &Store, images: &[BuiltImage]) -> Result<Descriptor, BuildError> {
    let document = Index {
        schema_version: 2,
        media_type: MediaType::ImageIndex,
        manifests: images.iter().map(IndexEntry::of).collect(),
    };
    let bytes = serde_json::to_vec(&document).expect("an index has string keys only");
    Ok(store.put_blob_bytes(MediaType::ImageIndex, &bytes)?)
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
