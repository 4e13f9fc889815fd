//! What cosign keeps beside an image, on its way to a place that may hold some of its own.
//!
//! Invariant: nothing that is there is lost: signatures and attestations are joined, and what cannot be joined is an
//! error before the tag moves.

use super::attached::{Drawer, PAYLOAD, SIGNATURES_LIMIT, UPDATE_TRIES, too_many};
use crate::error::{Cause, Error};
use crate::manifest::{Manifest, ManifestContent};
use crate::place::{Destination, Source};

/// The media type of an attestation (<https://github.com/sigstore/cosign/blob/main/specs/ATTESTATION_SPEC.md>).
const ENVELOPE: &str = "application/vnd.dsse.envelope.v1+json";

/// Puts `companion`, whose blobs are there, under its tag beside the image at `destination`, together with what is there
/// already. `there` is the destination as a source.
///
/// # Errors
/// If something else is under the tag, which is then not replaced; if a place fails, or other clients change the tag
/// again and again.
pub(crate) fn put_companion(
    destination: &dyn Destination,
    there: &dyn Source,
    tag: &str,
    companion: &Manifest,
) -> Result<(), Error> {
    let doing = || format!("put {tag} beside {}", there.name());
    for _ in 0..UPDATE_TRIES {
        // What another client puts there at the same time is found the next time round.
        let Some(existing) = there.tagged(tag)? else {
            destination.put_tagged(companion, tag)?;
            continue;
        };
        if existing.digest() == companion.digest() {
            return Ok(());
        }
        check_joins(there, tag, companion, &existing)?;
        let mut drawer = drawer_of(there, tag, &existing)?;
        let before = drawer.layers().len();
        drawer.add_all(&drawer_of(there, tag, companion)?);
        match drawer.layers().len() {
            after if after == before => return Ok(()),
            after if after > SIGNATURES_LIMIT => return Err(too_many(there)),
            _ => drawer.put(there, destination, tag, Some(&existing))?,
        };
    }
    let cause = Cause::Malformed("other clients changed it again and again".to_owned());
    Err(Error::new(doing(), cause))
}

/// An error if [`put_companion`] would be one for what is under the tag now: for who has much to move before.
pub(crate) fn check_companion(there: &dyn Source, tag: &str, companion: &Manifest) -> Result<(), Error> {
    match there.tagged(tag) {
        Ok(Some(existing)) => check_joins(there, tag, companion, &existing),
        // Some registries refuse to be asked about a repository that only the first blob makes; it is asked again then.
        Ok(None) | Err(_) => Ok(()),
    }
}

/// Whether something else is under the tag that [`put_companion`] would join.
pub(crate) fn has_companion_to_join(there: &dyn Source, tag: &str, companion: &Manifest) -> Result<bool, Error> {
    let existing = there.tagged(tag)?.filter(|existing| existing.digest() != companion.digest());
    Ok(existing.is_some_and(|existing| is_collection(&existing) && is_collection(companion)))
}

fn check_joins(there: &dyn Source, tag: &str, companion: &Manifest, existing: &Manifest) -> Result<(), Error> {
    if existing.digest() == companion.digest() || (is_collection(existing) && is_collection(companion)) {
        return Ok(());
    }
    Err(unlike(there, tag))
}

fn drawer_of(there: &dyn Source, tag: &str, manifest: &Manifest) -> Result<Drawer, Error> {
    Drawer::of(there, Some(manifest)).map_err(|error| match error.cause() {
        Cause::Malformed(_) => unlike(there, tag),
        _ => error,
    })
}

fn unlike(there: &dyn Source, tag: &str) -> Error {
    let what = "something else is there, and only signatures and attestations can be joined; nothing was replaced";
    Error::local(format!("put {tag} beside {}", there.name()), Cause::Input(what.to_owned()))
}

/// Whether its layers stand each for itself.
fn is_collection(manifest: &Manifest) -> bool {
    let ManifestContent::Image { layers, .. } = manifest.content() else { return false };
    layers.iter().all(|layer| [PAYLOAD, ENVELOPE].contains(&layer.media_type().to_string().as_str()))
}
