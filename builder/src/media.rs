//! The media types of the documents and layers of images, OCI's and Docker's.

use layerfs::{Compression, Layer};
use oci_spec::image::{Descriptor, MediaType};

use crate::error::BuildError;

/// Whose media types the documents of an image have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Types {
    /// OCI's.
    Oci,
    /// Docker's, which older registries want. They have none for zstd.
    /// <https://github.com/distribution/distribution/blob/main/docs/content/spec/manifest-v2-2.md>
    Docker,
    /// OCI's around a configuration that is no image's.
    Cache,
}

/// Whether a document is that of several images, by its media type.
pub(crate) fn is_index(document: &Descriptor) -> bool {
    [Types::Oci, Types::Docker].iter().any(|types| types.index() == *document.media_type())
}

/// What a media type says of a layer; `None` for those that are no layers of ours.
pub(crate) fn compression(descriptor: &Descriptor) -> Option<Compression> {
    match descriptor.media_type() {
        MediaType::ImageLayer => Some(Compression::None),
        MediaType::ImageLayerGzip => Some(Compression::Gzip),
        MediaType::ImageLayerZstd => Some(Compression::Zstd),
        MediaType::Other(other) => match other.as_str() {
            "application/vnd.docker.image.rootfs.diff.tar" => Some(Compression::None),
            "application/vnd.docker.image.rootfs.diff.tar.gzip" => Some(Compression::Gzip),
            "application/vnd.docker.image.rootfs.diff.tar.zstd" => Some(Compression::Zstd),
            _ => None,
        },
        _ => None,
    }
}

impl Types {
    pub(crate) fn manifest(self) -> MediaType {
        match self {
            Self::Oci | Self::Cache => MediaType::ImageManifest,
            Self::Docker => MediaType::from("application/vnd.docker.distribution.manifest.v2+json"),
        }
    }

    pub(crate) fn index(self) -> MediaType {
        match self {
            Self::Oci | Self::Cache => MediaType::ImageIndex,
            Self::Docker => MediaType::from("application/vnd.docker.distribution.manifest.list.v2+json"),
        }
    }

    pub(crate) fn config(self, config: &Descriptor) -> MediaType {
        match self {
            Self::Oci => MediaType::ImageConfig,
            Self::Docker => MediaType::from("application/vnd.docker.container.image.v1+json"),
            Self::Cache => config.media_type().clone(),
        }
    }

    /// The layer with the media type of these; what is no layer that we know stays as it is.
    pub(crate) fn layer(self, layer: &Layer) -> Result<Layer, BuildError> {
        let Some(compression) = compression(&layer.descriptor) else { return Ok(layer.clone()) };
        let media_type = match (self, compression) {
            (Self::Oci | Self::Cache, Compression::None) => MediaType::ImageLayer,
            (Self::Oci | Self::Cache, Compression::Gzip) => MediaType::ImageLayerGzip,
            (Self::Oci | Self::Cache, Compression::Zstd) => MediaType::ImageLayerZstd,
            (Self::Docker, Compression::None) => MediaType::from("application/vnd.docker.image.rootfs.diff.tar"),
            (Self::Docker, Compression::Gzip) => MediaType::from("application/vnd.docker.image.rootfs.diff.tar.gzip"),
            (Self::Docker, Compression::Zstd) => {
                let why = "zstd layers need OCI media types: leave oci-mediatypes=false away, or pack all of them \
                    with compression=gzip,force-compression=true";
                return Err(BuildError::Request(why.to_owned()));
            }
        };
        let mut layer = layer.clone();
        layer.descriptor.set_media_type(media_type);
        Ok(layer)
    }
}
