//! Names of images in the store: what a person typed, found again however it is typed next.
//!
//! Invariant: two spellings of one reference (`app`, `app:latest`, `docker.io/library/app`) name one
//! image. The spelling that was used last is the one that `index.json` shows.

use layerfs::{NamedImage, Store, StoreError};
use oci_spec::image::{Descriptor, Digest};
use registry_client::{Cause, Error, Reference};

/// The manifest of a reference in the store.
///
/// # Errors
/// If the store cannot be read.
pub fn find(store: &Store, reference: &Reference) -> Result<Option<Descriptor>, Error> {
    let images = store.images().map_err(|error| failed("look for an image in the store", error))?;
    let fits = |image: &&NamedImage| match (reference.digest(), image.name.parse::<Reference>()) {
        (None, Ok(named)) => same(&named, reference),
        (Some(digest), Ok(named)) => image.descriptor.digest() == digest && same_repository(&named, reference),
        (_, Err(_)) => false,
    };
    let found = images.iter().find(fits).map(|image| image.descriptor.clone());
    match found {
        Some(descriptor) => {
            let kept = store.has_blob(descriptor.digest());
            Ok(kept.map_err(|error| failed("look for an image in the store", error))?.then_some(descriptor))
        }
        None => Ok(None),
    }
}

/// Finds an image by a name as typed, or by its digest or a beginning of it.
///
/// # Errors
/// If there is none, or the store cannot be read.
pub fn lookup(store: &Store, name: &str) -> Result<Descriptor, Error> {
    let images = store.images().map_err(|error| failed("look for an image in the store", error))?;
    if let Some(image) = images.iter().find(|image| image.name == name) {
        return Ok(image.descriptor.clone());
    }
    if let Ok(reference) = name.parse::<Reference>()
        && let Some(descriptor) = find(store, &reference)?
    {
        return Ok(descriptor);
    }
    let hex = name.strip_prefix("sha256:").unwrap_or(name);
    let starts = |digest: &Digest| hex.len() >= 6 && digest.digest().starts_with(hex);
    let mut matching = images.iter().map(|image| &image.descriptor).filter(|descriptor| starts(descriptor.digest()));
    let missing = || Error::new(format!("find the image {name}"), Cause::Missing("it is not in the store".to_owned()));
    let first = matching.next().ok_or_else(missing)?;
    match matching.find(|other| other.digest() != first.digest()) {
        Some(_) => {
            let what = "several images of the store have digests that begin so".to_owned();
            Err(Error::new(format!("find the image {name}"), Cause::Input(what)))
        }
        None => Ok(first.clone()),
    }
}

/// Gives a manifest a name; other spellings of the same name lose theirs.
///
/// # Errors
/// A name that is no reference, or what writing gives.
pub fn set(store: &Store, name: &str, manifest: &Descriptor) -> Result<(), Error> {
    let reference: Reference = name.parse()?;
    // A name with a digest is one of its own beside the tag's.
    let is_spelling = |named: Reference| same(&named, &reference) && named.digest() == reference.digest();
    let kept = store.set_name_over(name, manifest, |other| other.parse().is_ok_and(is_spelling));
    kept.map_err(|error| failed("name an image in the store", error))
}

fn same(a: &Reference, b: &Reference) -> bool {
    same_repository(a, b) && a.tag() == b.tag()
}

fn same_repository(a: &Reference, b: &Reference) -> bool {
    a.registry() == b.registry() && a.repository() == b.repository()
}

fn failed(doing: &str, error: StoreError) -> Error {
    Error::new(doing, Cause::Place(Box::new(error)))
}
