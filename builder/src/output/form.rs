//! The form of an image: how its layers are packed, whose media types and which annotations its documents have.
//!
//! Invariant: the content never changes: configuration and diff ids are those that were built. Documents are a function
//! of what was built and the form.

use layerfs::{Packing, Store};
use registry_client::{EntryChange, Platform};

use super::annotations::{self, Annotation, AnnotationPlace};
use crate::built::{Built, BuiltImage};
use crate::error::BuildError;
use crate::manifest;
use crate::media::Types;
use crate::media::compression;
use crate::place::StoredImage;

/// The annotation that says when an image was made.
/// <https://github.com/opencontainers/image-spec/blob/main/annotations.md#pre-defined-annotation-keys>
const CREATED: &str = "org.opencontainers.image.created";

/// How an image is written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageForm {
    /// How the layers that the build made are packed.
    pub packing: Packing,
    /// Layers of the base image, too, if they are compressed otherwise.
    pub forces_packing: bool,
    /// Docker's media types instead of OCI's.
    pub has_docker_types: bool,
    /// What its documents say besides.
    pub annotations: Vec<Annotation>,
}

impl ImageForm {
    /// The image in this form, in the store; one that has it already is returned as it is.
    pub(super) fn apply(&self, store: &Store, built: &Built, threads: usize) -> Result<Built, BuildError> {
        if *self == (Self { packing: built.packing, ..Self::default() }) {
            return Ok(built.clone());
        }
        let images = built
            .images
            .iter()
            .map(|image| self.image(store, image, built.packing, threads))
            .collect::<Result<Vec<_>, _>>()?;
        let manifest = match images.as_slice() {
            [one] if !built.is_index() => one.image.manifest.clone(),
            several => {
                let of_entry = |image: &BuiltImage| {
                    annotations::at(&self.annotations, AnnotationPlace::ManifestDescriptor, Some(&image.platform))
                };
                let entries: Vec<_> = several.iter().map(|image| (image, of_entry(image))).collect();
                let of_index = annotations::at(&self.annotations, AnnotationPlace::Index, None);
                manifest::store_index(store, &entries, self.types(), &of_index)?
            }
        };
        Ok(Built { manifest, images, ..built.clone() })
    }

    /// What the entry in a layout's `index.json` says, as BuildKit has it; but an image of several platforms is as old
    /// as the newest of them, and not as its export.
    pub(super) fn entry(&self, built: &Built) -> EntryChange {
        let (platform, own) = match built.images.as_slice() {
            [one] if !built.is_index() => {
                let own = annotations::at(&self.annotations, AnnotationPlace::ManifestDescriptor, Some(&one.platform));
                (Some(one.platform.clone()), own)
            }
            _ => (None, annotations::at(&self.annotations, AnnotationPlace::IndexDescriptor, None)),
        };
        let created = built.images.iter().filter_map(|one| manifest::seconds_of(one.image.config.created.as_deref()));
        let created = created.max().map(|seconds| (CREATED.to_owned(), manifest::timestamp(Some(seconds))));
        EntryChange { platform, annotations: created.into_iter().chain(own).collect(), ..EntryChange::default() }
    }

    /// Refuses what has no place in an image for some platforms, or in the index of them; `has_entry` tells whether a
    /// layout's `index.json` lists it.
    pub(super) fn check(&self, platforms: &[Platform], makes_index: bool, has_entry: bool) -> Result<(), BuildError> {
        if self.has_docker_types && !self.annotations.is_empty() {
            let why = "annotations need OCI media types: leave oci-mediatypes=false away";
            return Err(BuildError::Request(why.to_owned()));
        }
        let is_single = !makes_index;
        for annotation in &self.annotations {
            let why = match (annotation.place, &annotation.platform) {
                (AnnotationPlace::Index | AnnotationPlace::IndexDescriptor, _) if is_single => {
                    "an image of one platform has no index".to_owned()
                }
                (AnnotationPlace::IndexDescriptor, _) if !has_entry => "only type=oci has an entry for it".to_owned(),
                (AnnotationPlace::ManifestDescriptor, _) if is_single && !has_entry => {
                    "an image of one platform has an entry with type=oci only".to_owned()
                }
                (_, Some(wanted)) if !platforms.contains(wanted) => format!("nothing is built for {wanted}"),
                _ => continue,
            };
            return Err(BuildError::Request(format!("the annotation {:?} has no place: {why}", annotation.key)));
        }
        Ok(())
    }

    fn types(&self) -> Types {
        if self.has_docker_types { Types::Docker } else { Types::Oci }
    }

    fn image(
        &self,
        store: &Store,
        built: &BuiltImage,
        packed: Packing,
        threads: usize,
    ) -> Result<BuiltImage, BuildError> {
        let layers = built.image.layers.iter().enumerate();
        let layers = layers
            .map(|(number, layer)| {
                let stays = match number < built.base_layers {
                    // Of a base image's gzip, nobody knows the level.
                    true => !self.forces_packing || compression(&layer.descriptor) == Some(self.packing.compression()),
                    false => self.packing == packed,
                };
                if stays { Ok(layer.clone()) } else { store.pack_layer(&layer.diff_id, self.packing, threads) }
            })
            .collect::<Result<Vec<_>, _>>()?;
        let of_manifest = annotations::at(&self.annotations, AnnotationPlace::Manifest, Some(&built.platform));
        let documents = manifest::store_manifest(store, &built.config, &layers, self.types(), &of_manifest)?;
        let image =
            StoredImage { manifest: documents.manifest, config: built.image.config.clone(), layers: documents.layers };
        Ok(BuiltImage { config: documents.config, image, ..built.clone() })
    }
}
