//! What a build made, for whoever says something about it or writes it somewhere.

use layerfs::{DiffId, Packing};
use oci_spec::image::Descriptor;
use registry_client::Platform;
use serde_json::Value;

use crate::media::is_index;
use crate::place::{Attached, StoredImage};

/// What a build made.
#[derive(Debug, Clone)]
pub struct Built {
    /// The manifest, or for several platforms the index, which is in the store without a name yet.
    pub manifest: Descriptor,
    /// The images, in the order in which their platforms were asked for; at least one.
    pub images: Vec<BuiltImage>,
    /// How the layers that the build made are packed.
    pub packing: Packing,
    /// The statements about the images that go where these go.
    pub(crate) attached: Vec<Attached>,
    /// What each step gave, for remote caches.
    pub(crate) steps: Vec<StepResult>,
}

impl Built {
    /// Whether it is an index, also of a single image if that was asked for.
    #[must_use]
    pub fn is_index(&self) -> bool {
        is_index(&self.manifest)
    }
}

/// One image of a build.
#[derive(Debug, Clone)]
pub struct BuiltImage {
    /// What it was asked for; its configuration may say otherwise where nobody asked and its base does.
    pub platform: Platform,
    /// The configuration's descriptor.
    pub config: Descriptor,
    /// The image.
    pub image: StoredImage,
    /// How many of its layers, the lowest, are the base image's.
    pub base_layers: usize,
    /// What is said about it.
    pub(crate) predicates: Vec<Predicate>,
}

/// A statement without the image that it is about.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Predicate {
    pub(crate) kind: &'static str,
    pub(crate) content: Value,
}

/// A step of a build and its layer.
#[derive(Debug, Clone)]
pub(crate) struct StepResult {
    pub(crate) key: String,
    pub(crate) diff_id: DiffId,
}
