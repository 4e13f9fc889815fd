//! What is said about an image: how it was built, and which packages it holds.
//!
//! Statements are in-toto's (<https://github.com/in-toto/attestation/tree/main/spec/v1>), each an artifact that refers to
//! the image (<https://github.com/opencontainers/image-spec/blob/main/manifest.md>), not an entry of an index: what is
//! said changes no digest of what it is said about. Invariant: the same build says the same, byte for byte; there is no
//! time in a statement that the build was not given.

mod packages;
mod provenance;
mod spdx;

use std::collections::BTreeMap;
use std::sync::Arc;

use layerfs::{Store, Tree};
use oci_spec::image::{Descriptor, MediaType};
use registry_client::{Artifact, Reference};
use serde_json::{Value, json};

use crate::built::{Built, BuiltImage, Predicate};
use crate::error::BuildError;
use crate::materials::{Materials, image_uri};
use crate::place::{StorePlace, described};
use crate::request::BuildRequest;

const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
const MEDIA_TYPE: &str = "application/vnd.in-toto+json";
/// On the blob, where BuildKit and cosign look for it, and on the manifest, where registries show it in lists.
const PREDICATE_TYPE: &str = "in-toto.io/predicate-type";

/// What was asked to be said about the image of a build.
pub(crate) fn predicates(
    request: &BuildRequest,
    store: &Store,
    materials: &Materials,
    image: &BuiltImage,
) -> Result<Vec<Predicate>, BuildError> {
    let mut predicates = Vec::new();
    if let Some(asked) = &request.attestations.provenance {
        let content = provenance::predicate(request, asked, &materials.list());
        predicates.push(Predicate { kind: provenance::PREDICATE_TYPE, content });
    }
    if request.attestations.packages {
        let tree: Arc<dyn Tree> = store.tree(&image.image.diff_ids())?;
        let found = packages::find(&tree);
        let found = found.map_err(|source| BuildError::File {
            action: "list the packages of",
            path: "the image".into(),
            source,
        })?;
        let (config, _) = described(store, &image.image.manifest)?;
        let created = config.created.as_deref().unwrap_or("1970-01-01T00:00:00Z");
        let content = spdx::document(&found, image, created);
        predicates.push(Predicate { kind: spdx::PREDICATE_TYPE, content });
    }
    Ok(predicates)
}

/// Puts what is said about the images of a build beside them. What an earlier build said of the same image stays there,
/// but goes nowhere with this one: it need not be true of it, nor be meant for others.
pub(crate) fn attach(store: &Store, built: &mut Built, names: &[String]) -> Result<(), BuildError> {
    built.attached.clear();
    let place = StorePlace::new(store, None);
    for image in &built.images {
        for predicate in &image.predicates {
            let statement = predicate.about(image, names)?.to_string().into_bytes();
            let annotations = BTreeMap::from([(PREDICATE_TYPE.to_owned(), predicate.kind.to_owned())]);
            let media_type = MediaType::from(MEDIA_TYPE);
            let mut layer = Descriptor::new(media_type, statement.len() as u64, layerfs::digest_of(&statement));
            layer.set_annotations(Some(annotations.clone().into_iter().collect()));
            let artifact = Artifact {
                artifact_type: MEDIA_TYPE.to_owned(),
                subject: Some(image.image.manifest.clone()),
                layers: vec![(layer, &statement)],
                annotations,
            };
            let manifest = artifact.put(&place)?;
            built.attached.push((image.image.manifest.digest().clone(), manifest.listed()));
        }
    }
    Ok(())
}

impl Predicate {
    fn about(&self, image: &BuiltImage, names: &[String]) -> Result<Value, BuildError> {
        let digest = &image.image.manifest;
        let subject = |name: String| json!({"name": name, "digest": sha256(digest)});
        let named = names.iter().map(|name| Ok(subject(image_uri(&name.parse::<Reference>()?, &image.platform))));
        let mut subjects = named.collect::<Result<Vec<_>, registry_client::Error>>()?;
        if subjects.is_empty() {
            // BuildKit's word for what has no name.
            subjects.push(subject("_".to_owned()));
        }
        Ok(json!({
            "_type": STATEMENT_TYPE,
            "subject": subjects,
            "predicateType": self.kind,
            "predicate": self.content,
        }))
    }
}

/// A digest as in-toto has it (<https://github.com/in-toto/attestation/blob/main/spec/v1/digest_set.md>).
fn sha256(descriptor: &Descriptor) -> Value {
    json!({descriptor.digest().algorithm().as_ref(): descriptor.digest().digest()})
}
